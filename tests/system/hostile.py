# SPDX-License-Identifier: MIT
"""What the hostile-client tests share.

HostileCase: a stack whose daemon is attacked while a well-behaved client asks something all the time (Pinger) and must
be answered; after each test everything that can be counted from outside is what it was before. Run as a program this
file is the client that is killed in the middle of a conversation.
"""

import fcntl
import functools
import mmap
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from harness import wait_until  # noqa: E402
from pasid_client import Client, Refused  # noqa: E402

PAGE = 4096
MIB = 1 << 20
PATIENCE = 2.0  # s: how long a reply to a well-behaved client may take, whatever others do

# Memory of the daemon beyond what it had when its class began. Of shared memory that is what it uses bit by bit and
# keeps: the closer's ring of 65,536 entries of 12 bytes; for each device 308 KiB of rings and marks, and the pages that
# tables once needed, of which the tests here get at most 64. Of its own it is what malloc keeps for the next time: as
# much as was needed at one time, which is little of anything but connections. AddressSanitizer adds a quarantine,
# redzones, a region for each size of things, and shadows of all that.
SHARED_KEPT = 768 << 10
DEVICE_KEPT = (308 + 64 * 4) << 10
PRIVATE_KEPT = MIB
CONNECTION_KEPT = 8192  # for each connection that there was at one time
SANITIZER_KEPT = 16 * MIB

MAGIC = 0x44534150
HELLO_BODY = struct.pack("<IIQ", MAGIC, 1, 0)
DEVICE_BODY = pc.name("") + bytes(8)
NOP, FILL, COPY, HANG = 0, 1, 2, 9


def command(op, value=0, dst=0, src=0, length=0):
    """A command of the reference GPU: 64 bytes."""
    return struct.pack("<IIQQQIIIIQQ", op, value, dst, src, length, 0, 0, 0, 0, 0, 0)


def operation(kind=pc.MAP, flags=pc.READ | pc.FIXED, buf=0, reserved=0, off=0, iova=0, length=PAGE):
    """An operation of BIND: 40 bytes."""
    return struct.pack("<IIIIQQQ", kind, flags, buf, reserved, off, iova, length)


def enum_of(name, skip=()):
    """The numbers of an enum of protocol.h, by name without its prefix."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../include/pasid/protocol.h")
    with open(path, encoding="utf-8") as f:
        body = re.search(r"enum " + name + r" \{(.*?)\n\};", f.read(), re.S).group(1)
    found = {n: int(v) for n, v in re.findall(r"PASID_[A-Z]+_([A-Z_]+) = (\d+),", body)}
    return {n: v for n, v in found.items() if n not in skip}


def raise_nofile():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Recorder(Client):
    """A client that notes which refusals it has met: reason -> code."""

    seen = {}

    def reply(self, serial):
        try:
            return super().reply(serial)
        except Refused as refused:
            self.seen[refused.reason] = refused.code
            raise


class Pinger(threading.Thread):
    """A well-behaved client that asks again and again, and notes how long the answer took."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.client = Client(path)
        self.client.sock.settimeout(harness.DEADLINE)
        self.ctx = None
        self.ending = threading.Event()
        self.worst = 0.0
        self.count = 0
        self.error = None

    def run(self):
        try:
            while not self.ending.wait(0.002):
                began = time.monotonic()
                self.client.ctx_info(self.ctx) if self.ctx else self.client.devices()
                self.worst = max(self.worst, time.monotonic() - began)
                self.count += 1
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def end(self):
        self.ending.set()
        if self.is_alive():
            self.join()
        self.client.close()


