# SPDX-License-Identifier: MIT
"""Devices that garble, lie, flood or fall silent. The daemon stays, others are served, nothing is left over."""

import errno
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import fake_device as fake  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from fake_device import FakeDevice, Hangup, Refusal  # noqa: E402
from work import LOST_DEVICE, LOST_HANG, PAGE, SEED, StackTest, await_loss  # noqa: E402

ANSWER_MS = 300
JOB_LIMIT_MS = 150
SLACK_S = 3.0
REPLY_S = 1.0
TABLES = 0x4000000000  # bus addresses of page tables begin here
TABLE_CHUNK = 1024  # pages, of which the daemon maps so many at a time
FENCES = 0x8000000000  # bus addresses of clients' fence memory begin here
BUFFERS = 0x100000000000  # bus addresses of clients' buffers begin here


class LyingStack(harness.Stack):
    """One honest GPU, and devices at sockets that a test serves, or not."""

    fakes = ()  # names
    kinds = ()  # classes, served from the beginning under their names

    def write_config(self):
        super().write_config()
        self.served = {kind.__name__: kind(self.fake_path(kind.__name__)) for kind in self.kinds}
        path = os.path.join(self.dir, "pasidd.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        for name in [*self.fakes, *self.served]:
            kind = type(self.served.get(name))
            config["devices"].append({"name": name, "spec": "vfio-user:" + self.fake_path(name), "answer_ms": ANSWER_MS,
                                      "mode": "gpu-mmu", "job_limit_ms": JOB_LIMIT_MS,
                                      "table_pages": getattr(kind, "table_pages", TABLE_CHUNK)})
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)

    def stop(self):
        try:
            super().stop()
        finally:
            for device in self.served.values():
                device.close()
            self.served = {}

    def fake_path(self, name):
        return os.path.join(self.dir, name + ".sock")


class LyingTest(StackTest):
    fakes = ()
    kinds = ()

    @classmethod
    def setUpClass(cls):
        print(f"# seed {SEED}")
        cls.stack = LyingStack([{"slots": 4}])
        cls.stack.fakes, cls.stack.kinds = cls.fakes, cls.kinds
        cls.addClassCleanup(cls.stack.stop)
        cls.stack.__enter__()
        with pc.Client(cls.stack.socket) as c:
            for name in ["gpu0", *cls.stack.served]:
                cls.stack.await_device(c, name)

    def honest_works(self, space):
        """A client of an honest device is served at once. The liars live in this process and may keep it busy by
        themselves: one prompt round of a few is proof enough, since a daemon that waits for a liar waits in each."""
        took = [self.honest_round(space)]
        while min(took) >= REPLY_S and len(took) < 5:
            took.append(self.honest_round(space))
        self.assertLess(min(took), REPLY_S, "another device's client had to wait")

    def honest_round(self, space):
        begun = time.monotonic()
        count = space.counter
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertEqual(space.counter, count + 1)
        space.client.unmap(space.ctx, space.client.map(space.ctx, space.buf, 0, PAGE), PAGE)
        space.client.devices()
        return time.monotonic() - begun


# ---- lies while a device is being opened ----

STEPS = {"version": fake.VERSION, "info": fake.GET_INFO, "region": fake.REGION_INFO, "irq_info": fake.IRQ_INFO,
         "set_irqs": fake.SET_IRQS, "read": fake.REGION_READ, "write": fake.REGION_WRITE, "map": fake.DMA_MAP}
HOW = ("garbage", "short", "long", "error", "hangup", "silence", "fds", "other_id", "twice", "huge", "late", "half")


