# SPDX-License-Identifier: MIT
"""Devices that stop answering, die and come back, while others are served."""

import errno
import os
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from work import COPY, LOST_DEVICE, PAGE, Space, StackTest, await_loss, command, page_of, settled  # noqa: E402

ANSWER_MS = 250
JOB_LIMIT_MS = 150
SLACK_S = 3.0
REPLY_S = 1.0  # for a reply while another device does not answer
LOST_S = (JOB_LIMIT_MS + 2 * ANSWER_MS) / 1000 + SLACK_S
BACK_S = 2.5 + SLACK_S  # the longest pause between two attempts, and a little
DEVICE = {"slots": 4, "answer_ms": ANSWER_MS, "job_limit_ms": JOB_LIMIT_MS}
OTHER = {"slots": 4}


class GoneTest(StackTest):
    devices = [DEVICE, OTHER]

    def setUp(self):
        super().setUp()
        self.addCleanup(self.revive)

    def revive(self, i=0):
        """Whatever a test did to it: the device is there again."""
        if self.stack.gpus[i] is None:
            self.stack.start_gpu(i)
        self.stack.gpus[i].send_signal(signal.SIGCONT)
        with pc.Client(self.stack.socket) as c:
            self.stack.await_device(c, f"gpu{i}")

    def kill_gpu(self, i=0):
        gpu, self.stack.gpus[i] = self.stack.gpus[i], None
        gpu.kill()
        gpu.wait()

    def stop_gpu(self, i=0):
        self.stack.gpus[i].send_signal(signal.SIGSTOP)
        harness.await_stopped(self.stack.gpus[i])

    def await_back(self, client, name="gpu0"):
        """The event, and the device's presence."""
        end = time.monotonic() + BACK_S
        while True:
            event = client.next_event(max(0, end - time.monotonic()))
            self.assertIsNotNone(event, f"no DEVICE_BACK within {BACK_S} s\n{self.stack.log_tail()}")
            if event[0] == pc.EV_DEVICE_BACK:
                break
        self.assertEqual(event[1].rstrip(b"\0").decode(), name)
        self.assertIn((name, 1, 1), client.devices())

    def expect_usable(self, *spaces):
        for space in spaces:
            count = space.counter
            self.assertTrue(space.wait(space.submit(space.add_one())))
            self.assertEqual(space.counter, count + 1)

    def expect_gone(self, space):
        self.assertEqual(await_loss(space.client, space.ctx, LOST_S)[0], LOST_DEVICE)
        harness.wait_until(lambda: space.lost, "the fence line says so")  # a moment after the event
        with self.assertRaises(pc.Refused) as caught:
            space.submit(space.add_one())
        self.assertEqual((caught.exception.code, caught.exception.reason), (-errno.EIO, 80))

    def renew(self, space):
        space.free()
        space.renew()


