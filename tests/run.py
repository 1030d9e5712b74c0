#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the tests that a build directory knows, and counts them one by one.

    run.py --build DIR [--label TEXT] [--results FILE] [--stop] [--wrapper COMMAND] [SUITE[/NAME[:CLASS.TEST]]...]
    run.py --summary FILE

Which tests there are is meson's knowledge ("meson introspect"). Programs that print TAP (cmocka's, if asked; the system
tests) count once per test, others count as one. --results appends lines of three fields: pass, fail or skip; a name; a
reason. --stop ends at the first failure, in the middle of a program. Of a file of Python tests one can be named alone,
as in system/test_sharing.py:Unmapping.test_replace_never_shows_the_gap. A test's processes are its own process group,
which is killed by its number when the time is up. --wrapper starts programs that lie in the build directory by another
one, such as an emulator of their processor; tests that start such programs themselves find it in $PASID_TEST_WRAPPER.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1:exitcode=99:detect_stack_use_after_return=1:strict_string_checks=1:"
                    "check_initialization_order=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
    "LSAN_OPTIONS": "exitcode=99",
}
TAP = re.compile(r"^(not ok|ok)\s+\d+\s*(?:-\s*)?([^#\n]*?)\s*(?:#\s*(\w+)\s*(.*))?$")
SKIPPED = "# skipped: "  # the reason, where the line that says "SKIP" has no room for one
KEPT_LINES = 60


class Test:
    """One program to run."""

    def __init__(self, described):
        suite = [s.split(":")[-1] for s in described["suite"]] or ["other"]
        self.name = f"{suite[0]}/{described['name']}"
        self.argv = described["cmd"]
        self.env = described["env"]
        self.cwd = described["workdir"]
        self.timeout = described["timeout"]
        self.parallel = described["is_parallel"]


class Outcome:
    """What a test gave: lines for the results, its output, how long it took."""

    def __init__(self, test):
        self.test = test
        self.lines = []
        self.output = ""
        self.seconds = 0.0

    def count(self, word):
        return sum(line[0] == word for line in self.lines)

    def judge(self, status, timed_out):
        name = self.test.name
        why = "no reason given"
        for line in self.output.splitlines():
            if line.startswith(SKIPPED):
                why = line.removeprefix(SKIPPED)
            match = TAP.match(line)
            if not match:
                continue
            ok, what, directive, reason = match.groups()
            if directive and directive.upper().startswith("SKIP"):
                if not what:  # cmocka's: "ok 1 # SKIP name"
                    what, reason = reason, ""
                self.lines.append(("skip", f"{name}: {what}", reason or why))
            else:
                self.lines.append(("pass" if ok == "ok" else "fail", f"{name}: {what}", ""))
            why = "no reason given"
        if timed_out:
            self.lines.append(("fail", name, f"not done after {self.test.timeout} s"))
        elif status == 77 and not self.lines:
            last = (self.output.strip().splitlines() or [why])[-1]
            self.lines.append(("skip", name, last.removeprefix(SKIPPED)))
        elif status and not self.count("fail"):
            self.lines.append(("fail", name, f"ended with status {status}"))
        elif not self.lines:
            self.lines.append(("pass", name, ""))


def load_tests(build):
    done = subprocess.run(["meson", "introspect", "--tests", build], check=True, stdout=subprocess.PIPE)
    return [Test(described) for described in json.loads(done.stdout)]


def wrap(tests, build, wrapper, directory):
    """Programs of the build are started by the wrapper; what is of the machine's own, such as Python, is not. Where the
    environment names one that a test is to start, it names a script in that directory instead."""
    build = Path(build).resolve()

    def is_program(word):
        path = Path(word)
        return path.is_absolute() and build in path.resolve().parents and path.is_file() and os.access(path, os.X_OK)

    for test in tests:
        for name, value in test.env.items():
            if is_program(value):
                script = Path(directory, name)
                script.write_text(f'#!/bin/sh\nexec {wrapper} {shlex.quote(value)} "$@"\n')
                script.chmod(0o755)
                test.env[name] = str(script)
        if is_program(test.argv[0]):
            test.argv = shlex.split(wrapper) + test.argv
        test.env["PASID_TEST_WRAPPER"] = wrapper


def split_name(name):
    """system/test_x.py:Class.test_y: the test that meson knows, and which of its tests; "" is all."""
    program, _, one = name.partition(":")
    return program.removesuffix(".py"), one


def select(tests, names):
    """The tests of these names, each with those of its own tests that are named. A suite's name is all of its tests."""
    parts = {}
    for program, one in map(split_name, names):
        for name in [test.name for test in tests if test.name.startswith(f"{program}/")] or [program]:
            parts.setdefault(name, []).append(one)
    tests = [test for test in tests if test.name in parts]
    for test in tests:
        if "" not in parts[test.name]:
            test.argv = test.argv + [word for one in parts[test.name] for word in ("-k", f"*.{one}")]
    return tests


def kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run_test(test, label, stop):
    outcome = Outcome(test)
    env = dict(os.environ, CMOCKA_MESSAGE_OUTPUT="TAP", PASID_TEST_LABEL=label, **SANITIZERS)
    env.update(test.env)
    started = time.monotonic()
    timed_out = threading.Event()

    def on_timeout():
        timed_out.set()
        kill_group(process)

    with subprocess.Popen(test.argv, cwd=test.cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as process:
        timer = threading.Timer(test.timeout, on_timeout)
        timer.start()
        for line in process.stdout:
            outcome.output += line.decode(errors="replace")
            if stop and line.startswith(b"not ok"):
                kill_group(process)
        process.wait()
        timer.cancel()
    outcome.seconds = time.monotonic() - started
    outcome.judge(process.returncode, timed_out.is_set())
    return outcome


def diagnosis(outcome):
    """What to show of a failed program's output: what follows each "not ok", and its end if it did not end well."""
    blocks, block = [], []
    for line in outcome.output.splitlines():
        match = TAP.match(line)
        if match:
            block = [line]
            if match.group(1) == "not ok":
                blocks.append(block)
        elif block or not line.startswith("#"):
            block.append(line)
    if not blocks or any(line[1] == outcome.test.name for line in outcome.lines):
        blocks.append(outcome.output.splitlines()[-KEPT_LINES:])
    for block in blocks:
        yield from block[:1] + block[1:][-KEPT_LINES:]


def show(outcome):
    failed, skipped = outcome.count("fail"), outcome.count("skip")
    parts = [f"{outcome.count('pass')} passed"]
    parts += [f"{failed} FAILED"] if failed else []
    parts += [f"{skipped} skipped"] if skipped else []
    word = "FAIL" if failed else "ok  "
    print(f"{word} {outcome.test.name}: {', '.join(parts)} ({outcome.seconds:.1f} s)", flush=True)
    if failed:
        for line in diagnosis(outcome):
            print(f"     | {line}", flush=True)


def run_all(tests, label, stop):
    """Runs the tests, those that may run beside others in parallel. Returns their outcomes."""
    outcomes = []
    failed = threading.Event()

    def run_unless_stopped(test):
        return None if stop and failed.is_set() else run_test(test, label, stop)

    def take(outcome):
        if outcome:
            outcomes.append(outcome)
            show(outcome)
            if outcome.count("fail"):
                failed.set()

    # The longest first, so that the last one does not run alone for long.
    parallel = sorted((t for t in tests if t.parallel), key=lambda t: -t.timeout)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run_unless_stopped, t) for t in parallel]):
            take(future.result())
    for test in tests:
        if not test.parallel:
            take(run_unless_stopped(test))
    return outcomes


def summarize(path):
    lines = [line.split("\t", 2) for line in Path(path).read_text().splitlines()]
    count = {word: sum(line[0] == word for line in lines) for word in ("pass", "fail", "skip")}
    for word, title in (("skip", "skipped"), ("fail", "FAILED")):
        for line in lines:
            if line[0] == word:
                print(f"{title}: {line[1]}{': ' + line[2] if line[2] else ''}")
    if not count["pass"] and not count["fail"]:
        print("FAILED: there was nothing to run")
        count["fail"] = 1
    print(f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped")
    return 1 if count["fail"] else 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="")
    parser.add_argument("--label", default="")
    parser.add_argument("--results")
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--wrapper", default="")
    parser.add_argument("--summary")
    parser.add_argument("names", nargs="*")
    return parser.parse_args()


def record(path, prefix, lines):
    """Appends lines of a word, a name and a reason to the results, if they are kept; the exit status."""
    if path:
        with open(path, "a", encoding="utf-8") as results:
            for word, name, reason in lines:
                results.write(f"{word}\t{prefix}{name}\t{' '.join(reason.split())}\n")
    return 1 if any(line[0] == "fail" for line in lines) else 0


def main():
    args = parse_arguments()
    if args.summary:
        return summarize(args.summary)
    if not Path(args.build, "build.ninja").exists():
        print(f'no build directory "{args.build}"; type: ./test.sh', file=sys.stderr)
        return 2
    tests = load_tests(args.build)
    if args.names:
        known = {t.name for t in tests} | {t.name.split("/")[0] for t in tests}
        unknown = {split_name(name)[0] for name in args.names} - known
        if unknown:
            print(f"no such test: {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        tests = select(tests, args.names)
    with tempfile.TemporaryDirectory(prefix="pasidd-wrapped-") as directory:
        if args.wrapper:
            wrap(tests, args.build, args.wrapper, directory)
        outcomes = run_all(tests, args.label, args.stop)
    lines = [line for outcome in outcomes for line in outcome.lines]
    return record(args.results, f"{args.label}/" if args.label else "", lines)


if __name__ == "__main__":
    sys.exit(main())
