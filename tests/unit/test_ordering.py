# SPDX-License-Identifier: MIT
"""Stores that a device or another process follows: are they ordered behind what they publish, in the code as compiled?

    test_ordering.py SOURCE OBJDUMP ARCHIVE...

On Arm a missing barrier is seen by nobody until a device is unlucky: an emulator keeps the order, as x86 does. So the
disassembly is read. Debug information says which instructions a line of the source became; in every function that has
some of them there has to be at least one store of that line, and each has to be a store-release (stlr) or to come
behind a barrier with no other store in between. Such a barrier is at least as wide as the inner shareable domain.
"""

import collections
import re
import subprocess
import sys
from pathlib import Path

# What a line of the source has to become. A new one: the file, a part of that line (each line that has it is meant),
# which of the two, and the objects that have it.
STORE = "a store-release, or a store behind a barrier"
BARRIER = "a barrier"
Ordered = collections.namedtuple("Ordered", "source text what objects")
ORDERED = [
    # A table is complete before the entry that links it.
    Ordered("daemon/pgtable/walk_template.h", "__atomic_store_n(table_entries(p, page) + i,", STORE,
            ["vmsa64.c", "x86_64.c"]),
    # An entry of the journal is whole before the journal's end is behind it.
    Ordered("daemon/store/journal.c", "__atomic_store_n(&j->head->published,", STORE, ["journal.c"]),
    # A context descriptor is complete before it is valid, or linked; not valid before anything else of it changes.
    Ordered("daemon/translator/cdtable.c", "__atomic_store_n(cd, word0,", STORE, ["cdtable.c"]),
    Ordered("daemon/translator/cdtable.c", "__atomic_store_n(top,", STORE, ["cdtable.c"]),
    Ordered("daemon/translator/cdtable.c", "__atomic_store_n(cd, 0,", STORE, ["cdtable.c"]),
    Ordered("daemon/translator/cdtable.c", "__atomic_thread_fence(", BARRIER, ["cdtable.c"]),
    # Ring words and invalidations are there before the register that says how many.
    Ordered("daemon/engine/refgpu.c", "atomic_thread_fence(", BARRIER, ["refgpu.c"]),
    # What a job did, and what became of a context, are known before its fence line says so.
    Ordered("daemon/service/run.c", "__atomic_store_n(&ctx->line->done,", STORE, ["run.c"]),
    Ordered("daemon/service/events.c", "__atomic_store_n(&line->state,", STORE, ["events.c"]),
]

OBJECT = re.compile(r"^(?:.*/)?([^/]+\.c)\.o:\s+file format")
FUNCTION = re.compile(r"^[0-9a-f]+ <(\S+)>:$")
LINE = re.compile(r"^(/\S+):(\d+)")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t(\S+)\s*(.*)$")
BARRIERS = re.compile(r"(ish|osh|sy)(st)?$")

Instruction = collections.namedtuple("Instruction", "object function source line name operands")


def disassemble(objdump, archives):
    done = subprocess.run([objdump, "-dl", "--no-show-raw-insn", *archives], check=True, stdout=subprocess.PIPE,
                          text=True)
    where = {"object": "", "function": "", "source": "", "line": 0}
    for text in done.stdout.splitlines():
        if match := OBJECT.match(text):
            where["object"] = match[1]
        elif match := FUNCTION.match(text):
            where.update(function=match[1], source="", line=0)
        elif match := LINE.match(text):
            where.update(source=str(Path(match[1]).resolve()), line=int(match[2]))
        elif match := INSTRUCTION.match(text):
            yield Instruction(**where, name=match[1], operands=match[2])


def is_barrier(instruction):
    return instruction.name == "dmb" and BARRIERS.match(instruction.operands)


def is_store(instruction):
    """Into memory that others can see: not what the compiler keeps on its stack."""
    return instruction.name.startswith("st") and "[sp" not in instruction.operands


def unordered(function, place, what):
    """What is wrong with the instructions of that place in the source in a function; nothing if it has none."""
    behind_barrier, ours, right = False, 0, 0
    for instruction in function:
        here = (instruction.source, instruction.line) == place
        ours += here
        if is_barrier(instruction):
            behind_barrier = True
            right += here and what == BARRIER
        elif is_store(instruction):
            if here and what == STORE:
                if instruction.name != "stlr" and not behind_barrier:
                    return f"{instruction.name} {instruction.operands}"
                right += 1
            behind_barrier = False
        elif instruction.name in ("bl", "blr"):  # to what may store
            behind_barrier = False
    return "" if right or not ours else f"none in {ours} instructions"


def check(source, ordered, functions):
    """Complaints, and in how many functions there was something to look at."""
    path = (source / ordered.source).resolve()
    lines = [n for n, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if ordered.text in text]
    wrong, seen = [], 0
    if not lines:
        wrong.append(f"{ordered.source} has no line with {ordered.text}")
    for line in lines:
        for name in ordered.objects:
            mine = [(key, function) for key, function in functions.items() if key[0] == name and
                    any((i.source, i.line) == (str(path), line) for i in function)]
            seen += len(mine)
            if not mine:
                wrong.append(f"{ordered.source}:{line}: nothing of it is in {name}")
            for key, function in mine:
                complaint = unordered(function, (str(path), line), ordered.what)
                if complaint:
                    wrong.append(f"{ordered.source}:{line}: {key[1]} in {name} needs {ordered.what}: {complaint}")
    return wrong, seen


def main():
    source, objdump, *archives = sys.argv[1:]
    functions = collections.defaultdict(list)
    for instruction in disassemble(objdump, archives):
        functions[instruction.object, instruction.function].append(instruction)
    if not any(i.line for function in functions.values() for i in function):
        print("there is no debug information that says what became of a line")
        return 77
    wrong, seen = [], 0
    for ordered in ORDERED:
        complaints, functions_seen = check(Path(source), ordered, functions)
        wrong += complaints
        seen += functions_seen
    for text in wrong:
        print(text)
    print(f"{seen} functions")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
