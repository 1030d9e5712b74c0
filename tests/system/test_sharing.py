# SPDX-License-Identifier: MIT
"""More contexts than slots, and changes of tables under running work."""

import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from work import COPY, FILL, LOAD, PAGE, STORE, StackTest, command, page_of  # noqa: E402

BLOCK = 2 << 20
TABLE_CHUNK = 1024 * PAGE
LIMITS = {"connection": {"jobs": 16384}, "uid": {"jobs": 65536, "contexts": 2048}}


def run_clients(stack, clients, contexts, jobs, deadline=60):
    """Runs as many programs at once; the number of switches that their contexts saw."""
    args = [harness.program("MANY_CONTEXTS"), stack.socket, str(contexts), str(jobs)]
    running = [subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True) for _ in range(clients)]
    end = time.monotonic() + deadline
    switches = 0
    try:
        for process in running:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            if process.returncode or not output.startswith(f"ok {contexts} {contexts * jobs} "):
                raise AssertionError(f"status {process.returncode}: {output}\n{stack.log_tail()}")
            switches += int(output.split()[3])
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
    return switches


class Base(StackTest):
    devices = [{"slots": 2}]
    config = {"limits": LIMITS}

    def tearDown(self):
        super().tearDown()
        status = self.stack.status()
        for key in ("stale_hits", "conflicts", "malformed", "resets"):
            self.assertEqual(status[key], self.counters[key], key)


class TwoSlots(Base):
    def test_forty_contexts_of_five_processes(self):
        switches = run_clients(self.stack, 5, 8, 10)
        self.assertEqual(self.gained("jobs"), 400)
        self.assertEqual(self.gained("faults"), 0)
        # Every context ran at least once, none was switched in more often than it had jobs.
        self.assertGreaterEqual(switches, 40)
        self.assertLessEqual(switches, 400)
        # A stop makes a slot forget its address space, so that the device may count less; it never counts more.
        self.assertLessEqual(self.gained("switches"), switches)
        self.assertGreaterEqual(self.gained("scrubs"), self.gained("switches"))
        self.assertGreater(min(self.stack.status()["slot_switches"][:2]), 0)

    def test_one_context_is_not_switched(self):
        space = self.space()
        for _ in range(20):
            self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertEqual(space.counter, 20)
        self.assertEqual(space.client.ctx_info(space.ctx)["switches"], 1)
        self.assertEqual((self.gained("switches"), self.gained("jobs")), (1, 20))

    def test_every_job_counts_once(self):
        client = self.client()
        spaces = [self.space(client) for _ in range(10)]
        submitted = [0] * len(spaces)
        for _ in range(300):
            i = self.random.randrange(len(spaces))
            submitted[i] = spaces[i].submit(spaces[i].add_one())
        last = [0] * len(spaces)
        deadline = time.monotonic() + 20
        while last != submitted:
            self.assertLess(time.monotonic(), deadline, (last, submitted))
            for i, space in enumerate(spaces):
                done = client.fence(space.ctx)[0]
                self.assertGreaterEqual(done, last[i])
                self.assertLessEqual(done, submitted[i])
                self.assertGreaterEqual(space.counter, done)  # the counter is written before the fence
                last[i] = done
        self.assertEqual([space.counter for space in spaces], submitted)

    def test_scratch_memory_stays_with_its_owner(self):
        owner, other, third = (self.space() for _ in range(3))
        owner.data[PAGE:2 * PAGE] = page_of(0x5EC2E7)
        store = command(STORE, 0, 0, owner.iova + PAGE, PAGE)
        for _ in range(5):
            owner.wait(owner.submit(store))
            # The slot that was idle for longest is taken first, so that one of the two follows on the owner's.
            for space in (other, third):
                space.data[2 * PAGE:3 * PAGE] = b"\xff" * PAGE
                job = space.submit(command(LOAD, 0, space.iova + 2 * PAGE, 0, PAGE))
                self.assertTrue(space.wait(job))
                self.assertEqual(space.page(2), bytes(PAGE))
        self.assertGreaterEqual(self.gained("switches"), 10)

    def test_a_busy_user_delays_but_does_not_stop_others(self):
        greedy, modest = self.client(), self.space()
        crowd = [self.space(greedy, pages=130) for _ in range(6)]
        last = []
        for space in crowd:
            last += [(space, space.submit(*space.long_copy(1, 65, 64, 4), space.add_one())) for _ in range(8)]
        job = modest.submit(modest.add_one())
        self.assertTrue(modest.wait(job))
        waiting = sum(greedy.fence(space.ctx)[0] < job for space, job in last)
        self.assertGreater(waiting, 0, "whoever came with one job should not wait for all the others")
        for space, job in last:
            self.assertTrue(space.wait(job))
        self.assertEqual([space.counter for space in crowd], [8] * 6)


    def test_more_buffers_than_requests_at_a_time(self):
        """All buffers of a client that dies are unmapped, more than the device is asked at one moment."""
        fd, view = pc.memfd(PAGE)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        clients = [self.client() for _ in range(2)]
        for client in clients:
            for _ in range(900):
                client.buf_import(fd)
        self.assertGreaterEqual(self.stack.status()["dma_maps"], self.counters["dma_maps"] + 1800)
        self.stack.gpus[0].send_signal(signal.SIGSTOP)
        try:
            for client in clients:
                client.close()
            with pc.Client(self.stack.socket) as other:
                other.devices()
        finally:
            self.stack.gpus[0].send_signal(signal.SIGCONT)
        harness.wait_until(lambda: self.look() == self.before, "all are unmapped")


