# SPDX-License-Identifier: MIT
"""A stack of processes for system tests: pasid-refgpu and pasidd, with all their sockets in a temporary directory.

The programs are $PASID_REFGPU and $PASIDD. Stack is a context manager; it ends only the processes that it began. What
it says about them is seen from outside: /proc, and the counters of the GPU's status page.

With $PASID_TEST_PCI, a spec such as "iommufd:0000:00:01.0", the GPU is not a process but that PCI device, bound to
vfio-pci. Tests that need what it cannot do are skipped. $PASID_TEST_SLOWNESS says how much longer than usual things may
take, as in an emulated processor.
"""

import collections
import json
import mmap
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

SLOWNESS = float(os.environ.get("PASID_TEST_SLOWNESS", "1"))
DEADLINE = 10.0 * SLOWNESS  # s: for a process to begin or to end, and for a predicate to come true

SANITIZER = re.compile(r"Sanitizer|runtime error")

_STATUS_HEAD = "magic version slots formats".split()
_STATUS_COUNTERS = ("resets tlb_hits tlb_misses walks stale_hits tlb_entries conflicts faults switches jobs "
                    "invalidations scrubs dma_maps dma_bytes clients malformed").split()
_STATUS = struct.Struct("<4I16Q64Q")


class HarnessError(Exception):
    pass


def program(variable):
    """The path in an environment variable."""
    path = os.environ.get(variable)
    if not path:
        raise HarnessError(f"${variable} must be set to the program's path")
    return path


def wait_until(predicate, what, deadline=DEADLINE):
    """Waits until predicate() is true and returns what it returned."""
    end = time.monotonic() + deadline
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise HarnessError(f"{what}: not within {deadline} s")
        time.sleep(0.005)


def await_stopped(process):
    """Waits until a process that was sent SIGSTOP has stopped."""
    def stopped():
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "T"

    wait_until(stopped, f"process {process.pid} stops")


def can_connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as s:
        try:
            s.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


class ProcessGpu:
    """pasid-refgpu as a process of the stack's."""

    def __init__(self, stack, i):
        self.stack, self.i = stack, i
        self.socket, self.status_path = stack.gpu_socket(i), stack.gpu_status_path(i)
        device = stack.devices[i]
        self.args = [program("PASID_REFGPU"), "--socket", self.socket, "--status", self.status_path,
                     "--slots", str(device.get("slots", 8))] + device.get("args", [])
        self.config = {"spec": "vfio-user:" + self.socket}

    def start(self):
        """The process."""
        process = self.stack.gpus[self.i] = self.stack.start_program(f"gpu{self.i}", self.args)

        def ready():  # without connecting: a GPU has one driver at a time
            if process.poll() is not None:
                raise HarnessError(f"{self.args[0]} ended with {process.returncode}\n{self.stack.log_tail()}")
            return os.path.exists(self.socket)

        wait_until(ready, f"{self.args[0]}: a socket at {self.socket}")
        return process

    def status_page(self):
        with open(self.status_path, "rb") as f:
            return f.read(_STATUS.size)


class NoProcess:
    """What a PCI device has instead. Whoever wants to do something with it is skipped."""

    def __bool__(self):
        return False

    def __getattr__(self, name):
        raise unittest.SkipTest(f"the GPU is a PCI device and no process with a {name}")


class PciGpu:
    """A PCI device. Its status page is BAR 2, which answers while the daemon has it open."""

    MAGIC = 0x55504750

    def __init__(self, stack, i):
        device = stack.devices[i]
        if "pci" not in device and (len(stack.devices) > 1 or device.get("args")):
            raise unittest.SkipTest("there is one PCI device, and it is as it is")
        spec = device.get("pci") or os.environ["PASID_TEST_PCI"]
        self.bar = f"/sys/bus/pci/devices/{spec.partition(':')[2]}/resource2"
        self.config = {"spec": spec, "slots": device.get("slots", 8)}
        # A reset of a PCI device takes a tenth of a second, and much longer if its machine is slow.
        self.config["answer_ms"] = int(device.get("answer_ms", 1000) * SLOWNESS)
        self.started = False

    def start(self):
        if self.started:
            raise unittest.SkipTest("a PCI device cannot be started")
        self.started = True
        return NoProcess()

    def status_page(self):
        with open(self.bar, "rb") as f, \
                mmap.mmap(f.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ) as page:
            wait_until(lambda: struct.unpack_from("<I", page)[0] == self.MAGIC, f"a status page in {self.bar}")
            return page[:_STATUS.size]


