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
from edu import COMMANDS, COPY, DATA, EDU, PAGE, Space, command, pc

HOW, KIND = vm.ARGUMENTS
PAGES = 16
TRANSFER_S = 0.1
LOOK_S = 0.25  # the longest that the daemon goes without a look at a device that works
FOREVER_MS = 60000


class Interrupts(unittest.TestCase):
    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        self.device.bind_vfio()

    def daemon(self):
        daemon = vm.Daemon({"name": "edu0", "spec": f"{HOW}:{self.device.bdf}", "mode": "exclusive",
                            "job_limit_ms": FOREVER_MS, "answer_ms": FOREVER_MS})
        self.addCleanup(lambda: daemon.process.poll() is None and daemon.stop())
        client = pc.Client(daemon.socket)
        vm.wait_for(lambda: client.devices() == [("edu0", 3, 1)])
        return daemon, client

    def each_transfer_interrupts(self, client):
        space = Space(client, 2 * PAGES)
        space.data[:PAGES * PAGE] = os.urandom(PAGES * PAGE)
        before, begun = self.device.interrupts(), time.monotonic()
        self.assertEqual(list(before), [KIND])
        space.run(command(COPY, 0, DATA + PAGES * PAGE, DATA, PAGES * PAGE))  # each page into the device, and out of it
        took, came = time.monotonic() - begun, self.device.interrupts()[KIND] - before[KIND]
        self.assertEqual(space.data[PAGES * PAGE:], space.data[:PAGES * PAGE])
        print(f"# {2 * PAGES} transfers, {came} interrupts, {took:.2f} s")
        self.assertGreaterEqual(came, 2 * PAGES)
        self.assertLess(took, 2 * PAGES * (TRANSFER_S + LOOK_S) / 2)

    def test_each_transfer_interrupts(self):
        with self.daemon()[1] as client:
            self.each_transfer_interrupts(client)

    def test_that_of_somebody_before(self):
        """A transfer of a daemon that was killed ends, and interrupts, while the next one gets the device ready."""
        daemon, client = self.daemon()
        with client:
            space = Space(client, 2 * PAGES)
            space.cmd[:32] = command(COPY, 0, DATA + PAGES * PAGE, DATA, PAGES * PAGE)
            client.submit(space.ctx, COMMANDS, 32)
            vm.wait_for(lambda: any(self.device.interrupts().values()))
            daemon.process.kill()
            daemon.process.wait()
        with self.daemon()[1] as client:
            self.each_transfer_interrupts(client)


if __name__ == "__main__":
    vm.main(sys.argv)
