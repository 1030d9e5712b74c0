# SPDX-License-Identifier: MIT
"""Frames and serials: short, long, garbled, unknown, repeated, skipped, wrapped, cut."""

import os
import random
import socket
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pasid_client as pc  # noqa: E402
from hostile import DEVICE_BODY, HELLO_BODY, PAGE, HostileCase, Workspace, enum_of, operation  # noqa: E402
from pasid_client import HEADER, Refused  # noqa: E402

BODIES = {pc.HELLO: 16, pc.DEVICES: 0, pc.DEVICE_INFO: 32, pc.CTX_NEW: 40, pc.CTX_FREE: 8, pc.CTX_INFO: 8,
          pc.BUF_IMPORT: 40, pc.BUF_FREE: 8, pc.BIND: 8, pc.SUBMIT: 24}
FUZZ_ROUNDS = 10000


class Frames(HostileCase):
    def test_broken_frames_disconnect(self):
        def devices(serial=2, size=16, extra=b""):
            return HEADER.pack(size, pc.DEVICES, 0, serial) + extra

        records = [devices()[:n] for n in range(1, 16)]  # short
        records += [devices(size=size) for size in (0, 1, 15, 17, 65536, 65537, 1 << 31, (1 << 32) - 1)]
        records += [devices(extra=b"x"), devices() + devices(3), devices(size=32) + devices(3)[:15]]
        records += [devices(size=65537, extra=bytes(65521)), devices(size=100000, extra=bytes(99984))]
        records += [devices(serial) for serial in (0, 3, 18, 1 << 32, (1 << 64) - 1)]
        for record in records:
            with self.subTest(record=record[:16].hex(), length=len(record)):
                c = self.connect()
                c.send_raw(record)
                self.assert_dropped(c)
                first = self.connect(hello=False)  # as the very first message
                if record[8:16] != struct.pack("<Q", 2) or len(record) != 16:
                    first.send_raw(record)
                    self.assert_dropped(first)

    def test_empty_record_ends(self):
        c = self.connect()
        c.send_raw(b"")
        self.assert_dropped(c)

    def test_the_longest_message_is_fine(self):
        c = self.connect()
        error = self.refused(6, c.call, pc.DEVICES, bytes(65536 - 16))
        self.assertEqual((error.n1, error.n2), (65536, 16))
        self.assertTrue(c.devices())

    def test_unknown_opcodes(self):
        c = self.connect()
        for opcode in [0, *range(11, 300), 0x7FFF, 0x8000, 0x8001, 0x8002, 0x8003, 0x8004, 0xFFFF]:
            self.assertEqual(self.refused(7, c.call, opcode, bytes(opcode % 64)).n1, opcode)
        self.assertTrue(c.devices())

    def test_nothing_before_hello(self):
        c = self.connect(hello=False)
        for opcode, size in BODIES.items():
            if opcode != pc.HELLO:
                self.refused(10, c.call, opcode, bytes(size))
                self.refused(10, c.call, opcode, bytes(size + 1))
        self.refused(7, c.call, 4711)
        self.refused(71, c.hello, 0x44534151)
        self.refused(71, c.hello, 0x44534150, 0)
        self.refused(71, c.hello, 0x44534150, (1 << 32) - 1)
        self.refused(6, c.call, pc.HELLO, HELLO_BODY + b"x")
        c.call(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, (1 << 64) - 1))  # unknown capabilities are ignored
        self.refused(10, c.call, pc.HELLO, HELLO_BODY)

    def test_body_sizes(self):
        c = self.connect()
        for opcode, right in BODIES.items():
            fds = [self.memory(PAGE)[0]] if opcode == pc.BUF_IMPORT else []
            for size in {0, 1, 7, 8, 15, 16, 24, 32, 33, 39, 40, 41, 48, 65520} - {right}:
                if opcode == pc.HELLO or opcode == pc.BIND and size >= right:
                    continue
                error = self.refused(6, c.call, opcode, bytes(size), fds)
                self.assertEqual((error.n1, error.n2), (16 + size, 16 + right))
        ctx = c.ctx_new()
        for count, size in ((1, 39), (1, 41), (2, 40), (1, 80), (1024, 40)):
            self.refused(6, c.call, pc.BIND, struct.pack("<II", ctx, count) + bytes(size))
        for count in (1025, 1 << 16, 1 << 31, (1 << 32) - 1):
            error = self.refused(11, c.call, pc.BIND, struct.pack("<II", ctx, count) + bytes(40))
            self.assertEqual((error.n1, error.n2), (count, 1024))
        self.assertEqual(self.refused(9, c.call, pc.BIND, struct.pack("<II", ctx, 1024) + bytes(40960)).n1, 0)

    def test_reserved_fields(self):
        c = self.connect()
        w = Workspace(self, c)
        fd = self.memory(PAGE)[0]
        for flags, reserved in ((2, 0), (1 << 31, 0), (0, 1), (0, 1 << 31)):
            for opcode, fds in ((pc.CTX_NEW, []), (pc.BUF_IMPORT, [fd])):
                body = pc.name("") + struct.pack("<II", flags, reserved)
                self.assertEqual(self.refused(4 if flags else 5, c.call, opcode, body, fds).n1, flags)
        for opcode, ident in ((pc.CTX_FREE, w.ctx), (pc.CTX_INFO, w.ctx), (pc.BUF_FREE, w.buf)):
            self.refused(5, c.call, opcode, struct.pack("<II", ident, 1 << 31))
        self.refused(5, c.call, pc.SUBMIT, struct.pack("<IIQQ", w.ctx, 1, w.cmd_iova, 64))
        unmap = {"kind": pc.UNMAP, "flags": 0, "iova": w.iova}
        for op in (operation(buf=w.buf, reserved=1, iova=1 << 30), operation(reserved=1, **unmap),
                   operation(buf=1, **unmap), operation(off=PAGE, **unmap)):
            self.refused(5, c.call, pc.BIND, struct.pack("<II", w.ctx, 1) + op)
        self.assertEqual(c.ctx_info(w.ctx)["mappings"], 2)

    def test_names_of_devices(self):
        c = self.connect()
        for name in (b"x" * 32, b"gpu0" + b"x" * 28, b"\0" * 31 + b"x", b"\xff" * 31 + b"\0", b"gpu".ljust(32, b"\0"),
                     b"GPU0".ljust(32, b"\0"), b"gpu0 ".ljust(32, b"\0"), b"%s%n%s".ljust(32, b"\0")):
            with self.subTest(name=name):
                if name[0]:
                    self.refused(22, c.call, pc.DEVICE_INFO, name)
                    self.refused(22, c.call, pc.CTX_NEW, name + bytes(8))
                    self.refused(22, c.call, pc.BUF_IMPORT, name + bytes(8), [self.memory(PAGE)[0]])

    # Serials.

    def test_serials_at_the_edge_of_what_is_kept(self):
        c = self.connect()
        replies = {}
        for _ in range(30):
            serial = c.send(pc.CTX_NEW, DEVICE_BODY)
            replies[serial] = c.reply(serial)[0]
        for serial in range(c.serial - 16, c.serial):
            c.send(pc.BUF_IMPORT, b"whatever", [self.memory(PAGE)[0]] * 3, serial=serial)
            self.assertEqual(c.reply(serial)[0], replies[serial])
        self.assertEqual(c.ctx_info(struct.unpack_from("<I", replies[c.serial - 1])[0])["mappings"], 0)
        c.send(pc.DEVICES, serial=c.serial - 17)
        self.assert_dropped(c)

    def test_repeats_are_not_executed(self):
        c = self.connect()
        w = Workspace(self, c)
        length = w.put(struct.pack("<IIQQQIIIIQQ", 4, 1, w.iova, 0, 0, 0, 0, 0, 0, 0, 0))  # ATOMIC: add 1
        body = struct.pack("<IIQQ", w.ctx, 0, w.cmd_iova, length)
        serial = c.send(pc.SUBMIT, body)
        for _ in range(100):
            c.send(pc.SUBMIT, body, serial=serial)
        self.assertTrue(c.wait(w.ctx, 1))
        last = c.submit(w.ctx, w.cmd_iova, length)
        self.assertEqual(last, 2)
        self.assertTrue(c.wait(w.ctx, last))
        self.assertEqual(struct.unpack_from("<Q", w.data)[0], 2)

    def test_repeated_refusals(self):
        c = self.connect()
        for _ in range(3):
            c.send(4711, serial=c.serial)
            self.refused(7, c.reply, c.serial)
        c.serial += 1
        self.assertTrue(c.devices())

    # What SEQPACKET allows beyond records.

    def test_half_closed(self):
        c = self.connect()
        serials = [c.send(pc.DEVICES) for _ in range(10)]
        c.sock.shutdown(socket.SHUT_WR)
        for serial in serials:
            c.reply(serial)
        self.assert_dropped(c)
        deaf = self.connect()
        deaf.sock.shutdown(socket.SHUT_RD)
        try:
            for _ in range(100):
                deaf.send(pc.DEVICES)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def test_more_in_flight_than_allowed(self):
        c = self.connect()
        serials = [c.send(pc.DEVICES) for _ in range(100)]
        for serial in serials:
            c.reply(serial)

    def test_oob_and_empty_control(self):
        c = self.connect()
        with self.assertRaises(OSError):
            c.sock.send(HEADER.pack(16, pc.DEVICES, 0, c.serial), socket.MSG_OOB)
        record = HEADER.pack(16, pc.DEVICES, 0, c.serial)
        me = struct.pack("iII", os.getpid(), os.getuid(), os.getgid())
        c.sock.sendmsg([record], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, me)])
        c.serial += 1
        c.reply(c.serial - 1)

    # Random ones.

    def random_message(self, rng, c, ids):
        """A message that is more or less right: opcode, body, fds, and whether its frame is a good one."""
        numbers = [0, 1, 2, 3, 7, 63, 64, 4095, 4096, 4097, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
                   1 << 32, 1 << 47, (1 << 48) - PAGE, 1 << 48, (1 << 63), (1 << 64) - PAGE, (1 << 64) - 1]

        def u64():
            return rng.choice(numbers) if rng.random() < 0.9 else rng.getrandbits(64)

        def u32():
            return (rng.choice(ids) if rng.random() < 0.6 else u64()) & 0xFFFFFFFF

        def op():
            kind = rng.choice([1, 1, 1, 2, 2, u32()])
            flags = rng.choice([0, 1, 3, 5, 7, u32()])
            return struct.pack("<IIIIQQQ", kind, flags, rng.choice([0, u32()]), rng.choice([0, 0, 0, 0, u32()]),
                               rng.choice([0, u64()]), rng.choice([0, u64()]), rng.choice([PAGE, u64()]))

        opcode = rng.choice([*BODIES, pc.BIND, pc.BIND, pc.SUBMIT, rng.getrandbits(16)])
        if opcode == pc.BIND:
            n = rng.choice([0, 1, 1, 1, 2, 3, 50])
            body = struct.pack("<II", u32(), n if rng.random() < 0.95 else u32()) + b"".join(op() for _ in range(n))
        elif opcode == pc.SUBMIT:
            body = struct.pack("<IIQQ", u32(), rng.choice([0, 0, 0, u32()]), u64(), rng.choice([64, 128, u64()]))
        elif opcode in (pc.CTX_NEW, pc.BUF_IMPORT, pc.DEVICE_INFO):
            body = pc.name(rng.choice(["", "", "gpu0", "gpu1"]))
            body += b"" if opcode == pc.DEVICE_INFO else struct.pack("<II", rng.choice([0, 0, u32()]), 0)
        else:
            body = struct.pack("<II", u32(), rng.choice([0, 0, 0, u32()]))[: BODIES.get(opcode, 8)]
        if rng.random() < 0.1:
            body = bytearray(body or b"x")
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.05:
            body = rng.randbytes(rng.randrange(200))
        fds = [self.fuzz_fd] if opcode == pc.BUF_IMPORT else []
        if rng.random() < 0.05:
            fds = [rng.choice([self.fuzz_fd, 0, 1])] * rng.randrange(4)
        return opcode, bytes(body), fds, rng.random() >= 0.01

    def test_garbled(self):
        seed = int(os.environ.get("PASID_SEED", random.SystemRandom().getrandbits(32)))
        print(f"# seed: PASID_SEED={seed}", flush=True)
        rng = random.Random(seed)
        self.fuzz_fd = self.memory(16 * PAGE)[0]
        reasons = set(enum_of("pasid_reason").values()) - {90, 110}
        reasons |= {base + r for base in (90, 110) for r in range(9)}
        c, ids, last = None, [0], None
        for i in range(FUZZ_ROUNDS):
            if c is None:
                c, ids = self.connect(), [0, 1, 2]
            opcode, body, fds, good = self.random_message(rng, c, ids)
            last = (seed, i, opcode, body.hex(), fds, good)
            try:
                if not good:
                    size = rng.choice([0, 15, 16 + len(body) + 1, rng.getrandbits(32)])
                    c.send_raw(HEADER.pack(size, opcode, len(fds), c.serial) + body, fds)
                    self.assert_dropped(c)
                    c.close()
                    c = None
                    continue
                reply, got = c.call(opcode, body, fds)
                for fd in got:
                    os.close(fd)
                if opcode in (pc.CTX_NEW, pc.BUF_IMPORT):
                    ids.append(struct.unpack_from("<I", reply, 0 if opcode == pc.CTX_NEW else 8)[0])
                if rng.random() < 0.3:
                    c.events.clear()
            except Refused as refused:
                self.assertIn(refused.reason, reasons, last)
                self.assertLess(refused.code, 0, last)
            except ConnectionResetError:
                self.fail(f"a good frame was answered by the end of the connection: {last}\n{self.stack.log_tail()}")

    def test_noise(self):
        """Records of nothing but noise: every connection ends, mostly at its first one."""
        seed = int(os.environ.get("PASID_SEED", random.SystemRandom().getrandbits(32)))
        print(f"# seed: PASID_SEED={seed}", flush=True)
        rng = random.Random(seed)
        for _ in range(200):
            c = self.connect(hello=rng.random() < 0.5)
            c.send_raw(rng.randbytes(rng.choice([1, 15, 16, 17, 48, 4096, 65536])))
            self.assert_dropped(c)
            c.close()


if __name__ == "__main__":
    unittest.main()
