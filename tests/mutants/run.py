#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks the daemon on purpose and looks whether a test notices.

    run.py [--results FILE] [PATCH...]

Each tests/mutants/*.patch is one small break. It is applied to a copy of the tree; then what the tests on its
"Caught-by:" lines need is built and they are run, and if these pass all others. Lines before the patch itself say what
is broken, and by which test (or which test of a file of Python tests) that is noticed:

    What: an unmap is answered before its invalidation is complete
    Caught-by: system/test_device_view.py:DeviceView.test_unmap_waits_for_the_invalidation

A mutant that survives, or does not apply or build, is a failure. So is a named test that fails without any mutant.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
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
        self.said = ""  # by the tests that ran last
        self.temporary.mkdir()
        top.chmod(0o711)
        self.temporary.chmod(0o1777)
        copy_tree(self.tree)

    def run(self, *argv):
        # What a test that is killed in the middle leaves behind goes with the laboratory.
        return subprocess.run(argv, cwd=self.tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                              env=dict(os.environ, TMPDIR=str(self.temporary)))

    def introspect(self, what):
        return json.loads(subprocess.run(["meson", "introspect", what, self.build], check=True,
                                         stdout=subprocess.PIPE).stdout)

    def targets(self, names):
        """What tests need, as names for ninja."""
        files = {target["id"]: target["filename"] for target in self.introspect("--targets")}
        wanted = {name.partition(":")[0].removesuffix(".py") for name in names}
        return sorted({os.path.relpath(file, self.build) for test in self.introspect("--tests")
                       if f"{test['suite'][0].split(':')[-1]}/{test['name']}" in wanted
                       for id_ in test["depends"] for file in files[id_]})

    def compile(self, names):
        """Builds what tests need; everything if none are named."""
        return self.run("ninja", "-C", self.build, *(self.targets(names) if names else []))

    def test(self, names):
        """Runs tests up to the first failure. Returns what failed, or None if they could not run."""
        done = self.run(sys.executable, self.tree / "tests/run.py", "--build", self.build, "--stop", *names)
        self.said = done.stdout
        if done.returncode not in (0, 1):
            print(done.stdout)
            return None
        found = re.findall(r"^FAIL (\S+):.*\n((?:     \|.*\n)*)", done.stdout, re.M)
        return [": ".join([name] + re.findall(r"\| not ok \d+ - (.*)", text)[:1]) for name, text in found]

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
        for names in (mutant.caught_by, []) if mutant.caught_by else ([],):
            built = laboratory.compile(names)
            if built.returncode:
                print("\n".join(built.stdout.splitlines()[-30:]))
                return None, "it does not build"
            failed = laboratory.test(names)
            if failed is None:
                return None, "its tests could not be run"
            if failed:
                return failed[0], ""
        return None, "it survived all tests"
    finally:
        laboratory.mend(before)


def prepare(laboratory, mutants):
    """Builds the tree unbroken and runs the tests that are named. Returns what is wrong, or nothing."""
    named = sorted({name for m in mutants for name in m.caught_by})
    done = laboratory.run("meson", "setup", laboratory.build, *MESON)
    if done.returncode == 0 and named:
        done = laboratory.compile(named)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-30:]))
        return "the build failed"
    failed = laboratory.test(named) if named else []
    if failed:  # once more: one bad moment is not worth all mutants
        print(laboratory.said)
        failed = laboratory.test(named)
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
            begun = time.monotonic()
            test, reason = try_mutant(laboratory, mutant)
            if test:
                caught += 1
                seconds = time.monotonic() - begun
                print(f"ok   {mutant.name}: {mutant.what}: caught by {test} ({seconds:.1f} s)", flush=True)
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
