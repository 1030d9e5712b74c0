# SPDX-License-Identifier: MIT
"""What an installation does to a machine that runs, and what is left of it."""

import json
import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

import machine
import rig

# What any package or any boot changes, but for what has our name.
OTHERS = ("/var/lib/dpkg/", "/var/lib/systemd/", "/var/log/", "/var/cache/", "/etc/ld.so.cache", "/tmp/", "/var/tmp/", "/run/")
NOBODYS = ("/proc", "/sys", "/dev", "/opt")
# Users and groups stay, as in all of Debian.
USERS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/.pwd.lock")
# What dpkg keeps until a purge: the configuration, and which units are enabled.
CONFIGURATION = ("/etc/pasidd", "/etc/systemd/system/sockets.target.wants/", "/var/lib/dpkg/info/",
                 "/var/lib/systemd/deb-systemd-helper-enabled/")


class Packages(rig.Case):
    """In the order of their names: nothing is there at first."""

    layers = (rig.ROOT,)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.before = cls.files()
        cls.debs = []
        for path in sorted(Path(rig.PACKAGES).glob("*.deb")):
            if "dbgsym" not in path.name and "-dev_" not in path.name:
                shutil.copy(path, cls.machine.path("/opt"))
                cls.debs.append(f"/opt/{path.name}")

    @classmethod
    def files(cls):
        """Every file that is no other's business, with what it is. Directories only if they have our name."""
        nobodys = " -o ".join(f"-path {path}" for path in NOBODYS)
        # What goes while it is looked for is nobody's, either.
        said = cls.machine.run("sh", "-c", f"find / \\( {nobodys} \\) -prune -o -printf '%p %y %s %m %l\\n'", check=False)
        found = (line.split(" ", 1) for line in said.stdout.splitlines())
        return {(path, what) for path, what in found
                if "pasid" in path or not what.startswith("d ") and not path.startswith(OTHERS)}

    def kept(self):
        """How many memfds process 1 holds."""
        links = self.machine.say("find", "/proc/1/fd", "-type", "l", "-printf", "%l\n").splitlines()
        return sum(link.startswith("/memfd:") for link in links)

    def assert_left(self, *allowed):
        """What is there now and was not before, or is another file, or is gone."""
        changed = {path for path, _ in self.files() ^ self.before}
        self.assertEqual({path for path in changed if not path.startswith(USERS + allowed)}, set())

    def test_1_install(self):
        self.machine.say("dpkg", "-i", *self.debs)
        self.machine.say("usermod", "-aG", "pasid", "alice")
        self.assertEqual(self.machine.state("pasidd.socket"), "active")
        for unit in ("pasidd", "pasid-refgpu"):
            self.assertEqual(self.machine.state(unit), "inactive")
            self.assertEqual(self.machine.show(unit, "UnitFileState"), "disabled")
        self.assertEqual(self.machine.show("pasidd.socket", "UnitFileState"), "enabled")
        self.assertEqual(self.machine.say("stat", "-c", "%A %U %G", rig.SOCKET).split(), ["srw-rw----", "root", "pasid"])
        self.assertEqual(self.machine.say("stat", "-c", "%A %U %G", "/run/pasidd").split(), ["drwxr-xr-x", "root", "root"])

    def test_2_no_device_is_touched(self):
        """Whoever connects starts the daemon, which has no devices, and no file of any open."""
        self.assertEqual(json.loads(self.client("devices").stdout), [])
        self.assertEqual(self.machine.state("pasidd"), "active")
        pid = self.machine.main_pid("pasidd")
        links = self.machine.say("find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\n").split()
        self.assertEqual([link for link in links if link.startswith("/dev/") and link != "/dev/null"], [])
        self.machine.await_journal("pasidd", "no devices")

    def test_3_again(self):
        """The same packages over themselves: the daemon is restarted, the socket is not; a changed configuration stays."""
        self.configure(devices=[], limits={"uid": {"contexts": 7}})
        daemon, since = self.machine.main_pid("pasidd"), self.machine.show("pasidd.socket", "ActiveEnterTimestampMonotonic")
        self.machine.say("dpkg", "-i", *self.debs)
        self.assertNotEqual(self.machine.main_pid("pasidd"), daemon)
        self.assertEqual(self.machine.state("pasidd"), "active")
        self.assertEqual(self.machine.show("pasidd.socket", "ActiveEnterTimestampMonotonic"), since)
        self.assertIn('"contexts": 7', self.machine.path(rig.CONFIG).read_text())
        self.client("devices")

    def test_4_remove(self):
        """Everything ends, what the daemon left with process 1 too, and but for the configuration everything goes."""
        self.client("devices")
        self.assertGreater(int(self.machine.show("pasidd", "NFileDescriptorStore")), 0)
        self.assertGreater(self.kept(), 0)
        self.machine.say("systemctl", "start", "pasid-refgpu")
        names = [os.path.basename(path).split("_")[0] for path in self.debs]
        self.machine.say("dpkg", "--remove", *names)
        for unit in ("pasidd.socket", "pasidd", "pasid-refgpu"):
            self.assertEqual(self.machine.state(unit), "inactive")
        self.assertEqual(self.kept(), 0)
        self.assertFalse(self.machine.path(rig.SOCKET).exists())
        self.assertEqual(self.machine.processes("pasid"), [])
        self.assert_left(*CONFIGURATION)

    def test_5_purge(self):
        names = [os.path.basename(path).split("_")[0] for path in self.debs]
        self.machine.say("dpkg", "--purge", *names)
        self.assert_left()
        self.machine.say("systemctl", "daemon-reload")
        self.assertEqual(self.machine.say("systemctl", "list-units", "--all", "--plain", "--no-legend", "*pasid*"), "")
        self.assertEqual(self.machine.say("systemctl", "--failed", "--plain", "--no-legend"), "")


class Upgrade(rig.Case):
    """To a later version and back, while clients come and go. Who has a context keeps it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.configure(devices=[rig.GPU])
        cls.start_gpu()
        cls.client(cls, "devices", "1")
        cls.now, cls.later = cls.packages()

    def version(self):
        return self.machine.say("dpkg-query", "--show", "--showformat=${Version}", "pasidd")

    def test_upgrade_and_downgrade(self):
        before, socket = self.version(), self.machine.show("pasidd.socket", "ActiveEnterTimestampMonotonic")
        owner = rig.Owner(self, "socket", user="bob")
        visitors = self.machine.popen("python3", "/opt/guest/visitors.py", user="alice", text=True, stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(visitors.stdout.close)
        self.assertEqual(visitors.stdout.readline(), "begun\n")
        for packages, version in ((self.later, f"{before}+later"), (self.now, before)) * 2:
            daemon = self.machine.main_pid("pasidd")
            self.machine.say("dpkg", "--install", *packages)
            self.assertEqual(self.version(), version)
            self.assertNotIn(self.machine.main_pid("pasidd"), (0, daemon))
            self.client("devices", "1")
            self.client("fill")
            self.assertTrue(owner.works(), version)
        visitors.stdin.close()
        said = visitors.stdout.read()
        self.assertEqual(visitors.wait(machine.COMMAND_SECONDS), 0, said)
        said = json.loads(said)
        self.assertGreater(said["served"], 0)
        self.assertEqual(said["cut"], 0)
        self.assertEqual(self.machine.show("pasidd.socket", "ActiveEnterTimestampMonotonic"), socket)
        self.assertEqual(self.machine.show("pasidd", "Result"), "success")
        print(f"figure: while packages were exchanged four times, {said['served']} clients were served, {said['cut']} cut off",
              flush=True)


if __name__ == "__main__":
    unittest.main()
