# SPDX-License-Identifier: MIT
"""The daemon as a service: what it may, who starts it, what ends it and what does not."""

import json
import re
import unittest

import machine
import rig

EXPOSURE = 2.0
# Of /proc/PID/status: whoever the daemon is, it has no capability and can get none.
NOTHING = {"CapInh": "0" * 16, "CapPrm": "0" * 16, "CapEff": "0" * 16, "CapBnd": "0" * 16, "CapAmb": "0" * 16,
           "NoNewPrivs": "1", "Seccomp": "2"}
ELF_HEADERS = "00000010"
BAD = '{"devices": [{"name": "gpu0", "sepc": "vfio-user:/x"}]}'


class Unit(rig.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.machine.say("systemctl", "start", "pasidd", "pasid-refgpu")

    def test_exposure(self):
        for unit in ("pasidd.service", "pasid-refgpu.service"):
            said = self.machine.say("systemd-analyze", "security", "--no-pager", unit)
            figure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said).group(1))
            print(f"figure: exposure of {unit}, by systemd {rig.SYSTEMD}: {figure}", flush=True)
            self.assertLessEqual(figure, EXPOSURE, said)

    def test_nothing_to_complain_of(self):
        """Units that this systemd knows every line of."""
        units = [f"/{path.relative_to(self.tree.path)}" for path in self.tree.path.glob("usr/lib/systemd/system/pasid*")]
        self.assertEqual(len(units), 4)
        self.assertEqual(self.machine.say("systemd-analyze", "verify", "--man=no", *units), "")
        expected = "no devices|Failed to configure loopback"  # the latter is the container's
        for unit in ("pasidd.service", "pasidd.socket", "pasid-refgpu.service"):
            complaints = self.machine.say("journalctl", "--no-pager", "--output=cat", "--priority=warning", "--quiet",
                                          f"--unit={unit}").splitlines()
            self.assertEqual([line for line in complaints if not re.search(expected, line)], [])
        if rig.SYSTEMD >= 254:
            self.machine.say("udevadm", "verify", "/usr/lib/udev/rules.d/70-pasidd.rules")

    def test_what_it_is(self):
        pid = self.machine.main_pid("pasidd")
        status = dict(line.split(":\t", 1) for line in self.machine.proc(pid, "status").splitlines())
        uid, gid = (int(self.machine.say("id", option, "pasidd")) for option in ("-u", "-g"))
        self.assertNotEqual(uid, 0)
        self.assertEqual({status[name] for name in ("Uid", "Gid")}, {"\t".join([str(i)] * 4) for i in (uid, gid)})
        self.assertEqual(status["Groups"].split(), [str(gid)])
        self.assertEqual({name: status[name] for name in NOTHING}, NOTHING)
        limits = {line[:26].strip(): line[26:].split()[:2] for line in self.machine.proc(pid, "limits").splitlines()}
        self.assertEqual(limits["Max core file size"], ["0", "0"])
        self.assertEqual(self.machine.show("pasidd", "LimitMEMLOCK"), "infinity")
        if self.may_raise_limits():
            self.assertEqual(limits["Max locked memory"], ["unlimited"] * 2)
        stored = int(self.machine.show("pasidd", "FileDescriptorStoreMax"))
        self.assertGreater(int(self.machine.show("pasidd", "LimitNOFILE")), stored)
        self.assertGreater(stored, 0)
        self.assertEqual(self.machine.proc(pid, "coredump_filter").strip(), ELF_HEADERS)
        self.assertEqual(self.machine.show("pasidd", "Slice"), "pasidd.slice")
        self.assertEqual(self.machine.show("pasidd", "ControlGroup"), "/pasidd.slice/pasidd.service")
        self.assertEqual(self.machine.show("pasidd", "Type"), "notify-reload" if rig.SYSTEMD >= 253 else "notify")

    def may_raise_limits(self):
        """Has process 1 CAP_SYS_RESOURCE? This machine may not."""
        return int(re.search(r"CapEff:\s*(\w+)", self.machine.proc(1, "status")).group(1), 16) >> 24 & 1

    def test_it_can_write_nowhere(self):
        pid = self.machine.main_pid("pasidd")
        for path in ("/etc/pasidd", "/run/pasidd", "/var/lib", "/usr/sbin", "/home"):
            done = self.machine.run("nsenter", f"--target={pid}", "--mount", "setpriv", "--reuid=pasidd", "--regid=pasidd",
                                    "--clear-groups", "touch", f"{path}/x", check=False)
            self.assertRegex(done.stdout, "Read-only file system|Permission denied", path)


