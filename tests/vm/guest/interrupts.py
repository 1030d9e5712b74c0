#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Whether jobs end by interrupts of a kind, and not because the daemon looks from time to time. QEMU's edu makes one for each
transfer; in the guest's virtual time a transfer takes 100 ms.

interrupts.py iommufd|type1 vfio-intx|vfio-msi[0]
"""

import os
import sys
import time
import unittest

import vm
from edu import COPY, DATA, EDU, PAGE, Space, command, pc

HOW, KIND = vm.ARGUMENTS
PAGES = 16
TRANSFER_S = 0.1
LOOK_S = 0.25  # the longest that the daemon goes without a look at a device that works
FOREVER_MS = 60000


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        self.device.bind_vfio()
        daemon = vm.Daemon({"name": "edu0", "spec": f"{HOW}:{self.device.bdf}", "mode": "exclusive",
                            "job_limit_ms": FOREVER_MS, "answer_ms": FOREVER_MS})
        self.addCleanup(daemon.stop)
        self.client = self.enterContext(pc.Client(daemon.socket))
        vm.wait_for(lambda: self.client.devices() == [("edu0", 3, 1)])

    def test_each_transfer_interrupts(self):
        space = Space(self.client, 2 * PAGES)
        space.data[:PAGES * PAGE] = os.urandom(PAGES * PAGE)
        before, begun = self.device.interrupts(), time.monotonic()
        self.assertEqual(list(before), [KIND])
        space.run(command(COPY, 0, DATA + PAGES * PAGE, DATA, PAGES * PAGE))  # each page into the device, and out of it
        took, came = time.monotonic() - begun, self.device.interrupts()[KIND] - before[KIND]
        self.assertEqual(space.data[PAGES * PAGE:], space.data[:PAGES * PAGE])
        print(f"# {2 * PAGES} transfers, {came} interrupts, {took:.2f} s")
        self.assertGreaterEqual(came, 2 * PAGES)
        self.assertLess(took, 2 * PAGES * (TRANSFER_S + LOOK_S) / 2)


if __name__ == "__main__":
    vm.main(sys.argv)
