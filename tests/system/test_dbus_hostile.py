# SPDX-License-Identifier: MIT
"""Callers on D-Bus that do what they should not, and a bus that goes away: nobody else is harmed."""

import json
import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dbus_client  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import stuck_fuse  # noqa: E402
from dbus_stack import BusStack, DbusTest, OWNER, STRANGER  # noqa: E402
from work import COPY, PAGE, command  # noqa: E402

ROOT = "/org/pasidd"
GPU = ROOT + "/device/gpu0"
PROPERTIES = "org.freedesktop.DBus.Properties"


def answers(bus, serials):
    """How many there were of each name; "" are those that were carried out."""
    counts = {}
    for serial in serials:
        try:
            bus.reply(serial)
            name = ""
        except dbus_client.Error as error:
            name = error.name.rsplit(".", 1)[1]
        counts[name] = counts.get(name, 0) + 1
    return counts


class Floods(DbusTest):
    def assert_served(self):
        """Somebody else, on both ways."""
        space = self.space()
        self.assertTrue(space.wait(space.submit(space.fill(1, 5))))
        work = self.work(self.pasidd())
        work.run(work.fill(1, 9))
        work.pasidd.close(work.path)

    def test_calls_that_are_sent_and_not_read(self):
        p = self.pasidd(None if os.geteuid() else STRANGER)
        calls = [(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
                 (ROOT, "org.pasidd.Manager1", "GetState"),
                 ("/org/pasidd/context", "org.freedesktop.DBus.Introspectable", "Introspect")]
        serials = [p.bus.send("org.pasidd", *calls[i % len(calls)]) for i in range(3000)]
        self.assert_served()
        counts = answers(p.bus, serials)
        self.assertEqual(set(counts) - {"", "TooManyCalls"}, set())
        self.assertGreater(counts[""], 0)

    def test_thousands_of_half_open_calls(self):
        p = self.pasidd()
        work = self.work(p)
        serials = []
        for i in range(700):
            serials.append(p.bus.send("org.pasidd", work.path, "org.pasidd.Context1", "Map", "httut", 0, 0, PAGE, 3, 0,
                                      fds=[work.fd]))
            serials.append(p.bus.send("org.pasidd", work.path, "org.pasidd.Context1", "Unmap", "tt", work.iova + i * PAGE,
                                      PAGE))
            if i % 20 == 0:  # fewer than the answers with fds that the bus holds for somebody who does not read
                serials.append(p.bus.send("org.pasidd", ROOT, "org.pasidd.Manager1", "CreateContext", "sa{sv}", "", {}))
        self.assert_served()
        counts = answers(p.bus, serials)
        self.assertEqual(sum(counts.values()), len(serials))
        self.assertGreater(counts[""], 0)
        self.assertGreater(counts["TooManyCalls"], 0)
        self.assertEqual(set(counts) - {"", "TooManyCalls", "NotMapped", "QuotaExceeded"}, set())

    def test_many_names_that_call_and_go(self):
        for _ in range(4):
            names = [self.bus() for _ in range(100)]
            for bus in names:
                bus.send("org.pasidd", ROOT, "org.pasidd.Manager1", "CreateContext", "sa{sv}", "", {})
                bus.send("org.pasidd", ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
                bus.send("org.pasidd", ROOT, "org.pasidd.Manager1", "Subscribe")
            for bus in names:
                bus.close()
        self.assert_served()
        # tearDown sees that nothing is left of them.

    def test_more_connections_than_a_user_may_have(self):
        p = [self.pasidd(STRANGER) for _ in range(130)] if not os.geteuid() else self.skipTest("takes root")
        for one in p[:128]:
            one.create()
        self.assertIn("128", self.refused("QuotaExceeded", p[128].create))
        fds = []
        for _ in range(40):  # refused connections are told so on the socket, a few at a time
            try:
                fds.append(p[129].manager("OpenConnection"))
            except dbus_client.Error as error:
                self.assertEqual(error.name, "org.pasidd.Error.QuotaExceeded")
        for fd in fds:
            os.close(fd)
        self.assertLess(len(fds), 40)
        self.assert_served()

    def test_what_bodies_may_hold(self):
        p = self.pasidd()
        work = self.work(p)
        most = (1 << 64) - 1
        for iova, length in ((most, most), (0, 0), (0, most), (most - PAGE + 1, PAGE), (1, 1)):
            for call in (p.unmap, p.submit):
                with self.assertRaises(dbus_client.Error):
                    call(work.path, iova, length)
            p.context(work.path, "Walk", "t", iova)
            p.context(work.path, "MappingsFrom", "t", iova)
            p.context(work.path, "DumpTableFrom", "t", iova)
            self.refused("NotMapped", p.context, work.path, "Translate", "t", iova)
            with self.assertRaises(dbus_client.Error):
                p.map(work.path, work.fd, iova, length)
        for name in ("", "x" * 255, "gpu0\n", "é"):
            with self.assertRaises(dbus_client.Error):
                p.get(GPU, name or "-")
            if name:
                self.refused("NotFound", p.create, name)
        for options in ({"opaque": ("s", "yes")}, {"x": ("a{sv}", {"y": ("u", 1)})}, {"opaque": ("v", ("b", True))}):
            self.refused("InvalidArgument", p.manager, "CreateContext", "sa{sv}", "", options)
        self.assertEqual(p.get(work.path, "Mapped"), 1)

    def test_files_that_cannot_be_closed(self):
        p = self.pasidd()
        work = self.work(p)
        client = self.client()
        try:
            files = stuck_fuse.StuckFiles()
        except stuck_fuse.Unavailable as why:
            self.skipTest(f"no file system that blocks: {why}")
        with files:
            fd = files.open()
            p.bus.send("org.pasidd", work.path, "org.pasidd.Context1", "Map", "httut", 0, 0, PAGE, 3, 0, fds=[fd])
            p.bus.send("org.pasidd", "/nothing", "org.pasidd.Context1", "Nothing", fds=[fd])
            # The bus closes its own number of it, and may be stuck from then on. The daemon is not.
            harness.wait_until(lambda: files.stuck(stuck_fuse.FLUSH), "a close that is stuck")
            for _ in range(20):
                client.devices()
            os.close(fd)


class NotReading(DbusTest):
    """Somebody is sent fds and does not read: dbus-daemon takes nothing more from whoever sent them."""

    def test_others_keep_what_they_have(self):
        maker, other = self.pasidd(), self.pasidd()
        maker.manager("Subscribe")
        work, space = self.work(maker), self.space()
        self.assertEqual(maker.bus.signal("InterfacesAdded").body[0], work.path)
        bad = self.pasidd(None if os.geteuid() else STRANGER)
        bad.get(ROOT, "Version")
        for _ in range(100):  # its socket is full after these
            bad.bus.send("org.pasidd", GPU, "org.freedesktop.DBus.Introspectable", "Introspect")
        for _ in range(100):
            bad.bus.send("org.pasidd", ROOT, "org.pasidd.Manager1", "OpenConnection")
        said = "the bus has taken nothing for 5 s"
        harness.wait_until(lambda: (self.asked(other), said in self.stack.log_tail())[1], "a bus that stands still", 30)
        self.assertTrue(space.wait(space.submit(space.fill(1, 3))))
        harness.wait_until(lambda: self.asked(other), "an answer to somebody else", 30)
        self.await_name()
        self.assertEqual(maker.get(work.path, "State"), "ok")
        work.run(work.fill(1, 7))
        self.assertEqual(maker.get(work.path, "BusName"), maker.bus.name)
        maker.bus.signals.clear()
        maker.close(work.path)
        self.assertTrue(maker.bus.signal("InterfacesRemoved"))  # it has subscribed, still
        bad.bus.close()
        again = self.work(self.pasidd())
        again.run(again.fill(1, 7))

    def asked(self, p):
        try:
            return p.get(ROOT, "Version", timeout=0.2)
        except (TimeoutError, dbus_client.Error):
            return None


class Buses(DbusTest):
    def said(self, text):
        with open(os.path.join(self.stack.dir, "pasidd.log"), encoding="utf-8") as f:
            return f.read().count(text)

    def test_the_bus_goes_away_and_comes_back(self):
        space, before = self.space(), self.said("runs on without it")
        for n in range(1, 3):
            work = self.work(self.pasidd())
            self.stack.stop_bus()
            harness.wait_until(lambda n=n: self.said("runs on without it") == before + n, "a line about it")
            self.assertTrue(space.wait(space.submit(space.fill(1, n))))
            if n == 2:  # it may be the connection that is gone, and not the bus; for a while
                harness.wait_until(lambda: self.stack.status()["dma_maps"] <= self.before[0][1] + 3, "what a name had is gone")
            self.stack.start_bus()
            self.await_name()
            self.unknown(self.pasidd().introspect, work.path)
            again = self.work(self.pasidd())
            again.run(again.fill(1, n))
        self.assertEqual(self.said("runs on without it"), before + 2)

    def test_a_name_that_another_bus_gives_to_another(self):
        """A bus counts its names from the beginning: somebody of the same user gets the one that had a context."""
        before = self.said("runs on without it")
        for _ in range(8):
            self.bus()
        maker = self.pasidd()
        work = self.work(maker)
        self.stack.stop_bus()
        harness.wait_until(lambda: self.said("runs on without it") > before, "a line about it")
        self.stack.daemon.send_signal(signal.SIGSTOP)  # it comes later than they do
        try:
            self.stack.start_bus()
            names = {}
            while maker.bus.name not in names:
                self.assertLess(len(names), 100)
                bus = self.bus()
                names[bus.name] = bus
        finally:
            self.stack.daemon.send_signal(signal.SIGCONT)
        self.await_name()
        self.unknown(dbus_client.Pasidd(names[maker.bus.name]).introspect, work.path)

    def test_the_name_is_taken(self):
        self.stack.stop_daemon()
        bus = self.bus()
        self.assertEqual(bus.call(*dbus_client.DRIVER, "RequestName", "su", "org.pasidd", 4), 1)
        self.stack.start_daemon()
        harness.wait_until(lambda: self.said("cannot be had: somebody else has it"), "a line about it")
        with pc.Client(self.stack.socket) as c:
            self.stack.await_device(c)
        bus.close()
        self.await_name()
        self.before = self.look()

    def test_without_a_bus_from_the_beginning(self):
        stack = BusStack()
        self.addCleanup(stack.stop)
        start = stack.start_bus
        stack.start_bus = lambda: None
        stack.__enter__()
        with pc.Client(stack.socket) as c:
            stack.await_device(c)
        start()
        with dbus_client.Bus(stack.bus_socket) as bus:
            harness.wait_until(lambda: bus.call(*dbus_client.DRIVER, "NameHasOwner", "s", "org.pasidd"), "the name")


    def test_no_such_bus(self):
        for where in ("nowhere", "tcp:host=localhost,port=1", "unix:tmpdir=/tmp"):
            done = subprocess.run([harness.program("PASIDD"), "--device", "vfio-user:/nowhere", "--socket",
                                   os.path.join(self.stack.dir, "other"), "--bus", where], stdin=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True, timeout=30, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f'bus: found "{where}"; allowed is "system"', done.stderr)


class Rate(DbusTest):
    config = {"limits": {"connection": {"rate": 40}}}

    def test_calls_wait_for_their_turn(self):
        p = self.pasidd()
        work = self.work(p)
        begin = time.monotonic()
        for _ in range(100):  # 40 at once, the others at 40 a second
            self.refused("NotMapped", p.unmap, work.path, work.iova + work.size, PAGE)
        self.assertGreater(time.monotonic() - begin, 1.2)
        for _ in range(200):  # to look costs none of it
            p.get(work.path, "State")


class Reload(DbusTest):
    devices = [{"job_limit_ms": 3000}]
    config = {"limits": {"uid": {"contexts": 5}}}

    def write(self, **change):
        path = os.path.join(self.stack.dir, "pasidd.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config.update(change)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)
        return path

    def test_what_changes(self):
        p, other = self.pasidd(), self.pasidd()
        work = self.work(p)
        self.write(limits={"uid": {"contexts": 1, "connections": 33}}, log_level="debug")
        p.manager("Reload")
        self.assertEqual(p.get(ROOT, "UserLimits")["connections"], 33)
        self.assertIn("1 of at most 1", self.refused("QuotaExceeded", other.create))
        work.run(work.fill(1, 4))
        self.write(limits={"uid": {"contexts": 5}}, log_level="info")
        p.manager("Reload")
        other.create()

    def test_a_bad_file_changes_nothing(self):
        p = self.pasidd()
        before = p.get(ROOT, "UserLimits")
        for change in ({"limits": {"uid": {"contexts": 1, "nothing": 2}}}, {"admin_group": "no such group"},
                       {"log_level": "loud", "limits": {}}):
            path = self.write(**change)
            said = self.refused("InvalidConfiguration", p.manager, "Reload")
            self.assertIn("found", said)
            self.assertTrue(said.endswith("nothing has changed"))
            self.assertEqual(p.get(ROOT, "UserLimits"), before)
            self.write(admin_group="", log_level="info", limits={"uid": {"contexts": 5}})
        with open(path, "w", encoding="utf-8") as f:
            f.write("{")
        self.assertIn("not JSON", self.refused("InvalidConfiguration", p.manager, "Reload"))
        os.unlink(path)
        self.assertIn("cannot be opened", self.refused("InvalidConfiguration", p.manager, "Reload"))
        self.stack.write_config()

    def test_by_a_signal(self):
        p = self.pasidd()
        self.write(limits={"uid": {"contexts": 4}})
        self.stack.daemon.send_signal(1)
        harness.wait_until(lambda: p.get(ROOT, "UserLimits")["contexts"] == 4, "other limits")
        self.write(limits={"uid": {"contexts": 5}})
        p.manager("Reload")


if __name__ == "__main__":
    unittest.main()
