#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the unittest tests of files and prints TAP, so that meson and tests/run.py can count them one by one.

    run_system.py FILE... [-k PATTERN]
"""

import argparse
import importlib.util
import resource
import sys
import unittest
from pathlib import Path


class TapResult(unittest.TestResult):
    """Prints a line for each test as it ends; the diagnosis stands below it."""

    def __init__(self):
        super().__init__()
        self.n = 0
        self.bad = False

    def line(self, ok, test, directive="", details=""):
        self.n += 1
        self.bad = self.bad or not ok
        text = f" # {directive}" if directive else ""
        print(f"{'ok' if ok else 'not ok'} {self.n} - {test.id()}{text}", flush=True)
        for detail in details.splitlines():
            print(f"# {detail}", flush=True)

    def addSuccess(self, test):
        self.line(True, test)

    def addSkip(self, test, reason):
        self.line(True, test, f"SKIP {reason}")

    def addExpectedFailure(self, test, err):
        self.line(True, test)

    def addUnexpectedSuccess(self, test):
        self.line(False, test, details="it should have failed")

    def addFailure(self, test, err):
        self.line(False, test, details=self._exc_info_to_string(err, test))

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        # A subtest that passed is part of its test; one that failed is reported, and its test then is not.
        if err is not None:
            self.line(False, subtest, details=self._exc_info_to_string(err, test))


def load(path):
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-k", dest="patterns", action="append", help="only tests whose names contain this")
    args = parser.parse_args()
    # A login shell may have as few as 1024, and fds in flight count for the user, too.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loader = unittest.TestLoader()
    if args.patterns:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in args.patterns]
    suite = unittest.TestSuite(loader.loadTestsFromModule(load(path.resolve())) for path in args.files)
    result = TapResult()
    suite.run(result)
    print(f"1..{result.n}", flush=True)
    return 1 if result.bad or not result.n else 0


if __name__ == "__main__":
    sys.exit(main())
