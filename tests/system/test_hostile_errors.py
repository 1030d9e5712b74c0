# SPDX-License-Identifier: MIT
"""Every error that docs/protocol.md lists, produced by a hostile or a greedy client; and quotas given back."""

import errno
import os
import resource
import signal
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pasid_client as pc  # noqa: E402
from harness import wait_until  # noqa: E402
from hostile import (DEVICE_BODY, HANG, HELLO_BODY, MIB, PAGE, HostileCase, Recorder, Workspace,  # noqa: E402
                     command, enum_of)

MFD_HUGETLB = 4
HUGE_PAGE = 2 * MIB
UID, CONNECTION = 90, 110
CONTEXTS, BUFFERS, MAPPINGS, BYTES, HUGE, TABLES, JOBS, RATE, CONNECTIONS = range(9)

# Reasons of the table that no test here can meet, and why.
IMPOSSIBLE = {
    82: "TIMEOUT is libpasid's own and never sent",
    131: "QUOTA_IDS takes 65535 live contexts on one device; tests/unit/test_books.c meets it",
    73: "NO_PASID takes mode pasid, hence a kernel; tests/vm/guest/pasid.py meets it",
    134: "QUOTA_KERNEL takes a kernel that refuses a mapping; tests/vm/guest/exclusive.py meets it",
    135: "QUOTA_STORE takes a service manager that keeps fds; tests/service/test_survival.py meets it",
    UID + RATE: "the rate is backpressure and no error",
    CONNECTION + RATE: "the rate is backpressure and no error",
    CONNECTION + CONNECTIONS: "a connection is one connection: it has no limit on them",
}


def every_reason():
    """Numbers of the table, without 0 and with the quotas' resources."""
    reasons = set(enum_of("pasid_reason").values()) - {0, UID, CONNECTION}
    resources = [v for n, v in enum_of("pasid_resource").items() if n != "COUNT"]
    return reasons | {base + r for base in (UID, CONNECTION) for r in resources}


LIMITS = {"contexts": 4, "buffers": 6, "mappings": 20, "bytes": 64 * MIB, "huge": HUGE_PAGE, "tables": 40, "jobs": 8,
          "rate": 1000000}


def tight(**uid):
    """Limits of a connection as LIMITS, of a uid with what is named."""
    wide = {"contexts": 64, "buffers": 64, "mappings": 1000, "bytes": 1 << 40, "huge": 1 << 40, "tables": 4000,
            "jobs": 500, "rate": 1000000, "connections": 30}
    return {"limits": {"connection": LIMITS, "uid": {**wide, **uid}, "total_bytes": 1 << 41}}


class Greedy(HostileCase):
    def fill(self, call, reason, limit=None):
        """Calls until it is refused, and says how often it was not. The refusal names the limit, and stays."""
        n = 0
        while True:
            try:
                call()
            except pc.Refused as refused:
                self.assertEqual(refused.reason, reason, str(refused))
                if limit is not None:
                    self.assertEqual(refused.n2, limit)
                    self.assertLessEqual(refused.n1, limit)
                break
            n += 1
            self.assertLess(n, 5000)
        self.refused(reason, call)
        return n

    def huge(self, size):
        try:
            return self.sparse(size, flags=MFD_HUGETLB)
        except OSError as error:
            self.skipTest(f"no huge pages here: {error}")


