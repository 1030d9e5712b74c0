# SPDX-License-Identifier: MIT
"""What is told over D-Bus without being asked, to whom, and how much of it (docs/dbus.md)."""

import os
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
from dbus_stack import ADMIN_GID, ADMIN_GROUP, DbusTest, FRIEND, MEMBER, OWNER, STRANGER  # noqa: E402
from work import PAGE, command  # noqa: E402

ROOT = "/org/pasidd"
GPU = ROOT + "/device/gpu0"
HANG = 9


class Told(DbusTest):
    devices = [{"slots": 2, "job_limit_ms": 200}]

    def subscriber(self, uid=None, groups=()):
        p = self.pasidd(uid, groups)
        p.manager("Subscribe")
        return p

    def test_a_life(self):
        s, maker = self.subscriber(), self.pasidd()
        work = self.work(maker)
        added = s.bus.signal("InterfacesAdded").body
        self.assertEqual(added[0], work.path)
        self.assertEqual(set(added[1]), {"org.pasidd.Context1", "org.freedesktop.DBus.Properties",
                                         "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer"})
        self.assertEqual(added[1]["org.pasidd.Context1"]["State"], "ok")
        work.run(work.fill(1, 7))
        switches, device_time = s.bus.signal("Switched", path=work.path).body
        self.assertEqual(switches, 1)
        self.assertLessEqual(device_time, maker.get(work.path, "DeviceTime"))
        changed = {}
        while changed.get("Completed") != 1:
            message = s.bus.signal("PropertiesChanged", path=work.path)
            self.assertEqual((message.body[0], message.body[2]), ("org.pasidd.Context1", []))
            changed.update(message.body[1])
        maker.close(work.path)
        removed = s.bus.signal("InterfacesRemoved").body
        self.assertEqual((removed[0], set(removed[1])), (work.path, set(added[1])))

    def test_a_fault(self):
        s, maker = self.subscriber(), self.pasidd()
        work = self.work(maker)
        gone = maker.map(work.path, work.fd, 0, PAGE)
        maker.unmap(work.path, gone, PAGE)
        work.run(command(1, 1, gone + 8, length=8))
        for p in (s, maker):  # the maker has not subscribed
            fault = p.bus.signal("Fault", path=work.path).body
            self.assertEqual(fault[:4], [1, gone + 8, "write", "unmapped"])
            self.assertEqual(fault[4], (work.iova, work.iova + work.size - 1))
            self.assertEqual(fault[5], (gone, gone + PAGE - 1))
            self.assertGreater(fault[6], 0)
        self.assertEqual(maker.get(work.path, "LastFault"), (1, gone + 8, "write", "unmapped"))
        self.assertEqual(maker.get(work.path, "Faults"), 1)

    def test_a_loss(self):
        s, maker = self.subscriber(), self.pasidd()
        work = self.work(maker)
        job = work.submit(command(HANG))
        for p in (s, maker):
            self.assertEqual(p.bus.signal("Lost", path=work.path).body, ["hang", job])
        self.assertEqual((maker.get(work.path, "State"), maker.get(work.path, "LostReason")), ("lost", "hang"))
        self.refused("ContextLost", maker.submit, work.path, work.iova, 64)
        maker.close(work.path)

    def test_a_device(self):
        s = self.subscriber()
        s.call(GPU, "org.pasidd.Device1", "Reset")
        changed = s.bus.signal("PropertiesChanged", path=GPU).body
        self.assertEqual(changed[0], "org.pasidd.Device1")
        self.assertIn("Resets", changed[1])
        self.assertNotIn("Name", changed[1])

    def test_nobody_hears_of_what_he_does_not_see(self):
        if os.geteuid():
            self.skipTest("other users take root")
        stranger, friend, silent = self.subscriber(STRANGER), self.subscriber(FRIEND), self.pasidd(STRANGER)
        for p in (stranger, silent):  # one that would hear whatever is broadcast
            p.bus.match("type='signal',sender='org.pasidd'")
            p.bus.match("type='signal',interface='org.pasidd.Context1'")
        maker = self.pasidd(OWNER)
        for options in ({}, {"opaque": True}):
            work = self.work(maker, **options)
            work.run(work.fill(1, 7))
            work.run(command(1, 1, work.iova + work.size + PAGE, length=8))
            self.assertTrue(maker.bus.signal("Fault", path=work.path))
            maker.close(work.path)
            self.assertTrue(maker.bus.signal("InterfacesRemoved"))
        for p in (stranger, silent):
            p.get(ROOT, "Version")  # what was sent before this answer is there
            heard = [m for m in p.bus.signals if m.path and m.path.startswith(ROOT) and m.path != GPU]
            self.assertEqual(heard, [])
        friend.get(ROOT, "Version")
        self.assertEqual({m.body[0] for m in friend.bus.signals if m.member == "InterfacesAdded"}, {"/org/pasidd/context/"
                         + str(work.id - 1)})

    def test_unsubscribed(self):
        s, maker = self.subscriber(), self.pasidd()
        s.manager("Unsubscribe")
        work = self.work(maker)
        self.assertTrue(maker.bus.signal("InterfacesAdded"))
        s.get(ROOT, "Version")
        self.assertEqual([m for m in s.bus.signals if m.path == ROOT], [])
        maker.close(work.path)

    def test_how_much_is_told(self):
        s, maker = self.subscriber(), self.pasidd()
        work = self.work(maker)
        begin = time.monotonic()
        n = 0
        while time.monotonic() - begin < 1.0:
            work.run(work.fill(1, n))
            n += 1
        maker.close(work.path)
        s.bus.signal("InterfacesRemoved")
        seconds = time.monotonic() - begin
        s.bus.signals.clear()
        counts = {}
        s2 = self.subscriber()
        work = self.work(maker)
        begin = time.monotonic()
        while time.monotonic() - begin < 1.0:
            work.run(work.fill(1, n), work.fill(2, n))
            maker.unmap(work.path, maker.map(work.path, work.fd, 0, PAGE), PAGE)
        maker.close(work.path)
        while True:
            m = s2.bus.signal()
            counts[m.member] = counts.get(m.member, 0) + 1
            if m.member == "InterfacesRemoved":
                break
        seconds = time.monotonic() - begin
        self.assertLessEqual(counts.get("Switched", 0), 10 * seconds + 2)
        self.assertLessEqual(counts["PropertiesChanged"], 8 * seconds + 4)

    def test_too_many_subscribers(self):
        p = [self.pasidd(STRANGER) for _ in range(17)] if not os.geteuid() else self.skipTest("other users take root")
        for one in p[:16]:
            one.manager("Subscribe")
        p[0].manager("Subscribe")  # once more is nothing
        self.refused("TooManyCalls", p[16].manager, "Subscribe")
        p[3].bus.close()
        harness.wait_until(lambda: self.subscribes(p[16]), "room for another one")

    def subscribes(self, p):
        try:
            p.manager("Subscribe")
        except Exception:
            return False
        return True


