#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""pasidctl selftest of a PCI device, through a daemon of this guest.

selftest.py iommufd|type1 edu|refgpu MODE STATUS
"""

import os
import subprocess
import sys
import unittest

import vm

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests/system"))
import pasid_client as pc  # noqa: E402

DEVICES = {"edu": (0x1234, 0x11e8), "refgpu": vm.REFGPU}
# Of one job; the guest's processor is slow.
LIMIT_MS = 20000


class Selftest(unittest.TestCase):
    def test_selftest(self):
        way, driver, mode, status = vm.ARGUMENTS
        device = vm.PciDevice(vm.pci_find(*DEVICES[driver])[0])
        device.bind_vfio()
        daemon = vm.Daemon({"name": "dev0", "spec": f"{way}:{device.bdf}", "mode": mode, "job_limit_ms": LIMIT_MS,
                            "answer_ms": 10000})
        self.addCleanup(daemon.stop)
        # The bank and the thief are to get there as users of their own.
        os.chmod(daemon.directory, 0o755)
        with pc.Client(daemon.socket) as client:
            vm.wait_for(lambda: client.devices()[0][2])
        done = subprocess.run([os.environ["PASIDCTL"], "selftest", "dev0", "--socket", daemon.socket],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        for line in done.stdout.splitlines():
            print(f"# {line}")
        self.assertEqual(done.returncode, int(status), done.stdout)
        for text in (f"driver {driver}, mode {mode}\n", f"{device.bdf} (", "bank, thief: uids 61001 and 61002\n"):
            self.assertIn(text, done.stdout)
        self.assertNotIn("no time left", done.stdout)


if __name__ == "__main__":
    vm.main(sys.argv)
