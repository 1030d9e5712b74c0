#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The benchmarks of tests/bench that take PCI devices of the kernel's. Their figures go to the runner, which reports them;
here it is only checked that they came. Arguments: "type1" or "iommufd", and classes of this file.

Each takes two devices: one is the daemon's, for the other the kernel is asked directly.
"""

import os
import subprocess
import sys
import unittest

import vm

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests/system"))
import pasid_client as pc  # noqa: E402

WAY, *CLASSES = vm.ARGUMENTS
MAPS, SWITCHES, NESTED = 8, 2, 12  # figures


class Bench(unittest.TestCase):
    def device(self, ids, which=0):
        """The first of this kind that the guest has, or another."""
        device = vm.PciDevice(vm.pci_find(*ids)[which])
        if device.driver() != "vfio-pci":
            device.bind_vfio()
        return device

    def measure(self, count, program, *arguments):
        """Runs a program that prints so many figures."""
        done = subprocess.run([f"{os.environ['BUILD']}/tests/bench/{program}", *arguments], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, check=True)
        figures = done.stdout.splitlines()
        for line in figures:
            print(f"@figure {line}", flush=True)
        self.assertEqual(len(figures), count)

    def maps(self, mode, device, other):
        daemon = vm.Daemon({"name": "dev0", "spec": f"{WAY}:{device.bdf}", "mode": mode, "answer_ms": 10000})
        self.addCleanup(daemon.stop)
        with pc.Client(daemon.socket) as client:
            vm.wait_for(lambda: client.devices()[0][2])
        os.environ["PASIDD_SOCKET"] = daemon.socket
        self.measure(MAPS, "bench_kernel_map", mode, WAY, other.bdf)


class Edu(Bench):
    def test_maps_exclusive(self):
        self.maps("exclusive", self.device(vm.EDU), self.device(vm.EDU, 1))

    def test_switches(self):
        device, other = self.device(vm.EDU), self.device(vm.EDU, 1)
        self.measure(SWITCHES, "bench_kernel_switch", WAY, device.bdf, other.bdf)


class Nested(Bench):
    def test_maps_nested(self):
        self.maps("nested", self.device(vm.EDU), self.device(vm.EDU, 1))

    def test_nested(self):
        device, other = self.device(vm.EDU), self.device(vm.EDU, 1)
        self.measure(NESTED, "bench_nested", WAY, device.bdf, other.bdf)


class Refgpu(Bench):
    def test_maps_gpu_mmu(self):
        """The other is an edu: of each page that is mapped for a reference GPU here, QEMU tells a process."""
        self.maps("gpu-mmu", self.device(vm.REFGPU), self.device(vm.EDU))


class RefgpuPasid(Bench):
    def test_maps_pasid(self):
        """The other is asked for a PASID, too, of which QEMU tells nobody."""
        self.maps("pasid", self.device(vm.REFGPU), self.device(vm.REFGPU, 1))


if __name__ == "__main__":
    # Daemon, client and bare peers on one: what it takes to wake another processor, which here is a thread of QEMU's, would
    # be most of what is measured.
    os.sched_setaffinity(0, {0})
    vm.run_system([sys.argv[0], *(word for name in CLASSES for word in ("-k", f"*.{name}.*"))])
