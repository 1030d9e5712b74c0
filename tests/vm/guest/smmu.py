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

    def faults(self, client, least=1):
        """Of the next event; (job, address, access, code) of each."""
        ctx, dropped, faults = client.next_fault(30)
        self.assertGreaterEqual(len(faults), least)
        return ctx, dropped, [fault[:4] for fault in faults]

    def test_3_each_transfer_interrupts(self):
        """Its interrupts are writes that go through the context's tables."""
        a, b = Space(self.one), Space(self.two)
        for space in (a, b):
            before = self.device.interrupts()
            self.assertEqual(list(before), ["vfio-msi[0]"])
            space.run(command(COPY, 0, DATA + 4 * PAGE, DATA, 4 * PAGE))
            self.assertGreaterEqual(self.device.interrupts()["vfio-msi[0]"] - before["vfio-msi[0]"], 8)

    def test_4_unmapped(self):
        """What was just used, so that the SMMU remembers it; the fault comes with its address and what was there."""
        a = Space(self.one)
        a.data[:PAGE] = b"\x11" * PAGE
        a.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        self.one.unmap(a.ctx, DATA + PAGE, PAGE)
        before = a.page(1)
        job = a.run(command(FILL, 0x22222222, DATA + PAGE, 0, PAGE), command(COPY, 0, DATA + 2 * PAGE, DATA, PAGE))
        self.assertEqual(a.page(1), before)
        self.assertEqual(a.page(2), a.page(0))
        ctx, _, faults = self.faults(self.one)
        self.assertEqual((ctx, faults), (a.ctx, [(job, DATA + PAGE, WRITE, UNMAPPED)]))

    def test_5_read_only(self):
        a = Space(self.one)
        fd, view = pc.memfd(PAGE)
        view[:] = b"\x33" * PAGE
        self.one.map(a.ctx, self.one.buf_import(fd)[0], 0, PAGE, pc.READ | pc.FIXED, LATE)
        job = a.run(command(COPY, 0, DATA, LATE, PAGE), command(FILL, 0x44444444, LATE, 0, PAGE))
        self.assertEqual(a.page(0), b"\x33" * PAGE)
        self.assertEqual(view[:], b"\x33" * PAGE)
        self.assertEqual(self.faults(self.one)[2], [(job, LATE, WRITE, PERMISSION)])


if __name__ == "__main__":
    vm.main(sys.argv)