class Errors(Greedy):
    """Two devices and limits that the connection meets first."""

    devices = [{"job_limit_ms": 300}, {}]
    config = tight()

    def test_frames(self):
        c = self.connect(hello=False)
        self.refused(10, c.devices)
        self.refused(71, c.hello, 0x44534150, 2)
        c.hello()
        self.refused(7, c.call, 99)
        self.refused(8, c.call, pc.BUF_IMPORT, DEVICE_BODY)
        self.refused(6, c.call, pc.DEVICES, b"x")
        self.refused(4, c.call, pc.CTX_NEW, pc.name("") + struct.pack("<II", 2, 0))
        self.refused(5, c.call, pc.CTX_NEW, pc.name("") + struct.pack("<II", 0, 1))
        self.refused(22, c.ctx_new, "gpu2")
        self.refused(20, c.ctx_info, 0)
        self.refused(21, c.buf_free, 0)

    def test_files(self):
        c = self.connect()
        self.refused(70, c.buf_import, c.sock.fileno())
        self.refused(60, c.buf_import, self.sparse(PAGE, 0))
        self.refused(1, c.buf_import, self.sparse(1))
        self.refused(2, c.buf_import, self.sparse(0))

    def test_binds(self):
        c = self.connect()
        w = Workspace(self, c)
        info = c.device_info()
        top = info["iova_last"]
        fixed, free, far = pc.READ | pc.FIXED, 1 << 32, 1 << 33
        c.map(w.ctx, w.buf, 0, PAGE, fixed, far)

        def op(kind=pc.MAP, flags=fixed, buf=w.buf, off=0, iova=free, length=PAGE):
            return (kind, flags, buf, off, iova, length)

        def unmap(iova, length):
            return op(pc.UNMAP, 0, 0, 0, iova, length)

        wrap = (1 << 64) - PAGE
        for reason, one in (
                (1, op(iova=free + 1)), (1, op(length=1)), (1, op(off=1)), (1, unmap(w.iova + 1, PAGE)),
                (1, unmap(w.iova, PAGE + 1)), (2, op(length=0)), (2, unmap(w.iova, 0)), (3, op(iova=wrap, length=2 * PAGE)),
                (3, op(off=wrap, length=2 * PAGE)), (3, unmap(wrap, 1 << 63)), (3, unmap(2 * PAGE, wrap)), (40, unmap(PAGE, wrap)),
                (4, op(flags=0)), (4, op(flags=pc.WRITE)), (4, op(flags=1 << 31 | 1)), (9, op(kind=0)), (9, op(kind=3)),
                (21, op(buf=0)), (21, op(buf=(1 << 32) - 1)), (23, unmap(free, PAGE)), (23, unmap(w.iova, 1 << 20)),
                (23, unmap(far - PAGE, 2 * PAGE)), (30, op(iova=w.iova)), (30, op(iova=far - PAGE, length=2 * PAGE)),
                (40, op(iova=0)), (40, op(iova=top + 1)), (40, op(iova=top + 1 - PAGE, length=2 * PAGE)),
                (40, op(iova=1 << 63)), (40, unmap(0, PAGE)), (41, op(off=4 * PAGE)), (41, op(length=1 << 40)),
                (41, op(off=1 << 62, length=1 << 62))):
            with self.subTest(reason=reason, op=one):
                self.refused(reason, c.bind, w.ctx, [one])
        self.refused(2, c.bind, w.ctx, [])
        self.refused(11, c.call, pc.BIND, struct.pack("<II", w.ctx, 1025))
        # The second of a list meets what the first one did; nothing of either is left.
        self.assertEqual(self.refused(30, c.bind, w.ctx, [op(), op()]).index, 1)
        self.assertEqual(self.refused(23, c.bind, w.ctx, [unmap(w.iova, PAGE), unmap(w.iova, PAGE)]).index, 1)
        self.assertEqual(c.ctx_info(w.ctx)["mapped_bytes"], 6 * PAGE)
        self.refused(72, c.map, w.ctx, c.buf_import(self.sparse(PAGE), "gpu1")[0], 0, PAGE)
        read_only = c.buf_import(self.sparse(PAGE, 2 | 8))[0]
        self.refused(50, c.map, w.ctx, read_only, 0, PAGE)

    def test_submits(self):
        c = self.connect()
        w = Workspace(self, c)
        most = c.device_info()["submit_max"]
        for reason, iova, length in ((2, w.cmd_iova, 0), (1, w.cmd_iova, 63), (1, w.cmd_iova + 4, 64), (43, w.cmd_iova, most + 64),
                                     (43, w.cmd_iova, (1 << 64) - 64), (3, (1 << 64) - 64, 128), (40, 0, 64), (40, 1 << 63, 64)):
            with self.subTest(reason=reason, iova=iova, length=length):
                self.refused(reason, c.submit, w.ctx, iova, length)
        self.assertEqual(c.ctx_info(w.ctx)["submitted"], 0)

    def test_foreign_ids_look_unknown(self):
        c, thief = self.connect(), self.connect()
        w = Workspace(self, c)
        own = thief.ctx_new()
        for ctx in (w.ctx, 0, 0xFFFFFFFF):
            ops = [(pc.UNMAP, 0, 0, 0, w.iova, PAGE)]
            for call, args in ((thief.ctx_free, ()), (thief.ctx_info, ()), (thief.bind, (ops,)), (thief.submit, (w.cmd_iova, 64))):
                error = self.refused(20, call, ctx, *args)
                self.assertEqual((error.n1, error.n2, error.index), (ctx, 0, 0))
        for buf in (w.buf, 4711):
            error = self.refused(21, thief.buf_free, buf)
            self.assertEqual((error.n1, error.n2), (buf, 0))
            self.refused(21, thief.map, own, buf, 0, PAGE)
        self.assertEqual(c.ctx_info(w.ctx)["mappings"], 2)

    def test_lost_context(self):
        c = self.connect()
        w = Workspace(self, c)
        job = w.submit(w.put(command(HANG)))
        self.assertFalse(c.wait(w.ctx, job))
        opcode, body = c.next_event(10)
        self.assertEqual((opcode, struct.unpack("<IIQ", body)), (pc.EV_LOST, (w.ctx, 1, job)))
        self.assertEqual(self.refused(80, w.submit, 64).n1, w.ctx)
        self.refused(80, c.map, w.ctx, w.buf, 0, PAGE)
        self.refused(80, c.unmap, w.ctx, w.iova, PAGE)
        c.ctx_free(w.ctx)
        self.refused(20, c.ctx_free, w.ctx)

    # Limits of a connection: met, and all is given back.

    def test_connection_limits(self):
        c = self.connect()
        self.assertEqual(self.fill(c.ctx_new, CONNECTION + CONTEXTS, 4), 4)
        for ctx in list(c.lines):
            c.ctx_free(ctx)
        w = Workspace(self, c)
        page = self.sparse(PAGE)
        self.assertEqual(self.fill(lambda: c.buf_import(page), CONNECTION + BUFFERS, 6), 4)
        self.assertEqual(self.fill(lambda: c.map(w.ctx, w.buf, 0, PAGE), CONNECTION + MAPPINGS, 20), 18)
        mapped = c.ctx_info(w.ctx)["mapped_bytes"]
        # A list that does not fit as a whole changes nothing.
        c.unmap(w.ctx, w.cmd_iova, PAGE)
        error = self.refused(CONNECTION + MAPPINGS, c.bind, w.ctx, [(pc.MAP, 1, w.buf, 0, 0, PAGE)] * 2)
        self.assertEqual(error.index, 0)  # quotas are the whole list's
        self.assertEqual(c.ctx_info(w.ctx)["mapped_bytes"], mapped - PAGE)
        c.ctx_free(w.ctx)
        w.ctx = c.ctx_new()
        step = iter(range(1, 1000))
        self.fill(lambda: c.map(w.ctx, w.buf, 0, PAGE, pc.READ | pc.FIXED, next(step) << 39), CONNECTION + TABLES, 40)
        self.assertLessEqual(c.ctx_info(w.ctx)["table_bytes"], 40 * PAGE)

    def test_bytes(self):
        c = self.connect()
        big, small = self.sparse(40 * MIB), self.sparse(24 * MIB)
        buf = c.buf_import(big)[0]
        error = self.refused(CONNECTION + BYTES, c.buf_import, big)
        self.assertEqual((error.n1, error.n2), (40 * MIB, 64 * MIB))
        c.buf_import(small)
        self.refused(CONNECTION + BYTES, c.buf_import, self.sparse(PAGE))
        ctx = c.ctx_new()
        iova = c.map(ctx, buf, 0, PAGE, pc.READ)
        c.buf_free(buf)  # still mapped, still charged
        self.refused(CONNECTION + BYTES, c.buf_import, big)
        c.unmap(ctx, iova, PAGE)
        wait_until(lambda: self.imports(c, big), "bytes given back")

    def imports(self, client, fd):
        try:
            return client.buf_import(fd)
        except pc.Refused:
            return None

    def test_huge_pages(self):
        c = self.connect()
        c.buf_free(c.buf_import(self.huge(HUGE_PAGE))[0])
        self.assertEqual(self.refused(CONNECTION + HUGE, c.buf_import, self.huge(2 * HUGE_PAGE)).n2, HUGE_PAGE)

    def test_jobs(self):
        c = self.connect()
        w = Workspace(self, c)
        length = w.put(command(HANG))
        self.assertLessEqual(self.fill(lambda: w.submit(length), CONNECTION + JOBS, 8), 8)
        self.assertFalse(c.wait(w.ctx, 1))
        c.ctx_free(w.ctx)

    def test_z_device_gone(self):
        """The second device dies; its contexts are lost, the first one's clients notice nothing; it comes back."""
        c = self.connect()
        w = Workspace(self, c)
        ctx = c.ctx_new("gpu1")
        self.stack.stop_gpu(1, signal.SIGKILL)
        wait_until(lambda: not c.devices()[1][2], "a device gone")
        self.refused(81, c.ctx_new, "gpu1")
        self.refused(81, c.buf_import, self.sparse(PAGE), "gpu1")
        self.refused(80, c.submit, ctx, 1 << 20, 64)
        self.assertTrue(c.wait(w.ctx, w.submit(w.put(command(0)))))
        early = self.connect(hello=False)  # hears of nothing before it has greeted
        self.stack.start_gpu(1)
        self.stack.await_device(c, "gpu1")
        early.sock.settimeout(10)
        early.send_raw(pc.HEADER.pack(32, pc.HELLO, 0, 1) + HELLO_BODY)
        opcode, serial, _, fds = early.receive_raw()
        for fd in fds:
            os.close(fd)
        self.assertEqual((opcode, serial), (pc.HELLO, 1))
        c.ctx_free(ctx)
        c.ctx_free(c.ctx_new("gpu1"))


