#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes the initial file system of a guest: busybox, programs with the libraries they need, files, kernel modules.

    initramfs.py --output FILE --busybox FILE [--module FILE]... [--program FILE]... [--tree DIRECTORY=PATH]...
                 [--build DIRECTORY=PATH] [--python] [--sysroot DIRECTORY] [--iort FILE]

It is a cpio archive (the kernel's "newc"), written here so that device nodes need no root, and not compressed: a guest
without KVM takes longer to unpack it than QEMU takes to load it. Programs lie in the guest where they lie here, so
that Debian's Python and all libraries find their own; --tree and --build name a path of their own.

--sysroot: for another architecture; busybox, Python and libraries are those there, and --busybox, which can be run here,
only says which commands there are. --iort puts a table where the kernel takes it instead of the firmware's.
"""

import argparse
import functools
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "usr/bin/python3"
BUSYBOX = "usr/bin/busybox"
# The guest's init loads what "order" there lists.
MODULES = "/lib/modules/vfio"
IORT = "/kernel/firmware/acpi/IORT.aml"
# Of Python's library, what no test imports and takes most of the space.
PYTHON_WITHOUT = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data",
                  "distutils", "dist-packages", "__phello__"}


# Merged as on Debian: libraries and loaders are named either way.
MERGED = ("bin", "sbin", "lib", "lib64")
SYSROOT_LIBRARIES = ("usr/lib/aarch64-linux-gnu", "usr/lib")


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


@functools.cache
def libraries(path):
    """The shared libraries that a program or library needs, the loader included; none if it is static."""
    done = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    found = []
    for line in done.stdout.splitlines():
        name, _, rest = line.strip().partition(" => ")
        word = (rest or name).split(" (")[0]
        if word == "not found":
            raise SystemExit(f"{path} needs {name}, which is not there")
        if word.startswith("/"):
            found.append(Path(word))
    return found


@functools.cache
def elf_needs(path):
    """The libraries and the loader that it names, and its run path."""
    done = subprocess.run(["readelf", "-dlW", path], stdout=subprocess.PIPE, text=True, check=True)
    found = {"needed": [], "runpath": []}
    for line in done.stdout.splitlines():
        if match := re.search(r"\(NEEDED\).*\[(.*)\]|interpreter: (.*)\]", line):
            found["needed"].append(match[1] or match[2])
        elif match := re.search(r"\(RUNPATH\).*\[(.*)\]", line):
            found["runpath"] = match[1].replace("$ORIGIN", str(path.parent)).split(":")
    return found


def sysroot_libraries(path, sysroot):
    """As libraries() for a program that this machine's loader cannot load."""
    places = [sysroot / directory for directory in SYSROOT_LIBRARIES]
    found, left = {}, [Path(path)]
    while left:
        needs = elf_needs(left.pop())
        for name in needs["needed"]:
            candidates = [Path(place, name) for place in (*needs["runpath"], *places)]
            if name.startswith("/"):  # the loader
                candidates = [sysroot / name.lstrip("/")]
            library = next((candidate for candidate in candidates if candidate.exists()), None)
            if not library:
                raise SystemExit(f"{path} needs {name}, which is not in {sysroot}")
            if library not in found:
                found[library] = True
                left.append(library.resolve())
    return list(found)


class Archive:
    """Files by their path in the guest; a directory is there once something lies in it. Written in one go."""

    def __init__(self, build=None, sysroot=None):
        """build: a directory whose libraries are not those of the system; sysroot: the system, if it is not this one."""
        self.build = Path(build).resolve() if build else None
        self.sysroot = Path(sysroot).resolve() if sysroot else None
        self.entries = {name: (stat.S_IFLNK | 0o777, f"usr/{name}".encode(), (0, 0)) for name in MERGED}

    def system(self, path):
        """A file of the system, from its path there."""
        return Path(self.sysroot or "/", path)

    def inside(self, path):
        """Where a file of the system lies in the guest."""
        return Path("/", path.relative_to(self.sysroot or "/"))

    def libraries(self, path):
        return sysroot_libraries(path, self.sysroot) if self.sysroot else libraries(path)

    def _add(self, path, mode, data=b"", rdev=(0, 0)):
        path = str(path).lstrip("/")
        if path.split("/")[0] in MERGED:
            path = f"usr/{path}"
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.directory(parent)
        self.entries[path] = (mode, data, rdev)

    def directory(self, path, mode=0o755):
        self._add(path, stat.S_IFDIR | mode)

    def symlink(self, path, target):
        self._add(path, stat.S_IFLNK | 0o777, str(target).encode())

    def char_device(self, path, major, minor):
        self._add(path, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def text(self, path, text, mode=0o644):
        self._add(path, stat.S_IFREG | mode, text.encode())

    def file(self, source, path=None):
        """A file or a symbolic link with what it points at. Read when the archive is written."""
        source = Path(source)
        path = Path(path or source)
        if source.is_symlink():
            target = os.readlink(source)
            self.symlink(path, target)
            if not os.path.isabs(target):
                self.file(source.parent / target, os.path.normpath(path.parent / target))
            else:
                self.file(target)
            return
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self._add(path, stat.S_IFREG | mode, source)

    def program(self, source, path=None):
        """A program or a library, and the libraries it needs."""
        self.file(source, path)
        for library in self.libraries(os.path.realpath(source)):
            # By its real name once, and by the name that the loader looks for.
            real = library.resolve()
            if self.build and self.build in real.parents:
                continue
            path = self.inside(library)
            self.file(real, path.parent / real.name)
            if real.name != path.name:
                self.symlink(path, real.name)

    def tree(self, source, path, skip=lambda file: False):
        source, path = Path(source), Path(path)
        self.directory(path)
        for entry in sorted(source.iterdir()):
            if skip(entry):
                continue
            if entry.is_dir() and not entry.is_symlink():
                self.tree(entry, path / entry.name, skip)
            elif entry.is_symlink():
                self.symlink(path / entry.name, os.readlink(entry))
            elif is_elf(entry):
                self.program(entry, path / entry.name)
            else:
                self.file(entry, path / entry.name)

    def write(self, output):
        with open(output, "wb") as out:
            for number, (path, entry) in enumerate(self.entries.items(), 1):
                write_entry(out, number, path, *entry)
            write_entry(out, 0, "TRAILER!!!", 0, b"", (0, 0))


def write_entry(out, number, path, mode, data, rdev):
    mtime = 0
    if isinstance(data, Path):
        # Python compiles again what does not look like what it compiled.
        mtime = int(data.stat().st_mtime)
        data = data.read_bytes()
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, mtime, len(data), 0, 0, *rdev, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def add_busybox(archive, busybox):
    archive.file(archive.system(BUSYBOX) if archive.sysroot else busybox, "/bin/busybox")
    listed = subprocess.run([busybox, "--list"], check=True, stdout=subprocess.PIPE, text=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            archive.symlink(f"/bin/{applet}", "busybox")


def add_system(archive):
    """What any program expects: accounts (two without rights, for tests between users), places to write."""
    archive.file(HERE / "init", "/init")
    archive.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nbank:x:1001:1001::/tmp:/bin/sh\n"
                 "thief:x:1002:1002::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    archive.text("/etc/group", "root:x:0:\nbank:x:1001:\nthief:x:1002:\nnogroup:x:65534:\n")
    archive.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\n")
    for path in ("/proc", "/sys", "/dev", "/run", "/root", "/etc", "/var"):
        archive.directory(path)
    archive.directory("/tmp", 0o1777)
    # The kernel opens this one before anything can mount a /dev.
    archive.char_device("/dev/console", 5, 1)


def add_build(archive, build, path):
    """All programs and shared libraries of a build directory, at the places where its run paths expect them."""
    build, path = Path(build), Path(path)
    for file in sorted(build.rglob("*")):
        relative = file.relative_to(build)
        if "meson-private" in relative.parts or not file.is_file() or not os.access(file, os.X_OK):
            continue
        if file.is_symlink():
            archive.symlink(path / relative, os.readlink(file))
        elif is_elf(file):
            archive.program(file, path / relative)


def add_python(archive):
    python = archive.system(PYTHON)
    if not python.exists():
        raise SystemExit(f"{python} is not there: apt-get install python3")
    program = python.resolve()
    archive.program(program, archive.inside(program))
    archive.symlink(archive.inside(python), program.name)
    # glibc loads it when a thread ends early.
    for library in archive.libraries(program):
        extra = library.parent / "libgcc_s.so.1"
        if library.name == "libc.so.6" and extra.exists():
            archive.program(extra, archive.inside(extra))
    library = archive.system("usr/lib") / program.name
    archive.tree(library, archive.inside(library),
                 lambda entry: entry.name in PYTHON_WITHOUT or entry.name.startswith("config-"))


def from_to(word):
    """DIRECTORY=PATH, or only DIRECTORY."""
    source, _, path = word.partition("=")
    return source, path or source


def build_archive(args):
    archive = Archive(from_to(args.build)[0] if args.build else None, args.sysroot)
    if args.iort:
        archive.file(args.iort, IORT)
    add_system(archive)
    add_busybox(archive, args.busybox)
    for module in args.module:
        archive.file(module, f"{MODULES}/{Path(module).name}")
    if args.module:
        archive.text(f"{MODULES}/order", "".join(f"{Path(module).name}\n" for module in args.module))
    for program in args.program:
        archive.program(program)
    for tree in args.tree:
        archive.tree(*from_to(tree), lambda entry: entry.name == "__pycache__")
    if args.build:
        add_build(archive, *from_to(args.build))
    if args.python:
        add_python(archive)
    return archive


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--busybox", required=True)
    parser.add_argument("--module", action="append", default=[], help="in the order in which they are loaded")
    parser.add_argument("--program", action="append", default=[])
    parser.add_argument("--tree", action="append", default=[])
    parser.add_argument("--build")
    parser.add_argument("--python", action="store_true")
    parser.add_argument("--sysroot")
    parser.add_argument("--iort")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    build_archive(args).write(args.output)


if __name__ == "__main__":
    sys.exit(main())