class Unmapping(Base):
    """After an unmap no byte changes any more; blocks are split and mappings replaced under running work."""

    def test_no_byte_changes_after_unmap(self):
        spaces = [self.space(pages=66) for _ in range(2)]
        window = [self.space(client=s.client, pages=64) for s in spaces]  # for its buffer only
        for s, w in zip(spaces, window):
            s.target = s.client.map(s.ctx, w.buf, 0, w.size)
        for round_ in range(25):
            for s, w in zip(spaces, window):
                # Copies into the window, over and over; the first copy after the unmap faults and ends the job.
                s.data[2 * PAGE:3 * PAGE] = page_of(round_ + 1)
                s.job = s.submit(*[command(COPY, 0, s.target, s.iova + 2 * PAGE, 63 * PAGE)] * 60, s.add_one())
            for s, w in zip(spaces, window):
                if self.random.random() < 0.5:
                    harness.wait_until(lambda s=s, w=w: w.page(0)[:4] == page_of(round_ + 1)[:4] or
                                       s.client.fence(s.ctx)[0] >= s.job, "the copy begins")
                s.client.unmap(s.ctx, s.target, w.size)
                w.data[:] = b"\xa5" * w.size
            stale = self.stack.status()["stale_hits"]
            for s, w in zip(spaces, window):
                self.assertTrue(s.wait(s.job))
                self.assertEqual(bytes(w.data), b"\xa5" * w.size, f"round {round_}: written after the unmap")
                s.client.map(s.ctx, w.buf, 0, w.size, pc.READ | pc.WRITE | pc.FIXED, s.target)
            # While an unmap is on its way work may hit what is going; when it has returned, nothing does.
            self.counters["stale_hits"] = self.stack.status()["stale_hits"]
            self.assertEqual(self.counters["stale_hits"], stale)
        self.assertGreater(self.gained("faults"), 0, "no unmap came while a copy ran")

    def test_split_of_a_block_under_running_work(self):
        client = self.client()
        space = self.space(client)
        fd, view = pc.memfd(2 * BLOCK)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        view[:] = b"\x11" * len(view)
        buf = client.buf_import(fd)[0]
        base = 0x40000000
        client.map(space.ctx, buf, 0, BLOCK, pc.READ | pc.WRITE | pc.FIXED, base)
        tables = client.ctx_info(space.ctx)["table_bytes"]
        n = 0
        for page in (511, 0, 100, 256, 255):
            # The work reads and writes the first pages of the block, never the one that goes... except page 0.
            words = [command(COPY, 0, base + 8 * PAGE, base + 4 * PAGE, 4 * PAGE)] * 50
            jobs = [space.submit(*words, space.add_one()) for _ in range(4)]
            client.unmap(space.ctx, base + page * PAGE, PAGE)
            n += len(jobs)
            self.assertTrue(space.wait(jobs[-1]))
            self.assertEqual(space.counter, n)
            job = space.submit(command(FILL, 7, base + page * PAGE, length=64), space.add_one())
            self.assertTrue(space.wait(job))
            self.assertEqual(space.counter, n, "a page that was split off and unmapped is still reachable")
            fault = client.next_fault()[2][-1]
            self.assertEqual((fault[0], fault[1], fault[2]), (job, base + page * PAGE, 2))
            client.map(space.ctx, buf, page * PAGE, PAGE, pc.READ | pc.WRITE | pc.FIXED, base + page * PAGE)
        self.assertGreater(client.ctx_info(space.ctx)["table_bytes"], tables)
        self.assertEqual(self.gained("conflicts"), 0)

    def test_replace_never_shows_the_gap(self):
        client = self.client()
        space = self.space(client, pages=66)
        spare = [self.space(client, pages=32) for _ in range(2)]
        for i, s in enumerate(spare):
            s.data[:] = page_of(0xAAAA0000 + i) * 32
        base = 0x80000000
        client.map(space.ctx, spare[0].buf, 0, spare[0].size, pc.READ | pc.WRITE | pc.FIXED, base)
        jobs = []
        for i in range(60):
            while len(jobs) < 6:
                words = [command(COPY, 0, space.iova + 32 * PAGE, base, 32 * PAGE)] * 20
                jobs.append(space.submit(*words, space.add_one()))
            new = spare[(i + 1) % 2]
            client.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, base, new.size),
                                    (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, new.buf, 0, base, new.size)])
            jobs = [job for job in jobs if client.fence(space.ctx)[0] < job]
            # What a page holds came from one of the two, whole words at least.
            word = space.page(32)[:4]
            self.assertIn(word, (bytes(4), page_of(0xAAAA0000)[:4], page_of(0xAAAA0001)[:4]))
        last = space.submit(space.add_one())
        self.assertTrue(space.wait(last))
        self.assertEqual(space.counter, last, "a job ended early: it saw the gap")
        self.assertEqual(client.ctx_info(space.ctx)["faults"], 0)

    def test_fault_is_a_diagnosis(self):
        client = self.client()
        space = self.space(client)
        spare = self.space(client, pages=4)
        base = 0x50000000
        client.map(space.ctx, spare.buf, 0, 4 * PAGE, pc.READ | pc.FIXED, base)
        # Not allowed by the mapping.
        job = space.submit(command(FILL, 1, base + PAGE, length=16))
        space.wait(job)
        ctx, dropped, faults = client.next_fault()
        self.assertEqual((ctx, dropped, len(faults)), (space.ctx, 0, 1))
        self.assertEqual(faults[0], (job, base + PAGE, 2, 2, base, base + 4 * PAGE - 1, 0, 0, 0))
        # Never mapped; the nearest mapping is named.
        job = space.submit(command(COPY, 0, space.iova, base + 16 * PAGE, 16))
        space.wait(job)
        fault = client.next_fault()[2][0]
        self.assertEqual(fault, (job, base + 16 * PAGE, 1, 1, base, base + 4 * PAGE - 1, 0, 0, 0))
        # Unmapped a moment ago; which, and when.
        begun = time.monotonic_ns()
        client.unmap(space.ctx, base + 2 * PAGE, 2 * PAGE)
        job = space.submit(command(COPY, 0, space.iova, base + 3 * PAGE, 16))
        space.wait(job)
        fault = client.next_fault()[2][0]
        self.assertEqual(fault[:4], (job, base + 3 * PAGE, 1, 1))
        self.assertEqual(fault[4:6], (base, base + 2 * PAGE - 1))
        self.assertEqual(fault[6:8], (base + 2 * PAGE, base + 4 * PAGE - 1))
        self.assertGreater(fault[8], 0)
        self.assertLess(fault[8], time.monotonic_ns() - begun)
        # Commands that lie nowhere, and privileged ones.
        job = client.submit(space.ctx, base + 32 * PAGE, 64)
        space.wait(job)
        self.assertEqual(client.next_fault()[2][0][:4], (job, base + 32 * PAGE, 4, 1))
        at = space.cmd_iova + space.cmd_at
        job = space.submit(command(10, 0, 0x1000))
        space.wait(job)
        self.assertEqual(client.next_fault()[2][0][:4], (job, at, 4, 5))
        self.assertEqual(client.ctx_info(space.ctx)["faults"], 5)

    def test_map_touch_unmap_cycles(self):
        client = self.client()
        space, spare = self.space(client), self.space(client, pages=8)
        for i in range(100):
            page, n = self.random.randrange(8), 1
            iova = client.map(space.ctx, spare.buf, page * PAGE, n * PAGE)
            space.wait(space.submit(command(FILL, i + 1, iova, length=PAGE), space.add_one()))
            self.assertEqual(spare.page(page), page_of(i + 1))
            client.unmap(space.ctx, iova, n * PAGE)
            if self.random.random() < 0.3:
                space.wait(space.submit(command(FILL, 0xDEAD, iova, length=PAGE)))
                self.assertEqual(spare.page(page), page_of(i + 1))
        self.assertEqual(space.counter, 100)


class EightSlots(Base):
    devices = [{"slots": 8}]

    def look(self):
        """The pool of table pages grows with need, by whole chunks, and keeps its size: those do not count."""
        looks = super().look()
        fds, maps, size, entries = looks[0]
        looks[0] = (fds, size - maps * TABLE_CHUNK, entries)
        return looks

    def test_thousand_contexts_of_eight_clients(self):
        begun = time.monotonic()
        switches = run_clients(self.stack, 8, 125, 5)
        print(f"# 1000 contexts, 5000 jobs, 8 slots, 8 clients: {switches} switches, {time.monotonic() - begun:.1f} s")
        self.assertEqual(self.gained("jobs"), 5000)
        self.assertEqual(self.gained("faults"), 0)
        self.assertGreaterEqual(switches, 1000)
        self.assertLessEqual(switches, 5000)


if __name__ == "__main__":
    unittest.main()
