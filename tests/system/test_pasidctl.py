# SPDX-License-Identifier: MIT
"""pasidctl's command line, through the real program on the machine of the tests, which it must not change. What it finds
on machines and does to them: tests/unit/test_doctor.c and test_bind.c, and tests/vm/guest/doctor.sh. What "driver new"
writes: test_drivers.py."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402

BDF = "ffff:ff:1f.7"  # there is none


def pasidctl(*words):
    return subprocess.run([harness.program("PASIDCTL"), *words], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False)


VERBS = "devices contexts stats maps walk top trace doctor bind unbind driver selftest".split()


class CommandLine(unittest.TestCase):
    def refuse(self, said, *words):
        done = pasidctl(*words)
        self.assertEqual((done.returncode, done.stdout), (2, ""), words)
        self.assertIn(said, done.stderr)
        self.assertTrue(done.stderr.endswith("; see pasidctl --help\n"), done.stderr)

    def test_help(self):
        done = pasidctl("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for word in [f"pasidctl {verb}" for verb in VERBS] + [
                "--json", "--dry-run", "--persist", "--socket", "--seed", "--driver", "--bus", "--output", "Exit status"]:
            self.assertIn(word, done.stdout)
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 100)
        self.assertEqual(pasidctl("-h").stdout, done.stdout)

    def test_help_of_a_verb(self):
        whole = pasidctl("--help").stdout
        for verb in VERBS:
            done = pasidctl(verb, "--help")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertTrue(done.stdout.startswith(f"Usage: pasidctl {verb}"), done.stdout)
            usage = done.stdout.splitlines()[0]
            self.assertIn(usage.removeprefix("Usage: "), whole)
            for option in re.findall(r"--[a-z-]+", usage):
                self.assertRegex(done.stdout, rf"(?m)^    .*{option}\b", verb)
            self.assertEqual(pasidctl("--help", verb).stdout, done.stdout)
        self.refuse("the first word has to be", "--help", "cure")

    def test_version(self):
        self.assertRegex(pasidctl("--version").stdout, r"^pasidctl \d+\.\d+\.\d+\n$")

    def test_wrong(self):
        self.refuse("doctor, bind, unbind, selftest or driver")
        self.refuse('doctor, bind, unbind, selftest or driver: "cure"', "cure")
        for verb in VERBS:
            self.assertIn(verb, pasidctl("cure").stderr)
        self.refuse("no such option", "doctor", "--force")
        self.refuse("which device?", "bind")
        self.refuse("which device?", "unbind", "--dry-run")
        self.refuse("doctor takes one device", "doctor", BDF, BDF)
        self.refuse("not for this", "doctor", "--persist")
        self.refuse("not for this", "driver", "--json")
        self.refuse("not for this", "unbind", BDF, "--persist")
        self.refuse("too many devices", "bind", *[BDF] * 33)
        for words in ((), ("old", "x"), ("new",), ("new", "x", "y", "z")):
            self.refuse('driver takes "new", a name, and maybe a directory', "driver", *words)
        self.refuse("not for this", "driver", "new", "x", "--json")
        self.refuse("not for this", "doctor", "--seed", "1")
        self.refuse("not for this", "bind", BDF, "--socket", "/s")
        self.refuse("selftest takes one device", "selftest")
        self.refuse("selftest takes one device", "selftest", "gpu0", "gpu1")
        self.refuse("not for this", "selftest", "gpu0", "--persist")
        for seed in ("", "x", "-1", "1x", "0x10000000000000000"):
            self.refuse("a seed is a number of 64 bits", "selftest", "gpu0", "--seed", seed)

    def test_wrong_words_for_pasidd(self):
        for verb in ("devices", "contexts", "stats", "top"):
            self.refuse("one word too many", verb, "x")
            self.refuse("not for this", verb, "--persist")
            self.refuse("not for this", "-o", "file", verb)
        self.refuse("maps takes one context", "maps")
        self.refuse("maps takes one context", "maps", "1", "2")
        self.refuse("walk takes a context and an address", "walk", "1")
        for number in ("", "x", "-1", "1x", "4294967296", "0x100000000"):
            self.refuse("a context is a number", "maps", "--", number)
            self.refuse("a context is a number", "walk", "--", number, "0")
        for number in ("", "x", "-1", "0x10000000000000000"):
            self.refuse("an address is a number", "walk", "--", "1", number)
        self.refuse("how many seconds", "trace", "86401")
        self.refuse("how many seconds", "trace", "1.5")
        self.refuse("one word too many", "trace", "1", "2")
        self.refuse("top wants a terminal", "top")

    def test_no_address(self):
        for word in ("", "0", "01:00", "../../../etc", "0000:00:01.0/..", "0000:00:01.8", "a" * 100000,
                     "0000:00:01.0\n", "%s%n"):
            for verb in ("doctor", "bind", "unbind"):
                self.refuse("no PCI address", verb, word)


class NoBus(unittest.TestCase):
    """Why pasidd cannot be asked, in a sentence, with what to type."""

    def refuse(self, said, todo, *words, **env):
        done = subprocess.run([harness.program("PASIDCTL"), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60, check=False, env={**os.environ, **env})
        self.assertEqual((done.returncode, done.stdout), (1, ""), words)
        self.assertRegex(done.stderr, r"^pasidctl: .*; type: .*\n$")
        self.assertIn(said, done.stderr)
        self.assertTrue(done.stderr.endswith(f"; type: {todo}\n"), done.stderr)

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="pasidctl-")
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "bus")

    def test_system_bus(self):
        for address, said in ((f"unix:path={self.path}", "No such file"), ("unix:path=/proc/self/exe", "")):
            self.refuse("the system bus cannot be reached", "systemctl start dbus", "contexts",
                        DBUS_SYSTEM_BUS_ADDRESS=address)
            self.refuse(said, "systemctl start dbus", "--bus", "system", "contexts", DBUS_SYSTEM_BUS_ADDRESS=address)

    def test_session_bus(self):
        self.refuse("this session's bus cannot be reached", "echo $DBUS_SESSION_BUS_ADDRESS", "devices", "--bus=session",
                    DBUS_SESSION_BUS_ADDRESS=f"unix:path={self.path}")

    def test_address(self):
        self.refuse("No such file", "journalctl -u pasidd", "maps", "1", "--bus", f"unix:path={self.path}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            self.refuse("Connection refused", "journalctl -u pasidd", "stats", "--bus", f"unix:path={self.path}")
        self.refuse("has to be system, session or an address", "pasidctl --bus unix:path=/run/dbus/system_bus_socket",
                    "stats", "--bus", "sytem")

    @unittest.skipUnless(os.geteuid() == 0, "only root becomes another user")
    def test_not_allowed(self):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            os.chmod(self.path, 0o600)
            os.chmod(os.path.dirname(self.path), 0o755)
            words = ["walk", "3", "0x1000", "--bus", f"unix:path={self.path}"]
            try:
                done = subprocess.run([harness.program("PASIDCTL"), *words], capture_output=True, text=True, timeout=60,
                                      check=False, user=65534, group=65534, extra_groups=[])
            except PermissionError:
                self.skipTest("other users cannot reach the build")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, "^pasidctl: this user may not connect to .*: Permission denied; "
                         f"type: sudo pasidctl walk 3 0x1000 --bus unix:path={self.path}\n$")


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