class Service(rig.Case):
    """With the software GPU, which is another service."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.configure(devices=[rig.GPU])
        cls.machine.write("/etc/systemd/system/pasid-refgpu.service.d/test.conf",
                          "[Service]\nExecStart=\nExecStart=/usr/bin/pasid-refgpu --socket /run/pasid-refgpu/socket "
                          "--mode 0660 --slots 2 --status /run/pasid-refgpu/status\n")
        cls.machine.say("systemctl", "daemon-reload")
        cls.start_gpu()

    def setUp(self):
        self.configure(devices=[rig.GPU])
        self.machine.say("systemctl", "stop", "pasidd")

    def ready(self):
        """A daemon that has its device. Its main process."""
        self.assertEqual(json.loads(self.client("devices", "1").stdout), [["gpu0", 1, 1]])
        return self.machine.main_pid("pasidd")

    def await_another(self, pid):
        """Waits for the daemon to be another process than this one, and ready."""
        machine.wait_until(lambda: self.machine.main_pid("pasidd") not in (0, pid)
                           and self.machine.state("pasidd") == "active", "another daemon")

    def test_socket_activation(self):
        """Who connects starts the daemon, and is served."""
        self.assertEqual(self.machine.main_pid("pasidd"), 0)
        self.ready()
        self.assertIn("ok, uid 1", self.client("fill", "3").stdout)
        self.machine.await_journal("pasidd", "the service manager handed over pasidd.socket")

    def test_who_may_connect(self):
        """Members of the group, and nobody starts the daemon who is none."""
        done = self.client("devices", user="eve", check=False)
        self.assertIn("PermissionError", done.stdout)
        self.assertEqual(self.machine.state("pasidd"), "inactive")
        self.ready()
        self.assertIn("PermissionError", self.client("fill", user="eve", check=False).stdout)
        self.client("fill", user="bob")

    def test_bank_and_thief(self):
        self.ready()
        said = self.machine.run("python3", "/opt/guest/demo.py", "--build", "/", "--out", "/opt/pictures", check=False)
        self.assertEqual(said.returncode, 0, said.stdout)
        self.assertIn("ISOLATED: the thief holds 0 of", said.stdout)
        self.assertEqual(len(set(re.findall(r"\(pid \d+, (uid \d+)\)", said.stdout))), 2, said.stdout)

    def test_killed(self):
        """Again and again, faster than any start limit would have it: the next client is served."""
        before = self.restarts()
        for _ in range(10):
            pid = self.ready()
            self.machine.say("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pasidd")
            self.await_another(pid)
        self.ready()
        self.client("fill")
        self.assertGreaterEqual(self.restarts(), before + 10 if before else 10)

    def test_contexts_outlive_it(self):
        """Killed, restarted, ended by its watchdog's signal: whoever has a context goes on with it."""
        pid = self.ready()
        owners = [rig.Owner(self, "socket", user=user) for user in ("alice", "bob")]
        for end in (("kill", "--kill-whom=main", "--signal=KILL"), ("restart",), ("kill", "--kill-whom=main", "--signal=SEGV")):
            self.machine.say("systemctl", *end, "pasidd")
            self.await_another(pid)
            pid = self.machine.main_pid("pasidd")
            self.assertTrue(all(owner.works() for owner in owners), end)

    def test_restart(self):
        """It goes in no time, and who connects meanwhile waits."""
        pid = self.ready()
        self.machine.say("systemctl", "restart", "pasidd")
        self.assertNotIn(self.machine.main_pid("pasidd"), (0, pid))
        self.ready()
        self.client("fill")
        self.assertEqual(self.machine.show("pasidd", "Result"), "success")

    def test_watchdog(self):
        """A daemon that does not turn is ended, and another one begun."""
        self.machine.write("/etc/systemd/system/pasidd.service.d/watchdog.conf", "[Service]\nWatchdogSec=1s\n")
        self.addCleanup(self.machine.say, "systemctl", "daemon-reload")
        self.addCleanup(self.machine.path("/etc/systemd/system/pasidd.service.d/watchdog.conf").unlink)
        self.machine.say("systemctl", "daemon-reload")
        pid = self.ready()
        self.machine.say("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "pasidd")
        self.await_another(pid)
        self.machine.await_journal("pasidd", "Failed with result 'watchdog'")
        self.ready()
        self.client("fill")

    def test_gpu_restarts(self):
        """The device goes and comes, and the daemon stays."""
        pid = self.ready()
        self.machine.say("systemctl", "restart", "pasid-refgpu")
        self.client("devices", "1")
        self.client("fill")
        self.assertEqual(self.machine.main_pid("pasidd"), pid)

    def test_wrong_configuration(self):
        """It is said what is wrong, and tried again until it is not."""
        self.machine.write(rig.CONFIG, BAD)
        done = self.machine.run("systemctl", "start", "pasidd", check=False)
        self.assertNotEqual(done.returncode, 0)
        self.machine.await_journal("pasidd", 'devices[0]: found an unknown key "sepc"')
        self.assertIn(self.machine.state("pasidd"), ("activating", "failed"))
        self.configure(devices=[rig.GPU])
        machine.wait_until(lambda: self.machine.state("pasidd") == "active", "a daemon")
        self.ready()


if __name__ == "__main__":
    unittest.main()
