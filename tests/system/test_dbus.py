# SPDX-License-Identifier: MIT
"""The D-Bus side: what there is to see and to call, by whom, and what is told (docs/dbus.md)."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from dbus_stack import DbusTest, FRIEND, OWNER, STRANGER  # noqa: E402
from work import PAGE, page_of, settled  # noqa: E402

ROOT, DEVICES, CONTEXTS = "/org/pasidd", "/org/pasidd/device", "/org/pasidd/context"
GPU = DEVICES + "/gpu0"


class Seeing(DbusTest):
    config = {"limits": {"uids": [{"uid": OWNER, "limits": {"connections": 3, "contexts": 7}}]}}

    def test_busctl_finds_everything(self):
        def busctl(*args):
            return subprocess.run(["busctl", "--address=unix:path=" + self.stack.bus_socket, *args], check=True,
                                  stdout=subprocess.PIPE, text=True, timeout=30).stdout

        work = self.work(self.pasidd())
        tree = busctl("--list", "tree", "org.pasidd").split()
        self.assertEqual(tree, ["/", "/org", ROOT, CONTEXTS, work.path, DEVICES, GPU])
        said = busctl("introspect", "org.pasidd", work.path)
        self.assertRegex(said, r"\.Walk +method +t +sa\(uutts\)")
        self.assertRegex(said, r"\.State +property +s +\"ok\" +emits-change")
        self.assertRegex(said, r"\.Fault +signal +ttss\(tt\)\(tt\)t")
        self.assertEqual(busctl("get-property", "org.pasidd", GPU, "org.pasidd.Device1", "State"), 's "ready"\n')
        self.assertEqual(busctl("call", "org.pasidd", work.path, "org.pasidd.Context1", "Translate", "t",
                                str(work.iova)).split()[:2], ["stuut", '"table"'])

    def test_what_is_said_of_a_device(self):
        p = self.pasidd()
        device = p.get_all(GPU)
        self.assertEqual((device["Name"], device["Mode"], device["State"], device["Driver"]),
                         ("gpu0", "gpu-mmu", "ready", "refgpu"))
        self.assertEqual(len(device["Slots"]), device["SlotCount"])
        work = self.work(p)
        work.run(work.fill(1, 7))
        again = p.get_all(GPU)
        self.assertEqual(again["Switches"], device["Switches"] + 1)
        self.assertEqual(again["Contexts"], device["Contexts"] + 1)
        self.assertGreater(again["TablePages"], 0)

    def test_introspection_and_properties_agree(self):
        p = self.pasidd()
        work = self.work(p)
        objects = p.objects()
        self.assertEqual(set(objects), {GPU, work.path})
        for path in (ROOT, GPU, work.path):
            xml = p.introspect(path)
            own = re.search(r'<interface name="org\.pasidd\..*?</interface>', xml, re.S).group()
            self.assertEqual(set(re.findall(r'<property name="(\w+)"', own)), set(p.get_all(path)))
        self.assertEqual(set(objects[work.path]["org.pasidd.Context1"]), set(p.get_all(work.path)))

    def test_state_is_the_same_as_json(self):
        p = self.pasidd()
        work = self.work(p)
        state = json.loads(p.manager("GetState"))
        self.assertEqual([c["Id"] for c in state["contexts"]], [work.id])
        self.assertEqual(state["devices"][0]["Name"], "gpu0")
        self.assertEqual(state["Version"], p.get(ROOT, "Version"))

    def test_what_a_context_has_mapped(self):
        p = self.pasidd()
        work = self.work(p)
        source, mappings, complete = p.context(work.path, "Mappings")
        self.assertEqual((source, complete), ("table", True))
        iova, length, flags, _, offset, bus = mappings[0]
        self.assertEqual((iova, length, flags, offset), (work.iova, work.size, 3, 0))
        for end in (iova + length - 1, iova + length):
            self.assertEqual(p.context(work.path, "MappingsFrom", "t", end)[1], [])

        source, levels = p.context(work.path, "Walk", "t", work.iova)
        self.assertEqual([v[0] for v in levels], [0, 1, 2, 3])
        for (_, _, _, entry, says), (_, index, at, _, _) in zip(levels, levels[1:]):
            self.assertIn("table at bus", says)
            self.assertEqual(at - index * 8, entry & 0xfffffffff000)
        self.assertIn("page of 4 KiB", levels[3][4])
        self.assertEqual(levels[3][3] & 0xfffffffff000, bus)
        translated = p.context(work.path, "Translate", "t", work.iova + PAGE + 12)
        self.assertEqual(translated[:3], ["table", bus + PAGE + 12, 3])
        self.assertEqual(translated[4], PAGE + 12)

        source, leaves, complete = p.context(work.path, "DumpTable")
        self.assertEqual((source, complete, len(leaves)), ("table", True, work.size // PAGE))
        self.assertEqual([v[0] for v in leaves], list(range(work.iova, work.iova + work.size, PAGE)))
        self.assertEqual(p.context(work.path, "DumpTableFrom", "t", leaves[1][0])[1][0][0], leaves[1][0])
        self.refused("NotMapped", p.context, work.path, "Translate", "t", work.iova + work.size)
        self.assertEqual(p.context(work.path, "Walk", "t", work.iova + work.size)[1][-1][4], "nothing")

    def test_long_lists_come_in_parts(self):
        p = self.pasidd()
        n = 5000
        work = self.work(p, n)
        seen, at, complete = [], None, False
        while not complete:
            call = ("DumpTable",) if at is None else ("DumpTableFrom", "t", at)
            _, leaves, complete = p.context(work.path, *call)
            seen += leaves
            at = leaves[-1][0] + leaves[-1][1]
        self.assertEqual(sum(v[1] for v in seen), n * PAGE)
        self.assertEqual(len({v[0] for v in seen}), len(seen))

    def test_what_is_no_call_of_ours(self):
        p = self.pasidd()
        work = self.work(p)
        unknown = "org.freedesktop.DBus.Error.Unknown"
        for path in ("/nothing", "/org/pasidd/context/0", "/org/pasidd/context/01", "/org/pasidd/context/99999999999",
                     "/org/pasidd/device/gpu9", "/org/pasidd/device/_67pu0", "/org/pasidd/context/4294967295"):
            self.refused(unknown + "Object", p.introspect, path)
        self.refused(unknown + "Interface", p.call, ROOT, "org.pasidd.Nothing1", "Map")
        self.refused(unknown + "Method", p.manager, "Nothing")
        self.refused(unknown + "Property", p.get, GPU, "Nothing")
        self.refused("org.freedesktop.DBus.Error.PropertyReadOnly", p.call, GPU, "org.freedesktop.DBus.Properties", "Set",
                     "ssv", "org.pasidd.Device1", "Name", ("s", "x"))
        said = self.refused("org.freedesktop.DBus.Error.InvalidArgs", p.context, work.path, "Unmap", "ts", 1, "x")
        self.assertIn('takes "tt", and was given "ts"', said)
        self.refused("org.freedesktop.DBus.Error.InvalidArgs", p.manager, "CreateContext")

    def test_peer_is_answered(self):
        p = self.pasidd()
        p.call(ROOT, "org.freedesktop.DBus.Peer", "Ping")

    def test_limits_are_the_callers(self):
        self.assertEqual(self.pasidd(OWNER).get(ROOT, "UserLimits")["contexts"], 7)
        self.assertEqual(self.pasidd(STRANGER).get(ROOT, "UserLimits")["contexts"], 1024)


class Touching(DbusTest):
    def test_work_from_nothing_but_calls(self):
        p = self.pasidd()
        work = self.work(p)
        work.run(work.fill(2, 0x1234))
        self.assertEqual(work.view[2 * PAGE:3 * PAGE], page_of(0x1234))
        context = p.get_all(work.path)
        self.assertEqual((context["Submitted"], context["Completed"], context["Bytes"], context["Mapped"]),
                         (1, 1, work.size, 1))
        self.assertEqual((context["BusName"], context["OwnerUid"], context["OwnerPid"]),
                         (p.bus.name, os.geteuid(), os.getpid()))
        self.assertGreater(context["DeviceTime"], 0)
        p.unmap(work.path, work.iova, work.size)
        self.assertEqual(p.get(work.path, "Mapped"), 0)
        # Nothing names the memory any more, so that the device has it no longer.
        harness.wait_until(lambda: self.stack.status()["dma_bytes"] == self.before[0][2] + len(work.fence),
                           "the memory is unmapped from the device")
        p.close(work.path)
        self.unknown(p.introspect, work.path)

    def test_refusals_are_sentences(self):
        p = self.pasidd()
        work = self.work(p)
        self.refused("NotFound", p.create, "gpu9")
        self.refused("NotFound", p.create, "x" * 100)
        self.refused("InvalidArgument", p.create, "", fast=True)
        self.assertIn("0x", self.refused("NotMapped", p.unmap, work.path, work.iova + work.size, PAGE))
        self.assertIn("4096", self.refused("InvalidArgument", p.unmap, work.path, 1, PAGE))
        self.refused("Exists", p.map, work.path, work.fd, 0, PAGE, 7, work.iova)
        self.refused("OutOfRange", p.map, work.path, work.fd, 0, work.size + PAGE)
        self.refused("InvalidArgument", p.map, work.path, work.fd, 0, PAGE, 64)
        # Nothing of those that were refused is left.
        self.assertEqual(p.get(work.path, "Mapped"), 1)

    def test_fds_that_are_no_memory(self):
        p = self.pasidd()
        work = self.work(p)
        bare = os.memfd_create("bare", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, bare)
        os.ftruncate(bare, PAGE)
        self.refused("NotPermitted", p.map, work.path, bare, 0, PAGE)
        for path in ("/dev/null", "/proc/self/stat", "/"):
            fd = os.open(path, os.O_RDONLY)
            self.addCleanup(os.close, fd)
            self.refused("NotSupported", p.map, work.path, fd, 0, PAGE)
        a, b = socket.socketpair()
        with a, b:
            self.refused("NotSupported", p.map, work.path, a.fileno(), 0, PAGE)
        readable = os.open(f"/proc/self/fd/{work.fd}", os.O_RDONLY)
        self.addCleanup(os.close, readable)
        self.refused("AccessDenied", p.map, work.path, readable, 0, PAGE)
        p.map(work.path, readable, 0, PAGE, 1)

    def test_fds_where_none_belong(self):
        p = self.pasidd()
        work = self.work(p)
        before = settled(self.stack.fds)
        for _ in range(10):
            p.call(ROOT, "org.freedesktop.DBus.Peer", "Ping", fds=[0, 1, 2])
            p.call(work.path, "org.pasidd.Context1", "Mappings", fds=[0, work.fd])
            self.unknown(p.call, "/nothing", "org.pasidd.Context1", "Mappings", fds=[0, 1])
        harness.wait_until(lambda: self.stack.fds() <= before, "fds are closed")

    def test_a_connection_is_the_callers(self):
        p = self.pasidd(OWNER)
        client = pc.Client(p.manager("OpenConnection"))
        self.addCleanup(client.close)
        ctx = client.ctx_new()
        look = p.get_all(f"{CONTEXTS}/{ctx}")
        self.assertEqual((look["OwnerUid"], look["OwnerPid"], look["BusName"]), (OWNER, os.getpid(), ""))
        self.unknown(self.pasidd(STRANGER).introspect, f"{CONTEXTS}/{ctx}")

    def test_the_context_ends_with_its_name(self):
        p, watcher = self.pasidd(), self.pasidd()
        work = self.work(p)
        self.assertIn(work.path, watcher.objects())
        p.bus.close()
        harness.wait_until(lambda: work.path not in watcher.objects(), "the context is gone")

    def test_the_name_is_gone_in_the_middle(self):
        for _ in range(20):
            p = self.pasidd()
            work = self.work(p)
            for _ in range(8):
                p.bus.send("org.pasidd", work.path, "org.pasidd.Context1", "Map", "httut", 0, 0, PAGE, 3, 0, fds=[work.fd])
            p.bus.send("org.pasidd", ROOT, "org.pasidd.Manager1", "CreateContext", "sa{sv}", "", {})
            p.bus.close()
        # tearDown sees that nothing is left.

    def test_reset(self):
        p = self.pasidd()
        work = self.work(p)
        before = p.get(GPU, "Resets")
        p.call(GPU, "org.pasidd.Device1", "Reset")
        self.assertEqual((p.get(GPU, "Resets"), p.get(GPU, "State")), (before + 1, "ready"))
        work.run(work.fill(1, 5))
        self.assertEqual(p.get(work.path, "State"), "ok")


class Rights(DbusTest):
    def setUp(self):
        if os.geteuid():
            self.skipTest("other users take root")
        super().setUp()

    def test_who_sees_a_context(self):
        work = self.work(self.pasidd(OWNER))
        root, friend, stranger = self.pasidd(0), self.pasidd(FRIEND), self.pasidd(STRANGER)
        for p in (root, friend):
            self.assertIn(work.path, p.objects())
            self.assertIn(f'<node name="{work.id}"/>', p.introspect(CONTEXTS))
        self.assertNotIn(work.path, stranger.objects())
        self.assertNotIn(f'<node name="{work.id}"/>', stranger.introspect(CONTEXTS))
        self.assertEqual(json.loads(stranger.manager("GetState"))["contexts"], [])
        self.assertEqual((root.get(ROOT, "Contexts"), friend.get(ROOT, "Contexts"), stranger.get(ROOT, "Contexts")),
                         (1, 1, 0))
        # To the letter as for one that never was.
        def text(path):
            with self.assertRaises(Exception) as caught:
                stranger.get(path, "State")
            return str(caught.exception).replace(path, "")
        self.assertEqual(text(work.path), text(f"{CONTEXTS}/4000000000"))

    def test_who_may_touch_it(self):
        work = self.work(self.pasidd(OWNER))
        friend, stranger = self.pasidd(FRIEND), self.pasidd(STRANGER)
        for p in (friend, self.pasidd(0)):
            self.refused("AccessDenied", p.map, work.path, work.fd, 0, PAGE)
            self.refused("AccessDenied", p.unmap, work.path, work.iova, PAGE)
            self.refused("AccessDenied", p.submit, work.path, work.iova, 64)
        self.refused("AccessDenied", friend.close, work.path)
        for call in (stranger.close, lambda path: stranger.unmap(path, work.iova, PAGE)):
            self.unknown(call, work.path)
        work.run(work.fill(1, 3))
        self.pasidd(0).close(work.path)
        self.unknown(work.pasidd.introspect, work.path)

    def test_opaque(self):
        maker = self.pasidd(OWNER)
        work = self.work(maker, opaque=True)
        self.assertTrue(maker.get(work.path, "Opaque"))
        self.assertIn(work.path, self.pasidd(0).objects())
        self.unknown(self.pasidd(FRIEND).introspect, work.path)
        client = pc.Client(self.pasidd(OWNER).manager("OpenConnection"))
        self.addCleanup(client.close)
        body, _ = client.call(pc.CTX_NEW, pc.name("") + struct.pack("<II", 1, 0))
        ctx, = struct.unpack_from("<I", body)
        self.unknown(maker.introspect, f"{CONTEXTS}/{ctx}")
        self.assertTrue(self.pasidd(0).get(f"{CONTEXTS}/{ctx}", "Opaque"))

    def test_bus_addresses_and_counts_are_the_administrators(self):
        maker = self.pasidd(OWNER)
        work = self.work(maker)
        self.assertTrue(all(v[5] for v in self.pasidd(0).context(work.path, "Mappings")[1]))
        self.assertEqual({v[5] for v in maker.context(work.path, "Mappings")[1]}, {0})
        _, levels = maker.context(work.path, "Walk", "t", work.iova)
        self.assertEqual([v[2:4] for v in levels], [(0, 0)] * 4)
        self.assertFalse(re.search("0x", "".join(v[4] for v in levels)))
        self.assertEqual({v[2] for v in maker.context(work.path, "DumpTable")[1]}, {0})
        self.assertFalse(re.search("0x", "".join(v[3] for v in maker.context(work.path, "DumpTable")[1])))
        self.assertEqual(maker.context(work.path, "Translate", "t", work.iova)[1], 0)
        device = maker.get_all(GPU)
        self.assertEqual((device["Slots"], device["Contexts"], device["Switches"], device["TablePages"]), ([], 0, 0, 0))
        self.assertEqual(maker.get(ROOT, "TotalBytes"), 0)
        self.assertGreater(self.pasidd(0).get(ROOT, "TotalBytes"), 0)

    def test_what_only_administrators_may(self):
        for uid in (OWNER, STRANGER):
            p = self.pasidd(uid)
            self.assertIn("admin_group", self.refused("AccessDenied", p.manager, "Reload"))
            self.refused("AccessDenied", p.call, GPU, "org.pasidd.Device1", "Reset")

    def test_close_of_a_sockets_context(self):
        client = self.client()
        ctx = client.ctx_new()
        root = self.pasidd(0)
        root.close(f"{CONTEXTS}/{ctx}")
        self.assertEqual(client.ctx_info(ctx)["state"], 1)
        opcode, body = client.next_event(10)
        self.assertEqual((opcode, struct.unpack("<IIQ", body)), (pc.EV_LOST, (ctx, 5, 0)))
        look = root.get_all(f"{CONTEXTS}/{ctx}")
        self.assertEqual((look["State"], look["LostReason"]), ("lost", "closed"))
        root.close(f"{CONTEXTS}/{ctx}")
        client.ctx_free(ctx)


class Shared(DbusTest):
    """One address space for all contexts: what others have there is not shown."""

    devices = [{"mode": "global"}]

    def test_others_mappings_are_not_there(self):
        if os.geteuid():
            self.skipTest("other users take root")
        works = [self.work(self.pasidd(uid)) for uid in (OWNER, STRANGER, OWNER)]
        self.assertEqual(len({w.iova for w in works}), 3)
        for w in works:
            p = w.pasidd
            self.assertEqual([v[0] for v in p.context(w.path, "Mappings")[1]], [w.iova])
            self.assertEqual([v[0] for v in p.context(w.path, "DumpTable")[1]],
                             list(range(w.iova, w.iova + w.size, PAGE)))
            self.assertEqual(p.context(w.path, "Walk", "t", w.iova)[1][-1][0], 3)
            for other in works:
                if other is not w:
                    self.refused("NotMapped", p.context, w.path, "Translate", "t", other.iova)
                    self.assertEqual(p.context(w.path, "Walk", "t", other.iova)[1], [])
        works[1].run(works[1].fill(1, 5))


if __name__ == "__main__":
    unittest.main()
