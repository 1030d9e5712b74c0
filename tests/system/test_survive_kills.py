# SPDX-License-Identifier: MIT
"""A daemon that is killed at random moments, while clients work that compare every byte and know nothing of it."""

import os
import random
import signal
import struct
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
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

    def workers(self, stack, number, contexts, buffers):
        workers = [survive.Worker(stack, contexts, buffers, work.SEED + i, survive.UIDS[i % len(survive.UIDS)])
                   for i in range(number)]
        for worker in workers:
            self.addCleanup(worker.kill)
        for worker in workers:
            worker.await_ready()
        return workers

    def end(self, workers):
        """They had work, learnt of what happened, and saw nothing else of it."""
        ends = [worker.end() for worker in workers]
        for end in ends:
            self.assertGreater(end["jobs"], 0)
            self.assertGreater(end["resumed"], 0)
        return ends

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
        workers = self.workers(stack, 8, 3, 24)
        kills = self.kill(stack, KILLS, 0.4)
        stack.manager.await_ready(harness.DEADLINE)
        ends = self.end(workers)
        self.await_rest(stack, before)
        print(f"# {kills} kills; {sum(e['steps'] for e in ends)} steps, {sum(e['jobs'] for e in ends)} jobs, median "
              f"{max(e['median-us'] for e in ends)} us, worst {max(e['worst-us'] for e in ends)} us")

    def test_thousands_live(self):
        """1,000 contexts and 8,000 buffers, with those of commands; how long nobody is answered is printed."""
        most = {"rate": survive.RATE, "contexts": 4096, "buffers": 65536}
        stack = self.stack(limits={"connection": most, "uid": most})
        before = stack.rest()
        workers = self.workers(stack, 8, 125, 1000)
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
        self.end(workers)
        self.await_rest(stack, before)
        print(f"# nobody is answered for {sorted(pauses)[5] * 1000:.0f} ms (median), {max(pauses) * 1000:.0f} ms (worst)")

    def test_ended_and_started_again(self):
        """A service manager's restart: SIGTERM leaves all as a crash does."""
        stack = self.stack()
        before = stack.rest()
        workers = self.workers(stack, 4, 3, 24)
        for _ in range(10):
            time.sleep(self.random.random() * 0.2)
            starts = stack.manager.starts
            stack.manager.kill(signal.SIGTERM)
            harness.wait_until(lambda: stack.manager.starts > starts, "a successor")
            stack.manager.await_ready(harness.DEADLINE)
            self.assertEqual(stack.manager.status, 0)
        self.end(workers)
        self.await_rest(stack, before)


class Dead(unittest.TestCase):
    """A stack whose daemon is a successor already."""

    devices = [{}]

    def setUp(self):
        print(f"# seed {work.SEED}")
        self.random = random.Random(work.SEED)
        self.stack = self.enter(survive.Stack(self.devices))
        self.stack.connect().close()
        self.stack.kill_daemon()

    def enter(self, stack):
        self.addCleanup(stack.stop)
        return stack.__enter__()

    def rig(self):
        rig = survive.Rig(self.stack)
        self.addCleanup(rig.close)
        return rig

    def await_back(self, before):
        self.stack.kill_daemon()
        try:
            harness.wait_until(lambda: self.stack.everything() == before, "back to the beginning")
        except harness.HarnessError:
            self.fail(f"before {before}, after {self.stack.everything()}\n{self.stack.log_tail()}")

    def stop_gpu(self):
        gpu = self.stack.gpus[0]
        gpu.send_signal(signal.SIGSTOP)
        harness.await_stopped(gpu)


