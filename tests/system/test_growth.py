# SPDX-License-Identifier: MIT
"""A million mappings of 4 KiB live at once, in one context and over 1,000: all of them are there, the GPU reaches
through them what it should, and everything ends where it began. How long it takes is not
judged here (tests/bench does that).
"""

import fcntl
import os
import struct
import unittest

import harness
import pasid_client as pc
from pasid_client import Client

PAGE = 4096
MILLION = 1000000
LIST = 1000      # operations in a message
CHUNK = 1024 * PAGE  # by which the pool of table pages grows
BUF_PAGES = 1024
IOVA = 0x10000000
FIRST, LAST = 0x1111_0000, 0x2222_0000  # what the GPU writes to the first and the last mapping of a context
FILL = 1

MANY = 1 << 50
LIMITS = {"contexts": 1024, "buffers": 64, "mappings": MILLION + 4096, "bytes": MANY, "huge": 0, "tables": MANY,
          "jobs": 1024, "rate": MANY}
CONFIG = {"limits": {"total_bytes": MANY, "connection": LIMITS, "uid": {"connections": 64, **LIMITS}}}

LONG = 8 << 30
AT = [(i << 37) + PAGE for i in (1, 2, 3)]  # a page beside where blocks would fit: 4096 tables each

OP = struct.Struct("<IIIIQQQ")


def iova_of(i):
    return IOVA + 2 * i * PAGE  # every second page, so that no two can merge


def offset_of(i):
    return i * 7 % (BUF_PAGES - 1) * PAGE


