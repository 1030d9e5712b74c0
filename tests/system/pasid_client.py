# SPDX-License-Identifier: MIT
"""A second client of pasidd, written from docs/protocol.md alone: it shares nothing with libpasid.

One request is out at a time. Events that come in between are kept in `events`, replies that nobody waits for are
dropped. A refusal is raised as Refused; the end of the connection as ConnectionResetError.
"""

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import time

HELLO, DEVICES, DEVICE_INFO, CTX_NEW, CTX_FREE, CTX_INFO, BUF_IMPORT, BUF_FREE, BIND, SUBMIT = range(1, 11)
EV_FAULT, EV_LOST, EV_RESUMED, EV_DEVICE_BACK = 0x8001, 0x8002, 0x8003, 0x8004
READ, WRITE, FIXED = 1, 2, 4
MAP, UNMAP = 1, 2

HEADER = struct.Struct("<IHHQ")
REPLY = struct.Struct("<iIIIQQ")
FAULT = struct.Struct("<QQIIQQQQQ")
MSG_MAX = 65536


class Refused(Exception):
    def __init__(self, code, reason, index, n1, n2):
        super().__init__(f"code {code} reason {reason} index {index} n1 {n1:#x} n2 {n2:#x}")
        self.code, self.reason, self.index, self.n1, self.n2 = code, reason, index, n1, n2


def name(text):
    return text.encode().ljust(32, b"\0")


def memfd(size, seals=fcntl.F_SEAL_SHRINK):
    """A memfd that the daemon takes: the fd and a mapping of it."""
    fd = os.memfd_create("second-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd, mmap.mmap(fd, size)


class Client:
    def __init__(self, where, hello=True):
        """where: a path, or the fd of a connection that is there already."""
        if isinstance(where, int):
            self.sock = socket.socket(fileno=where)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.sock.connect(where)
        self.sock.settimeout(30)  # a daemon that says nothing for so long is a failed test
        self.serial = 1
        self.events = []
        self.lines = {}  # context -> fence line
        self.fences = None
        if hello:
            self.hello()

    def close(self):
        self.sock.close()
        if self.fences is not None:
            self.fences.close()
            self.fences = None
        self.fences = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Records.

    def send_raw(self, record, fds=()):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([record], control, socket.MSG_NOSIGNAL)

    def receive_raw(self):
        """One record and the fds that came with it."""
        data, control, _, _ = self.sock.recvmsg(MSG_MAX + 1, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload)
        if not data:
            raise ConnectionResetError("the daemon ended the connection")
        size, opcode, n_fds, serial = HEADER.unpack_from(data)
        assert size == len(data) and n_fds == len(fds), (size, len(data), n_fds, len(fds))
        if serial == 0:
            self.events.append((opcode, data[16:]))
        return opcode, serial, data[16:], list(fds)

    def send(self, opcode, body=b"", fds=(), serial=None):
        if serial is None:
            serial = self.serial
            self.serial += 1
        self.send_raw(HEADER.pack(16 + len(body), opcode, len(fds), serial) + body, fds)
        return serial

    def reply(self, serial):
        """Waits for the reply with this serial: its body and fds."""
        while True:
            _, got, data, fds = self.receive_raw()
            if got == serial:
                break
            for fd in fds:
                os.close(fd)
        code, reason, index, _, n1, n2 = REPLY.unpack_from(data)
        if code:
            raise Refused(code, reason, index, n1, n2)
        return data[REPLY.size:], fds

    def call(self, opcode, body=b"", fds=()):
        return self.reply(self.send(opcode, body, fds))

    # Requests.

    def hello(self, magic=0x44534150, version=1):
        body, fds = self.call(HELLO, struct.pack("<IIQ", magic, version, 0))
        _, self.msg_max, self.bind_max, self.in_flight, _, size = struct.unpack("<IIIIQQ", body)
        self.fences = mmap.mmap(fds[0], size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fds[0])

    def devices(self):
        body, _ = self.call(DEVICES)
        return [(n.rstrip(b"\0").decode(), mode, present) for n, mode, present in struct.iter_unpack("<32sII", body)]

    def device_info(self, device=""):
        keys = ("name engine mode present page_sizes iova_first iova_last features pasid_bits slots job_limit_ms "
                "submit_max").split()
        info = dict(zip(keys, struct.unpack("<32s32sIIQQQQIIII", self.call(DEVICE_INFO, name(device))[0])))
        info["name"], info["engine"] = (info[k].rstrip(b"\0").decode() for k in ("name", "engine"))
        return info

    def ctx_new(self, device=""):
        ctx, _, line, _ = struct.unpack("<IIII", self.call(CTX_NEW, name(device) + bytes(8))[0])
        self.lines[ctx] = line
        return ctx

    def ctx_free(self, ctx):
        self.call(CTX_FREE, struct.pack("<II", ctx, 0))

    def ctx_info(self, ctx):
        keys = "ctx pasid state reserved mappings mapped_bytes table_bytes submitted completed faults switches".split()
        return dict(zip(keys, struct.unpack("<IIII7Q", self.call(CTX_INFO, struct.pack("<II", ctx, 0))[0])))

    def buf_import(self, fd, device=""):
        """The buffer, its size, and whether it is writable."""
        size, buf, writable = struct.unpack("<QII", self.call(BUF_IMPORT, name(device) + bytes(8), [fd])[0])
        return buf, size, writable

    def buf_free(self, buf):
        self.call(BUF_FREE, struct.pack("<II", buf, 0))

    def bind(self, ctx, ops):
        """ops: (kind, flags, buf, off, iova, len). The IOVA of each."""
        body = struct.pack("<II", ctx, len(ops))
        body += b"".join(struct.pack("<IIIIQQQ", k, f, b, 0, off, iova, length) for k, f, b, off, iova, length in ops)
        return list(struct.unpack(f"<{len(ops)}Q", self.call(BIND, body)[0]))

    def map(self, ctx, buf, off, length, flags=READ | WRITE, iova=0):
        return self.bind(ctx, [(MAP, flags, buf, off, iova, length)])[0]

    def unmap(self, ctx, iova, length):
        self.bind(ctx, [(UNMAP, 0, 0, 0, iova, length)])

    def submit(self, ctx, iova, length):
        return struct.unpack("<Q", self.call(SUBMIT, struct.pack("<IIQQ", ctx, 0, iova, length))[0])[0]

    # Fences and events.

    def fence(self, ctx):
        """done, state, disrupted."""
        return struct.unpack_from("<QII", self.fences, 64 * self.lines[ctx])

    def wait(self, ctx, job, timeout=20):
        """Waits for a job. True: complete. False: the context is lost."""
        end = time.monotonic() + timeout
        while True:
            done, state, _ = self.fence(ctx)
            if done >= job:
                return True
            if state:
                return self.fence(ctx)[0] >= job
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} of context {ctx}: done is {done}")
            os.sched_yield()

    def next_event(self, timeout=0):
        """The next event as (opcode, body), or None."""
        end = time.monotonic() + timeout
        while not self.events:
            if not select.select([self.sock], [], [], max(0, end - time.monotonic()))[0]:
                return None
            self.receive_raw()
        return self.events.pop(0)

    def next_fault(self, timeout=10):
        """The faults of the next FAULT event: ctx, dropped, [(job, addr, access, code, near..., gone..., age)]."""
        event = self.next_event(timeout)
        assert event and event[0] == EV_FAULT, event
        ctx, count, dropped = struct.unpack_from("<IIQ", event[1])
        return ctx, dropped, [FAULT.unpack_from(event[1], 16 + i * FAULT.size) for i in range(count)]
