#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A service manager for one daemon: what of systemd a daemon needs that is to outlive itself.

    supervisor.py [--max N] [--listen PATH[=NAME]]... [--pid-file FILE] [--start-limit N] -- PROGRAM [ARGUMENT]...

It listens at $NOTIFY_SOCKET, keeps fds (FDSTORE=1 with FDNAME= and FDPOLL=0, FDSTOREREMOVE=1, BARRIER=1), hands them
and listening sockets over in $LISTEN_FDS and $LISTEN_FDNAMES, sockets first, and starts the daemon again when it dies.
Like systemd it believes the daemon's own process only, keeps no file twice, drops without a word what is beyond --max,
and has handled all that was said before it starts the next one. SIGTERM ends the daemon and then it. Tests use
Supervisor.
"""

import argparse
import array
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import threading
import time

FIRST_FD = 3  # SD_LISTEN_FDS_START
KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
CREDENTIALS = struct.Struct("3i")
FDS_MAX = 253
# LISTEN_PID has to be the daemon's own, which is known to the process that becomes it.
SHELL = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"]


class SupervisorError(Exception):
    pass


def same_file(a, b):
    """Are these two fds of one open file? A kernel without kcmp(2) cannot tell."""
    if KCMP is None:
        return False
    pid = os.getpid()
    return ctypes.CDLL(None).syscall(KCMP, pid, pid, 0, a, b) == 0


def listen_at(path):
    """A listening socket such as the daemon's; "": at any address."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if path and os.path.exists(path):
        os.unlink(path)
    s.bind(path)
    s.listen(128)
    return s


class Store:
    """Fds with names, in the order in which they came."""

    def __init__(self, maximum):
        self.maximum = maximum
        self.entries = []  # (name, fd)
        self.dropped = 0  # too many, or there already
        self.hangups = select.epoll()

    def add(self, name, fd, poll):
        if len(self.entries) >= self.maximum or any(same_file(fd, other) for _, other in self.entries):
            self.dropped += 1
            os.close(fd)
            return
        self.entries.append((name, fd))
        if poll:
            try:
                self.hangups.register(fd, 0)
            except PermissionError:  # there is nothing to wait for in a regular file
                pass

    def remove_if(self, unwanted):
        for name, fd in [entry for entry in self.entries if unwanted(*entry)]:
            self.entries.remove((name, fd))
            try:
                self.hangups.unregister(fd)
            except OSError:  # nobody waits for it
                pass
            os.close(fd)

    def remove_hung_up(self):
        gone = {fd for fd, _ in self.hangups.poll(0)}
        if gone:
            self.remove_if(lambda _, fd: fd in gone)

    def close(self):
        self.remove_if(lambda *_: True)
        self.hangups.close()


