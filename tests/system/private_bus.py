# SPDX-License-Identifier: MIT
"""A D-Bus of the test's own, and pasidctl on it."""

import os
import shutil
import signal
import subprocess
import tempfile
import unittest

import harness

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """dbus-daemon, until stop(). Everybody may connect."""

    def __init__(self):
        if not shutil.which("dbus-daemon"):
            raise unittest.SkipTest("there is no dbus-daemon")
        self.dir = tempfile.mkdtemp(prefix="pasidd-bus-")
        os.chmod(self.dir, 0o755)
        self.path = os.path.join(self.dir, "bus")
        self.address = f"unix:path={self.path}"
        config = os.path.join(self.dir, "bus.conf")
        with open(config, "w", encoding="utf-8") as f:
            f.write(CONFIG.format(path=self.path))
        self.process = subprocess.Popen(["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        harness.wait_until(lambda: os.path.exists(self.path), "a bus")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(harness.DEADLINE)
        shutil.rmtree(self.dir, ignore_errors=True)

    def pasidctl(self, *words, **options):
        """The process, when it has ended."""
        return subprocess.run(self.argv(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                              check=False, **options)

    def argv(self, *words):
        return [harness.program("PASIDCTL"), *words, "--bus", self.address]

    def await_pasidd(self):
        harness.wait_until(lambda: self.pasidctl("stats").returncode == 0, "pasidd on the bus")