class WhileDead(Dead):
    """What happens while nobody is there, or a device does not answer who comes next."""

    def test_clients_leave(self):
        self.rig().close()
        self.stack.kill_daemon()
        before = self.stack.rest()
        leaving, staying, late = self.rig(), self.rig(), self.rig()
        self.stack.kill_and(leaving.close)
        self.assertEqual(staying.fate(), "kept")
        # With a job on the slot, and the request of another in the socket.
        late.space.submit(*late.space.long_copy(0, 8, 8, 64))
        late.client.send(pc.SUBMIT, struct.pack("<IIQQ", late.space.ctx, 0, late.space.cmd_iova, 64))
        self.stack.kill_and(late.close)
        self.assertEqual(staying.fate(), "kept")
        staying.close()
        self.await_back(before)

    def test_clients_come(self):
        clients = []

        def connect():
            for _ in range(20):
                clients.append(pc.Client(self.stack.socket, hello=False))
                clients[-1].send(pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))

        self.stack.kill_and(connect)
        for client in clients:
            self.addCleanup(client.close)
            os.close(client.reply(1)[1][0])

    def test_requests_that_nobody_has_seen(self):
        """As many as may be unanswered, sent to nobody: each is answered once, in order."""
        rig = self.rig()
        serials = []

        def send():
            for _ in range(8):
                serials.append(rig.client.send(pc.CTX_NEW, pc.name("") + bytes(8)))
                serials.append(rig.client.send(pc.CTX_INFO, struct.pack("<II", rig.space.ctx, 0)))

        self.stack.kill_and(send)
        got = [rig.client.reply(serial)[0] for serial in serials]
        ids = [struct.unpack_from("<I", body)[0] for body in got[::2]]
        self.assertEqual(ids, list(range(ids[0], ids[0] + 8)))

    def test_the_device_dies(self):
        """Its contexts are lost, and told so; the device comes back, and is another one."""
        rig = self.rig()
        self.stack.kill_and(lambda: self.stack.stop_gpu(0, signal.SIGKILL))
        self.assertEqual(work.await_loss(rig.client, rig.space.ctx)[0], work.LOST_DEVICE)
        self.assertEqual(rig.fate(), "lost")
        self.stack.start_gpu()
        self.stack.await_device(rig.client)
        rig.space.free()
        rig.space.renew()
        rig.fill()

    def test_the_device_is_slow(self):
        """It does not answer for a while, and then it does."""
        rig = self.rig()
        self.stack.kill_and(self.stop_gpu)
        serial = rig.client.send(pc.CTX_INFO, struct.pack("<II", rig.space.ctx, 0))
        self.assertFalse(rig.space.lost)
        self.stack.kill_daemon()
        self.stack.gpus[0].send_signal(signal.SIGCONT)
        rig.client.reply(serial)
        self.assertEqual(rig.fate(), "kept")

    def test_the_device_does_not_answer(self):
        """Not within what it has for an answer: its contexts are lost, and it is tried again."""
        rig = self.rig()
        self.stack.kill_and(self.stop_gpu)
        self.assertEqual(work.await_loss(rig.client, rig.space.ctx)[0], work.LOST_DEVICE)
        self.assertEqual(rig.fate(), "lost")
        self.stack.gpus[0].send_signal(signal.SIGCONT)
        self.stack.await_device(rig.client)
        rig.space.free()
        rig.space.renew()
        rig.fill()


class Trouble(Dead):
    """A job that does not end, a device that has to be reset: killed while that goes on, at random moments."""

    devices = [{"job_limit_ms": 300, "slots": 4}]

    def hang(self, obeys, reasons):
        for _ in range(5):
            hung, other = self.rig(), self.rig()
            hung.space.submit(work.command(work.HANG, obeys))
            end = time.monotonic() + 5
            while not hung.space.lost and time.monotonic() < end:
                time.sleep(self.random.random() * 0.3)
                self.stack.kill_daemon()
                other.fill()
            self.assertIn(work.await_loss(hung.client, hung.space.ctx)[0], reasons)
            self.assertEqual((hung.fate(), other.fate()), ("lost", "kept"))
            self.stack.await_device(other.client)
            hung.close()
            other.close()

    def test_a_job_that_is_stopped(self):
        self.hang(work.HANG_OBEYS_STOP, (work.LOST_HANG,))

    def test_a_device_that_is_reset(self):
        self.hang(work.HANG_OBEYS_RESET, (work.LOST_HANG, work.LOST_RESET))


if __name__ == "__main__":
    unittest.main()
