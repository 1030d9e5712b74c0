#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""May user space have the first stage of this machine's SMMU? The IORT has to say that devices are coherent, and the
kernel has to offer it then."""

import fcntl
import os
import struct
import sys
import unittest
from pathlib import Path

import vm
from edu import EDU

IORT = Path("/sys/firmware/acpi/tables/IORT")
ROOT_COMPLEX, MEMORY_FLAGS, CANWBS = 2, 23, 4
# linux/vfio.h, linux/iommufd.h
VFIO_DEVICE_BIND_IOMMUFD, IOMMU_IOAS_ALLOC, IOMMU_HWPT_ALLOC, IOMMU_VIOMMU_ALLOC = 0x3b76, 0x3b81, 0x3b89, 0x3b90
NEST_PARENT, ARM_SMMUV3 = 1, 1


def call(fd, number, form, *fields):
    """An ioctl whose argument begins with its own size; the argument as the kernel leaves it."""
    argument = bytearray(struct.pack(form, struct.calcsize(form), *fields))
    fcntl.ioctl(fd, number, argument)
    return struct.unpack(form, argument)


class Nested(unittest.TestCase):
    def test_1_the_table_is_ours(self):
        table = IORT.read_bytes()
        count, at = struct.unpack_from("<II", table, 36)
        flags = []
        for _ in range(count):
            kind, length = struct.unpack_from("<BH", table, at)
            if kind == ROOT_COMPLEX:
                flags.append(table[at + MEMORY_FLAGS] & CANWBS)
            at += length
        self.assertEqual(flags, [CANWBS])

    def test_2_the_kernel_offers_it(self):
        device = vm.PciDevice(vm.pci_find(*EDU)[0])
        device.bind_vfio()
        name = next((device.path / "vfio-dev").iterdir()).name
        iommu = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
        self.addCleanup(os.close, iommu)
        fd = os.open(f"/dev/vfio/devices/{name}", os.O_RDWR | os.O_CLOEXEC)
        self.addCleanup(os.close, fd)
        dev_id = call(fd, VFIO_DEVICE_BIND_IOMMUFD, "<IIiI", 0, iommu, 0)[3]
        ioas = call(iommu, IOMMU_IOAS_ALLOC, "<III", 0, 0)[2]
        parent = call(iommu, IOMMU_HWPT_ALLOC, "<8IQII", NEST_PARENT, dev_id, ioas, 0, 0, 0, 0, 0, 0, 0)[4]
        viommu = call(iommu, IOMMU_VIOMMU_ALLOC, "<8IQ", 0, ARM_SMMUV3, dev_id, parent, 0, 0, 0, 0)[5]
        self.assertGreater(viommu, 0)


if __name__ == "__main__":
    vm.main(sys.argv)