class NoMemory(HostileCase):
    """A connection takes an fd, and its fence memory two more: if these cannot be had, the daemon is out of memory."""

    def leave_fds(self, free):
        """The daemon can open so many more fds, until the test ends."""
        pid = self.stack.daemon.pid
        used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
        limit = 0
        while free or limit in used:
            free -= limit not in used
            limit += 1
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
        self.addCleanup(resource.prlimit, pid, resource.RLIMIT_NOFILE, (hard, hard))

    def test_no_fds_for_fence_memory(self):
        c = self.connect()
        fds = self.stack.await_rest()["fds"]
        for free in (1, 2, 3) * 5:
            with self.subTest(free=free):
                self.leave_fds(free)
                d = self.connect(hello=False)
                if free < 3:
                    error = self.refused(133, d.hello)
                    self.assertEqual((error.code, error.n1, error.n2), (-errno.EDQUOT, 0, 0))
                    self.assert_dropped(d)
                else:
                    d.hello()
                self.assertTrue(c.devices())
                d.close()
                wait_until(lambda: self.stack.fds() == fds, "the connection is closed")


class UidLimits(Greedy):
    """Limits that a uid meets with several connections."""

    devices = [{"job_limit_ms": 300}]
    config = tight(contexts=6, buffers=8, mappings=30, bytes=100 * MIB, huge=HUGE_PAGE, tables=60, jobs=12, connections=8)

    def test_uid_limits(self):
        c, d = self.connect(), self.connect()
        for _ in range(4):
            c.ctx_new()
        self.fill(d.ctx_new, UID + CONTEXTS, 6)  # the pinger has one, too
        page, big = self.sparse(PAGE), self.sparse(60 * MIB)
        bufs = [c.buf_import(page)[0] for _ in range(5)]
        self.fill(lambda: d.buf_import(page), UID + BUFFERS, 8)
        for buf in bufs[1:]:
            c.buf_free(buf)
        c.buf_free(c.buf_import(big)[0])
        wide = c.buf_import(big)[0]
        self.refused(UID + BYTES, d.buf_import, big)
        c.buf_free(wide)
        ctx = next(iter(c.lines))
        for _ in range(20):
            c.map(ctx, bufs[0], 0, PAGE)
        own = next(iter(d.lines))
        buf = 1
        self.fill(lambda: d.map(own, buf, 0, PAGE), UID + MAPPINGS, 30)

    def test_uid_tables(self):
        c, d = self.connect(), self.connect()
        page = self.sparse(PAGE)
        for client in (c, d):
            ctx, buf = client.ctx_new(), client.buf_import(page)[0]
            step = iter(range(1, 1000))
            self.fill(lambda: client.map(ctx, buf, 0, PAGE, pc.READ | pc.FIXED, next(step) << 39),  # noqa: B023
                      (CONNECTION if client is c else UID) + TABLES)

    def test_uid_jobs(self):
        c, d = self.connect(), self.connect()
        v, w = Workspace(self, c), Workspace(self, d)
        length = v.put(command(HANG))
        w.put(command(HANG))
        for _ in range(8):
            v.submit(length)
        self.fill(lambda: w.submit(length), UID + JOBS, 12)

    def test_uid_huge(self):
        c, d = self.connect(), self.connect()
        c.buf_import(self.huge(HUGE_PAGE))
        self.refused(UID + HUGE, d.buf_import, self.huge(HUGE_PAGE))

    def test_connections(self):
        clients = [self.connect() for _ in range(7)]
        over = self.connect(hello=False)
        error = self.refused(UID + CONNECTIONS, over.hello)
        self.assertEqual((error.n1, error.n2), (8, 8))
        self.assert_dropped(over)
        self.assert_served()
        clients[0].close()
        wait_until(self.comes_in, "a connection given back")

    def comes_in(self):
        try:
            self.connect()
        except (pc.Refused, OSError):
            return False
        return True



