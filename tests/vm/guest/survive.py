#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A daemon of this guest that is killed twenty times while clients work, and started again by a service manager.

survive.py CLASS iommufd|type1 [MODE]
"""

import os
import random
import re
import struct
import sys
import threading
import unittest
from pathlib import Path

import vm
from edu import COMMANDS, COPY, DATA, EDU, FILL, LATE, PAGE, Space, command, pc

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests"))
import supervisor  # noqa: E402

# The runner imports this file once more.
CLASS, HOW, MODE = (os.environ.setdefault("SURVIVE", " ".join(sys.argv[1:4])) + " exclusive").split()[:3]
KILLS = 20
IDLE_KILLS = 5  # of them while nobody else works, so that the device stays where it is
MODES = {"exclusive": 3, "pasid": 4, "nested": 5}
DEBUG = Path("/sys/kernel/debug/iommu/intel")
# IOVA_PFN and the entries of each level, the page's own last; bit 0 says that it is there.
LINE = re.compile(r"^\s*0x([0-9a-f]+)\s*\|?((?:\s+0x[0-9a-f]+)+)\s*$", re.I)


class Daemon(vm.Daemon):
    """As vm.Daemon; `manager` starts it again."""

    def begin(self, argv, log, **_):
        self.manager = supervisor.Supervisor(argv, stderr=os.fdopen(os.dup(log.fileno()), "ab")).start()

    def kill(self):
        self.manager.kill_and_await(60)

    def stop(self):
        self.manager.stop()
        print("".join(f"# {line}\n" for line in self.log.read_text().splitlines()), end="")


def leaves(path):
    """The page table that the IOMMU's driver shows there: {IOVA: leaf}; None if there is none."""
    try:
        text = path.read_text()
    except OSError:  # of a file that went, too
        return None
    found = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match:
            entries = [int(word, 16) for word in match.group(2).split()]
            found[int(match.group(1), 16) * PAGE] = [entry for entry in entries if entry][-1]
    return found


class Case(unittest.TestCase):
    ids = EDU
    spec = {"name": "gpu0", "job_limit_ms": 20000}

    def setUp(self):
        self.device = vm.PciDevice(vm.pci_find(*self.ids)[0])
        self.device.bind_vfio()
        self.daemon = Daemon({**self.spec, "spec": f"{HOW}:{self.device.bdf}", "mode": MODE})
        self.addCleanup(self.daemon.stop)
        self.await_device()
        self.rng = random.Random(1)

    def await_device(self):
        with pc.Client(self.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("gpu0", MODES[MODE], 1)], 60)

    def await_taken_over(self, times):
        """The daemon is ready before its device is."""
        vm.wait_for(lambda: self.daemon.log.read_text().count("taken over") >= times, 60)
        self.assertEqual(self.daemon.log.read_text().count("taken over"), times)


