# SPDX-License-Identifier: MIT
"""Programs of the GPU that are garbage, that fault, that hang; contexts freed under them."""

import os
import random
import struct
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pasid_client as pc  # noqa: E402
from hostile import COPY, FILL, HANG, MIB, PAGE, PATIENCE, HostileCase, Workspace, command  # noqa: E402

SET_TTBR = 10
MARKS = (0x148000, 0x14A000)  # what the device writes: marks behind 0x48000 bytes of rings, and fault records
FLOOD_S = 2.0


class Gpu(HostileCase):
    devices = [{"job_limit_ms": 1000}]
    config = {"limits": {"uid": {"jobs": 100000}}}

    def test_garbage(self):
        seed = int(os.environ.get("PASID_SEED", random.SystemRandom().getrandbits(32)))
        print(f"# seed: PASID_SEED={seed}", flush=True)
        rng = random.Random(seed)
        c = self.connect()
        w = Workspace(self, c, 16 * PAGE)
        numbers = [0, 1, 4, 63, w.iova, w.iova + 1, w.cmd_iova, PAGE, 16 * PAGE, 1 << 20, 1 << 47, 1 << 48, 1 << 63,
                   (1 << 64) - 1]
        faults = 0
        for _ in range(300):
            op = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 255, rng.getrandbits(32)])
            words = [rng.choice(numbers) for _ in range(7)]
            text = struct.pack("<IIQQQIIIIQQ", op, words[0] & 0xFFFFFFFF, *words[1:4], *(x & 0xFFFFFFFF for x in words[3:7]),
                               0, rng.choice([0, 0, 1]))
            if rng.random() < 0.3:
                text = rng.randbytes(64)
                text = (b"\x0b" + text[1:]) if text[0] == HANG and not any(text[1:4]) else text
            self.assertTrue(c.wait(w.ctx, w.submit(w.put(text))), text.hex())
        while c.next_event():
            pass
        faults = c.ctx_info(w.ctx)["faults"]
        self.assertGreater(faults, 100)

    def test_privileged(self):
        c = self.connect()
        w = Workspace(self, c)
        job = w.submit(w.put(command(SET_TTBR, 1, 0x4000000000)))
        self.assertTrue(c.wait(w.ctx, job))
        self.assertEqual(c.next_fault()[2][0][:4], (job, w.cmd_iova, 4, 5))

    def test_the_daemons_own_bus_addresses(self):
        """Rings, marks, tables, fences and buffers lie at bus addresses; a GPU program names virtual ones and reaches none
        of them."""
        c = self.connect()
        w = Workspace(self, c)
        for bus in (0x100000, 0x101000, *MARKS, 0x4000000000, 0x8000000000, 0x100000000000):
            for text in (command(FILL, 0xBAD, bus, length=PAGE), command(COPY, 0, w.iova, bus, PAGE)):
                job = w.submit(w.put(text))
                self.assertTrue(c.wait(w.ctx, job))
                self.assertEqual(c.next_fault()[2][0][:2], (job, bus))
        self.assertEqual(w.data[:], bytes(4 * PAGE))

    def test_submits_over_nothing(self):
        c = self.connect()
        w = Workspace(self, c)
        w.put(command(0), command(0))
        for iova, length in ((1 << 40, 64), (w.cmd_iova + PAGE - 64, 128), ((1 << 48) - 64, 64), (0x10000 + (1 << 30), 1 << 20)):
            job = c.submit(w.ctx, iova, length)
            self.assertTrue(c.wait(w.ctx, job))
            _, _, faults = c.next_fault()
            self.assertEqual(faults[0][0], job)

    def test_rewritten_while_they_run(self):
        c = self.connect()
        w = Workspace(self, c)
        rng = random.Random(1)
        length = w.put(*[command(FILL, 1, w.iova, length=4 * PAGE)] * 64)
        for _ in range(100):
            last = w.submit(length)
            for i in range(64):
                w.cmd[64 * i : 64 * i + 64] = command(rng.choice([0, 1, 2, 99]), 7, w.iova + rng.choice([0, 1, 1 << 40]),
                                                      w.iova, rng.choice([4, PAGE, 1 << 50]))
        self.assertTrue(c.wait(w.ctx, last))
        while c.next_event():
            pass

    def test_faults_flood(self):
        """Eight contexts that do nothing but fault, one for each slot, while another client's jobs are done."""
        good = self.connect()
        mine = Workspace(self, good)
        length = mine.put(command(FILL, 5, mine.iova, length=PAGE))
        end, errors = threading.Event(), []

        def flood():
            try:
                c = pc.Client(self.stack.socket)
                with c:
                    ctx = c.ctx_new()
                    serials = []
                    while not end.is_set():
                        serials.append(c.send(pc.SUBMIT, struct.pack("<IIQQ", ctx, 0, 1 << 40, 64)))
                        if len(serials) == 16:
                            try:
                                c.reply(serials.pop(0))
                            except pc.Refused as refused:
                                if refused.reason not in (96, 116):  # jobs
                                    raise
                        c.events.clear()
            except Exception as error:  # pylint: disable=broad-except
                errors.append(error)

        threads = [threading.Thread(target=flood) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            until, worst, n = time.monotonic() + FLOOD_S, 0.0, 0
            while time.monotonic() < until:
                began = time.monotonic()
                self.assertTrue(good.wait(mine.ctx, mine.submit(length)))
                worst, n = max(worst, time.monotonic() - began), n + 1
        finally:
            end.set()
            for thread in threads:
                thread.join()
        self.assertEqual(errors, [])
        self.assertLess(worst, PATIENCE)
        self.assertGreater(n, 3)
        self.assertIsNone(good.next_event())
        self.assertEqual(good.ctx_info(mine.ctx)["faults"], 0)

    def test_freed_with_work_in_flight(self):
        c = self.connect()
        for kind in ("fills", "hangs", "faults"):
            for _ in range(5):
                w = Workspace(self, c, 16 * MIB)
                text = {"fills": command(FILL, 1, w.iova, length=16 * MIB), "hangs": command(HANG),
                        "faults": command(FILL, 1, 1 << 40, length=4)}[kind]
                length = w.put(text)
                for _ in range(10):
                    w.submit(length)
                c.buf_free(w.buf)
                c.ctx_free(w.ctx)
                self.refused(20, c.ctx_info, w.ctx)
                w.data[:8] = b"mine now"
                c.buf_free(w.cmd_buf)
                self.assertEqual(w.data[:8], b"mine now")
        while c.next_event():
            pass

    def test_unmapped_under_running_work(self):
        c = self.connect()
        w = Workspace(self, c, 4 * MIB)
        length = w.put(*[command(FILL, 0x55555555, w.iova, length=4 * MIB)] * 20)
        for _ in range(10):
            job = w.submit(length)
            c.unmap(w.ctx, w.iova + MIB, MIB)
            w.data[MIB : 2 * MIB] = bytes(MIB)
            self.assertTrue(c.wait(w.ctx, job))
            self.assertFalse(any(w.data[MIB : 2 * MIB]))  # nothing came through the old entry
            c.map(w.ctx, w.buf, MIB, MIB, pc.READ | pc.WRITE | pc.FIXED, w.iova + MIB)
        while c.next_event():
            pass
        self.assertEqual(self.stack.status()["conflicts"], 0)

    def test_hangs(self):
        """A hang in each slot and more waiting: each context is lost, whoever is left goes on."""
        clients = [self.connect() for _ in range(12)]
        spaces = [Workspace(self, c) for c in clients]
        jobs = [w.submit(w.put(command(HANG))) for w in spaces]
        for c, w, job in zip(clients, spaces, jobs):
            self.assertFalse(c.wait(w.ctx, job))
            self.assertEqual(c.next_event(10)[0], pc.EV_LOST)
        again = Workspace(self, clients[0])
        self.assertTrue(clients[0].wait(again.ctx, again.submit(again.put(command(0)))))


if __name__ == "__main__":
    unittest.main()
