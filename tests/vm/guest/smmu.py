#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mode `nested` on QEMU's edu device behind an SMMUv3, by a daemon of this guest."""

import os
import struct
import sys
import unittest

import vm
from edu import COMMANDS, COPY, DATA, EDU, FILL, LATE, PAGE, Space, command, pc

SWITCHES = 100
MODE = 5
# Of edu's 28 address bits: the kernel's window for interrupts is in the middle.
IOVA_LAST = 0x7ffffff
UNMAPPED, PERMISSION = 1, 2
READ, WRITE = 1, 2


class Nested(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        cls.device.bind_vfio()
        cls.daemon = vm.Daemon({"name": "edu0", "spec": f"iommufd:{cls.device.bdf}", "mode": "nested",
                                "job_limit_ms": 20000})
        with pc.Client(cls.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("edu0", MODE, 1)])

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def setUp(self):
        self.one, self.two = (self.enterContext(pc.Client(self.daemon.socket)) for _ in range(2))

    def test_1_what_it_is(self):
        info = self.one.device_info()
        self.assertEqual((info["engine"], info["mode"], info["slots"]), ("edu", MODE, 1))
        self.assertEqual(info["iova_last"], IOVA_LAST)

    def test_2_a_hundred_switches(self):
        """The same IOVAs, different memory; checked after each."""
        a, b = Space(self.one), Space(self.two)
        for i in range(SWITCHES // 2):
            for n, space in enumerate((a, b)):
                value = 0x01010101 * (2 * i + n + 1 & 0x7f)
                space.data[:PAGE] = struct.pack("<I", value) * (PAGE // 4)
                space.data[PAGE:2 * PAGE] = bytes(PAGE)
                space.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
                self.assertEqual(space.page(1), space.page(0))
        self.assertGreaterEqual(self.one.ctx_info(a.ctx)["switches"], SWITCHES // 2)
        self.assertGreaterEqual(self.two.ctx_info(b.ctx)["switches"], SWITCHES // 2)


if __name__ == "__main__":
    vm.main(sys.argv)
