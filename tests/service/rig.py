# SPDX-License-Identifier: MIT
"""What the tests have in common: machines with the packages installed, the software GPU, users."""

import json
import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

from machine import COMMAND_SECONDS, Machine, Tree

ROOT, INSTALLED, PACKAGES, SUITE = (os.environ[f"SERVICE_{name}"] for name in ("ROOT", "INSTALLED", "PACKAGES", "SUITE"))
TOP = Path(__file__).resolve().parents[2]
# In the machine, for Python programs that run there.
SYSTEM = "/opt/system"
CONFIG = "/etc/pasidd/pasidd.json"
SOCKET = "/run/pasidd/socket"
GPU = {"name": "gpu0", "spec": "vfio-user:/run/pasid-refgpu/socket", "slots": 2}
SYSTEMD = {"bookworm": 252, "trixie": 257}[SUITE]


class Case(unittest.TestCase):
    """One machine for the tests of a class. layers: its file system, the lowest first."""

    layers = (ROOT, INSTALLED)

    @classmethod
    def setUpClass(cls):
        cls.tree = cls.enterClassContext(Tree(*cls.layers))
        cls.copy_clients(cls.tree)
        cls.machine = cls.enterClassContext(Machine(cls.tree))

    @staticmethod
    def copy_clients(tree):
        shutil.copytree(TOP / "tests/system", tree.path / SYSTEM.lstrip("/"))
        shutil.copytree(TOP / "tests/service/guest", tree.path / "opt/guest")

    def client(self, *argv, user="alice", check=True, **options):
        """What a client program of tests/service/guest says: its name, and its arguments."""
        program, *arguments = argv
        return self.machine.run("python3", f"/opt/guest/{program}.py", *arguments, user=user, check=check, **options)

    @classmethod
    def configure(cls, **keys):
        cls.machine.write(CONFIG, json.dumps(keys))

    @classmethod
    def start_gpu(cls):
        cls.machine.say("systemctl", "start", "pasid-refgpu")

    @classmethod
    def packages(cls):
        """Daemon and library, as paths in the machine: as they are, and with a later version."""
        now = []
        for path in Path(PACKAGES).glob("*.deb"):
            if re.match("(pasidd|libpasid0)_", path.name):
                shutil.copy(path, cls.machine.path("/opt"))
                now.append(f"/opt/{path.name}")
        return now, [cls.made_later(path) for path in now]

    @classmethod
    def made_later(cls, package):
        """The same package with a later version."""
        content, made = f"{package}.d", f"{package}.later.deb"
        cls.machine.say("dpkg-deb", "--raw-extract", package, content)
        control = cls.machine.path(f"{content}/DEBIAN/control")
        text = control.read_text()
        version = re.search(r"(?m)^Version: (.*)$", text).group(1)
        control.write_text(re.sub(rf"((?:^Version:|=) {re.escape(version)})", r"\1+later", text, flags=re.M))
        cls.machine.say("dpkg-deb", "--build", content, made)
        return made

    def restarts(self):
        return int(self.machine.show("pasidd", "NRestarts"))


class Owner:
    """A program that owns a context: guest/owner.py."""

    def __init__(self, case, *argv, user="alice"):
        self.program = case.machine.popen("python3", "/opt/guest/owner.py", *argv, user=user, text=True,
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        case.addCleanup(self.end)
        self.id = int(self.program.stdout.readline())
        self.path = f"/org/pasidd/context/{self.id}"

    def works(self):
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        return self.program.stdout.readline() == "ok\n"

    def end(self):
        self.program.stdin.close()
        self.program.stdout.close()
        self.program.wait(COMMAND_SECONDS)
