#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A device that is unplugged while a daemon of this guest works on it, twice, and plugged in again.

unplug.py iommufd|type1
"""

import sys
import threading
import unittest

import vm
from edu import COPY, DATA, EDU, FILL, PAGE, Space, command, pc


class Load(threading.Thread):
    """A client that copies until its context is lost."""

    def __init__(self, socket):
        super().__init__(daemon=True)
        self.socket = socket
        self.jobs = 0
        self.began = threading.Event()

    def run(self):
        with pc.Client(self.socket) as client:
            space = Space(client)
            try:
                while True:
                    space.run(command(COPY, 0, DATA, DATA + 4 * PAGE, 4 * PAGE))
                    self.jobs += 1
                    self.began.set()
            except (AssertionError, pc.Refused):
                self.began.set()


class Unplug(unittest.TestCase):
    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        self.device.bind_vfio()
        self.daemon = vm.Daemon({"name": "edu0", "spec": f"{vm.ARGUMENTS[0]}:{self.device.bdf}", "mode": "exclusive"})
        self.addCleanup(self.daemon.stop)
        self.client = self.enterContext(pc.Client(self.daemon.socket))
        self.await_device()

    def await_device(self):
        vm.wait_for(lambda: self.client.devices() == [("edu0", 3, 1)])

    def assert_usable(self, space):
        space.run(command(FILL, 0x07070707, DATA, 0, PAGE))
        self.assertEqual(space.page(0), b"\x07" * PAGE)

    def test_unplugged_under_load(self):
        for _ in range(2):
            idle, load = Space(self.client), Load(self.daemon.socket)
            self.assert_usable(idle)
            load.start()
            load.began.wait(60)
            vm.host("device_del", "edu0")
            vm.host("device_gone", "edu0")
            load.join(60)
            self.assertFalse(load.is_alive())
            self.assertGreater(load.jobs, 0)
            self.assertEqual(vm.pci_find(*EDU), [])
            with self.assertRaises(pc.Refused):
                idle.run(command(FILL, 0, DATA, 0, PAGE))
            self.assertEqual(self.client.devices(), [("edu0", 3, 0)])
            # What comes to the same place is the same device, once it is bound.
            vm.host("device_add", "edu0")
            vm.wait_for(self.device.path.exists)
            self.device.bind_vfio()
            self.await_device()
            self.client.ctx_free(idle.ctx)
            self.assert_usable(Space(self.client))


if __name__ == "__main__":
    vm.main(sys.argv)
