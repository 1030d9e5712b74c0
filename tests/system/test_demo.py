# SPDX-License-Identifier: MIT
"""What the demo's exit status and its numbers mean: 0 and 1 are verdicts, everything else is 2; and what it says of
single attempts adds up. (That the verdicts are the right ones is tested by running the demo, in demo/meson.build.)
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402

TOP = Path(__file__).resolve().parents[2]
RUN = TOP / "tests/system/demo/run.py"
PROGRAMS = {"gpu": "tests/refgpu/pasid-refgpu", "daemon": "daemon/pasidd", "bank": "tests/system/demo/demo-bank",
            "thief": "tests/system/demo/demo-thief"}
LIMIT = 60  # s: the demo ends by itself before


class Demo(unittest.TestCase):
    def setUp(self):
        self.top = Path(tempfile.mkdtemp(prefix="pasidd-test-demo-"))
        self.addCleanup(shutil.rmtree, self.top, ignore_errors=True)
        self.top.chmod(0o755)
        self.scratch = self.top / "tmp"
        self.scratch.mkdir()
        self.scratch.chmod(0o755)

    def script(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def build(self, **others):
        """A build directory with the real programs, except for those that are given as shell scripts, or None."""
        real = Path(harness.program("PASID_BUILD"))
        build = self.top / "build"
        build.mkdir()
        (build / "client").mkdir()
        for path in (real / "client").glob("libpasid.so*"):
            if path.is_file():
                shutil.copy(path, build / "client")
        for name, path in PROGRAMS.items():
            (build / path).parent.mkdir(parents=True, exist_ok=True)
            if name not in others:
                shutil.copy(real / path, build / path)  # its users may not reach the real one
            elif others[name] is not None:
                self.script(build / path, others[name])
        return build

    def start(self, *argv, **options):
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
                   **options}
        return subprocess.Popen([str(a) for a in argv], env={**os.environ, "TMPDIR": str(self.scratch)}, **options)

    def demo(self, build, *arguments, **options):
        return self.start(sys.executable, RUN, "--build", build, "--out", self.top / "out", *arguments, **options)

    def expect(self, status, process):
        """What it says; its status, and that it has left nothing behind, is checked."""
        try:
            said, _ = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        self.assertEqual(process.returncode, status, said)
        self.assertEqual(list(self.scratch.iterdir()), [], "left behind")
        return said or ""

    def expect_cannot_run(self, process, why):
        said = self.expect(2, process)
        self.assertIn("COULD NOT RUN: ", said)
        self.assertIn(why, said)


class NoVerdict(Demo):
    def test_verdict_that_cannot_be_printed(self):
        for arguments in ([], ["--no-isolation"]):
            with self.subTest(arguments=arguments), open("/dev/full", "w", encoding="ascii") as full:
                process = self.demo(harness.program("PASID_BUILD"), *arguments, stdout=full, stderr=subprocess.PIPE)
                _, said = process.communicate(timeout=LIMIT)
                self.assertEqual(process.returncode, 2, said)
                self.assertIn("COULD NOT RUN: ", said)
                self.assertEqual(list(self.scratch.iterdir()), [])

    def test_nobody_to_complain_to(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            self.expect(2, self.demo(self.top, stdout=full, stderr=full))

    def test_no_programs(self):
        self.expect_cannot_run(self.demo(self.top / "nothing"), "No such file")
        for name, path in PROGRAMS.items():
            with self.subTest(name):
                self.expect_cannot_run(self.demo(self.build(**{name: None})), path.rsplit("/", maxsplit=1)[-1])
                shutil.rmtree(self.top / "build")

    def test_programs_that_end_at_once(self):
        for name in PROGRAMS:
            for status in (0, 1):
                with self.subTest(name, status=status):
                    self.expect_cannot_run(self.demo(self.build(**{name: f"exit {status}\n"})), "")
                    shutil.rmtree(self.top / "build")

    def test_programs_that_talk_nonsense(self):
        for name, text in (("bank", "echo ready\n"), ("bank", "printf 'ready\\tctx=x\\tmode=\\n'; cat >/dev/null\n"),
                           ("bank", "printf '\\377\\n'\n"), ("thief", "printf 'attempt\\n'; cat >/dev/null\n"),
                           ("thief", "echo end; cat >/dev/null\n")):
            with self.subTest(text):
                self.expect_cannot_run(self.demo(self.build(**{name: text})), "")
                shutil.rmtree(self.top / "build")

    def test_status_page_that_is_empty(self):
        real = Path(harness.program("PASID_BUILD")) / PROGRAMS["gpu"]
        gpu = f": >\"$6\"; exec '{real}' \"$1\" \"$2\" \"$3\" \"$4\" \"$5\" \"$6.real\" \"$7\" \"$8\"\n"
        self.expect_cannot_run(self.demo(self.build(gpu=gpu)), "unpack_from")

    def test_no_place_for_pictures(self):
        (self.top / "out").write_text("a file")
        self.expect_cannot_run(self.demo(self.build()), "out")

    def test_told_to_end(self):
        process = self.demo(self.build(bank="exec sleep 100\n"))
        harness.wait_until(lambda: list(self.scratch.glob("*/bank")), "the bank is begun")
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        self.expect_cannot_run(process, "told to end")
        self.assertLess(time.monotonic() - begun, harness.DEADLINE)


class Script(Demo):
    """demo.sh, in a tree where nothing can be built, with programs that only pretend."""

    def setUp(self):
        super().setUp()
        self.tree = self.top / "tree"
        (self.tree / "tests/system/demo").mkdir(parents=True)
        for name in ("demo.sh", "tests/lib.sh", "tests/system/demo/run.py"):
            shutil.copy(TOP / name, self.tree / name)
        self.bin = self.top / "bin"
        self.bin.mkdir()

    def pretend(self, **programs):
        for name, text in programs.items():
            self.script(self.bin / name, text)

    def run_script(self, *arguments, **options):
        path = f"{self.bin}:{os.environ['PATH']}"
        return self.start("env", f"PATH={path}", self.tree / "demo.sh", "--no-setup", *arguments, **options)

    def test_verdicts_pass(self):
        for status in (0, 1, 2):
            self.pretend(meson="exit 0\n", ninja="exit 0\n",
                         python3=f"case \"$*\" in *--help*) exit 0 ;; esac; exit {status}\n")
            with self.subTest(status):
                self.expect(status, self.run_script())

    def test_nothing_can_be_printed(self):
        self.pretend(meson="exit 1\n", ninja="exit 1\n")
        for arguments in ([], ["--help"]):
            with self.subTest(arguments), open("/dev/full", "w", encoding="ascii") as full:
                self.expect(2, self.run_script(*arguments, stdout=full, stderr=full))

    def test_commands_that_fail(self):
        for name in ("meson", "ninja", "mktemp", "python3"):
            with self.subTest(name):
                self.pretend(**{"meson": "exit 0\n", "ninja": "exit 0\n", "python3": "exit 0\n", name: "exit 1\n"})
                self.expect(2, self.run_script())
                for path in self.bin.iterdir():
                    path.unlink()

    def test_wrong_options(self):
        for arguments in (["--what"], ["--out"]):
            with self.subTest(arguments):
                self.expect(2, self.run_script(*arguments))


class Numbers(Demo):
    def changes(self, said):
        """Bytes of the bank that each scribbling attempt changed, and those that were changed back."""
        lines = re.findall(r"^(FILL|ATOMIC|BLIT) .* (\d+) bytes of the bank changed$", said, re.M)
        self.assertEqual([name for name, _ in lines], ["FILL", "ATOMIC", "BLIT"])
        back = re.search(r"; (\d+) of these changed back by a later one$", said, re.M)
        return [int(n) for _, n in lines], int(back.group(1)) if back else 0

    def test_changes_add_up(self):
        said = self.expect(1, self.demo(harness.program("PASID_BUILD"), "--no-isolation"))
        changed, back = self.changes(said)
        self.assertTrue(all(changed), changed)
        left = int(re.search(r"; (\d+) bytes of the bank's surface are not as drawn$", said, re.M).group(1))
        self.assertEqual(sum(changed) - back, left)
        self.assertLess(back, min(changed[0], changed[2]) / 10)

    def test_nothing_changes_in_isolation(self):
        said = self.expect(0, self.demo(harness.program("PASID_BUILD")))
        self.assertEqual(self.changes(said), ([0, 0, 0], 0))


if __name__ == "__main__":
    unittest.main()
