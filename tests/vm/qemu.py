# SPDX-License-Identifier: MIT
"""QEMU's command lines: an amd64 machine with VT-d; an arm64 one with an SMMUv3, and firmware that describes it by ACPI."""

from pathlib import Path

# no_timer_check: on a busy host a guest may see no tick for so long that its kernel takes the timer for broken.
CMDLINE = {"amd64": "console=ttyS0 no_timer_check", "arm64": "console=ttyAMA0"}


def command(paths, machine):
    """The machine's own, or that of the Debian root, run with the root's libraries and without a chroot."""
    if machine == "amd64" and paths["qemu"]:
        return [paths["qemu"]]
    root = Path(paths["root"])
    program = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[machine]
    words = [root / "lib64/ld-linux-x86-64.so.2", "--library-path", root / "usr/lib/x86_64-linux-gnu",
             root / "usr/bin" / program, "-L", root / "usr/share/qemu", "-L", root / "usr/share/seabios"]
    return [str(word) for word in words]


def machine_arguments(case, paths):
    if case.machine == "amd64":
        return ["-machine", "q35,kernel-irqchip=split,memory-backend=memory", "-cpu", "max", "-device", case.iommu]
    words = ["-machine", "virt,gic-version=3,iommu=smmuv3,memory-backend=memory", "-cpu", "max,pauth-impdef=on",
             "-bios", Path(paths["root"], "usr/share/qemu-efi-aarch64/QEMU_EFI.fd")]
    if case.nested:
        words += ["-global", "arm-smmuv3.stage=nested"]
    return words


def arguments(case, devices, images, run):
    memory = f"memory-backend-{'memfd,share=on' if case.shared_memory else 'ram'},id=memory,size={case.memory}"
    cmdline = f"{CMDLINE[case.machine]} loglevel=5 panic=-1 {case.kernel_iommu} vm_script={case.script} {case.cmdline}"
    if case.args:
        cmdline += f' vm_args="{case.args}"'
    words = ["-accel", "tcg,thread=multi", "-smp", "2"]
    if case.virtual_time:
        words = ["-accel", "tcg,thread=single", "-icount", "shift=3,sleep=off", "-smp", "1"]
    words += [*machine_arguments(case, images.paths),
              "-object", memory, "-m", case.memory, "-display", "none", "-nodefaults", "-no-reboot",
              "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
              "-chardev", f"socket,id=control,path={run}/control", "-serial", "chardev:control",
              "-qmp", f"unix:{run}/qmp,server=off",
              "-kernel", images.kernel(case.kernel), "-initrd", images.initramfs(case), "-append", cmdline]
    for device in devices:
        words += ["-device", device]
    return [str(word) for word in words]