class Opening(FakeDevice):
    """Does one step of the opening dialogue wrong."""

    def __init__(self, path, command, how, seed):
        self.wrong = command
        self.how = how
        self.random = random.Random(seed)
        super().__init__(path)

    def message(self, command, flags, payload, fds):
        if command != self.wrong or flags & fake.NO_REPLY:
            super().message(command, flags, payload, fds)
            return
        right, give = self.answer(command, payload, fds)
        getattr(self, self.how)(command, right, give)

    def garbage(self, command, right, give):
        self.reply(command, self.random.randbytes(max(16, len(right))), give)

    def short(self, command, right, give):
        self.reply(command, right[:self.random.randrange(len(right) or 1)], give)

    def long(self, command, right, give):
        self.reply(command, right + bytes(64), give)

    def error(self, command, right, give):
        self.reply(command, b"", [], self.random.choice((errno.EINVAL, errno.ENODEV, 0xFFFFFFFF)))

    def hangup(self, command, right, give):
        raise Hangup

    def silence(self, command, right, give):
        self.read(1 << 30)

    def fds(self, command, right, give):
        self.reply(command, right, [self.status] * 5)

    def other_id(self, command, right, give):
        self.reply(command, right, give, id_=self.id ^ 0x55)

    def twice(self, command, right, give):
        self.reply(command, right, give)
        self.reply(command, right, give)

    def huge(self, command, right, give):
        self.conn.sendall(fake.HEADER.pack(self.id, command, 0xFFFFFFF0, fake.REPLY, 0) + bytes(65536))

    def late(self, command, right, give):
        # Silent until the daemon has given up, which shows as the end of what it sends.
        try:
            self.read(1 << 30)
        except Hangup:
            self.reply(command, right, give)
            raise

    def half(self, command, right, give):
        self.conn.sendall(fake.HEADER.pack(self.id, command, 4096, fake.REPLY, 0)[:9])
        raise Hangup


class WhileOpening(LyingTest):
    fakes = [f"f{i}" for i in range(60)]

    def run_lies(self, lies):
        client = self.client()
        space = self.space(client)
        devices = []
        for i, (step, how) in enumerate(lies):
            path = self.stack.fake_path(f"f{i}")
            devices.append(Opening(path, STEPS[step], how, SEED + i))
        try:
            end = time.monotonic() + 30
            while any(device.connections < 2 for device in devices):
                self.honest_works(space)
                # Those that became ready all the same (some answers are harmless) are told no more.
                ready = {name for name, _, present in client.devices() if present}
                waiting = [lie for i, lie in enumerate(lies)
                           if devices[i].connections < 2 and f"f{i}" not in ready]
                if not waiting:
                    break
                self.assertLess(time.monotonic(), end, f"not tried again: {waiting}\n{self.stack.log_tail()}")
        finally:
            for device in devices:
                device.close()
                os.unlink(device.path)
        self.honest_works(space)
        harness.wait_until(lambda: all(not present for n, _, present in client.devices() if n != "gpu0"), "all are gone")

    def test_early_steps(self):
        self.run_lies([(s, h) for s in ("version", "info", "region", "irq_info") for h in HOW])

    def test_late_steps(self):
        self.run_lies([(s, h) for s in ("set_irqs", "read", "write", "map") for h in HOW])


# ---- lies of a device that is ready ----

class DoneBeyondTail(FakeDevice):
    def doorbell(self, slot, tail):
        self.mark(slot, fake.MARK_DONE, tail + 5)
        self.interrupt(0)


class BegunBeyondTail(FakeDevice):
    def doorbell(self, slot, tail):
        self.mark(slot, fake.MARK_BEGUN, 1 << 63)
        self.interrupt(0)


class FaultTailNonsense(FakeDevice):
    def doorbell(self, slot, tail):
        self.mail(fake.MAIL_FAULTQ_TAIL, 1 << 40)
        self.interrupt(2)


class FaultSlotNonsense(FakeDevice):
    def doorbell(self, slot, tail):
        self.post_faults([(4096, 1, 0x1000, 1, 1, 1, 1)])


class InvalidatedBeyondTail(FakeDevice):
    def invalidate(self, tail):
        self.mail(fake.MAIL_INVQ_HEAD, tail + 1)
        self.interrupt(1)


class RefusesUnmap(FakeDevice):
    def dma_unmap(self, payload, fds):
        raise Refusal(errno.EINVAL)


