# SPDX-License-Identifier: MIT
"""What clients see of a daemon that is killed, restarted and exchanged, with systemd as its service manager: a pause."""

import contextlib
import errno
import json
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

import machine
import rig

sys.path[:0] = [str(rig.TOP / "tests/system"), str(rig.TOP / "tests/survive")]

import harness  # noqa: E402
import workers  # noqa: E402

KILLS = int(os.environ.get("SERVICE_KILLS", 30))
SEED = int(os.environ.get("SEED", time.time_ns() % 2**32))
USERS = ("alice", "bob")
QUIET_SECONDS = 2  # nothing changes any more: what the vault dropped is gone after one
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
        self.gpu = self.outside("pasid-refgpu")

    def properties(self, unit, *names):
        said = self.machine.say("systemctl", "show", *(f"--property={name}" for name in names), unit)
        return dict(line.split("=", 1) for line in said.splitlines())

    def outside(self, unit):
        """The number on this machine of a unit's main process; 0: there is none."""
        found = self.properties(unit, "MainPID", "ControlGroup")
        try:
            processes = self.machine.path(f"/sys/fs/cgroup{found['ControlGroup']}/cgroup.procs").read_text(encoding="ascii")
            for one in processes.split():
                if f"NSpid:\t{one}\t{found['MainPID']}\n" in Path(f"/proc/{one}/status").read_text(encoding="utf-8"):
                    return int(one)
        except OSError:
            pass
        return 0

    def kill(self):
        """Kills the process that is the daemon now. Its number in the machine; 0: there was none."""
        pid, outside = self.machine.main_pid("pasidd"), self.outside("pasidd")
        if not outside:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(outside, signal.SIGKILL)
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
        proc = Path(f"/proc/{self.outside('pasidd')}")
        environment = dict(v.split("=", 1) for v in (proc / "environ").read_text(encoding="utf-8").split("\0") if v)
        names = environment.get("LISTEN_FDNAMES", "").split(":")
        kinds = sorted(name[0] for name in names if name != "pasidd.socket" and name[0] != "+")
        shelves = int(self.machine.show("pasidd", "NFileDescriptorStore")) - len(kinds)
        infos = ""
        for path in (proc / "fdinfo").iterdir():
            with contextlib.suppress(OSError):  # it went just now
                infos += path.read_text(encoding="ascii")
        # As struct refgpu_status has them.
        status = harness._STATUS.unpack(self.machine.path(STATUS).read_bytes()[:harness._STATUS.size])
        status = dict(zip(harness._STATUS_HEAD + harness._STATUS_COUNTERS, status))
        return {"handed over": kinds, "fds": len(os.listdir(proc / "fd")) - 2 * shelves,
                "in flight": sum(map(int, re.findall(r"scm_fds:\s*(\d+)", infos))),
                "fds of the GPU": len(os.listdir(f"/proc/{self.gpu}/fd")),
                **{key: status[key] for key in ("dma_maps", "dma_bytes")}}

    def others_of_process_1(self):
        """fds of process 1 that are not in our store. Whoever asks it something is one of them for a moment."""
        return len(os.listdir(f"/proc/{self.machine.leader}/fd")) - int(self.machine.show("pasidd", "NFileDescriptorStore"))

    def rest(self):
        """What there is with nobody connected: in a successor, for what it was handed is what is kept."""
        self.kill_and_await()
        self.client("devices", "1")
        seen, since, self.others = None, 0, 1 << 20

        def same():
            nonlocal seen, since
            found = self.counts()
            self.others = min(self.others, self.others_of_process_1())
            if found != seen:
                seen, since = found, time.monotonic()
            return time.monotonic() - since > QUIET_SECONDS

        machine.wait_until(same, "a daemon at rest")
        return seen

    def assert_rest(self, before):
        """All is as it was: once everything has gone where it goes, and in a successor. The daemon may have fewer fds, for some
        it opens when it needs them."""
        found = {}

        def back(*names):
            found.update(self.counts())
            found["fds"] = max(found["fds"], before["fds"])
            return all(found[name] == before[name] for name in names)

        for names in ("in flight", "dma_maps", "dma_bytes"), before:
            with contextlib.suppress(machine.Failed):
                machine.wait_until(lambda names=names: back(*names), "back to the beginning")
            self.assertEqual({name: found[name] for name in names}, {name: before[name] for name in names})
            self.kill_and_await()
            self.client("devices", "1")
        machine.wait_until(lambda: self.others_of_process_1() <= self.others, "process 1 without fds of ours")

    def workers(self):
        def start(user):
            return lambda *args, **pipes: self.machine.popen("/opt/worker", *args, user=user, **pipes)

        return workers.begin([workers.Worker(self, start(USERS[i % len(USERS)]), CONTEXTS, BUFFERS, SEED + i, 600)
                              for i in range(WORKERS)])


