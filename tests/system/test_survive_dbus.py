# SPDX-License-Identifier: MIT
"""Contexts that were made over D-Bus, and connections that were asked for there, when the daemon is killed."""

import os
import signal
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dbus_stack  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import supervised  # noqa: E402
from dbus_stack import MEMBER, OWNER, STRANGER, DbusTest  # noqa: E402


CONTEXTS = 3  # that MEMBER may have


class BusStack(dbus_stack.BusStack, supervised.Stack):
    pass


class Surviving(DbusTest):
    stack_of = BusStack
    config = {"limits": {"uids": [{"uid": MEMBER, "limits": {"contexts": CONTEXTS}}]}}

    def kill(self):
        self.stack.kill_daemon()
        self.await_name()

    def test_a_context_works_on(self):
        work = self.work(self.pasidd())
        work.run(work.fill(1, 0x11111111))
        self.kill()
        self.assertEqual(work.pasidd.get(work.path, "State"), "ok")
        self.assertEqual(work.pasidd.get(work.path, "Mapped"), 1)
        work.run(work.fill(2, 0x22222222))
        self.assertEqual(bytes(work.view[4096:4100]), b"\x11" * 4)
        self.assertEqual(bytes(work.view[8192:8196]), b"\x22" * 4)
        work.pasidd.unmap(work.path, work.iova, work.size)
        self.assertEqual(work.pasidd.get(work.path, "Mapped"), 0)
        work.pasidd.close(work.path)

    def test_it_ends_with_its_name(self):
        pasidd, looker = self.pasidd(), self.pasidd()
        work = self.work(pasidd)
        self.kill()
        self.assertIn(work.path, looker.objects())
        pasidd.bus.close()
        harness.wait_until(lambda: work.path not in looker.objects(), "the end of the context")

    def test_it_ends_with_a_name_that_went_meanwhile(self):
        pasidd, looker = self.pasidd(), self.pasidd()
        work = self.work(pasidd)
        before = self.stack.manager.starts
        self.stack.manager.kill(signal.SIGSTOP)
        pasidd.bus.close()
        self.stack.manager.kill()
        harness.wait_until(lambda: self.stack.manager.starts > before, "a new daemon")
        self.stack.manager.await_ready(harness.DEADLINE)
        self.await_name()
        harness.wait_until(lambda: work.path not in looker.objects(), "the end of the context")

    def test_strangers_stay_strangers(self):
        owner, stranger = self.pasidd(OWNER), self.pasidd(STRANGER)
        work = self.work(owner)
        for _ in range(2):
            self.unknown(stranger.get, work.path, "State")
            self.refused("AccessDenied", self.pasidd(OWNER).submit, work.path, work.iova, 64)
            self.assertEqual(owner.get(work.path, "OwnerUid"), OWNER)
            self.kill()
        work.run(work.fill(1, 1))

    def test_opaque_stays_opaque(self):
        owner, friend = self.pasidd(OWNER), self.pasidd(OWNER)
        work = self.work(owner, opaque=True)
        self.kill()
        self.unknown(friend.get, work.path, "State")
        self.assertTrue(owner.get(work.path, "Opaque"))

    def test_a_connection_stays_its_owners(self):
        """Its contexts count for the uid that asked for it, also for a successor, which sees but a pair of sockets."""
        root, owner, stranger = self.pasidd(), self.pasidd(MEMBER), self.pasidd(STRANGER)
        with pc.Client(owner.manager("OpenConnection")) as client:
            held = [client.ctx_new() for _ in range(CONTEXTS)]
            for _ in range(3):
                with self.assertRaises(pc.Refused) as caught:
                    client.ctx_new()
                self.assertEqual((caught.exception.code, caught.exception.n1, caught.exception.n2),
                                 (-122, CONTEXTS, CONTEXTS))
                path = f"/org/pasidd/context/{held[0]}"
                self.assertEqual(root.get(path, "OwnerUid"), MEMBER)
                self.assertEqual(owner.get(path, "OwnerUid"), MEMBER)
                self.unknown(stranger.get, path, "OwnerUid")
                self.kill()
                client.ctx_free(held.pop())
                held.append(client.ctx_new())


if __name__ == "__main__":
    unittest.main()
