# SPDX-License-Identifier: MIT
"""Work for the reference GPU, and contexts that do it: what tests of slots, hangs and lost devices have in common."""

import os
import random
import struct
import unittest

import harness
import pasid_client as pc

PAGE = 4096
NOP, FILL, COPY, ADD32, ATOMIC, LOAD, STORE, FENCE, BLIT, HANG, SET_TTBR = range(11)
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
LOST_HANG, LOST_DEVICE, LOST_RESET = 1, 2, 3
HANG_OBEYS_STOP, HANG_OBEYS_RESET = 0, 1
CMD_BYTES = 64


def command(op, value=0, dst=0, src=0, length=0):
    return struct.pack("<IIQQQIIIIQQ", op, value, dst, src, length, 0, 0, 0, 0, 0, 0)


class Space:
    """A context with memory: `data`, mapped at `iova`, and commands, a new place for each job.

    The first 8 bytes of the data count the jobs that were carried out; the rest is the test's.
    """

    def __init__(self, client, pages=16, device="", cmd_pages=4):
        self.client = client
        self.device = device
        self.size = pages * PAGE
        self.closers = []
        self.data_fd, self.data = self._memory(self.size)
        self.cmd_fd, self.cmd = self._memory(cmd_pages * PAGE)
        self.buf = client.buf_import(self.data_fd, device)[0]
        self.cmd_buf = client.buf_import(self.cmd_fd, device)[0]
        self.ctx = None
        self.renew()

    def _memory(self, size):
        fd, view = pc.memfd(size)
        self.closers += [view.close, lambda: os.close(fd)]
        return fd, view

    def renew(self):
        """A context with the same buffers: a new one."""
        self.ctx = self.client.ctx_new(self.device)
        self.cmd_at = 0
        self.iova = self.client.map(self.ctx, self.buf, 0, self.size)
        self.cmd_iova = self.client.map(self.ctx, self.cmd_buf, 0, len(self.cmd), pc.READ)

    def close(self):
        for close in self.closers:
            close()
        self.closers = []

    def submit(self, *commands):
        code = b"".join(commands)
        if self.cmd_at + len(code) > len(self.cmd):
            self.cmd_at = 0
        self.cmd[self.cmd_at:self.cmd_at + len(code)] = code
        job = self.client.submit(self.ctx, self.cmd_iova + self.cmd_at, len(code))
        self.cmd_at += len(code)
        return job

    def add_one(self):
        return command(ATOMIC, 1, self.iova)

    def fill(self, page, value, pages=1):
        return command(FILL, value, self.iova + page * PAGE, length=pages * PAGE)

    def copy(self, to_page, from_page, pages=1):
        return command(COPY, 0, self.iova + to_page * PAGE, self.iova + from_page * PAGE, pages * PAGE)

    def long_copy(self, from_page, to_page, pages, times):
        return [self.copy(to_page, from_page, pages)] * times

    @property
    def counter(self):
        return struct.unpack_from("<Q", self.data, 0)[0]

    def page(self, n):
        return self.data[n * PAGE:(n + 1) * PAGE]

    def wait(self, job, timeout=20):
        return self.client.wait(self.ctx, job, timeout)

    @property
    def lost(self):
        return self.client.fence(self.ctx)[1] != 0

    def free(self):
        self.client.ctx_free(self.ctx)

    def free_all(self):
        self.free()
        self.client.buf_free(self.buf)
        self.client.buf_free(self.cmd_buf)


def page_of(value):
    return struct.pack("<I", value) * (PAGE // 4)


def await_loss(client, ctx, timeout=10):
    """The next LOST event of a context, as (why, job). Other events are left for others, in order."""
    passed = []
    try:
        while True:
            event = client.next_event(timeout)
            if event is None:
                raise TimeoutError(f"context {ctx}: no LOST event within {timeout} s, but {passed}")
            if event[0] == pc.EV_LOST and struct.unpack_from("<I", event[1])[0] == ctx:
                return struct.unpack_from("<IQ", event[1], 4)
            passed.append(event)
    finally:
        client.events = passed + client.events


def settled(look, what="nothing changes any more", times=20):
    """What look() gives once it has given the same for a while: whoever came before has left."""
    seen = []

    def same():
        value = look()
        if seen and seen[-1] != value:
            seen.clear()
        seen.append(value)
        return len(seen) >= times

    harness.wait_until(same, what)
    return seen[-1]


class StackTest(unittest.TestCase):
    """Tests that share a Stack. After each, everything is back where it began; after all, whoever is left ends well."""

    devices = [{}]
    config = None

    @classmethod
    def setUpClass(cls):
        print(f"# seed {SEED}")
        cls.stack = harness.Stack(cls.devices, cls.config)
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        with pc.Client(cls.stack.socket) as c:
            for i in range(len(cls.devices)):
                cls.stack.await_device(c, f"gpu{i}")

    def setUp(self):
        self.random = random.Random(SEED)
        self.before = settled(self.look)
        self.counters = self.stack.status()

    def tearDown(self):
        self.doCleanups()
        try:
            harness.wait_until(lambda: self.look() == self.before, "back to the beginning")
        except harness.HarnessError:
            raise AssertionError(f"before {self.before}, after {self.look()}\n{self.stack.log_tail()}") from None

    def look(self):
        """What is the same before and after a test."""
        looks = {"fds": self.stack.fds()}
        for i in range(len(self.stack.gpus)):
            counts = self.stack.gpu_counts(i)
            if counts:
                looks[i] = counts
        return looks

    def gained(self, key):
        return self.stack.status()[key] - self.counters[key]

    def client(self):
        c = pc.Client(self.stack.socket)
        self.addCleanup(c.close)
        return c

    def space(self, client=None, **args):
        space = Space(client or self.client(), **args)
        self.addCleanup(space.close)
        return space
