#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The bank and the thief on one GPU.

Starts pasid-refgpu and pasidd in a temporary directory, then the bank, then the thief; counts the bytes that the thief
got and the bytes of the bank that it changed, by looking at the bank's surface after each attempt. Counting is done
here, from the bytes that the two programs left behind: the thief's own opinion of its success is printed and not
believed. With --device the GPU is a PCI device that is there already, bound to vfio-pci.

Exit status: 0 nothing leaked, 1 something leaked, 2 it could not be run.
"""

import argparse
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

TIME_LIMIT = 55  # seconds, for everything
SLOTS = 2
BANK_UID, THIEF_UID = 61001, 61002

# As in demo.h.
BANK_SURFACE = 0x200000000
POISON = 0xEE
OWN = 0x5A

MODES = {1: "gpu-mmu", 2: "global"}
ACCESS = {1: "read", 2: "write", 4: "fetch"}
CODES = {1: "unmapped", 2: "permission", 3: "address", 4: "bus", 5: "privileged", 6: "command", 7: "other"}

# Name, what the thief tries, and whether a try that completes is no breach in itself, because the thief may do that
# much: then only the bytes that it got by it count.
ATTEMPTS = [
    ("control", "copy its own bytes (must work)", True),
    ("copy", "copy from the bank's addresses", False),
    ("same-iova", "read the IOVA that the bank uses", True),
    ("unmapped", "read and write what it just unmapped", False),
    ("scan", "scan around the bank's buffers", False),
    ("scratch", "read scratch memory on each slot", True),
    ("fetch", "run commands at the bank's address", False),
    ("bus", "reach rings, fences, tables by bus address", False),
    ("privileged", "load a page table (SET_TTBR)", False),
    ("context-id", "use the bank's context id", False),
    ("fill", "FILL over the bank's surface", False),
    ("atomic", "ATOMIC on the bank's surface", False),
    ("blit", "BLIT over the bank's surface", False),
]
SCRIBBLES = ("fill", "atomic", "blit")  # attempts that want to change something


class CannotRun(Exception):
    """Why there is no verdict."""


def on_alarm(_signal, _frame):
    raise CannotRun(f"not done after {TIME_LIMIT} s")


def on_terminate(_signal, _frame):
    raise CannotRun("it was told to end")


class Process:
    """A child with its output in a file or on a pipe."""

    def __init__(self, name, argv, log, user=None, **options):
        self.name = name
        self.user = user
        if user is not None:
            options.update(user=user, group=user, extra_groups=[])
        with open(log, "ab") as err:
            self.popen = subprocess.Popen(argv, stderr=err, **options)
        self.pid = self.popen.pid
        self.log = log

    def end(self, timeout=10):
        """Asks it to end. Returns its exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise CannotRun(f"{self.name} did not end when asked to") from None

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


class Records:
    """The records of a program, read line by line."""

    def __init__(self, process):
        self.process = process
        self.all = []

    @staticmethod
    def parse(line):
        fields = line.rstrip("\n").split("\t")
        return fields[0], dict(f.split("=", 1) for f in fields[1:] if "=" in f)

    def read_until(self, *kinds):
        """Reads up to the first record of one of these kinds and returns it, with its kind."""
        for line in self.process.popen.stdout:
            name, fields = self.parse(line)
            self.all.append((name, fields))
            if name == "died":
                raise CannotRun(f"the {self.process.name} could not {fields.get('what')}: {fields.get('text')} "
                                f"({fields.get('code')})")
            if name in kinds:
                return name, fields
        status = self.process.popen.wait()
        raise CannotRun(f"the {self.process.name} ended with status {status} before it said \"{kinds[0]}\"")

    def tell(self, line):
        self.process.popen.stdin.write(line + "\n")
        self.process.popen.stdin.flush()

    def of(self, kind):
        return [fields for name, fields in self.all if name == kind]


def wait_readable(fd, process, what):
    """Waits until fd has something to read, or process has ended."""
    end = os.pidfd_open(process.pid)
    try:
        ready, _, _ = select.select([fd, end], [], [])
    finally:
        os.close(end)
    if fd not in ready:
        raise CannotRun(f"{process.name} ended with status {process.popen.wait()} before {what}")