class Worker(threading.Thread):
    """A client that copies, maps and unmaps, and looks at every byte; it knows nothing of daemons that come and go."""

    def __init__(self, socket, seed):
        super().__init__(daemon=True)
        self.client = pc.Client(socket)
        self.space = Space(self.client)
        self.rng = random.Random(seed)
        self.late_fd, self.late = pc.memfd(4 * PAGE)
        self.late_buf = self.client.buf_import(self.late_fd)[0]
        self.steps, self.error = 0, None
        self.moved = threading.Condition()
        self.over = threading.Event()

    def step(self):
        space, word = self.space, self.rng.getrandbits(32)
        space.data[:] = bytes(len(space.data))
        self.late[:] = bytes(4 * PAGE)
        self.client.map(space.ctx, self.late_buf, 0, 4 * PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
        self.client.unmap(space.ctx, LATE + PAGE, PAGE)
        space.run(command(FILL, word, DATA + PAGE, 0, 2 * PAGE),
                  command(COPY, 0, LATE + 2 * PAGE, DATA + PAGE, 2 * PAGE))
        self.client.unmap(space.ctx, LATE, PAGE)
        self.client.unmap(space.ctx, LATE + 2 * PAGE, 2 * PAGE)
        pattern = struct.pack("<I", word) * (PAGE // 2)
        assert space.data[:] == bytes(PAGE) + pattern + bytes(5 * PAGE), "what was filled"
        assert self.late[:] == bytes(2 * PAGE) + pattern, "what was copied"
        info = self.client.ctx_info(space.ctx)
        assert (info["mappings"], info["faults"]) == (2, 0), info

    def run(self):
        try:
            while not self.over.is_set():
                self.step()
                with self.moved:
                    self.steps += 1
                    self.moved.notify_all()
        except Exception as e:  # pylint: disable=broad-except
            with self.moved:
                self.error = e
                self.moved.notify_all()

    def await_steps(self, n):
        with self.moved:
            end = self.steps + n
            if not self.moved.wait_for(lambda: self.error or self.steps >= end, 90):
                raise TimeoutError(f"{self.steps} steps")
        if self.error:
            raise self.error


class Edu(Case):
    def expect_tables(self, space):
        """The device is in the context's address space, which maps what its client asked for, and the window."""
        if not DEBUG.exists() or MODE != "exclusive":
            return
        space.run(command(FILL, 1, DATA, 0, PAGE))
        found = leaves(DEBUG / self.device.bdf / "domain_translation_struct")
        pages = {at for at in found or {} if at < 0xf0000000}
        want = {0x1000, COMMANDS} | set(range(DATA, DATA + len(space.data), PAGE))
        self.assertEqual(pages, want)

    def test_twenty_kills(self):
        workers = [Worker(self.daemon.socket, seed) for seed in range(2)]
        idle = pc.Client(self.daemon.socket)
        space = Space(idle)
        for worker in workers:
            worker.start()
        for n in range(KILLS - IDLE_KILLS):
            for worker in workers:
                worker.await_steps(self.rng.randrange(2))
            before = sum(self.device.interrupts().values())
            self.daemon.kill()
            for worker in workers:
                worker.await_steps(2)
            self.assertGreater(sum(self.device.interrupts().values()), before)
            self.await_taken_over(n + 1)
        for worker in workers:
            worker.over.set()
            worker.join(90)
            self.assertIsNone(worker.error)
            worker.client.close()
        for n in range(KILLS - IDLE_KILLS, KILLS):
            idle.unmap(space.ctx, DATA + (n - KILLS) % 4 * PAGE, PAGE)
            self.daemon.kill()
            self.await_taken_over(n + 1)
            idle.map(space.ctx, space.buf, (n - KILLS) % 4 * PAGE, PAGE, pc.READ | pc.WRITE | pc.FIXED,
                     DATA + (n - KILLS) % 4 * PAGE)
            self.expect_tables(space)
        self.assertEqual([event for event, _ in idle.events if event != pc.EV_RESUMED], [])
        log = self.daemon.log.read_text()
        self.assertNotIn("lost", log)


class Unplugged(Case):
    def test_while_it_is_dead(self):
        """The kernel waits for who has the device's file, which is the service manager; the successor gives it back."""
        client = pc.Client(self.daemon.socket)
        space = Space(client)
        space.run(command(FILL, 0x07070707, DATA, 0, PAGE))
        manager = self.daemon.manager
        manager.ready.clear()
        with manager.lock:  # no successor yet
            os.kill(manager.pid, 9)
            vm.host("device_del", "edu0")
        vm.host("device_gone", "edu0")
        manager.await_ready(60)
        vm.wait_for(lambda: client.fence(space.ctx)[1], 60)
        self.assertEqual(vm.pci_find(*EDU), [])
        vm.host("device_add", "edu0")
        vm.wait_for(self.device.path.exists)
        self.device.bind_vfio()
        self.await_device()
        client.ctx_free(space.ctx)
        again = Space(client)
        again.run(command(FILL, 0x08080808, DATA, 0, PAGE))
        self.assertEqual(again.page(0), b"\x08" * PAGE)

    def test_while_it_lives(self):
        """One that was taken over is given back like any other."""
        client = pc.Client(self.daemon.socket)
        space = Space(client)
        self.daemon.kill()
        space.run(command(FILL, 0x07070707, DATA, 0, PAGE))
        vm.host("device_del", "edu0")
        vm.host("device_gone", "edu0")
        vm.wait_for(lambda: client.fence(space.ctx)[1], 60)
        vm.host("device_add", "edu0")
        vm.wait_for(self.device.path.exists)
        self.device.bind_vfio()
        self.await_device()
        self.daemon.kill()
        again = Space(client)
        again.run(command(FILL, 0x08080808, DATA, 0, PAGE))
        self.assertEqual(again.page(0), b"\x08" * PAGE)


class Pasid(Case):
    """No device here can tag its accesses: what the kernel has installed is read back, leaf by leaf."""

    ids = vm.REFGPU
    spec = {"name": "gpu0", "answer_ms": 5000}

    def expect(self, client, ctx, want):
        pasid = client.ctx_info(ctx)["pasid"]
        found = leaves(DEBUG / self.device.bdf / f"{pasid:x}" / "domain_translation_struct")
        self.assertEqual(set(found or {}), want)

    def test_twenty_kills(self):
        client, stop = pc.Client(self.daemon.socket), threading.Event()
        contexts = [client.ctx_new() for _ in range(4)]
        bufs = [client.buf_import(pc.memfd(8 * PAGE)[0])[0] for _ in contexts]
        want = [set() for _ in contexts]
        error = []

        def change():
            other, rng = pc.Client(self.daemon.socket), random.Random(2)
            buf = other.buf_import(pc.memfd(8 * PAGE)[0])[0]
            try:
                while not stop.is_set():
                    ctx, at = other.ctx_new(), rng.randrange(64, 512) * PAGE
                    other.map(ctx, buf, 0, 8 * PAGE, pc.READ | pc.WRITE | pc.FIXED, at)
                    other.unmap(ctx, at + 2 * PAGE, PAGE)
                    self.expect(other, ctx, {at + i * PAGE for i in range(8) if i != 2})
                    other.ctx_free(ctx)
            except Exception as e:  # pylint: disable=broad-except
                error.append(e)

        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        for n in range(KILLS):
            i = self.rng.randrange(4)
            at = 0x200000 + n * 16 * PAGE
            client.map(contexts[i], bufs[i], 0, 8 * PAGE, pc.READ | pc.WRITE | pc.FIXED, at)
            want[i] |= set(range(at, at + 8 * PAGE, PAGE))
            self.daemon.kill()
            self.await_taken_over(n + 1)
            client.unmap(contexts[i], at + 4 * PAGE, PAGE)
            want[i].remove(at + 4 * PAGE)
            for ctx, pages in zip(contexts, want):
                self.expect(client, ctx, pages)
            self.assertEqual(error, [])
        stop.set()
        thread.join(60)
        self.assertEqual(error, [])


if __name__ == "__main__":
    vm.run_system([sys.argv[0], "-k", f"*.{CLASS}.*"])
