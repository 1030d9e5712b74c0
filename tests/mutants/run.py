#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Breaks the daemon on purpose and looks whether a test notices.

    run.py [--results FILE] [PATCH...]

Each tests/mutants/*.patch is one small break. It is applied to a copy of the tree; then what the tests on its
"Caught-by:" lines need is built and they are run, and if these pass all others. Lines before the patch itself say what
is broken, and by which test (or which test of a file of Python tests) that is noticed:

    What: an unmap is answered before its invalidation is complete
    Caught-by: system/test_device_view.py:DeviceView.test_unmap_waits_for_the_invalidation

What only a real kernel shows is noticed by a case of tests/vm ("Caught-by: vm:pasid"), which alone is run then. Where
there is no VM cache (docs/vm.md), such mutants are skipped with the reason, and count as skipped.

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
VM_PREFIX = "vm:"
VM_SECONDS = 240  # for a guest; its case has a limit of its own, too
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
        self.in_vm = any(name.startswith(VM_PREFIX) for name in self.caught_by)
        self.files = re.findall(r"^\+\+\+ b/(\S+)", text, re.M)

    def rounds(self):
        """Lists of tests, to be run until something fails: those that are named, then all (an empty list). What only
        guests show is not looked for elsewhere."""
        if self.in_vm:
            return [self.caught_by]
        return [self.caught_by, []] if self.caught_by else [[]]


class Problem(Exception):
    """Tests could not be run; why."""


def vm_unavailable():
    """Why tests/vm cannot be run here without making its cache first, or nothing."""
    done = subprocess.run(["bash", TOP / "tests/vm/cache.sh", "--paths"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if not done.returncode:
        return ""
    return (done.stderr.strip().splitlines() or ["tests/vm/cache.sh --paths failed"])[-1]


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
        self.build_vm = top / "build-vm"
        self.temporary = top / "tmp"
        self.said = ""  # by the tests that ran last
        self.vm_seconds = 0.0  # spent on guests, and on building what they run
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
        """Builds and runs tests, all if none are named, up to the first failure. Returns what failed."""
        built = self.compile(names)
        if built.returncode:
            print("\n".join(built.stdout.splitlines()[-30:]))
            raise Problem("it does not build")
        done = self.run(sys.executable, self.tree / "tests/run.py", "--build", self.build, "--stop", *names)
        self.said = done.stdout
        if done.returncode not in (0, 1):
            print(done.stdout)
            raise Problem("its tests could not be run")
        found = re.findall(r"^FAIL (\S+):.*\n((?:     \|.*\n)*)", done.stdout, re.M)
        return [": ".join([name] + re.findall(r"\| not ok \d+ - (.*)", text)[:1]) for name, text in found]

    def test_in_vm(self, cases):
        """The same with cases of tests/vm, each of which is run to its end."""
        results = self.temporary / "vm-results"
        results.unlink(missing_ok=True)
        begun = time.monotonic()
        done = self.run(sys.executable, self.tree / "tests/vm/run.py", "--no-setup", "--build", self.build_vm,
                        "--results", results, "--time-limit", str(VM_SECONDS * len(cases)),
                        *(word for case in cases for word in ("--case", case)))
        self.vm_seconds += time.monotonic() - begun
        self.said = done.stdout
        lines = [line.split("\t") for line in results.read_text().splitlines()] if results.exists() else []
        # A line about "vm" alone is about the build; a case that is skipped as a whole was not booted.
        if not lines or any(name == "vm" or word == "skip" and ": " not in name for word, name, _ in lines):
            print("\n".join(done.stdout.splitlines()[-30:]))
            raise Problem("it does not build, or no guest could be run")
        return [name for word, name, _ in lines if word == "fail"]

    def look(self, names):
        """What of the named tests fails, wherever they are run; of all but those in guests if none are named."""
        cases = [name.removeprefix(VM_PREFIX) for name in names if name.startswith(VM_PREFIX)]
        tests = [name for name in names if not name.startswith(VM_PREFIX)]
        failed = self.test(tests) if tests or not names else []
        return failed or (self.test_in_vm(cases) if cases else [])

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
        for names in mutant.rounds():
            failed = laboratory.look(names)
            if failed:
                return failed[0], ""
        return None, f"it survived {' and '.join(mutant.caught_by) if mutant.in_vm else 'all tests'}"
    except Problem as problem:
        return None, str(problem)
    finally:
        laboratory.mend(before)


def prepare(laboratory, mutants):
    """Builds the tree unbroken and runs the tests that are named. Returns what is wrong, or nothing."""
    named = sorted({name for m in mutants for name in m.caught_by})
    done = laboratory.run("meson", "setup", laboratory.build, *MESON)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-30:]))
        return "the build failed"
    try:
        failed = laboratory.look(named) if named else []
        if failed:  # once more: one bad moment is not worth all mutants
            print(laboratory.said)
            failed = laboratory.look(named)
    except Problem as problem:
        return f"without any mutant: {problem}"
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
        if laboratory.vm_seconds:
            print(f"virtual machines, and building for them: {laboratory.vm_seconds:.0f} s")
        return caught


def leave_out_vm(mutants, report):
    """Those that can be tried on this machine. The others are skipped, and that is said."""
    reason = vm_unavailable() if any(mutant.in_vm for mutant in mutants) else ""
    if not reason:
        return mutants
    for mutant in mutants:
        if mutant.in_vm:
            print(f"SKIPPED {mutant.name}: {mutant.what}: {reason}", flush=True)
            report("skip", mutant.name, reason)
    return [mutant for mutant in mutants if not mutant.in_vm]


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
    tried = leave_out_vm(mutants, report)
    caught = run(tried, report) if tried else 0
    skipped = f", {len(mutants) - len(tried)} skipped" if len(tried) < len(mutants) else ""
    print(f"{caught} of {len(tried)} caught{skipped}")
    return 0 if mutants and caught == len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
