# SPDX-License-Identifier: MIT
"""The system bus: its policy, and what busctl can do as whom; and a configuration that is read again."""

import json
import unittest

import machine
import rig

MANAGER = ("org.pasidd", "/org/pasidd", "org.pasidd.Manager1")
DENIED, LIMIT = "Access denied", 2
BAD = '{"devices": [{"name": "gpu0", "sepc": "vfio-user:/x"}]}'


class Bus(rig.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.start_gpu()

    def setUp(self):
        self.configuration()
        if self.machine.state("pasidd") == "active":
            self.machine.say("systemctl", "reload", "pasidd")

    def configuration(self, limit=LIMIT):
        bob = int(self.machine.say("id", "-u", "bob"))
        self.configure(devices=[rig.GPU], admin_group="adm", limits={"uids": [{"uid": bob, "limits": {"contexts": limit}}]})

    def ready(self):
        self.client("devices", "1")

    def busctl(self, *argv, user=None):
        """What it says, and whether it was content."""
        done = self.machine.run("busctl", "--system", *argv, user=user, check=False)
        return done.stdout.strip(), done.returncode == 0

    def get(self, name, user=None):
        return self.busctl("get-property", *MANAGER, name, user=user)

    def test_activation(self):
        """Whoever asks for its name starts the daemon, and looks at it."""
        self.machine.say("systemctl", "stop", "pasidd")
        version = self.machine.say("pasidd", "--version").split()[1]
        self.assertEqual(self.get("Version", user="eve"), (f's "{version}"', True))
        self.assertEqual(self.machine.state("pasidd"), "active")

    def test_nobody_else_is_org_pasidd(self):
        for user in ("alice", "eve"):
            said, ok = self.busctl("call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", "org.pasidd",
                                   "0", user=user)
            self.assertFalse(ok)
            self.assertRegex(said, f"{DENIED}|not allowed to own")

    def test_a_stranger(self):
        """Who is not in the group looks, and gets nothing."""
        self.ready()
        owner = rig.Owner(self)
        self.assertNotIn(owner.path, self.busctl("--list", "tree", "org.pasidd", user="eve")[0])
        self.assertIn("/org/pasidd/device/gpu0", self.busctl("--list", "tree", "org.pasidd", user="eve")[0])
        for member in (("OpenConnection",), ("CreateContext", "sa{sv}", "", "0")):
            said, ok = self.busctl("call", *MANAGER, *member, user="eve")
            self.assertFalse(ok)
            self.assertIn(DENIED, said)
        for call in ((*MANAGER, "Reload"), ("org.pasidd", "/org/pasidd/device/gpu0", "org.pasidd.Device1", "Reset")):
            self.assertFalse(self.busctl("call", *call, user="eve")[1])
        said, ok = self.busctl("call", "org.pasidd", owner.path, "org.pasidd.Context1", "Close", user="eve")
        self.assertFalse(ok)
        self.assertIn("there is no object", said)
        self.assertTrue(owner.works())

    def test_owner_and_others(self):
        """A context is seen by its uid and by root, and closed by root alone."""
        self.ready()
        for where in ((), ("socket",)):
            owner = rig.Owner(self, *where)
            for user, sees in (("alice", True), (None, True), ("bob", False)):
                self.assertEqual(owner.path in self.busctl("--list", "tree", "org.pasidd", user=user)[0].split(), sees, user)
            get = ("get-property", "org.pasidd", owner.path, "org.pasidd.Context1")
            uid = self.machine.say("id", "-u", "alice").strip()
            self.assertEqual(self.busctl(*get, "OwnerUid", user="alice"), (f"u {uid}", True))
            close = ("call", "org.pasidd", owner.path, "org.pasidd.Context1", "Close")
            self.assertFalse(self.busctl(*close, user="alice")[1])
            self.assertTrue(owner.works())
            self.assertTrue(self.busctl(*close)[1])
            self.assertFalse(owner.works())

    def test_whose_unit(self):
        """Whose a context is, by the unit that its program runs in."""
        self.ready()
        self.machine.say("systemd-run", "--quiet", "--unit=renderer", "--uid=alice", "--property=StandardInput=null",
                         "sh", "-c", "sleep infinity | python3 /opt/guest/owner.py socket")
        self.addCleanup(self.machine.run, "systemctl", "stop", "renderer", check=False)

        def units():
            state = json.loads(json.loads(self.busctl("--json=short", "call", *MANAGER, "GetState")[0])["data"][0])
            return [context["OwnerUnit"] for context in state["contexts"]]

        machine.wait_until(lambda: "renderer.service" in units(), "a context of renderer.service")

    def test_connection_of_the_callers_uid(self):
        """What is opened over the bus is its caller's: with his limits, before and after a restart."""
        for _ in range(2):
            self.ready()
            self.assertEqual(self.client("connection", LIMIT, user="bob").stdout, "ok\n")
            self.assertIn("Refused: code -122", self.client("connection", LIMIT + 1, user="bob", check=False).stdout)
            self.assertEqual(self.client("connection", LIMIT + 1, user="alice").stdout, "ok\n")
            self.machine.say("systemctl", "restart", "pasidd")

    def reload(self):
        """Returns once it was done."""
        before = len(self.machine.journal("pasidd").splitlines())
        self.machine.say("systemctl", "reload", "pasidd")

        def said():
            return [line for line in self.machine.journal("pasidd").splitlines()[before:]
                    if "was read again" in line or "nothing has changed" in line]

        return machine.wait_until(said, "an answer to a reload")

    def test_reload(self):
        """New limits hold at once, and who is there stays; a file that is wrong changes nothing."""
        self.ready()
        pid, owners = self.machine.main_pid("pasidd"), [rig.Owner(self), rig.Owner(self, "socket")]
        self.configuration(LIMIT + 1)
        self.assertIn("the configuration was read again", self.reload()[-1])
        self.assertEqual(self.client("connection", LIMIT + 1, user="bob").stdout, "ok\n")
        self.assertIn("Refused: code -122", self.client("connection", LIMIT + 2, user="bob", check=False).stdout)
        self.machine.write(rig.CONFIG, BAD)
        said = self.reload()[-1]
        self.assertIn('devices[0]: found an unknown key "sepc"', said)
        self.assertIn("nothing has changed", said)
        self.assertIn('unknown key "sepc"', self.machine.show("pasidd", "StatusText"))
        said, ok = self.busctl("call", *MANAGER, "Reload")
        self.assertFalse(ok)
        self.assertIn('unknown key "sepc"', said)
        self.assertEqual(self.client("connection", LIMIT + 1, user="bob").stdout, "ok\n")
        self.assertEqual(self.machine.main_pid("pasidd"), pid)
        self.assertEqual(self.machine.state("pasidd"), "active")
        self.assertTrue(all(owner.works() for owner in owners))

    def test_bus_goes(self):
        """The daemon does without, and its name comes back with the bus."""
        self.ready()
        owner = rig.Owner(self, "socket")
        pid = self.machine.main_pid("pasidd")
        self.machine.say("systemctl", "restart", "dbus")
        self.assertTrue(owner.works())
        machine.wait_until(lambda: self.get("Version")[1], "the daemon on the bus")
        self.assertEqual(self.machine.main_pid("pasidd"), pid)


if __name__ == "__main__":
    unittest.main()
