# SPDX-License-Identifier: MIT
"""Connections that came over the bus outlive a daemon, and belong to whom they did."""

import os
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dbus_client  # noqa: E402
import dbus_stack  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import survive  # noqa: E402
from dbus_stack import OWNER, STRANGER  # noqa: E402

CONTEXTS = 3  # that OWNER may have
LIMITS = {**survive.LIMITS, "uids": [{"uid": OWNER, "limits": {"contexts": CONTEXTS}}]}


class BusStack(dbus_stack.BusStack, survive.Stack):
    pass


@unittest.skipIf(os.geteuid(), "other users take root")
class Surviving(unittest.TestCase):
    def setUp(self):
        if subprocess.run(["which", "dbus-daemon"], stdout=subprocess.DEVNULL, check=False).returncode:
            raise unittest.SkipTest("there is no dbus-daemon")
        self.stack = BusStack(limits=LIMITS)
        self.addCleanup(self.stack.stop)
        self.stack.__enter__()
        with self.stack.connect() as c:
            self.stack.await_device(c)
        self.await_name()

    def await_name(self):
        with dbus_client.Bus(self.stack.bus_socket) as bus:
            harness.wait_until(lambda: bus.call(*dbus_client.DRIVER, "NameHasOwner", "s", "org.pasidd"),
                               "the daemon's name on the bus")

    def kill_daemon(self):
        self.stack.kill_daemon()
        self.await_name()

    def pasidd(self, uid):
        bus = dbus_client.Bus(self.stack.bus_socket, uid)
        self.addCleanup(bus.close)
        return dbus_client.Pasidd(bus)

    def connection(self, pasidd):
        client = pc.Client.__new__(pc.Client)
        client.sock = socket.socket(fileno=pasidd.manager("OpenConnection"))
        client.sock.settimeout(30)
        client.serial, client.events, client.lines, client.fences = 1, [], {}, None
        client.hello()
        self.addCleanup(client.close)
        return client

    def test_a_connection_stays_its_owners(self):
        """Its contexts count for the uid that asked for it, also for a successor, which sees but a pair of sockets."""
        pasidd = self.pasidd(OWNER)
        client = self.connection(pasidd)
        held = [client.ctx_new() for _ in range(CONTEXTS)]
        for _ in range(3):
            with self.assertRaises(pc.Refused) as caught:
                client.ctx_new()
            self.assertEqual((caught.exception.code, caught.exception.n1, caught.exception.n2),
                             (-122, CONTEXTS, CONTEXTS))
            path = f"/org/pasidd/context/{held[0]}"
            self.assertEqual(pasidd.get(path, "OwnerUid"), OWNER)
            with self.assertRaises(dbus_client.Error):
                self.pasidd(STRANGER).get(path, "OwnerUid")
            self.kill_daemon()
            client.ctx_free(held.pop())
            held.append(client.ctx_new())


if __name__ == "__main__":
    unittest.main()
