# SPDX-License-Identifier: MIT
"""pasidctl's command line, through the real program on the machine of the tests, which it must not change. What it finds
on machines and does to them: tests/unit/test_doctor.c and test_bind.c, and tests/vm/guest/doctor.sh. What "driver new"
writes: test_drivers.py."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402

BDF = "ffff:ff:1f.7"  # there is none


def pasidctl(*words):
    return subprocess.run([harness.program("PASIDCTL"), *words], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False)


class CommandLine(unittest.TestCase):
    def refuse(self, said, *words):
        done = pasidctl(*words)
        self.assertEqual((done.returncode, done.stdout), (2, ""), words)
        self.assertIn(said, done.stderr)
        self.assertTrue(done.stderr.endswith("; see pasidctl --help\n"), done.stderr)

    def test_help(self):
        done = pasidctl("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for word in ("pasidctl doctor", "pasidctl bind", "pasidctl unbind", "pasidctl driver new", "pasidctl selftest",
                     "--json", "--dry-run", "--persist", "--socket", "--seed", "--driver", "Exit status"):
            self.assertIn(word, done.stdout)
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 100)
        self.assertEqual(pasidctl("-h").stdout, done.stdout)

    def test_version(self):
        self.assertRegex(pasidctl("--version").stdout, r"^pasidctl \d+\.\d+\.\d+\n$")

    def test_wrong(self):
        self.refuse("doctor, bind, unbind, selftest or driver")
        self.refuse('doctor, bind, unbind, selftest or driver: "cure"', "cure")
        self.refuse("no such option", "doctor", "--force")
        self.refuse("which device?", "bind")
        self.refuse("which device?", "unbind", "--dry-run")
        self.refuse("doctor takes one device", "doctor", BDF, BDF)
        self.refuse("doctor takes one device", "doctor", "--persist")
        self.refuse("not for this", "bind", BDF, "--json")
        self.refuse("not for this", "unbind", BDF, "--persist")
        self.refuse("too many devices", "bind", *[BDF] * 33)
        for words in ((), ("old", "x"), ("new",), ("new", "x", "y", "z")):
            self.refuse('driver takes "new", a name, and maybe a directory', "driver", *words)
        self.refuse("not for this", "driver", "new", "x", "--json")
        self.refuse("not for this", "doctor", "--seed", "1")
        self.refuse("not for this", "bind", BDF, "--socket", "/s")
        self.refuse("selftest takes one device", "selftest")
        self.refuse("selftest takes one device", "selftest", "gpu0", "gpu1")
        self.refuse("not for this", "selftest", "gpu0", "--json")
        for seed in ("", "x", "-1", "1x", "0x10000000000000000"):
            self.refuse("a seed is a number of 64 bits", "selftest", "gpu0", "--seed", seed)

    def test_no_address(self):
        for word in ("", "0", "01:00", "../../../etc", "0000:00:01.0/..", "0000:00:01.8", "a" * 100000,
                     "0000:00:01.0\n", "%s%n"):
            for verb in ("doctor", "bind", "unbind"):
                self.refuse("no PCI address", verb, word)


class ThisMachine(unittest.TestCase):
    @unittest.skipUnless(Path("/sys/bus/pci").is_dir(), "no PCI here")
    def test_not_there(self):
        for verb in ("doctor", "bind", "unbind"):
            done = pasidctl(verb, BDF)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertEqual(done.stderr, f"pasidctl: there is no PCI device {BDF}; type: ls /sys/bus/pci/devices\n")

    @unittest.skipUnless(Path("/sys/bus/pci").is_dir(), "no PCI here")
    def test_doctor(self):
        done = pasidctl("doctor")
        self.assertIn(done.returncode, (0, 1))
        for line in done.stdout.splitlines():
            self.assertRegex(line, r"^((ok  |warn|bad )  \w+: |[0-9a-f]{4}:[0-9a-f:.]+ can)")
        found = json.loads(pasidctl("doctor", "--json").stdout)
        self.assertEqual(found["kernel"], os.uname().release)
        self.assertEqual(done.returncode, int(any(finding["level"] == "bad" for finding in found["findings"])))


if __name__ == "__main__":
    unittest.main()