class TestGrowth(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = harness.Stack([{"table_pages": 1 << 18}], CONFIG)
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        with Client(cls.stack.socket) as c:
            cls.stack.await_device(c)
        cls.stack.await_rest()

    def setUp(self):
        self.before = self.stack.snapshot()
        self.client = Client(self.stack.socket)
        self.addCleanup(self.await_end)
        self.addCleanup(self.client.close)
        fd, self.data = pc.memfd(BUF_PAGES * PAGE)
        self.addCleanup(self.data.close)
        self.buf = self.client.buf_import(fd)[0]
        os.close(fd)
        self.lists = {}

    def await_end(self):
        """Back to the beginning, but for the pool of table pages: what it has grown by stays the device's, in whole
        chunks, for whoever comes next."""
        def ended():
            now = self.stack.snapshot()
            chunks = now["dma_maps"] - self.before["dma_maps"]
            expected = {**self.before, "dma_maps": now["dma_maps"],
                        "dma_bytes": self.before["dma_bytes"] + chunks * CHUNK}
            return 0 <= chunks <= 20 and now == expected  # 20: what 12,288 tables, or a million mappings, need and some

        harness.wait_until(ended, f"back to the beginning: {self.before}")

    def ops(self, kind, first, n):
        """Operations on the mappings first..first+n-1 as bytes: the same for every context, so kept."""
        key = (kind, first, n)
        if key not in self.lists:
            flags, buf = (pc.READ | pc.WRITE | pc.FIXED, self.buf) if kind == pc.MAP else (0, 0)
            self.lists[key] = b"".join(
                OP.pack(kind, flags, buf, 0, offset_of(i) if kind == pc.MAP else 0, iova_of(i), PAGE)
                for i in range(first, first + n))
        return self.lists[key]

    def bind(self, kind, ctx, n):
        for first in range(0, n, LIST):
            count = min(LIST, n - first)
            self.client.call(pc.BIND, struct.pack("<II", ctx, count) + self.ops(kind, first, count))

    def counted(self, ctx, n):
        info = self.client.ctx_info(ctx)
        self.assertEqual((info["mappings"], info["mapped_bytes"]), (n, n * PAGE))
        return info

    def write_through(self, ctx, i, value):
        """The GPU fills mapping i; its commands are in the buffer's last page, mapped for the moment."""
        command = struct.pack("<IIQQQIIII16x", FILL, value, iova_of(i), 0, PAGE, 0, 0, 0, 0)
        at = (BUF_PAGES - 1) * PAGE
        self.data[at:at + 64] = command
        self.data[offset_of(i):offset_of(i) + PAGE] = bytes(PAGE)
        iova = self.client.map(ctx, self.buf, at, PAGE, pc.READ)
        self.assertTrue(self.client.wait(ctx, self.client.submit(ctx, iova, 64)))
        self.client.unmap(ctx, iova, PAGE)
        self.assertEqual(self.data[offset_of(i):offset_of(i) + PAGE], struct.pack("<I", value) * (PAGE // 4))
        self.assertIsNone(self.client.next_event())

    def live(self, contexts):
        each = MILLION // contexts
        ctxs = [self.client.ctx_new() for _ in range(contexts)]
        for ctx in ctxs:
            self.bind(pc.MAP, ctx, each)
        for ctx in ctxs:
            self.counted(ctx, each)
        # Now a million are live. A few contexts say enough about how the GPU sees them.
        for ctx in ctxs[::max(1, contexts // 10)]:
            self.write_through(ctx, 0, FIRST + ctx % 1000)
            self.write_through(ctx, each - 1, LAST + ctx % 1000)
        return ctxs, each

    def test_one_context(self):
        (ctx,), n = self.live(1)
        self.bind(pc.UNMAP, ctx, n)
        # What stays is the root, and what unmaps of whole tables may keep for later.
        self.assertLess(self.counted(ctx, 0)["table_bytes"], 64 * PAGE)
        self.bind(pc.MAP, ctx, n)  # as many again, and freed with the context this time
        self.client.ctx_free(ctx)
        self.client.buf_free(self.buf)

    def test_1000_contexts(self):
        ctxs, each = self.live(1000)
        for ctx in ctxs[:10]:
            self.bind(pc.UNMAP, ctx, each)
            self.counted(ctx, 0)
        for ctx in ctxs[10:500]:
            self.client.ctx_free(ctx)
        # The other half goes with the connection.

    # A list so long that it is carried out in slices.

    def long_list(self):
        fd = os.memfd_create("long", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, LONG)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        buf = self.client.buf_import(fd)[0]
        ctx = self.client.ctx_new()
        ops = [OP.pack(pc.MAP, pc.READ | pc.WRITE | pc.FIXED, buf, 0, 0, at, LONG) for at in AT]
        return fd, ctx, struct.pack("<II", ctx, len(ops)) + b"".join(ops)

    def fill(self, ctx, iova, value):
        at = (BUF_PAGES - 1) * PAGE
        self.data[at:at + 64] = struct.pack("<IIQQQIIII16x", FILL, value, iova, 0, PAGE, 0, 0, 0, 0)
        where = self.client.map(ctx, self.buf, at, PAGE, pc.READ)
        self.assertTrue(self.client.wait(ctx, self.client.submit(ctx, where, 64)))
        self.client.unmap(ctx, where, PAGE)

    def test_slices(self):
        fd, ctx, body = self.long_list()
        with Client(self.stack.socket) as other:
            serial = self.client.send(pc.BIND, body)
            for _ in range(10):
                other.devices()
            self.client.reply(serial)
        info = self.client.ctx_info(ctx)
        self.assertEqual((info["mappings"], info["mapped_bytes"]), (3, 3 * LONG))
        self.assertGreater(info["table_bytes"], 3 * 4096 * PAGE)
        # Both sides of where slices and tables end.
        for i, at in enumerate(AT):
            for off in (0, (1 << 30) - 2 * PAGE, (1 << 30) - PAGE, 1 << 30, (5 << 30) + PAGE, LONG - PAGE):
                value = 0x1000000 * (i + 1) + off // PAGE
                self.fill(ctx, at + off, value)
                self.assertEqual(os.pread(fd, PAGE, off), struct.pack("<I", value) * (PAGE // 4), hex(at + off))
        self.assertIsNone(self.client.next_event())
        for at in AT:
            self.client.unmap(ctx, at, LONG)
        self.fill(ctx, AT[1] + (3 << 30), 1)
        self.assertEqual(self.client.next_event(10)[0], pc.EV_FAULT)
        self.client.ctx_free(ctx)

    def test_end_between_slices(self):
        _, _, body = self.long_list()
        self.client.send(pc.BIND, body)
        self.client.close()


if __name__ == "__main__":
    unittest.main()
