# SPDX-License-Identifier: MIT
"""A vfio-user device in Python that looks like a reference GPU, for tests of devices that lie.

It is honest by default: it answers as the protocol says, completes every job without doing it, invalidates at once,
obeys. Subclasses lie. A device serves one connection after another, in a thread of its own.
"""

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import threading

(VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE,
 RESET) = (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13)
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
HEADER = struct.Struct("<HHIII")

# Of the reference GPU, <pasid/refgpu.h>.
MAGIC, VERSION_GPU, SLOTS = 0x55504750, 1, 4
REG_MAILBOX, REG_INVQ_TAIL, REG_FAULTQ = 0x20, 0x38, 0x40
SLOT_BASE, SLOT_STRIDE, SLOT_RING, SLOT_TAIL, SLOT_CTRL = 0x1000, 0x80, 0x00, 0x10, 0x18
MAIL_INVQ_HEAD, MAIL_FAULTQ_TAIL, MAIL_SLOT = 0, 8, 64
MARK_BEGUN, MARK_DONE, MARK_ACK, MARK_STATE = 0, 8, 16, 24
RING_WORDS, RING_RUN = 64, 1
FAULT = struct.Struct("<IIQIIIIQQQ")


class Refusal(Exception):
    """An error reply."""


class Hangup(Exception):
    """The connection ends."""


