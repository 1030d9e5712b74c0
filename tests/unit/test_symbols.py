# SPDX-License-Identifier: MIT
"""What libpasid exports is what pasid.h declares, no more and no less: test_symbols.py LIBRARY HEADER [CC]

Every declared call is also linked into a program, through its address; $PASID_TEST_WRAPPER starts it, if there is one.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile

library, header = (os.path.abspath(p) for p in sys.argv[1:3])
cc = sys.argv[3:] or ["cc"]

with open(header, encoding="utf-8") as f:
    text = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
declared = set(re.findall(r"^\s*[a-z][\w\s*]*?\b(pasid_\w+)\(", text, flags=re.M))

out = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
rows = [line.split() for line in out.splitlines()]
exported = {name.split("@")[0] for _, kind, name in rows if kind in "TWDBRVi"}
assert exported == declared, f"exported only: {exported - declared}; declared only: {declared - exported}"
assert all(name.endswith("@@LIBPASID_1") for _, kind, name in rows if kind == "T"), out

undefined = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True).stdout
cc += ["-fsanitize=" + name for name, mark in (("address", "__asan"), ("undefined", "__ubsan")) if mark in undefined]

with tempfile.TemporaryDirectory() as tmp:
    source, program = os.path.join(tmp, "all.c"), os.path.join(tmp, "all")
    with open(source, "w", encoding="utf-8") as f:
        f.write("#include <pasid/pasid.h>\ntypedef void (*any)(void);\nany all[] = {\n")
        f.writelines(f"\t(any){name},\n" for name in sorted(declared))
        f.write("};\nint main(void)\n{\n\treturn all[0] ? 0 : 1;\n}\n")
    subprocess.run([*cc, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
                    "-I" + os.path.dirname(os.path.dirname(header)), source, library, "-o", program], check=True)
    subprocess.run([*shlex.split(os.environ.get("PASID_TEST_WRAPPER", "")), program], check=True,
                   env={**os.environ, "LD_LIBRARY_PATH": os.path.dirname(library)})
print(f"{len(declared)} symbols")
