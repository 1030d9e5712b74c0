#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks the daemon on purpose and looks whether a test notices.

    run.py [--results FILE] [PATCH...]

Each tests/mutants/*.patch is one small break. It is applied to a copy of the tree and built; then the tests that its
"Caught-by:" lines name are run, and if these pass all others. Lines before the patch itself say what is broken:

    What: no invalidation on unmap
    Caught-by: system/test_unmap.py

A mutant that survives, or does not apply or build, is a failure. So is a named test that fails without any mutant.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
MESON = ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Dbuildtype=debugoptimized"]


class Mutant:
    """A patch, with what its header says."""

    def __init__(self, path):
        self.path = path
        self.name = path.stem
        text = path.read_text()
        what = re.search(r"^What:\s*(.*)$", text, re.M)
        self.what = what.group(1) if what else self.name
        self.caught_by = [name for names in re.findall(r"^Caught-by:\s*(.*)$", text, re.M)
                          for name in re.split(r"[,\s]+", names.strip()) if name]
        self.files = re.findall(r"^\+\+\+ b/(\S+)", text, re.M)


def copy_tree(target):
    """Copies the tree without build directories and history."""
    shutil.copytree(TOP, target, symlinks=True,
                    ignore=lambda path, names: [n for n in names if n in (".git", "__pycache__")
                                                or Path(path) == TOP and n.startswith("build")])


class Laboratory:
    """A copy of the tree with a build directory, to be broken and mended again and again."""

    def __init__(self, top):
        self.tree = top / "tree"
        self.build = top / "build"
        self.temporary = top / "tmp"
        self.temporary.mkdir()
        top.chmod(0o711)
        self.temporary.chmod(0o1777)
        copy_tree(self.tree)

    def run(self, *argv):
        # What a test that is killed in the middle leaves behind goes with the laboratory.
        return subprocess.run(argv, cwd=self.tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                              env=dict(os.environ, TMPDIR=str(self.temporary)))

    def compile(self):
        return self.run("ninja", "-C", self.build)

    def test(self, names):
        """Runs tests up to the first failure. Returns the names of those that failed, or None if they could not run."""
        done = self.run(sys.executable, self.tree / "tests/run.py", "--build", self.build, "--stop", *names)
        if done.returncode not in (0, 1):
            print(done.stdout)
            return None
        return re.findall(r"^FAIL (\S+):", done.stdout, re.M)

    def apply(self, mutant):
        """Applies the patch. Returns what mends it, or None."""
        before = {name: (self.tree / name).read_bytes() for name in mutant.files if (self.tree / name).is_file()}
        done = self.run("patch", "-p1", "--batch", "--no-backup-if-mismatch", "-i", mutant.path)
        if done.returncode or len(before) != len(mutant.files) or not before:
            self.mend(before)
            print(done.stdout)
            return None
        return before

    def mend(self, before):
        for name, data in before.items():
            (self.tree / name).write_bytes(data)
            (self.tree / f"{name}.rej").unlink(missing_ok=True)


def try_mutant(laboratory, mutant):
    """Returns the name of the test that caught it, or None; and a reason."""
    before = laboratory.apply(mutant)
    if before is None:
        return None, "the patch does not apply"
    try:
        built = laboratory.compile()
        if built.returncode:
            print("\n".join(built.stdout.splitlines()[-30:]))
            return None, "it does not build"
        failed = laboratory.test(mutant.caught_by) if mutant.caught_by else []
        if failed == []:
            failed = laboratory.test([])
        if failed is None:
            return None, "its tests could not be run"
        return (failed[0], "") if failed else (None, "it survived all tests")
    finally:
        laboratory.mend(before)


def prepare(laboratory, mutants):
    """Builds the tree unbroken and runs the tests that are named. Returns what is wrong, or nothing."""
    done = laboratory.run("meson", "setup", laboratory.build, *MESON)
    if done.returncode == 0:
        done = laboratory.compile()
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-30:]))
        return "the build failed"
    named = sorted({name for m in mutants for name in m.caught_by})
    failed = laboratory.test(named) if named else []
    if failed is None:
        return "the named tests could not be run"
    return f"without any mutant {failed[0]} fails" if failed else ""


def run(mutants, report):
    with tempfile.TemporaryDirectory(prefix="pasidd-mutants.") as top:
        laboratory = Laboratory(Path(top))
        problem = prepare(laboratory, mutants)
        if problem:
            report("fail", "prepare", problem)
            return 0
        caught = 0
        for mutant in mutants:
            test, reason = try_mutant(laboratory, mutant)
            if test:
                caught += 1
                print(f"ok   {mutant.name}: {mutant.what}: caught by {test}", flush=True)
                report("pass", mutant.name, "")
            else:
                print(f"FAIL {mutant.name}: {mutant.what}: {reason}", flush=True)
                report("fail", mutant.name, reason)
        return caught


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results")
    parser.add_argument("patches", nargs="*", type=Path)
    args = parser.parse_args()
    paths = [p.resolve() for p in args.patches] or sorted((TOP / "tests/mutants").glob("*.patch"))
    mutants = [Mutant(path) for path in paths]

    def report(word, name, reason):
        if args.results:
            with open(args.results, "a", encoding="utf-8") as results:
                results.write(f"{word}\tmutants/{name}\t{reason}\n")

    if not mutants:
        report("fail", "all", "there are none")
    caught = run(mutants, report)
    print(f"{caught} of {len(mutants)} caught")
    return 0 if mutants and caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
