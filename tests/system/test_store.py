# SPDX-License-Identifier: MIT
"""What outlives a daemon: the supervisor that stands for systemd, and the store under kills at any moment.

The subject is a program with nothing but the store in it; it judges itself what it finds after each of its deaths.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path

import harness
import pasid_client
import supervised
from supervised import supervisor

# Says things to the service manager, one line of the script after the other, and tells what it was handed.
CHILD = textwrap.dedent("""
    import array, os, signal, socket, sys
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    address = "\\0" + os.environ["NOTIFY_SOCKET"][1:]
    def say(text, *fds):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        manager.sendmsg([text.encode()], control, 0, address)
    def barrier():
        r, w = os.pipe()
        say("BARRIER=1", w)
        os.close(w)
        assert os.read(r, 1) == b""
        os.close(r)
    assert int(os.environ["LISTEN_PID"]) == os.getpid()
    handed = [(n, 3 + i) for i, n in enumerate(filter(None, os.environ["LISTEN_FDNAMES"].split(":")))]
    assert len(handed) == int(os.environ["LISTEN_FDS"])
    first = not any(n == "mark" for n, _ in handed)
    def memory(text):
        fd = os.memfd_create("thing")
        os.write(fd, text.encode())
        return fd
    if first:
        say("FDSTORE=1\\nFDNAME=mark\\nFDPOLL=0", memory(""))
