# SPDX-License-Identifier: MIT
"""A stack with a bus of its own, and what tests of the D-Bus side have in common."""

import mmap
import os
import signal
import socket
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dbus_client  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from work import PAGE, StackTest, command  # noqa: E402

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
 <type>system</type>
 <listen>unix:path={socket}</listen>
 <auth>EXTERNAL</auth>
 <policy context="default">
  <allow user="*"/><allow own="*"/>
  <allow send_type="method_call"/><allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/>
  <allow receive_type="signal"/>
 </policy>
 <limit name="max_replies_per_connection">50000</limit>
 <limit name="max_connections_per_user">4096</limit>
 <limit name="max_completed_connections">8192</limit>
 <limit name="max_incomplete_connections">1024</limit>
</busconfig>
"""

OWNER, FRIEND, STRANGER, MEMBER = 1, 1, 2, 3  # uids that every Debian knows; FRIEND is another program of the owner's
ADMIN_GROUP, ADMIN_GID = "users", 100


class BusStack(harness.Stack):
    bus = None

    @property
    def bus_socket(self):
        return os.path.join(self.dir, "bus")

    def write_config(self):
        os.chmod(self.dir, 0o711)
        with open(os.path.join(self.dir, "bus.conf"), "w", encoding="utf-8") as f:
            f.write(CONFIG.format(socket=self.bus_socket))
        if not self.bus:
            self.start_bus()
        self.config = {"bus": "unix:path=" + self.bus_socket, **self.config}
        super().write_config()

    def start_bus(self):
        self.bus = self.start_program("bus", ["dbus-daemon", "--nofork", "--nosyslog",
                                              "--config-file=" + os.path.join(self.dir, "bus.conf")])
        self._await_socket(self.bus, self.bus_socket, socket.SOCK_STREAM)

    def stop_bus(self):
        self.bus.send_signal(signal.SIGCONT)
        self.bus.terminate()
        self.bus.wait(harness.DEADLINE)
        self.bus = None
        if os.path.exists(self.bus_socket):
            os.unlink(self.bus_socket)

    def stop(self):
        if self.daemon:
            try:
                self.stop_daemon()
            finally:
                super_stop = super().stop
                if self.bus:
                    self.stop_bus()
                super_stop()
            return
        if self.bus:
            self.stop_bus()
        super().stop()


class DbusTest(StackTest):
    """Tests with a bus. Each begins with a daemon that is there under its name."""

    stack_of = BusStack

    @classmethod
    def setUpClass(cls):
        for program in ("dbus-daemon", "busctl"):
            if subprocess.run(["which", program], stdout=subprocess.DEVNULL, check=False).returncode:
                raise unittest.SkipTest(f"there is no {program}")
        cls.stack = cls.stack_of(cls.devices, cls.config)
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        with pc.Client(cls.stack.socket) as c:
            for i in range(len(cls.devices)):
                cls.stack.await_device(c, f"gpu{i}")
        cls.await_name()
        cls.stack.await_rest()  # the connection above is being closed

    @classmethod
    def await_name(cls):
        with dbus_client.Bus(cls.stack.bus_socket) as bus:
            harness.wait_until(lambda: bus.call(*dbus_client.DRIVER, "NameHasOwner", "s", "org.pasidd"),
                               "the daemon's name on the bus")

    def bus(self, uid=None, groups=()):
        if uid is not None and os.geteuid() != 0:
            raise unittest.SkipTest("other users take root")
        bus = dbus_client.Bus(self.stack.bus_socket, uid, groups)
        self.addCleanup(bus.close)
        return bus

    def pasidd(self, uid=None, groups=()):
        return dbus_client.Pasidd(self.bus(uid, groups))

    def refused(self, name, call, *args, **kw):
        """The sentence of an error of that name."""
        with self.assertRaises(dbus_client.Error) as caught:
            call(*args, **kw)
        if "." not in name:
            name = "org.pasidd.Error." + name
        self.assertEqual(caught.exception.name, name, caught.exception.text)
        self.assertTrue(caught.exception.text)
        return caught.exception.text

    def unknown(self, call, *args, **kw):
        self.refused("org.freedesktop.DBus.Error.UnknownObject", call, *args, **kw)

    def work(self, pasidd, pages=4, **options):
        work = Work(pasidd, pages, **options)
        self.addCleanup(work.close)
        return work


class Work:
    """A context that was made over D-Bus, with memory: commands in its first page, data behind it."""

    def __init__(self, pasidd, pages=4, **options):
        self.pasidd = pasidd
        self.path, fence, self.line = pasidd.create(**options)
        self.fence = mmap.mmap(fence, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fence)
        self.size = pages * PAGE
        self.fd, self.view = pc.memfd(self.size)
        self.iova = pasidd.map(self.path, self.fd, 0, self.size)

    @property
    def id(self):
        return int(self.path.rsplit("/", 1)[1])

    @property
    def done(self):
        return int.from_bytes(self.fence[self.line * 64:self.line * 64 + 8], "little")

    def submit(self, *commands):
        code = b"".join(commands)
        self.view[:len(code)] = code
        return self.pasidd.submit(self.path, self.iova, len(code))

    def fill(self, page, value):
        return command(1, value, self.iova + page * PAGE, length=PAGE)

    def run(self, *commands):
        job = self.submit(*commands)
        harness.wait_until(lambda: self.done >= job, f"job {job} of {self.path}")
        return job

    def close(self):
        self.view.close()
        self.fence.close()
        os.close(self.fd)
