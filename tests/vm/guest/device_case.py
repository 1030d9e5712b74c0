# SPDX-License-Identifier: MIT
"""What tests of the daemon on a PCI device of the guest share. The script's first argument is "type1" or "iommufd"."""

import contextlib
import os
import sys
import unittest
from pathlib import Path

import vm

sys.path.insert(0, str(Path(os.environ["SOURCE"], "tests/system")))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import work  # noqa: E402

WAY = vm.ARGUMENTS[0]
OPENED = {"type1": vm.Type1, "iommufd": vm.Iommufd}[WAY]
HANG_HARD = work.command(work.HANG, work.HANG_OBEYS_RESET)


class DeviceCase(unittest.TestCase):
    def stack(self, spec, *others, **more):
        """A daemon with a device of this spec, gpu0, and others."""
        stack = harness.Stack([{"pci": spec, **more}, *others])
        self.addCleanup(stack.stop)
        return stack.__enter__()

    def client(self, stack):
        client = pc.Client(stack.socket)
        self.addCleanup(client.close)
        return client

    def space(self, client, device="gpu0", **more):
        space = work.Space(client, device=device, **more)
        self.addCleanup(space.close)
        return space

    def assert_usable(self, space):
        count = space.counter
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertEqual(space.counter, count + 1)

    def log(self, stack):
        return Path(stack.dir, "pasidd.log").read_text(encoding="utf-8")

    def await_log(self, stack, *parts):
        """Waits for a line of the daemon's with all of these in it."""
        try:
            line = harness.wait_until(lambda: [line for line in self.log(stack).splitlines()
                                               if all(part in line for part in parts)], f"{parts} in the log")[0]
        except harness.HarnessError as error:
            raise AssertionError(f"{error}\n{self.log(stack)}") from None
        print(f"# {line}")

    def vfio_fds(self, stack):
        """Files of VFIO and iommufd that the daemon has open."""
        path, links = Path(f"/proc/{stack.daemon.pid}/fd"), []
        for fd in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):  # closed by now
                links.append(os.readlink(path / fd))
        return [link for link in links if "vfio" in link or "iommu" in link]

    def refused(self, spec, *parts, **more):
        """A device that cannot be had: the log says why and what to do, nothing stays open, others are served."""
        stack = self.stack(spec, {}, **more)
        client = self.client(stack)
        stack.await_device(client, "gpu1")
        self.await_log(stack, "gpu0", "not reachable", *parts)
        self.assertFalse(client.devices()[0][2])
        for _ in range(10):  # while it is tried again
            self.assert_usable(self.space(client, "gpu1"))
        harness.wait_until(lambda: not self.vfio_fds(stack), "VFIO's files are closed")
        return stack, client
