# SPDX-License-Identifier: MIT
"""What the guest's Python tests share: PCI devices through sysfs, the host's help, TAP."""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARGUMENTS = sys.argv[1:]  # the script's, from the case
PCI = Path("/sys/bus/pci/devices")
REFGPU = (0x1234, 0x9a51)
EDU = (0x1234, 0x11e8)
COMMAND, CAPABILITIES, EXTENDED = 0x04, 0x34, 0x100
COMMAND_MEMORY, COMMAND_MASTER = 2, 4


def number(path):
    return int(path.read_text(), 0)


def pci_list():
    return {entry.name: (number(entry / "vendor"), number(entry / "device")) for entry in sorted(PCI.iterdir())}


def pci_find(vendor, device):
    return [bdf for bdf, ids in pci_list().items() if ids == (vendor, device)]


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


class HostError(Exception):
    """The machine outside would not."""


def host(*words):
    """Asks the runner on the machine outside for something, see docs/vm.md."""
    with open(os.environ["VM_CONTROL"], "r+b", buffering=0) as port:
        port.write(f"@host {' '.join(words)}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += port.read(1)
    word, _, text = answer.decode().strip().partition(" ")
    if word != "ok":
        raise HostError(f"{' '.join(words)}: {text}")


class PciDevice:
    """A PCI device in sysfs."""

    def __init__(self, bdf):
        self.bdf = bdf
        self.path = PCI / bdf

    def config(self, form, offset):
        """One number of configuration space, as struct.unpack names it."""
        size = struct.calcsize("<" + form)
        with open(self.path / "config", "rb", buffering=0) as file:
            return struct.unpack("<" + form, os.pread(file.fileno(), size, offset))[0]

    def set_config(self, form, offset, value):
        with open(self.path / "config", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), struct.pack("<" + form, value), offset)

    def bars(self):
        """(address, size, flags) of each."""
        found = []
        for line in (self.path / "resource").read_text().splitlines()[:6]:
            first, last, flags = (int(word, 16) for word in line.split())
            found.append((first, last - first + 1 if last else 0, flags))
        return found

    def capabilities(self):
        """id: offset"""
        found = {}
        at = self.config("B", CAPABILITIES)
        while at and at not in found.values():
            found[self.config("B", at)] = at
            at = self.config("B", at + 1) & ~3
        return found

    def extended_capabilities(self):
        found = {}
        at = EXTENDED
        while at >= EXTENDED and at not in found.values():
            head = self.config("I", at)
            if head in (0, 0xffffffff):
                break
            found[head & 0xffff] = at
            at = head >> 20
        return found

    def describe(self):
        """Like lspci."""
        yield f"{self.bdf} {self.config('H', 0):04x}:{self.config('H', 2):04x} class {number(self.path / 'class'):06x}"
        for index, (address, size, flags) in enumerate(self.bars()):
            if size:
                yield f"BAR {index}: {address:#x}, {size:#x} bytes, flags {flags:#x}"
        yield "capabilities: " + ", ".join(f"{cap:02x} at {at:02x}" for cap, at in self.capabilities().items())
        yield "extended: " + ", ".join(f"{cap:04x} at {at:03x}" for cap, at in self.extended_capabilities().items())

    def driver(self):
        link = self.path / "driver"
        return os.path.basename(os.readlink(link)) if link.exists() else ""

    def group(self):
        return os.path.basename(os.readlink(self.path / "iommu_group"))

    def vfio_device(self):
        """The name of its device file in /dev/vfio/devices."""
        return next((self.path / "vfio-dev").iterdir()).name

    def interrupts(self):
        """How many there were of each that VFIO has armed, as the kernel counts them: {"vfio-msix[0]": 12}."""
        found = {}
        processors, *lines = (line.split() for line in Path("/proc/interrupts").read_text().splitlines())
        for words in lines:
            if words[-1].endswith(f"({self.bdf})"):
                found[words[-1].partition("(")[0]] = sum(int(word) for word in words[1:1 + len(processors)])
        return found

    def bind_vfio(self):
        (self.path / "driver_override").write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(self.bdf)
        if self.driver() != "vfio-pci":
            raise OSError(f"{self.bdf} is bound to {self.driver() or 'nothing'}")

    @contextlib.contextmanager
    def map_bar(self, index):
        """A BAR's memory, read-only. The device must decode memory (the command register's bit 1)."""
        with open(self.path / f"resource{index}", "rb", buffering=0) as file:
            memory = mmap.mmap(file.fileno(), self.bars()[index][1], mmap.MAP_SHARED, mmap.PROT_READ)
        with memory:
            yield memory


def refgpu():
    """The case's reference GPU, bound to vfio-pci."""
    found = pci_find(*REFGPU)
    assert found, f"no reference GPU among {pci_list()}"
    device = PciDevice(found[0])
    if device.driver() != "vfio-pci":
        device.bind_vfio()
    return device


VFIO_SET_IOMMU, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD = 0x3b66, 0x3b68, 0x3b6a
VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA = 0x3b71, 0x3b72
VFIO_TYPE1v2_IOMMU = 3
VFIO_REGION_SHIFT = 40
VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT = 0x3b76, 0x3b77
VFIO_DEVICE_ATTACH_PASID = 1
IOMMU_IOAS_ALLOC, IOMMU_HWPT_ALLOC, IOMMU_GET_HW_INFO = 0x3b81, 0x3b89, 0x3b8a
IOMMU_HWPT_ALLOC_PASID = 8


