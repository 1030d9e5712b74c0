# SPDX-License-Identifier: MIT
"""The demo's bank and thief on the GPU and the daemon that run as services, as two users of the group that may connect."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/opt/system/demo")

import run as demo  # noqa: E402


def main_pid(unit):
    return int(subprocess.check_output(["systemctl", "show", "--value", "--property=MainPID", unit], text=True))


class Service:
    def __init__(self, unit):
        self.unit, self.pid = unit, main_pid(unit)

    def __str__(self):
        return f"{self.unit} (pid {self.pid})"

    def status_page(self):
        return Path("/run/pasid-refgpu/status").read_bytes()


class Stage(demo.Stage):
    def __init__(self, args, top):
        super().__init__(args, top)
        self.env = {"PATH": os.environ["PATH"]}
        self.uids = [pwd.getpwnam(name).pw_uid for name in ("alice", "bob")]
        self.groups = [grp.getgrnam("pasid").gr_gid]

    def start_gpu(self):
        return Service("pasid-refgpu.service")

    def start_daemon(self):
        self.daemon = Service("pasidd.service")

    def programs(self):
        return Path("/usr/local/bin"), self.env

    def end_services(self):
        if main_pid("pasidd.service") != self.daemon.pid:
            raise demo.CannotRun("pasidd did not live through it")


demo.Stage = Stage
sys.exit(demo.main())
