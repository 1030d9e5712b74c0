#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mode `nested` where the SMMU, or the kernel, cannot: the log says what lacks, and the device is used in mode `exclusive` if
the configuration allows that, and not otherwise. Argument: a part of what lacks."""

import sys
import unittest

import vm
from edu import COPY, DATA, EDU, PAGE, Space, command, pc

NESTED, EXCLUSIVE = 5, 3


class Fallback(unittest.TestCase):
    def daemon(self, **more):
        device = vm.PciDevice(vm.pci_find(*EDU)[0])
        if device.driver() != "vfio-pci":
            device.bind_vfio()
        daemon = vm.Daemon({"name": "edu0", "spec": f"iommufd:{device.bdf}", "mode": "nested", "job_limit_ms": 20000, **more})
        self.addCleanup(daemon.stop)
        client = self.enterContext(pc.Client(daemon.socket))
        return daemon, client

    def test_1_not_without_being_told(self):
        daemon, client = self.daemon()
        daemon.await_log("edu0", "not reachable", vm.ARGUMENTS[0])
        self.assertEqual(client.devices(), [("edu0", NESTED, 0)])

    def test_2_exclusive(self):
        daemon, client = self.daemon(fallback="exclusive")
        daemon.await_log("edu0", 'mode "nested" cannot be had', vm.ARGUMENTS[0])
        vm.wait_for(lambda: client.devices() == [("edu0", EXCLUSIVE, 1)])
        space = Space(client)
        space.data[:PAGE] = b"\x11" * PAGE
        space.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        self.assertEqual(space.page(1), space.page(0))


if __name__ == "__main__":
    vm.main(sys.argv)
