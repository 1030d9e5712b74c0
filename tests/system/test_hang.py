# SPDX-License-Identifier: MIT
"""Jobs that never end: some obey a stop of their slot, some only a reset of the device."""

import errno
import os
import select
import struct
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from work import (FILL, HANG, HANG_OBEYS_RESET, HANG_OBEYS_STOP, LOST_HANG, LOST_RESET, PAGE, StackTest,  # noqa: E402
                  await_loss, command)

JOB_LIMIT_MS = 250
ANSWER_MS = 500
SLACK_S = 3.0  # sanitizers, two cores, other tests beside this one

HANG_SOFT = command(HANG, HANG_OBEYS_STOP)
HANG_HARD = command(HANG, HANG_OBEYS_RESET)

# A client that submits work which hangs, says so, and waits to be killed.
VICTIM = """
import sys
sys.path.insert(0, sys.argv[1])
import pasid_client as pc, work
c = pc.Client(sys.argv[2])
spaces = [work.Space(c) for _ in range(int(sys.argv[4]))]
for s in spaces:
    s.submit(s.add_one())
    s.submit(work.command(work.HANG, int(sys.argv[3])), s.add_one())
print("hanging", flush=True)
sys.stdin.read()
"""


class HangTest(StackTest):
    devices = [{"slots": 4, "job_limit_ms": JOB_LIMIT_MS, "answer_ms": ANSWER_MS}]

    def expect_lost(self, space, job, why=LOST_HANG, seconds=JOB_LIMIT_MS / 1000 + SLACK_S):
        begun = time.monotonic()
        self.assertFalse(space.wait(job, seconds), "a job that hangs was completed")
        self.assertEqual(await_loss(space.client, space.ctx), (why, job))
        self.assertLess(time.monotonic() - begun, seconds)
        self.assertEqual(space.client.ctx_info(space.ctx)["state"], 1)
        for call in (lambda: space.submit(space.add_one()),
                     lambda: space.client.map(space.ctx, space.buf, 0, PAGE)):
            with self.assertRaises(pc.Refused) as caught:
                call()
            self.assertEqual((caught.exception.code, caught.exception.reason), (-errno.EIO, 80))

    def hang(self, space, how):
        """Submits a job that counts and then hangs; it has counted, so that it hangs by now, or in a moment."""
        count = space.counter
        job = space.submit(space.add_one(), how)
        harness.wait_until(lambda: space.counter > count, "the job begins")
        return job

    def until_reset(self, hang_and_more):
        """What is asked of a slot in the moment before the hang is obeyed. Then all is done once more."""
        resets = self.stack.status()["resets"]
        for _ in range(10):
            hang_and_more()
            if self.stack.status()["resets"] != resets:
                break
        self.assertEqual(self.stack.status()["resets"], resets + 1)

    def expect_usable(self, *spaces):
        for space in spaces:
            count = space.counter
            self.assertTrue(space.wait(space.submit(space.add_one())))
            self.assertEqual(space.counter, count + 1)