class Slow(DbusTest):
    """Readers that do not read, and a bus that takes nothing."""

    devices = [{"slots": 2}]

    def test_a_bus_that_stands_still(self):
        s, maker = self.pasidd(), self.pasidd()
        s.manager("Subscribe")
        with_socket = self.space()
        work = self.work(maker)
        before = s.get(ROOT, "SignalsDropped")
        self.stack.bus.send_signal(signal.SIGSTOP)
        harness.await_stopped(self.stack.bus)
        # The data plane goes on meanwhile, and each fault would be told.
        client = with_socket.client
        for i in range(1500):
            job = with_socket.submit(command(1, 1, with_socket.iova + (1 << 30), length=8))
            self.assertTrue(with_socket.wait(job))
            if i % 50 == 0:
                ctx = client.ctx_new()
                client.ctx_free(ctx)
        self.stack.bus.send_signal(signal.SIGCONT)
        self.assertGreater(s.get(ROOT, "SignalsDropped"), before)
        work.run(work.fill(1, 7))
        maker.close(work.path)

    def test_a_subscriber_that_does_not_read(self):
        s, maker = self.pasidd(), self.pasidd()
        s.manager("Subscribe")
        work = self.work(maker)
        rss = self.stack.rss()
        for i in range(300):
            work.run(work.fill(1, i), command(1, 1, work.iova + (1 << 30), length=8))
        self.assertLess(self.stack.rss() - rss, 64 << 20)
        maker.close(work.path)
        self.assertTrue(s.bus.signal("InterfacesRemoved"))


class Admins(DbusTest):
    config = {"admin_group": ADMIN_GROUP}

    def test_members_see_all(self):
        if os.geteuid():
            self.skipTest("other users take root")
        work = self.work(self.pasidd(OWNER), opaque=True)
        stranger, member = self.pasidd(MEMBER), self.pasidd(MEMBER, [ADMIN_GID])
        self.assertNotIn(work.path, stranger.objects())
        self.assertIn(work.path, member.objects())
        self.assertTrue(member.context(work.path, "Mappings")[1][0][5])
        self.refused("AccessDenied", member.unmap, work.path, work.iova, PAGE)
        self.refused("AccessDenied", stranger.manager, "Reload")
        member.manager("Reload")
        member.close(work.path)
        self.unknown(work.pasidd.introspect, work.path)


if __name__ == "__main__":
    unittest.main()