""")


class Rig:
    def __init__(self, test):
        directory = tempfile.TemporaryDirectory(prefix="pasidd-store-")
        test.addCleanup(directory.cleanup)
        self.path = Path(directory.name)
        self.log = open(self.path / "log", "w+", encoding="utf-8")
        test.addCleanup(self.log.close)

    def text(self):
        self.log.seek(0)
        return self.log.read()


class Supervising(unittest.TestCase):
    """The supervisor alone."""

    def setUp(self):
        self.rig = Rig(self)

    def run_child(self, script, **options):
        argv = [sys.executable, "-c", CHILD + textwrap.dedent(script)]
        s = supervisor.Supervisor(argv, stderr=self.rig.log, **options)
        self.addCleanup(s.stop, signal.SIGKILL)
        return s.start()

    def test_fds_come_back_with_their_names(self):
        s = self.run_child("""
            if first:
                say("FDSTORE=1\\nFDNAME=aaaa\\nFDPOLL=0", memory("A"))
                say("FDSTORE=1\\nFDNAME=bbbb\\nFDPOLL=0", memory("B"))
                say("FDSTORE=1\\nFDNAME=gone\\nFDPOLL=0", memory("C"))
                say("FDSTOREREMOVE=1\\nFDNAME=gone")
                barrier()
                say("READY=1")
            else:
                found = [(n, os.pread(fd, 9, 0).decode()) for n, fd in handed]
                say("READY=1\\nSTATUS=" + repr(found))
            signal.pause()
        """)
        s.await_ready()
        self.assertEqual(s.names(), ["mark", "aaaa", "bbbb"])
        self.assertEqual(s.counts["BARRIER"], 1)
        for _ in range(2):
            s.kill_and_await()
            self.assertIn("[('mark', ''), ('aaaa', 'A'), ('bbbb', 'B')]", s.said[-1][1])
        self.assertEqual((s.starts, len(s.deaths)), (3, 2))

    def test_sockets_come_first(self):
        listening = supervisor.listen_at(str(self.rig.path / "socket"))
        self.addCleanup(listening.close)
        s = self.run_child("""
            say("READY=1\\nSTATUS=" + ",".join(n for n, _ in handed))
            s = socket.socket(fileno=3)
            c, _ = s.accept()
            c.send(b"hello")
            c.recv(1)
        """, sockets=[("daemon.socket", listening)])
        for names in "daemon.socket", "daemon.socket,mark":
            s.await_ready()
            self.assertEqual(s.said[-1][1], "STATUS=" + names)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as c:
                c.connect(str(self.rig.path / "socket"))
                self.assertEqual(c.recv(9), b"hello")
                s.kill_and_await()

    def test_what_is_too_much_is_dropped_in_silence(self):
        s = self.run_child("""
            if first:
                one = memory("one")
                for name in "once", "same":
                    say("FDSTORE=1\\nFDPOLL=0\\nFDNAME=" + name, one)
                for i in range(5):
                    say(f"FDSTORE=1\\nFDPOLL=0\\nFDNAME=m{i:03}", memory(str(i)))
                barrier()
                say("READY=1")
            signal.pause()
        """, maximum=4)
        s.await_ready()
        self.assertEqual(s.names(), ["mark", "once", "m000", "m001"])
        self.assertEqual(s.store.dropped, 4)

    def test_who_hangs_up_leaves_the_store(self):
        s = self.run_child("""
            pairs = [socket.socketpair() for _ in range(2)]
            say("FDSTORE=1\\nFDNAME=poll", pairs[0][0].fileno())
            say("FDSTORE=1\\nFDNAME=stay\\nFDPOLL=0", pairs[1][0].fileno())
            barrier()
            for pair in pairs:
                pair[0].close()
                pair[1].close()
            say("READY=1")
            signal.pause()
        """)
        s.await_ready()
        harness.wait_until(lambda: s.names() == ["mark", "stay"], "the store lets go of a socket that hung up")

    def test_others_are_not_believed(self):
        s = self.run_child("""
            if not os.fork():
                say("FDSTORE=1\\nFDPOLL=0\\nFDNAME=evil", memory("x"))
                say("READY=1\\nSTATUS=evil")
                os._exit(0)
            os.wait()
            say("READY=1\\nSTATUS=good")
            signal.pause()
        """)
        s.await_ready()
        self.assertEqual(s.said, [["READY=1", "STATUS=good"]])
        self.assertEqual(s.names(), ["mark"])

    def test_as_a_program(self):
        pid_file, path = self.rig.path / "pid", str(self.rig.path / "socket")
        script = CHILD + "socket.socket(fileno=3).accept()[0].send(b'%d' % len(handed)); signal.pause()"
        argv = [sys.executable, supervisor.__file__, "--listen", f"{path}=s", "--pid-file", pid_file, "--max", "10",
                "--", sys.executable, "-c", script]
        with subprocess.Popen(argv, stderr=self.rig.log) as p:
            try:
                harness.wait_until(pid_file.exists, "it is started")
                for handed in b"1", b"2":
                    pid = pid_file.read_text()
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as c:
                        c.connect(path)
                        self.assertEqual(c.recv(9), handed)
                    os.kill(int(pid), signal.SIGKILL)
                    harness.wait_until(lambda: pid_file.read_text() != pid, "it is started again")
            finally:
                p.terminate()
            self.assertEqual(p.wait(10), 128 + signal.SIGTERM)


class Supervised(unittest.TestCase):
    """The daemon under the supervisor."""

    def test_the_daemon_is_started_again(self):
        listening = supervisor.listen_at("")
        self.addCleanup(listening.close)
        with supervised.Stack(sockets=[("nobodys.socket", listening)]) as stack:
            for starts in 1, 2, 3:
                self.assertEqual(stack.manager.starts, starts)
                with pasid_client.Client(stack.socket) as client:
                    stack.await_device(client)
                    pid = stack.daemon.pid
                stack.kill_daemon()
                self.assertNotEqual(stack.daemon.pid, pid)
            self.assertIn("nobodys.socket", stack.log_tail(None))
            stack.stop_daemon()
            self.assertEqual((stack.manager.status, stack.manager.starts), (0, 4))


@unittest.skipUnless(os.environ.get("STORE_SUBJECT"), "needs the program of the build")
class Killed(unittest.TestCase):
    """The subject is killed again and again and judges what it finds."""

    def setUp(self):
        self.rig = Rig(self)

    def subject(self, keys, **options):
        s = supervisor.Supervisor([os.environ["STORE_SUBJECT"], str(self.rig.path / "promises"), str(keys)],
                                  stderr=self.rig.log, **options)
        self.addCleanup(s.stop, signal.SIGKILL)
        return s.start()

    def kill_often(self, s, times, longest):
        dice = random.Random(times)
        s.await_ready()
        for _ in range(times):
            time.sleep(dice.uniform(0, longest))  # at whatever it is
            s.kill_and_await()
            self.assertEqual(self.rig.text(), "")
        return s

    def test_at_any_moment(self):
        s = self.kill_often(self.subject(300), 100, 0.02)
        self.assertEqual(s.starts, 101)
        self.assertEqual(s.store.dropped, 0)
        self.assertEqual({n[0] for n in s.names()}, {"=", "+"})
        self.assertLess(len(s.names()), 12)

    def test_with_thousands(self):
        s = self.kill_often(self.subject(8000), 12, 0.4)
        keys = int(re.search(r"STATUS=(\d+) keys", s.said[-1][1])[1])
        self.assertGreater(keys, 500)
        self.assertLess(len(s.names()), 8000 / 200 + 12)

    def test_terminated(self):
        s = self.subject(100)
        for n in range(5):
            s.await_ready()
            s.kill(signal.SIGTERM)
            harness.wait_until(lambda: len(s.deaths) > n, "it ends")
            self.assertEqual(s.status, 0)
        s.await_ready()
        self.assertEqual(self.rig.text(), "")


if __name__ == "__main__":
    unittest.main()
