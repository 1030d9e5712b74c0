# SPDX-License-Identifier: MIT
"""A client in a container with uids of its own, which has nothing but the socket: docs/containers.md."""

import json
import unittest

import machine
import rig

FIRST = 524288  # the container's root, as everybody else sees it
LIMIT = 2


class Container(rig.Case):
    """Two machines: the daemon's, and a container of another root, other processes, other users."""

    @classmethod
    def setUpClass(cls):
        cls.tree = cls.enterClassContext(machine.Tree(*cls.layers))
        cls.copy_clients(cls.tree)
        shared = cls.tree.top / "shared"
        shared.mkdir(mode=0o755)
        cls.machine = cls.enterClassContext(machine.Machine(cls.tree, [f"--bind={shared}:/run/pasidd"]))
        cls.configure(devices=[rig.GPU], limits={"uids": [{"uid": FIRST, "limits": {"contexts": LIMIT}}]})
        cls.start_gpu()
        tree = cls.enterClassContext(machine.Tree(rig.ROOT))
        cls.copy_clients(tree)
        cls.container = cls.enterClassContext(machine.Machine(
            tree, [f"--bind-ro={shared}:/run/pasidd", "--private-network"], boots=False, uids=FIRST))

    def inside(self, *argv, **options):
        program, *arguments = argv
        return self.container.run("python3", f"/opt/guest/{program}.py", *arguments, **options)

    def test_1_not_let_in(self):
        """Its root is nobody here, and in no group."""
        self.assertEqual(self.container.say("id", "-u").strip(), "0")
        self.assertIn("PermissionError", self.inside("devices", check=False).stdout)
        self.assertEqual(self.machine.state("pasidd"), "inactive")

    def test_2_let_in(self):
        """By its uid, and as that uid."""
        self.machine.say("setfacl", "-m", f"u:{FIRST}:rw", rig.SOCKET)
        self.assertEqual(json.loads(self.inside("devices", "1").stdout), [["gpu0", 1, 1]])
        self.assertIn("ok, uid 0", self.inside("fill", LIMIT).stdout)
        self.assertIn("PermissionError", self.container.run("setpriv", "--reuid=alice", "--clear-groups", "python3",
                                                            "/opt/guest/devices.py", check=False).stdout)

    def test_3_its_own_limits(self):
        """What it may have is what is configured for its uid as this machine knows it; others may have more."""
        said = self.inside("fill", LIMIT + 1, check=False)
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("Refused: code -122", said.stdout)
        self.client("fill", LIMIT + 1)

    def test_4_by_its_unit(self):
        """The socket is made anew with the machine; a line in its unit has the rule there then, too."""
        self.machine.write("/etc/systemd/system/pasidd.socket.d/container.conf",
                           f"[Socket]\nExecStartPost=/usr/bin/setfacl -m u:{FIRST}:rw {rig.SOCKET}\n")
        self.machine.say("systemctl", "daemon-reload")
        self.machine.say("systemctl", "restart", "pasidd.socket")
        self.inside("fill")


if __name__ == "__main__":
    unittest.main()