def call(fd, request, form, *values):
    """An ioctl with a struct that begins with its own size; returns its fields as they are afterwards."""
    data = bytearray(struct.pack("=I" + form, struct.calcsize("=I" + form), *values))
    fcntl.ioctl(fd, request, data)
    return struct.unpack("=I" + form, data)


class Opened:
    """Fds that are closed at the end of a "with", the last one first."""

    def __init__(self):
        self.fds = []

    def open(self, path):
        self.fds.append(os.open(path, os.O_RDWR))
        return self.fds[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self.fds:
            os.close(self.fds.pop())


class Type1(Opened):
    """A device in a container of its own. It is opened, and thereby reset."""

    def __init__(self, device):
        super().__init__()
        self.container = self.open("/dev/vfio/vfio")
        group = self.open(f"/dev/vfio/{device.group()}")
        fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("=i", self.container))
        fcntl.ioctl(self.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)
        # Only of a buffer that it could change does ioctl() return what the call did.
        self.device = fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bytearray(device.bdf.encode() + b"\0"))
        self.fds.append(self.device)
        device.set_config("H", COMMAND, COMMAND_MEMORY | COMMAND_MASTER)

    def map(self, size, iova):
        """Maps fresh memory for the device, which it may read and write."""
        memory = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        call(self.container, VFIO_IOMMU_MAP_DMA, "IQQQ", 3, address, iova, size)
        return memory

    def write_bar(self, bar, form, offset, value):
        os.pwrite(self.device, struct.pack("<" + form, value), (bar << VFIO_REGION_SHIFT) + offset)

    def unmap(self, size, iova):
        call(self.container, VFIO_IOMMU_UNMAP_DMA, "IQQ", 0, iova, size)


class Iommufd(Opened):
    """A device's own file, bound to an iommufd."""

    def __init__(self, device):
        super().__init__()
        self.iommufd = self.open("/dev/iommu")
        self.device = self.open(f"/dev/vfio/devices/{device.vfio_device()}")
        self.id = call(self.device, VFIO_DEVICE_BIND_IOMMUFD, "IiI", 0, self.iommufd, 0)[3]

    def pasid_width(self):
        return call(self.iommufd, IOMMU_GET_HW_INFO, "IIIQIB3xQ", 0, self.id, 0, 0, 0, 0, 0)[6]

    def hwpt_with_pasid(self):
        """A page table of its own, good for the device itself and for a PASID."""
        ioas = call(self.iommufd, IOMMU_IOAS_ALLOC, "II", 0, 0)[2]
        return call(self.iommufd, IOMMU_HWPT_ALLOC, "IIII28x", IOMMU_HWPT_ALLOC_PASID, self.id, ioas, 0)[4]

    def attach(self, hwpt, pasid=None):
        flags = 0 if pasid is None else VFIO_DEVICE_ATTACH_PASID
        call(self.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, "III", flags, hwpt, pasid or 0)


def run_system(arguments):
    """tests/run_system.py, which runs and counts Python tests; its arguments."""
    sys.path.insert(0, str(Path(os.environ["SOURCE"]) / "tests"))
    import run_system as runner  # pylint: disable=import-error,import-outside-toplevel
    sys.argv[1:] = arguments
    sys.exit(runner.main())


class Daemon:
    """A pasidd of this guest with one device, and where clients connect."""

    def __init__(self, device, prefix=(), user=None, popen=None, **more):
        """prefix: a program that starts it; popen: other arguments of subprocess.Popen; more: other keys of the
        configuration."""
        self.directory = tempfile.mkdtemp(prefix="pasidd-")
        self.socket = os.path.join(self.directory, "socket")
        self.log = Path(self.directory, "log")
        config = os.path.join(self.directory, "config.json")
        with open(config, "w", encoding="utf-8") as file:
            json.dump({"socket": {"path": self.socket}, "devices": [device], "bus": "none", **more}, file)
        if user:
            shutil.chown(self.directory, user)
        with open(self.log, "wb") as log:
            self.process = self.begin([*prefix, os.environ["PASIDD"], "--config", config], log, user=user,
                                      **(popen or {}))
        self.await_log("listening at")  # its socket is there a moment before that

    def begin(self, argv, log, **options):
        return subprocess.Popen(argv, stderr=log, **options)

    def await_log(self, *parts):
        """Waits for a line with all of these in it."""
        def said():
            return any(all(part in line for part in parts) for line in self.log.read_text().splitlines())

        try:
            wait_for(said)
        except TimeoutError:
            raise AssertionError(f"no line with {parts} in\n{self.log.read_text()}") from None

    def stop(self):
        self.process.terminate()
        status = self.process.wait(20)
        print("".join(f"# {line}\n" for line in self.log.read_text().splitlines()), end="")
        assert status == 0, f"the daemon ended with {status}"


def main(argv, *more):
    """Runs the tests of the calling file as the system tests are run."""
    run_system([argv[0], *more])