class Kills(Survival):
    def test_random_moments(self):
        """Nobody sees an error, every byte is right, and afterwards all is as it was."""
        before = self.rest()
        restarts = self.restarts()
        crowd = self.workers()
        done = 0
        for _ in range(KILLS):
            time.sleep(self.random.random() * 0.5)  # the moment
            pid = self.kill()
            machine.wait_until(lambda pid=pid: self.machine.main_pid("pasidd") not in (0, pid), "a successor")
            done += bool(pid)
        ends = [worker.end(machine.COMMAND_SECONDS) for worker in crowd]
        self.assertGreaterEqual(self.restarts(), restarts + done)
        self.assert_rest(before)
        print(f"figure: {done} kills under load: {sum(e['steps'] for e in ends)} steps, {sum(e['jobs'] for e in ends)} jobs, a step "
              f"{statistics.median(e['median-us'] for e in ends) / 1000:.1f} ms, the longest "
              f"{max(e['worst-us'] for e in ends) / 1000:.0f} ms", flush=True)


class Exchange(Survival):
    def test_restart_reload_and_packages(self):
        """The daemon is restarted, told to read its configuration, and exchanged for a later one and back, under load."""
        now, later = self.packages()
        before = self.rest()
        crowd = self.workers()
        for _ in range(3):
            pid = self.machine.main_pid("pasidd")
            self.machine.say("systemctl", "restart", "pasidd")
            self.assertNotIn(self.machine.main_pid("pasidd"), (0, pid))
            self.machine.say("systemctl", "reload", "pasidd")
        for packages in (later, now) * 2:
            pid = self.machine.main_pid("pasidd")
            self.machine.say("dpkg", "--install", *packages)
            found = self.machine.main_pid("pasidd")
            self.assertNotIn(found, (0, pid), self.machine.journal("pasidd") if not found else "")
        ends = [worker.end(machine.COMMAND_SECONDS) for worker in crowd]
        self.assert_rest(before)
        print(f"figure: 3 restarts, 3 reloads, 2 upgrades and 2 downgrades under load: the longest step "
              f"{max(e['worst-us'] for e in ends) / 1000:.0f} ms", flush=True)


BARE = """[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=all
Restart=always
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'
"""


