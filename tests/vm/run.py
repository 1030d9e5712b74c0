#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the tests in virtual machines: boots a small Linux with freshly built programs, and takes its verdict.

    run.py [--build DIR] [--results FILE] [--case NAME]... [--time-limit SECONDS] [--keep] [--no-setup]
    run.py --list

Cases are in cases.py. What they run on comes from cache.sh, which this program runs first; where a machine cannot
make it, all cases are skipped, and the reason is said. Each case's log is in DIR/vm. --keep keeps its other files, too.
The report at the end has each case's time from the start of QEMU to the verdict, and the figures of the benchmarks.
--results appends lines as tests/run.py does.
"""

import argparse
import importlib.util
import json
import os
import re
import selectors
import shutil
import signal
import socket
import string
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cases
import initramfs
import iort
import qemu
import report

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
GUEST_SOURCE = "/src"
# What a kernel says when something is wrong with it, or when a device did what it may not.
COMPLAINT = re.compile(r"WARNING:|BUG:|BUG at|Oops|[Cc]all [Tt]race|general protection|Kernel panic|UBSAN:|"
                       r"blocked for more|self-detected stall|refcount_t:|unable to handle|"
                       r"DMAR: .*(fault|DMA (Read|Write))|"
                       r"arm-smmu-v3 .*(event|priv (inst|data)|[Ee]rror|timeout|overflow|aborted|unsupported|[Ff]ailed)|"
                       # QEMU's, on the same stream: the device did not do what the guest's IOMMU asked for.
                       r"error reply|vfio_container_dma|vfio_user_\w+: ")
POWEROFF_SECONDS = 15
COMPANION_SECONDS = 10
QMP_SECONDS = 20
SHOWN_COMPLAINTS = 10
CACHE_UNAVAILABLE = 2  # cache.sh's status where the machine cannot make it


def load_test_runner():
    """tests/run.py, which has the same name as this file."""
    spec = importlib.util.spec_from_file_location("test_runner", HERE.parent / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_test_runner()


class Unavailable(Exception):
    """The cases cannot be run on this machine; why."""


class Broken(Exception):
    """The cases cannot be run, and that is a failure."""


class Lines:
    """Bytes in, whole lines out."""

    def __init__(self):
        self.rest = b""

    def feed(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


class Listener:
    """A unix socket that QEMU connects to when it starts."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(1)

    def accept(self, seconds):
        self.socket.settimeout(seconds)
        connection, _ = self.socket.accept()
        self.socket.close()
        return connection


