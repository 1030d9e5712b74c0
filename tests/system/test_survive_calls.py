# SPDX-License-Identifier: MIT
"""A daemon that is killed at every system call of every request: just before it, and just after. The client gets the one right
answer, and what was asked is done once, whole.

Which moments are tried is drawn, for as long as there is time; with $PASID_EVERY_MOMENT all of them are, in their order.
"""

import os
import random
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import survive  # noqa: E402
import work  # noqa: E402
from work import PAGE, page_of  # noqa: E402

ALL = bool(os.environ.get("PASID_EVERY_MOMENT"))
SECONDS = 7 * harness.SLOWNESS  # for one request, unless all moments are tried
RECOVERY_SECONDS = 25 * harness.SLOWNESS
STEP_SECONDS = 5 * harness.SLOWNESS
NEVER = 1 << 40
BLOCK = 2 << 20
AT = 0x40000000  # where buffers are mapped that want a certain place
RUN_SECONDS = 0.5  # of the job that runs while its block is split


class Moment:
    """One process of tests/survive/every_call.c at the daemon. Its last line, once it is over."""

    def __init__(self, stack, mode, n):
        self.process = subprocess.Popen([harness.program("EVERY_CALL"), "attach", str(stack.daemon.pid), mode, str(n)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise harness.HarnessError(f"the daemon cannot be held: {line}")

    def go(self):
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has killed already
            pass

    def end(self):
        self.go()
        out, _ = self.process.communicate(timeout=harness.DEADLINE)
        word, number = out.split()
        return word == "killed", int(number)


def can_trace():
    """Somebody who is not root may trace only his own descendants where Yama says so."""
    try:
        return os.geteuid() == 0 or Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip() == "0"
    except FileNotFoundError:
        return True


class Rig:
    """A client with a context, and buffers in it; what they should hold is known."""

    def __init__(self, stack, rng):
        self.stack, self.random = stack, rng
        self.client = stack.connect()
        stack.await_device(self.client)
        self.space = work.Space(self.client, pages=16)
        self.mapped = self.space.size + len(self.space.cmd)
        self.value = 1

    def close(self):
        self.space.close()
        self.client.close()

    def memory(self, size):
        """A buffer: its id, its fd and a mapping, which are the caller's."""
        fd, view = pc.memfd(size)
        return self.client.buf_import(fd)[0], fd, view

    def run(self, *commands):
        """Carries out commands, in a context that is not lost. Were faults told of them? Of earlier jobs they may be told
        once more by a successor."""
        job = self.space.submit(*commands)
        if not self.space.wait(job):
            raise AssertionError(f"context {self.space.ctx} is lost")
        return any(told[0] == job for told in self.told())

    def told(self):
        """Faults, of all events that are there."""
        events = iter(self.client.next_event, None)
        return [fault for opcode, body in list(events) if opcode == pc.EV_FAULT
                for fault in struct.iter_unpack(pc.FAULT.format, body[16:])]

    def fill(self, iova, view, offset=0, pages=1):
        """The GPU's writes to that address arrive in that memory."""
        self.value += 1
        if self.run(work.command(work.FILL, self.value, iova, length=pages * PAGE)):
            raise AssertionError(f"0x{iova:x} is not mapped")
        if view[offset:offset + pages * PAGE] != page_of(self.value) * pages:
            raise AssertionError(f"what the GPU wrote to 0x{iova:x} is not where it should be")

    def faults(self, iova):
        """The GPU cannot write there."""
        if not self.run(work.command(work.FILL, 0xbad, iova, length=PAGE)):
            raise AssertionError(f"0x{iova:x} is still mapped")

    def prove(self):
        """The context is what it should be."""
        page = self.random.randrange(1, 16)
        self.fill(self.space.iova + page * PAGE, self.space.data, page * PAGE)
        info = self.client.ctx_info(self.space.ctx)
        if info["mapped_bytes"] != self.mapped or info["state"]:
            raise AssertionError(f"mapped are {info}, not {self.mapped} bytes")


# ---- requests, each with what comes before it and what has to be so after it ----

class Request:
    def __init__(self, rig):
        self.rig, self.client, self.ctx = rig, rig.client, rig.space.ctx

    def begin(self):
        """Once."""

    def prepare(self):
        """Before each time."""

    def send(self):
        return self.client.send(self.opcode, self.body(), self.fds())

    def fds(self):
        return ()

    def await_end(self, sent):
        return self.client.reply(sent)[0]

    def check(self, reply):
        """After each time; leaves everything as before prepare()."""

    def end(self):
        """Once."""


class CtxInfo(Request):
    opcode = pc.CTX_INFO

    def body(self):
        return struct.pack("<II", self.ctx, 0)

    def check(self, reply):
        ctx, _, state, _, mappings, mapped = struct.unpack_from("<IIIIQQ", reply)
        assert (ctx, state, mappings, mapped) == (self.ctx, 0, 2, self.rig.mapped), (ctx, state, mappings, mapped)


class CtxNew(Request):
    opcode = pc.CTX_NEW
    last = 0

    def body(self):
        return pc.name("") + bytes(8)

    def check(self, reply):
        ctx, pasid, line, _ = struct.unpack("<IIII", reply)
        assert ctx > self.last and pasid, (ctx, self.last, pasid)
        self.last = ctx
        self.client.lines[ctx] = line
        assert self.client.fence(ctx) == (0, 0, 0), self.client.fence(ctx)
        old, space = (self.rig.space.ctx, self.rig.space.cmd_iova), self.rig.space
        space.ctx = ctx
        space.cmd_iova = self.client.map(ctx, space.cmd_buf, 0, len(space.cmd), pc.READ)
        iova = self.client.map(ctx, space.buf, 0, space.size)
        self.rig.fill(iova, space.data)
        self.client.ctx_free(ctx)
        space.ctx, space.cmd_iova = old


class CtxFree(Request):
    opcode = pc.CTX_FREE

    def prepare(self):
        self.free = self.client.ctx_new()
        self.client.map(self.free, self.rig.space.buf, 0, self.rig.space.size)

    def body(self):
        return struct.pack("<II", self.free, 0)

    def check(self, reply):
        assert reply == b"", reply
        try:
            self.client.ctx_info(self.free)
        except pc.Refused as refused:
            assert refused.code == -2, refused
        else:
            raise AssertionError("the context is still there")


class BufImport(Request):
    opcode = pc.BUF_IMPORT

    def prepare(self):
        self.fd, self.view = pc.memfd(4 * PAGE)

    def body(self):
        return pc.name("") + bytes(8)

    def fds(self):
        return [self.fd]

    def check(self, reply):
        size, buf, writable = struct.unpack("<QII", reply)
        assert (size, writable) == (4 * PAGE, 1), (size, writable)
        iova = self.client.map(self.ctx, buf, 0, size)
        self.rig.fill(iova, self.view, 0, 4)
        self.client.unmap(self.ctx, iova, size)
        self.client.buf_free(buf)
        self.view.close()
        os.close(self.fd)


class BufFree(Request):
    opcode = pc.BUF_FREE

    def prepare(self):
        self.buf, fd, view = self.rig.memory(4 * PAGE)
        view.close()
        os.close(fd)

    def body(self):
        return struct.pack("<II", self.buf, 0)

    def check(self, reply):
        assert reply == b"", reply
        try:
            self.client.buf_free(self.buf)
        except pc.Refused as refused:
            assert refused.code == -2, refused
        else:
            raise AssertionError("the buffer is still there")


class Submit(Request):
    opcode = pc.SUBMIT

    def prepare(self):
        space = self.rig.space
        self.counter, self.before = space.counter, self.client.ctx_info(self.ctx)["submitted"]
        space.cmd[0:64] = space.add_one()
        space.cmd_at = 64

    def body(self):
        return struct.pack("<IIQQ", self.ctx, 0, self.rig.space.cmd_iova, 64)

    def await_end(self, sent):
        """Until the job has ended, too."""
        reply = super().await_end(sent)
        job, = struct.unpack("<Q", reply)
        assert job == self.before + 1, (job, self.before)
        assert self.rig.space.wait(job)
        return job

    def check(self, job):
        assert self.rig.space.counter == self.counter + 1, "the job did not run once"


class Fault(Submit):
    """A job that faults: it ends, and its owner is told, once more perhaps by a successor."""

    def prepare(self):
        super().prepare()
        self.rig.space.cmd[0:64] = work.command(work.FILL, 1, AT, length=PAGE)
        self.disrupted = self.client.fence(self.ctx)[2]

    def check(self, job):
        assert self.client.fence(self.ctx)[2] > self.disrupted, "a job that faulted ended as if it had not"
        assert not self.client.fence(self.ctx)[1], "the context is lost"
        told = self.rig.told()
        assert told and all(fault[:2] == (job, AT) for fault in told), told


class Bind(Request):
    opcode = pc.BIND
    pages = 4

    def begin(self):
        self.buf, self.fd, self.view = self.rig.memory(self.pages * PAGE)
        self.size = self.pages * PAGE

    def end(self):
        self.client.buf_free(self.buf)
        self.view.close()
        os.close(self.fd)

    def map(self, offset=0, iova=AT, length=None):
        return (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, self.buf, offset, iova, length or self.size)

    def unmap(self, iova=AT, length=None):
        return (pc.UNMAP, 0, 0, 0, iova, length or self.size)

    def body(self):
        ops = self.ops()
        return struct.pack("<II", self.ctx, len(ops)) + b"".join(
            struct.pack("<IIIIQQQ", k, f, b, 0, off, iova, length) for k, f, b, off, iova, length in ops)

    def check_addresses(self, reply):
        """Where each operation was; those of `ops` have a certain place."""
        found = list(struct.unpack(f"<{len(reply) // 8}Q", reply))
        assert found == [op[4] for op in self.ops()], found


class Map(Bind):
    def ops(self):
        return [self.map()]

    def check(self, reply):
        self.check_addresses(reply)
        self.rig.fill(AT, self.view, 0, self.pages)
        self.client.unmap(self.ctx, AT, self.size)


class MapPage(Map):
    pages = 1


class Unmap(Bind):
    def prepare(self):
        self.client.bind(self.ctx, [self.map()])
        self.rig.fill(AT, self.view, 0, self.pages)
        self.held = bytes(self.view)

    def ops(self):
        return [self.unmap()]

    def check(self, reply):
        self.check_addresses(reply)
        self.rig.faults(AT + PAGE)
        assert bytes(self.view) == self.held, "memory was written to after its unmap"


class Replace(Unmap):
    def begin(self):
        super().begin()
        self.other, self.other_fd, self.other_view = self.rig.memory(self.size)

    def ops(self):
        return [self.unmap(), (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, self.other, 0, AT, self.size)]

    def check(self, reply):
        self.check_addresses(reply)
        self.rig.fill(AT, self.other_view, 0, self.pages)
        assert bytes(self.view) == self.held, "memory was written to after it was replaced"
        self.client.unmap(self.ctx, AT, self.size)

    def end(self):
        super().end()
        self.client.buf_free(self.other)
        self.other_view.close()
        os.close(self.other_fd)


class List(Bind):
    """Pages are taken away and put in, here and there."""
    pages = 64

    def prepare(self):
        self.client.bind(self.ctx, [self.map(0, AT, 32 * PAGE)])

    def ops(self):
        return [self.unmap(AT + 2 * i * PAGE, PAGE) for i in range(16)] + [
            self.map((32 + i) * PAGE, AT + (64 + 3 * i) * PAGE, PAGE) for i in range(32)]

    def check(self, reply):
        self.check_addresses(reply)
        self.rig.faults(AT + 4 * PAGE)
        for i in (1, 31):
            self.rig.fill(AT + i * PAGE, self.view, i * PAGE)
        for i in (0, 31):
            self.rig.fill(AT + (64 + 3 * i) * PAGE, self.view, (32 + i) * PAGE)
        self.client.bind(self.ctx, [self.unmap(AT + (2 * i + 1) * PAGE, PAGE) for i in range(16)] + [
            self.unmap(AT + (64 + 3 * i) * PAGE, PAGE) for i in range(32)])


class Sliced(Bind):
    """More page tables than are filled in one go: no entry of them is a block."""
    pages = 3200 * 512

    def ops(self):
        return [self.map(PAGE, AT, self.size - PAGE)]

    def check(self, reply):
        self.check_addresses(reply)
        for page in (0, self.pages // 2, self.pages - 2):
            self.rig.fill(AT + page * PAGE, self.view, (page + 1) * PAGE)
        self.client.unmap(self.ctx, AT, self.size - PAGE)


class Split(Bind):
    """A page is taken out of a block while a job works in that block: the job sees nothing of it."""
    pages = 2 * BLOCK // PAGE
    hole = BLOCK + 100 * PAGE

    def begin(self):
        super().begin()
        self.client.bind(self.ctx, [self.map()])
        started = time.monotonic()
        self.rig.run(*self.commands(8))
        self.times = max(1, min(48, int(8 * RUN_SECONDS / (time.monotonic() - started))))
        self.client.unmap(self.ctx, AT, self.size)

    def commands(self, times):
        return [work.command(work.COPY, 0, AT + BLOCK + 256 * PAGE, AT + BLOCK, 64 * PAGE)] * times + [
            work.command(work.ATOMIC, 1, AT + BLOCK + 400 * PAGE)]

    def prepare(self):
        self.client.bind(self.ctx, [self.map()])
        self.view[BLOCK:BLOCK + 64 * PAGE] = os.urandom(PAGE) * 64
        self.view[BLOCK + 400 * PAGE:BLOCK + 400 * PAGE + 8] = bytes(8)
        self.job = self.rig.space.submit(*self.commands(self.times))

    def ops(self):
        return [self.unmap(AT + self.hole, PAGE)]

    def check(self, reply):
        self.check_addresses(reply)
        assert self.rig.space.wait(self.job)
        assert not [fault for fault in self.rig.told() if fault[0] == self.job], "the job faulted"
        assert self.view[BLOCK + 256 * PAGE:BLOCK + 320 * PAGE] == self.view[BLOCK:BLOCK + 64 * PAGE]
        assert self.view[BLOCK + 400 * PAGE] == 1, "the job did not run once"
        self.rig.faults(AT + self.hole)
        self.rig.fill(AT + self.hole - PAGE, self.view, self.hole - PAGE)
        self.client.bind(self.ctx, [self.unmap(AT, self.hole),
                                    self.unmap(AT + self.hole + PAGE, self.size - self.hole - PAGE)])


class Hello(Request):
    """Nobody who connects is refused; what ends before it was greeted is tried again."""

    def prepare(self):
        self.new = pc.Client(self.rig.stack.socket, hello=False)

    def send(self):
        return self.new.send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))

    def await_end(self, sent):
        try:
            _, fds = self.new.reply(sent)
        except ConnectionResetError:
            self.new.close()
            self.new = self.rig.stack.connect()
        else:
            os.close(fds[0])

    def check(self, reply):
        assert self.new.devices()[0][0] == "gpu0"
        self.new.close()


class Close(Request):
    """All that a client had goes, although the daemon dies of it."""

    def begin(self):
        self.before = work.settled(self.rig.stack.gpu_counts)

    def prepare(self):
        self.leaving = self.rig.stack.connect()
        self.fd, view = pc.memfd(4 * PAGE)
        view.close()
        ctx = self.leaving.ctx_new()
        self.leaving.map(ctx, self.leaving.buf_import(self.fd)[0], 0, 4 * PAGE)

    def send(self):
        os.close(self.fd)
        self.leaving.close()

    def await_end(self, sent):
        harness.wait_until(lambda: self.rig.stack.gpu_counts()[1:3] == self.before[1:3], "a client that left is gone")


REQUESTS = [Hello, CtxInfo, CtxNew, CtxFree, BufImport, BufFree, Submit, Fault, Map, Unmap, Replace, List, Sliced, Split, Close]


@unittest.skipUnless(can_trace(), "only root may trace a process that is no descendant of its own")
class EveryCall(survive.OrderedTest):
    def setUp(self):
        super().setUp()
        self.stack = stack = self.start_stack()
        self.rig = Rig(stack, self.random)
        self.addCleanup(self.rig.close)

    def once(self, request, mode, n):
        """One request, with the daemon killed at that moment of it. Was it, and where?"""
        manager = self.stack.manager
        request.prepare()
        starts = manager.starts
        moment = Moment(self.stack, mode, n)
        try:
            sent = request.send()
            moment.go()
            reply = request.await_end(sent)
        except (OSError, harness.HarnessError) as error:
            moment.process.kill()
            raise AssertionError(f"{error!r}\n{self.stack.log_tail()}") from error
        killed, number = moment.end()
        if killed:
            harness.wait_until(lambda: manager.starts > starts, "a successor")
            manager.await_ready(harness.DEADLINE)
        request.check(reply)
        self.rig.prove()
        return killed, number

    def moments(self, count, modes):
        moments = [(mode, n) for n in range(1, count + 1) for mode in modes]
        if not ALL:
            self.random.shuffle(moments)
        return moments

    def test_between_instructions(self):
        """Where no system call is: some instructions of the requests that are made most often."""
        for kind in (Submit, MapPage, CtxNew):
            request = kind(self.rig)
            request.begin()
            _, count = self.once(request, "step", NEVER)
            end = time.monotonic() + STEP_SECONDS
            tried = 0
            while time.monotonic() < end:
                n = self.random.randrange(count)
                try:
                    self.once(request, "step", n)
                except (AssertionError, pc.Refused) as error:
                    raise AssertionError(f"{kind.__name__}, killed after {n} instructions: {error!r}\n"
                                         f"{self.stack.log_tail()}") from error
                tried += 1
            request.end()
            print(f"# {kind.__name__}: {tried} moments, of {count} instructions")

    def test_taking_over(self):
        """Killed in the middle of a request, and then its successor while it takes over, at every system call of that."""
        requests = [kind(self.rig) for kind in (CtxNew, BufImport, Submit, Fault, Map, Replace, List, Split, CtxFree, BufFree)]
        for request in requests:
            request.begin()
        count = self.once_and_again(requests[0], "call", NEVER)[1]
        moments = self.moments(count, ("call", "exit"))
        end = time.monotonic() + RECOVERY_SECONDS
        tried = killed = 0
        for mode, n in moments:
            if not ALL and time.monotonic() > end:
                break
            request = self.random.choice(requests)
            try:
                killed += self.once_and_again(request, mode, n)[0]
            except (AssertionError, pc.Refused) as error:
                raise AssertionError(f"{type(request).__name__}, and its successor killed at {mode} {n}: {error!r}\n"
                                     f"{self.stack.log_tail()}") from error
            tried += 1
        for request in requests:
            request.end()
        print(f"# {tried} of {len(moments)} moments of taking over, {killed} kills")

    def once_and_again(self, request, mode, n):
        """Killed at a random moment of the request; then its successor at that moment."""
        said, manager = Path(f"{self.orders}.said"), self.stack.manager
        starts = manager.starts
        said.unlink(missing_ok=True)
        self.orders.write_text(f"{mode} {n}\n", encoding="ascii")
        killed, _ = self.once(request, self.random.choice(("call", "exit")), self.random.randrange(1, 12))
        if not killed:
            self.stack.kill_daemon()
            self.rig.prove()
        self.orders.write_text("", encoding="ascii")
        word = harness.wait_until(lambda: said.exists() and said.read_text(encoding="ascii"), "the end of a tracer")
        self.orders.unlink()
        was_killed = word.startswith("killed")
        harness.wait_until(lambda: manager.starts >= starts + 1 + was_killed, "the last successor")
        manager.await_ready(harness.DEADLINE)
        return was_killed, int(word.split()[1])

    def every_moment(self, kind, modes=("call", "exit")):
        request = kind(self.rig)
        request.begin()
        _, count = self.once(request, modes[0], NEVER)
        moments = self.moments(count, modes)
        end = time.monotonic() + SECONDS
        tried = 0
        for mode, n in moments:
            if not ALL and tried and time.monotonic() > end:
                break
            try:
                self.once(request, mode, n)
            except (AssertionError, pc.Refused) as error:
                raise AssertionError(f"{kind.__name__}, killed at {mode} {n}: {error!r}\n"
                                     f"{self.stack.log_tail()}") from error
            tried += 1
        request.end()
        print(f"# {kind.__name__}: {tried} of {len(moments)} moments")


def add_test(kind):
    def test(self):
        self.every_moment(kind)

    setattr(EveryCall, f"test_{kind.__name__.lower()}", test)


for each in REQUESTS:
    add_test(each)


if __name__ == "__main__":
    unittest.main()
