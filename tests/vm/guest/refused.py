#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Devices that the kernel does not give to this daemon: one whose group another driver has a part of, one whose files it may
not open. What is done about it helps. Argument: "type1" or "iommufd"."""

import ctypes
import os
import pwd
import sys
from pathlib import Path

import vm
from device_case import WAY, DeviceCase

EDU, SERIAL = (0x1234, 0x11e8), (0x1b36, 0x0002)
NOT_VIABLE = {"type1": "is not viable: bind every device in /sys/kernel/iommu_groups/",
              "iommufd": "to /dev/iommu: every device in /sys/kernel/iommu_groups/"}
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


class Refused(DeviceCase):
    """In the order of their names: the last one gives up rights for good."""

    @classmethod
    def setUpClass(cls):
        cls.edu, cls.serial = (vm.PciDevice(vm.pci_find(*ids)[0]) for ids in (EDU, SERIAL))
        cls.edu.bind_vfio()

    def assert_refused_until(self, mend, *why):
        stack, client = self.refused(f"{WAY}:{self.edu.bdf}", *why, mode="exclusive")
        mend()
        stack.await_device(client)
        self.assert_usable(self.space(client, "gpu1"))

    def test_1_not_viable(self):
        self.assertEqual(self.serial.driver(), "serial")
        self.assertEqual(self.serial.group(), self.edu.group())
        self.assert_refused_until(lambda: (self.serial.path / "driver/unbind").write_text(self.serial.bdf),
                                  NOT_VIABLE[WAY])

    def test_1_wrong_mode(self):
        for mode, why in (("gpu-mmu", 'it has no MMU: configure mode "nested" or "exclusive"'),
                          ("pasid", 'its driver knows no mode "pasid"')):
            self.refused(f"{WAY}:{self.edu.bdf}", why, mode=mode)

    def test_2_not_permitted(self):
        """Root's rights on others' files are a capability, which the daemon does not have here."""
        file = Path("/dev/vfio", self.edu.group() if WAY == "type1" else f"devices/{self.edu.vfio_device()}")
        os.chmod(file, 0o600)
        os.chown(file, pwd.getpwnam("bank").pw_uid, -1)
        self.assertEqual(ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0), 0)
        self.assert_refused_until(lambda: os.chown(file, 0, -1), f"{file}: Permission denied; let pasidd's user open it")


if __name__ == "__main__":
    vm.main(sys.argv)
