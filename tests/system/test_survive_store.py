# SPDX-License-Identifier: MIT
"""What a successor finds is not what was left: fds are missing, or there twice, or something else; the journal is cut, damaged,
empty, or written by a newer daemon. Nobody's memory is ever mapped wrong: contexts are kept, or declared lost to their owners."""

import contextlib
import fcntl
import os
import random
import select
import signal
import socket
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import survive  # noqa: E402
import work  # noqa: E402
from journal_file import AREA_BYTES, HEAD_BYTES, Journal, PUBLISHED  # noqa: E402

FLIPS = 12
JOURNAL_SLACK = 128 << 10
QUOTA_STORE = 135  # protocol.h


class Hostile(unittest.TestCase):
    def setUp(self):
        print(f"# seed {work.SEED}")
        self.random = random.Random(work.SEED)
        self.stack = survive.Stack([{"job_limit_ms": 60000}])
        self.addCleanup(self.stack.stop)
        self.stack.__enter__()
        self.store = self.stack.manager.store
        self.rigs = []

    def rig(self):
        rig = survive.Rig(self.stack)
        self.addCleanup(rig.close)
        self.rigs.append(rig)
        return rig

    def fd(self, sign):
        return next(fd for name, fd in self.store.entries if name[0] == sign)

    def remove(self, sign):
        self.store.remove_if(lambda name, _: name[0] == sign)

    def put(self, name, fd):
        """Not as a daemon would: that a file is there already does not matter."""
        self.store.entries.append((name, fd))

    def replace(self, sign, fd):
        name = next(name for name, _ in self.store.entries if name[0] == sign)
        self.remove(sign)
        self.put(name, fd)

    def after(self, meanwhile, *fates):
        """One successor finds that; it does not crash, the contexts have one of these fates, and whoever comes now is served."""
        starts = self.stack.manager.starts
        self.stack.kill_and(meanwhile)
        rigs, self.rigs = self.rigs, []
        for rig in rigs:
            fate = rig.fate()
            self.assertIn(fate, fates, self.stack.log_tail())
            rig.close()
        rig = self.rig()
        self.assertEqual(self.stack.manager.starts, starts + 1, self.stack.log_tail())
        self.assertEqual(rig.fate(), "kept")

    def await_back(self, before):
        for rig in self.rigs:
            rig.close()
        try:
            harness.wait_until(lambda: self.stack.everything() == before, "back to the beginning")
        except harness.HarnessError:
            self.fail(f"before {before}, after {self.stack.everything()}\n{self.stack.log_tail()}")

    # ---- fds ----

    def test_nothing_is_wrong(self):
        self.rig()
        self.after(lambda: None, "kept")

    def test_no_journal(self):
        self.rig()
        self.rig()
        self.after(lambda: self.remove("="), "told")
        self.assertTrue(self.stack.said("all its contexts are lost"))

    def test_nothing_at_all(self):
        """As after a unit that failed for good."""
        self.rig().client.sock.settimeout(1)
        self.after(lambda: self.store.remove_if(lambda *_: True), "gone")

    def test_no_count_of_tries(self):
        self.rig()
        self.after(lambda: self.remove("#"), "kept")

    def test_no_device(self):
        self.rig()
        self.after(lambda: self.remove("%"), "lost", "gone")

    def test_no_vault(self):
        self.rig()
        self.after(lambda: self.remove("+"), "lost", "gone")

    def test_a_connection_is_missing(self):
        before = self.stack.rest()
        missing, other = self.rig(), self.rig()
        names = [name for name, _ in self.store.entries if name[0] == "@"]
        self.stack.kill_and(lambda: self.store.remove_if(lambda name, _: name == names[0]))
        self.assertEqual(sorted((missing.fate(), other.fate())), ["gone", "kept"])
        self.await_back(before)

    def test_more_than_there_was(self):
        """Names that are taken, of every kind, and of none."""
        def put():
            for name in [name for name, _ in self.store.entries] + ["=zzz", "#zzz", "@zzz", "%zzz", "+zzz", "gpu9", "x"]:
                self.put(name, os.memfd_create("extra"))

        self.rig()
        before = self.stack.manager.names()
        self.after(put, "kept")
        for name in ("@zzz", "%zzz", "+zzz"):
            harness.wait_until(lambda: name not in self.stack.manager.names(), f"{name} is dropped")
        self.assertTrue(set(before) - {"+000"} <= set(self.stack.manager.names()) | {n for n in before if n[0] == "@"})

    def test_something_else(self):
        """Instead of each kind of fd: a file that is none of what it should be."""
        def files():
            pair = socket.socketpair()
            pair[1].close()
            reading, writing = os.pipe()
            os.close(writing)
            yield pair[0].detach()
            yield reading
            yield os.open("/dev/null", os.O_RDWR)
            yield os.open("/", os.O_RDONLY)
            yield os.memfd_create("empty")

        for sign in "=#@%+":
            for fd in files():
                self.rig()
                self.after(lambda: self.replace(sign, fd), "gone", "lost", "told", *(["kept"] if sign == "#" else []))

    # ---- the journal ----

    def journal(self):
        return Journal(self.fd("="))

    def test_it_stays_short_while_a_list_is_open(self):
        """A list waits for work that does not end. Whatever others do meanwhile, the journal stays below twice what is there,
        and the list is in it: its owner's tables are what they were before, as far as a successor can tell."""
        thief, other = self.rig(), self.rig()
        place, flags = (thief.space.iova, thief.space.size), pc.READ | pc.WRITE | pc.FIXED
        thief.space.submit(thief.space.fill(1, 7), work.command(work.HANG, value=work.HANG_OBEYS_RESET))
        harness.wait_until(lambda: thief.space.data[work.PAGE] == 7, "work that does not end")
        thief.client.send(pc.BIND, struct.pack("<II", thief.space.ctx, 2) +
                          struct.pack("<IIIIQQQ", pc.UNMAP, 0, 0, 0, 0, *place) +
                          struct.pack("<IIIIQQQ", pc.MAP, flags, thief.space.buf, 0, 0, *place))
        first, begun = self.journal().first, 0
        while begun < 3:
            for _ in range(20):
                other.client.unmap(other.space.ctx, other.client.map(other.space.ctx, other.space.buf, 0, work.PAGE), work.PAGE)
            journal = self.journal()
            begun += journal.first != first
            first = journal.first
            self.assertLess(journal.end - journal.first, 2 * journal.snapshot_bytes + JOURNAL_SLACK)
        self.assertFalse(select.select([thief.client.sock], [], [], 0)[0], "the list was not open all the time")
        self.rigs.remove(other)
        self.after(lambda: None, "lost")
        self.assertEqual(other.fate(), "kept")

    def test_cut_short(self):
        def cut(where):
            journal = self.journal()
            fd = os.memfd_create("cut", os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, os.fstat(journal.fd).st_size)
            os.pwrite(fd, journal.map[:HEAD_BYTES], 0)
            os.pwrite(fd, journal.map[journal.first:where], journal.first)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.fcntl(journal.fd, fcntl.F_GET_SEALS))
            self.replace("=", fd)

        for part in (0, 0.5, 0.9):
            self.rig()
            self.after(lambda: cut(self.journal().first + int(part * (self.journal().end - self.journal().first))), "told")

    def test_empty(self):
        for size in (0, 4096, HEAD_BYTES + 2 * AREA_BYTES):
            fd = os.memfd_create("empty")
            os.ftruncate(fd, size)
            self.rig()
            self.after(lambda: self.replace("=", fd), "told")

    def test_a_flipped_bit(self):
        """Any, of the entries or of what says how far they go."""
        for n in range(FLIPS):
            def flip():
                journal = self.journal()
                where = PUBLISHED if n % 4 == 0 else self.random.randrange(journal.first, journal.end)
                journal.flip(8 * where + self.random.randrange(64 if n % 4 == 0 else 8))

            self.rig()
            self.after(flip, "told")

    def test_from_the_future(self):
        """Its contexts are kept for the one who understands them; nobody is served meanwhile."""
        rig = self.rig()
        before = sorted(self.stack.manager.names())
        version = self.journal().version
        self.stack.kill_and(lambda: self.journal().set_version(version + 1))
        harness.wait_until(lambda: any("STATUS=keeping the contexts of a newer pasidd" in line
                                       for lines in self.stack.manager.said for line in lines), "it says so")
        serial = rig.client.send(pc.CTX_INFO, struct.pack("<II", rig.space.ctx, 0))
        waiting = pc.Client(self.stack.socket, hello=False)
        self.addCleanup(waiting.close)
        hello = waiting.send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
        for client in (rig.client, waiting):
            client.sock.settimeout(0.3)
            with self.assertRaises(TimeoutError):
                client.receive_raw()
            client.sock.settimeout(30)
        self.assertFalse(rig.space.lost)
        self.assertEqual(sorted(self.stack.manager.names()), before)
        self.stack.kill_and(lambda: self.journal().set_version(version))
        rig.client.reply(serial)
        os.close(waiting.reply(hello)[1][0])
        self.assertEqual(rig.fate(), "kept")

    # ---- crashes ----

    def test_no_room_for_connections(self):
        """A quarter of the store is not theirs. Who comes too late is told so, and those that are there go on."""
        self.store.maximum = room = 24
        self.stack.kill_daemon()
        first = self.rig()
        with contextlib.ExitStack() as clients, self.assertRaises(pc.Refused) as refused:
            for _ in range(room):
                clients.enter_context(self.stack.connect())
        self.assertEqual((refused.exception.reason, refused.exception.n2), (QUOTA_STORE, room - room // 4))
        self.assertEqual(self.stack.said("raise FileDescriptorStoreMax=")[0].count(f"keeps {room - room // 4} fds"), 1)
        self.stack.kill_daemon()
        self.assertEqual(first.fate(), "kept")

    def test_three_crashes_in_a_row(self):
        """Of processes that do not get to the end of taking over."""
        rig = self.rig()
        gpu, manager = self.stack.gpus[0], self.stack.manager
        gpu.send_signal(signal.SIGSTOP)
        harness.await_stopped(gpu)
        self.stack.kill_daemon()
        for n in range(3):
            self.assertFalse(rig.space.lost)
            starts = manager.starts
            manager.kill(signal.SIGABRT)
            harness.wait_until(lambda: manager.starts > starts, "a successor")
            manager.await_ready(harness.DEADLINE)
        gpu.send_signal(signal.SIGCONT)
        self.assertEqual(rig.fate(), "told")
        self.assertTrue(self.stack.said("3 by crashing"), self.stack.log_tail())
        self.assertEqual(self.rig().fate(), "kept")


if __name__ == "__main__":
    unittest.main()
