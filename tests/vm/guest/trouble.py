#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""What goes wrong around a PCI device, and what the daemon makes of it: devices that cannot be had, a daemon that is
killed, a device that is taken away, one that has to be reset. Argument: "type1" or "iommufd"."""

import signal
import socket
import sys
import threading
import time
import unittest
from pathlib import Path

import vm
from device_case import HANG_HARD, OPENED, WAY, DeviceCase, harness, pc, work

CONTEXT_LOST = 80
REMOVE_S = 10  # a device that is asked back has to be let go in this time; the kernel itself asks every 10 s


class Load(threading.Thread):
    """A client with some contexts that work until they, or the daemon, are gone."""

    def __init__(self, stack):
        super().__init__(daemon=True)
        self.client = pc.Client(stack.socket)
        self.spaces = [work.Space(self.client, pages=66) for _ in range(4)]
        self.rounds = 0
        self.why = None

    def run(self):
        try:
            while True:
                jobs = [space.submit(*space.long_copy(2, 34, 32, 10), space.add_one()) for space in self.spaces]
                for space, job in zip(self.spaces, jobs):
                    space.wait(job, timeout=5)
                self.rounds += 1
        except (OSError, pc.Refused) as error:
            self.why = error

    def end(self):
        """Waits for the end, which has to come by itself."""
        self.join(harness.DEADLINE)
        for space in self.spaces:
            space.close()
        self.client.close()


class Trouble(DeviceCase):
    @classmethod
    def setUpClass(cls):
        cls.gpu = vm.PciDevice(vm.pci_find(*vm.REFGPU)[0])

    # Bad input. In the order of their names: the first ones come before vfio-pci has the device.

    def test_1_no_such_device(self):
        self.refused(f"{WAY}:0000:7f:1f.7", "there is no PCI device 0000:7f:1f.7")

    def test_1_no_driver(self):
        self.assertEqual(self.gpu.driver(), "")
        self.refused(f"{WAY}:{self.gpu.bdf}", f"{self.gpu.bdf} is bound to no driver, not to vfio-pci", "see docs/")

    def test_1_other_driver(self):
        port = next(bdf for bdf in vm.pci_list() if vm.PciDevice(bdf).driver() == "pcieport")
        self.refused(f"{WAY}:{port}", f"{port} is bound to pcieport, not to vfio-pci", "see docs/")

    def test_2_the_kernel_has_it_not(self):
        gpu = vm.refgpu()
        if WAY == "iommufd":
            return  # this kernel has both
        self.refused(f"iommufd:{gpu.bdf}", f"this kernel has no iommufd for {gpu.bdf}")

    def test_2_wrong_mode(self):
        gpu = vm.refgpu()
        self.refused(f"{WAY}:{gpu.bdf}", 'its driver knows no mode "nested" or "exclusive": configure "gpu-mmu"',
                     mode="exclusive")
        if WAY == "type1":
            self.refused(f"{WAY}:{gpu.bdf}", 'mode "pasid" takes iommufd, Linux 6.15, and PASIDs', mode="pasid")

    def test_2_whichever_there_is(self):
        gpu = vm.refgpu()
        stack = self.stack(f"vfio:{gpu.bdf}")
        client = self.client(stack)
        stack.await_device(client)
        self.assert_usable(self.space(client))
        self.assertEqual("/dev/iommu" in self.vfio_fds(stack), WAY == "iommufd")

    def test_3_busy(self):
        """Somebody else has the device; when they let it go, it is taken."""
        gpu = vm.refgpu()
        with OPENED(gpu):
            stack, client = self.refused(f"{WAY}:{gpu.bdf}", "another process uses it")
        stack.await_device(client)
        self.assert_usable(self.space(client))

    # A daemon that dies, and a device that is taken away, while work runs.

    def load(self, stack):
        """Work that goes on by itself."""
        load = Load(stack)
        self.addCleanup(load.end)
        load.start()
        harness.wait_until(lambda: load.rounds > 3 or not load.is_alive(), "work runs")
        self.assertTrue(load.is_alive(), load.why)
        return load

    def hang(self, space):
        """A job that does not end by itself, and has begun."""
        count = space.counter
        job = space.submit(space.add_one(), work.command(work.HANG, work.HANG_OBEYS_STOP))
        harness.wait_until(lambda: space.counter > count, "the job begins")
        return job

    def busy_stack(self, *others):
        """The device is to have much to do for long."""
        stack = self.stack(f"{WAY}:{vm.refgpu().bdf}", *others, job_limit_ms=60000)
        client = self.client(stack)
        stack.await_device(client)
        space = self.space(client)
        self.assert_usable(space)
        return stack, space

    def test_4_killed_under_load(self):
        stack, _ = self.busy_stack()
        for _ in range(3):
            with pc.Client(stack.socket) as client:
                stack.await_device(client)
                self.hang(self.space(client))
                load = self.load(stack)
                stack.stop_daemon(signal.SIGKILL)
                load.end()
            # Its closers have its fds for a moment longer.
            harness.wait_until(lambda: not harness.can_connect(stack.socket, socket.SOCK_SEQPACKET), "all is gone")
            stack.start_daemon()
        client = self.client(stack)
        stack.await_device(client)
        self.assert_usable(self.space(client))

    def taken_away(self, stack, space, file, text):
        """Something is written to a file of the device's that waits until the daemon has let go, which it does."""
        job, load = self.hang(space), self.load(stack)
        writer = threading.Thread(target=(vm.refgpu().path / file).write_text, args=(text,))
        begun = time.monotonic()
        writer.start()
        try:
            self.assertEqual(work.await_loss(space.client, space.ctx), (work.LOST_DEVICE, 0))
        finally:
            writer.join(3 * REMOVE_S)
        self.assertFalse(writer.is_alive(), f"the kernel still waits for the device\n{stack.log_tail()}")
        took = time.monotonic() - begun
        print(f"# it was let go within {took:.1f} s")
        self.assertLess(took, REMOVE_S)
        self.assertFalse(space.wait(job))
        load.end()
        self.assertEqual(load.why.reason, CONTEXT_LOST, load.why)
        self.await_log(stack, "gpu0", "lost", f"the kernel asks for {self.gpu.bdf} back")
        # The device goes first, and that is what the kernel waits for; the rest is closed behind it.
        harness.wait_until(lambda: not self.vfio_fds(stack), "VFIO's files are closed")

    def comes_back(self, stack, space):
        """With its buffers."""
        vm.refgpu()
        stack.await_device(space.client)
        space.free()
        space.renew()
        self.assert_usable(space)

    def test_5_removed(self):
        stack, space = self.busy_stack({})
        other = self.space(space.client, "gpu1")
        self.addCleanup(self.rescan)
        self.taken_away(stack, space, "remove", "1")
        self.assertEqual(vm.pci_find(*vm.REFGPU), [])
        self.assert_usable(other)
        self.rescan()
        self.comes_back(stack, space)
        self.assert_usable(other)

    @staticmethod
    def rescan():
        Path("/sys/bus/pci/rescan").write_text("1", encoding="ascii")

    def test_5_unbound(self):
        stack, space = self.busy_stack()
        self.taken_away(stack, space, "driver/unbind", self.gpu.bdf)
        self.assertEqual(self.gpu.driver(), "")
        self.comes_back(stack, space)

    # A device that has to be reset.

    def test_6_reset_under_load(self):
        stack = self.stack(f"{WAY}:{vm.refgpu().bdf}")
        client = self.client(stack)
        stack.await_device(client)
        good = [self.space(client) for _ in range(3)]
        guilty = self.space(client)
        resets = stack.status()["resets"]
        job = guilty.submit(HANG_HARD)
        while not guilty.lost:
            jobs = [space.submit(space.add_one()) for space in good]
            for space, one in zip(good, jobs):
                self.assertTrue(space.wait(one))
        self.assertEqual(work.await_loss(client, guilty.ctx), (work.LOST_HANG, job))
        self.assertEqual(stack.status()["resets"], resets + 1)
        for space in good:
            self.assertFalse(space.lost)
            self.assert_usable(space)
        guilty.free()
        guilty.renew()
        self.assert_usable(guilty)


if __name__ == "__main__":
    vm.main(sys.argv)
