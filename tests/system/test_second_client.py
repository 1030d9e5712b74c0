# SPDX-License-Identifier: MIT
"""The protocol as docs/protocol.md describes it, by a client that was written from that text alone."""

import errno
import fcntl
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from pasid_client import Client, Refused, memfd  # noqa: E402

PAGE = 4096
NOP, FILL = 0, 1


def command(op, value=0, dst=0, src=0, length=0):
    """A command of the reference GPU: 64 bytes."""
    return struct.pack("<IIQQQIIIIQQ", op, value, dst, src, length, 0, 0, 0, 0, 0, 0)


class SecondClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = harness.Stack()
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        with Client(cls.stack.socket) as c:
            cls.stack.await_device(c)
        cls.stack.await_rest()

    def setUp(self):
        self.before = self.stack.snapshot()
        self.client = self.connect()

    def tearDown(self):
        self.doCleanups()
        self.stack.await_snapshot(self.before)

    def connect(self, **args):
        client = Client(self.stack.socket, **args)
        self.addCleanup(client.close)
        return client

    def memory(self, size, **args):
        fd, view = memfd(size, **args)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        return fd, view

    def workspace(self, size=4 * PAGE):
        """A context with data and commands mapped: ctx, data view, data iova, command view, command iova."""
        c = self.client
        ctx = c.ctx_new()
        (data_fd, data), (cmd_fd, cmd) = self.memory(size), self.memory(PAGE)
        self.data_buf = c.buf_import(data_fd)[0]
        cmd_buf = c.buf_import(cmd_fd)[0]
        return ctx, data, c.map(ctx, self.data_buf, 0, size), cmd, c.map(ctx, cmd_buf, 0, PAGE, pc.READ)

    def refused(self, code, reason, call, *args):
        with self.assertRaises(Refused) as caught:
            call(*args)
        self.assertEqual((caught.exception.code, caught.exception.reason), (-code, reason))
        return caught.exception

    def assert_disconnected(self, client):
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):
            while True:
                client.receive_raw()

    # The handshake.

    def test_hello(self):
        self.assertGreaterEqual(self.client.in_flight, 16)
        self.assertGreaterEqual(self.client.bind_max, 256)
        self.assertEqual(self.client.msg_max, 65536)
        self.refused(errno.EINVAL, 10, self.client.hello)

    def test_hello_first(self):
        c = self.connect(hello=False)
        self.refused(errno.EINVAL, 10, c.devices)
        wrong = self.refused(errno.EOPNOTSUPP, 71, c.hello, 0x44534150, 7)
        self.assertEqual((wrong.n1, wrong.n2), (7, 1))
        c.hello()
        self.assertTrue(c.devices())

    def test_fence_memory_is_read_only(self):
        c = self.connect(hello=False)
        _, fds = c.call(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
        self.addCleanup(os.close, fds[0])
        self.assertEqual(fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDONLY)
        self.assertEqual(os.fstat(fds[0]).st_mode & 0o777, 0)

    def test_devices(self):
        self.assertEqual(self.client.devices(), [("gpu0", 1, 1)])
        info = self.client.device_info("gpu0")
        self.assertEqual((info["name"], info["engine"], info["slots"]), ("gpu0", "refgpu", 8))
        self.assertEqual(self.client.device_info(), info)
        self.assertTrue(info["page_sizes"] & PAGE)
        self.refused(errno.ENOENT, 22, self.client.device_info, "gpu1")

    # Memory and work.

    def test_fill(self):
        ctx, data, iova, cmd, cmd_iova = self.workspace()
        cmd[:64] = command(FILL, 0xC0FFEE42, iova, length=len(data))
        job = self.client.submit(ctx, cmd_iova, 64)
        self.assertEqual(job, 1)
        self.assertTrue(self.client.wait(ctx, job))
        self.assertEqual(data[:], struct.pack("<I", 0xC0FFEE42) * (len(data) // 4))
        info = self.client.ctx_info(ctx)
        self.assertEqual((info["mappings"], info["submitted"], info["completed"]), (2, 1, 1))
        self.assertIsNone(self.client.next_event())

    def test_unmap_then_fault(self):
        ctx, data, iova, cmd, cmd_iova = self.workspace()
        self.client.unmap(ctx, iova, len(data))
        data[:] = bytes(len(data))
        cmd[:64] = command(FILL, 1, iova + 64, length=64)
        disrupted = self.client.fence(ctx)[2]
        job = self.client.submit(ctx, cmd_iova, 64)
        self.assertTrue(self.client.wait(ctx, job))
        self.assertEqual(self.client.fence(ctx)[2], disrupted + 1)
        owner, dropped, faults = self.client.next_fault(0)  # it must be there by now
        self.assertEqual((owner, dropped, len(faults)), (ctx, 0, 1))
        self.assertEqual(faults[0][:4], (job, iova + 64, 2, 1))
        self.assertEqual(faults[0][6:8], (iova, iova + len(data) - 1))
        self.assertFalse(any(data[:]))
        # The context goes on.
        self.client.map(ctx, self.data_buf, 0, len(data), pc.READ | pc.WRITE | pc.FIXED, iova)
        self.assertTrue(self.client.wait(ctx, self.client.submit(ctx, cmd_iova, 64)))
        self.assertEqual(data[64:68], b"\1\0\0\0")

    def test_bind_list_is_all_or_nothing(self):
        ctx, data, iova, _, _ = self.workspace()
        ops = [(pc.UNMAP, 0, 0, 0, iova, len(data)),
               (pc.MAP, pc.READ | pc.FIXED, self.data_buf, 0, iova, PAGE),
               (pc.MAP, pc.READ | pc.FIXED, self.data_buf, 0, iova, PAGE)]
        error = self.refused(errno.EEXIST, 30, self.client.bind, ctx, ops)
        self.assertEqual((error.index, error.n1, error.n2), (2, iova, iova + PAGE - 1))
        self.assertEqual(self.client.ctx_info(ctx)["mapped_bytes"], len(data) + PAGE)
        self.assertEqual(self.client.bind(ctx, ops[:2]), [iova, iova])

    # Refusals.

    def test_bind_refusals(self):
        ctx, data, iova, _, _ = self.workspace()
        c, buf, big = self.client, self.data_buf, 1 << 63
        fixed = pc.READ | pc.FIXED
        far = iova + (1 << 30)
        for code, reason, op in (
                (errno.EINVAL, 1, (pc.MAP, fixed, buf, 0, far + 1, PAGE)),
                (errno.EINVAL, 1, (pc.MAP, fixed, buf, 0, far, PAGE - 1)),
                (errno.EINVAL, 1, (pc.MAP, fixed, buf, 64, far, PAGE)),
                (errno.EINVAL, 2, (pc.MAP, fixed, buf, 0, far, 0)),
                (errno.EINVAL, 3, (pc.UNMAP, 0, 0, 0, big, big + PAGE)),
                (errno.EINVAL, 4, (pc.MAP, fixed | 8, buf, 0, far, PAGE)),
                (errno.EINVAL, 4, (pc.MAP, pc.WRITE | pc.FIXED, buf, 0, far, PAGE)),
                (errno.EINVAL, 5, (pc.UNMAP, 0, buf, 0, iova, PAGE)),
                (errno.EINVAL, 9, (3, 0, 0, 0, iova, PAGE)),
                (errno.ENOENT, 21, (pc.MAP, fixed, buf + 99, 0, far, PAGE)),
                (errno.ENOENT, 23, (pc.UNMAP, 0, 0, 0, far, PAGE)),
                (errno.EEXIST, 30, (pc.MAP, fixed, buf, 0, iova, PAGE)),
                (errno.ERANGE, 40, (pc.MAP, fixed, buf, 0, big, PAGE)),
                (errno.ERANGE, 41, (pc.MAP, fixed, buf, len(data), far, PAGE))):
            with self.subTest(reason=reason, op=op):
                self.assertEqual(self.refused(code, reason, c.bind, ctx, [op]).index, 0)
        self.refused(errno.EINVAL, 2, c.bind, ctx, [])
        self.refused(errno.ENOENT, 20, c.bind, ctx + 1000, [(pc.UNMAP, 0, 0, 0, iova, PAGE)])

    def test_frame_refusals(self):
        ctx, _, _, _, cmd_iova = self.workspace()
        c = self.client
        fd = self.memory(PAGE)[0]
        self.assertEqual(self.refused(errno.EINVAL, 7, c.call, 99).n1, 99)
        error = self.refused(errno.EINVAL, 6, c.call, pc.DEVICES, b"12345678")
        self.assertEqual((error.n1, error.n2), (24, 16))
        self.refused(errno.EINVAL, 5, c.call, pc.CTX_FREE, struct.pack("<II", ctx, 1))
        self.refused(errno.EINVAL, 8, c.call, pc.DEVICES, b"", [fd])
        self.refused(errno.EINVAL, 8, c.call, pc.BUF_IMPORT, pc.name("") + bytes(8))
        c.send_raw(pc.HEADER.pack(16, pc.DEVICES, 1, c.serial))  # says one fd, brings none
        c.serial += 1
        self.refused(errno.EINVAL, 8, c.reply, c.serial - 1)
        self.refused(errno.EINVAL, 2, c.submit, ctx, cmd_iova, 0)
        self.refused(errno.EINVAL, 1, c.submit, ctx, cmd_iova, 63)
        limit = c.device_info()["submit_max"]
        self.assertEqual(self.refused(errno.ERANGE, 43, c.submit, ctx, cmd_iova, limit + 64).n2, limit)

    def test_import_refusals(self):
        c = self.client
        self.assertEqual(self.refused(errno.EPERM, 60, c.buf_import, self.memory(PAGE, seals=0)[0]).n2,
                         fcntl.F_SEAL_SHRINK)
        null = os.open("/dev/null", os.O_RDWR)
        self.addCleanup(os.close, null)
        self.refused(errno.EOPNOTSUPP, 70, c.buf_import, null)
        odd = os.memfd_create("odd", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, odd)
        os.ftruncate(odd, PAGE + 1)
        fcntl.fcntl(odd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.refused(errno.EINVAL, 1, c.buf_import, odd)
        fd = os.open(f"/proc/self/fd/{self.memory(PAGE)[0]}", os.O_RDONLY)
        self.addCleanup(os.close, fd)
        buf, size, writable = c.buf_import(fd)
        self.assertEqual((size, writable), (PAGE, 0))
        ctx = c.ctx_new()
        self.refused(errno.EACCES, 50, c.map, ctx, buf, 0, PAGE)
        c.map(ctx, buf, 0, PAGE, pc.READ)
        c.buf_free(buf)
        self.refused(errno.ENOENT, 21, c.buf_free, buf)

    def test_foreign_ids(self):
        ctx, _, iova, _, cmd_iova = self.workspace()
        thief = self.connect()
        unknown = [thief.ctx_free, thief.ctx_info]
        for call in unknown:
            self.assertEqual(self.refused(errno.ENOENT, 20, call, ctx).n1, ctx)
            self.assertEqual(self.refused(errno.ENOENT, 20, call, 0xFFFFFFFF).n1, 0xFFFFFFFF)
        self.refused(errno.ENOENT, 20, thief.submit, ctx, cmd_iova, 64)
        self.refused(errno.ENOENT, 20, thief.unmap, ctx, iova, PAGE)
        self.assertEqual(self.client.ctx_info(ctx)["mappings"], 2)

    # Serials.

    def test_repeated_serial(self):
        c = self.client
        body = pc.name("") + bytes(8)
        serial = c.send(pc.CTX_NEW, body)
        first, _ = c.reply(serial)
        c.send(pc.CTX_NEW, body, serial=serial)
        again, _ = c.reply(serial)
        self.assertEqual(first, again)
        c.send(pc.DEVICES, b"", serial=serial)  # only the serial counts
        self.assertEqual(c.reply(serial)[0], first)
        ctx = struct.unpack_from("<I", first)[0]
        self.assertEqual(c.ctx_new(), ctx + 1)  # ids rise by one: nothing was executed in between

    def test_repeated_hello_brings_its_fd(self):
        c = self.client
        c.send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0), serial=1)
        _, fds = c.reply(1)
        self.assertEqual(len(fds), 1)
        os.close(fds[0])

    def test_many_in_flight(self):
        serials = [self.client.send(pc.DEVICES) for _ in range(self.client.in_flight)]
        replies = [self.client.receive_raw()[1] for _ in serials]
        self.assertEqual(replies, serials)

    def test_old_serial_disconnects(self):
        for _ in range(17):
            self.client.devices()
        self.client.send(pc.DEVICES, serial=1)
        self.assert_disconnected(self.client)

    def test_broken_frames_disconnect(self):
        for record in (pc.HEADER.pack(16, pc.DEVICES, 0, 3),  # skips 2
                       pc.HEADER.pack(16, pc.DEVICES, 0, 0),
                       pc.HEADER.pack(16, pc.DEVICES, 0, (1 << 64) - 1),
                       pc.HEADER.pack(17, pc.DEVICES, 0, 2),
                       pc.HEADER.pack(16, pc.DEVICES, 0, 2)[:15],
                       pc.HEADER.pack(65537, pc.DEVICES, 0, 2) + bytes(65521)):
            with self.subTest(record=record[:16].hex()):
                c = self.connect()
                c.send_raw(record)
                self.assert_disconnected(c)
        self.assertTrue(self.client.devices())

    def test_death_ends_everything(self):
        other = Client(self.stack.socket)
        fd, _ = self.memory(PAGE)
        ctx = other.ctx_new()
        other.map(ctx, other.buf_import(fd)[0], 0, PAGE)
        other.close()  # tearDown looks whether everything is back where it began
        self.refused(errno.ENOENT, 20, self.client.ctx_info, ctx)


if __name__ == "__main__":
    unittest.main()
