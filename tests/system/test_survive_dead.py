# SPDX-License-Identifier: MIT
"""What happens while no daemon is there, or while its successor takes over: clients come and leave, devices die or do not answer,
jobs do not end."""

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
        for _ in range(3):
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
