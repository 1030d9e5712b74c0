#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Prints what pasidctl reads of this machine, as JSON in lines that begin with "| ": for tests/vm/record_sysfs.py.

    record.py [VENDOR:DEVICE]...      first gives these devices to vfio-pci
"""

import json
import os
import re
import stat
import sys
from pathlib import Path

import vm

DEVICE_FILES = ("vendor", "device", "class", "driver_override", "reset_method")
TABLES = ("DMAR", "IVRS")


class Tree:
    def __init__(self):
        self.files, self.bytes, self.links, self.nodes, self.directories = {}, {}, {}, {}, set()

    def file(self, path):
        if Path(path).is_file():
            self.files[path] = Path(path).read_text(errors="replace")

    def empty(self, path):
        """Only that there is such a file: what is in it is nobody's business, or it can only be written."""
        if Path(path).exists():
            self.files[path] = ""

    def binary(self, path):
        if Path(path).is_file():
            self.bytes[path] = Path(path).read_bytes().hex()

    def link(self, path):
        if Path(path).is_symlink():
            self.links[path] = os.readlink(path)

    def node(self, path):
        if Path(path).exists():
            self.nodes[path] = f"{stat.S_IMODE(os.stat(path).st_mode):04o}"

    def directory(self, path):
        if Path(path).is_dir():
            self.directories.add(str(path))

    def json(self):
        sections = {"files": self.files, "bytes": self.bytes, "links": self.links, "nodes": self.nodes}
        made = {name: {path.lstrip("/"): value for path, value in sorted(section.items())}
                for name, section in sections.items()}
        made["directories"] = sorted(path.lstrip("/") for path in self.directories)
        return made


def glob(pattern):
    return sorted(str(path) for path in Path("/").glob(pattern.lstrip("/")))


def record_kernel(tree):
    tree.file("/proc/sys/kernel/osrelease")
    # Without what is the runner's.
    tree.files["/proc/cmdline"] = re.sub(r' vm_\w+=("[^"]*"|\S*)', "", Path("/proc/cmdline").read_text())
    tree.file("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    for path in glob("/sys/kernel/mm/hugepages/*/nr_hugepages"):
        tree.file(path)
    for name in TABLES:
        tree.empty(f"/sys/firmware/acpi/tables/{name}")
    tree.binary("/sys/firmware/acpi/tables/IORT")
    for path in [*glob("/sys/module/vfio*"), *glob("/sys/module/iommufd")]:
        tree.directory(path)
    for path in glob("/sys/module/vfio*/parameters/*"):
        tree.file(path)


def record_iommu(tree):
    for path in ("/sys/class/iommu", "/sys/kernel/iommu_groups"):
        tree.directory(path)
    for path in glob("/sys/class/iommu/*"):
        tree.link(path)
        real = os.path.realpath(path)
        tree.directory(real)
        for name in ("intel-iommu/ecap", "intel-iommu/cap", "intel-iommu/version", "amd-iommu/features"):
            tree.file(f"{real}/{name}")
    for path in glob("/sys/kernel/iommu_groups/*/devices/*"):
        tree.link(path)


def record_devices(tree):
    tree.empty("/sys/bus/pci/drivers_probe")
    for path in glob("/sys/bus/pci/drivers/*"):
        tree.directory(path)
        for name in ("bind", "unbind"):
            tree.empty(f"{path}/{name}")
    for path in glob("/sys/bus/pci/devices/*"):
        tree.link(path)
        real = os.path.realpath(path)
        for name in DEVICE_FILES:
            tree.file(f"{real}/{name}")
        for name in ("driver", "iommu_group", "iommu"):
            tree.link(f"{real}/{name}")
        tree.binary(f"{real}/config")
        for name in glob(f"{real}/vfio-dev/*"):
            tree.directory(name)
            tree.file(f"{name}/dev")


def main():
    for ids in sys.argv[1:]:
        vendor, device = (int(word, 16) for word in ids.split(":"))
        for bdf in vm.pci_find(vendor, device):
            vm.PciDevice(bdf).bind_vfio()
    tree = Tree()
    record_kernel(tree)
    record_iommu(tree)
    record_devices(tree)
    for path in [*glob("/dev/iommu"), *glob("/dev/vfio/*"), *glob("/dev/vfio/devices/*")]:
        if stat.S_ISCHR(os.stat(path).st_mode):
            tree.node(path)
    for line in json.dumps(tree.json(), indent=1).splitlines():
        print(f"| {line}")
    print("ok 1 - recorded\n1..1")


if __name__ == "__main__":
    main()