def status_memfd():
    fd = os.memfd_create("fake-status", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    os.pwrite(fd, struct.pack("<4I", MAGIC, VERSION_GPU, SLOTS, 3), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


class FakeDevice:
    def __init__(self, path):
        self.path = path
        self.connections = 0
        self.status = status_memfd()
        self.stopping = False
        self.conn = None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(4)
        self.wake_r, self.wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.forget()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self):
        self.stopping = True
        os.write(self.wake_w, b"x")
        self.thread.join(10)
        self.listener.close()
        for fd in (self.status, self.wake_r, self.wake_w):
            os.close(fd)

    def forget(self):
        self.maps = {}
        self.writable_fds = {}
        self.irqs = []
        self.regs = {}

    # The connection.

    def wait_readable(self, sock):
        """False: the device is being closed."""
        select.select([sock, self.wake_r], [], [])
        return not self.stopping

    def _serve(self):
        while self.wait_readable(self.listener):
            self.conn, _ = self.listener.accept()
            self.connections += 1
            try:
                with self.conn:
                    self.talk()
            except (Hangup, OSError):
                pass
            finally:
                self.drop()

    def drop(self):
        for view, _, _ in self.maps.values():
            view.close()
        for fd in self.irqs:
            os.close(fd)
        self.forget()

    def read(self, size):
        data, fds = b"", []
        while len(data) < size:
            if not self.wait_readable(self.conn):
                raise Hangup
            more, control, _, _ = self.conn.recvmsg(min(size - len(data), 1 << 16), socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    got = array.array("i")
                    got.frombytes(payload)
                    fds += got
            if not more:
                raise Hangup
            data += more
        return data, fds

    def talk(self):
        while True:
            head, fds = self.read(HEADER.size)
            self.id, command, size, flags, _ = HEADER.unpack(head)
            payload, more = self.read(size - HEADER.size) if size > HEADER.size else (b"", [])
            fds += more
            try:
                self.message(command, flags, payload, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def message(self, command, flags, payload, fds):
        """fds are closed afterwards, except for those that are taken out."""
        try:
            answer, give = self.answer(command, payload, fds)
            error = 0
        except Refusal as refusal:
            answer, give, error = b"", [], refusal.args[0]
        if not flags & NO_REPLY:
            self.reply(command, answer, give, error)

    def reply(self, command, payload=b"", fds=(), error=0, id_=None):
        flags = REPLY | (ERROR if error else 0)
        head = HEADER.pack(self.id if id_ is None else id_, command, HEADER.size + len(payload), flags, error)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.conn.sendmsg([head + payload], control, socket.MSG_NOSIGNAL)

    # Answers: payload and fds.

    def answer(self, command, payload, fds):
        names = {VERSION: "version", DMA_MAP: "dma_map", DMA_UNMAP: "dma_unmap", GET_INFO: "get_info",
                 REGION_INFO: "region_info", IRQ_INFO: "irq_info", SET_IRQS: "set_irqs", REGION_READ: "region_read",
                 REGION_WRITE: "region_write", RESET: "reset"}
        return getattr(self, names[command])(payload, fds)

    def version(self, payload, fds):
        return struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":8}}\0', []

    def get_info(self, payload, fds):
        return struct.pack("<4I", 16, 3, 9, 5), []

    def region_info(self, payload, fds):
        index = struct.unpack_from("<I", payload, 8)[0]
        size, flags = {0: (0x10000, 3), 2: (0x1000, 5), 7: (256, 3)}.get(index, (0, 0))
        return struct.pack("<IIIIQQ", 32, flags, index, 0, size, 0), [self.status] if index == 2 else []

    def irq_info(self, payload, fds):
        return struct.pack("<4I", 16, 1, 2, 3), []

    def set_irqs(self, payload, fds):
        self.irqs += fds
        fds.clear()
        return b"", []

    def region_read(self, payload, fds):
        off, region, count = struct.unpack("<QII", payload)
        config = struct.pack("<HHHHI", 0x1234, 0x9A51, 0, 0, 0x03800001).ljust(256, b"\0")
        return payload + config[off:off + count], []

    def region_write(self, payload, fds):
        off, region, count = struct.unpack_from("<QII", payload)
        if region == 0:
            self.register(off, int.from_bytes(payload[16:16 + count], "little"))
        return payload[:16], []

    def dma_map(self, payload, fds):
        _, flags, off, bus, size = struct.unpack("<IIQQQ", payload)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if flags & 2 else 0)
        self.writable_fds[bus] = fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        self.maps[bus] = (mmap.mmap(fds[0], size, mmap.MAP_SHARED, prot, offset=off), size, flags)
        return b"", []

    def dma_unmap(self, payload, fds):
        bus = struct.unpack_from("<Q", payload, 8)[0]
        self.maps.pop(bus)[0].close()
        return payload, []

    def reset(self, payload, fds):
        self.regs = {}
        return b"", []

    # The GPU.

    def at(self, bus):
        for first, (view, size, _) in self.maps.items():
            if first <= bus < first + size:
                return view, bus - first
        raise Hangup(f"nothing is mapped at {bus:#x}")

    def load64(self, bus):
        view, off = self.at(bus)
        return struct.unpack_from("<Q", view, off)[0]

    def store64(self, bus, value):
        view, off = self.at(bus)
        struct.pack_into("<Q", view, off, value & (1 << 64) - 1)

    def mail(self, off, value):
        self.store64(self.regs[REG_MAILBOX] + off, value)

    def mark(self, slot, field, value):
        self.mail(MAIL_SLOT + 32 * slot + field, value)

    def interrupt(self, vector):
        os.eventfd_write(self.irqs[vector], 1)

    def register(self, off, value):
        self.regs[off] = value
        if off == REG_INVQ_TAIL:
            self.invalidate(value)
        elif off >= SLOT_BASE:
            slot, reg = divmod(off - SLOT_BASE, SLOT_STRIDE)
            if reg == SLOT_TAIL:
                self.doorbell(slot, value)
            elif reg == SLOT_CTRL:
                self.control(slot, value)

    def invalidate(self, tail):
        self.mail(MAIL_INVQ_HEAD, tail)
        self.interrupt(1)

    def word(self, slot, n):
        """op, asid, addr, len, job, fence."""
        view, off = self.at(self.regs[SLOT_BASE + slot * SLOT_STRIDE + SLOT_RING] + n % RING_WORDS * 64)
        return struct.unpack_from("<IIQQQQ", view, off)

    def doorbell(self, slot, tail):
        done = self.load64(self.regs[REG_MAILBOX] + MAIL_SLOT + 32 * slot + MARK_DONE)
        for n in range(done, tail):
            op, _, _, _, job, fence = self.word(slot, n)
            if op == RING_RUN:
                self.store64(fence, job)
        self.mark(slot, MARK_BEGUN, tail)
        self.mark(slot, MARK_DONE, tail)
        self.interrupt(0)

    def control(self, slot, value):
        if value & 0xFF == 4:
            self.mark(slot, MARK_DONE, self.regs.get(SLOT_BASE + slot * SLOT_STRIDE + SLOT_TAIL, 0))
        self.mark(slot, MARK_ACK, value)
        self.interrupt(0)

    def post_faults(self, faults):
        """faults: (slot, asid, addr, access, code, stalled, job)."""
        tail = self.load64(self.regs[REG_MAILBOX] + MAIL_FAULTQ_TAIL)
        for slot, asid, addr, access, code, stalled, job in faults:
            view, off = self.at(self.regs[REG_FAULTQ] + tail % 256 * FAULT.size)
            FAULT.pack_into(view, off, slot, asid, addr, access, 3, code, stalled, job, 0, 0)
            tail += 1
        self.mail(MAIL_FAULTQ_TAIL, tail)
        self.interrupt(2)