def sanitizer_env():
    """Freed memory goes back soon, so that resident memory says something; whatever a sanitizer finds ends the daemon."""
    asan = os.environ.get("ASAN_OPTIONS", "detect_leaks=1")
    ubsan = os.environ.get("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    return {"ASAN_OPTIONS": asan + ":quarantine_size_mb=1:thread_local_quarantine_size_kb=64", "UBSAN_OPTIONS": ubsan}


@functools.lru_cache
def sanitized():
    """Is the daemon built with AddressSanitizer?"""
    with open(harness.program("PASIDD"), "rb") as f:
        return b"__asan_init" in f.read()


class HostileCase(unittest.TestCase):
    devices = None
    config = None
    connections = 100  # about as many at a time
    crowd = 0  # bytes of what else there is in great numbers at a time
    longMessage = True

    @classmethod
    def setUpClass(cls):
        raise_nofile()
        cls.stack = harness.Stack(cls.devices, cls.config, sanitizer_env())
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        cls.ping = Pinger(cls.stack.socket)
        cls.addClassCleanup(cls.ping.end)
        for i in range(len(cls.stack.devices)):
            cls.stack.await_device(cls.ping.client, f"gpu{i}")
        cls.ping.ctx = cls.ping.client.ctx_new()
        cls.ping.start()
        # One of everything first, and so often that caches are warm.
        for _ in range(20):
            with Client(cls.stack.socket) as c:
                c.ctx_new()
        cls.stack.await_rest()
        _, cls.shared, cls.private = cls.stack.memory()

    @classmethod
    def tearDownClass(cls):
        cls.ping.end()
        if cls.ping.error:
            raise cls.ping.error

    def setUp(self):
        self.before = self.snapshot()
        self.ping.worst, self.pings = 0.0, self.ping.count

    def tearDown(self):
        self.doCleanups()
        self.assert_served()
        try:
            wait_until(lambda: self.snapshot() == self.before, "back to the beginning")
        except harness.HarnessError:
            self.fail(f"before {self.before}\nafter  {self.snapshot()}\n{self.stack.log_tail()}")
        self.assert_memory_given_back()

    # What is counted from outside.

    @classmethod
    def snapshot(cls):
        counts = cls.stack.snapshot()
        pid = cls.stack.daemon.pid
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            counts["children"] = len(f.read().split())
        gpus = [(f"gpu{i}", gpu) for i, gpu in enumerate(cls.stack.gpus) if gpu]
        for name, process in [("daemon", cls.stack.daemon)] + gpus:
            counts[f"{name} memfds mapped"] = cls.stack.memory(process)[0]
        return counts

    def assert_memory_given_back(self):
        """The daemon's memory is what it was when the class began, but for what may stay; see above."""
        private = PRIVATE_KEPT + self.connections * CONNECTION_KEPT + self.crowd
        private += SANITIZER_KEPT if sanitized() else 0
        limits = (SHARED_KEPT + DEVICE_KEPT * len(self.stack.devices), private)

        def kept():
            _, *now = self.stack.memory()
            return now[0] - self.shared, now[1] - self.private

        try:
            wait_until(lambda: all(k <= limit for k, limit in zip(kept(), limits)), "memory given back")
        except harness.HarnessError:
            self.fail(f"the daemon keeps {kept()} bytes of shared memory and of its own; {limits} would be fine")

    def assert_served(self):
        """The well-behaved client is answered, now and all the time since the test began."""
        self.assertIsNone(self.stack.daemon.poll(), "the daemon has ended\n" + self.stack.log_tail())
        count = self.ping.count
        wait_until(lambda: self.ping.count > count + 2 or self.ping.error, "a reply to a well-behaved client")
        self.assertIsNone(self.ping.error)
        self.assertLess(self.ping.worst, PATIENCE)

    # Clients and their things.

    def connect(self, hello=True, path=None):
        client = Recorder(path or self.stack.socket, hello=hello)
        self.addCleanup(client.close)
        return client

    def memory(self, size, seals=fcntl.F_SEAL_SHRINK, name="hostile"):
        """A memfd and a mapping of it, of whatever size."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, size)
        view = mmap.mmap(fd, size)
        self.addCleanup(view.close)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd, view

    def sparse(self, size, seals=fcntl.F_SEAL_SHRINK, flags=0):
        fd = os.memfd_create("sparse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    def refused(self, reason, call, *args):
        with self.assertRaises(Refused) as caught:
            call(*args)
        self.assertEqual(caught.exception.reason, reason, str(caught.exception))
        return caught.exception

    def assert_dropped(self, client, deadline=harness.DEADLINE):
        """The daemon ends the connection; whatever it says before that is thrown away."""
        client.sock.settimeout(deadline)
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):
            while True:
                for fd in client.receive_raw()[3]:
                    os.close(fd)


def is_dropped(client):
    """Has the daemon ended the connection? Reads nothing."""
    poll = select.poll()
    poll.register(client.sock, 0)
    return any(what & (select.POLLHUP | select.POLLERR) for _, what in poll.poll(0))


class Workspace:
    """A context with data and commands mapped."""

    def __init__(self, case, client, size=4 * PAGE, commands=PAGE):
        self.client = client
        self.ctx = client.ctx_new()
        (self.fd, self.data), (self.cmd_fd, self.cmd) = case.memory(size), case.memory(commands)
        self.buf = client.buf_import(self.fd)[0]
        self.cmd_buf = client.buf_import(self.cmd_fd)[0]
        self.iova = client.map(self.ctx, self.buf, 0, size)
        self.cmd_iova = client.map(self.ctx, self.cmd_buf, 0, commands, pc.READ)

    def put(self, *commands):
        """Writes commands; their length in bytes."""
        text = b"".join(commands)
        self.cmd[: len(text)] = text
        return len(text)

    def submit(self, length):
        return self.client.submit(self.ctx, self.cmd_iova, length)


# The client that is killed: step after step, and then it says so and waits for its end.


def conversation(path):
    """A generator of steps, each the state that a client may be killed in."""
    c = Client(path, hello=False)
    yield "connected"
    c.send(pc.HELLO, HELLO_BODY)
    yield "HELLO sent"
    c.reply(1)
    c.send_raw(pc.HEADER.pack(16, pc.DEVICES, 0, c.serial))
    c.serial += 1
    yield "a request unread"
    c.send(pc.CTX_NEW, DEVICE_BODY)
    yield "CTX_NEW sent"
    ctx = struct.unpack_from("<I", c.reply(c.serial - 1)[0])[0]
    c.lines[ctx] = 0
    yield "a context"
    fds = [pc.memfd(64 * PAGE) for _ in range(2)]
    c.send(pc.BUF_IMPORT, DEVICE_BODY, [fds[0][0]])
    yield "BUF_IMPORT sent"
    buf = struct.unpack_from("<QI", c.reply(c.serial - 1)[0])[1]
    commands = c.buf_import(fds[1][0])[0]
    yield "buffers"
    base = 1 << 30
    maps = operation(buf=buf, flags=7, iova=base, length=64 * PAGE) + operation(buf=commands, iova=2 * base)
    c.send(pc.BIND, struct.pack("<II", ctx, 2) + maps)
    yield "BIND sent"
    c.reply(c.serial - 1)
    fds[1][1][:128] = command(FILL, 7, base, length=64 * PAGE) + command(HANG)
    c.send(pc.SUBMIT, struct.pack("<IIQQ", ctx, 0, 2 * base, 64))
    yield "SUBMIT sent"
    c.reply(c.serial - 1)
    c.submit(ctx, 2 * base, 128)
    yield "a job that hangs"
    c.send(pc.BIND, struct.pack("<II", ctx, 1) + operation(pc.UNMAP, 0, iova=base, length=PAGE))
    yield "an unmap under running work"
    c.reply(c.serial - 1)
    c.send(pc.BIND, struct.pack("<II", ctx, 1) + operation(buf=buf, flags=7, iova=base))
    c.send(pc.SUBMIT, struct.pack("<IIQQ", ctx, 0, 2 * base, 64))
    c.send(pc.BUF_FREE, struct.pack("<II", buf, 0))
    c.send(pc.BUF_IMPORT, DEVICE_BODY, [fds[0][0]])
    c.send(pc.CTX_FREE, struct.pack("<II", ctx, 0))
    c.send(pc.CTX_NEW, DEVICE_BODY)
    yield "a queue of requests"
    for serial in range(c.serial - 6, c.serial):
        try:
            c.reply(serial)
        except Refused:
            pass
    yield "the end"


STEPS = 13


class Victim:
    """A process in the middle of a conversation."""

    def __init__(self, path, step):
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), path, str(step)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.state = self.process.stdout.readline().decode().strip()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def main():
    steps = conversation(sys.argv[1])
    text = ""
    for _ in range(int(sys.argv[2])):
        text = next(steps)
    print(text, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