class Supervisor:
    """Starts argv in a thread of its own, and again whenever it dies, until it is stopped. sockets: (name, socket).

    meanwhile: a function that is called once, between a death and the next start, when nobody is there.

    May be read at any time: pid, starts, ready (an Event: the one that runs has said READY=1), names(), counts (of
    messages, by their first word), said (those about no fds, in lines), deaths and readies (times of the monotonic
    clock), status (of the last end; negative: a signal).
    """

    def __init__(self, argv, maximum=4096, sockets=(), env=None, stderr=None, start_limit=None, pid_file=None):
        self.argv, self.env, self.stderr = list(argv), dict(os.environ if env is None else env), stderr
        self.sockets, self.start_limit, self.pid_file = list(sockets), start_limit, pid_file
        self.store = Store(maximum)
        self.counts, self.said = {}, []
        self.deaths, self.readies = [], []
        self.pid, self.pidfd, self.starts, self.status = None, -1, 0, None
        self.ready, self.ended = threading.Event(), threading.Event()
        self.meanwhile = None
        self.stopping = False
        self.error = None
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind("")
        self.notify.setblocking(False)
        self.lock = threading.Lock()  # of pid, against ending a process that has ended
        self.started = threading.Condition()  # of starts
        self.thread = threading.Thread(target=self.run, daemon=True)

    # ---- for tests ----

    def start(self):
        self.thread.start()
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop(signal.SIGKILL)

    def names(self):
        return [name for name, _ in list(self.store.entries)]

    def await_ready(self, seconds=10):
        if not self.ready.wait(seconds):
            raise SupervisorError(f"{self.argv[0]} is not ready within {seconds} s; it was started {self.starts} "
                                  f"times, its last status is {self.status}")

    def kill(self, number=signal.SIGKILL):
        """Signals the daemon, if it lives."""
        with self.lock:
            if self.pid is not None:
                os.kill(self.pid, number)

    def kill_and_await(self, seconds=10):
        """Kills it and waits for its successor."""
        before = self.starts
        self.ready.clear()
        self.kill()
        with self.started:
            self.started.wait_for(lambda: self.starts > before or self.ended.is_set(), seconds)
        self.await_ready(seconds)

    def stop(self, number=signal.SIGTERM):
        """Ends it for good; what is in the store is closed."""
        self.stopping = True
        self.kill(number)
        self.thread.join()
        if self.error:
            raise self.error

    # ---- the thread ----

    def run(self):
        try:
            while not self.stopping and (self.start_limit is None or self.starts < self.start_limit):
                self.spawn()
                self.serve()
                meanwhile, self.meanwhile = self.meanwhile, None
                if meanwhile and not self.stopping:
                    meanwhile()
        except Exception as e:  # pylint: disable=broad-except
            self.error = SupervisorError(f"the supervisor of {self.argv[0]} fails: {e!r}")
            self.kill()
        finally:
            self.ended.set()
            with self.started:
                self.started.notify_all()
            self.store.close()
            self.notify.close()

    def spawn(self):
        handed = [(name, s.fileno()) for name, s in self.sockets] + self.store.entries
        free = FIRST_FD + len(handed)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for _, fd in handed]
        env = dict(self.env, NOTIFY_SOCKET="@" + self.notify.getsockname().decode()[1:],
                   FDSTORE=str(self.store.maximum), LISTEN_FDS=str(len(handed)),
                   LISTEN_FDNAMES=":".join(name for name, _ in handed))
        # stderr first: it may have a number that one of the others is to have.
        actions = [(os.POSIX_SPAWN_DUP2, self.stderr.fileno(), 2)] if self.stderr is not None else []
        actions += [(os.POSIX_SPAWN_DUP2, fd, FIRST_FD + i) for i, fd in enumerate(high)]
        self.ready.clear()
        with self.lock:
            self.pid = os.posix_spawn(SHELL[0], SHELL + self.argv, env, file_actions=actions,
                                      setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])  # which Python ignores
            self.pidfd = os.pidfd_open(self.pid)
        with self.started:
            self.starts += 1
            self.started.notify_all()
        for fd in high:
            os.close(fd)
        if self.pid_file:
            with open(self.pid_file + ".new", "w", encoding="ascii") as f:
                f.write(f"{self.pid}\n")
            os.rename(self.pid_file + ".new", self.pid_file)
        if self.stopping:  # between the look and the start
            self.kill()

    def serve(self):
        """Until the daemon has died, and all that it said is handled."""
        with select.epoll() as epoll:
            epoll.register(self.notify, select.EPOLLIN)
            epoll.register(self.pidfd, select.EPOLLIN)
            epoll.register(self.store.hangups, select.EPOLLIN)
            dead = False
            while not dead:
                dead = any(fd == self.pidfd for fd, _ in epoll.poll())
                while self.hear():
                    pass
                self.store.remove_hung_up()
        with self.lock:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.pid = None
        os.close(self.pidfd)
        self.deaths.append(time.monotonic())

    def hear(self):
        """One message; False: there is none."""
        try:
            text, control, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(CREDENTIALS.size)
                                                      + socket.CMSG_SPACE(4 * FDS_MAX))
        except BlockingIOError:
            return False
        fds, sender = array.array("i"), None
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[:len(data) - len(data) % fds.itemsize])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = CREDENTIALS.unpack(data)[0]
        for fd in fds:
            os.set_inheritable(fd, False)
        kept = sender == self.pid and self.obey(text.decode(errors="replace").split("\n"), list(fds))
        for fd in [] if kept else fds:
            os.close(fd)
        return True

    def obey(self, lines, fds):
        """True: the fds are kept."""
        fields = dict(line.partition("=")[::2] for line in lines if "=" in line)
        word = lines[0].partition("=")[0]
        self.counts[word] = self.counts.get(word, 0) + 1
        name = fields.get("FDNAME", "stored")
        if fields.get("FDSTOREREMOVE") == "1":
            self.store.remove_if(lambda other, _: other == name)
        elif fields.get("FDSTORE") == "1":
            for fd in fds:
                self.store.add(name, fd, fields.get("FDPOLL") != "0")
            return True
        elif "BARRIER" not in fields:
            self.said.append(lines)
        if fields.get("READY") == "1":
            self.readies.append(time.monotonic())
            self.ready.set()
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--max", type=int, default=4096)
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--pid-file")
    parser.add_argument("--start-limit", type=int)
    parser.add_argument("argv", nargs="+")
    args = parser.parse_args()
    sockets = []
    for spec in args.listen:
        path, _, name = spec.partition("=")
        sockets.append((name or os.path.basename(path), listen_at(path)))
    supervisor = Supervisor(args.argv, args.max, sockets, start_limit=args.start_limit, pid_file=args.pid_file)
    signal.signal(signal.SIGTERM, lambda *_: setattr(supervisor, "stopping", True) or supervisor.kill(signal.SIGTERM))
    supervisor.start()
    while not supervisor.ended.wait(0.2):  # so that signals are heard
        pass
    supervisor.thread.join()
    if supervisor.error:
        sys.exit(str(supervisor.error))
    return supervisor.status if supervisor.status >= 0 else 128 - supervisor.status


if __name__ == "__main__":
    sys.exit(main())