class ObeysStop(HangTest):
    def test_guilty_one_is_lost_others_go_on(self):
        guilty, good = self.space(), [self.space() for _ in range(6)]
        jobs = []
        guilty.submit(guilty.add_one())
        job = guilty.submit(HANG_SOFT, guilty.add_one())
        after = guilty.submit(guilty.add_one())
        deadline = time.monotonic() + SLACK_S
        while not guilty.lost:
            self.assertLess(time.monotonic(), deadline)
            for space in good:
                jobs.append((space, space.submit(space.add_one())))
                self.assertTrue(space.wait(jobs[-1][1]))
        self.expect_lost(guilty, job)
        self.assertFalse(guilty.wait(after))
        self.assertEqual(guilty.counter, 1, "work after the hang was done")
        for space in good:
            self.assertEqual(space.counter, sum(s is space for s, _ in jobs))
        self.assertEqual((self.gained("resets"), self.gained("faults")), (0, 0))
        self.expect_usable(*good)

    def test_it_takes_the_limit_and_little_more(self):
        space = self.space()
        begun = time.monotonic()
        self.assertFalse(space.wait(space.submit(HANG_SOFT)))
        took = time.monotonic() - begun
        self.assertGreater(took, JOB_LIMIT_MS / 1000 * 0.9)
        self.assertLess(took, JOB_LIMIT_MS / 1000 + SLACK_S)

    def test_same_client_goes_on_with_a_new_context(self):
        space = self.space()
        for _ in range(3):
            job = space.submit(HANG_SOFT)
            self.expect_lost(space, job)
            space.free()
            space.renew()
            self.expect_usable(space)
        self.assertEqual(space.counter, 3)
        self.assertEqual(self.gained("resets"), 0)

    def test_all_slots_hang_and_more_wait(self):
        spaces = [self.space() for _ in range(9)]
        good = self.space()
        jobs = [space.submit(HANG_SOFT) for space in spaces]
        self.expect_usable(good)
        for space, job in zip(spaces, jobs):
            self.expect_lost(space, job, seconds=4 * JOB_LIMIT_MS / 1000 + SLACK_S)
        self.assertEqual(self.gained("resets"), 0)
        self.expect_usable(good)

    def test_free_stops_at_once(self):
        space, good = self.space(), self.space()
        self.hang(space, HANG_SOFT)
        begun = time.monotonic()
        space.free()
        self.assertLess(time.monotonic() - begun, SLACK_S)
        with self.assertRaises(pc.Refused):
            space.client.ctx_info(space.ctx)
        space.renew()
        self.expect_usable(space, good)

    def test_unmap_while_it_hangs(self):
        space = self.space()
        job = space.submit(HANG_SOFT)
        iova = space.client.map(space.ctx, space.buf, 0, 4 * PAGE)
        space.client.unmap(space.ctx, iova, 4 * PAGE)
        space.client.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, space.iova, PAGE),
                                      (pc.MAP, pc.READ | pc.FIXED, space.buf, 0, space.iova, PAGE)])
        self.expect_lost(space, job)

    def test_a_faulting_job_is_not_a_hang(self):
        space = self.space()
        job = space.submit(command(FILL, 1, 0x700000000, length=64), space.add_one())
        self.assertTrue(space.wait(job))
        self.assertEqual(space.client.next_fault()[0], space.ctx)
        self.assertEqual(space.counter, 0)
        self.expect_usable(space)

    def test_killed_client(self):
        self.check_killed_client(HANG_OBEYS_STOP)
        self.assertEqual(self.gained("resets"), 0)

    def check_killed_client(self, kind, contexts=3):
        good = self.space()
        victim = subprocess.Popen([sys.executable, "-c", VICTIM, os.path.dirname(os.path.abspath(__file__)),
                                   self.stack.socket, str(kind), str(contexts)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        with victim:
            try:
                self.assertEqual(victim.stdout.readline(), b"hanging\n")
            finally:
                victim.kill()
        self.expect_usable(good)
        good.client.close()
        # tearDown looks whether all of the victim is gone.
        harness.wait_until(lambda: self.look() == self.before, "the victim's memory is gone")


class ObeysReset(HangTest):
    devices = [{"slots": 4, "job_limit_ms": JOB_LIMIT_MS, "answer_ms": ANSWER_MS}]
    GONE_S = (JOB_LIMIT_MS + ANSWER_MS) / 1000 + SLACK_S

    def test_guilty_one_is_lost_the_device_is_reset(self):
        guilty, good = self.space(), self.space()
        job = guilty.submit(HANG_HARD, guilty.add_one())
        self.expect_lost(guilty, job, seconds=self.GONE_S)
        self.assertEqual(self.gained("resets"), 1)
        self.assertEqual(guilty.counter, 0)
        self.expect_usable(good)
        guilty.free()
        guilty.renew()
        self.expect_usable(guilty)
        self.assertEqual(self.gained("resets"), 1)

    def test_job_that_began_ends_as_reset(self):
        """A job that stands still where everybody knows: behind its first count, before its second."""
        guilty, bystander = self.space(), self.space()
        # Both obey only a reset; whoever is found first is guilty, and the other one's slot hangs as well.
        jobs = []
        for space in (guilty, bystander):
            jobs.append(space.submit(space.add_one(), HANG_HARD, space.add_one()))
        for space, job in zip((guilty, bystander), jobs):
            self.assertFalse(space.wait(job, 2 * self.GONE_S))
            self.assertEqual(space.counter, 1)
        self.assertGreater(self.gained("resets"), 0)

    def test_all_slots_hang(self):
        spaces = [self.space() for _ in range(4)]
        good = self.space()
        jobs = [space.submit(HANG_HARD) for space in spaces]
        waiting = good.submit(good.add_one())
        for space, job in zip(spaces, jobs):
            self.expect_lost(space, job, seconds=2 * self.GONE_S)
        self.assertTrue(good.wait(waiting))
        self.assertEqual(good.counter, 1)
        self.expect_usable(good)

    def test_queue_behind_a_hang_is_dropped(self):
        space = self.space()
        job = space.submit(HANG_HARD)
        later = [space.submit(space.add_one()) for _ in range(3)]
        self.expect_lost(space, job, seconds=self.GONE_S)
        for number in later:
            self.assertFalse(space.wait(number))
        self.assertEqual(space.counter, 0)

    def test_freed_context(self):
        space, good = self.space(), self.space()

        def free():
            self.hang(space, HANG_HARD)
            begun = time.monotonic()
            space.free()
            self.assertLess(time.monotonic() - begun, self.GONE_S)
            space.renew()

        self.until_reset(free)
        self.expect_usable(good, space)

    def test_replace_under_it(self):
        """A change that needs the slot to pause, which it does not: its context is lost."""
        space, good = self.space(), self.space()
        job = self.hang(space, HANG_HARD)
        try:
            space.client.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, space.iova, PAGE),
                                          (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, space.buf, 0, space.iova, PAGE)])
        except pc.Refused as refused:
            self.assertEqual((refused.code, refused.reason), (-errno.EIO, 80))
        self.expect_lost(space, job, seconds=self.GONE_S)
        self.assertEqual(space.counter, 1)
        self.expect_usable(good)

    def test_connection_is_served_meanwhile(self):
        guilty, good = self.space(), self.client()
        job = guilty.submit(HANG_HARD)
        slowest = 0
        while not guilty.lost:
            begun = time.monotonic()
            self.assertTrue(good.devices())
            with pc.Client(self.stack.socket) as another:
                another.devices()
            slowest = max(slowest, time.monotonic() - begun)
        self.expect_lost(guilty, job)
        self.assertLess(slowest, 1.0)

    def test_killed_client(self):
        for _ in range(10):  # it may be stopped in the moment before the hang is obeyed
            ObeysStop.check_killed_client(self, HANG_OBEYS_RESET)
            if self.gained("resets"):
                return
        self.fail("the device was not reset")