class UnmapsSomethingElse(FakeDevice):
    def dma_unmap(self, payload, fds):
        super().dma_unmap(payload, fds)
        return struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000), []


class RefusesMap(FakeDevice):
    def dma_map(self, payload, fds):
        if struct.unpack_from("<Q", payload, 16)[0] >= BUFFERS:
            raise Refusal(errno.ENOMEM)
        return super().dma_map(payload, fds)


class RefusesFences(FakeDevice):
    full = False

    def dma_map(self, payload, fds):
        if self.full and FENCES <= struct.unpack_from("<Q", payload, 16)[0] < BUFFERS:
            raise Refusal(errno.ENOSPC)
        return super().dma_map(payload, fds)


class RefusesTables(FakeDevice):
    table_pages = 8 * TABLE_CHUNK
    full = False
    refused = 0

    def dma_map(self, payload, fds):
        if self.full and TABLES <= struct.unpack_from("<Q", payload, 16)[0] < FENCES:
            self.refused += 1
            raise Refusal(errno.ENOSPC)
        return super().dma_map(payload, fds)


class HangsUpOnMap(FakeDevice):
    def dma_map(self, payload, fds):
        if struct.unpack_from("<Q", payload, 16)[0] >= BUFFERS:
            raise Hangup
        return super().dma_map(payload, fds)


class LiesAndAnswers(FakeDevice):
    """A lie and a right answer reach the daemon at one moment, in this order."""

    daemon = None  # its process, once it is to be lied to

    def message(self, command, flags, payload, fds):
        bus_at = {fake.DMA_MAP: 16, fake.DMA_UNMAP: 8}.get(command)
        if not self.daemon or not bus_at or struct.unpack_from("<Q", payload, bus_at)[0] < BUFFERS:
            super().message(command, flags, payload, fds)
            return
        self.daemon.send_signal(signal.SIGSTOP)
        harness.await_stopped(self.daemon)
        self.mail(fake.MAIL_FAULTQ_TAIL, 1 << 40)
        self.interrupt(2)
        super().message(command, flags, payload, fds)
        self.daemon.send_signal(signal.SIGCONT)


class NeverInvalidates(FakeDevice):
    def invalidate(self, tail):
        pass


class NeverInvalidatesNorResets(NeverInvalidates):
    def reset(self, payload, fds):
        raise Refusal(errno.EIO)


class NeverObeys(FakeDevice):
    def doorbell(self, slot, tail):
        self.mark(slot, fake.MARK_BEGUN, tail)

    def control(self, slot, value):
        pass


class NeverReads(FakeDevice):
    reads = True

    def read(self, size):
        if not self.reads:
            poller = select.poll()
            poller.register(self.conn, select.POLLRDHUP)
            poller.register(self.wake_r, select.POLLIN)
            poller.poll()  # until one side has enough
            self.reads = True
            raise Hangup
        return super().read(size)


class AnswersLate(FakeDevice):
    def dma_map(self, payload, fds):
        if struct.unpack_from("<Q", payload, 16)[0] >= BUFFERS:
            try:
                self.read(1 << 30)  # until the daemon hangs up
            except Hangup:
                self.reply(fake.DMA_MAP)
                raise
        return super().dma_map(payload, fds)


class Frames(FakeDevice):
    """Jobs hang, and faults are posted in the name of everybody else."""

    def doorbell(self, slot, tail):
        self.mark(slot, fake.MARK_BEGUN, tail)

    def frame(self, asids, jobs):
        faults = []
        for slot in range(fake.SLOTS):
            for asid in asids:
                for job in jobs:
                    for stalled in (0, 1):
                        faults.append((slot, asid, 0xDEAD000, 2, 1, stalled, job))
        for i in range(0, len(faults), 100):
            self.post_faults(faults[i:i + 100])
            yield


