# SPDX-License-Identifier: MIT
"""A small D-Bus client, which can also do what a library would not: leave calls open, send what nobody asked for, not read.

Values are Python's; a variant is (signature, value), and reads as its value. A connection may be made by another uid: the
bus believes what the kernel says of whoever called connect(2).
"""

import array
import collections
import os
import select
import socket
import struct
import time

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
BASIC = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
ALIGN = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4, "s": 4, "o": 4, "g": 1, "v": 1,
         "a": 4, "(": 8, "{": 8}
FIELDS = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}
DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

Message = collections.namedtuple("Message", "type serial path interface member error reply_to destination sender "
                                            "signature body fds")


class Error(Exception):
    def __init__(self, name, text):
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


def first_type(signature):
    """The length of the first complete type."""
    i = 0
    while signature[i] == "a":
        i += 1
    depth = 0
    while True:
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(signature[i], 0)
        i += 1
        if depth == 0:
            return i


def types(signature):
    while signature:
        n = first_type(signature)
        yield signature[:n]
        signature = signature[n:]


class Writer:
    def __init__(self):
        self.data = bytearray()

    def align(self, n):
        self.data += bytes(-len(self.data) % n)

    def put(self, kind, value):
        c = kind[0]
        self.align(ALIGN[c])
        if c in BASIC:
            self.data += struct.pack("<" + BASIC[c], value)
        elif c in "so":
            text = value.encode()
            self.data += struct.pack("<I", len(text)) + text + b"\0"
        elif c == "g":
            self.data += bytes([len(value)]) + value.encode() + b"\0"
        elif c == "v":
            self.put("g", value[0])
            self.put(*value)
        elif c == "a":
            self.put_array(kind[1:], value)
        else:
            for part, v in zip(types(kind[1:-1]), value, strict=True):
                self.put(part, v)

    def put_array(self, kind, values):
        at = len(self.data)
        self.data += bytes(4)
        self.align(ALIGN[kind[0]])
        begin = len(self.data)
        for value in values.items() if isinstance(values, dict) else values:
            self.put(kind, value)
        struct.pack_into("<I", self.data, at, len(self.data) - begin)


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def align(self, n):
        self.at += -self.at % n

    def take(self, form):
        value, = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def get(self, kind):
        c = kind[0]
        self.align(ALIGN[c])
        if c in BASIC:
            value = self.take(BASIC[c])
            return bool(value) if c == "b" else value
        if c in "sog":
            n = self.take("I" if c != "g" else "B")
            text = self.data[self.at:self.at + n].decode()
            self.at += n + 1
            return text
        if c == "v":
            return self.get(self.get("g"))
        if c == "a":
            return self.get_array(kind[1:])
        return tuple(self.get(part) for part in types(kind[1:-1]))

    def get_array(self, kind):
        n = self.take("I")
        self.align(ALIGN[kind[0]])
        end = self.at + n
        values = []
        while self.at < end:
            values.append(self.get(kind))
        return dict(values) if kind[0] == "{" else values


