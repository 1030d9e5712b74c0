# SPDX-License-Identifier: MIT
"""What the daemon does for a service manager and with what that hands over, without one: the socket that clients connect to
(sd_listen_fds(3)), notes that it is ready and that its loop turns (sd_notify(3)). tests/service has the real one."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402

# LISTEN_PID is the daemon's own, which only a process between can know.
EXEC = 'LISTEN_PID=$$ exec "$0" "$@"'
WATCHDOG_US = 200000


class Manager(harness.Stack):
    """A stack whose daemon is handed fds, by name, and tells its state to a socket."""

    def __init__(self, handed, env=None):
        super().__init__()
        self.handed, self.env = handed, env or {}

    def __enter__(self):
        self.notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notes.settimeout(harness.DEADLINE)
        try:
            return super().__enter__()
        except BaseException:
            self.notes.close()
            raise

    def stop(self):
        super().stop()
        self.notes.close()

    def write_config(self):
        super().write_config()
        self.notes.bind(os.path.join(self.dir, "notes"))

    def start_daemon(self):
        env = dict(self.env, NOTIFY_SOCKET=os.path.join(self.dir, "notes"), LISTEN_FDS=str(len(self.handed)),
                   LISTEN_FDNAMES=":".join(name for name, _ in self.handed))
        # sd_listen_fds(3) begins at 3. fds beyond these are moved out of their way first.
        high = [os.dup2(s.fileno(), 100 + i, inheritable=True) for i, (_, s) in enumerate(self.handed)]
        moves = "".join(f" {3 + i}<&{fd} {fd}<&-" for i, fd in enumerate(high))
        log = open(os.path.join(self.dir, "pasidd.log"), "ab")
        self._logs.append(log)
        args = ["bash", "-c", EXEC + moves, harness.program("PASIDD"), "--config", os.path.join(self.dir, "pasidd.json")]
        try:
            self.daemon = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=high,
                                           env={**os.environ, **env})
        finally:
            for fd in high:
                os.close(fd)
        self.await_note("READY=1")

    def await_note(self, wanted):
        """Waits until the daemon has sent it, and returns what it sent with it; what it sent before is forgotten."""
        while True:
            try:
                said = self.notes.recv(4096).decode().splitlines()
            except TimeoutError:
                raise harness.HarnessError(f"no {wanted}\n{self.log_tail()}") from None
            if wanted in said:
                return dict(line.split("=", 1) for line in said)

    def await_log(self, *words):
        harness.wait_until(lambda: any(all(w in line for w in words) for line in self.log_tail(None).splitlines()),
                           f"a log line with {words}")


def listener(directory, kind=socket.SOCK_SEQPACKET):
    s = socket.socket(socket.AF_UNIX, kind)
    s.bind(os.path.join(directory, "handed.sock"))
    s.listen()
    return s


class ServiceManager(unittest.TestCase):
    def setUp(self):
        self.dir = self.enterContext(tempfile.TemporaryDirectory(prefix="pasidd-manager-"))
        self.path = os.path.join(self.dir, "handed.sock")

    def listener(self, kind=socket.SOCK_SEQPACKET):
        return self.enterContext(listener(self.dir, kind))

    def test_socket(self):
        """The daemon serves whoever connects there, also before it runs; makes no socket of its own; and leaves it alone
        when it ends."""
        handed = self.listener()
        handed.setblocking(True)  # as systemd's is; the daemon may not wait there
        with self.enterContext(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as early:
            early.connect(self.path)
            with Manager([("pasidd.socket", handed)]) as stack:
                with pc.Client(self.path) as client:
                    stack.await_device(client)
                self.assertFalse(os.path.exists(stack.socket))
                stack.stop_daemon()
                self.assertTrue(os.path.exists(self.path))
                stack.start_daemon()
                with pc.Client(self.path) as client:
                    stack.await_device(client)

    def test_two_sockets(self):
        """One is used, the other is closed. A name that no device has is, too."""
        handed = self.listener()
        with Manager([("pasidd.socket", handed), ("pasidd.socket", handed), ("other.socket", handed)]) as stack:
            stack.await_log('"pasidd.socket"', "there is one already; it is closed")
            stack.await_log('"other.socket"', "no device is called that; it is closed")
            with pc.Client(self.path) as client:
                stack.await_device(client)

    def test_no_such_socket(self):
        """What is no listening socket of the right type is closed, and the daemon makes its own."""
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for s in pair:
            self.addCleanup(s.close)
        for handed in (self.listener(socket.SOCK_STREAM), pair[0]):
            with Manager([("pasidd.socket", handed)]) as stack:
                stack.await_log('"pasidd.socket"', "not a Unix socket of type SOCK_SEQPACKET that listens; it is closed")
                with pc.Client(stack.socket) as client:
                    stack.await_device(client)

    def test_nobody_is_greeted_before_he_is_kept(self):
        """The manager keeps a connection once it has got to a note about it, and not before."""
        with Manager([("pasidd.socket", self.listener())], {"FDSTORE": "100"}) as stack:
            with self.enterContext(pc.Client(self.path, hello=False)) as client:
                serial = client.send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
                client.sock.settimeout(0.5)
                with self.assertRaises(TimeoutError):
                    client.receive_raw()
                client.sock.settimeout(30)
                while client.sock not in select.select([client.sock, stack.notes], [], [], harness.DEADLINE)[0]:
                    stack.notes.recv(4096)  # the fds that came with it are closed
                os.close(client.reply(serial)[1][0])

    def test_watchdog(self):
        """The loop says that it turns, for as long as it does, twice in the time that is given."""
        with Manager([], {"WATCHDOG_USEC": str(WATCHDOG_US)}) as stack:
            for _ in range(3):
                stack.await_note("WATCHDOG=1")
            stack.daemon.send_signal(signal.SIGSTOP)
            harness.await_stopped(stack.daemon)
            stack.notes.settimeout(WATCHDOG_US * 2e-6)
            with self.assertRaises(TimeoutError):
                while True:
                    stack.notes.recv(4096)
            stack.notes.settimeout(harness.DEADLINE)
            stack.daemon.send_signal(signal.SIGCONT)
            stack.await_note("WATCHDOG=1")
            stack.daemon.send_signal(signal.SIGTERM)
            stack.await_note("STOPPING=1")
            self.assertEqual(stack.daemon.wait(harness.DEADLINE), 0)
            stack.daemon = None

    def test_reload(self):
        """It says when it begins, by the manager's clock, and what came of it."""
        with Manager([]) as stack:
            config = os.path.join(stack.dir, "pasidd.json")
            with open(config, encoding="utf-8") as f:
                good = f.read()
            for text, status in ((good, "The configuration was read again."),
                                 ("{}}", f"{config}: "), (good, "The configuration was read again.")):
                with open(config, "w", encoding="utf-8") as f:
                    f.write(text)
                before = time.monotonic_ns() // 1000
                stack.daemon.send_signal(signal.SIGHUP)
                began = int(stack.await_note("RELOADING=1")["MONOTONIC_USEC"])
                self.assertLessEqual(before, began)
                self.assertLessEqual(began, time.monotonic_ns() // 1000)
                said = stack.await_note("READY=1")["STATUS"]
                self.assertTrue(said.startswith(status), said)
                self.assertEqual(said.endswith("; nothing has changed"), text != good)

    def test_no_watchdog(self):
        with Manager([]) as stack, pc.Client(stack.socket) as client:
            stack.await_device(client)
            stack.notes.settimeout(WATCHDOG_US * 2e-6)
            with self.assertRaises(TimeoutError):
                stack.notes.recv(4096)


if __name__ == "__main__":
    unittest.main()
