# SPDX-License-Identifier: MIT
"""What pasidctl shows of a daemon, over D-Bus: to root, to the owner of a context, to a stranger; on a terminal and without.
The trace: test_trace.py. The command line, and why there is no bus: test_pasidctl.py."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from ctl import CtlTest  # noqa: E402
from dbus_stack import OWNER, STRANGER  # noqa: E402
from timeline import Timeline  # noqa: E402
from work import FILL, HANG, HANG_OBEYS_STOP, PAGE, await_loss, command, settled  # noqa: E402

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, test, argv, rows=24, columns=100, term="xterm"):
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        env={**os.environ, "TERM": term})
        self.slave = slave
        self.text = ""
        test.addCleanup(self.close)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            self.text += os.read(self.master, 65536).decode()

    def await_text(self, pattern):
        """What stands there from the beginning of the last screen on, once that matches."""
        end = time.monotonic() + harness.DEADLINE
        while not re.search(pattern, self.screen()):
            if time.monotonic() > end:
                raise harness.HarnessError(f"no {pattern}, but {self.text[-3000:]!r}")
            self.read(0.2)
        return self.screen()

    def screen(self):
        return self.text.rsplit("\x1b[H\x1b[J", 1)[-1]

    def key(self, key):
        os.write(self.master, key)

    def end(self):
        """Its status, once it has ended; all of its text is there then."""
        harness.wait_until(lambda: (self.read(0), self.process.poll() is not None)[1], "the program ends")
        self.read(0)
        return self.process.returncode


class Lists(CtlTest):
    devices = [{"slots": 2, "job_limit_ms": 250}, {"slots": 3, "mode": "global"}]

    def test_devices(self):
        space = self.space()
        self.assertTrue(space.wait(space.submit(space.add_one())))
        rows = self.table("devices")
        self.assertEqual([row["DEVICE"] for row in rows], ["gpu0", "gpu1"])
        self.assertEqual([row["MODE"] for row in rows], ["gpu-mmu", "global"])
        self.assertEqual([(row["STATE"], row["SLOTS"], row["DRIVER"]) for row in rows],
                         [("ready", "2", "refgpu"), ("ready", "3", "refgpu")])
        self.assertEqual((rows[0]["CONTEXTS"], rows[1]["CONTEXTS"]), ("1", "0"))
        first, second = self.json("devices")
        self.assertEqual((first["Name"], first["Mode"], first["SlotCount"]), ("gpu0", "gpu-mmu", 2))
        self.assertGreater(first["Switches"], 0)
        self.assertEqual((second["Name"], second["Switches"]), ("gpu1", 0))

    def test_a_device_that_is_gone(self):
        self.stack.stop_gpu(1)
        harness.wait_until(lambda: self.json("devices")[1]["State"] == "gone", "it is gone")
        self.assertRegex(self.table("devices")[1]["STATE"], "^gone: .")
        self.stack.start_gpu(1)
        harness.wait_until(lambda: self.json("devices")[1]["State"] == "ready", "it is back")

    def test_contexts(self):
        space, lost = self.space(), self.space()
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertTrue(space.wait(space.submit(command(FILL, 1, 0x7000000000, length=PAGE))))
        lost.submit(command(HANG, HANG_OBEYS_STOP))
        await_loss(lost.client, lost.ctx)
        rows = {int(row["CTX"]): row for row in self.table("contexts")}
        row = rows[space.ctx]
        self.assertEqual([row[key] for key in ("DEVICE", "STATE", "PID", "UID", "MAPS", "SUBMITTED", "COMPLETED", "FAULTS")],
                         ["gpu0", "ok", str(os.getpid()), str(os.geteuid()), "2", "2", "2", "1"])
        self.assertEqual(row["MAPPED"], f"{(space.size + len(space.cmd)) // 1024}.0 KiB")
        self.assertEqual(rows[lost.ctx]["STATE"], "lost: hang")
        found = {context["Id"]: context for context in self.json("contexts")}
        self.assertEqual(found[space.ctx]["Bytes"], space.size + len(space.cmd))
        self.assertEqual(found[space.ctx]["Maps"], 2)
        self.assertEqual(list(found), sorted(found))

    def test_others_see_their_own(self):
        self.space()
        owner = self.work(self.pasidd(OWNER))
        self.assertEqual([context["Id"] for context in self.json("contexts", uid=OWNER)], [owner.id])
        self.assertEqual(self.json("contexts", uid=STRANGER), [])
        self.assertEqual([row["CTX"] for row in self.table("contexts", uid=OWNER)], [str(owner.id)])

    def test_stats(self):
        self.space()
        stats = self.json("stats")
        self.assertEqual([d["Name"] for d in stats["devices"]], ["gpu0", "gpu1"])
        self.assertEqual(stats["manager"]["Contexts"], 1)
        text = self.ok("stats")
        self.assertIn(f"pasidd {stats['manager']['Version']}, protocol 1\n", text)
        self.assertIn("contexts:    1\n", text)
        self.assertRegex(text, r"(?m)^jobs +1024 +4096$")


class Spaces(CtlTest):
    devices = [{"slots": 2}]

    def test_maps(self):
        space = self.space()
        at = 0x40000000
        space.client.map(space.ctx, space.buf, 2 * PAGE, 3 * PAGE, pc.READ | pc.FIXED, at)
        found = self.json("maps", space.ctx)
        self.assertEqual((found["context"], found["source"], len(found["mappings"])), (space.ctx, "table", 3))
        mapped = found["mappings"][2]
        self.assertEqual({key: mapped[key] for key in ("iova", "length", "read", "write", "buffer", "offset")},
                         {"iova": at, "length": 3 * PAGE, "read": True, "write": False, "buffer": space.buf,
                          "offset": 2 * PAGE})
        self.assertEqual(mapped["bus"], found["mappings"][0]["bus"] + 2 * PAGE)
        lines = self.ok("maps", space.ctx).splitlines()
        self.assertEqual(lines[2], f"{at:012x}-{at + 3 * PAGE:012x} r-- {2 * PAGE:08x} buffer {space.buf} "
                         f"bus {mapped['bus']:012x}")
        self.assertEqual(lines[0][25:30], " rw- ")

    def test_many_maps(self):
        """More than one answer has room for."""
        space = self.space()
        for k in range(10):
            space.client.bind(space.ctx, [(pc.MAP, pc.READ | pc.FIXED, space.buf, 0, 0x40000000 + 2 * PAGE * (i + 1000 * k),
                                           PAGE) for i in range(1000)])
        mappings = self.json("maps", space.ctx)["mappings"]
        self.assertEqual([m["iova"] for m in mappings][2:], [0x40000000 + 2 * PAGE * i for i in range(10000)])
        self.assertEqual(len(self.ok("maps", space.ctx).splitlines()), 10002)
        # The pool of tables keeps what it grew to.
        space.free_all()
        self.before = None

    def tearDown(self):
        if self.before is None:
            self.doCleanups()
            self.before = settled(self.look)
        super().tearDown()

    def test_addresses_are_for_root(self):
        work = self.work(self.pasidd(OWNER))
        mapped, = self.json("maps", work.id, uid=OWNER)["mappings"]
        self.assertEqual((mapped["iova"], mapped["bus"]), (work.iova, 0))
        self.assertNotIn("bus", self.ok("maps", work.id, uid=OWNER))
        self.assertIn(" bus ", self.ok("maps", work.id))
        walk = self.json("walk", work.id, work.iova, uid=OWNER)
        self.assertEqual((walk["mapped"]["bus"], {level["at"] for level in walk["levels"]}), (0, {0}))
        self.assertNotIn("bus", self.ok("walk", work.id, work.iova, uid=OWNER))

    def test_walk(self):
        space = self.space()
        walk = self.json("walk", space.ctx, space.iova + PAGE)
        self.assertEqual([level["level"] for level in walk["levels"]], [0, 1, 2, 3])
        self.assertEqual((walk["source"], walk["iova"]), ("table", space.iova + PAGE))
        mapped = self.json("maps", space.ctx)["mappings"][0]
        self.assertEqual(walk["mapped"], {"bus": mapped["bus"] + PAGE, "read": True, "write": True, "buffer": space.buf,
                                          "offset": PAGE})
        text = self.ok("walk", space.ctx, hex(space.iova + PAGE))
        self.assertIn(f"mapped: read and write, buffer {space.buf} at offset 0x1000, bus address {mapped['bus'] + PAGE:#x}\n",
                      text)
        self.assertTrue(text.endswith("(read from pasidd's tables just now)\n"), text)

    def test_walk_to_nothing(self):
        space = self.space()
        walk = self.json("walk", space.ctx, 0x7000000000)
        self.assertIsNone(walk["mapped"])
        self.assertLess(len(walk["levels"]), 4)
        self.assertIn("\nnot mapped\n", self.ok("walk", space.ctx, "0x7000000000"))
        self.assertIsNone(self.json("walk", space.ctx, "0xffffffffffffffff")["mapped"])

    def test_no_such_context(self):
        space = self.space()
        for verb in (("maps", 4000000000), ("walk", 4000000000, 0)):
            self.refuse("there is no context 4000000000, or it is not for this user", "pasidctl contexts\n", *verb)
        for verb in (("maps", space.ctx), ("walk", space.ctx, 0)):
            self.refuse(f"there is no context {space.ctx}, or it is not for this user", "pasidctl contexts\n", *verb,
                        uid=STRANGER)


class Top(CtlTest):
    devices = [{"slots": 2, "job_limit_ms": 20000}]

    def test_terminal(self):
        spaces = [self.space() for _ in range(9)]
        top = Terminal(self, self.argv("top"), 24, 100)
        screen = top.await_text(r"(?s)STATE.*\n(.* ok.*\n){9}")
        self.assertRegex(ESCAPE.sub("", screen), r"^pasidd .*: 9 contexts, .*; q quits\r?\ngpu0: gpu-mmu, ready, 0 of 2 slots")
        space = spaces[4]
        self.assertTrue(space.wait(space.submit(*space.long_copy(1, 5, 4, 200))))
        first = top.await_text(rf"(?m)^\x1b\[32m +{space.ctx} ")
        self.assertTrue(ESCAPE.sub("", first).splitlines()[3].startswith(f"{space.ctx:3}"), "the busiest comes first")
        # Another size: a look at once, with as many lines and columns as there are.
        top.resize(8, 40)
        os.kill(top.process.pid, signal.SIGWINCH)
        top.await_text(r"(?s)^(?!.*q quits)pasidd.*\n.*\n.*\n(.*\n){4}")
        lines = ESCAPE.sub("", top.screen()).splitlines()
        self.assertLessEqual(max(map(len, lines)), 40)
        self.assertLess(len(lines), 8)
        top.key(b"x")
        top.key(b"q")
        self.assertEqual(top.end(), 0)
        self.assertIn("\x1b[?1049h", top.text)
        self.assertTrue(top.text.endswith("\x1b[?25h\x1b[?1049l"), top.text[-40:])
        self.assertEqual(termios.tcgetattr(top.slave), top.before)

    def test_signals(self):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            top = Terminal(self, self.argv("top"))
            top.await_text("q quits")
            top.process.send_signal(sig)
            self.assertEqual(top.end(), 0)
            self.assertEqual(termios.tcgetattr(top.slave), top.before)

    def test_lines(self):
        space = self.space()
        with subprocess.Popen(self.argv("top", "--json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              text=True) as top:
            first = json.loads(top.stdout.readline())
            self.assertTrue(space.wait(space.submit(*space.long_copy(1, 5, 4, 200))))
            space.client.map(space.ctx, space.buf, 0, PAGE)
            second = json.loads(top.stdout.readline())
            top.send_signal(signal.SIGINT)
        self.assertEqual(top.returncode, 0)
        self.assertGreater(second["time_ns"], first["time_ns"])
        before, = first["contexts"]
        after, = second["contexts"]
        self.assertEqual((before["share"], before["maps_s"]), (0, 0), "nothing is known of before")
        self.assertEqual((after["context"], after["device"], after["bytes"]), (space.ctx, "gpu0", before["bytes"] + PAGE))
        self.assertGreater(after["switches_s"], 0)
        self.assertGreater(after["maps_s"], 0)
        self.assertGreater(after["share"], 0)
        self.assertLessEqual(after["share"], 1)

    def test_a_job_that_takes_long(self):
        """Its context has the slot meanwhile, not only when it is over."""
        space = self.space()
        count = space.counter
        with subprocess.Popen(self.argv("top", "--json"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              text=True) as top:
            top.stdout.readline()
            space.submit(space.add_one(), command(HANG, HANG_OBEYS_STOP))
            harness.wait_until(lambda: space.counter > count, "the job begins")
            seen, = json.loads(top.stdout.readline())["contexts"]
            top.send_signal(signal.SIGINT)
        self.assertGreater(seen["share"], 0)
        self.assertFalse(space.lost, "it was over when it was looked at")

    def test_colours(self):
        """On a terminal that knows them, and nowhere else."""
        for term, coloured in (("xterm", True), ("dumb", False)):
            terminal = Terminal(self, self.argv("devices"), term=term)
            self.assertEqual(terminal.end(), 0)
            self.assertEqual("\x1b[1m" in terminal.text, coloured, terminal.text)
        self.assertNotIn("\x1b", self.ok("devices"))


class Nobody(CtlTest):
    """Nobody is there, or not any more."""

    def test_no_daemon(self):
        self.stack.stop_daemon()
        for verb in ("devices", "contexts", "stats", ("maps", 1), ("walk", 1, 0), "trace"):
            words = [verb] if isinstance(verb, str) else verb
            self.refuse("nobody has the name org.pasidd", "systemctl start pasidd\n", *words)
        self.stack.start_daemon()
        self.await_name()
        with pc.Client(self.stack.socket) as client:
            self.stack.await_device(client)

    def test_top_ends_with_the_daemon(self):
        top = Terminal(self, self.argv("top"))
        top.await_text("q quits")
        self.stack.stop_daemon()
        self.assertEqual(top.end(), 1)
        self.assertIn("nobody has the name org.pasidd", top.text)
        self.stack.start_daemon()
        self.await_name()
        with pc.Client(self.stack.socket) as client, contextlib.suppress(TimeoutError):
            self.stack.await_device(client)

    def test_the_bus_goes(self):
        top = Terminal(self, self.argv("top"))
        top.await_text("q quits")
        trace = subprocess.Popen(self.argv("trace"), stdin=subprocess.DEVNULL, bufsize=0, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=False)
        self.addCleanup(trace.kill)
        self.assertTrue(trace.stdout.read(1))
        self.stack.stop_bus()
        self.assertEqual(top.end(), 1)
        said = re.escape(f"pasidctl: the unix:path={self.stack.bus_socket} bus is gone; type: systemctl status dbus")
        self.assertRegex(top.text, said)
        out, err = trace.communicate(timeout=60)
        self.assertEqual(trace.returncode, 1)
        self.assertRegex(err.decode(), said)
        Timeline((b"{" + out).decode())
        self.refuse("cannot be reached", "journalctl -u pasidd\n", "devices")
        self.stack.start_bus()
        self.await_name()

    def tearDown(self):
        self.doCleanups()
        self.before = settled(self.look)
        super().tearDown()


class Completion(CtlTest):
    """What bash offers is what there is."""

    def complete(self, *words):
        top = Path(__file__).resolve().parents[2]
        script = f"""source {top}/client/pasidctl/completion.bash
            COMP_WORDS=(pasidctl "$@"); COMP_CWORD=$#; _pasidctl; printf '%s\\n' "${{COMPREPLY[@]}}" """
        where = os.path.dirname(harness.program("PASIDCTL"))
        done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=60, check=True,
                              env={**os.environ, "PATH": f"{where}:{os.environ['PATH']}",
                                   "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.stack.bus_socket}"})
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    @unittest.skipUnless(shutil.which("bash"), "there is no bash")
    def test_contexts_and_devices(self):
        ids = [str(self.space().ctx) for _ in range(2)]
        self.assertEqual(self.complete("maps", ""), ids)
        self.assertEqual(self.complete("walk", ""), ids)
        self.assertEqual(self.complete("walk", ids[0], ""), [])
        self.assertEqual(self.complete("maps", "--bus", f"unix:path={self.stack.bus_socket}", ids[1]), ids[1:])
        self.assertEqual(self.complete("maps", "--bus", "unix:path=/nonexistent", ""), [])
        self.assertEqual(self.complete("selftest", "g"), ["gpu0"])


if __name__ == "__main__":
    unittest.main()
