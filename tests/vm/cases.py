# SPDX-License-Identifier: MIT
"""The cases: which guest, with which devices, runs what. docs/vm.md tells how to add one."""

import dataclasses
import json

EDU = "edu,id=edu0,dma_mask=0xffffffffffffffff"
EDU1 = EDU.replace("edu0", "edu1")
# QEMU's VT-d as the kernel with iommufd likes it: first-stage tables, PASIDs.
VTD = "intel-iommu,intremap=on,scalable-mode=on,fsts=on"
# For a device that is another process: it is told of mappings only if the guest has to announce them ("caching mode").
VTD_USER = "intel-iommu,intremap=on,scalable-mode=on,caching-mode=on,pasid-bits=20,device-iotlb=on"
VTD_NO_PASID = VTD_USER.replace("pasid-bits=20", "pasid-bits=0")
# What device_del is to take out of a guest sits behind one of these.
ROOT_PORT = "pcie-root-port,id=port0,chassis=1,slot=1"
EDU_SPARE = {"edu0": {"driver": "edu", "id": "edu0", "bus": "port0"}}
# Debian's kernel lets nobody map a PCI device's memory that a driver has claimed, which is how a status page is read.
STATUS_PAGE = "iomem=relaxed"
DMA_FAULT = r"DMAR: .*(fault|DMA (Read|Write))"
SMMU_FAULT = r"arm-smmu-v3 \S+ (event |event: F_|(un)?priv (inst|data) )"
# What QEMU prints once a companion has ended.
QEMU_LOST = r"vfio_user_\w+: |vfio_container_dma|vfio_pci_(read|write)_config"


def refgpu(name="refgpu0", **properties):
    """A reference GPU of this name among the case's companions, as QEMU's device."""
    socket = {"type": "unix", "path": f"$run/{name}.socket"}
    return json.dumps({"driver": "vfio-user-pci", "id": name, "socket": socket, **properties})


@dataclasses.dataclass
class Case:
    """One boot of one guest. In devices and companions $run is a directory of the case's own, $build the programs'."""

    name: str
    kernel: str  # "stock", "iommufd", or "arm64"
    script: str  # in tests/vm/guest
    args: str = ""
    machine: str = "amd64"  # or "arm64"
    iommu: str = VTD  # of an amd64 machine; an arm64 one has an SMMUv3
    nested: bool = False  # may user space of an arm64 machine have the first stage of the SMMU?
    devices: list = dataclasses.field(default_factory=list)  # each an argument of QEMU's -device
    companions: dict = dataclasses.field(default_factory=dict)  # name: command line; it makes $run/NAME.socket
    spares: dict = dataclasses.field(default_factory=dict)  # name: properties, for "host device_add NAME"
    python: bool = False  # does the guest need one?
    virtual_time: bool = False  # the guest's clock runs by instructions; edu's 100 ms then pass at once
    cmdline: str = ""
    kernel_iommu: str = "intel_iommu=on,sm_on"  # what the kernel is told of it
    memory: str = "1G"
    shared_memory: bool = True  # if not, a device that is another process has to ask QEMU for each access
    allowed: list = dataclasses.field(default_factory=list)  # patterns of complaints in the kernel's log that are due
    timeout: int = 120


def refgpu_companion(*options, name="refgpu0"):
    return ["$build/tests/refgpu/pasid-refgpu", "--socket", f"$run/{name}.socket", *options]


# System tests that make sense on a PCI device and in a slow guest; tests/vm/guest/system.py runs them. Left out is what
# needs several devices, or a GPU that is a process, what races with work, and what counts the daemon's memory.
SYSTEM = " ".join((
    "test_second_client",
    *(f"test_sharing.TwoSlots.{test}" for test in (
        "test_every_job_counts_once", "test_forty_contexts_of_five_processes", "test_one_context_is_not_switched",
        "test_scratch_memory_stays_with_its_owner")),
    *(f"test_sharing.Unmapping.{test}" for test in (
        "test_fault_is_a_diagnosis", "test_map_touch_unmap_cycles", "test_replace_never_shows_the_gap",
        "test_split_of_a_block_under_running_work")),
    *(f"test_hang.{tests}" for tests in ("LogLines", "LongJobs", "ObeysReset", "ObeysStop"))))


# Where a way to reach a device is tried.
KERNELS = {"type1": "stock", "iommufd": "iommufd"}


def on_refgpu(name, script, way, args="", **more):
    """A case with the reference GPU."""
    return Case(f"{name}-{way}", KERNELS[way], script, f"{way} {args}".strip(), iommu=VTD_USER,
                devices=[refgpu(), ROOT_PORT], companions={"refgpu0": refgpu_companion()}, python=True,
                cmdline=STATUS_PAGE, **more)


def on_arm(name, script, args="", kernel_iommu="", devices=(EDU,), **more):
    """A case on an arm64 machine with edu."""
    return Case(name, "arm64", script, args, machine="arm64", kernel_iommu=kernel_iommu, devices=list(devices), **more)


