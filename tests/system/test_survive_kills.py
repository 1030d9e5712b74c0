# SPDX-License-Identifier: MIT
"""A daemon that is killed at random moments, while clients work that compare every byte and know nothing of it."""

import os
import random
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import survive  # noqa: E402
import work  # noqa: E402

KILLS = 100
SECONDS = 40  # for all of them; a slow machine has fewer


class RandomKills(unittest.TestCase):
    def setUp(self):
        print(f"# seed {work.SEED}")
        self.random = random.Random(work.SEED)

    def stack(self, **options):
        stack = survive.Stack(**options)
        self.addCleanup(stack.stop)
        stack.__enter__()
        with stack.connect() as c:
            stack.await_device(c)
        # Counted in a successor: it is what there will be at the end.
        stack.kill_daemon()
        with stack.connect() as c:
            stack.await_device(c)
        return stack

    def await_rest(self, stack, before):
        stack.kill_daemon()
        try:
            harness.wait_until(lambda: stack.everything() == before, "back to the beginning")
        except harness.HarnessError:
            self.fail(f"before {before}, after {stack.everything()}, {stack.manager.names()}\n{stack.log_tail()}")

    def kill(self, stack, times, longest, number=signal.SIGKILL, seconds=SECONDS):
        """Each at a random moment, also while the last one's successor is still taking over. How many there were."""
        end = time.monotonic() + seconds
        for n in range(times):
            if time.monotonic() > end:
                return n
            time.sleep(self.random.random() * longest)
            starts = stack.manager.starts
            stack.manager.kill(number)
            harness.wait_until(lambda: stack.manager.starts > starts, "a successor")
        return times

    def test_a_hundred_kills_at_random_moments(self):
        stack = self.stack()
        before = stack.rest()
        workers = survive.workers_of(self, stack, 8, 3, 24)
        kills = self.kill(stack, KILLS, 0.4)
        stack.manager.await_ready(harness.DEADLINE)
        ends = [worker.end() for worker in workers]
        self.await_rest(stack, before)
        print(f"# {kills} kills; {sum(e['steps'] for e in ends)} steps, {sum(e['jobs'] for e in ends)} jobs, median "
              f"{max(e['median-us'] for e in ends)} us, worst {max(e['worst-us'] for e in ends)} us")

    def test_thousands_live(self):
        """1,000 contexts and 8,000 buffers, with those of commands; how long nobody is answered is printed."""
        most = {"rate": survive.RATE, "contexts": 4096, "buffers": 65536}
        stack = self.stack(limits={"connection": most, "uid": most})
        before = stack.rest()
        workers = survive.workers_of(self, stack, 8, 125, 1000)
        probe = stack.connect()
        self.addCleanup(probe.close)
        pauses = []
        for _ in range(10):
            started = time.monotonic()
            stack.manager.kill()
            probe.devices()
            pauses.append(time.monotonic() - started)
            time.sleep(self.random.random() * 0.2)
        probe.close()
        for worker in workers:
            worker.end()
        self.await_rest(stack, before)
        print(f"# nobody is answered for {sorted(pauses)[5] * 1000:.0f} ms (median), {max(pauses) * 1000:.0f} ms (worst)")

    def test_ended_and_started_again(self):
        """A service manager's restart: SIGTERM leaves all as a crash does."""
        stack = self.stack()
        before = stack.rest()
        workers = survive.workers_of(self, stack, 4, 3, 24)
        for _ in range(10):
            time.sleep(self.random.random() * 0.2)
            starts = stack.manager.starts
            stack.manager.kill(signal.SIGTERM)
            harness.wait_until(lambda: stack.manager.starts > starts, "a successor")
            stack.manager.await_ready(harness.DEADLINE)
            self.assertEqual(stack.manager.status, 0)
        for worker in workers:
            worker.end()
        self.await_rest(stack, before)


if __name__ == "__main__":
    unittest.main()
