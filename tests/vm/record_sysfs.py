#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what pasidctl reads of a machine, for its unit tests: boots the guests below and writes tests/unit/machines.

    record_sysfs.py [--build DIR] [--no-setup] [NAME]...

The trees are in the repository; this is for when pasidctl reads more than was recorded, or for a newer kernel. On a
real machine, tests/vm/guest/record.py alone (as root, with tests/vm/guest as directory) prints the same.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import run
from cases import EDU, VTD, VTD_USER, Case, on_arm, refgpu, refgpu_companion

MACHINES = run.TOP / "tests/unit/machines"
OLD_VTD = "intel-iommu,intremap=on"  # legacy mode

RECORDED = [
    Case("stock", "stock", "record.py", "1234:11e8", iommu=VTD, devices=[EDU], python=True),
    Case("stock-legacy-iommu", "stock", "record.py", iommu=OLD_VTD, devices=[EDU], python=True),
    Case("stock-iommu-off", "stock", "record.py", iommu=VTD, devices=[EDU], python=True, kernel_iommu="intel_iommu=off"),
    Case("iommufd", "iommufd", "record.py", "1234:9a51", iommu=VTD_USER, devices=[refgpu(), EDU], python=True,
         companions={"refgpu0": refgpu_companion()}),
    on_arm("arm64", "record.py", "1234:11e8", python=True),
    on_arm("arm64-nested", "record.py", "1234:11e8", nested=True, python=True),
]


def record(case, images, logs):
    with tempfile.TemporaryDirectory(prefix="pasidd-vm-") as directory, \
            open(logs / f"record-{case.name}.log", "wb", buffering=0) as log:
        machine = run.Machine(case, images, Path(directory), log)
        machine.boot(time.monotonic() + case.timeout)
    if machine.status != 0 or machine.complaints:
        raise run.Broken(f"{case.name}: status {machine.status}, {machine.complaints}; see {log.name}")
    tree = json.loads("\n".join(line[2:] for line in machine.output if line.startswith("| ")))
    (MACHINES / f"{case.name}.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(f"{case.name}: recorded")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=run.TOP / "build-vm", type=Path)
    parser.add_argument("--no-setup", action="store_true")
    parser.add_argument("name", nargs="*")
    args = parser.parse_args()
    paths = run.fill_cache(not args.no_setup)
    chosen = [case for case in RECORDED if not args.name or case.name in args.name]
    for machine in sorted({case.machine for case in chosen}):
        run.build_programs(args.build, machine, paths["sysroot"])
    logs = args.build / "vm"
    logs.mkdir(parents=True, exist_ok=True)
    MACHINES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pasidd-vm-images-") as directory:
        images = run.Images(paths, args.build.resolve(), Path(directory))
        for case in chosen:
            record(case, images, logs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
