# SPDX-License-Identifier: MIT
"""What clients see of a daemon that is killed, restarted and exchanged, with systemd as its service manager: a pause."""

import os
import random
import re
import statistics
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

import machine
import rig
import test_packages

sys.path.insert(0, str(rig.TOP / "tests/system"))

import harness  # noqa: E402

KILLS = int(os.environ.get("SERVICE_KILLS", 30))
SEED = int(os.environ.get("SEED", time.time_ns() % 2**32))
USERS = ("alice", "bob")
WORKERS, CONTEXTS, BUFFERS = 8, 3, 24
UNHURRIED = {"rate": 1000000}
STATUS = "/run/pasid-refgpu/status"
UNIT = "/etc/systemd/system/{}.service.d/test.conf"


def build_worker(tree):
    """tests/survive/worker.c with the library that is installed there. Its path in the tree."""
    library = next((Path(rig.INSTALLED) / "usr/lib").glob("*/libpasid.so.0"))
    subprocess.run(["cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", f"-I{rig.TOP}/include",
                    f"{rig.TOP}/tests/survive/worker.c", library, "-o", tree.path / "opt/worker"], check=True)
    return "/opt/worker"


class Worker:
    """A client that compares every byte, and works until it is told to end."""

    def __init__(self, case, user, seed):
        self.program = case.machine.popen("/opt/worker", "600", str(CONTEXTS), str(BUFFERS), str(seed), user=user, text=True,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        case.addCleanup(self.kill)
        self.case = case

    def kill(self):
        self.program.kill()
        self.program.communicate()

    def await_ready(self):
        line = self.program.stdout.readline()
        self.case.assertEqual(line, "ready\n", "" if line else self.program.stderr.read())

    def end(self):
        """What it did. That it saw nothing but pauses is what this is about."""
        out, err = self.program.communicate("", machine.COMMAND_SECONDS)
        self.case.assertEqual((self.program.returncode, err), (0, ""), out)
        words = out.split()
        return dict(zip(words[::2], map(int, words[1::2])))


class Survival(rig.Case):
    """A machine with the software GPU, whose status page is seen from here."""

    limits = {"connection": UNHURRIED, "uid": UNHURRIED}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        print(f"# seed {SEED}")
        build_worker(cls.tree)
        cls.machine.write(UNIT.format("pasid-refgpu"),
                          "[Service]\nExecStart=\nExecStart=/usr/bin/pasid-refgpu --socket /run/pasid-refgpu/socket "
                          f"--mode 0660 --slots 2 --status {STATUS}\n")
        cls.machine.say("systemctl", "daemon-reload")
        cls.configure(devices=[rig.GPU], limits=cls.limits)
        cls.start_gpu()

    def setUp(self):
        self.random = random.Random(SEED)
        self.machine.say("systemctl", "start", "pasidd")
        self.client("devices", "1")

    def outside(self, pid):
        """The number on this machine of a process of that one."""
        children = Path("/proc").glob("[0-9]*/status")
        for status in children:
            try:
                if f"NSpid:\t{status.parent.name}\t{pid}\n" in status.read_text(encoding="utf-8"):
                    return int(status.parent.name)
            except OSError:
                continue
        raise machine.Failed(f"process {pid} of the machine is not to be seen from here")

    def kill(self):
        """Kills whoever is the daemon now. The pid in the machine; 0: there was none."""
        pid = self.machine.main_pid("pasidd")
        if pid:
            self.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pasidd", check=False)
        return pid

    def await_another(self, pid):
        """Waits for the daemon to be another process than this one, and ready."""
        machine.wait_until(lambda: self.machine.main_pid("pasidd") not in (0, pid)
                           and self.machine.state("pasidd") == "active", "another daemon")

    def kill_and_await(self):
        self.await_another(self.kill())

    def counts(self):
        """What there is, seen from outside; the same whenever nobody is connected. A shelf of the vault is one fd of the
        store and two of the daemon; how many there are depends on what was there before."""
        pid = self.machine.main_pid("pasidd")
        proc = Path(f"/proc/{self.outside(pid)}")
        environment = dict(v.split("=", 1) for v in (proc / "environ").read_text(encoding="utf-8").split("\0") if v)
        kinds = [name[0] for name in environment.get("LISTEN_FDNAMES", "").split(":") if name != "pasidd.socket"]
        shelves = kinds.count("+")
        stored = int(self.machine.show("pasidd", "NFileDescriptorStore"))
        infos = "".join(path.read_text(encoding="ascii") for path in (proc / "fdinfo").iterdir())
        # As struct refgpu_status has them.
        status = harness._STATUS.unpack(self.machine.path(STATUS).read_bytes()[:harness._STATUS.size])
        status = dict(zip(harness._STATUS_HEAD + harness._STATUS_COUNTERS, status))
        gpu = self.outside(self.machine.main_pid("pasid-refgpu"))
        return {"handed over": sorted(k for k in kinds if k != "+"), "stored": stored - shelves,
                "fds": len(os.listdir(proc / "fd")) - 2 * shelves,
                "fds of process 1": len(os.listdir(f"/proc/{self.machine.leader}/fd")) - shelves,
                "in flight": sum(map(int, re.findall(r"scm_fds:\s*(\d+)", infos))),
                "fds of the GPU": len(os.listdir(f"/proc/{gpu}/fd")),
                **{key: status[key] for key in ("dma_maps", "dma_bytes")}}

    def rest(self):
        """What there is with nobody connected: in a successor of a daemon at rest, for what it was handed is what is kept."""
        self.settled()
        self.kill_and_await()
        self.client("devices", "1")
        return self.settled()

    def settled(self):
        seen = []

        def same():
            try:
                seen.append(self.counts())
            except OSError:  # something went just then
                seen.clear()
            return len(seen) > 15 and all(one == seen[-1] for one in seen[-15:])

        machine.wait_until(same, "a daemon at rest")
        return seen[-1]

    def workers(self):
        workers = [Worker(self, USERS[i % len(USERS)], SEED + i) for i in range(WORKERS)]
        for worker in workers:
            worker.await_ready()
        return workers

    def end(self, workers):
        ends = [worker.end() for worker in workers]
        for end in ends:
            self.assertGreater(end["jobs"], 0)
            self.assertGreater(end["resumed"], 0)
        return ends


class Kills(Survival):
    def test_random_moments(self):
        """Nobody sees an error, every byte is right, and afterwards all is as it was."""
        before = self.rest()
        restarts = self.restarts()
        workers = self.workers()
        done = 0
        for _ in range(KILLS):
            time.sleep(self.random.random() * 0.5)  # the moment
            pid = self.kill()
            machine.wait_until(lambda pid=pid: self.machine.main_pid("pasidd") not in (0, pid), "a successor")
            done += bool(pid)
        ends = self.end(workers)
        self.assertGreaterEqual(self.restarts(), restarts + done)
        self.assertEqual(self.rest(), before)
        print(f"figure: {done} kills under load: {sum(e['steps'] for e in ends)} steps, {sum(e['jobs'] for e in ends)} jobs, a step "
              f"{statistics.median(e['median-us'] for e in ends) / 1000:.1f} ms, the longest "
              f"{max(e['worst-us'] for e in ends) / 1000:.0f} ms", flush=True)


if __name__ == "__main__":
    unittest.main()
