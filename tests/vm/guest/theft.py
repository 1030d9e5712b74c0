#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The bank and the thief in mode `nested`: two processes of two users on QEMU's edu, which goes through the thief's tables and
the bank's in turn. Everything that the thief tries is refused by the SMMU or by the daemon, the thief hears of its faults with
their addresses, and the bank hears of nothing.

Run by itself it is the test; as "theft.py bank|thief SOCKET" one of the two, which writes what it saw to its standard output.
"""

import json
import os
import select
import subprocess
import sys
import unittest

import vm
from edu import COMMANDS, COPY, DATA, EDU, FILL, LATE, PAGE, Space, command, pc

MODE = 5
SECRET = b"pin of the bank "
SURFACE = 0x5000000  # where the bank has its own
WINDOW, DESCRIPTORS, DOORBELL = 0x1000, 0x2000000, 0x8000040
READ, WRITE, FETCH = 1, 2, 4
UNMAPPED = 1
BANK, THIEF = 1001, 1002


# ---- the bank ----


def bank(socket):
    """Copies its secret from surface to surface until its standard input ends. Says its context, then what it saw."""
    with pc.Client(socket) as client:
        space = Space(client)
        fd, view = pc.memfd(4 * PAGE)
        view[:] = SECRET * (len(view) // len(SECRET))
        client.map(space.ctx, client.buf_import(fd)[0], 0, len(view), pc.READ | pc.WRITE | pc.FIXED, SURFACE)
        jobs = wrong = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            space.data[:PAGE] = bytes(PAGE)
            space.run(command(COPY, 0, DATA, SURFACE, PAGE), command(COPY, 0, SURFACE + PAGE, DATA, PAGE))
            wrong += view[:] != SECRET * (len(view) // len(SECRET)) or space.page(0) != view[:PAGE]
            jobs += 1
            if jobs == 1:
                print(json.dumps({"ctx": space.ctx}), flush=True)
        print(json.dumps({"jobs": jobs, "wrong": wrong, "events": len(client.events),
                          "faults": client.ctx_info(space.ctx)["faults"]}), flush=True)


# ---- the thief ----


class Thief:
    def __init__(self, socket, victim):
        self.client = pc.Client(socket)
        self.space = Space(self.client)
        self.victim = victim

    def faults(self, job, count):
        """(address, access, code) of those of a job, once there are so many."""
        found = set()
        while len(found) < count:
            _, _, faults = self.client.next_fault(30)
            found |= {fault[1:4] for fault in faults if fault[0] == job}
        return sorted(found)

    def attempt(self, *commands, expect):
        """Runs them; what they brought, and the faults that came of it, as many as are expected."""
        self.space.data[:] = bytes(len(self.space.data))
        job = self.space.run(*commands)
        return {"got": SECRET in self.space.data[:], "bytes": any(self.space.data[:]), "faults": self.faults(job, expect)}

    def refused(self, call, *args):
        try:
            call(*args)
        except pc.Refused as refusal:
            return refusal.code
        return 0

    def control(self):
        """Its own memory it may copy."""
        self.space.data[:PAGE] = b"\x5a" * PAGE
        self.space.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        return {"works": self.space.page(1) == b"\x5a" * PAGE}

    def copy(self):
        return self.attempt(command(COPY, 0, DATA, SURFACE, 16), command(COPY, 0, DATA + PAGE, SURFACE + PAGE, 16),
                            expect=2)

    def same_iova(self):
        """The bank works at DATA, too."""
        self.space.run(command(COPY, 0, DATA + PAGE, DATA, PAGE))
        return {"got": SECRET in self.space.data[:]}

    def unmapped(self):
        """What it has just used, and what it has unmapped while the bank was there."""
        fd, view = pc.memfd(PAGE)
        self.client.map(self.space.ctx, self.client.buf_import(fd)[0], 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
        self.space.run(command(FILL, 0x11111111, LATE, 0, PAGE), command(COPY, 0, DATA, LATE, PAGE))
        self.client.unmap(self.space.ctx, LATE, PAGE)
        seen = self.attempt(command(FILL, 0x22222222, LATE, 0, 16), command(COPY, 0, DATA, LATE, 16), expect=2)
        return {**seen, "kept": view[:] == b"\x11" * PAGE}

    def scan(self):
        places = [SURFACE + i * PAGE for i in range(-4, 8)]
        return self.attempt(*(command(COPY, 0, DATA + i * 16, at, 16) for i, at in enumerate(places)), expect=len(places))

    def scratch(self):
        """What the bank's last transfer left in the device, fetched by one that cannot be read from memory."""
        return self.attempt(command(COPY, 0, DATA, SURFACE, PAGE), expect=1)

    def fetch(self):
        """Commands at the bank's address: those that the daemon would read are the bank's."""
        job = self.client.submit(self.space.ctx, SURFACE, 32)
        assert self.client.wait(self.space.ctx, job, 30)
        return {"faults": self.faults(job, 1)}

    def bus(self):
        """Descriptors, by the bus address where they are."""
        return self.attempt(command(FILL, 0, DESCRIPTORS, 0, 64), command(COPY, 0, DATA, DESCRIPTORS, 64), expect=2)

    def windows(self):
        """What the device has in every address space: named by nobody."""
        self.space.data[:] = bytes(len(self.space.data))
        self.space.run(command(COPY, 0, DATA, WINDOW, 64), command(FILL, 1, WINDOW, 0, 64),
                       command(COPY, 0, DATA, DOORBELL, 4), command(FILL, 1, DOORBELL, 0, 4))
        return {"bytes": any(self.space.data[:])}

    def context_id(self):
        page = (self.victim, self.space.buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
        return {"codes": [self.refused(self.client.map, *page), self.refused(self.client.unmap, self.victim, SURFACE, PAGE),
                          self.refused(self.client.submit, self.victim, SURFACE, 32),
                          self.refused(self.client.ctx_free, self.victim)]}

    def fill(self):
        return self.attempt(command(FILL, 0xeeeeeeee, SURFACE, 0, 64), expect=1)


ATTEMPTS = ("control", "copy", "same_iova", "unmapped", "scan", "scratch", "fetch", "bus", "windows", "context_id", "fill")


def thief(socket):
    tool = Thief(socket, int(sys.stdin.readline()))
    for name in ATTEMPTS:
        print(json.dumps({name: getattr(tool, name)()}), flush=True)


# ---- the test ----


class Theft(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        device = vm.PciDevice(vm.pci_find(*EDU)[0])
        device.bind_vfio()
        cls.daemon = vm.Daemon({"name": "edu0", "spec": f"iommufd:{device.bdf}", "mode": "nested", "job_limit_ms": 60000})
        os.chmod(cls.daemon.directory, 0o755)
        with pc.Client(cls.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("edu0", MODE, 1)])

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def start(self, role, user):
        process = subprocess.Popen([sys.executable, __file__, role, self.daemon.socket], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, user=user, group=user, extra_groups=[])
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_theft(self):
        victim, robber = self.start("bank", BANK), self.start("thief", THIEF)
        ctx = json.loads(victim.stdout.readline())["ctx"]
        robber.stdin.write(f"{ctx}\n")
        robber.stdin.flush()
        seen = {}
        for line in robber.stdout:
            print(f"# {line}", end="", flush=True)
            seen.update(json.loads(line))
        self.assertEqual(robber.wait(), 0)
        victim.stdin.close()
        after = json.loads(victim.stdout.readline())
        print(f"# the bank: {after}")
        self.assertEqual(list(seen), list(ATTEMPTS))
        self.assertEqual((after["wrong"], after["events"], after["faults"]), (0, 0, 0))
        self.assertGreater(after["jobs"], len(ATTEMPTS))
        self.judge(seen)

    def judge(self, seen):
        def reads(*places):
            return [[at, READ, UNMAPPED] for at in places]

        def writes(*places):
            return [[at, WRITE, UNMAPPED] for at in places]

        nothing = {"got": False, "bytes": False}
        self.assertEqual(seen["control"], {"works": True})
        self.assertEqual(seen["copy"], {**nothing, "faults": reads(SURFACE, SURFACE + PAGE)})
        self.assertEqual(seen["same_iova"], {"got": False})
        self.assertEqual({**seen["unmapped"], "bytes": False},
                         {**nothing, "kept": True, "faults": reads(LATE) + writes(LATE)})
        self.assertEqual(seen["scan"], {**nothing, "faults": reads(*(SURFACE + i * PAGE for i in range(-4, 8)))})
        self.assertEqual(seen["scratch"], {**nothing, "faults": reads(SURFACE)})
        self.assertEqual(seen["fetch"]["faults"], [[SURFACE, FETCH, UNMAPPED]])
        self.assertEqual({**seen["bus"], "bytes": False}, {**nothing, "faults": reads(DESCRIPTORS) + writes(DESCRIPTORS)})
        self.assertEqual(seen["windows"], {"bytes": False})
        self.assertEqual(seen["context_id"], {"codes": [-2] * 4})
        self.assertEqual(seen["fill"], {**nothing, "faults": writes(SURFACE)})


if __name__ == "__main__":
    roles = {"bank": bank, "thief": thief}
    if sys.argv[1:2] and sys.argv[1] in roles:
        roles[sys.argv[1]](sys.argv[2])
    else:
        vm.main(sys.argv)
