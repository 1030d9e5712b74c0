# SPDX-License-Identifier: MIT
"""What a device is told, and when: rights of what it may reach, and that nothing is taken away, given on or answered
before it has said that it has forgotten. The device forgets, completes and obeys only when the test says so."""

import ctypes
import errno
import json
import os
import platform
import struct
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import fake_device as fake  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from fake_device import FakeDevice, Refusal  # noqa: E402
from test_lying_device import LyingStack, LyingTest  # noqa: E402
from work import PAGE  # noqa: E402

NAME = "Slow"
PATIENCE_MS = 20000  # nothing here may be ended by a deadline of the daemon's
REG_INVQ, INVQ_ENTRIES, INV_RANGE, INV_ASID = 0x28, 1024, 1, 2
INV = struct.Struct("<IIQQQ")
CTRL_PAUSE, CTRL_TERMINATE, CTRL_STOP = 1, 3, 4
ENGINE, TABLES, FENCES, BUFFERS = 0x100000, 0x4000000000, 0x8000000000, 0x100000000000
READ, WRITE = 1, 2


class Slow(FakeDevice):
    """Keeps what it is asked until it is told to do it."""

    held = ()  # of "invalidate", "control", "work"
    refuses = False  # buffers

    def forget(self):
        super().forget()
        self.kept = []
        self.invalidations = []
        self.controls = []
        self.seen = 0

    def keep(self, what, function, *args):
        if what in self.held:
            self.kept.append((what, function, args))
        else:
            function(*args)

    def release(self, *what):
        """From the test's thread. Whatever comes from now on is done at once."""
        self.held = tuple(w for w in self.held if w not in what)
        kept, self.kept = self.kept, [k for k in self.kept if k[0] not in what]
        for word, function, args in kept:
            if word in what:
                function(*args)

    def dma_map(self, payload, fds):
        if self.refuses and struct.unpack_from("<Q", payload, 16)[0] >= BUFFERS:
            raise Refusal(errno.ENOMEM)
        return super().dma_map(payload, fds)

    def invalidate(self, tail):
        view, off = self.at(self.regs[REG_INVQ])
        for n in range(self.seen, tail):
            op, asid, first, last, _ = INV.unpack_from(view, off + n % INVQ_ENTRIES * INV.size)
            self.invalidations.append((asid, first, last) if op == INV_RANGE else (asid, 0, (1 << 64) - 1))
        self.seen = tail
        self.keep("invalidate", super().invalidate, tail)

    def control(self, slot, value):
        self.controls.append((slot, value & 0xFF))
        self.keep("control", self.obey, slot, value)

    def obey(self, slot, value):
        self.mark(slot, fake.MARK_STATE, 0)
        super().control(slot, value)

    def doorbell(self, slot, tail):
        if "work" in self.held:
            self.mark(slot, fake.MARK_BEGUN, tail)
            self.mark(slot, fake.MARK_STATE, 1)
        self.keep("work", self.finish, slot, tail)

    def finish(self, slot, tail):
        self.mark(slot, fake.MARK_STATE, 0)
        super().doorbell(slot, tail)

    def tables(self):
        """The table pages that hold something."""
        view, size, _ = self.maps[TABLES]
        return {i for i in range(size // PAGE) if view[i * PAGE:(i + 1) * PAGE] != bytes(PAGE)}


class SlowStack(LyingStack):
    served = {}

    def write_config(self):
        super().write_config()
        path = os.path.join(self.dir, "pasidd.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config["devices"][-1].update(answer_ms=PATIENCE_MS, job_limit_ms=PATIENCE_MS)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)


class Later:
    """A call in a thread of its own, and whether it has returned."""

    def __init__(self, function, *args):
        self.result = None
        self.thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self.thread.start()

    def _run(self, function, args):
        self.result = function(*args)

    def returned(self, timeout=0.0):
        self.thread.join(timeout)
        return not self.thread.is_alive()


def futex_wait(view, off, value, seconds):
    """Sleeps while the word at `off` of a mapping has this value: 0 if woken, else an error number."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_void_p * 16)()  # a Py_buffer: first the address
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), buffer, 0)
    try:
        timeout = (ctypes.c_long * 2)(seconds, 0)
        number = 202 if platform.machine() == "x86_64" else 98
        done = libc.syscall(ctypes.c_long(number), ctypes.c_void_p(buffer[0] + off), 0, ctypes.c_uint32(value), timeout,
                            None, 0)
        return ctypes.get_errno() if done else 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(buffer)


class DeviceView(LyingTest):
    @classmethod
    def setUpClass(cls):
        cls.stack = SlowStack([{"slots": 4}])
        cls.stack.kinds = (Slow,)
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()

    def setUp(self):
        super().setUp()
        self.device = self.stack.served[NAME]
        self.device.held, self.device.refuses = (), False
        self.one = self.client()
        harness.wait_until(lambda: (NAME, 1, 1) in self.one.devices(), "it is ready")
        self.addCleanup(self.device.release, "invalidate", "control", "work")

    def running(self, client=None):
        """A space that the device may remember translations of."""
        space = self.space(client or self.one, device=NAME)
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.device.invalidations.clear()
        self.device.controls.clear()
        return space

    def buffer(self, pages=1):
        fd, view = pc.memfd(pages * PAGE)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        buf = self.one.buf_import(fd, NAME)[0]
        return buf, max(self.device.maps)

    def await_asked(self, what, call):
        """The device has been asked, and the daemon, which still answers others, has had time to go wrong."""
        def asked():
            return any(k[0] == what for k in self.device.kept)

        harness.wait_until(lambda: asked() or call.returned(), f"{what} is asked for")
        self.assertTrue(asked(), f"answered, and {what} was not asked for")
        with self.client() as other:
            for _ in range(10):
                for vector in range(3):
                    self.device.interrupt(vector)  # they say nothing
                other.devices()

    def test_rights_of_what_is_mapped(self):
        fd = os.open(f"/proc/self/fd/{self.running().data_fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.addCleanup(os.close, fd)
        self.assertEqual(self.one.buf_import(fd, NAME)[2], 0)
        rights = {bus: flags & 3 for bus, (_, _, flags) in self.device.maps.items()}
        marks = self.device.regs[fake.REG_MAILBOX]
        buffers = sorted(bus for bus in rights if bus >= BUFFERS)
        self.assertEqual([rights[bus] for bus in sorted(rights) if bus < BUFFERS],
                         [READ, READ | WRITE, READ, READ | WRITE], "rings, marks, tables, fences")
        # Neither may it take more than it was asked to take: the fds say so, too.
        self.assertEqual([self.device.writable_fds[bus] for bus in sorted(rights) if bus < BUFFERS],
                         [False, True, False, True], "rings, marks, tables, fences")
        self.assertEqual(sorted(bus for bus in rights if bus < FENCES), [ENGINE, marks, TABLES])
        self.assertEqual([rights[bus] for bus in buffers], [READ | WRITE, READ | WRITE, READ])

    def test_contexts_take_turns(self):
        spaces = [self.space(self.one, device=NAME) for _ in range(fake.SLOTS + 2)]
        for _ in range(3):
            for space in spaces:
                self.assertTrue(space.wait(space.submit(space.add_one()), 5))

    def test_a_refused_buffer_is_forgotten(self):
        fd, view = pc.memfd(PAGE)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        self.one.ctx_free(self.one.ctx_new(NAME))
        before = self.stack.fds()
        self.device.refuses = True
        for _ in range(3):
            with self.assertRaises(pc.Refused):
                self.one.buf_import(fd, NAME)
        harness.wait_until(lambda: self.stack.fds() == before, "its fds are closed", 3)

    def test_unmap_waits_for_the_invalidation(self):
        space = self.running()
        buf, bus = self.buffer()
        iova = self.one.map(space.ctx, buf, 0, PAGE)
        self.one.buf_free(buf)  # still mapped
        self.device.held = ("invalidate",)
        call = Later(self.one.unmap, space.ctx, iova, PAGE)
        self.await_asked("invalidate", call)
        self.assertFalse(call.returned(), "answered before the device has forgotten")
        self.assertIn(bus, self.device.maps, "taken from the device before it has forgotten")
        self.device.release("invalidate")
        self.assertTrue(call.returned(10))
        harness.wait_until(lambda: bus not in self.device.maps, "unmapped from the device")

    def test_emptied_tables_wait_for_the_invalidation(self):
        space = self.running()
        buf, _ = self.buffer()
        iova = self.one.map(space.ctx, buf, 0, PAGE, pc.READ | pc.FIXED, 1 << 40)
        before = self.device.tables()
        self.device.held = ("invalidate",)
        call = Later(self.one.unmap, space.ctx, iova, PAGE)
        self.await_asked("invalidate", call)
        emptied = before - self.device.tables()
        self.assertEqual(len(emptied), 3)
        self.space(self.client(), device=NAME)
        self.assertFalse(emptied & self.device.tables(), "used again before the device has forgotten them")
        self.device.release("invalidate")
        self.assertTrue(call.returned(10))

    def test_free_waits_for_the_invalidation(self):
        space = self.running()
        before = dict(self.device.maps)
        tables = self.device.tables()
        self.one.buf_free(space.buf)
        self.device.held = ("invalidate",)
        call = Later(self.one.ctx_free, space.ctx)
        self.await_asked("invalidate", call)
        self.assertFalse(call.returned(), "answered before the device has forgotten")
        self.assertEqual(set(self.device.maps), set(before))
        self.assertEqual(self.device.tables(), tables)
        self.device.release("invalidate")
        self.assertTrue(call.returned(10))

    def test_free_waits_for_the_slot(self):
        space = self.running()
        self.device.held = ("work", "control")
        space.submit(space.add_one())
        call = Later(self.one.ctx_free, space.ctx)
        self.await_asked("control", call)
        self.assertEqual([what for _, what in self.device.controls], [CTRL_STOP])
        self.assertFalse(call.returned(), "answered before the slot has stopped")
        self.assertEqual(self.device.invalidations, [], "invalidated while the slot may still run")
        self.device.kept = [k for k in self.device.kept if k[0] != "work"]
        self.device.release("control", "work")
        self.assertTrue(call.returned(10))

    def test_all_that_was_unmapped_is_invalidated(self):
        space = self.running()
        buf, _ = self.buffer(8)
        base = 0x50000000
        orders = [range(8), range(7, -1, -1), (3, 0, 7, 1), (0, 1, 4, 5, 2, 3), (6, 5, 4)]
        for order in orders:
            with self.subTest(order=list(order)):
                self.one.map(space.ctx, buf, 0, 8 * PAGE, pc.READ | pc.FIXED, base)
                self.device.invalidations.clear()
                self.one.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, base + i * PAGE, PAGE) for i in order])
                told = list(self.device.invalidations)
                for i in order:
                    at = base + i * PAGE
                    self.assertTrue(any(first <= at and at + PAGE - 1 <= last for _, first, last in told),
                                    f"{at:#x} is not among {told}")
                left = [i for i in range(8) if i not in order]
                if left:
                    self.one.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, base + i * PAGE, PAGE) for i in left])

    def changes_under_work(self, space, ops):
        """What is done to the slot, then to the tables: paused first, or the device sees a change under its feet."""
        self.device.held = ("work", "control")
        job = space.submit(space.add_one())
        call = Later(self.one.bind, space.ctx, ops)
        self.await_asked("control", call)
        self.assertEqual([what for _, what in self.device.controls], [CTRL_PAUSE])
        self.assertEqual(self.device.invalidations, [], "entries changed before the slot has paused")
        self.assertFalse(call.returned())
        self.device.release("control")
        self.assertTrue(call.returned(10))
        self.device.release("work")
        self.assertTrue(space.wait(job))

    def test_replacing_pauses_the_slot(self):
        space = self.running()
        buf, _ = self.buffer(2)
        base = 0x50000000
        self.one.map(space.ctx, buf, 0, PAGE, pc.READ | pc.FIXED, base)
        self.changes_under_work(space, [(pc.UNMAP, 0, 0, 0, base, PAGE),
                                        (pc.MAP, pc.READ | pc.FIXED, buf, PAGE, base, PAGE)])

    def test_splitting_pauses_the_slot(self):
        space = self.running()
        buf, _ = self.buffer(512)
        base = 0x40000000
        self.one.map(space.ctx, buf, 0, 512 * PAGE, pc.READ | pc.FIXED, base)
        self.changes_under_work(space, [(pc.UNMAP, 0, 0, 0, base + 7 * PAGE, PAGE)])

    def test_splitting_what_the_list_has_mapped_pauses_the_slot(self):
        space = self.running()
        buf, _ = self.buffer(512)
        base = 0x40000000
        self.changes_under_work(space, [(pc.MAP, pc.READ | pc.FIXED, buf, 0, base, 512 * PAGE),
                                        (pc.UNMAP, 0, 0, 0, base + 7 * PAGE, PAGE)])

    def test_who_waits_is_woken(self):
        space = self.running()
        slept = errno.EAGAIN
        while slept == errno.EAGAIN:  # it did not sleep yet
            self.device.held = ("work",)
            job = space.submit(space.add_one())
            call = Later(futex_wait, self.one.fences, 64 * self.one.lines[space.ctx], job - 1, 5)
            harness.wait_until(lambda: self.device.kept, "it runs")
            time.sleep(0.1)
            self.device.release("work")
            self.assertTrue(call.returned(10))
            slept = call.result
            self.assertTrue(space.wait(job))
        self.assertEqual(slept, 0, "nobody woke it")

    def test_chosen_addresses_have_a_guard(self):
        space = self.running()
        buf, _ = self.buffer()
        taken = sorted(self.one.map(space.ctx, buf, 0, PAGE) for _ in range(8))
        for low, high in zip(taken, taken[1:]):
            self.assertGreater(high - low, PAGE, "the end of one is the beginning of the next")

    def test_fault_of_another_asid(self):
        """Slot, job and stall are right, the ASID is not: nobody is charged, and nobody's job is ended for it."""
        space = self.running()
        self.device.held = ("work",)
        job = space.submit(space.add_one())
        harness.wait_until(lambda: self.device.kept, "it runs")
        slot, tail = self.device.kept[0][2]
        asid = 0
        for n in range(tail):
            op, owner = self.device.word(slot, n)[:2]
            asid = owner if op == 2 else asid  # SET_TTBR
        self.device.post_faults([(slot, asid + 1, 0xDEAD000, 2, 1, 1, job)])
        self.device.post_faults([(slot, asid, 0xBEEF000, 2, 1, 1, job + 1)])
        self.device.post_faults([(slot, asid, 0xDEAD000, 2, 1, 1, job)])
        self.assertEqual(self.one.next_fault()[2][0][:2], (job, 0xDEAD000))
        harness.wait_until(lambda: self.device.controls, "the slot is told to go on")
        self.assertEqual(self.one.ctx_info(space.ctx)["faults"], 1)
        self.assertEqual(self.device.controls, [(slot, CTRL_TERMINATE)])
        self.device.release("work")
        self.assertTrue(space.wait(job))


if __name__ == "__main__":
    unittest.main()
