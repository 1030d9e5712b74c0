# SPDX-License-Identifier: MIT
"""pasidctl selftest, through the real program: on daemons and devices that are well, that do not isolate, that do not
answer, and on none. What it finds of devices that are not well: tests/mutants. On PCI devices: tests/vm."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402

LINE = re.compile(r"(ok|FAIL|skip) ([a-z-]+)(?:: (.*))?")
OF_A_THIEF = {"thief-leftovers", "thief-reads", "thief-same-iova", "thief-addresses", "thief-ids", "thief-rewrites",
              "thief-writes"}
CHECKS = OF_A_THIEF | {
    "first-job", "fill", "copy", "order", "fence", "many-jobs", "many-contexts", "submissions", "commands-unmapped",
    "private", "switch", "unmap", "remap", "read-only", "freed-context", "fault", "large", "pages", "partial-unmap",
    "unmap-in-use", "replace", "split", "limits", "all-or-none", "released", "bank"}


def selftest(path, *words, device="gpu0"):
    return subprocess.run([harness.program("PASIDCTL"), "selftest", device, "--socket", path, *words],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False)


@contextlib.contextmanager
def running(mode="0600", **device):
    """A stack whose device is there; who may connect is said by `mode`."""
    with harness.Stack([device]) as stack:
        with pc.Client(stack.socket) as client:
            stack.await_device(client)
        os.chmod(stack.dir, 0o755)
        os.chmod(stack.socket, int(mode, 8))
        yield stack


class Case(unittest.TestCase):
    def read(self, done):
        """Its verdicts, {"ok": {name: text}, ...}, and its report."""
        head, _, report = done.stdout.partition("\n\n")
        verdicts = {"ok": {}, "FAIL": {}, "skip": {}}
        for line in head.splitlines():
            word, name, text = LINE.fullmatch(line).groups()
            verdicts[word][name] = text
        self.assertEqual({name for names in verdicts.values() for name in names}, CHECKS, done.stdout)
        self.assertEqual(done.stderr, "")
        return verdicts, report

    def all_is_well(self, done):
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        verdicts, report = self.read(done)
        self.assertEqual(verdicts["ok"].keys(), CHECKS)
        self.assertIn("result:    all is well; 33 ok", report)
        return report

    def cannot(self, done, *said):
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertRegex(done.stderr, r"^pasidctl: .*\n$")
        for text in said:
            self.assertIn(text, done.stderr)


class ForPrograms(Case):
    def test_json(self):
        with running(slots=2) as stack:
            done = selftest(stack.socket, "--json", "--seed", "0xfedcba9876543210")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            found = json.loads(done.stdout)
            self.assertEqual({check["check"] for check in found["checks"]}, CHECKS)
            self.assertEqual({check["outcome"] for check in found["checks"]}, {"ok"})
            self.assertEqual(found["counts"], {"ok": len(CHECKS), "failed": 0, "skipped": 0, "untried": 0})
            self.assertEqual((found["seed"], found["kernel"]), (0xfedcba9876543210, os.uname().release))
            self.assertEqual((found["device"]["name"], found["device"]["driver"], found["device"]["slots"]),
                             ("gpu0", "refgpu", 2))
            self.cannot(selftest(stack.socket, "--json", device="gpu7"), 'no device "gpu7", it has: gpu0\n')


class DriverFile(Case):
    """Whose commands those of the device are."""

    def copy(self, name, to):
        """Where the build lies others may write."""
        path = os.path.join(to, f"{name}.so")
        shutil.copy(os.path.join(harness.program("PASID_DRIVERS"), f"driver-{name}.so"), path)
        os.chmod(path, 0o755)
        return path

    def test_named(self):
        with running() as stack:
            self.all_is_well(selftest(stack.socket, "--driver", self.copy("refgpu", stack.dir)))
            other = self.copy("edu", stack.dir)
            self.cannot(selftest(stack.socket, "--driver", other), '"refgpu"', f"{other} does not know")
            self.cannot(selftest(stack.socket, "--driver", "/no/such.so"), "/no: No such file or directory")
            self.cannot(selftest(stack.socket, "--driver", "x.so"), 'begins with a slash: "x.so"')


class Well(Case):
    def whole_run(self, **device):
        with running(**device) as stack:
            before = stack.await_rest()
            report = self.all_is_well(selftest(stack.socket))
            stack.await_snapshot(before)
            self.assertEqual(stack.status()["conflicts"], 0)
            return report

    def test_one_slot(self):
        report = self.whole_run(slots=1)
        for text in ("device:    gpu0, driver refgpu, mode gpu-mmu\n", " slots 1,", "kernel:    " + os.uname().release):
            self.assertIn(text, report)

    def test_eight_slots(self):
        self.whole_run(slots=8)

    def test_other_tables(self):
        self.whole_run(slots=2, format="x86-64")

    def test_two_at_once(self):
        """Both do all that they do while the other one uses the device."""
        done = []
        with running(slots=1) as stack:
            threads = [threading.Thread(target=lambda: done.append(selftest(stack.socket))) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(done), 2)
        for each in done:
            self.all_is_well(each)

    def test_seed(self):
        with running() as stack:
            self.assertIn("selftest gpu0 --seed 0x1234\n", self.all_is_well(selftest(stack.socket, "--seed", "0x1234")))

    @unittest.skipUnless(os.geteuid() == 0, "only root can be two users")
    def test_two_users(self):
        with running(mode="0666") as stack:
            self.assertIn("bank, thief: uids 61001 and 61002\n", self.all_is_well(selftest(stack.socket)))

    @unittest.skipUnless(os.geteuid() == 0, "only root can be two users")
    def test_two_users_are_kept_out(self):
        with running(mode="0600") as stack:
            self.assertIn("one user: others cannot connect\n", self.all_is_well(selftest(stack.socket)))


class NotWell(Case):
    def test_global(self):
        """There is no isolation, and it shows; all that has nothing to do with it is well."""
        with running(mode="0666", slots=4) as stack:
            stack.stop_daemon()
            stack.devices[0]["mode"] = "global"
            stack.write_config()
            stack.start_daemon()
            with pc.Client(stack.socket) as client:
                stack.await_device(client)
            done = selftest(stack.socket)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        verdicts, report = self.read(done)
        # What is rewritten has to be read at the wrong moment.
        self.assertEqual(verdicts["FAIL"].keys() | {"thief-rewrites"}, {"thief-reads", "thief-rewrites", "thief-writes"})
        self.assertIn("16384 of 16384 bytes of the bank's secret", verdicts["FAIL"]["thief-reads"])
        self.assertIn("mode global keeps nobody apart", verdicts["FAIL"]["thief-reads"])
        self.assertTrue(all(text.startswith("mode global") for text in verdicts["skip"].values()), verdicts)
        self.assertIn(f"result:    {len(verdicts['FAIL'])} of 33 checks FAILED", report)

    def test_device_does_not_answer(self):
        """The daemon gives it up in the middle; the selftest neither waits for ever nor calls that well."""
        with running() as stack:
            stack.gpus[0].send_signal(signal.SIGSTOP)
            harness.await_stopped(stack.gpus[0])
            done = selftest(stack.socket)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        verdicts, _ = self.read(done)
        self.assertIn("first-job", verdicts["FAIL"])
        self.assertEqual(verdicts["skip"]["thief-reads"], "not even the first job was done")

    def test_daemon_does_not_answer(self):
        with running() as stack:
            stack.daemon.send_signal(signal.SIGSTOP)
            harness.await_stopped(stack.daemon)
            self.cannot(selftest(stack.socket), "pasidd did not answer within 20 s")


class Nothing(Case):
    def test_no_daemon(self):
        self.cannot(selftest("/nowhere/socket"), "/nowhere/socket", "is pasidd running?")

    def test_no_such_device(self):
        with running() as stack:
            self.cannot(selftest(stack.socket, device="gpu7"), 'no device "gpu7", it has: gpu0\n')

    def test_device_is_gone(self):
        with running() as stack:
            stack.stop_gpu()
            with pc.Client(stack.socket) as client:
                harness.wait_until(lambda: not client.devices()[0][2], "a device that is gone")
            self.cannot(selftest(stack.socket), "gpu0 is gone at the moment")


class FakeDaemon(threading.Thread):
    """Answers HELLO and DEVICE_INFO (docs/protocol.md), the latter with what it is told."""

    DEFAULT = {"engine": b"refgpu", "mode": 1, "present": 1, "pages": 4096, "first": 65536, "last": (1 << 47) - 1,
               "features": 3, "bits": 20, "slots": 8, "limit": 2000, "submit_max": 1 << 20}

    def __init__(self, path, **info):
        super().__init__()
        v = {**self.DEFAULT, **info}
        self.info = pc.name("gpu0") + v["engine"].ljust(32, b"\0") + b"".join(
            v[key].to_bytes(size, "little") for key, size in (
                ("mode", 4), ("present", 4), ("pages", 8), ("first", 8), ("last", 8), ("features", 8), ("bits", 4),
                ("slots", 4), ("limit", 4), ("submit_max", 4)))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen()

    def run(self):
        with self.listener, self.listener.accept()[0] as client, open(os.memfd_create("fences"), "r+b") as fences:
            fences.truncate(4096)
            while request := client.recv(pc.MSG_MAX):
                _, opcode, _, serial = pc.HEADER.unpack_from(request)
                hello = opcode == pc.HELLO
                body = b"".join(n.to_bytes(4, "little") for n in (1, 65536, 1024, 16, 0, 0, 4096, 0)) if hello else self.info
                reply = pc.REPLY.pack(0, 0, 0, 0, 0, 0) + body
                fds = [fences.fileno()] if hello else []
                socket.send_fds(client, [pc.HEADER.pack(len(reply) + 16, opcode, len(fds), serial) + reply], fds)


class Dies(Case):
    def test_daemon_dies(self):
        """It says what the device is, and is gone."""
        with harness.Stack() as stack:
            path = os.path.join(stack.dir, "fake.sock")
            fake = FakeDaemon(path)
            fake.start()
            done = selftest(path)
            fake.join(harness.DEADLINE)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        verdicts, _ = self.read(done)
        self.assertIn("first-job", verdicts["FAIL"])
        self.assertEqual(verdicts["ok"], {})
        self.assertIn("pasidd is gone, see first-job", verdicts["skip"]["thief-writes"])


class NotCredible(Case):
    """What a daemon says of a device is looked at before it is used."""

    def tell(self, *said, **info):
        with harness.Stack() as stack:
            path = os.path.join(stack.dir, "fake.sock")
            fake = FakeDaemon(path, **info)
            fake.start()
            try:
                self.cannot(selftest(path), *said)
            finally:
                fake.join(harness.DEADLINE)

    def test_unknown_driver(self):
        self.tell('driver "other"', "whose commands pasidctl does not know", engine=b"other")

    def test_slots(self):
        for slots in (0, 65, 0xffffffff):
            self.tell("slots", slots=slots)

    def test_addresses(self):
        self.tell("addresses", first=1 << 40, last=1 << 30)
        self.tell("addresses", first=0, last=4095)

    def test_commands_and_pages(self):
        self.tell("takes no commands", submit_max=0)
        self.tell("takes no commands", pages=1 << 16)


if __name__ == "__main__":
    unittest.main()