class MarksGoBack(FakeDevice):
    """From its second job on it says that nothing was ever done."""

    jobs = 0

    def doorbell(self, slot, tail):
        self.jobs += 1
        if self.jobs == 1:
            super().doorbell(slot, tail)
            return
        self.mark(slot, fake.MARK_DONE, 0)
        self.interrupt(0)


class Nonsense(FakeDevice):
    """States that do not exist, requests of its own."""

    def doorbell(self, slot, tail):
        super().doorbell(slot, tail)
        self.mark(slot, fake.MARK_STATE, 0xFFFFFFFF)
        for command in (fake.DMA_READ, fake.DMA_WRITE, 99):
            head = fake.HEADER.pack(7, command, 16 + 24, 0, 0)
            self.conn.sendall(head + bytes(24))

    def message(self, command, flags, payload, fds):
        if flags & 0xF == fake.REPLY:
            return  # to its own requests
        super().message(command, flags, payload, fds)


class AnswersNothing(FakeDevice):
    def doorbell(self, slot, tail):
        self.reply(fake.DMA_MAP, id_=0x1234)


class Floods(FakeDevice):
    def flood(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.irqs:
            for fd in self.irqs:
                try:
                    os.eventfd_write(fd, 1)
                except BlockingIOError:
                    os.eventfd_read(fd)


LIARS = (DoneBeyondTail, BegunBeyondTail, FaultTailNonsense, FaultSlotNonsense, InvalidatedBeyondTail, RefusesUnmap,
         UnmapsSomethingElse, RefusesMap, RefusesFences, RefusesTables, HangsUpOnMap, LiesAndAnswers, NeverInvalidates,
         NeverInvalidatesNorResets, NeverObeys, NeverReads, AnswersLate, Frames, MarksGoBack, Nonsense, AnswersNothing, Floods, FakeDevice)


class WhenReady(LyingTest):
    fakes = ["deaf"]
    kinds = LIARS

    def ready(self, kind):
        device = self.stack.served[kind.__name__]
        self.begun = device.connections
        client = self.client()
        harness.wait_until(lambda: (kind.__name__, 1, 1) in client.devices(), f"{kind.__name__} is ready")
        return device, client

    def there(self, client, kind):
        return (kind.__name__, 1, 1) in client.devices()

    def using(self, kind):
        device, client = self.ready(kind)
        return device, client, self.space(client, device=kind.__name__), self.space()

    def expect_gone(self, kind, space, honest):
        self.assertEqual(await_loss(space.client, space.ctx)[0], LOST_DEVICE)
        self.honest_works(honest)
        device = self.stack.served[kind.__name__]
        harness.wait_until(lambda: device.connections > self.begun, "it is tried again")

    def test_an_honest_one(self):
        _, client, space, honest = self.using(FakeDevice)
        for _ in range(10):
            self.assertTrue(space.wait(space.submit(space.add_one())))
        client.unmap(space.ctx, client.map(space.ctx, space.buf, 0, PAGE), PAGE)
        space.free_all()
        self.assertTrue(self.there(client, FakeDevice))
        self.honest_works(honest)

    def test_marks_that_cannot_be(self):
        for kind in (DoneBeyondTail, BegunBeyondTail, FaultTailNonsense, FaultSlotNonsense, AnswersNothing):
            with self.subTest(kind.__name__):
                _, _, space, honest = self.using(kind)
                space.submit(space.add_one())
                self.expect_gone(kind, space, honest)

    def test_invalidation_beyond_what_was_asked(self):
        _, client, space, honest = self.using(InvalidatedBeyondTail)
        self.assertTrue(space.wait(space.submit(space.add_one())))
        client.unmap(space.ctx, client.map(space.ctx, space.buf, 0, PAGE), PAGE)
        self.expect_gone(InvalidatedBeyondTail, space, honest)

    def test_invalidation_that_never_ends(self):
        for kind in (NeverInvalidates, NeverInvalidatesNorResets):
            with self.subTest(kind.__name__):
                _, client, space, honest = self.using(kind)
                self.assertTrue(space.wait(space.submit(space.add_one())))
                iova = client.map(space.ctx, space.buf, 0, PAGE)
                begun = time.monotonic()
                client.unmap(space.ctx, iova, PAGE)
                self.assertLess(time.monotonic() - begun, 2 * ANSWER_MS / 1000 + SLACK_S)
                if kind is NeverInvalidates:
                    self.assertFalse(space.lost)  # it was reset, and has forgotten everything
                    self.assertTrue(self.there(client, kind))
                    self.honest_works(honest)
                else:
                    self.expect_gone(kind, space, honest)

    def test_refuses_to_unmap(self):
        for kind in (RefusesUnmap, UnmapsSomethingElse):
            with self.subTest(kind.__name__):
                _, client, space, honest = self.using(kind)
                spare = client.buf_import(space.data_fd, kind.__name__)[0]
                client.buf_free(spare)
                self.expect_gone(kind, space, honest)

    def test_refuses_to_map(self):
        device, client = self.ready(RefusesMap)
        honest = self.space()
        fd, view = pc.memfd(PAGE)
        self.addCleanup(view.close)
        self.addCleanup(os.close, fd)
        for _ in range(3):
            with self.assertRaises(pc.Refused) as caught:
                client.buf_import(fd, "RefusesMap")
            self.assertEqual((caught.exception.reason, caught.exception.n1), (134, errno.ENOMEM))
        self.assertTrue(self.there(client, RefusesMap))
        self.assertEqual(device.connections, self.begun)
        self.honest_works(honest)

    def test_refuses_fence_memory(self):
        """The newcomer gets no context; those who are there keep theirs."""
        device, client = self.ready(RefusesFences)
        first = client.ctx_new("RefusesFences")
        device.full = True
        for other in (self.client(), self.client()):
            for _ in range(2):
                with self.assertRaises(pc.Refused) as caught:
                    other.ctx_new("RefusesFences")
                self.assertEqual((caught.exception.reason, caught.exception.n1), (134, errno.ENOSPC))
        device.full = False
        other.ctx_free(other.ctx_new("RefusesFences"))
        self.assertEqual(client.ctx_info(first)["state"], 0)
        self.assertEqual(device.connections, self.begun)

    def test_refuses_table_pages(self):
        """Who needs more is told so, at most one attempt a second is made, and others go on; when there are some again, they
        are had."""
        device, client = self.ready(RefusesTables)
        space = self.space(client, device="RefusesTables")
        # Each needs two tables of its own.
        wide = [(pc.MAP, pc.READ | pc.FIXED, space.buf, 0, (i + 1) << 30, PAGE) for i in range(600)]
        device.full = True
        begun = time.monotonic()
        for _ in range(50):
            with self.assertRaises(pc.Refused) as caught:
                client.bind(space.ctx, wide)
            self.assertEqual((caught.exception.reason, caught.exception.n1), (134, errno.ENOSPC))
        self.assertIn(device.refused, range(1, int(time.monotonic() - begun) + 3))
        self.assertTrue(space.wait(space.submit(space.add_one())))
        client.unmap(space.ctx, client.map(space.ctx, space.buf, 0, PAGE), PAGE)
        device.full = False

        def taken():
            try:
                return client.bind(space.ctx, wide)
            except pc.Refused as refused:
                self.assertEqual(refused.reason, 134)
                return None

        harness.wait_until(taken, "more table pages")
        self.assertEqual(client.ctx_info(space.ctx)["mappings"], 602)
        self.assertEqual(device.connections, self.begun)

    def test_ends_or_falls_silent_at_a_map(self):
        for kind in (HangsUpOnMap, AnswersLate, NeverReads):
            with self.subTest(kind.__name__):
                device, client = self.ready(kind)
                honest = self.space()
                if kind is NeverReads:
                    device.reads = False
                fd, view = pc.memfd(PAGE)
                begun = time.monotonic()
                with self.assertRaises(pc.Refused) as caught:
                    client.buf_import(fd, kind.__name__)
                    # What is read already is answered; the next one is not.
                    client.buf_import(fd, kind.__name__)
                self.assertEqual(caught.exception.reason, 81)
                self.assertLess(time.monotonic() - begun, ANSWER_MS / 1000 + SLACK_S)
                os.close(fd)
                view.close()
                self.honest_works(honest)

    def test_answer_after_a_lie(self):
        """Whoever waited for the answer is gone by then."""
        device, client = self.ready(LiesAndAnswers)
        honest = self.space()
        fd, view = pc.memfd(PAGE)
        self.addCleanup(view.close)
        self.addCleanup(os.close, fd)
        try:
            device.daemon = self.stack.daemon
            with self.assertRaises(pc.Refused) as caught:
                client.buf_import(fd, "LiesAndAnswers")
            self.assertEqual(caught.exception.reason, 81)
            device.daemon = None
            harness.wait_until(lambda: self.there(client, LiesAndAnswers), "it is back")
            buf = client.buf_import(fd, "LiesAndAnswers")[0]
            device.daemon = self.stack.daemon
            client.buf_free(buf)
        finally:
            device.daemon = None
        self.honest_works(honest)

    def test_never_obeys(self):
        device, client, space, honest = self.using(NeverObeys)
        job = space.submit(space.add_one())
        while not space.lost:
            self.honest_works(honest)
        self.assertEqual(await_loss(client, space.ctx), (LOST_HANG, job))
        # It was reset; what never ends there is a job, so that the next one is lost as well.
        space.free()
        space.renew()
        self.assertFalse(space.wait(space.submit(space.add_one())))
        self.honest_works(honest)

    def test_faults_in_the_name_of_others(self):
        device, client, runner, honest = self.using(Frames)
        idle = self.space(client, device="Frames")
        job = runner.submit(runner.add_one())
        for _ in device.frame(asids=range(0, 8), jobs=(0, job + 1, 999, (1 << 64) - 1)):
            self.honest_works(honest)
        for space in (runner, idle):
            self.assertEqual(client.ctx_info(space.ctx)["faults"], 0)
        self.assertEqual(honest.client.ctx_info(honest.ctx)["faults"], 0)
        self.assertFalse(any(opcode == pc.EV_FAULT for opcode, _ in client.events))
        self.assertFalse(idle.lost)
        self.honest_works(honest)

    def test_marks_that_go_back(self):
        _, client, space, honest = self.using(MarksGoBack)
        self.assertTrue(space.wait(space.submit(space.add_one())))
        # Invalidated means that the daemon has looked at all marks: it has believed the first one by now.
        client.unmap(space.ctx, client.map(space.ctx, space.buf, 0, PAGE), PAGE)
        space.submit(space.add_one())
        self.expect_gone(MarksGoBack, space, honest)

    def test_nonsense(self):
        device, client, space, honest = self.using(Nonsense)
        for _ in range(3):
            self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertTrue(self.there(client, Nonsense))
        self.assertEqual(device.connections, self.begun)
        self.honest_works(honest)

    def test_flood_of_interrupts(self):
        device, client, space, honest = self.using(Floods)
        flood = threading.Thread(target=device.flood, args=(1.0,))
        flood.start()
        n = 0
        while flood.is_alive():
            self.honest_works(honest)
            n += 1
        flood.join()
        self.assertGreater(n, 10)
        self.assertTrue(space.wait(space.submit(space.add_one())))

    def test_somebody_who_listens_and_never_accepts(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.stack.fake_path("deaf"))
            listener.listen(0)
            self.addCleanup(os.unlink, self.stack.fake_path("deaf"))
            honest = self.space()
            harness.wait_until(lambda: self.connects(listener), "the daemon tries")
            end = time.monotonic() + 3 * ANSWER_MS / 1000
            while time.monotonic() < end:
                self.honest_works(honest)

    @staticmethod
    def connects(listener):
        return select.select([listener], [], [], 0)[0]


if __name__ == "__main__":
    unittest.main()
