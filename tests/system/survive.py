# SPDX-License-Identifier: MIT
"""A stack whose daemon is killed over and over while its socket stays, clients that work meanwhile, and what is counted of
it from outside."""

import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "survive")]

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import supervised  # noqa: E402
import work  # noqa: E402
import workers  # noqa: E402
from supervised import supervisor  # noqa: E402

UIDS = (1, 2, 3)  # that every Debian knows
RATE = 1000000
TABLES_CHUNK = 4 << 20  # bytes
LIMITS = {"connection": {"rate": RATE}, "uid": {"rate": RATE}}


class Stack(supervised.Stack):
    """The manager listens for the daemon, so that nobody is refused while it is dead. Anybody may connect."""

    def __init__(self, devices=None, limits=None, **options):
        super().__init__(devices, config={"limits": limits or LIMITS, **options.pop("config", {})}, **options)

    def write_config(self):
        os.chmod(self.dir, 0o711)
        self.sockets = [("pasidd.socket", supervisor.listen_at(self.socket))]
        os.chmod(self.socket, 0o666)
        super().write_config()

    def stop(self):
        try:
            super().stop()
        finally:
            for _, listening in self.sockets:
                listening.close()
            self.sockets = ()

    def connect(self):
        """A client. What was accepted and not greeted yet ends with a daemon, and is tried again as libpasid does."""
        for _ in range(5):
            try:
                return pc.Client(self.socket)
            except (ConnectionResetError, BrokenPipeError):
                pass
        raise harness.HarnessError(f"five connections in a row ended before they were greeted\n{self.log_tail()}")

    def kill_and(self, meanwhile):
        """Kills the daemon, does something while nobody is there, and waits for the successor."""
        self.manager.meanwhile = meanwhile
        self.kill_daemon()

    def everything(self):
        """What has to be the same when all clients have left: what the daemon and its GPU have, how many fds are in the
        store, by their kind, and how many wait in the vault's shelves. How many shelves there are depends on what was
        there before; the daemon has two fds of each."""
        all_of_it = {**self.snapshot(), "in flight": 0}
        # What page tables once needed stays mapped.
        grown = all_of_it["dma_bytes"] // TABLES_CHUNK
        all_of_it["dma_maps"] -= grown
        all_of_it["dma_bytes"] -= grown * TABLES_CHUNK
        for name, fd in list(self.manager.store.entries):
            if name[0] == "+":
                all_of_it["in flight"] += in_flight(fd)
                all_of_it["fds"] -= 2
            else:
                all_of_it[name[0]] = all_of_it.get(name[0], 0) + 1
        return all_of_it

    def rest(self):
        """What there is once nothing changes any more; the vault takes a second to let go of the last ones."""
        return work.settled(self.everything, "a daemon at rest", times=300)

    def said(self, *words):
        return [line for line in self.log_tail(None).splitlines() if all(word in line for word in words)]


class OrderedTest(unittest.TestCase):
    """Stacks whose next daemon is followed by tests/survive/every_call.c if `orders` is there, and killed as it says."""

    def setUp(self):
        print(f"# seed {work.SEED}")
        self.random = random.Random(work.SEED)
        directory = tempfile.TemporaryDirectory(prefix="pasidd-orders-")
        self.addCleanup(directory.cleanup)
        self.orders = Path(directory.name, "orders")

    def start_stack(self):
        stack = Stack(wrapper=[harness.program("EVERY_CALL"), "start", str(self.orders)])
        self.addCleanup(stack.stop)
        return stack.__enter__()


def in_flight(fd):
    """fds in messages that wait in a socket's queue; none if it was closed just now."""
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^scm_fds:\s*(\d+)", info, re.M)
    return int(found.group(1)) if found else 0


class Rig:
    """A client with a context that has done work, and what became of it."""

    def __init__(self, stack):
        self.client = stack.connect()
        stack.await_device(self.client)
        self.space = work.Space(self.client)
        self.value = 100
        self.fill()

    def close(self):
        self.space.close()
        self.client.close()

    def fill(self):
        """A job that arrives where it should, and nowhere else."""
        self.value += 1
        before = self.space.data[:]
        assert self.space.wait(self.space.submit(self.space.fill(3, self.value))), "the context is lost"
        expected = before[:3 * work.PAGE] + work.page_of(self.value) + before[4 * work.PAGE:]
        assert self.space.data[:] == expected, "memory is not what it should be"

    def fate(self):
        """"kept": all is as it was, and works. "lost": the context is, and the fence line says so. "gone": the connection has
        ended; "told": and the fence line says that the context is lost."""
        try:
            state = self.client.ctx_info(self.space.ctx)["state"]
        except (ConnectionResetError, BrokenPipeError):
            return "told" if self.space.lost else "gone"
        if state:
            harness.wait_until(lambda: self.space.lost, "a fence line that says what CTX_INFO does; its work is stopped before")
            return "lost"
        try:
            self.fill()
        except pc.Refused as refused:
            assert refused.code == -5, refused  # lost just now
            return "lost"
        return "kept"


def workers_of(case, stack, number, contexts, buffers):
    """tests/survive/workers.py, under uids in turn if we may."""
    def start(uid):
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if os.geteuid() == 0 else []
        return lambda *args, **pipes: subprocess.Popen([*become, harness.program("SURVIVE_WORKER"), *args],
                                                       env=dict(os.environ, PASIDD_SOCKET=stack.socket), **pipes)

    return workers.begin([workers.Worker(case, start(UIDS[i % len(UIDS)]), contexts, buffers, work.SEED + i)
                          for i in range(number)])
