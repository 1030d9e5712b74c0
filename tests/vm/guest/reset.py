#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Resets of a GPU that shares its slot with another device and has no reset of its own: both are reset or neither.
Arguments: "type1" or "iommufd"; "Together" in one group with an edu, or "Apart" from another GPU."""

import os
import struct
import subprocess
import sys

import vm
from device_case import HANG_HARD, OPENED, WAY, DeviceCase, harness, work

RESETS_AT = 16  # in struct refgpu_status


class SlotCase(DeviceCase):
    @classmethod
    def setUpClass(cls):
        cls.gpu, cls.neighbour = (vm.PciDevice(f"0000:01:00.{function}") for function in range(2))
        print(f"# {cls.gpu.bdf} in group {cls.gpu.group()}, {cls.neighbour.bdf} in group {cls.neighbour.group()}")
        # So says the kernel of a device that cannot be reset alone. The bus is no way for one that shares it.
        for device in cls.gpu, cls.neighbour:
            if (device.path / "reset_method").exists():
                (device.path / "reset_method").write_text("\n", encoding="ascii")
            device.bind_vfio()

    def busy_stack(self, *others):
        """A daemon that has the GPU; its contexts."""
        stack = self.stack(f"{WAY}:{self.gpu.bdf}", *others)
        client = self.client(stack)
        stack.await_device(client)
        return stack, [self.space(client) for _ in range(3)]

    def doctor(self):
        """What pasidctl says of resetting it."""
        done = subprocess.run([os.environ["PASIDCTL"], "doctor", self.gpu.bdf], stdout=subprocess.PIPE, text=True,
                              check=False)
        return next(line for line in done.stdout.splitlines() if " reset: " in line)

    def hang(self, space):
        """A job that only a reset ends. Returns it when that is known."""
        job = space.submit(HANG_HARD)
        harness.wait_until(lambda: space.lost, "the job is ended")
        return job

    def assert_not_reset(self, stack, spaces, *why):
        self.hang(spaces[0])
        self.await_log(stack, "gpu0", "lost", *why)
        for space in spaces:
            self.assertEqual(work.await_loss(space.client, space.ctx)[0], work.LOST_DEVICE)


class Together(SlotCase):
    """Whoever has the GPU's group has the neighbour. In the order of their names: a GPU that is not reset stays as it is."""

    def test_1_idle_neighbour(self):
        self.assertEqual(self.doctor(), "ok    reset: it can be, with all of its bus: 2 devices")
        stack, (guilty, *good) = self.busy_stack()
        resets = stack.status()["resets"]
        job = self.hang(guilty)
        self.assertEqual(work.await_loss(guilty.client, guilty.ctx), (work.LOST_HANG, job))
        self.assertEqual(stack.status()["resets"], resets + 1)
        count = self.gpu.interrupts()["vfio-msix[0]"]
        for space in good:
            self.assertFalse(space.lost)
            self.assert_usable(space)
        self.assertGreater(self.gpu.interrupts()["vfio-msix[0]"], count)
        guilty.free()
        guilty.renew()
        self.assert_usable(guilty)

    def test_2_neighbour_without_a_driver(self):
        """VFIO cannot know what a reset would do to it."""
        (self.neighbour.path / "driver/unbind").write_text(self.neighbour.bdf)
        self.assertEqual(self.neighbour.driver(), "")
        self.assertIn(f"{self.neighbour.bdf} there is not bound to vfio-pci", self.doctor())
        self.assert_not_reset(*self.busy_stack(), "to vfio-pci")


class Apart(SlotCase):
    def resets_of_neighbour(self):
        with self.neighbour.map_bar(2) as page:
            return struct.unpack_from("<Q", page, RESETS_AT)[0]

    def test_1_somebody_elses_neighbour(self):
        self.assertIn(f"{self.neighbour.bdf} there is in another group", self.doctor())
        with OPENED(self.neighbour):
            self.neighbour.set_config("H", vm.COMMAND, vm.COMMAND_MEMORY)
            resets = self.resets_of_neighbour()
            self.assert_not_reset(*self.busy_stack(), f"{self.neighbour.bdf} there is not ours, or is in use")
            self.assertEqual(self.resets_of_neighbour(), resets)

    def test_2_neighbour_of_ours(self):
        """It works for others, who are not to suffer."""
        stack, spaces = self.busy_stack({"pci": f"{WAY}:{self.neighbour.bdf}"})
        stack.await_device(spaces[0].client, "gpu1")
        other = self.space(spaces[0].client, "gpu1")
        self.assert_not_reset(stack, spaces, f"{self.neighbour.bdf} there is not ours, or is in use")
        self.assertFalse(other.lost)
        self.assert_usable(other)


if __name__ == "__main__":
    vm.main(sys.argv, "-k", f"*.{vm.ARGUMENTS[1]}.*")
