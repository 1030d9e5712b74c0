#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests of the packages under a real systemd: Debian systems that are booted in containers, as root only.

    run.py [--results FILE] [--suite SUITE]... [--no-setup] [TEST[:CLASS.TEST]]...

What they run on comes from cache.sh, which this program runs first; where a machine cannot make it, the tests are
skipped, and the reason is said. For each suite of Debian the packages are built in it, by dpkg-buildpackage; lintian looks
at them; then tests/service/test_*.py run, each file with machines of its own. --results appends lines as tests/run.py does.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import Failed, Tree, run

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
BUILD_SECONDS = 400
TEST_SECONDS = 300
CACHE_UNAVAILABLE = 2  # cache.sh's status where the machine cannot make it
IN_A_NAMESPACE = "PASIDD_SERVICE_NAMESPACE"
PACKAGES = ("pasidd", "libpasid0", "pasidctl", "pasid-refgpu")
PROGRAMS = ("tests/system/demo/demo-bank", "tests/system/demo/demo-thief")


def load_test_runner():
    """tests/run.py, which has the same name as this file."""
    spec = importlib.util.spec_from_file_location("test_runner", HERE.parent / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_test_runner()


class Unavailable(Exception):
    """The tests cannot be run on this machine; why."""


def own_namespace():
    """Goes on in a mount namespace of its own: what is mounted from here on ends with this program."""
    if os.environ.get(IN_A_NAMESPACE):
        # What systemd-nspawn leaves there.
        Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "tmpfs", "/run/systemd/nspawn"])
        return
    done = run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False)
    if done.returncode:
        raise Unavailable(f"nothing can be mounted here: {done.stdout.strip()}")
    os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], {**os.environ, IN_A_NAMESPACE: "1"})


def check_machine():
    if not shutil.which("systemd-nspawn"):
        raise Unavailable("there is no systemd-nspawn; type: apt-get install systemd-container")
    for name in ("overlay", "cgroup2"):
        if name not in Path("/proc/filesystems").read_text(encoding="ascii").split():
            raise Unavailable(f"this kernel has no {name} file system")


def find_cache(setup):
    """What cache.sh says, by name."""
    done = subprocess.run([HERE / "cache.sh"] + ([] if setup else ["--no-setup"]), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True, check=False)
    said = done.stdout.strip().splitlines()
    if done.returncode == CACHE_UNAVAILABLE:
        raise Unavailable(f"the cache of Debian roots cannot be made here ({said[-1] if said else 'nothing was said'})")
    if done.returncode:
        raise Failed(f"tests/service/cache.sh: status {done.returncode}")
    return dict(line.split("=", 1) for line in said if "=" in line)


