#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Whether jobs end by interrupts of a kind, and not because the daemon looks from time to time. QEMU's edu makes one for each
transfer; in the guest's virtual time a transfer takes 100 ms.

interrupts.py iommufd|type1 vfio-intx|vfio-msi[0]
"""

import os
import struct
import sys
import time
import unittest

import vm

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests/system"))
import pasid_client as pc  # noqa: E402

HOW, KIND = vm.ARGUMENTS
PAGE = 4096
PAGES = 16
TRANSFER_S = 0.1
LOOK_S = 0.25  # the longest that the daemon goes without a look at a device that works
FOREVER_MS = 60000
FROM, TO, COMMANDS = 0x100000, 0x200000, 0x300000
COPY = 2


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(0x1234, 0x11e8)[0])
        self.device.bind_vfio()
        self.daemon = vm.Daemon({"name": "edu0", "spec": f"{HOW}:{self.device.bdf}", "mode": "exclusive",
                                 "job_limit_ms": FOREVER_MS, "answer_ms": FOREVER_MS})
        self.addCleanup(self.daemon.stop)
        self.client = self.enterContext(pc.Client(self.daemon.socket))
        vm.wait_for(lambda: self.client.devices() == [("edu0", 3, 1)])

    def map(self, ctx, pages, iova):
        fd, view = pc.memfd(pages * PAGE)
        self.client.map(ctx, self.client.buf_import(fd)[0], 0, pages * PAGE, pc.READ | pc.WRITE | pc.FIXED, iova)
        return view

    def test_each_transfer_interrupts(self):
        ctx = self.client.ctx_new()
        source, target, commands = (self.map(ctx, pages, iova)
                                    for pages, iova in ((PAGES, FROM), (PAGES, TO), (1, COMMANDS)))
        source[:] = os.urandom(len(source))
        commands[:32] = struct.pack("<IIQQQ", COPY, 0, TO, FROM, len(source))
        before, begun = self.device.interrupts(), time.monotonic()
        self.assertEqual(list(before), [KIND])
        self.assertTrue(self.client.wait(ctx, self.client.submit(ctx, COMMANDS, 32), 60))
        took, came = time.monotonic() - begun, self.device.interrupts()[KIND] - before[KIND]
        self.assertEqual(target[:], source[:])
        print(f"# {2 * PAGES} transfers, {came} interrupts, {took:.2f} s")
        self.assertGreaterEqual(came, 2 * PAGES)
        self.assertLess(took, 2 * PAGES * (TRANSFER_S + LOOK_S) / 2)


if __name__ == "__main__":
    vm.main(sys.argv)
