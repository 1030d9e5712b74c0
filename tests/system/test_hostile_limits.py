# SPDX-License-Identifier: MIT
"""Clients that do not read, that are killed in the middle, and that are many."""

import os
import select
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pasid_client as pc  # noqa: E402
from harness import wait_until  # noqa: E402
from hostile import (FILL, MIB, PAGE, STEPS, HostileCase, Victim, Workspace, command, is_dropped,  # noqa: E402
                     raise_nofile)

CONNECTIONS = 1000


class Deaf(HostileCase):
    devices = [{"job_limit_ms": 20000}]

    def stuff(self, client, fds=()):
        """Sends requests until the socket takes no more, for half a second; reads nothing."""
        client.sock.setblocking(False)
        while select.select([], [client.sock], [], 0.5)[1]:
            try:
                while True:
                    client.send(pc.DEVICES, b"", fds)
            except BlockingIOError:
                client.serial -= 1  # that one was not sent
        return time.monotonic()

    def test_clients_that_never_read(self):
        """Who does not read replies is dropped after 5 s; who does not read events loses detail and nothing else."""
        quiet = self.connect()
        w = Workspace(self, quiet, 16 * MIB, 4 * PAGE)
        # Long enough that all replies are read before the first fault.
        length = w.put(*[command(FILL, i, w.iova, length=16 * MIB) for i in range(60)] * 3, command(0))
        w.submit(length)
        serials = []
        for i in range(900):
            body = struct.pack("<IIQQ", w.ctx, 0, (1 << 40) + 64 * i, 64)  # not mapped
            serials.append(quiet.send(pc.SUBMIT, body))
            if len(serials) == 16:
                quiet.reply(serials.pop(0))
        for serial in serials:
            quiet.reply(serial)
        early = sum(struct.unpack_from("<IIQ", body)[1] for _, body in quiet.events)
        early += sum(struct.unpack_from("<IIQ", body)[2] for _, body in quiet.events)
        quiet.events.clear()
        deaf = [self.connect() for _ in range(4)]
        fd = self.memory(PAGE)[0]
        began = [self.stuff(c, [fd] * (i % 2 * 20)) for i, c in enumerate(deaf)]
        fds = self.stack.fds()
        for c, since in zip(deaf, began):
            wait_until(lambda: is_dropped(c), "a client that does not read is dropped", 15)  # noqa: B023
            self.assertGreater(time.monotonic() - since, 4)
        self.assertLess(self.stack.fds(), fds)
        # All jobs have faulted by now, and their events do not fit into the socket of the first client.
        self.assertTrue(quiet.wait(w.ctx, 901))
        self.assertFalse(is_dropped(quiet))
        faults, events, some = early, 0, []
        while faults < 900:
            ctx, dropped, some = quiet.next_fault()
            self.assertEqual(ctx, w.ctx)
            self.assertLessEqual(len(some), 16)
            faults += dropped + len(some)
            events += 1
        self.assertEqual(faults, 900)
        self.assertLess(events, 900)
        self.assertTrue(some, "the first job was done before all others were there")
        self.assertEqual(some[-1][0], 901)  # the newest are never those that were dropped
        self.assertEqual(quiet.ctx_info(w.ctx)["faults"], 900)
        self.assertIsNone(quiet.next_event())

    def test_sends_without_reading_and_goes(self):
        for _ in range(5):
            c = self.connect()
            self.stuff(c, [self.memory(PAGE)[0]])
            c.close()

    def test_reads_at_last(self):
        """Full in both directions, and then it reads after all: every reply comes, in order."""
        c = self.connect()
        self.stuff(c)
        c.sock.settimeout(10)
        for serial in range(2, c.serial):
            c.reply(serial)
        self.assertTrue(c.devices())


class Killed(HostileCase):
    devices = [{"job_limit_ms": 1000}]

    def test_killed_at_every_step(self):
        victims = [Victim(self.stack.socket, step) for step in range(1, STEPS + 1)]
        states = [v.state for v in victims]
        self.addCleanup(lambda: [v.kill() for v in victims if v.process.poll() is None])
        for victim in victims:
            victim.kill()
            self.assertIsNone(self.stack.daemon.poll())
        self.assertEqual((states[0], states[-1], len(set(states))), ("connected", "the end", STEPS))

    def test_killed_together(self):
        """Many at the same step at once, with work of each in flight."""
        for step in (4, 9, 10, 12):
            victims = [Victim(self.stack.socket, step) for _ in range(3)]
            for victim in victims:
                victim.process.kill()
            for victim in victims:
                victim.kill()


