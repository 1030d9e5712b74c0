#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mode `nested` on QEMU's edu device behind an SMMUv3, by a daemon of this guest.

nested.py CLASS: of this file
"""

import os
import random
import struct
import sys
import unittest
from pathlib import Path

import vm
from edu import COMMANDS, COPY, DATA, EDU, FILL, LATE, PAGE, Space, a_hundred_switches, command, pc

MODE = 5
# Of edu's 28 address bits: the kernel's window for interrupts is in the middle.
IOVA_LAST = 0x7ffffff
UNMAPPED, PERMISSION = 1, 2
READ, WRITE = 1, 2


class NestedCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.device = vm.PciDevice(vm.pci_find(*EDU)[0])
        cls.device.bind_vfio()
        cls.daemon = vm.Daemon({"name": "edu0", "spec": f"iommufd:{cls.device.bdf}", "mode": "nested",
                                "job_limit_ms": 20000})
        with pc.Client(cls.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("edu0", MODE, 1)])

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()


class Switches(NestedCase):
    def setUp(self):
        self.one, self.two = (self.enterContext(pc.Client(self.daemon.socket)) for _ in range(2))

    def test_1_what_it_is(self):
        info = self.one.device_info()
        self.assertEqual((info["engine"], info["mode"], info["slots"]), ("edu", MODE, 1))
        self.assertEqual(info["iova_last"], IOVA_LAST)

    def test_2_a_hundred_switches(self):
        a_hundred_switches(self, Space(self.one), Space(self.two))

    def faults(self, client, least=1):
        """Of the next event; (job, address, access, code) of each."""
        ctx, dropped, faults = client.next_fault(30)
        self.assertGreaterEqual(len(faults), least)
        return ctx, dropped, [fault[:4] for fault in faults]

    def test_3_each_transfer_interrupts(self):
        """Its interrupts are writes that go through the context's tables."""
        a, b = Space(self.one), Space(self.two)
        for space in (a, b):
            before = self.device.interrupts()
            self.assertEqual(list(before), ["vfio-msi[0]"])
            space.run(command(COPY, 0, DATA + 4 * PAGE, DATA, 4 * PAGE))
            self.assertGreaterEqual(self.device.interrupts()["vfio-msi[0]"] - before["vfio-msi[0]"], 8)

    def test_4_unmapped(self):
        """What was just used, so that the SMMU remembers it; the fault comes with its address and what was there."""
        a = Space(self.one)
        a.data[:PAGE] = b"\x11" * PAGE
        a.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        self.one.unmap(a.ctx, DATA + PAGE, PAGE)
        before = a.page(1)
        job = a.run(command(FILL, 0x22222222, DATA + PAGE, 0, PAGE), command(COPY, 0, DATA + 2 * PAGE, DATA, PAGE))
        self.assertEqual(a.page(1), before)
        self.assertEqual(a.page(2), a.page(0))
        ctx, _, faults = self.faults(self.one)
        self.assertEqual((ctx, faults), (a.ctx, [(job, DATA + PAGE, WRITE, UNMAPPED)]))

    def test_5_read_only(self):
        a = Space(self.one)
        fd, view = pc.memfd(PAGE)
        view[:] = b"\x33" * PAGE
        self.one.map(a.ctx, self.one.buf_import(fd)[0], 0, PAGE, pc.READ | pc.FIXED, LATE)
        job = a.run(command(COPY, 0, DATA, LATE, PAGE), command(FILL, 0x44444444, LATE, 0, PAGE))
        self.assertEqual(a.page(0), b"\x33" * PAGE)
        self.assertEqual(view[:], b"\x33" * PAGE)
        self.assertEqual(self.faults(self.one)[2], [(job, LATE, WRITE, PERMISSION)])


    def test_6_unmapped_while_another_runs(self):
        """The SMMU forgets what it knew of a context also while the device is elsewhere."""
        a, b = Space(self.one), Space(self.two)
        a.data[:] = b"\x11" * len(a.data)
        a.run(command(COPY, 0, DATA + PAGE, DATA, 2 * PAGE))
        b.run(command(FILL, 0x22222222, DATA, 0, 4 * PAGE))
        self.one.unmap(a.ctx, DATA, 2 * PAGE)
        b.run(command(FILL, 0x33333333, DATA, 0, 4 * PAGE))
        self.one.map(a.ctx, a.buf, 4 * PAGE, 2 * PAGE, pc.READ | pc.WRITE | pc.FIXED, DATA)
        a.run(command(FILL, 0x44444444, DATA, 0, 2 * PAGE))
        self.assertEqual(a.data[:4 * PAGE], b"\x11" * 4 * PAGE)
        self.assertEqual(a.data[4 * PAGE:6 * PAGE], b"\x44" * 2 * PAGE)
        self.assertEqual(b.data[:4 * PAGE], b"\x33" * 4 * PAGE)
        self.assertEqual((self.one.events, self.two.events), ([], []))

    def test_7_contexts_come_and_go(self):
        """Tables of one that ended serve the next one, at the same addresses."""
        for i in range(1, 12):
            a = Space(self.one)
            value = 0x01010101 * i
            a.run(command(FILL, value, DATA, 0, PAGE), command(COPY, 0, DATA + PAGE, DATA, PAGE))
            self.assertEqual(a.data[:3 * PAGE], struct.pack("<I", value) * (PAGE // 2) + bytes(PAGE))
            self.one.ctx_free(a.ctx)
        self.assertEqual(self.one.events, [])

    def test_8_a_flood(self):
        """More faults than anybody keeps are lost, and counted; they are nobody else's, and slow nobody down."""
        a, b = Space(self.one), Space(self.two)
        for _ in range(3):
            job = a.run(*(command(COPY, 0, DATA, LATE + i * PAGE, PAGE) for i in range(16)))
            b.run(command(FILL, 0x22222222, DATA, 0, PAGE))
            self.assertEqual(b.page(0), b"\x22" * PAGE)
        ctx, _, faults = self.faults(self.one)
        self.assertEqual(ctx, a.ctx)
        for fault in faults:
            self.assertEqual(fault[2:], (READ, UNMAPPED))
            self.assertIn(fault[1] & -PAGE, range(LATE, LATE + 16 * PAGE, PAGE))
        self.assertLessEqual(faults[-1][0], job)
        self.daemon.await_log("faults lost, its queue was full")
        self.assertEqual(self.two.events, [])
        self.assertEqual(self.two.ctx_info(b.ctx)["faults"], 0)


class Memory:
    """A buffer whose 8-byte words are all different, and what of it a context has mapped where."""

    BYTES = 16 << 20

    def __init__(self, client, ctx):
        self.client, self.ctx = client, ctx
        self.fd, self.view = pc.memfd(self.BYTES)
        self.buf = client.buf_import(self.fd)[0]
        self.view[:] = struct.pack(f"<{self.BYTES // 8}Q", *range(1 << 40, (1 << 40) + self.BYTES // 8))
        self.pages = {}  # page of IOVA: (page of the buffer, writable)

    def map(self, rng, aligned):
        pages = rng.choice((1, 2, 16, 100, 512, 513, 1024, 2048))
        step = 512 if aligned else 1
        first = rng.randrange((IOVA_LAST + 1) // PAGE // step - pages // step - 16) * step
        at = rng.randrange((self.BYTES // PAGE - pages) // step + 1) * step
        first = max(first, 0x400)
        if any(page in self.pages for page in range(first, first + pages)):
            return
        writable = rng.random() < 0.7
        self.client.map(self.ctx, self.buf, at * PAGE, pages * PAGE, pc.READ | pc.FIXED | (pc.WRITE if writable else 0),
                        first * PAGE)
        self.pages.update({first + i: (at + i, writable) for i in range(pages)})

    def unmap(self, rng):
        """Some pages in a row, out of the middle of what is mapped or to its end."""
        if not self.pages:
            return
        first = rng.choice(list(self.pages))
        most, pages = rng.choice((1, 3, 64, 512, 700)), 0
        while pages < most and first + pages in self.pages:
            del self.pages[first + pages]
            pages += 1
        self.client.unmap(self.ctx, first * PAGE, pages * PAGE)

    def sample(self, rng):
        """An address: mapped, beside what is mapped, or anywhere."""
        page = rng.randrange(0x400, (IOVA_LAST + 1) // PAGE)
        if self.pages and rng.random() < 0.8:
            page = rng.choice(list(self.pages)) + rng.choice((-1, 0, 0, 0, 1))
        return page * PAGE + 8 * rng.randrange(PAGE // 8)


class Random(NestedCase):
    """The SMMU agrees with what was asked for: maps and unmaps of all sizes, then accesses to samples of addresses."""

    ROUNDS, SAMPLES, CHANGES = 6, 20, 20

    def test_samples(self):
        seed = int.from_bytes(os.urandom(4), "little")
        print(f"# seed {seed}", flush=True)
        rng = random.Random(seed)
        with pc.Client(self.daemon.socket) as client:
            space = Space(client)
            memory = Memory(client, space.ctx)
            for at in (DATA, COMMANDS):
                self.assertLess(at, 0x400 * PAGE)
            for _ in range(self.ROUNDS):
                for _ in range(self.CHANGES):
                    if rng.random() < 0.6:
                        memory.map(rng, rng.random() < 0.4)
                    else:
                        memory.unmap(rng)
                self.reads(rng, space, memory)
                self.writes(rng, space, memory)

    def reads(self, rng, space, memory):
        """Where nothing is read, the device puts out zeros, or what it read before."""
        samples = [memory.sample(rng) for _ in range(self.SAMPLES)]
        space.run(*(command(COPY, 0, DATA + 8 * i, at, 8) for i, at in enumerate(samples)))
        before = bytes(8)
        for i, at in enumerate(samples):
            page, _ = memory.pages.get(at // PAGE, (None, False))
            got = space.data[8 * i:8 * i + 8]
            if page is None:
                self.assertIn(got, (bytes(8), before), f"{at:#x}, which is not mapped")
                continue
            off = page * PAGE + at % PAGE
            before = memory.view[off:off + 8]
            self.assertEqual(got, before, f"{at:#x}")

    def writes(self, rng, space, memory):
        expected = bytearray(memory.view[:])
        code = []
        for _ in range(self.SAMPLES):
            at, value = memory.sample(rng), rng.getrandbits(31)
            code.append(command(FILL, value, at, 0, 8))
            page, writable = memory.pages.get(at // PAGE, (None, False))
            if writable:
                off = page * PAGE + at % PAGE
                expected[off:off + 8] = struct.pack("<I", value) * 2
        space.run(*code)
        self.assertTrue(memory.view[:] == expected, "what was written where is not what was mapped")



class Failing(NestedCase):
    """The kernel is out of memory at the n-th place of what the daemon asks while a context is installed, or forgets."""

    PLACES = 6
    FAILSLAB = Path("/sys/kernel/debug/failslab")

    def setUp(self):
        (self.FAILSLAB / "verbose").write_text("0")
        (self.FAILSLAB / "ignore-gfp-wait").write_text("N")
        self.one, self.two = (self.enterContext(pc.Client(self.daemon.socket)) for _ in range(2))
        self.lost = 0

    def fail_at(self, nth):
        """At the nth place from now on; 0: not any more. Returns what was left of the last one."""
        path = Path(f"/proc/{self.daemon.process.pid}/fail-nth")
        left = int(path.read_text())
        path.write_text(str(nth))
        return left

    def assert_works(self, space, value):
        space.run(command(FILL, value, DATA, 0, PAGE), command(COPY, 0, DATA + PAGE, DATA, PAGE))
        self.assertEqual(space.data[:2 * PAGE], struct.pack("<I", value) * (PAGE // 2))

    def ended(self, client, space, job):
        """False: the context was lost instead."""
        if client.wait(space.ctx, job, 30):
            return True
        event = client.next_event(30)
        self.assertEqual((event[0], struct.unpack_from("<I", event[1])[0]), (pc.EV_LOST, space.ctx))
        self.lost += 1
        return False

    def test_install(self):
        for nth in range(1, self.PLACES + 1):
            a, b = Space(self.one), Space(self.two)
            a.data[:] = b.data[:] = bytes(len(a.data))
            self.assert_works(a, 0x11111111)
            b.cmd[:32] = command(FILL, 0x22222222, DATA, 0, PAGE)
            self.fail_at(nth)
            job = self.two.submit(b.ctx, COMMANDS, 32)
            ended = self.ended(self.two, b, job)
            self.fail_at(0)
            self.assertEqual(b.page(0), (b"\x22" if ended else b"\0") * PAGE)
            self.assertEqual(a.page(0), b"\x11" * PAGE)
            self.assert_works(a, 0x33333333)
            self.assert_works(Space(self.two), 0x44444444)
        self.assertGreaterEqual(self.lost, 1)

    def test_unmap(self):
        """What the SMMU was not told then it is told before the answer: nothing of it is remembered."""
        for nth in range(1, self.PLACES + 1):
            a, b, at = Space(self.one), Space(self.two), DATA + nth * PAGE
            a.run(command(FILL, 0x11111111, at, 0, PAGE))
            self.fail_at(nth)
            self.one.unmap(a.ctx, at, PAGE)
            self.fail_at(0)
            a.run(command(FILL, 0x55555555, at, 0, PAGE))
            self.assertEqual(a.page(nth), b"\x11" * PAGE)
            self.assertEqual(self.one.next_fault(30)[0], a.ctx)
            self.assert_works(b, 0x22222222)


if __name__ == "__main__":
    vm.run_system([sys.argv[0], "-k", f"*.{vm.ARGUMENTS[0]}.*"])
