# SPDX-License-Identifier: MIT
"""A stack whose daemon is started again when it dies, by a service manager that keeps its fds (tests/supervisor.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import supervisor  # noqa: E402


class Daemon:
    """What tests do with a daemon's Popen, whichever process it is at that moment."""

    def __init__(self, manager):
        self.manager, self.args = manager, manager.argv

    @property
    def pid(self):
        return self.manager.pid

    @property
    def returncode(self):
        return self.manager.status

    def poll(self):
        return self.manager.status if self.manager.ended.is_set() else None

    def send_signal(self, number):
        """SIGTERM is for the manager: the daemon is to end for good. What else kills it, it survives."""
        self.manager.stopping |= number == signal.SIGTERM
        self.manager.kill(number)

    def kill(self):
        self.manager.stopping = True
        self.manager.kill()

    def wait(self, timeout=None):
        if not self.manager.ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.manager.stop()
        return self.manager.status


class Stack(harness.Stack):
    """As harness.Stack; `manager` is the Supervisor, which hands over `sockets`: (name, socket). `wrapper` is a command that
    becomes the daemon."""

    def __init__(self, *args, sockets=(), wrapper=(), **options):
        super().__init__(*args, **options)
        self.manager, self.sockets, self.wrapper = None, sockets, list(wrapper)

    def start_daemon(self):
        log = open(Path(self.dir, "pasidd.log"), "ab")
        self._logs.append(log)
        argv = self.wrapper + [harness.program("PASIDD"), "--config", str(Path(self.dir, "pasidd.json"))]
        self.manager = supervisor.Supervisor(argv, sockets=self.sockets, stderr=log,
                                             env={**os.environ, **self.daemon_env}).start()
        self.daemon = Daemon(self.manager)
        self.manager.await_ready(harness.DEADLINE)

    def kill_daemon(self):
        """Kills it and waits until its successor is ready."""
        self.manager.kill_and_await(harness.DEADLINE)
