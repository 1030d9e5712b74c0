# SPDX-License-Identifier: MIT
"""Debian systems that are booted in containers, with systemd as process 1, and thrown away.

Tree is a file system made of layers (overlayfs), changed in memory only. Machine boots one. Commands run in a machine by
entering its namespaces, so nothing has to be in it for that. Whoever uses this runs as root, in a mount namespace of its
own: what is mounted here is seen by nobody else and ends with it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

BOOT_SECONDS = 60
COMMAND_SECONDS = 60
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root",
               "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
OVERLAY_SPACE = "2G"  # of memory, at most


class Failed(Exception):
    """A command did not end as it should; all that it said."""


def wait_until(predicate, what, seconds=30):
    """Waits until predicate() is true and returns what it returned."""
    end = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def run(argv, check=True, **options):
    """A finished command with its output, both streams in one."""
    options.setdefault("timeout", COMMAND_SECONDS)
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False, **options)
    if check and done.returncode:
        raise Failed(f"{' '.join(str(a) for a in argv)}: status {done.returncode}\n{done.stdout}")
    return done


class Tree:
    """layers: directories, the lowest first. The lowest may be all there is; what is changed is in `upper`."""

    def __init__(self, *layers):
        self.layers = [str(layer) for layer in layers]
        self.top = self.path = self.upper = None

    def __enter__(self):
        self.top = Path(tempfile.mkdtemp(prefix="pasidd-service-"))
        run(["mount", "-t", "tmpfs", "-o", f"size={OVERLAY_SPACE},mode=0755", "tmpfs", self.top])
        self.path, self.upper = self.top / "root", self.top / "upper"
        for path in (self.path, self.upper, self.top / "work"):
            path.mkdir(mode=0o755)
        run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={':'.join(reversed(self.layers))},"
             f"upperdir={self.upper},workdir={self.top}/work,metacopy=on", self.path])
        return self

    def __exit__(self, *_):
        run(["umount", "--lazy", self.path])
        run(["umount", "--lazy", self.top])
        self.top.rmdir()

    def chroot(self, *argv, **options):
        return run(["chroot", self.path, "/usr/bin/env", "-i", *(f"{k}={v}" for k, v in ENVIRONMENT.items()), *argv],
                   **options)

    def copy(self, source, target, mode=None):
        """A file into the tree, root's."""
        to = self.path / str(target).lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
        to.chmod(mode if mode is not None else os.stat(source).st_mode & 0o777)


class Machine:
    """A tree that runs: systemd, or, with `boots` False, a container in which nothing runs but what is begun there. uids:
    the one that its root is, with as many more of its own; none: everybody is who he is here. Its log is what its process 1
    says on the console."""

    count = 0

    def __init__(self, tree, options=(), boots=True, uids=None):
        self.tree = tree
        self.options = list(options)
        if uids is not None:
            self.options += [f"--private-users={uids}:65536", "--private-users-ownership=chown"]
        self.uids = [] if uids is None else ["--user", "--setuid=0", "--setgid=0"]
        self.boots = boots
        self.first = ["--boot"] if boots else ["sleep", "infinity"]
        Machine.count += 1
        self.name = f"pasidd-{os.getpid()}-{Machine.count}"
        self.nspawn = self.leader = None
        self.log = tree.top / "console"

    def __enter__(self):
        # Whatever ends us ends the container.
        command = ["setpriv", "--pdeathsig", "KILL", "systemd-nspawn", "-D", self.tree.path, f"--machine={self.name}",
                   "--register=no", "--keep-unit", "--quiet", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
                   "--console=pipe", *self.options, *self.first]
        with open(self.log, "wb") as log:
            self.nspawn = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                           env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
        try:
            self.leader = wait_until(self.find_leader, "process 1", BOOT_SECONDS)
            wait_until(self.is_up, "the end of the boot", BOOT_SECONDS)
        except BaseException as error:
            self.stop()
            if isinstance(error, Failed):
                raise Failed(f"{error}\n{self.log.read_text(errors='replace')}") from None
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """At once; nothing of it is needed any more."""
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        else:
            self.nspawn.kill()
        self.nspawn.wait()

    def find_leader(self):
        if self.nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with status {self.nspawn.returncode}")
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text(encoding="ascii")
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text(encoding="ascii") in ("systemd\n", "sleep\n"):
                    return pid
        return None

    def is_up(self):
        if self.nspawn.poll() is not None:
            raise Failed(f"systemd-nspawn ended with status {self.nspawn.returncode}")
        if not self.boots:
            return True
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def command(self, *argv, user=None, env=None):
        """What to type on this machine for a command to run in that one."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        enter += self.uids
        who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        variables = {**ENVIRONMENT, **(env or {})}
        return enter + ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in variables.items())] + who + [str(a) for a in argv]

    def run(self, *argv, user=None, env=None, **options):
        return run(self.command(*argv, user=user, env=env), **options)

    def say(self, *argv, **options):
        """The output of a command that succeeds."""
        return self.run(*argv, **options).stdout

    def popen(self, *argv, user=None, env=None, **options):
        return subprocess.Popen(self.command(*argv, user=user, env=env), **options)

    # What tests look at.

    def path(self, path):
        """A file of the machine as this one sees it, what is mounted there included."""
        return Path(f"/proc/{self.leader}/root/{path.lstrip('/')}")

    def write(self, path, text, mode=0o644):
        to = self.path(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
        to.chmod(mode)

    def show(self, unit, name):
        """A property of a unit."""
        return self.say("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def state(self, unit):
        return self.show(unit, "ActiveState")

    def main_pid(self, unit):
        """Its main process, by its number in the machine; 0: there is none."""
        return int(self.show(unit, "MainPID"))

    def proc(self, pid, name):
        """A file of /proc/PID."""
        return self.say("cat", f"/proc/{pid}/{name}")

    def processes(self, prefix):
        """Names of processes that begin so."""
        names = self.run("sh", "-c", "cat /proc/[0-9]*/comm", check=False).stdout.split()
        return [name for name in names if name.startswith(prefix)]

    def journal(self, unit, *options):
        return self.say("journalctl", "--no-pager", "--output=cat", f"--unit={unit}", *options)

    def await_journal(self, unit, *words, seconds=30):
        """Waits for a line with all of these words, and returns it."""
        def found():
            return next((line for line in self.journal(unit).splitlines() if all(w in line for w in words)), None)

        try:
            return wait_until(found, f"{unit} says {words}", seconds)
        except Failed as error:
            raise Failed(f"{error}\n{self.journal(unit)}") from None