# Not a case: asks for the table that cases with nested=True need a changed one of.
IORT = on_arm("iort-arm64", "iort.sh")


def bench_edu(way):
    """In real time, without edu's 100 ms being in anything that is measured."""
    return Case(f"bench-edu-{way}", KERNELS[way], "bench.py", f"{way} Edu", devices=[EDU, EDU1], python=True,
                timeout=300)


def bench_arm(name, args, **more):
    return on_arm(name, "bench.py", args, devices=[EDU, EDU1], python=True, timeout=300, **more)


def bench_refgpu(way, classes):
    names = ("refgpu0", "refgpu1")
    return Case(f"bench-refgpu-{way}", KERNELS[way], "bench.py", f"{way} {classes}", iommu=VTD_USER, python=True,
                devices=[*(refgpu(name) for name in names), EDU],
                companions={name: refgpu_companion(name=name) for name in names}, timeout=300)


# Two devices that share a group, one of which has a driver in either kernel.
SHARED_GROUP = ["pcie-pci-bridge,id=bridge0", f"{EDU1},bus=bridge0,addr=1",
                "pci-serial,bus=bridge0,addr=2"]

# Two functions of one slot that are reset together: in one IOMMU group, and in two.
TOGETHER = [ROOT_PORT, refgpu(bus="port0", addr="0.0", multifunction=True), f"{EDU},bus=port0,addr=0.1"]
APART = [ROOT_PORT, *(refgpu(f"refgpu{i}", bus="port0", addr=f"0.{i}", multifunction=True) for i in range(2))]


def on_slot(devices, way, how, *options):
    """A case of reset.py with these devices. The IOMMU has no PASIDs: Linux warns of a device in such a slot that has."""
    return Case(f"reset-{how.lower()}-{way}", "stock" if way == "type1" else "iommufd", "reset.py", f"{way} {how}",
                iommu=VTD_NO_PASID, devices=devices, python=True, cmdline=STATUS_PAGE,
                companions={f"refgpu{i}": refgpu_companion(*options, name=f"refgpu{i}") for i in range(2)})