class Pauses(Survival):
    """How long it takes, beside a service that does nothing. No time is asserted: they are for docs/performance.md."""

    TIMES = 10

    def setUp(self):
        super().setUp()
        self.machine.write("/etc/systemd/system/bare.service", BARE)
        self.machine.say("systemctl", "daemon-reload")
        self.machine.say("systemctl", "start", "bare")
        self.probe = self.machine.popen("python3", "/opt/guest/pauses.py", user="alice", text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(self.probe.communicate)
        self.assertEqual(self.probe.stdout.readline(), "begun\n")

    def cpu(self):
        """ns that process 1 has run."""
        return int(Path(f"/proc/{self.machine.leader}/schedstat").read_text(encoding="ascii").split()[0])

    def active_since(self, unit):
        return int(self.machine.show(unit, "ActiveEnterTimestampMonotonic")) / 1e6

    def kill_it(self, _, outside):
        os.kill(outside, signal.SIGKILL)

    def restart_it(self, unit, _):
        self.machine.say("systemctl", "restart", unit)

    def await_bare(self, group, before):
        """Waits until the service that does nothing has said that it is ready, without asking process 1."""
        def sleeps():
            try:
                found = self.machine.path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text(encoding="ascii").split()
                return any(int(pid) != before and Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") == "sleep\n"
                           for pid in found)
            except OSError:
                return False

        machine.wait_until(sleeps, "the service that does nothing")

    def again(self, end, unit):
        """Ends it, and waits. ms until it was active again; what process 1 ran meanwhile; what the client saw of that if it is
        our daemon."""
        is_ours, since, outside = unit == "pasidd", self.active_since(unit), self.outside(unit)
        group = self.machine.show(unit, "ControlGroup")
        if is_ours:
            self.probe.stdin.write("\n")
            self.probe.stdin.flush()
            self.assertEqual(self.probe.stdout.readline(), "looking\n")
        cpu, begun = self.cpu(), time.monotonic()
        end(unit, outside)
        seen = float(self.probe.stdout.readline()) if is_ours else self.await_bare(group, outside) or 0
        cpu = self.cpu() - cpu
        machine.wait_until(lambda: self.active_since(unit) not in (0, since), "another one")
        return 1000 * (self.active_since(unit) - begun), cpu / 1e6, 1000 * seen

    def test_pauses(self):
        for end, how in ((self.kill_it, "killed"), (self.restart_it, "restarted")):
            for unit in ("bare", "pasidd"):
                active, cpu, seen = zip(*(self.again(end, unit) for _ in range(self.TIMES)))
                line = f"figure: {unit} {how} {self.TIMES} times: active again after {self.of(active)}; process 1 ran {self.of(cpu)}"
                print(line + (f"; a client waited {self.of(seen)}" if unit == "pasidd" else ""), flush=True)

    @staticmethod
    def of(times):
        return f"{statistics.median(times):.0f} ms, at worst {max(times):.0f} ms"


class Identity(Survival):
    def test_who_asked_the_bus_for_a_connection(self):
        """It is his, with his limits, before and after: not the daemon's, whose socket pair it is."""
        bob = int(self.machine.say("id", "-u", "bob"))
        self.configure(devices=[rig.GPU], limits={"uids": [{"uid": bob, "limits": {"contexts": 2}}]})
        self.machine.say("systemctl", "reload", "pasidd")
        strangers = []

        def look():
            """What each of them has; one more of him, who comes now, has none."""
            strangers.append(self.machine.popen("python3", "/opt/guest/stranger.py", user="bob", text=True,
                                                stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            self.addCleanup(strangers[-1].communicate)
            found = []
            for stranger in strangers:
                stranger.stdin.write("\n")
                stranger.stdin.flush()
                found.append(json.loads(stranger.stdout.readline()))
                self.assertEqual((found[-1]["used"], found[-1]["limit"]), (2, 2))
            self.assertEqual([len(one["contexts"]) for one in found], [2] + [0] * (len(found) - 1))
            path = f"/org/pasidd/context/{found[0]['contexts'][0]}"
            said = self.machine.say("busctl", "get-property", "org.pasidd", path, "org.pasidd.Context1", "OwnerUid", "OwnerPid")
            return found[0], said.splitlines()

        before = look()
        self.assertEqual(before[1][0], f"u {bob}")
        for end in ("restart",), ("kill", "--kill-whom=main", "--signal=KILL"):
            pid = self.machine.main_pid("pasidd")
            self.machine.say("systemctl", *end, "pasidd")
            self.await_another(pid)
            self.assertEqual(look(), before)


class Stuck(Survival):
    def test_file_that_cannot_be_closed(self):
        """The daemon's child that closes it hangs beyond SIGKILL. Another daemon is there as soon as without."""
        self.machine.run("mknod", "-m", "666", "/dev/fuse", "c", "10", "229", check=False)
        stuck = self.machine.popen("python3", "/opt/guest/stuck.py", text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(stuck.communicate)
        line = stuck.stdout.readline()
        if not line:
            why = stuck.stderr.read()
            if why.startswith("unavailable: "):
                self.skipTest(why.strip())
            self.fail(why)
        for end in ("kill", "--kill-whom=main", "--signal=KILL"), ("restart",):
            pid, begun = self.machine.main_pid("pasidd"), time.monotonic()
            self.machine.say("systemctl", *end, "pasidd")
            self.await_another(pid)
            print(f"figure: {end[0]} with a child that hangs: another daemon after {1000 * (time.monotonic() - begun):.0f} ms",
                  flush=True)
            stuck.stdin.write("\n")
            stuck.stdin.flush()
            self.assertEqual(stuck.stdout.readline(), "ok\n")
        self.assertEqual(self.machine.show("pasidd", "Result"), "success")


class Full(Survival):
    ROOM = 40

    def test_fd_store(self):
        """Nobody else may connect, and is told why. Those who are there go on, over a daemon's death, too."""
        # As systemd 254 says it by itself.
        self.machine.write(UNIT.format("pasidd"), f"[Service]\nFileDescriptorStoreMax={self.ROOM}\nEnvironment=FDSTORE={self.ROOM}\n")
        self.machine.say("systemctl", "daemon-reload")
        self.machine.say("systemctl", "stop", "pasidd")
        self.client("devices", "1")
        crowd = self.machine.popen("python3", "/opt/guest/crowd.py", user="alice", text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        self.addCleanup(crowd.communicate)
        connections, code, _, kept, limit = json.loads(crowd.stdout.readline())
        self.assertEqual((code, kept), (-errno.EDQUOT, limit))
        self.assertLess(limit, self.ROOM)
        self.assertGreater(connections, self.ROOM // 2)
        done = self.machine.run("/opt/worker", "1", "1", "1", "1", user="bob", check=False)
        self.assertIn(f"the service manager keeps {kept} fds for pasidd, and has no connection beyond {limit}; try again when others "
                      "have left, or raise FileDescriptorStoreMax= of pasidd.service", done.stdout)
        self.machine.await_journal("pasidd", f"refused: the service manager keeps {kept} fds", "raise FileDescriptorStoreMax=")
        for _ in range(2):
            crowd.stdin.write("\n")
            crowd.stdin.flush()
            self.assertEqual(crowd.stdout.readline(), "ok\n")
            self.kill_and_await()
        crowd.communicate()
        self.assertIn("ok", self.client("fill", user="bob").stdout)


if __name__ == "__main__":
    unittest.main()
