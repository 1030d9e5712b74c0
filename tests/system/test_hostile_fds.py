# SPDX-License-Identifier: MIT
"""fds: wrong numbers of them, floods, files that are no memfd or not sealed, files that block whoever touches them."""

import array
import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pasid_client as pc  # noqa: E402
import stuck_fuse  # noqa: E402
from harness import DEADLINE, wait_until  # noqa: E402
from hostile import COPY, DEVICE_BODY, FILL, MIB, PAGE, HostileCase, Workspace, command, raise_nofile  # noqa: E402

# Linux's fcntl.h and memfd.h
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
SCM_MAX_FD = 253


def need_fds_in_flight(case):
    if os.getuid() != 0:
        case.skipTest("takes root: the kernel bounds the fds that a uid has in flight, and daemon and clients share it")


class AnotherUser:
    """A process of another uid that waits to be asked, then connects so many times, one after the other."""

    def __init__(self, path, connections):
        read, self.go = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(read)
            return
        status = 1
        try:
            os.close(self.go)
            os.read(read, 1)
            os.setgid(61003)
            os.setuid(61003)
            for _ in range(connections):
                with pc.Client(path) as client:
                    client.devices()
            status = 0
        finally:
            os._exit(status)

    def result(self):
        os.close(self.go)
        return os.waitpid(self.pid, 0)[1]