class Killed(GoneTest):
    devices = [{**DEVICE, "job_limit_ms": 10000}, OTHER]

    def test_contexts_are_lost_buffers_are_kept(self):
        client = self.client()
        here, there = self.space(client), self.space(client, device="gpu1")
        here.data[PAGE:2 * PAGE] = page_of(0x600D600D)
        self.expect_usable(here, there)
        self.kill_gpu()
        self.expect_gone(here)
        for call in (lambda: client.ctx_new("gpu0"), lambda: client.buf_import(here.data_fd, "gpu0")):
            with self.assertRaises(pc.Refused) as caught:
                call()
            self.assertEqual((caught.exception.code, caught.exception.reason), (-errno.ENODEV, 81))
        self.expect_usable(there)
        self.assertIn(("gpu0", 1, 0), client.devices())
        self.stack.start_gpu(0)
        self.await_back(client)
        self.renew(here)
        self.assertTrue(here.wait(here.submit(here.copy(2, 1), here.add_one())))
        self.assertEqual(here.page(2), page_of(0x600D600D))
        self.expect_usable(here, there)

    def test_unmap_after_it_is_back(self):
        """Tickets of invalidations begin anew: an old count must not pass for an answer."""
        client = self.client()
        space, spare = self.space(client), self.space(client, pages=32)
        for _ in range(2):
            for i in range(20):
                iova = client.map(space.ctx, spare.buf, 0, spare.size)
                job = space.submit(*[command(COPY, 0, iova, space.iova, 8 * PAGE)] * 60)
                client.unmap(space.ctx, iova, spare.size)
                spare.data[:] = b"\xa5" * spare.size
                self.assertTrue(space.wait(job))
                self.assertEqual(bytes(spare.data), b"\xa5" * spare.size)
            self.kill_gpu()
            self.expect_gone(space)
            self.stack.start_gpu(0)
            client.events.clear()
            self.await_back(client)
            self.renew(space)

    def test_with_work_in_flight(self):
        client = self.client()
        spaces = [self.space(client, pages=258) for _ in range(6)]
        for space in spaces:
            for _ in range(4):
                space.submit(*space.long_copy(2, 130, 128, 50), space.add_one())
        harness.wait_until(lambda: self.gained("jobs") > 0, "work runs")
        self.kill_gpu()
        for space in spaces:
            self.expect_gone(space)
            self.assertEqual(space.client.fence(space.ctx)[0], space.counter)
        self.stack.start_gpu(0)
        self.await_back(client)
        for space in spaces:
            self.renew(space)
        self.expect_usable(*spaces)

    def test_frees_while_it_is_gone(self):
        client = self.client()
        spaces = [self.space(client) for _ in range(3)]
        self.kill_gpu()
        self.expect_gone(spaces[0])
        spaces[0].free_all()
        spaces[1].free()
        client.buf_free(spaces[1].buf)
        client.close()
        harness.wait_until(lambda: self.stack.fds() <= self.before["fds"], "the daemon lets go of the client's files")

    def test_again_and_again(self):
        client = self.client()
        space = self.space(client)
        rss = []
        for i in range(6):
            self.kill_gpu()
            self.expect_gone(space)
            self.stack.start_gpu(0)
            self.await_back(client)
            self.renew(space)
            self.expect_usable(space)
            rss.append(self.stack.rss())
        self.assertEqual(space.counter, 6)
        self.assertLess(rss[-1] - rss[1], 32 << 20, f"the daemon grows: {rss}")

    def test_at_random_moments_under_load(self):
        """Clients make, use and free contexts; the device dies now and then. Refusals are those of a device that is gone."""
        stop = threading.Event()
        broken, rounds = [], [0] * 4

        def life(n):
            device = f"gpu{n % 2}"
            with pc.Client(self.stack.socket) as client:
                while not stop.is_set():
                    space = None
                    try:
                        space = Space(client, pages=4, device=device)
                        for _ in range(5):
                            job = space.submit(space.copy(1, 2), space.add_one())
                        iova = client.map(space.ctx, space.buf, 0, PAGE)
                        client.unmap(space.ctx, iova, PAGE)
                        if space.wait(job) and space.counter != 5:
                            broken.append(f"{space.counter} of 5 jobs ran on {device}")
                        space.free_all()
                        rounds[n] += 1
                    except pc.Refused as refused:
                        if refused.reason not in (80, 81) or n % 2:
                            broken.append(f"{device}: {refused}")
                    except Exception as error:  # whatever it is, the main thread reports it
                        broken.append(f"{device}: {error!r}")
                        return
                    finally:
                        if space:
                            space.close()
                        client.events.clear()

        threads = [threading.Thread(target=life, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            with pc.Client(self.stack.socket) as watcher:
                for _ in range(6):
                    done, more = rounds[0], self.random.randrange(3)
                    harness.wait_until(lambda: rounds[0] > done + more or broken, "work goes on")
                    # A moment of its own inside of a round.
                    moment = time.monotonic() + self.random.random() * 0.02
                    while time.monotonic() < moment:
                        os.sched_yield()
                    self.kill_gpu()
                    self.stack.start_gpu(0)
                    watcher.events.clear()
                    self.await_back(watcher)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        self.assertEqual(broken, [])
        self.assertGreater(rounds[1], 0)


class Stopped(GoneTest):
    def test_others_are_served(self):
        client, here_client = self.client(), self.client()
        here, there = self.space(here_client), self.space(client, device="gpu1")
        also_there = self.space(here_client, device="gpu1")
        self.stop_gpu()
        here.submit(here.add_one())
        slowest = 0
        while not here.lost:
            begun = time.monotonic()
            self.expect_usable(there, also_there)
            iova = client.map(there.ctx, there.buf, 0, PAGE)
            client.unmap(there.ctx, iova, PAGE)
            client.devices()
            client.ctx_info(there.ctx)
            with pc.Client(self.stack.socket) as another:
                another.devices()
            slowest = max(slowest, time.monotonic() - begun)
        self.assertLess(slowest, REPLY_S)
        self.expect_gone(here)
        self.expect_usable(there, also_there)

    def test_lost_within_the_deadline(self):
        space = self.space()
        self.stop_gpu()
        begun = time.monotonic()
        space.submit(space.add_one())
        self.expect_gone(space)
        self.assertLess(time.monotonic() - begun, LOST_S)

    def test_request_that_waits_for_it_is_answered(self):
        for name in ("import", "unmap", "ctx_free", "buf_free"):
            with self.subTest(name):
                client = self.client()
                space = self.space(client)
                self.expect_usable(space)
                fd, view = pc.memfd(PAGE)
                spare = client.buf_import(fd)[0]
                self.stop_gpu()
                begun = time.monotonic()
                try:
                    {"import": lambda: client.buf_import(fd), "unmap": lambda: client.unmap(space.ctx, space.iova, PAGE),
                     "ctx_free": space.free, "buf_free": lambda: client.buf_free(spare)}[name]()
                    self.assertNotEqual(name, "import")
                except pc.Refused as refused:
                    self.assertIn(refused.reason, (80, 81))
                self.assertLess(time.monotonic() - begun, LOST_S)
                os.close(fd)
                view.close()
                harness.wait_until(lambda: ("gpu0", 1, 0) in client.devices(), "the device is given up", LOST_S)
                client.close()
                self.revive()

    def test_zombie_wakes_up(self):
        """What the stopped process was doing goes on when it wakes up. It has reached what it could reach then, and nothing
        that came later."""
        client = self.client()
        old = self.space(client, pages=514)
        old.data[2 * PAGE:258 * PAGE] = b"\xee" * (256 * PAGE)
        jobs = [old.submit(*old.long_copy(2, 258, 256, 30), old.add_one()) for _ in range(4)]
        harness.wait_until(lambda: self.gained("switches") > 0, "work runs")
        self.stop_gpu()
        self.expect_gone(old)
        stale = client.lines[old.ctx]
        old.free()
        # Another process at the same place, while the first one sleeps.
        zombie = self.stack.gpus[0]
        os.unlink(self.stack.gpu_socket(0))
        os.unlink(self.stack.gpu_status_path(0))
        self.stack.gpus[0] = None
        self.stack.start_gpu(0)
        try:
            self.await_back(client)
            new = [self.space(client) for _ in range(4)]
            for i, space in enumerate(new):
                space.data[PAGE:] = bytes([i + 1]) * (space.size - PAGE)
                self.assertEqual(client.fence(space.ctx)[:2], (0, 0))
                self.assertNotEqual(client.lines[space.ctx], stale, "the zombie may still write to that fence line")
            zombie.send_signal(signal.SIGCONT)
            # It finds its connection closed, and lets go of everything.
            harness.wait_until(lambda: self.fds_of_memory(zombie) == 0, "the zombie has let go")
            for i, space in enumerate(new):
                self.assertEqual(client.fence(space.ctx)[:2], (0, 0), "a zombie completed a job that was never submitted")
                self.assertEqual(space.data[PAGE:], bytes([i + 1]) * (space.size - PAGE))
                self.assertEqual(space.counter, 0)
            self.expect_usable(*new)
            del jobs
        finally:
            zombie.kill()
            zombie.wait()

    @staticmethod
    def fds_of_memory(process):
        """Mappings of memory that clients and the daemon made."""
        with open(f"/proc/{process.pid}/maps", encoding="ascii") as f:
            return sum("memfd:second-client" in line or "memfd:pasidd" in line for line in f)

    def test_it_wakes_up_and_is_back(self):
        client = self.client()
        space = self.space(client)
        self.expect_usable(space)
        self.stop_gpu()
        space.submit(space.add_one())
        self.expect_gone(space)
        self.stack.gpus[0].send_signal(signal.SIGCONT)
        self.await_back(client)
        self.renew(space)
        count = space.counter
        self.assertTrue(space.wait(space.submit(space.copy(2, 1), space.add_one())))
        self.assertEqual(space.counter, count + 1)

    def test_a_short_nap_loses_nothing(self):
        """Less than its deadlines: a client notices a pause."""
        client = self.client()
        space = self.space(client)
        n = 0
        for _ in range(5):
            self.stop_gpu()
            n = space.submit(space.add_one())
            self.assertEqual(client.ctx_info(space.ctx)["submitted"], n)
            self.stack.gpus[0].send_signal(signal.SIGCONT)
            self.assertTrue(space.wait(n))
        self.assertEqual(space.counter, n)
        self.assertFalse(space.lost)

    def test_client_dies_meanwhile(self):
        client = self.client()
        space = self.space(client)
        self.expect_usable(space)
        self.stop_gpu()
        space.submit(space.add_one())
        client.close()
        with pc.Client(self.stack.socket) as other:
            harness.wait_until(lambda: ("gpu0", 1, 0) in other.devices(), "the device is given up", LOST_S)
        self.revive()
        settled(self.look)


class WrongMode(unittest.TestCase):
    """A device that lacks what its mode takes is not there, and the log says why; others are served."""

    def check(self, mode, why):
        with harness.Stack([{"mode": mode}, OTHER]) as stack, pc.Client(stack.socket) as client:
            stack.await_device(client, "gpu1")
            harness.wait_until(lambda: why in stack.log_tail(), f"{why} in the log")
            self.assertFalse(client.devices()[0][2])
            space = Space(client, device="gpu1")
            self.addCleanup(space.close)
            self.assertTrue(space.wait(space.submit(space.add_one())))

    def test_exclusive(self):
        self.check("exclusive", 'mode "exclusive" takes an IOMMU that the kernel drives (vfio:)')

    def test_nested(self):
        self.check("nested", 'mode "nested" takes an IOMMU that the kernel drives (vfio:)')

    def test_pasid(self):
        self.check("pasid", 'mode "pasid" takes iommufd, Linux 6.15, and PASIDs of both the device and the IOMMU')


if __name__ == "__main__":
    unittest.main()