class TotalLimits(HostileCase):
    """What is limited for all together, and the size of a device's address spaces."""

    devices = [{"table_pages": 64}]
    config = {"limits": {"total_bytes": 1 << 62, "connection": {"bytes": 1 << 62, "tables": 1 << 40},
                         "uid": {"bytes": 1 << 62, "tables": 1 << 40}}}

    def test_no_room_on_the_bus(self):
        c = self.connect()
        self.refused(42, c.buf_import, self.sparse(1 << 47))
        self.assertEqual(self.refused(42, c.buf_import, self.sparse(1 << 61)).n1, 1 << 61)

    def test_table_pool(self):
        c = self.connect()
        ctx, buf = c.ctx_new(), c.buf_import(self.sparse(PAGE))[0]
        step = iter(range(1, 100))
        with self.assertRaises(pc.Refused) as caught:
            while True:
                c.map(ctx, buf, 0, PAGE, pc.READ | pc.FIXED, next(step) << 39)
        self.assertEqual((caught.exception.reason, caught.exception.n2), (132, 64))
        c.ctx_free(ctx)
        c.ctx_free(c.ctx_new())


class Total(HostileCase):
    config = {"limits": {"total_bytes": 32 * MIB}}

    def test_total(self):
        c, d = self.connect(), self.connect()
        buf = c.buf_import(self.sparse(20 * MIB))[0]
        error = self.refused(130, d.buf_import, self.sparse(20 * MIB))
        self.assertEqual((error.n1, error.n2), (20 * MIB, 32 * MIB))
        c.buf_free(buf)
        d.buf_import(self.sparse(20 * MIB))


