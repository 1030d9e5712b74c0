# SPDX-License-Identifier: MIT
"""A file system whose files cannot be closed, nor looked at, by others than this process: a FUSE server that speaks the
raw protocol of /dev/fuse and never answers their FLUSH and GETATTR. Whoever waits for it waits beyond SIGKILL, until
the file system is taken away (release()).
"""

import array
import ctypes
import errno
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading

LOOKUP, FORGET, GETATTR, OPEN, RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 14, 18, 25, 26, 36, 42
MNT_DETACH = 2
S_IFDIR, S_IFREG = 0o040000, 0o100000

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<6Q10I")


class Unavailable(Exception):
    """This machine, or this user, cannot mount such a file system; says why."""


def _attr(node):
    mode = S_IFDIR | 0o755 if node == 1 else S_IFREG | 0o666
    return _ATTR.pack(node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


class StuckFiles:
    """A context manager; open() gives fds, stuck() says how many requests nobody will answer."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="stuck-")
        self.fd = -1
        self.ignored = []  # (opcode, pid) of requests that wait
        self.ending = os.pipe2(os.O_CLOEXEC)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        try:
            self.fd = self._mount()
        except BaseException:
            for end in self.ending:
                os.close(end)
            os.rmdir(self.dir)
            raise
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def _mount(self):
        if not os.path.exists("/dev/fuse"):
            raise Unavailable("there is no /dev/fuse")
        if os.getuid() == 0:
            return self._mount_as_root()
        if not shutil.which("fusermount3"):
            raise Unavailable("mounting takes root or fusermount3")
        return self._mount_as_user()

    def _mount_as_root(self):
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"/dev/fuse: {error}") from None
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"stuck", self.dir.encode(), b"fuse", 0, options.encode()) < 0:
            error = os.strerror(ctypes.get_errno())
            os.close(fd)
            raise Unavailable(f"mount(2): {error}")
        return fd

    def _mount_as_user(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run(["fusermount3", "-o", "rw", "--", self.dir], check=False, pass_fds=[theirs.fileno()],
                                  env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, stderr=subprocess.PIPE)
            if done.returncode:
                raise Unavailable("fusermount3: " + done.stderr.decode(errors="replace").strip())
            fds = array.array("i")
            for _, _, payload in ours.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)[1]:
                fds.frombytes(payload)
            return fds[0]

    def open(self, name="file"):
        return os.open(os.path.join(self.dir, name), os.O_RDWR | os.O_CLOEXEC)

    def stuck(self, opcode=None):
        return sum(opcode in (None, op) for op, _ in list(self.ignored))

    def release(self):
        """Takes the file system away; whoever waits for it gets an error and goes on."""
        if self.fd < 0:
            return
        os.write(self.ending[1], b"x")
        self.thread.join(10)
        if os.getuid() == 0:
            ctypes.CDLL(None, use_errno=True).umount2(self.dir.encode(), MNT_DETACH)
        else:
            subprocess.run(["fusermount3", "-uz", self.dir], check=False, stderr=subprocess.DEVNULL)
        for fd in (self.fd, *self.ending):  # the end of the server's fd is the end of all requests
            os.close(fd)
        self.fd = -1
        os.rmdir(self.dir)

    # The server.

    def _answer(self, unique, body=b"", error=0):
        try:
            os.write(self.fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)
        except OSError:
            pass  # the request was interrupted

    def _serve(self):
        while True:
            if self.ending[0] in select.select([self.fd, self.ending[0]], [], [])[0]:
                return
            try:
                request = os.read(self.fd, 1 << 18)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            self._request(request)

    def _request(self, request):
        _, opcode, unique, node, _, _, pid, _ = _IN.unpack_from(request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        if opcode in (FLUSH, GETATTR) and pid != os.getpid():
            self.ignored.append((opcode, pid))
        elif opcode == INIT:
            minor = min(struct.unpack_from("<II", request, _IN.size)[1], 31)
            self._answer(unique, struct.pack("<IIIIHHIIHHI", 7, minor, 65536, 0, 0, 0, 65536, 1, 1, 0, 0) + bytes(28))
        elif opcode == LOOKUP:
            self._answer(unique, struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + _attr(2))
        elif opcode == GETATTR:
            self._answer(unique, struct.pack("<QII", 0, 0, 0) + _attr(node))
        elif opcode == OPEN:
            self._answer(unique, struct.pack("<QII", 1, 0, 0))
        elif opcode in (FLUSH, RELEASE):
            self._answer(unique)
        else:
            self._answer(unique, error=errno.ENOSYS)
