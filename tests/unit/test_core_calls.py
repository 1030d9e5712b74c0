# SPDX-License-Identifier: MIT
"""What lib_core calls outside of itself: memory, text and trees, and nothing that has to do with fds, clocks or loops.

    test_core_calls.py ARCHIVE

The list says what may be called, so that whoever needs more comes by here. What compilers and sanitizers add counts for
nothing.
"""

import re
import subprocess
import sys

MAY_CALL = re.compile(r"malloc|calloc|realloc|free|posix_memalign"
                      r"|mem(cpy|move|set|cmp|chr)|bcmp|str(len|n?cmp|n?cpy|chr)"
                      r"|v?s?n?printf|v?fprintf|fputs|fputc|putc|fwrite"  # books_dump(), to whatever its caller opened
                      r"|itree_\w+"  # of lib_base, where it calls nothing else than what is here
                      r"|__assert_fail|abort")
ADDED = re.compile(r"_GLOBAL_OFFSET_TABLE_|__stack_chk_(fail|guard)|__(asan|ubsan|tsan|msan|sanitizer|gcov|llvm)_\w+"
                   r"|__(start_|stop_)?_*sancov\w*|__aarch64_\w+|__[a-z]+[sdt]i[234]")  # ... of libgcc: atomics, arithmetic
FORTIFIED = re.compile(r"__(\w+)_chk")


def names(kind):
    out = subprocess.run(["nm", kind, sys.argv[1]], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in out.splitlines()]
    return {row[-1] for row in rows if len(row) > 1}


calls = names("--undefined-only") - names("--defined-only")
assert "calloc" in calls, f"is {sys.argv[1]} the library? It calls {calls}"
calls = {FORTIFIED.sub(r"\1", name) for name in calls if not ADDED.fullmatch(name)}
wrong = sorted(name for name in calls if not MAY_CALL.fullmatch(name))
assert not wrong, f"the core is books only: no fds, no clock, no loop; it calls {', '.join(wrong)}"
print(f"{len(calls)} functions")