class Much(HostileCase):
    """A client that leaves much behind, all at once."""

    devices = [{"slots": 8}]
    crowd = 2 * (2000 * 1024 + 256 * 8192)  # buffers, and contexts with a slab of mappings each

    def test_the_device_is_not_lost_by_what_is_left_to_do(self):
        innocent = self.connect()
        w = Workspace(self, innocent)
        page, greedy = self.sparse(PAGE), [pc.Client(self.stack.socket) for _ in range(2)]
        for c in greedy:
            buf = c.buf_import(page)[0]
            contexts = [c.ctx_new() for _ in range(256)]
            for ctx in contexts:
                c.map(ctx, buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, 1 << 20)
            jobs = [(ctx, c.submit(ctx, 1 << 20, 64)) for ctx in contexts]  # nothing to do, but it ran
            for ctx, job in jobs:
                self.assertTrue(c.wait(ctx, job))
            for _ in range(2000):
                c.buf_import(page)
        for c in greedy:
            c.close()
        wait_until(lambda: self.snapshot()["dma_maps"] < 100, "all is given back", 30)
        self.assertTrue(innocent.wait(w.ctx, w.submit(w.put(command(FILL, 1, w.iova, length=PAGE)))))
        self.assertEqual(self.stack.status()["clients"], 1)
        innocent.close()
        rest = self.stack.await_rest()
        self.assertEqual(rest["fds"], self.before["fds"])
        # The table pool never shrinks: at most two more chunks of it, and four tables for each context that there was.
        self.assertLessEqual(rest["dma_maps"], self.before["dma_maps"] + 2)
        self.shared += 2 * 256 * 4 * PAGE
        self.before = self.snapshot()


class Many(HostileCase):
    connections = CONNECTIONS
    config = {"limits": {"uid": {"connections": CONNECTIONS + 100, "contexts": 4000}}}

    def test_a_thousand_connections(self):
        clients = [self.connect() for _ in range(CONNECTIONS)]
        for c in clients:
            c.send(pc.DEVICES)
        for c in clients:
            c.reply(c.serial - 1)
        contexts = [c.ctx_new() for c in clients[:100]]
        self.assertEqual(len(set(contexts)), 100)
        for c in clients[::2]:
            c.close()
        self.assertTrue(all(c.devices() for c in clients[1::2]))
        for c in clients[1::2]:
            c.close()

    def test_connections_that_say_nothing(self):
        clients = [self.connect(hello=False) for _ in range(500)]
        self.assert_served()
        for c in clients:
            c.close()

    def test_coming_and_going(self):
        for i in range(500):
            c = self.connect(hello=False)
            if i % 3:
                c.send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
            c.close()


class Quota(HostileCase):
    config = {"limits": {"uid": {"connections": 3}}}

    def test_refused_in_numbers(self):
        """Beyond its connections a uid is told so, or just closed; nothing is kept of it."""
        clients = [self.connect(), self.connect()]
        for _ in range(5):
            over = [self.connect(hello=False) for _ in range(100)]
            told = 0
            for c in over:
                try:
                    c.hello()
                except pc.Refused as refused:
                    self.assertEqual(refused.reason, 98)
                    told += 1
                except OSError:
                    pass
                c.close()
            self.assertGreater(told, 0)
        self.assertTrue(all(c.devices() for c in clients))

    def test_refused_and_silent(self):
        clients = [self.connect(), self.connect()]
        over = [self.connect(hello=False) for _ in range(60)]
        over[0].send_raw(b"x", [0, 1, 2])
        self.assert_dropped(over[0])
        poll = select.poll()
        for c in over[1:]:
            poll.register(c.sock, 0)
        wait_until(lambda: len(poll.poll(0)) == 59, "silence is ended", 15)
        self.assertTrue(all(c.devices() for c in clients))


if __name__ == "__main__":
    raise_nofile()
    unittest.main()
