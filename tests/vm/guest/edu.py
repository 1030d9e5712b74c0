# SPDX-License-Identifier: MIT
"""Work for QEMU's edu device, by a daemon of this guest."""

import os
import struct
import sys

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests/system"))
import pasid_client as pc  # noqa: E402

EDU = (0x1234, 0x11e8)
PAGE = 4096
FILL, COPY = 1, 2
DATA, COMMANDS, LATE = 0x100000, 0x200000, 0x300000


def command(op, value=0, dst=0, src=0, length=0):
    return struct.pack("<IIQQQ", op, value, dst, src, length)


class Space:
    """A context with one page of commands and some of data, always at the same addresses."""

    def __init__(self, client, pages=8):
        self.client = client
        self.ctx = client.ctx_new()
        self.fd, self.data = pc.memfd(pages * PAGE)
        self.cmd_fd, self.cmd = pc.memfd(PAGE)
        self.buf = client.buf_import(self.fd)[0]
        cmd_buf = client.buf_import(self.cmd_fd)[0]
        client.map(self.ctx, self.buf, 0, pages * PAGE, pc.READ | pc.WRITE | pc.FIXED, DATA)
        client.map(self.ctx, cmd_buf, 0, PAGE, pc.READ | pc.FIXED, COMMANDS)

    def run(self, *commands):
        code = b"".join(commands)
        self.cmd[:len(code)] = code
        job = self.client.submit(self.ctx, COMMANDS, len(code))
        assert self.client.wait(self.ctx, job, 30), f"job {job} of context {self.ctx}: {self.client.fence(self.ctx)}"
        return job

    def page(self, n):
        return self.data[n * PAGE:(n + 1) * PAGE]


def a_hundred_switches(test, *spaces):
    """Two contexts in turn: the same IOVAs, different memory; checked after each."""
    for i in range(100):
        space = spaces[i % 2]
        space.data[:PAGE] = struct.pack("<I", 0x01010101 * (i + 1 & 0x7f)) * (PAGE // 4)
        space.data[PAGE:2 * PAGE] = bytes(PAGE)
        space.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        test.assertEqual(space.page(1), space.page(0))
    for space in spaces:
        test.assertGreaterEqual(space.client.ctx_info(space.ctx)["switches"], 50)