class Qmp:
    """QEMU's monitor: a command and its answer at a time; events are kept."""

    def __init__(self, connection):
        connection.settimeout(QMP_SECONDS)
        self.connection = connection
        self.file = connection.makefile("rw", encoding="utf-8")
        self.events = []
        json.loads(self.file.readline())  # the greeting
        self.call("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise OSError("QEMU closed its monitor")
        return json.loads(line)

    def call(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            message = self._read()
            if "error" in message:
                raise OSError(message["error"]["desc"])
            if "return" in message:
                return message["return"]
            self.events.append(message)

    def wait_event(self, name, **data):
        """Waits for an event with these data, also one that came before; it is used up."""
        until = time.monotonic() + QMP_SECONDS
        while time.monotonic() < until:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return
            self.events.append(self._read())
        raise OSError(f"no {name} within {QMP_SECONDS} s")


class Companion:
    """A process beside QEMU that the case's devices need, such as a GPU behind a socket."""

    def __init__(self, name, command, run, log):
        self.socket = run / f"{name}.socket"
        self.command = command
        self.log = log
        self.process = None

    def start(self):
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        until = time.monotonic() + COMPANION_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                raise OSError(f"{self.command[0]} did not make {self.socket}")
            time.sleep(0.01)

    def send(self, number):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        if not self.process:
            return
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self.process.wait(COMPANION_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Host:
    """What a guest may ask for: "@host VERB ARGUMENT..."."""

    def __init__(self, case, companions, qmp):
        self.case = case
        self.companions = companions
        self.qmp = qmp

    def answer(self, words):
        verb, *args = words or [""]
        method = getattr(self, f"do_{verb}", None)
        if not method:
            return f"error there is no verb {verb}"
        try:
            return f"ok {method(*args) or ''}".rstrip()
        except (OSError, KeyError, TypeError) as error:
            return f"error {' '.join(str(error).split())}"

    def do_ping(self):
        pass

    def do_device_del(self, device):
        """Asks the guest to let the device go; it is the guest that sees when it is gone."""
        self.qmp.call("device_del", id=device)

    def do_device_gone(self, device):
        """Waits until the guest has let it go."""
        self.qmp.wait_event("DEVICE_DELETED", device=device)

    def do_device_add(self, spare):
        self.qmp.call("device_add", **self.case.spares[spare])

    def do_stop(self, name):
        self.companions[name].stop()

    def do_kill(self, name):
        self.companions[name].stop(signal.SIGKILL)

    def do_pause(self, name):
        self.companions[name].send(signal.SIGSTOP)

    def do_resume(self, name):
        self.companions[name].send(signal.SIGCONT)

    def do_start(self, name):
        self.companions[name].start()


class Machine:
    """One boot: QEMU, its two serial ports, its monitor."""

    def __init__(self, case, images, run, log):
        self.case = case
        self.run = run
        self.log = log
        self.host = None
        self.started = 0
        self.output = []  # what the script printed
        self.release = ""  # the guest's kernel, in its own words
        self.figures = []  # of benchmarks: name, value, unit, limit, ratio
        self.complaints = []  # what is wrong, and a line that shows it
        self.status = None  # the script's
        self.verdict_at = None
        substitutes = {"run": run, "build": images.build}
        self.companions = {
            name: Companion(name, [string.Template(word).substitute(substitutes) for word in command], run, log)
            for name, command in case.companions.items()}
        devices = [string.Template(device).substitute(substitutes) for device in case.devices]
        self.command = qemu.command(images.paths, case.machine) + qemu.arguments(case, devices, images, run)

    def write_log(self, port, line):
        self.log.write(f"{time.monotonic() - self.started:7.2f} {port} {line}\n".encode())

    def on_kernel(self, line):
        self.write_log("kernel", line)
        if COMPLAINT.search(line) and not any(re.search(pattern, line) for pattern in self.case.allowed):
            self.complaints.append(("nothing is wrong in the kernel's log", line))

    def on_script(self, line, port):
        self.write_log("script", line)
        word, *rest = line.split() or [""]
        if word == "@host":
            answer = self.host.answer(rest)
            self.write_log("answer", answer)
            port.sendall(f"{answer}\n".encode())
        elif word == "@done":
            self.status = int(rest[0])
            self.verdict_at = time.monotonic()
        elif word == "@run":
            self.release = rest[-1]
        elif word == "@figure":
            self.figures.append(rest)
        else:
            self.output.append(line)

    def talk(self, process, control, until):
        """Until the guest's power is off. True if it had to be given up."""
        console, script = Lines(), Lines()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(control, selectors.EVENT_READ)
            while selector.get_map():
                if self.verdict_at:
                    until = min(until, self.verdict_at + POWEROFF_SECONDS)
                ready = selector.select(max(0, until - time.monotonic()))
                if not ready:
                    return self.status is None
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    for line in (script if key.fileobj is control else console).feed(data):
                        if key.fileobj is control:
                            self.on_script(line, control)
                        else:
                            self.on_kernel(line)
        return False

    def boot(self, until):
        """Runs the case. True if its time was up."""
        self.started = time.monotonic()
        self.log.write(f"{' '.join(self.command)}\n".encode())
        try:
            for companion in self.companions.values():
                companion.start()
            return self.boot_qemu(until)
        except OSError as error:
            self.complaints.append(("the machine starts", " ".join(str(error).split())))
            return False
        finally:
            for companion in self.companions.values():
                companion.stop()

    def boot_qemu(self, until):
        listeners = [Listener(self.run / name) for name in ("control", "qmp")]
        with subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:
            try:
                control, monitor = (listener.accept(COMPANION_SECONDS) for listener in listeners)
                with control, monitor:
                    control.setblocking(True)
                    self.host = Host(self.case, self.companions, Qmp(monitor))
                    return self.talk(process, control, until)
            except OSError as error:
                process.kill()
                said = process.stdout.read().decode(errors="replace")[-1000:]
                raise OSError(f"QEMU: {error}: {said}") from error
            finally:
                process.kill()


class Images:
    """What cache.sh made, and initial file systems made of the builds."""

    def __init__(self, paths, build, directory):
        self.paths = paths
        self.build = build
        self.directory = directory
        self.made = {}
        self.iort = None

    def kernel(self, which):
        return Path(self.paths[which]) / "vmlinuz"

    def initramfs(self, case):
        """One for each kind, shared by the cases of a run."""
        kind = (case.kernel, case.python, case.nested)
        if kind not in self.made:
            output = self.directory / f"{'-'.join(str(word) for word in kind)}.cpio"
            words = ["--output", output, "--busybox", self.paths["busybox"],
                     "--build", f"{build_of(case.machine, self.build)}={GUEST_SOURCE}/build-vm"]
            words += ["--sysroot", self.paths["sysroot"]] if case.machine == "arm64" else []
            words += ["--iort", self.changed_iort()] if case.nested else []
            for tree in ("tests", "configs", "include"):
                words += ["--tree", f"{TOP}/{tree}={GUEST_SOURCE}/{tree}"]
            if case.kernel == "stock":
                for name in self.paths["stock_modules"].split():
                    words += ["--module", f"{self.paths['stock']}/modules/{name}.ko"]
            words += ["--python"] if case.python else []
            initramfs.main([str(word) for word in words])
            self.made[kind] = output
        return self.made[kind]

    def changed_iort(self):
        """The firmware's, from a boot of its own, with the flag that it lacks."""
        if not self.iort:
            self.iort = self.directory / "IORT.aml"
            log = self.directory / "iort.log"
            with open(log, "wb", buffering=0) as file:
                machine = Machine(cases.IORT, self, self.directory, file)
                machine.boot(time.monotonic() + cases.IORT.timeout)
            try:
                self.iort.write_bytes(iort.with_canwbs(bytes.fromhex("".join(machine.output))))
            except (ValueError, struct.error) as error:
                said = log.read_text(errors="replace")[-1000:]
                raise Broken(f"the firmware's IORT: {error}: {said}") from error
        return self.iort


def fill_cache(setup):
    """Runs cache.sh, passes on what it says, and returns the paths that it ends with."""
    command = ["bash", HERE / "cache.sh"] + ([] if setup else ["--no-setup"])
    paths, said = {}, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            name, equals, value = line.rstrip("\n").partition("=")
            if equals and name.isidentifier():
                paths[name] = value
            else:
                said.append(line.strip())
                print(line, end="", flush=True)
    if process.returncode:
        error = Unavailable if process.returncode == CACHE_UNAVAILABLE else Broken
        raise error((said or ["tests/vm/cache.sh failed"])[-1])
    return paths


def build_of(machine, build):
    """Of an arm64 machine: the directory beside it."""
    return build if machine == "amd64" else build.with_name(f"{build.name}-{machine}")


def build_programs(build, machine="amd64", sysroot=""):
    """Without sanitizers, which are too slow in an emulated processor."""
    directory = build_of(machine, build)
    function = {"amd64": ["build", directory], "arm64": ["build_arm64", directory, sysroot]}[machine]
    words = ["bash", "-c", 'source tests/lib.sh; "$@"', "bash", *function, "-Dbuildtype=debugoptimized"]
    if subprocess.run(words, cwd=TOP, check=False).returncode:
        raise Broken(f"the build in {directory} failed")


class Described:
    """A case as tests/run.py's outcomes want it."""

    def __init__(self, case):
        self.name = f"vm/{case.name}"
        self.timeout = case.timeout


def judge(machine, case, timed_out):
    outcome = runner.Outcome(Described(case))
    if not timed_out and machine.status is None and not machine.complaints:
        machine.complaints.append(("the guest gives a verdict", "it ended without one"))
    for title, line in machine.complaints[:SHOWN_COMPLAINTS]:
        machine.output.append(f"not ok 0 - {title}\n# {line}")
    outcome.output = "".join(f"{line}\n" for line in machine.output)
    outcome.judge(machine.status or 0, timed_out)
    outcome.seconds = (machine.verdict_at or time.monotonic()) - machine.started
    return outcome


def run_case(case, images, logs, limit, keep):
    """Returns the machine as it was at the end, and the outcome."""
    run = Path(tempfile.mkdtemp(prefix="pasidd-vm-"))
    path = logs / f"{case.name}.log"
    try:
        with open(path, "wb", buffering=0) as log:
            machine = Machine(case, images, run, log)
            timed_out = machine.boot(time.monotonic() + min(case.timeout, limit))
        outcome = judge(machine, case, timed_out)
    finally:
        if keep:
            print(f"kept: {run}")
        else:
            shutil.rmtree(run, ignore_errors=True)
    runner.show(outcome)
    for word, _, reason in outcome.lines:
        if word == "fail" and reason:
            print(f"     {reason}")
    if outcome.count("fail"):
        print(f"     the log: {path}")
    return machine, outcome


def run_cases(chosen, args, build):
    """Returns lines for the results."""
    paths = fill_cache(not args.no_setup)
    for machine in sorted({case.machine for case in chosen}):
        build_programs(build, machine, paths["sysroot"])
    logs = build / "vm"
    logs.mkdir(parents=True, exist_ok=True)
    lines, ran = [], []
    until = time.monotonic() + args.time_limit
    with tempfile.TemporaryDirectory(prefix="pasidd-vm-images-") as directory:
        images = Images(paths, build, Path(directory))
        for case in chosen:
            left = until - time.monotonic()
            if left > 0:
                machine, outcome = run_case(case, images, logs, left, args.keep)
                lines += outcome.lines
                ran.append((case, machine, outcome))
            else:
                lines.append(("fail", f"vm/{case.name}", f"not begun within {args.time_limit} s"))
    report.show(paths["qemu_version"], ran)
    return lines


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=TOP / "build-vm", type=Path)
    parser.add_argument("--results")
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--time-limit", type=float, default=1500, help="seconds for all cases together")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--no-setup", action="store_true")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def choose(names):
    unknown = set(names) - {case.name for case in cases.CASES}
    if unknown:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}")
    return [case for case in cases.CASES if not names or case.name in names]


def main():
    args = parse_arguments()
    chosen = choose(args.case)
    if args.list:
        for case in chosen:
            print(f"{case.name:20} {case.kernel:8} {case.script} {case.args}".rstrip())
        return 0
    try:
        lines = run_cases(chosen, args, args.build.resolve())
    except Unavailable as error:
        print(f"SKIPPED: the tests in virtual machines: {error}")
        lines = [("skip", f"vm/{case.name}", str(error)) for case in chosen]
    except Broken as error:
        print(f"FAIL vm: {error}")
        lines = [("fail", "vm", str(error))]
    return runner.record(args.results, "", lines)


if __name__ == "__main__":
    sys.exit(main())