class Bus:
    """A connection to the bus at a socket's path; as uid, with groups, if they are given (which takes root)."""

    def __init__(self, path, uid=None, groups=()):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.uid = os.geteuid() if uid is None else uid
        self._connect(path, uid, groups)
        self.buffer, self.fds = b"", []
        self.serial = 0
        self.signals, self.replies = collections.deque(), {}
        self._greet()
        self.name = self.call(*DRIVER, "Hello")

    def _connect(self, path, uid, groups):
        if uid is None:
            self.sock.connect(path)
            return
        before = os.getgroups(), os.getegid()
        try:
            os.setgroups(groups)
            os.setegid(uid)
            os.seteuid(uid)
            self.sock.connect(path)
        finally:
            os.seteuid(0)
            os.setegid(before[1])
            os.setgroups(before[0])

    def _greet(self):
        def line(text):
            self.sock.sendall(text + b"\r\n")
            answer = b""
            while not answer.endswith(b"\r\n"):
                answer += self.sock.recv(1)
            return answer

        answer = line(b"\0AUTH EXTERNAL " + str(self.uid).encode().hex().encode())
        assert answer.startswith(b"OK"), answer
        answer = line(b"NEGOTIATE_UNIX_FD")
        assert answer.startswith(b"AGREE_UNIX_FD"), answer
        self.sock.sendall(b"BEGIN\r\n")

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Sending.

    def send(self, destination, path, interface, member, signature="", *args, fds=(), flags=0, body=None):
        """Sends a call and does not wait; its serial. body: bytes that are sent whatever the signature says."""
        self.serial += 1
        w = Writer()
        for kind, value in zip(types(signature), args):
            w.put(kind, value)
        data = bytes(w.data) if body is None else body
        fields = [(1, ("o", path)), (3, ("s", member)), (6, ("s", destination))]
        if interface:
            fields.append((2, ("s", interface)))
        if signature:
            fields.append((8, ("g", signature)))
        if fds:
            fields.append((9, ("u", len(fds))))
        head = Writer()
        head.data += struct.pack("<BBBBII", ord("l"), CALL, flags, 1, len(data), self.serial)
        head.put("a(yv)", fields)
        head.align(8)
        message = bytes(head.data) + data
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        n = self.sock.sendmsg([message], ancillary)
        self.sock.sendall(message[n:])
        return self.serial

    # Receiving.

    def _fill(self, timeout):
        if not select.select([self.sock], [], [], timeout)[0]:
            return False
        data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                got = array.array("i")
                got.frombytes(raw[:len(raw) - len(raw) % got.itemsize])
                self.fds += got
        if not data:
            raise ConnectionResetError("the bus is gone")
        self.buffer += data
        return True

    def _parse(self):
        """The next whole message in the buffer, or None."""
        if len(self.buffer) < 16:
            return None
        kind, = struct.unpack_from("<B", self.buffer, 1)
        size, serial, fields_size = struct.unpack_from("<III", self.buffer, 4)
        begin = 16 + fields_size + -fields_size % 8
        if len(self.buffer) < begin + size:
            return None
        fields = {}
        for code, value in Reader(self.buffer, 12).get("a(yv)"):
            fields[code] = value
        signature = fields.get(8, "")
        r = Reader(self.buffer[begin:begin + size])
        body = [r.get(t) for t in types(signature)]
        n = fields.get(9, 0)
        fds, self.fds = self.fds[:n], self.fds[n:]
        self.buffer = self.buffer[begin + size:]
        return Message(kind, serial, fields.get(1), fields.get(2), fields.get(3), fields.get(4), fields.get(5),
                       fields.get(6), fields.get(7), signature, body, fds)

    def receive(self, timeout=30):
        """The next message of any kind, or None."""
        end = time.monotonic() + timeout
        while True:
            message = self._parse()
            if message:
                return message
            if not self._fill(max(0, end - time.monotonic())):
                return None

    def reply(self, serial, timeout=30):
        """The answer to a call: nothing, one value, or a list. Fds stand in the place of their indices."""
        end = time.monotonic() + timeout
        while serial not in self.replies:
            message = self.receive(max(0, end - time.monotonic()))
            if message is None:
                raise TimeoutError(f"no answer to call {serial} within {timeout} s")
            if message.type == SIGNAL:
                self.signals.append(message)
            elif message.type in (RETURN, ERROR):
                self.replies[message.reply_to] = message
        message = self.replies.pop(serial)
        if message.type == ERROR:
            raise Error(message.error, message.body[0] if message.body else "")
        body = [message.fds[v] if t == "h" else v for t, v in zip(types(message.signature), message.body)]
        return None if not body else body[0] if len(body) == 1 else body

    def call(self, destination, path, interface, member, signature="", *args, fds=(), timeout=30):
        return self.reply(self.send(destination, path, interface, member, signature, *args, fds=fds), timeout)

    def signal(self, member=None, timeout=10, path=None):
        """The next signal, of that name and object if they are given, or None; others before it are dropped."""
        end = time.monotonic() + timeout
        while True:
            while self.signals:
                message = self.signals.popleft()
                if message.sender != "org.freedesktop.DBus" and (member in (None, message.member)) and \
                        (path in (None, message.path)):
                    return message
            message = self.receive(max(0, end - time.monotonic()))
            if message is None:
                return None
            if message.type == SIGNAL:
                self.signals.append(message)
            elif message.type in (RETURN, ERROR):
                self.replies[message.reply_to] = message

    def match(self, rule):
        self.call(*DRIVER, "AddMatch", "s", rule)


class Pasidd:
    """org.pasidd, as a bus connection sees it."""

    NAME, ROOT = "org.pasidd", "/org/pasidd"

    def __init__(self, bus):
        self.bus = bus

    def call(self, path, interface, member, signature="", *args, fds=(), timeout=30):
        return self.bus.call(self.NAME, path, interface, member, signature, *args, fds=fds, timeout=timeout)

    def manager(self, member, signature="", *args, **kw):
        return self.call(self.ROOT, "org.pasidd.Manager1", member, signature, *args, **kw)

    def context(self, path, member, signature="", *args, **kw):
        return self.call(path, "org.pasidd.Context1", member, signature, *args, **kw)

    def get(self, path, name, interface=None, **kw):
        return self.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", interface or self.interface(path), name, **kw)

    def get_all(self, path):
        return self.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", self.interface(path))

    def introspect(self, path):
        return self.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")

    def objects(self):
        return self.call(self.ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")

    @staticmethod
    def interface(path):
        kind = {"device": "Device1", "context": "Context1"}.get(path.split("/")[3] if path.count("/") > 2 else "")
        return "org.pasidd." + (kind or "Manager1")

    # What changes something.

    def create(self, device="", **options):
        """The context's path, the fd of its fence memory, its line there."""
        return self.manager("CreateContext", "sa{sv}", device, {k: ("b", v) for k, v in options.items()})

    def map(self, path, fd, offset, length, flags=3, iova=0, **kw):
        return self.context(path, "Map", "httut", 0, offset, length, flags, iova, fds=[fd], **kw)

    def unmap(self, path, iova, length):
        return self.context(path, "Unmap", "tt", iova, length)

    def submit(self, path, iova, length):
        return self.context(path, "Submit", "tt", iova, length)

    def close(self, path):
        return self.context(path, "Close")