class Suite:
    """One Debian, and what is built and installed in it."""

    def __init__(self, name, cache, directory):
        self.name = name
        self.root, self.build = cache[f"root_{name}"], cache[f"build_{name}"]
        self.ccache = cache["ccache"]
        self.packages, self.programs, self.installed = (directory / name / d for d in ("packages", "programs", "installed"))
        for path in (self.packages, self.programs, self.installed):
            path.mkdir(parents=True)
            path.chmod(0o755)
        self.lines = []
        self.log = ""

    def result(self, word, name, reason=""):
        self.lines.append((word, name, reason))

    def copy_source(self, to):
        """What git knows of, or would if it were told."""
        files = run(["git", "-c", f"safe.directory={TOP}", "ls-files", "-co", "--exclude-standard"], cwd=TOP).stdout
        for name in files.splitlines():
            if (TOP / name).is_file():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(TOP / name, to / name, follow_symlinks=False)

    def build_packages(self):
        started = time.monotonic()
        with Tree(self.build) as tree:
            source = tree.path / "build/pasidd"
            source.mkdir(parents=True)
            self.copy_source(source)
            (tree.path / "ccache").mkdir()
            run(["mount", "--bind", self.ccache, tree.path / "ccache"])
            build = tree.chroot("sh", "-ec", "mount -t proc proc /proc; cd /build/pasidd; export CCACHE_DIR=/ccache "
                                "PATH=/usr/lib/ccache:$PATH DEB_BUILD_OPTIONS='nocheck noautodbgsym'; "
                                "nice dpkg-buildpackage -us -uc -b", check=False, timeout=BUILD_SECONDS)
            self.log = build.stdout
            if build.returncode:
                self.result("fail", "build", f"dpkg-buildpackage: status {build.returncode}")
                return False
            self.result("pass", "build")
            self.lintian(tree)
            for path in (tree.path / "build").glob("*.deb"):
                shutil.copy(path, self.packages)
            for path in PROGRAMS:
                shutil.copy(next(source.glob(f"obj-*/{path}")), self.programs)
            run(["umount", tree.path / "proc", tree.path / "ccache"])
        print(f"{self.name}: packages built in {time.monotonic() - started:.0f} s")
        return True

    def lintian(self, tree):
        said = tree.chroot("sh", "-c", "cd /build; lintian --allow-root --fail-on error pasidd_*.changes", check=False,
                           timeout=BUILD_SECONDS)
        for line in said.stdout.splitlines():
            print(f"{self.name}: lintian: {line}")
        errors = re.findall(r"(?m)^E: .*", said.stdout)
        if said.returncode or errors:
            self.result("fail", "lintian", "; ".join(errors) or f"status {said.returncode}")
        else:
            self.result("pass", "lintian")

    def install(self):
        """The packages in a layer of their own, as an installer would: without a systemd that runs."""
        with Tree(self.root) as tree:
            for name in PACKAGES:
                tree.copy(next(self.packages.glob(f"{name}_*.deb")), f"/var/tmp/{name}.deb")
            said = tree.chroot("sh", "-ec", "dpkg -i /var/tmp/*.deb; rm /var/tmp/*.deb; usermod -aG pasid alice; "
                               "usermod -aG pasid bob", check=False)
            self.log += said.stdout
            if said.returncode:
                self.result("fail", "install", f"dpkg: status {said.returncode}")
                return False
            for path in self.programs.iterdir():
                tree.copy(path, f"/usr/local/bin/{path.name}", 0o755)
            # As overlayfs keeps it: files that are gone are devices, and attributes say which directories are whole.
            run(["cp", "-a", f"{tree.upper}/.", self.installed])
        return True

    def run_tests(self, names):
        env = {"SERVICE_SUITE": self.name, "SERVICE_ROOT": self.root, "SERVICE_INSTALLED": str(self.installed),
               "SERVICE_PACKAGES": str(self.packages)}
        for path in sorted(HERE.glob("test_*.py")):
            described = {"suite": ["service"], "name": path.stem, "env": env, "workdir": None, "timeout": TEST_SECONDS,
                         "is_parallel": False, "cmd": [sys.executable, str(HERE.parent / "run_system.py"), str(path)]}
            parts = [one for test, one in map(runner.split_name, names) if test == path.stem]
            if names and not parts:
                continue
            test = runner.Test(described)
            if parts and "" not in parts:
                test.argv += [word for one in parts for word in ("-k", f"*.{one}")]
            outcome = runner.run_test(test, self.name, False)
            for line in outcome.output.splitlines():
                if line.startswith("figure: "):
                    print(f"{self.name}: {line.removeprefix('figure: ')}")
            runner.show(outcome)
            self.lines += [(word, name.removeprefix("service/"), reason) for word, name, reason in outcome.lines]

    def run(self, names):
        """Lines for the results."""
        print(f"== Debian {self.name}", flush=True)
        if self.build_packages() and self.install():
            self.run_tests(names)
        else:
            print(self.log[-8000:])
        return self.lines


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results")
    parser.add_argument("--suite", action="append", default=[])
    parser.add_argument("--no-setup", action="store_true")
    parser.add_argument("names", nargs="*")
    return parser.parse_args()


def main():
    args = parse_arguments()
    started = time.monotonic()
    lines = []
    try:
        if os.geteuid() != 0:
            raise Unavailable("booting containers takes root")
        own_namespace()
        cache = find_cache(not args.no_setup)
        check_machine()
        with tempfile.TemporaryDirectory(prefix="pasidd-service-") as directory:
            Path(directory).chmod(0o755)
            for name in args.suite or cache["suites"].split():
                suite = Suite(name, cache, Path(directory))
                lines += [(word, f"{name}/{what}", reason) for word, what, reason in suite.run(args.names)]
    except Unavailable as why:
        print(f"SKIPPED: the tests with a real service manager: {why}")
        lines.append(("skip", "all", str(why)))
    except Failed as error:
        print(f"FAILED: {error}")
        lines.append(("fail", "all", str(error).splitlines()[0]))
    print(f"in {time.monotonic() - started:.0f} s")
    return runner.record(args.results, "service/", lines)


if __name__ == "__main__":
    sys.exit(main())