class Busy(HangTest):
    """Enough work for all slots, with a limit that it does not come near to."""

    devices = [{"slots": 4, "job_limit_ms": 1000, "answer_ms": ANSWER_MS}]
    GONE_S = (1000 + ANSWER_MS) / 1000 + SLACK_S

    def test_no_job_runs_twice(self):
        """Each job copies for long and counts last. What had not begun runs again; what had begun may end as RESET."""
        guilty = self.space()
        good = [self.space(pages=258) for _ in range(10)]
        n_reset = 0
        for _ in range(5):
            n_reset += self.reset_under_work(guilty, good)
            if n_reset:
                break
            guilty.free()
            guilty.renew()
        self.assertGreater(n_reset, 0, "nothing ran elsewhere when the device was reset")
        self.expect_usable(*good)

    def reset_under_work(self, guilty, good):
        """How many jobs a reset ended on other slots than the one that asked for it."""
        resets = self.stack.status()["resets"]
        count = {space: space.counter for space in good}
        done = {space: space.client.fence(space.ctx)[0] for space in good}
        submitted = dict(done)
        guilty_job = guilty.submit(HANG_HARD)
        # Enough that work is in flight and waiting on the other slots all the time until the reset.
        deadline = time.monotonic() + 1 + self.GONE_S
        while not guilty.lost:
            self.assertLess(time.monotonic(), deadline)
            for space in good:
                while submitted[space] - space.client.fence(space.ctx)[0] < 6:
                    submitted[space] = space.submit(*space.long_copy(2, 130, 128, 10), space.add_one())
        self.assertEqual(await_loss(guilty.client, guilty.ctx), (LOST_HANG, guilty_job))
        self.assertEqual(self.stack.status()["resets"], resets + 1)
        n_reset = 0
        for space in good:
            self.assertTrue(space.wait(submitted[space], 60))
            self.assertFalse(space.lost)
            reset = len(self.resets_of(space))
            n_reset += reset
            ran, jobs = space.counter - count[space], submitted[space] - done[space]
            # A job that the reset hit may have counted: the reset may have come between that and its end.
            self.assertLessEqual(ran, jobs, "a job ran twice")
            self.assertGreaterEqual(ran, jobs - reset, "a job was lost without a word")
            self.assertEqual(space.client.fence(space.ctx)[0], submitted[space])
        self.assertLessEqual(n_reset, 3, "more jobs were reset than could have begun on other slots")
        return n_reset

    def resets_of(self, space):
        """The jobs of a context that ended by a reset; there is one context on the connection."""
        self.assertTrue(space.client.ctx_info(space.ctx))  # after this reply all events before it are there
        reset = []
        while (event := space.client.next_event(0)) is not None:
            self.assertEqual(event[0], pc.EV_LOST)
            ctx, why, job = struct.unpack("<IIQ", event[1])
            self.assertEqual((ctx, why), (space.ctx, LOST_RESET))
            reset.append(job)
        return reset