class ProcessGpu:
    """pasid-refgpu, started for this run."""

    device_config = {}

    def __init__(self, stage):
        self.page = stage.top / "device/status"
        self.spec = f"vfio-user:{stage.top}/device/gpu"
        read, write = os.pipe()
        self.process = stage.start("pasid-refgpu", [
            stage.args.build / "tests/refgpu/pasid-refgpu", "--socket", stage.top / "device/gpu",
            "--slots", str(SLOTS), "--status", self.page, "--ready-fd", str(write)
        ], pass_fds=[write], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=stage.env)
        os.close(write)
        try:
            wait_readable(read, self.process, "it was ready")
            if not os.read(read, 1):
                raise CannotRun("pasid-refgpu closed its ready pipe without a word")
        finally:
            os.close(read)

    def __str__(self):
        return f"pasid-refgpu (pid {self.process.pid})"

    def status_page(self):
        return self.page.read_bytes()


class PciGpu:
    """The reference GPU as a PCI device, such as a virtual machine has one; its status page is BAR 2."""

    device_config = {"answer_ms": 10000}  # the processor may be emulated
    process = None

    def __init__(self, stage):
        self.spec = stage.args.device
        self.bdf = self.spec.partition(":")[2]

    def __str__(self):
        return f"pasid-refgpu (PCI device {self.bdf})"

    def status_page(self):
        with open(f"/sys/bus/pci/devices/{self.bdf}/resource2", "rb") as bar, \
                mmap.mmap(bar.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            return page[:]


class Stage:
    """The GPU, the daemon, and the two programs, for one run."""

    def __init__(self, args, top):
        self.args = args
        self.top = top
        self.isolated = not args.no_isolation
        self.children = []
        self.env = dict(os.environ, PASIDD_SOCKET=str(top / "socket"))
        for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"):
            self.env.pop(name, None)
        self.uids = (BANK_UID, THIEF_UID) if os.geteuid() == 0 else (None, None)
        top.chmod(0o711)
        for name in ("device", "log"):
            (top / name).mkdir(mode=0o700)

    def start(self, name, argv, **options):
        child = Process(name, argv, self.top / "log" / name, **options)
        self.children.append(child)
        return child

    def start_daemon(self):
        config = self.top / "config.json"
        config.write_text(json.dumps({
            "socket": {"path": str(self.top / "socket"), "mode": "0666"},
            "bus": "none",
            "devices": [{
                "name": "gpu0",
                "spec": self.gpu.spec,
                "mode": "gpu-mmu" if self.isolated else "global",
                "slots": SLOTS,
                **self.gpu.device_config,
            }],
        }, indent=2) + "\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(self.top / "device/notify"))
            self.daemon = self.start("pasidd", [self.args.build / "daemon/pasidd", "--config", config],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     env=dict(self.env, NOTIFY_SOCKET=str(self.top / "device/notify")))
            said = b""
            while b"READY=1" not in said:
                wait_readable(notify, self.daemon, "it was ready")
                said = notify.recv(4096)

    def programs(self):
        """Where the two programs lie so that their users reach them, and the environment for that."""
        here = self.args.build / "tests/system/demo"
        library = self.args.build / "client"
        if self.uids[0] is None or all(p.stat().st_mode & 1 for p in [here, *here.resolve().parents]):
            return here, self.env
        there = self.top / "bin"
        there.mkdir(mode=0o755)
        for path in [here / "demo-bank", here / "demo-thief", *library.glob("libpasid.so*")]:
            if path.is_file():
                shutil.copy(path, there / path.name)
                (there / path.name).chmod(0o755)
        return there, dict(self.env, LD_LIBRARY_PATH=str(there))

    def start_program(self, name, uid, *argv):
        directory = self.top / name
        directory.mkdir(mode=0o700)
        if uid is not None:
            os.chown(directory, uid, uid)
        programs, env = self.programs_at
        child = self.start(name, [programs / f"demo-{name}", directory, *argv], user=uid, env=env, text=True,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        return Records(child)

    def status(self):
        """The GPU's own counters."""
        names = ("resets tlb_hits tlb_misses walks stale_hits tlb_entries conflicts faults switches jobs invalidations "
                 "scrubs dma_maps dma_bytes clients malformed").split()
        data = self.gpu.status_page()
        counters = dict(zip(names, struct.unpack_from(f"<{len(names)}Q", data, 16)))
        counters["slot_switches"] = struct.unpack_from(f"<{SLOTS}Q", data, 16 + 8 * len(names))
        return counters

    def run(self):
        self.programs_at = self.programs()
        self.gpu = PciGpu(self) if self.args.device else ProcessGpu(self)
        self.start_daemon()
        self.bank = self.start_program("bank", self.uids[0])
        self.ready = self.bank.read_until("ready")[1]
        self.damage = Damage((self.top / "bank/truth.bin").read_bytes())
        if self.damage.add("nobody", self.look()):
            raise CannotRun("the bank's surface is not as drawn before the thief has come")
        self.before = self.status()
        self.thief = self.start_program("thief", self.uids[1], self.ready["ctx"])
        self.watch_thief()
        self.after = self.status()
        self.bank.tell("end")
        self.checked = self.bank.read_until("checked")[1]
        self.damage.add("the end", (self.top / "bank/surface.bin").read_bytes())
        for records in (self.bank, self.thief):
            status = records.process.popen.wait(10)
            if status:
                raise CannotRun(f"the {records.process.name} ended with status {status}")
        self.end_services()

    def look(self):
        """The bank's surface as it is now."""
        self.bank.tell("look")
        self.bank.read_until("looked")
        return (self.top / "bank/surface.bin").read_bytes()

    def watch_thief(self):
        """One attempt after the other: the next one only when it has been seen what the last one has changed."""
        while True:
            kind, fields = self.thief.read_until("attempt", "end")
            if kind == "end":
                return
            self.damage.add(fields["name"], self.look())
            self.thief.tell("")

    def end_services(self):
        for child in filter(None, (self.daemon, self.gpu.process)):
            if child.popen.poll() is not None:
                raise CannotRun(f"{child.name} ended by itself with status {child.popen.returncode}")
            status = child.end()
            if status not in (0, -signal.SIGTERM):
                raise CannotRun(f"{child.name} ended with status {status} when asked to end")

    def clean_up(self):
        for child in reversed(self.children):
            child.kill()

    def show_logs(self):
        """The end of what each program said on stderr."""
        for path in sorted((self.top / "log").iterdir()):
            for line in path.read_text(errors="replace").splitlines()[-20:]:
                complain(f"{path.name}: {line}", sys.stderr)


class Damage:
    """Bytes of the bank's surface that stopped being as drawn, by the attempt after which that was so."""

    def __init__(self, truth):
        self.truth = self.last = truth
        self.by = {}
        self.mended = 0  # bytes that an attempt changed back into what they had been, by chance

    def add(self, attempt, surface):
        """Looks at the surface after an attempt. Returns how many bytes have changed that had not."""
        if len(surface) != len(self.truth):
            raise CannotRun("the surfaces have different sizes")
        changed = 0
        for at in range(0, len(surface), 4096):
            now, last = surface[at:at + 4096], self.last[at:at + 4096]
            if now != last:
                for old, new, true in zip(last, now, self.truth[at:at + 4096]):
                    changed += old == true != new
                    self.mended += old != true == new
        self.last = surface
        self.by[attempt] = self.by.get(attempt, 0) + changed
        return changed

    @property
    def total(self):
        return sum(self.by.values())


class Count:
    """What the thief holds, by the bank's truth."""

    def __init__(self, stage):
        self.truth = stage.damage.truth
        self.damage = stage.damage
        self.loot = (stage.top / "thief/loot.bin").read_bytes()
        self.stash = (stage.top / "thief/stash.bin").read_bytes()
        if len(self.truth) != len(self.loot):
            raise CannotRun("the surfaces have different sizes")
        if {0, OWN, POISON} & set(self.truth):
            raise CannotRun("the statement contains bytes that mark memory")
        self.held = bytearray(len(self.truth))  # 1: the thief holds this byte
        self.stolen = {}  # attempt: statement bytes
        self.foreign = {}  # attempt: bytes that are neither the thief's nor of the statement
        self.count("copy", self.loot, BANK_SURFACE, {POISON})
        for part in stage.thief.of("stash"):
            off, length = int(part["off"]), int(part["len"])
            innocent = {POISON}
            if part["attempt"] == "same-iova":
                innocent.add(OWN)
            if part["attempt"] == "scratch":
                innocent.add(0)
            self.count(part["attempt"], self.stash[off:off + length], int(part["iova"], 16), innocent)
        self.changed = sum(a != b for a, b in zip(self.damage.last, self.truth))

    def count(self, attempt, data, iova, innocent):
        """Adds up bytes that came from iova on."""
        stolen = foreign = 0
        if data.count(POISON) != len(data):
            for i, byte in enumerate(data):
                if byte in innocent:
                    continue
                at = iova + i - BANK_SURFACE
                if 0 <= at < len(self.truth) and self.truth[at] == byte:
                    stolen += 1
                    self.held[at] = 1
                else:
                    foreign += 1
        self.stolen[attempt] = self.stolen.get(attempt, 0) + stolen
        self.foreign[attempt] = self.foreign.get(attempt, 0) + foreign

    def gave(self, name):
        parts = []
        if self.stolen.get(name):
            parts.append(f"{self.stolen[name]} STATEMENT BYTES")
        if self.foreign.get(name):
            parts.append(f"{self.foreign[name]} other foreign bytes")
        if self.damage.by.get(name) or name in SCRIBBLES:
            parts.append(f"{self.damage.by[name]} bytes of the bank changed")
        return ", ".join(parts) or "nothing"


def describe_process(records):
    process = records.process
    uid = os.getuid() if process.user is None else process.user
    return f"{process.name} (pid {process.pid}, uid {uid})"


def print_cast(stage):
    print(f"{stage.gpu}: {SLOTS} slots")
    print(f"pasidd (pid {stage.daemon.pid}): device gpu0 in mode {MODES.get(int(stage.ready['mode']))}")
    print(f"{describe_process(stage.bank)}, context {stage.ready['ctx']}: drew a statement into its surface at "
          f"{BANK_SURFACE:#x}; {stage.ready['vaults']} more contexts left a part of it in scratch memory")
    print(f"{describe_process(stage.thief)}, context {stage.thief.of('context')[0]['ctx']}")


def print_attempts(stage, count):
    """One line for each attempt. Returns what the thief did that it must not be able to do, as sentences."""
    by_name = {a["name"]: a for a in stage.thief.of("attempt")}
    breaches = []
    print(f"\n{'the thief tries to':<46}{'tries':>6}{'done':>6}{'fault':>6}{'refused':>8}  and what came of it")
    for name, title, may_complete in ATTEMPTS:
        a = by_name.get(name)
        if a is None or a["tries"] == "0":
            raise CannotRun(f"the thief never tried to {title}")
        tries, done, faulted, refused = (int(a[k]) for k in ("tries", "done", "faulted", "refused"))
        if name == "control" and (done != 1 or a["note"] != "own bytes arrived"):
            raise CannotRun("the thief's GPU commands do not work at all, so its failures would mean nothing")
        gave = "its own bytes" if name == "control" else count.gave(name)
        note = f"; {a['note']}" if a["note"] and name != "control" else ""
        print(f"{title:<46}{tries:>6}{done:>6}{faulted:>6}{refused:>8}  {gave}{note}")
        if done and not may_complete:
            breaches.append(f"{done} of {tries} tries to {title} went through")
        if count.damage.by[name]:
            breaches.append(f"{count.damage.by[name]} bytes of the bank changed while the thief tried to {title}")
        if name == "unmapped" and not a["note"].startswith("0 "):
            breaches.append(f"{a['note']} after unmapping")
    return breaches


def print_ids(stage):
    """The bank's id must be answered like an unknown one. Returns where it is not, as sentences."""
    breaches = []
    calls = stage.thief.of("call")
    print("the bank's context id, in " + ", ".join(c["name"] for c in calls) + f": {calls[0]['text']}")
    for call in calls:
        if call["code"] != "-2" or call["code"] != call["unknown"] or call["text"] != call["unknown_text"]:
            breaches.append(f"{call['name']} answers {call['code']} \"{call['text']}\" to the bank's context id, "
                            f"{call['unknown']} \"{call['unknown_text']}\" to an unknown one")
    return breaches


def print_faults(stage):
    print("\nfaults, by attempt and access:")
    groups = {}
    for f in stage.thief.of("fault"):
        key = (f["attempt"], f["ctx"], int(f["access"]), int(f["code"]))
        groups.setdefault(key, []).append(f)
    for (attempt, ctx, access, code), faults in groups.items():
        addresses = [int(f["addr"], 16) for f in faults]
        print(f"  {attempt:<11}{len(faults):>4} x {ACCESS.get(access, access):<6}{CODES.get(code, code):<11}"
              f"{min(addresses):#x} to {max(addresses):#x}, owner {describe_process(stage.thief)}, context {ctx}")
    texts = {}
    for f in stage.thief.of("fault"):
        texts.setdefault(f["attempt"], f["text"])
    print("as the daemon explains the first of each:")
    for attempt, text in texts.items():
        print(f"  {attempt:<11}{text}")
    print(f"faults charged to the bank: {stage.checked['faults']}")


def print_switches(stage):
    print("\nswitches onto the GPU:")
    for records in (stage.bank, stage.thief):
        parts = [f"context {s['ctx']}: {s['n']}" for s in records.of("switches")]
        print(f"  {records.process.name:<6}{', '.join(parts)}")
    per_slot = [b - a for a, b in zip(stage.before["slot_switches"], stage.after["slot_switches"])]
    print(f"  GPU   {stage.after['switches']} in all; while the thief ran: "
          + ", ".join(f"slot {i}: {n}" for i, n in enumerate(per_slot)))
    print(f"  GPU   {stage.after['scrubs']} scrubs, {stage.after['invalidations']} invalidations, "
          f"{stage.after['stale_hits']} stale hits, {stage.after['faults']} faults")


def print_surfaces(stage, count):
    total = len(count.truth)
    gpu = int(stage.checked["changed_gpu"])
    print("\nsurfaces, every byte:")
    print(f"  bank   {total - count.changed} of {total} bytes as drawn by the CPU's view, {total - gpu} by the GPU's")
    if count.damage.total:
        print("         changed: " + ", ".join(f"{n} by {name}" for name, n in count.damage.by.items() if n)
              + (f"; {count.damage.mended} of these changed back by a later one" if count.damage.mended else ""))
    held = sum(count.held[i] for i in range(total) if count.loot[i] == count.truth[i])
    print(f"  thief  {held} of {total} bytes are the statement's, {count.loot.count(POISON)} untouched")
    for name, source in (("bank", "bank/bank.png"), ("thief", "thief/thief.png")):
        target = stage.args.out / f"{name}.png"
        shutil.copyfile(stage.top / source, target)
        print(f"  {name:<7}{target}")


def verdict(stage):
    count = Count(stage)
    print_cast(stage)
    breaches = print_attempts(stage, count) + print_ids(stage)
    print_faults(stage)
    print_switches(stage)
    print_surfaces(stage, count)
    total, held, foreign = len(count.truth), sum(count.held), sum(count.foreign.values())
    changed = max(count.changed, int(stage.checked["changed_gpu"]))
    if int(stage.checked["faults"]):
        breaches.append(f"{stage.checked['faults']} faults of the thief were charged to the bank")
    expected = "gpu-mmu" if stage.isolated else "global"
    if MODES.get(int(stage.ready["mode"])) != expected:
        raise CannotRun(f"the device is not in mode {expected}")
    print()
    if held or foreign or changed or breaches:
        for breach in breaches if stage.isolated else []:
            print(f"breach: {breach}")
        print(f"LEAKED: the thief holds {held} of {total} statement bytes and {foreign} other bytes; "
              f"{changed} bytes of the bank's surface are not as drawn")
        return 1
    print(f"ISOLATED: the thief holds 0 of {total} statement bytes; the bank's surface is as drawn, every byte")
    return 0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="meson's build directory")
    parser.add_argument("--out", type=Path, help="where the pictures go (default: a directory in the build directory)")
    parser.add_argument("--no-isolation", action="store_true", help="one address space for all: what pasidd prevents")
    parser.add_argument("--device", help="a PCI device instead of a process, as \"iommufd:0000:00:01.0\"")
    parser.add_argument("--expect", type=int, help="exit with 0 if the status would be this one, with 3 if not")
    args = parser.parse_args()
    args.build = args.build.resolve()
    run_name = "no-isolation" if args.no_isolation else "isolation"
    args.out = (args.out or args.build / "pictures" / run_name).resolve()
    return args


def run(args):
    """The status of a verdict. Whatever comes in between is raised; nothing stays behind in any case."""
    top = Path(tempfile.mkdtemp(prefix="pasidd-demo."))
    stage = None
    try:
        stage = Stage(args, top)
        args.out.mkdir(parents=True, exist_ok=True)
        stage.run()
        return verdict(stage)
    except Exception:
        ignore_signals()
        if stage:
            stage.clean_up()
            stage.show_logs()
        raise
    finally:
        ignore_signals()
        if stage:
            stage.clean_up()
        shutil.rmtree(top, ignore_errors=True)


def ignore_signals():
    """From here on only cleaning up is left to do, and that is not to be cut short."""
    signal.alarm(0)
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def complain(line, *streams):
    """Prints a line, if anybody listens."""
    for stream in streams:
        try:
            print(line, file=stream, flush=True)
            return
        except (OSError, ValueError):
            pass


def main():
    """The exit status. 1 is said of a leak and of nothing else, and a verdict that could not be printed is none."""
    try:
        args = parse_arguments()
        signal.signal(signal.SIGALRM, on_alarm)
        signal.signal(signal.SIGTERM, on_terminate)
        signal.signal(signal.SIGINT, on_terminate)
        signal.alarm(TIME_LIMIT)
        status = run(args)
        sys.stdout.flush()
    except Exception as problem:  # pylint: disable=broad-except
        what = problem if isinstance(problem, (CannotRun, OSError)) else repr(problem)
        complain(f"COULD NOT RUN: {what}", sys.stdout, sys.stderr)
        return 2
    if args.expect is not None:
        return 0 if status == args.expect else 3
    return status


if __name__ == "__main__":
    # Not sys.exit(): what could not be written would be tried again there, and give a status of Python's own.
    os._exit(main())
