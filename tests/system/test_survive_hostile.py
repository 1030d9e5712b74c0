# SPDX-License-Identifier: MIT
"""A daemon that is killed while a thief, a device or an administrator makes the worst of it: nobody comes by what another had,
nobody loses what another's fault is, and who lost something is told."""

import json
import os
import signal
import struct
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import survive  # noqa: E402
import work  # noqa: E402
from work import PAGE  # noqa: E402

SLOW = {"answer_ms": 20000, "job_limit_ms": 60000}
MANY = {"connection": {"rate": survive.RATE, "mappings": 1 << 20}, "uid": {"rate": survive.RATE, "mappings": 1 << 20}}


class Hostile(unittest.TestCase):
    def stack(self, devices=({},), limits=None):
        stack = survive.Stack(list(devices), limits)
        self.addCleanup(self.end, stack)
        stack.__enter__()
        with stack.connect() as client:
            for i in range(len(devices)):
                stack.await_device(client, f"gpu{i}")
        return stack

    def end(self, stack):
        for gpu in stack.gpus:
            if gpu:
                gpu.send_signal(signal.SIGCONT)
        stack.stop()

    def works(self, client, space):
        self.assertTrue(client.wait(space.ctx, space.submit(space.add_one())))

    def believed(self, stack):
        self.assertNotIn("cannot be believed", stack.log_tail(None))

    def stop_gpu(self, stack):
        stack.gpus[0].send_signal(signal.SIGSTOP)
        harness.await_stopped(stack.gpus[0])

    def test_who_is_called_like_one_that_is_ending(self):
        """The bank's connection ends, and its contexts cannot yet; the thief's is called the same in the store."""
        stack = self.stack([SLOW])
        bank = stack.connect()
        space = work.Space(bank)
        self.works(bank, space)
        name = [n for n in stack.manager.names() if n[0] == "@"]
        self.stop_gpu(stack)
        serial, ctx = bank.serial, space.ctx
        bank.close()
        harness.wait_until(lambda: not [n for n in stack.manager.names() if n[0] == "@"], "the end of the connection")
        thief = stack.connect()
        self.assertEqual([n for n in stack.manager.names() if n[0] == "@"], name)
        stack.kill_daemon()
        stack.gpus[0].send_signal(signal.SIGCONT)
        thief.serial = serial
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):  # its own serial is another one
            thief.ctx_info(ctx)

    def test_nothing_is_answered_before_the_device_has_forgotten(self):
        stack = self.stack([SLOW])
        client = stack.connect()
        space = work.Space(client)
        self.works(client, space)
        self.stop_gpu(stack)
        unmap = struct.pack("<II", space.ctx, 1) + struct.pack("<IIIIQQQ", pc.UNMAP, 0, 0, 0, 0, space.iova, space.size)
        serial = client.send(pc.BIND, unmap)
        client.sock.settimeout(0.3)
        for _ in range(2):
            with self.assertRaises(TimeoutError):
                client.reply(serial)
            stack.kill_daemon()
        stack.gpus[0].send_signal(signal.SIGCONT)
        client.sock.settimeout(harness.DEADLINE)
        client.reply(serial)

    def test_a_device_that_is_gone_costs_its_own_contexts(self):
        stack = self.stack([{}, {}])
        client = stack.connect()
        space, _ = work.Space(client, device="gpu0"), work.Space(client, device="gpu1")
        stack.stop_gpu(1, signal.SIGKILL)
        harness.wait_until(lambda: "device gpu1: lost" in stack.log_tail(None), "the loss of a device")
        for _ in range(3):
            stack.kill_daemon()
            self.works(client, space)
        self.believed(stack)

    def changed(self, change):
        """One of two devices is configured to be another one, or not at all, while the daemon is dead."""
        stack = self.stack([{}, {}])
        client = stack.connect()
        space = work.Space(client, device="gpu0")
        lost = [work.Space(client, device="gpu1") for _ in range(2)]
        path = Path(stack.dir, "pasidd.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        change(config["devices"])
        path.write_text(json.dumps(config), encoding="utf-8")
        for _ in range(2):
            stack.kill_daemon()
            self.works(client, space)
        self.believed(stack)
        for other in lost:
            self.assertEqual(client.fence(other.ctx)[1], 1)

    def test_a_device_that_is_not_configured_any_more(self):
        self.changed(lambda devices: devices.pop())

    def test_a_device_in_another_mode(self):
        self.changed(lambda devices: devices[1].update(mode="global"))

    def test_devices_in_another_order(self):
        stack = self.stack([{}, {}])
        client = stack.connect()
        spaces = [work.Space(client, device=f"gpu{i}") for i in range(2)]
        path = Path(stack.dir, "pasidd.json")
        for _ in range(3):
            config = json.loads(path.read_text(encoding="utf-8"))
            config["devices"].reverse()
            path.write_text(json.dumps(config), encoding="utf-8")
            stack.kill_daemon()
            for space in spaces:
                self.works(client, space)
        self.believed(stack)

    def test_a_hanging_job_costs_its_owner(self):
        """The thief's slot does not stand still while his tables are to be made again."""
        stack = self.stack()
        bank, thief = stack.connect(), stack.connect()
        space, other = work.Space(bank), work.Space(thief)
        other.submit(work.command(work.HANG, value=work.HANG_OBEYS_RESET))
        replace = struct.pack("<II", other.ctx, 2)
        replace += struct.pack("<IIIIQQQ", pc.UNMAP, 0, 0, 0, 0, other.iova, other.size)
        replace += struct.pack("<IIIIQQQ", pc.MAP, pc.READ | pc.WRITE | pc.FIXED, other.buf, 0, 0, other.iova, other.size)
        thief.send(pc.BIND, replace)
        bank.ctx_info(space.ctx)  # the list is under way by then, or not yet: both are tried
        stack.kill_daemon()
        harness.wait_until(lambda: thief.fence(other.ctx)[1] == 1, "the thief's loss")
        self.assertEqual(bank.fence(space.ctx)[1], 0)
        self.works(bank, space)

    def test_every_loss_is_told(self):
        """Killed while a context's hundred thousand mappings go, because its device is gone."""
        stack = self.stack(limits=MANY)
        for n in range(6):
            client = stack.connect()
            stack.await_device(client)
            space = work.Space(client)
            for _ in range(100):
                client.bind(space.ctx, [(pc.MAP, pc.READ, space.buf, 0, 0, PAGE)] * 1024)
            before = stack.log_tail(None).count("device gpu0: lost")
            stack.stop_gpu(0, signal.SIGKILL)
            harness.wait_until(lambda: stack.log_tail(None).count("device gpu0: lost") > before, "the loss")
            stack.kill_daemon()
            stack.start_gpu(0)
            harness.wait_until(lambda: client.fence(space.ctx)[1] == 1, f"loss {n} at the fence line")
            end = time.monotonic() + harness.DEADLINE
            while (event := client.next_event(end - time.monotonic())) and event[0] != 0x8002:
                pass
            self.assertTrue(event, f"loss {n} as an event")
            stack.await_device(client)
            client.close()


if __name__ == "__main__":
    unittest.main()
