#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The reference GPU as a PCI device that QEMU's vfio-user-pci makes of it: identity, BARs, capabilities, registers, and
whether it reaches what the guest maps for it."""

import os
import struct
import sys
import unittest
from pathlib import Path

import vm

IDS = (0x1234, 0x9a51)
MAGIC = 0x55504750
REGS, STATUS = 0, 2
REGS_SIZE, STATUS_SIZE = 0x10000, 0x1000
CAP_EXPRESS, CAP_MSIX = 0x10, 0x11
EXT_ATS, EXT_PRI, EXT_PASID = 0x0f, 0x13, 0x1b
PASID_WIDTH = 20
SCRUBS_AT, DMA_MAPS_AT, DMA_BYTES_AT = 104, 112, 120  # in struct refgpu_status
MEBIBYTE = 1 << 20
IOVA = 0x10000000
# Where in the memory mapped for it the device finds things; its registers for them, and what is in them.
MAILBOX, INVQ, FAULTQ, RING = 0, 0x1000, 0x2000, 0x3000
FIRST_SLOT = 0x1000
SETUP = [("Q", 0x20, IOVA + MAILBOX), ("Q", 0x28, IOVA + INVQ), ("I", 0x30, 16), ("Q", 0x40, IOVA + FAULTQ),
         ("I", 0x48, 16), ("Q", FIRST_SLOT, IOVA + RING), ("I", FIRST_SLOT + 0x08, 16), ("I", 0x14, 1)]
TAIL = FIRST_SLOT + 0x10
MARK_DONE = MAILBOX + 64 + 8
RING_SCRUB = 3


class RefgpuAsPci(unittest.TestCase):
    """In the order of their names: the last ones need the driver."""

    @classmethod
    def setUpClass(cls):
        found = vm.pci_find(*IDS)
        assert found, f"no device {IDS[0]:04x}:{IDS[1]:04x} among {vm.pci_list()}"
        cls.device = vm.PciDevice(found[0])
        for line in cls.device.describe():
            print(f"# {line}")

    def test_1_bars(self):
        sizes = [size for _, size, _ in self.device.bars()]
        self.assertEqual(sizes[REGS], REGS_SIZE)
        self.assertEqual(sizes[STATUS], STATUS_SIZE)

    def test_2_capabilities(self):
        self.assertLessEqual({CAP_EXPRESS, CAP_MSIX}, set(self.device.capabilities()))

    def test_3_extended_capabilities(self):
        self.assertEqual(os.stat(self.device.path / "config").st_size, 4096)
        extended = self.device.extended_capabilities()
        self.assertLessEqual({EXT_ATS, EXT_PRI, EXT_PASID}, set(extended))
        width = self.device.config("H", extended[EXT_PASID] + 4) >> 8 & 0x1f
        self.assertEqual(width, PASID_WIDTH)

    def test_4_vfio_takes_it(self):
        self.device.bind_vfio()
        self.assertTrue(os.path.exists(f"/dev/vfio/{self.device.group()}"))
        self.assertTrue(Path("/dev/vfio/devices", self.device.vfio_device()).exists())

    def test_5_registers(self):
        self.device.set_config("H", vm.COMMAND, vm.COMMAND_MEMORY | vm.COMMAND_MASTER)
        for bar in (REGS, STATUS):
            with self.subTest(bar=bar), self.device.map_bar(bar) as memory:
                self.assertEqual(struct.unpack_from("<I", memory)[0], MAGIC)

    def count(self, counter):
        """A counter of the status page."""
        with self.device.map_bar(STATUS) as status:
            return struct.unpack_from("<Q", status, counter)[0]

    def mapped(self):
        """How many DMA mappings the device knows, and how many bytes they are."""
        return self.count(DMA_MAPS_AT), self.count(DMA_BYTES_AT)

    def test_6_type1_mappings_reach_it(self):
        with vm.Type1(self.device) as container:
            maps, size = self.mapped()
            memory = container.map(MEBIBYTE, IOVA)
            self.assertEqual(self.mapped()[1], size + MEBIBYTE)
            container.unmap(MEBIBYTE, IOVA)
            self.assertEqual(self.mapped(), (maps, size))
            memory.close()

    def test_6_work_runs(self):
        """The smallest: a ring word is read, and marked done in the mailbox."""
        with vm.Type1(self.device) as container:
            memory = container.map(MEBIBYTE, IOVA)
            for form, register, value in SETUP:
                container.write_bar(REGS, form, register, value)
            struct.pack_into("<I", memory, RING, RING_SCRUB)
            scrubs = self.count(SCRUBS_AT)
            container.write_bar(REGS, "Q", TAIL, 1)
            vm.wait_for(lambda: struct.unpack_from("<Q", memory, MARK_DONE)[0] == 1)
            self.assertEqual(self.count(SCRUBS_AT), scrubs + 1)

    def test_7_iommufd_attaches_a_pasid(self):
        with vm.Iommufd(self.device) as iommufd:
            self.assertEqual(iommufd.pasid_width(), PASID_WIDTH)
            own, other = (iommufd.hwpt_with_pasid() for _ in range(2))
            iommufd.attach(own)
            iommufd.attach(other, pasid=5)
            translations = Path("/sys/kernel/debug/iommu/intel", self.device.bdf, "5/domain_translation_struct")
            self.assertTrue(translations.exists())

    def test_8_goes_and_comes_back(self):
        """In the guest's eyes; that the host unplugs it does not work in QEMU 11.1, which then ends."""
        (self.device.path / "remove").write_text("1")
        self.assertEqual(vm.pci_find(*IDS), [])
        Path("/sys/bus/pci/rescan").write_text("1")
        self.assertEqual(vm.pci_find(*IDS), [self.device.bdf])
        self.device.bind_vfio()
        with vm.Type1(self.device):
            self.assertEqual(self.device.config("H", 0), IDS[0])


if __name__ == "__main__":
    vm.main(sys.argv)