class Stack:
    """devices: for each, a dict of keys that are added to its configuration, and `slots` and `args` for its refgpu; or
    `pci`, the spec of a PCI device instead.

    config: keys that are added to the daemon's configuration. daemon_env: variables for the daemon.
    """

    def __init__(self, devices=None, config=None, daemon_env=None):
        self.devices = devices or [{}]
        self.config = config or {}
        self.daemon_env = daemon_env or {}
        self.dir = None
        self.daemon = None
        self.gpus = []  # processes; None: it was stopped
        self._backs = []
        self._logs = []

    # Beginning and ending.

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="pasidd-test-")
        try:
            for i in range(len(self.devices)):
                self.gpus.append(None)
                pci = self.devices[i].get("pci") or os.environ.get("PASID_TEST_PCI")
                self._backs.append((PciGpu if pci else ProcessGpu)(self, i))
                self.start_gpu(i)
            self.write_config()
            self.start_daemon()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends all that is left. Whoever did not end well, or said what a sanitizer says, fails the test."""
        bad = []
        for stop, *args in [(self.stop_daemon,)] + [(self.stop_gpu, i) for i, gpu in enumerate(self.gpus) if gpu]:
            try:
                stop(*args)
            except HarnessError as error:
                bad.append(str(error))
        spoken = SANITIZER.search(self.log_tail(None)) if not bad and self._logs else None
        if spoken:
            bad.append("a sanitizer spoke\n" + "\n".join(spoken.string[spoken.start():].splitlines()[:60]))
        for log in self._logs:
            log.close()
        self._logs = []
        shutil.rmtree(self.dir, ignore_errors=True)
        if bad:
            raise HarnessError("\n".join(bad))

    def start_program(self, name, args, env=None):
        log = open(os.path.join(self.dir, name + ".log"), "ab")
        self._logs.append(log)
        return subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                env={**os.environ, **(env or {})})

    def _end(self, process, sig):
        """The test fails unless the process ends when it is told to, and not before, with status 0: sanitizers and leaks
        give others. One that was killed, here or by a test, has no say in it."""
        if process is None:
            return
        told = process.poll() is None
        if told:
            process.send_signal(signal.SIGCONT)
            process.send_signal(sig)
        try:
            status = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise HarnessError(f"{process.args[0]} did not end\n{self.log_tail()}") from None
        if status != -signal.SIGKILL and (status or not told):
            when = "when it was told to" if told else "by itself"
            raise HarnessError(f"{process.args[0]} ended {when}, with status {status}\n{self.log_tail()}")

    def _await_socket(self, process, path, kind):
        def ready():
            if process.poll() is not None:
                raise HarnessError(f"{process.args[0]} ended with {process.returncode}\n{self.log_tail()}")
            return can_connect(path, kind)

        wait_until(ready, f"{process.args[0]}: a connection to {path}")

    def gpu_socket(self, i=0):
        return os.path.join(self.dir, f"gpu{i}.sock")

    def gpu_status_path(self, i=0):
        return os.path.join(self.dir, f"gpu{i}.status")

    def start_gpu(self, i=0):
        self.gpus[i] = self._backs[i].start()

    def stop_gpu(self, i=0, sig=signal.SIGTERM):
        process = self.gpus[i]
        if isinstance(process, NoProcess):
            raise unittest.SkipTest("a PCI device cannot be stopped")
        self.gpus[i] = None
        self._end(process, sig)

    @property
    def socket(self):
        return os.path.join(self.dir, "pasidd.sock")

    def write_config(self):
        devices = []
        for i, device in enumerate(self.devices):
            extra = {k: v for k, v in device.items() if k not in ("slots", "args", "pci")}
            devices.append({"name": f"gpu{i}", "mode": "gpu-mmu", **extra, **self._backs[i].config})
        config = {"socket": {"path": self.socket, "mode": "0600"}, "devices": devices, "bus": "none", **self.config}
        with open(os.path.join(self.dir, "pasidd.json"), "w", encoding="utf-8") as f:
            json.dump(config, f, indent=1)

    def start_daemon(self):
        args = [program("PASIDD"), "--config", os.path.join(self.dir, "pasidd.json")]
        self.daemon = self.start_program("pasidd", args, self.daemon_env)
        self._await_socket(self.daemon, self.socket, socket.SOCK_SEQPACKET)

    def stop_daemon(self, sig=signal.SIGTERM):
        process, self.daemon = self.daemon, None
        self._end(process, sig)

    # Looking from outside.

    def log_tail(self, lines=40):
        """The last lines of each log; all of them if lines is None."""
        text = ""
        for name in sorted(os.listdir(self.dir)):
            if name.endswith(".log"):
                with open(os.path.join(self.dir, name), errors="replace", encoding="utf-8") as f:
                    text += f"--- {name}\n" + "".join(f.readlines()[-lines if lines else None:])
        return text

    def status(self, i=0):
        """The counters of struct refgpu_status, by name; slot_switches is a list."""
        values = _STATUS.unpack(self._backs[i].status_page())
        status = dict(zip(_STATUS_HEAD + _STATUS_COUNTERS, values))
        status["slot_switches"] = list(values[20:])
        return status

    def gpu_counts(self, i=0):
        """What is the same before and after a test: fds, DMA mappings and their bytes, entries in the TLB. None: it was
        stopped."""
        if self.gpus[i] is None:
            return None
        status = self.status(i)
        fds = self.fds(self.gpus[i]) if self.gpus[i] else 0
        return fds, status["dma_maps"], status["dma_bytes"], status["tlb_entries"]

    def fds(self, process=None):
        """How many fds a process has open; the daemon's if none is given."""
        return len(os.listdir(f"/proc/{(process or self.daemon).pid}/fd"))

    def rss(self, process=None):
        """Bytes of resident memory."""
        with open(f"/proc/{(process or self.daemon).pid}/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def memory(self, process=None):
        """From smaps: how many mappings of memfds there are, by name; bytes of shared memory that are resident; bytes that
        the process has written to in memory of its own."""
        memfds, shared, private, name = collections.Counter(), 0, 0, ""
        with open(f"/proc/{(process or self.daemon).pid}/smaps", encoding="utf-8", errors="replace") as f:
            for line in f:
                words = line.split(maxsplit=5)
                if not words[0].endswith(":"):
                    name = words[5].strip() if len(words) > 5 else ""
                    if name.startswith("/memfd:"):
                        memfds[name.removeprefix("/memfd:").removesuffix(" (deleted)")] += 1
                elif name.startswith(("/memfd:", "/dev/zero")):
                    shared += int(words[1]) * 1024 if words[0] == "Rss:" else 0
                elif words[0] == "Private_Dirty:":
                    private += int(words[1]) * 1024
        return memfds, shared, private

    def snapshot(self):
        """What must be the same after a test as before it."""
        counts = dict(zip(("gpu fds", "dma_maps", "dma_bytes"), self.gpu_counts()))
        return {"fds": self.fds(), **counts}

    def await_snapshot(self, before, deadline=DEADLINE):
        try:
            wait_until(lambda: self.snapshot() == before, "back to the beginning", deadline)
        except HarnessError:
            raise HarnessError(f"before {before}, after {self.snapshot()}\n{self.log_tail()}") from None

    def await_device(self, client, name="gpu0"):
        """Waits until the daemon has opened its device."""
        wait_until(lambda: any(n == name and present for n, _, present in client.devices()), f"device {name}")

    def await_rest(self):
        """Waits until nothing that is counted changes any more (connections that ended are being closed), and counts."""
        last = [self.snapshot()]

        def same():
            last.append(self.snapshot())
            return len(last) > 20 and all(s == last[-1] for s in last[-20:])

        wait_until(same, "a daemon at rest")
        return last[-1]