class Fds(HostileCase):
    devices = [{"job_limit_ms": 20000}]
    config = {"limits": {"connection": {"bytes": 1 << 41, "contexts": 64}, "uid": {"bytes": 1 << 41},
                         "total_bytes": 1 << 41}}

    def open(self, path, flags):
        fd = os.open(path, flags | os.O_CLOEXEC)
        self.addCleanup(os.close, fd)
        return fd

    # How many.

    def test_wrong_numbers(self):
        c = self.connect()
        fd = self.memory(PAGE)[0]
        for says, comes, takes, opcode, body in (
                (0, 0, 1, pc.BUF_IMPORT, DEVICE_BODY), (1, 0, 1, pc.BUF_IMPORT, DEVICE_BODY),
                (0, 1, 1, pc.BUF_IMPORT, DEVICE_BODY), (2, 1, 1, pc.BUF_IMPORT, DEVICE_BODY),
                (1, 2, 1, pc.BUF_IMPORT, DEVICE_BODY), (2, 2, 1, pc.BUF_IMPORT, DEVICE_BODY),
                (65535, 1, 1, pc.BUF_IMPORT, DEVICE_BODY), (1, 1, 0, pc.DEVICES, b""), (1, 0, 0, pc.DEVICES, b""),
                (0, 1, 0, pc.DEVICES, b""), (253, 253, 0, pc.CTX_NEW, DEVICE_BODY)):
            with self.subTest(says=says, comes=comes):
                c.send_raw(pc.HEADER.pack(16 + len(body), opcode, says, c.serial) + body, [fd] * comes)
                c.serial += 1
                error = self.refused(8, c.reply, c.serial - 1)
                self.assertEqual((error.n1, error.n2), (comes, takes))
        self.assertTrue(c.devices())

    def test_several_control_messages(self):
        c = self.connect()
        fd = array.array("i", [self.memory(PAGE)[0]])
        record = pc.HEADER.pack(16 + len(DEVICE_BODY), pc.BUF_IMPORT, 1, c.serial) + DEVICE_BODY
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)
        c.sock.sendmsg([record], [rights, rights, rights])
        c.serial += 1
        self.assertEqual(self.refused(8, c.reply, c.serial - 1).n1, 3)

    def test_floods(self):
        """253 fds with each of many messages, good ones and broken ones, read and unread, from several connections."""
        fd = self.memory(PAGE)[0]
        for opcode, drop in ((pc.DEVICES, False), (pc.BUF_IMPORT, False), (4711, False), (pc.DEVICES, True)):
            clients = [self.connect() for _ in range(4)]
            for _ in range(12):
                for c in clients:
                    c.send(opcode, fds=[fd] * SCM_MAX_FD)
            for c in clients:
                if drop:
                    c.send_raw(b"x", [fd] * SCM_MAX_FD)
                    self.assert_dropped(c)
                for serial in range(c.serial - 12, 0 if drop else c.serial):
                    self.assertIn(self.refused_any(c, serial).reason, (7, 8))
                c.close()
        self.assert_served()

    def test_flood_from_many(self):
        """More fds than the daemon may have: who floods waits, and a client that imports is served all the while."""
        need_fds_in_flight(self)
        fd = self.memory(PAGE)[0]
        good = self.connect()
        clients = [self.connect() for _ in range(40)]
        for _ in range(6):
            for c in clients:
                c.send(pc.DEVICES, fds=[fd] * SCM_MAX_FD)
            good.buf_free(good.buf_import(fd)[0])
        for _ in range(50):
            good.buf_free(good.buf_import(fd)[0])
        for c in clients:
            for serial in range(2, c.serial):
                self.assertEqual(self.refused_any(c, serial).n1, SCM_MAX_FD)
            c.close()
        self.assertNotIn("stays open", self.stack.log_tail(10000))

    def refused_any(self, client, serial):
        with self.assertRaises(pc.Refused) as caught:
            client.reply(serial)
        return caught.exception

    def test_whoever_closes_is_killed(self):
        """As the kernel does for want of memory: fds are closed all the same."""
        c = self.connect()
        fd = self.memory(PAGE)[0]
        pid, open_fds = self.stack.daemon.pid, self.stack.fds()
        for _ in range(3):
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
                closers = [int(child) for child in f.read().split()]
            self.assertTrue(closers)
            for closer in closers:
                os.kill(closer, signal.SIGKILL)
            for _ in range(4):
                self.refused(8, c.call, pc.DEVICES, b"", [fd] * 8)
            wait_until(lambda: self.snapshot()["children"] == self.before["children"], "a child that lives")
            wait_until(lambda: self.stack.fds() == open_fds, "all are closed")

    def test_fds_in_flight_when_the_connection_ends(self):
        fd = self.memory(PAGE)[0]
        for i in range(20):
            c = self.connect()
            for _ in range(20):
                c.send(pc.BUF_IMPORT, DEVICE_BODY, [fd] * (1 + i % 3))
            c.close()

    def test_sockets_sent_through_themselves(self):
        """Connections that only their own queues hold: the kernel's garbage, if the daemon leaves them there."""
        for _ in range(20):
            c, d = self.connect(), self.connect()
            for _ in range(5):
                c.send(pc.BUF_IMPORT, DEVICE_BODY, [c.sock.fileno()])
                c.send(pc.DEVICES, b"", [c.sock.fileno(), d.sock.fileno()])
                d.send(pc.DEVICES, b"", [c.sock.fileno()] * 100)
            c.close()
            d.close()

    def test_fds_with_garbage(self):
        for record in (b"", b"x", bytes(16), pc.HEADER.pack(99, 7, 1, 2)):
            c = self.connect()
            if record:
                c.send_raw(record, [c.sock.fileno(), 0, 1])
                self.assert_dropped(c)
            c.close()

    # Which.

    def test_no_memfds(self):
        c = self.connect()
        path = os.path.join(self.stack.dir, "regular")
        with open(path, "wb") as f:
            f.write(bytes(PAGE))
        pipe, pair = os.pipe2(os.O_CLOEXEC), socket.socketpair()
        for fd in pipe:
            self.addCleanup(os.close, fd)
        for s in pair:
            self.addCleanup(s.close)
        memfd = self.memory(PAGE)[0]
        fds = {"regular": self.open(path, os.O_RDWR), "regular, read-only": self.open(path, os.O_RDONLY),
               "pipe, read": pipe[0], "pipe, write": pipe[1], "socket": pair[0].fileno(),
               "connection": c.sock.fileno(), "/dev/null": self.open("/dev/null", os.O_RDWR),
               "/dev/zero": self.open("/dev/zero", os.O_RDWR), "directory": self.open("/", os.O_RDONLY),
               "O_PATH": self.open(path, os.O_PATH), "O_PATH of a memfd": self.open(f"/proc/self/fd/{memfd}", os.O_PATH),
               "proc": self.open("/proc/self/mem", os.O_RDONLY),
               "the daemon's socket": self.open(self.stack.socket, os.O_PATH)}
        if os.path.isdir("/dev/shm"):
            shm = f"/dev/shm/pasidd-test-{os.getpid()}"
            fds["tmpfs"] = self.open(shm, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.ftruncate(fds["tmpfs"], PAGE)
            os.unlink(shm)
        for name, fd in fds.items():
            with self.subTest(file=name):
                with self.assertRaises(pc.Refused) as caught:
                    c.buf_import(fd)
                # A file of tmpfs may have seals, and has not got those that are needed; nothing else may.
                self.assertIn(caught.exception.reason, (60, 70) if name == "tmpfs" else (70,))

    def test_the_daemons_own_fence_memory(self):
        """Sealed against shrinking and read-only: harmless, and its fence lines are not written through it."""
        c = self.connect(hello=False)
        _, fds = c.call(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
        self.addCleanup(os.close, fds[0])
        buf, _, writable = c.buf_import(fds[0])
        self.assertEqual(writable, 0)
        self.refused(50, c.map, c.ctx_new(), buf, 0, PAGE)

    def test_seals(self):
        c = self.connect()
        ctx = c.ctx_new()
        for seals in range(32):
            with self.subTest(seals=seals):
                fd = self.sparse(PAGE, seals)
                has = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                if not seals & F_SEAL_SHRINK:
                    error = self.refused(60, c.buf_import, fd)
                    self.assertEqual((error.n1, error.n2), (has, F_SEAL_SHRINK))
                    continue
                buf, size, writable = c.buf_import(fd)
                self.assertEqual((size, writable), (PAGE, int(not seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))))
                if not writable:
                    self.refused(50, c.map, ctx, buf, 0, PAGE)
                c.map(ctx, buf, 0, PAGE, pc.READ)
                self.assertEqual(fcntl.fcntl(fd, fcntl.F_GET_SEALS), has)  # the daemon changes nothing

    def test_the_gpu_writes_to_nothing_read_only(self):
        c = self.connect()
        w = Workspace(self, c)
        for seals, flags in ((F_SEAL_SHRINK | F_SEAL_WRITE, os.O_RDWR), (F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, os.O_RDWR),
                             (F_SEAL_SHRINK, os.O_RDONLY)):
            with self.subTest(seals=seals):
                fd = self.open(f"/proc/self/fd/{self.sparse(PAGE, seals)}", flags)
                iova = c.map(w.ctx, c.buf_import(fd)[0], 0, PAGE, pc.READ)
                job = w.submit(w.put(command(FILL, 0xBAD, iova, length=PAGE)))
                self.assertTrue(c.wait(w.ctx, job))
                _, _, faults = c.next_fault()
                self.assertEqual(faults[0][:4], (job, iova, 2, 2))
                self.assertEqual(os.pread(fd, PAGE, 0), bytes(PAGE))

    def test_sizes(self):
        c = self.connect()
        self.refused(2, c.buf_import, self.sparse(0))
        for size in (1, PAGE - 1, PAGE + 1, MIB + 512):
            error = self.refused(1, c.buf_import, self.sparse(size))
            self.assertEqual((error.n1, error.n2), (size, PAGE))
        self.refused(113, c.buf_import, self.sparse(1 << 42))  # bytes of the connection
        self.refused(113, c.buf_import, self.sparse((1 << 63) - PAGE))

    def test_sparse_terabyte(self):
        c = self.connect()
        before = self.stack.rss()
        fd = self.sparse(1 << 40)
        buf, size, _ = c.buf_import(fd)
        self.assertEqual(size, 1 << 40)
        self.assertEqual(self.stack.status()["dma_bytes"], self.before["dma_bytes"] + (1 << 40) + self.fence_bytes(c))
        w = Workspace(self, c)
        iova = c.map(w.ctx, buf, (1 << 40) - 64 * MIB, 64 * MIB)
        self.assertTrue(c.wait(w.ctx, w.submit(w.put(command(FILL, 7, iova + 64 * MIB - PAGE, length=PAGE)))))
        self.assertEqual(os.pread(fd, 4, (1 << 40) - 4), struct.pack("<I", 7))
        self.assertLess(os.fstat(fd).st_blocks, 1 << 12)
        self.assertLess(self.stack.rss() - before, 16 * MIB)
        self.refused(113, c.buf_import, self.sparse(1 << 40))

    def fence_bytes(self, client):
        """What the client's fence memory adds once it has a context: none here."""
        return 0 if not client.lines else len(client.fences)

    def test_a_file_that_grows(self):
        """A mapping is the pages that the file had at import."""
        c = self.connect()
        fd = self.sparse(PAGE)
        buf = c.buf_import(fd)[0]
        os.ftruncate(fd, 16 * PAGE)
        ctx = c.ctx_new()
        self.assertEqual(self.refused(41, c.map, ctx, buf, 0, 2 * PAGE).n2, PAGE)
        self.refused(41, c.map, ctx, buf, PAGE, PAGE)
        with self.assertRaises(OSError):
            os.ftruncate(fd, 0)

    def test_holes_under_running_work(self):
        libc, off_t = ctypes.CDLL(None, use_errno=True), ctypes.c_long
        c = self.connect()
        size = MIB
        w = Workspace(self, c, 2 * size)
        copies = [command(FILL, 7, w.iova, length=size), command(COPY, 0, w.iova + size, w.iova, size)] * 32
        length = w.put(*copies)
        jobs = [w.submit(length) for _ in range(4)]
        punches = 0
        end = time.monotonic() + DEADLINE
        while c.fence(w.ctx)[0] < jobs[-1]:
            self.assertEqual(c.fence(w.ctx)[1:], (0, 0))
            self.assertLess(time.monotonic(), end, (c.fence(w.ctx), self.stack.status()))
            self.assertEqual(libc.fallocate(w.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                            off_t(punches % 16 * size // 8), off_t(size // 8)), 0)
            punches += 1
        self.assertGreater(punches, 4)
        self.assertEqual(c.ctx_info(w.ctx)["faults"], 0)
        self.assertTrue(c.wait(w.ctx, w.submit(w.put(command(FILL, 9, w.iova, length=size)))))
        self.assertEqual(w.data[:size], struct.pack("<I", 9) * (size // 4))

    # Files that block whoever touches them.

    def stuck_files(self):
        try:
            return stuck_fuse.StuckFiles()
        except stuck_fuse.Unavailable as why:
            self.skipTest(f"no file system that blocks: {why}")

    def test_files_that_cannot_be_closed(self):
        files = self.stuck_files()
        with files:
            c = self.connect()
            fd = files.open()
            self.refused(70, c.buf_import, fd)  # the answer comes although its close never ends
            wait_until(lambda: files.stuck(stuck_fuse.FLUSH), "a close that is stuck")
            self.refused(8, c.call, pc.DEVICES, b"", [fd] * 3)
            d = self.connect(hello=False)  # broken frames and sudden ends, too
            d.send_raw(b"broken", [fd] * 5)
            self.assert_dropped(d)
            e = self.connect()
            for _ in range(4):
                e.send(pc.BUF_IMPORT, DEVICE_BODY, [fd])
            e.close()
            wait_until(lambda: files.stuck(stuck_fuse.FLUSH) >= 4, "closes that are stuck")
            self.assertEqual(files.stuck(stuck_fuse.GETATTR), 0)
            self.assert_served()
            # Everything else is closed meanwhile.
            with pc.Client(self.stack.socket) as other:
                other.buf_free(other.buf_import(self.memory(PAGE)[0])[0])
            fds = self.stack.fds()
            with pc.Client(self.stack.socket):
                pass
            wait_until(lambda: self.stack.fds() <= fds, "a connection closed beside closes that are stuck")
            os.close(fd)
        # tearDown: now that the file system is gone, so are those who waited for it.

    def listener(self):
        """A TCP socket that can be reached; in a network namespace of its own the loopback interface may be down."""
        try:
            listener = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(listener.close)
            socket.create_connection(listener.getsockname()).close()
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            self.skipTest(f"no TCP here: {error}")
        listener.accept()[0].close()
        return listener

    def test_one_that_cannot_be_closed_and_many_that_can(self):
        """However many fds come after it: none of them waits for it for ever."""
        files = self.stuck_files()
        with files:
            c = self.connect()
            fd, good = files.open(), self.memory(PAGE)[0]
            self.refused(8, c.call, pc.DEVICES, b"", [fd])
            wait_until(lambda: files.stuck(stuck_fuse.FLUSH), "a close that is stuck")
            open_fds = self.stack.fds()
            for _ in range(70):
                serials = [c.send(pc.DEVICES, b"", [good] * SCM_MAX_FD) for _ in range(4)]
                for serial in serials:
                    self.refused(8, c.reply, serial)
            wait_until(lambda: self.stack.fds() <= open_fds, "all but one are closed")
            os.close(fd)

    def test_a_uid_whose_fds_do_not_close_stands_alone(self):
        if os.getuid() != 0:
            self.skipTest("takes root: to be two users")
        files = self.stuck_files()
        os.chmod(self.stack.dir, 0o711)
        os.chmod(self.stack.socket, 0o666)
        # Before there is a file whose close blocks, which a process inherits that is made later.
        other = AnotherUser(self.stack.socket, 100)
        with files:
            c = self.connect()
            fd = files.open()
            self.exhaust(c, files, fd)
            open_fds = self.stack.fds()
            for _ in range(100):
                self.assertTrue(self.turned_away())
            self.assertEqual(other.result(), 0, "another uid was not served")
            wait_until(lambda: self.stack.fds() <= open_fds, "what others leave is closed")
            os.close(fd)
        c.close()

    def exhaust(self, client, files, fd):
        """Until as many children are stuck as the uid may leave behind."""
        for _ in range(60):
            self.refused(8, client.call, pc.DEVICES, b"", [fd] * 2)
        wait_until(lambda: files.stuck(stuck_fuse.FLUSH) >= 16, "as many as there may be")
        wait_until(self.turned_away, "its uid is turned away")

    def test_turned_away_with_what_cannot_be_closed(self):
        """However many messages are in front of it, full ones or empty ones."""
        files = self.stuck_files()
        listener = self.listener()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with files:
            c = self.connect()
            fd = files.open()
            self.exhaust(c, files, fd)
            for text in (b"", b"x"):
                s, peer = self.lingerer(listener)
                # While the daemon reads nothing, so that its reference is the last one.
                self.stack.daemon.send_signal(signal.SIGSTOP)
                try:
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as away:
                        away.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                        away.settimeout(5)
                        away.connect(self.stack.socket)
                        for _ in range(530):
                            away.send(text)
                        socket.send_fds(away, [text], [s.fileno()])
                        s.close()
                finally:
                    self.stack.daemon.send_signal(signal.SIGCONT)
                self.assertTrue(self.turned_away())
                self.assert_served()
                self.addCleanup(peer.close)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(fd)
        c.close()

    def turned_away(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.connect(self.stack.socket)
            s.settimeout(5)
            try:
                s.send(pc.HEADER.pack(32, pc.HELLO, 0, 1) + struct.pack("<IIQ", 0x44534150, 1, 0))
                return not s.recv(1 << 16)
            except (BrokenPipeError, ConnectionResetError):
                return True

    def test_many_sockets_that_linger(self):
        """More than there are children to wait for them, with one message."""
        self.linger(40, together=True)

    def test_sockets_that_linger(self):
        self.linger(6)

    @staticmethod
    def lingerer(listener):
        """A TCP socket whose last close waits for an hour, and its peer."""
        s = socket.create_connection(listener.getsockname())
        peer = listener.accept()[0]
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        s.setblocking(False)
        try:
            while True:
                s.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        s.setblocking(True)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        return s, peer

    def linger(self, count, together=False):
        listener = self.listener()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c = self.connect()
        raise_nofile()
        pairs = [self.lingerer(listener) for _ in range(count)]
        senders, peers = [s for s, _ in pairs], [peer for _, peer in pairs]
        # While the daemon reads nothing, so that its references are the last ones: this process must not linger itself.
        self.stack.daemon.send_signal(signal.SIGSTOP)
        self.addCleanup(self.stack.daemon.send_signal, signal.SIGCONT)
        for i, s in enumerate([] if together else senders):
            c.send(pc.BUF_IMPORT if i % 2 else pc.DEVICES, DEVICE_BODY if i % 2 else b"", [s.fileno()])
        if together:
            c.send(pc.DEVICES, b"", [s.fileno() for s in senders])
        for s in senders:
            s.close()  # the daemon's are the last references, and closing them waits for an hour
        self.stack.daemon.send_signal(signal.SIGCONT)
        for serial in range(c.serial - (1 if together else count), c.serial):
            self.assertIn(self.refused_any(c, serial).reason, (8, 70))
        wait_until(lambda: self.lingering(listener) >= count, "sockets that linger", 30)
        self.assert_served()
        self.assertTrue(c.devices())
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()  # a reset ends the wait

    @staticmethod
    def lingering(listener):
        """Connections to the listener that were closed with data unsent: FIN_WAIT1."""
        port = f":{listener.getsockname()[1]:04X}"
        with open("/proc/net/tcp", encoding="ascii") as f:
            return sum(line.split()[2].endswith(port) and line.split()[3] == "04" for line in f.readlines()[1:])

    def test_a_stopped_process_and_a_held_lease(self):
        """A lease on the file: opening it would wait for the holder; nobody opens it."""
        path = os.path.join(self.stack.dir, "leased")
        fd = self.open(path, os.O_RDONLY | os.O_CREAT)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES):
                raise
            self.skipTest(f"no leases here: {error}")
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGIO, before)
        self.refused(70, self.connect().buf_import, fd)


class FewFds(HostileCase):
    """A daemon that may have few fds, and clients that send it many more."""

    def test_flood_beyond_what_there_is(self):
        need_fds_in_flight(self)
        pid = self.stack.daemon.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (1500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        self.addCleanup(resource.prlimit, pid, resource.RLIMIT_NOFILE, before)
        good = self.connect()
        fd = self.memory(PAGE)[0]
        clients = [self.connect() for _ in range(3)]
        for _ in range(50):
            for c in clients:
                for _ in range(10):
                    c.send(pc.DEVICES, fds=[fd] * SCM_MAX_FD)
            good.buf_free(good.buf_import(fd)[0])
            self.connect().close()
            for c in clients:
                for serial in range(c.serial - 10, c.serial):
                    with self.assertRaises(pc.Refused) as caught:
                        c.reply(serial)
                    self.assertEqual((caught.exception.reason, caught.exception.n1), (8, SCM_MAX_FD))


if __name__ == "__main__":
    unittest.main()
