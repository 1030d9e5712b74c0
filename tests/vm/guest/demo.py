#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The demo on the reference GPU as a PCI device: bank and thief, two uids. Argument: "type1" or "iommufd"."""

import os
import subprocess
import sys
import unittest

import vm

RUN = f"{os.environ['SOURCE']}/tests/system/demo/run.py"


class Demo(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.device = vm.refgpu()

    def demo(self, *arguments):
        """What it says, and its status."""
        words = [sys.executable, RUN, "--build", os.environ["BUILD"], "--out", "/tmp/pictures", *arguments,
                 "--device", f"{vm.ARGUMENTS[0]}:{self.device.bdf}"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False)
        for line in done.stdout.splitlines():
            print(f"# {line}")
        return done.stdout, done.returncode

    def test_isolated(self):
        said, status = self.demo()
        self.assertEqual(status, 0, said)
        for uid in ("uid 61001", "uid 61002"):
            self.assertIn(uid, said)

    def test_no_isolation(self):
        said, status = self.demo("--no-isolation")
        self.assertEqual(status, 1, said)


if __name__ == "__main__":
    vm.main(sys.argv)