CASES = [
    Case("boot-stock", "stock", "boot.sh", devices=[EDU]),
    Case("boot-iommufd", "iommufd", "boot.sh", "iommufd", devices=[EDU]),
    Case("refgpu-pci", "iommufd", "refgpu_pci.py", iommu=VTD_USER, devices=[refgpu()], python=True,
         companions={"refgpu0": refgpu_companion()}),
    Case("refgpu-pci-no-fds", "iommufd", "refgpu_pci.py", iommu=VTD_USER, devices=[refgpu()], python=True,
         companions={"refgpu0": refgpu_companion()}, shared_memory=False),
    on_refgpu("demo", "demo.py", "type1"),
    on_refgpu("demo", "demo.py", "iommufd"),
    on_refgpu("system", "system.py", "type1", SYSTEM, timeout=300),
    on_refgpu("system", "system.py", "iommufd", SYSTEM, timeout=300),
    on_refgpu("trouble", "trouble.py", "type1"),
    on_refgpu("trouble", "trouble.py", "iommufd"),
    *(Case(f"refused-{way}", kernel, "refused.py", way, devices=SHARED_GROUP, python=True)
      for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    *(on_slot(TOGETHER, way, "Together") for way in ("type1", "iommufd")),
    *(on_slot(APART, way, "Apart", "--apart") for way in ("type1", "iommufd")),
    *(Case(f"unplug-{way}", kernel, "unplug.py", way, devices=[ROOT_PORT, f"{EDU},bus=port0"], spares=EDU_SPARE,
           python=True, virtual_time=True) for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    Case("exclusive-type1", "stock", "exclusive.py", "type1", devices=[EDU], python=True, virtual_time=True,
         allowed=[DMA_FAULT]),
    Case("exclusive-iommufd", "iommufd", "exclusive.py", "iommufd", devices=[EDU], python=True, virtual_time=True,
         allowed=[DMA_FAULT]),
    *(Case(name.replace("_", "-"), "iommufd", "mock.sh", name) for name in ("mock_iommu", "mock_context")),
    *(Case(f"adopt-{way}", kernel, "adopt.sh", f"adopt_device {way}", devices=[EDU], virtual_time=True)
      for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    *(Case(f"adopt-intx-{way}", kernel, "adopt.sh", f"adopt_device {way}", devices=[EDU], virtual_time=True,
           cmdline="pci=nomsi") for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    Case("survive-type1", "stock", "survive.py", "Edu type1", devices=[EDU], python=True, virtual_time=True, timeout=300),
    Case("survive-iommufd", "iommufd", "survive.py", "Edu iommufd", devices=[EDU], python=True, virtual_time=True,
         timeout=300),
    Case("survive-unplug", "iommufd", "survive.py", "Unplugged iommufd", devices=[ROOT_PORT, f"{EDU},bus=port0"],
         spares=EDU_SPARE, python=True, virtual_time=True, timeout=300),
    Case("survive-pasid", "iommufd", "survive.py", "Pasid iommufd pasid", iommu=VTD_USER, devices=[refgpu()], python=True,
         companions={"refgpu0": refgpu_companion()}, timeout=300),
    *(Case(f"handed-{way}", kernel, "handed.py", way, devices=[EDU], python=True, virtual_time=True)
      for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    *(Case(f"intx-{way}", kernel, "interrupts.py", f"{way} vfio-intx", devices=[EDU], python=True, virtual_time=True,
           cmdline="pci=nomsi") for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    Case("msi-iommufd", "iommufd", "interrupts.py", "iommufd vfio-msi[0]", devices=[EDU], python=True,
         virtual_time=True),
    Case("exclusive-driver", "iommufd", "exclusive.py", "iommufd tests/drivers/driver-edu.so", devices=[EDU], python=True,
         virtual_time=True, allowed=[DMA_FAULT]),
    *(Case(f"selftest-edu-{way}", kernel, "selftest.py", f"{way} edu exclusive 0", devices=[EDU], python=True,
           virtual_time=True, allowed=[DMA_FAULT]) for way, kernel in (("type1", "stock"), ("iommufd", "iommufd"))),
    on_refgpu("selftest-refgpu", "selftest.py", "type1", "refgpu gpu-mmu 0"),
    on_refgpu("selftest-refgpu", "selftest.py", "iommufd", "refgpu gpu-mmu 0"),
    # No driver puts a PASID on its accesses: what needs no work is tried.
    on_refgpu("selftest-pasid", "selftest.py", "iommufd", "refgpu pasid 2"),
    Case("pasid", "iommufd", "pasid.py", iommu=VTD_USER, devices=[refgpu()], python=True,
         companions={"refgpu0": refgpu_companion()}),
    Case("doctor-stock", "stock", "doctor.sh", "stock", devices=[EDU, *SHARED_GROUP]),
    Case("doctor-iommufd", "iommufd", "doctor.sh", "iommufd", iommu=VTD_USER, devices=[EDU, *SHARED_GROUP, refgpu()],
         companions={"refgpu0": refgpu_companion()}),
    Case("doctor-iommu-off", "stock", "doctor.sh", "iommu-off", devices=[EDU, *SHARED_GROUP],
         kernel_iommu="intel_iommu=off"),
    on_arm("boot-arm64", "boot.sh", "iommufd smmu3"),
    on_arm("boot-arm64-nested", "nesting.py", nested=True, python=True),
    on_arm("exclusive-arm64", "exclusive.py", "iommufd", python=True, virtual_time=True, allowed=[SMMU_FAULT]),
    on_arm("adopt-arm64", "adopt.sh", "adopt_device iommufd", virtual_time=True),
    on_arm("adopt-nested", "adopt.sh", "adopt_nested iommufd", nested=True, virtual_time=True),
    on_arm("doctor-arm64", "doctor.sh", "arm64"),
    on_arm("doctor-arm64-nested", "doctor.sh", "arm64-nested", nested=True),
    on_arm("handed-arm64", "handed.py", "iommufd", python=True, virtual_time=True),
    # A transfer of the daemon that was killed is refused, if the next one has the device by then.
    on_arm("msi-arm64", "interrupts.py", "iommufd vfio-msi[0]", python=True, virtual_time=True, allowed=[SMMU_FAULT]),
    on_arm("selftest-edu-arm64", "selftest.py", "iommufd edu exclusive 0", python=True, virtual_time=True,
           allowed=[SMMU_FAULT]),
    *(on_arm(f"nested-{name.lower()}", "nested.py", name, nested=True, python=True, virtual_time=True)
      for name in ("Switches", "Random", "Failing")),
    on_arm("survive-nested", "survive.py", "Edu iommufd nested", nested=True, python=True, virtual_time=True,
           timeout=300),
    on_arm("fallback-arm64", "fallback.py", "CANWBS", python=True, virtual_time=True),
    Case("fallback-amd64", "iommufd", "fallback.py", "SMMUv3", devices=[EDU], python=True, virtual_time=True),
    on_arm("theft-nested", "theft.py", nested=True, python=True, virtual_time=True),
    on_arm("selftest-edu-nested", "selftest.py", "iommufd edu nested 0", nested=True, python=True, virtual_time=True),
    bench_edu("type1"),
    bench_edu("iommufd"),
    bench_arm("bench-edu-arm64", "iommufd Edu"),
    bench_arm("bench-nested-arm64", "iommufd Nested", nested=True),
    bench_refgpu("type1", "Refgpu"),
    bench_refgpu("iommufd", "Refgpu RefgpuPasid"),
]