class LongJobs(HangTest):
    """A limit on jobs that nobody reaches here: what ends work is that a slot does not obey."""

    devices = [{"slots": 2, "job_limit_ms": 60000, "answer_ms": ANSWER_MS}]

    def test_change_of_tables_under_a_hang(self):
        space, good = self.space(), self.space()
        job = self.hang(space, HANG_HARD)
        waiting = good.submit(good.add_one())
        refused = None
        for _ in range(10):  # one that comes before the hang is done
            try:
                space.client.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, space.iova, PAGE),
                                              (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, space.buf, 0, space.iova, PAGE)])
            except pc.Refused as refusal:
                refused = (refusal.code, refusal.reason)
                break
        self.assertEqual(refused, (-errno.EIO, 80))
        self.expect_lost(space, job)
        self.assertEqual((space.counter, self.gained("resets")), (1, 1))
        self.assertTrue(good.wait(waiting))
        self.expect_usable(good)

    def test_change_of_tables_under_a_hang_that_pauses(self):
        space, good = self.space(), self.space()
        self.hang(space, HANG_SOFT)
        space.client.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, space.iova, PAGE),
                                      (pc.MAP, pc.READ | pc.WRITE | pc.FIXED, space.buf, 0, space.iova, PAGE)])
        self.assertFalse(space.lost)
        self.expect_usable(good)
        self.assertEqual(self.gained("resets"), 0)

    def test_jobs_submitted_around_a_reset(self):
        """Work that comes while the device is being reset, and right after it, is not lost."""
        client = self.client()
        good = [self.space(client) for _ in range(4)]
        guilty = self.space()

        def free():
            self.hang(guilty, HANG_HARD)
            freed = guilty.client.send(pc.CTX_FREE, struct.pack("<II", guilty.ctx, 0))
            while not select.select([guilty.client.sock], [], [], 0)[0]:
                for space in good:
                    self.assertTrue(space.wait(space.submit(space.add_one())))
            guilty.client.reply(freed)
            guilty.renew()

        for _ in range(3):
            self.until_reset(free)
        for space in good:
            job = space.submit(space.add_one())
            self.assertTrue(space.wait(job))
            resets = sum(ctx == space.ctx for ctx, why, _ in self.losses(client) if why == LOST_RESET)
            self.assertLessEqual(space.counter, job)
            self.assertGreaterEqual(space.counter, job - resets)

    @staticmethod
    def losses(client):
        client.devices()
        return [struct.unpack("<IIQ", body) for opcode, body in client.events if opcode == pc.EV_LOST]


class Two(HangTest):
    """A reset of one device does not touch another."""

    devices = [{"slots": 2, "job_limit_ms": JOB_LIMIT_MS, "answer_ms": ANSWER_MS}, {"slots": 2}]

    def test_other_device_goes_on(self):
        client = self.client()
        guilty, other = self.space(client), self.space(client, device="gpu1")
        job = guilty.submit(HANG_HARD)
        n, resets = 0, self.stack.status(1)["resets"]
        while not guilty.lost:
            n = other.submit(other.add_one())
            self.assertTrue(other.wait(n))
        self.expect_lost(guilty, job)
        self.assertEqual(other.counter, n)
        self.assertEqual(self.stack.status(1)["resets"], resets)
        self.expect_usable(other)


class LogLines(HangTest):
    """A client whose jobs hang and hang has its lines in the log counted, not written."""

    devices = [{"slots": 4, "job_limit_ms": 10, "answer_ms": ANSWER_MS}]

    def test_a_flood_of_hangs(self):
        begun, hangs = time.monotonic(), 60
        space = self.space()
        for _ in range(hangs):
            self.assertFalse(space.wait(space.submit(HANG_SOFT)))
            space.free()
            space.renew()
        with open(os.path.join(self.stack.dir, "pasidd.log"), encoding="utf-8") as log:
            lines = sum("it is stopped" in line for line in log)
        self.assertGreaterEqual(lines, 10)
        self.assertLessEqual(lines, 10 + (time.monotonic() - begun) + 1)
        self.assertLess(lines, hangs)


if __name__ == "__main__":
    unittest.main()
