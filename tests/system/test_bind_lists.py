# SPDX-License-Identifier: MIT
"""Bind lists that are carried out in slices, while work begins; and lists that want more than there can be."""

import fcntl
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from work import ATOMIC, COPY, HANG, PAGE, StackTest, command, settled  # noqa: E402

GIB = 1 << 30
SECRET = b"what is only this client's! ".ljust(32)


def bind_body(ctx, ops):
    return struct.pack("<II", ctx, len(ops)) + b"".join(
        struct.pack("<IIIIQQQ", kind, flags, buf, 0, off, iova, length) for kind, flags, buf, off, iova, length in ops)


class Slices(StackTest):
    """One slot: a context that has never run begins to when the one before it ends, in the middle of its long list."""

    devices = [{"slots": 1, "job_limit_ms": 60000, "answer_ms": 5000}]
    AT = 0x7000000000

    def lists_that_are_long(self, big):
        """Maps with so many page tables that they go in slices: 28 times 1 GiB, never aligned to a block."""
        return [(pc.MAP, pc.READ | pc.FIXED, big, 0, 0x100000001000 + i * 2 * GIB, GIB) for i in range(28)]

    def begin_in_the_middle(self, end_of_list):
        """True if the context's first job had begun before its list was answered. Its last operations are given."""
        other, client = self.client(), self.client()
        blocker, space = self.space(other), self.space(client, pages=600, cmd_pages=256)
        fd, page = pc.memfd(PAGE)
        self.addCleanup(os.close, fd)
        self.addCleanup(page.close)
        buf = client.buf_import(fd)[0]
        client.map(space.ctx, buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, self.AT)
        big_fd = os.memfd_create("big", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, big_fd)
        os.ftruncate(big_fd, GIB)
        fcntl.fcntl(big_fd, fcntl.F_ADD_SEALS, 2)
        ops = self.lists_that_are_long(client.buf_import(big_fd)[0])
        if not self.warm:
            ctx = client.ctx_new()
            client.bind(ctx, ops)  # the pool is large enough from now on, so that no slice waits for it
            client.ctx_free(ctx)
            self.pool_grew = True
            type(self).warm = True
        blocker.submit(blocker.add_one(), command(HANG))
        harness.wait_until(lambda: blocker.counter, "the slot is taken")
        job = space.submit(*[command(ATOMIC, 1, self.AT), space.copy(300, 10, 256)] * 1500,
                           command(COPY, 0, space.iova + PAGE, self.AT + PAGE, PAGE))
        serial = client.send(pc.BIND, bind_body(space.ctx, ops + end_of_list))
        other.send(pc.CTX_FREE, struct.pack("<II", blocker.ctx, 0))
        client.reply(serial)
        return client, space, job, struct.unpack_from("<Q", page)[0]

    warm = pool_grew = False

    def test_unmap_after_a_first_run_in_between(self):
        with pc.Client(self.stack.socket) as victim:
            fd, view = pc.memfd(512 * PAGE)
            view[:] = SECRET * (len(view) // len(SECRET))
            ctx, buf = victim.ctx_new(), victim.buf_import(fd)[0]
            victim.map(ctx, buf, 0, PAGE, pc.READ | pc.FIXED, 0x40000000)
            begun = 0
            for _ in range(20):
                client, space, job, begun = self.begin_in_the_middle([(pc.UNMAP, 0, 0, 0, self.AT, PAGE)])
                stale = self.stack.status()["stale_hits"]
                # Its table becomes the victim's, who fills it.
                victim.map(ctx, buf, PAGE, 511 * PAGE, pc.READ | pc.FIXED, 0x40200000 + PAGE)
                client.wait(space.ctx, job)
                self.assertEqual(self.stack.status()["stale_hits"], stale, "an old translation was used")
                self.assertNotIn(SECRET, space.page(1))
                victim.unmap(ctx, 0x40200000 + PAGE, 511 * PAGE)
                client.close()
                if begun:
                    break
            self.assertTrue(begun, "the job never began in the middle of the list")
            view.close()
            os.close(fd)

    def tearDown(self):
        if self.pool_grew:  # which stays
            self.doCleanups()
            harness.wait_until(lambda: self.look()["fds"] == self.before["fds"], "the clients are gone")
            self.before = settled(self.look)
        super().tearDown()


class Sums(StackTest):
    most = (1 << 63) - 1
    config = {"limits": {"connection": {"bytes": most}, "uid": {"bytes": most}, "total_bytes": most}}

    def test_more_tables_than_a_number_holds(self):
        client = self.client()
        size = 1 << 44
        fd = os.memfd_create("sparse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 2)
        buf, ctx = client.buf_import(fd)[0], client.ctx_new()
        at = 0x100000001000
        ops = [(pc.MAP, pc.READ | pc.FIXED, buf, 0, at, size), (pc.UNMAP, 0, 0, 0, at, size)] * 511
        with self.assertRaises(pc.Refused) as caught:
            client.bind(ctx, ops)
        self.assertEqual(caught.exception.reason, 132)
        self.assertGreater(caught.exception.n1, 1 << 32)
        self.assertEqual(client.ctx_info(ctx)["mappings"], 0)


if __name__ == "__main__":
    unittest.main()