class ManyMappings(HostileCase):
    def test_an_unmap_of_too_many(self):
        c = self.connect()
        w = Workspace(self, c)
        base, most = 1 << 32, 16384
        # So few at a time that the tables promised for them do not make the daemon's pool grow, which would stay.
        for first in range(0, most + 1, 128):
            c.bind(w.ctx, [(pc.MAP, pc.READ | pc.FIXED, w.buf, 0, base + n * PAGE, PAGE)
                           for n in range(first, min(first + 128, most + 1))])
        error = self.refused(12, c.unmap, w.ctx, base, (most + 1) * PAGE)
        self.assertEqual((error.n1, error.n2), (most + 1, most))
        self.assertEqual(c.ctx_info(w.ctx)["mappings"], most + 3)
        c.unmap(w.ctx, base, most * PAGE)
        c.unmap(w.ctx, base + most * PAGE, PAGE)
        self.assertEqual(c.ctx_info(w.ctx)["mappings"], 2)


class Rate(HostileCase):
    """The rate of messages is backpressure: never an error, never the end."""

    config = {"limits": {"connection": {"rate": 400}, "uid": {"rate": 100000}}}

    def test_rate(self):
        c = self.connect()
        began = time.monotonic()
        serials = [c.send(pc.DEVICES) for _ in range(100)]
        for _ in range(700):
            c.reply(serials.pop(0))
            serials.append(c.send(pc.DEVICES))
        for serial in serials:
            c.reply(serial)
        self.assertGreater(time.monotonic() - began, 0.5)

    def test_repeats_count(self):
        c = self.connect()
        serial = c.send(pc.DEVICES)
        c.reply(serial)
        message = struct.pack("<IHHQ", 16, pc.DEVICES, 0, serial)
        began = time.monotonic()
        for _ in range(700):
            c.sock.send(message)
            self.assertEqual(struct.unpack_from("<Q", c.sock.recv(1 << 16), 8)[0], serial)
        self.assertGreater(time.monotonic() - began, 0.5)


class ZComplete(unittest.TestCase):
    """Last: the table is complete, and each of its errors was seen."""

    def test_every_error_was_seen(self):
        seen = set(Recorder.seen)
        if len(seen) < 20:
            self.skipTest("only a part of the tests ran")
        if os.path.exists("/proc/sys/vm/nr_hugepages"):
            missing = every_reason() - seen - set(IMPOSSIBLE)
        else:
            missing = every_reason() - seen - set(IMPOSSIBLE) - {UID + HUGE, CONNECTION + HUGE}
        self.assertEqual(missing, set())
        self.assertEqual(seen - every_reason(), set())
        self.assertEqual(seen & set(IMPOSSIBLE), set())


if __name__ == "__main__":
    unittest.main()
