#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A daemon that has no rights on /dev and gets its device files open, as a service manager does it: LISTEN_FDS.

handed.py iommufd|type1
"""

import contextlib
import fcntl
import os
import resource
import shutil
import sys
import unittest

import vm
from edu import DATA, EDU, FILL, PAGE, Space, command, pc

HOW = vm.ARGUMENTS[0]
USER = "bank"
GROUP = 4711  # nobody is in it
FIRST, SPARE = 3, 64  # sd_listen_fds(3) begins at FIRST; the shell has the fds from SPARE on
DENIED = "Permission denied; let pasidd's user open it, or hand it over open (docs/vfio.md)"


class Handed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        self.device.bind_vfio()
        path = self.device.vfio_device() if HOW == "iommufd" else None
        self.path = f"/dev/vfio/devices/{path}" if path else f"/dev/vfio/{self.device.group()}"
        self.common = ("iommu", "/dev/iommu") if HOW == "iommufd" else ("vfio", "/dev/vfio/vfio")

    def daemon(self, *handed, group=None):
        """As a user without rights, in this group alone; handed: (name, path[, mode]) of each."""
        fds, moves, closed = [], "", ""
        for i, (_, path, *mode) in enumerate(handed):
            fd = os.open(path, *(mode or [os.O_RDWR]))
            fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD, SPARE))
            os.close(fd)
            moves += f" {FIRST + i}<&{fds[i]}"
            closed += f" {fds[i]}<&-"
        environment = dict(os.environ, LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(name for name, *_ in handed))
        try:
            daemon = vm.Daemon({"name": "edu0", "spec": f"{HOW}:{self.device.bdf}", "mode": "exclusive"},
                               prefix=["/bin/sh", "-c", f'LISTEN_PID=$$ exec "$0" "$@" {moves} {closed}'],
                               user=USER, popen={"pass_fds": fds, "env": environment, "group": group,
                                                 "extra_groups": []})
        finally:
            for fd in fds:
                os.close(fd)
        self.addCleanup(shutil.rmtree, daemon.directory)
        self.addCleanup(daemon.stop)
        return daemon

    def client(self, daemon):
        return self.enterContext(pc.Client(daemon.socket))

    def assert_usable(self, client):
        vm.wait_for(lambda: client.devices() == [("edu0", 3, 1)])
        space = Space(client)
        space.run(command(FILL, 0x07070707, DATA, 0, PAGE))
        self.assertEqual(space.page(0), b"\x07" * PAGE)

    def device_files(self, daemon):
        path, links = f"/proc/{daemon.process.pid}/fd", []
        for fd in os.listdir(path):
            with contextlib.suppress(FileNotFoundError):  # closed by now
                links.append(os.readlink(f"{path}/{fd}"))
        return sorted(link for link in links if "/dev/vfio" in link or link in ("/dev/iommu", "/dev/zero"))

    def test_1_nothing(self):
        daemon = self.daemon()
        daemon.await_log(f"{self.path}: {DENIED}")
        self.assertEqual(self.device_files(daemon), [])

    def test_2_everything(self):
        """What was handed over is all that is open, and serves once."""
        daemon = self.daemon(("edu0", self.path), self.common)
        client = self.client(daemon)
        self.assert_usable(client)
        self.assertEqual(self.device_files(daemon), sorted((self.path, self.common[1])))
        (self.device.path / "driver/unbind").write_text(self.device.bdf)  # waits until all of it is closed
        daemon.await_log("the kernel asks for")
        vm.wait_for(lambda: not self.device_files(daemon))
        self.device.bind_vfio()
        daemon.await_log(DENIED)

    def test_3_not_what_they_are_said_to_be(self):
        daemon = self.daemon(("edu0", "/dev/zero"), ("edu0", self.path, os.O_RDONLY), ("iommu", "/dev/zero"),
                             ("vfio", "/dev/zero"), ("edu1", "/dev/zero"))
        for name, why in (("edu0", "not the device file"), ("iommu", "not the device file"),
                          ("vfio", "not the device file"), ("edu1", "no device is called that")):
            daemon.await_log(f'handed over an fd "{name}": ', why)
        daemon.await_log(f"{self.path}: {DENIED}")
        self.assertEqual(self.device_files(daemon), [])

    def test_4_more_than_are_needed(self):
        """A second one would keep the device from being unbound. (A group can be open only once anyway.)"""
        more = [("edu0", self.path)] if HOW == "iommufd" else []
        daemon = self.daemon(("edu0", self.path), *more, self.common)
        if more:
            daemon.await_log('handed over an fd "edu0": ', "there is one already")
        self.assert_usable(self.client(daemon))
        self.assertEqual(self.device_files(daemon), sorted((self.path, self.common[1])))

    def test_5_by_group(self):
        """As rules for udev have it (systemd/70-pasidd.rules): its group may open the files, and it may lock memory. Other
        rights it has none, and needs none."""
        for path in (self.path, self.common[1]):
            os.chown(path, 0, GROUP)
            os.chmod(path, 0o660)
            self.addCleanup(os.chown, path, 0, 0)
        daemon = self.daemon(group=GROUP)
        with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as status:
            rights = dict(line.rstrip("\n").split(":\t", 1) for line in status)
        self.assertEqual({int(rights[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")}, {0})
        self.assertEqual(rights["Gid"].split(), [str(GROUP)] * 4)
        self.assert_usable(self.client(daemon))


if __name__ == "__main__":
    vm.main(sys.argv)
