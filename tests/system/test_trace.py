# SPDX-License-Identifier: MIT
"""pasidctl trace, from the daemon to the timeline: jobs of two clients, faults, hangs, resets, evictions, maps and unmaps are
where they belong; what is lost is said; who may not is refused. The ring and its reader: tests/unit/test_trace.c."""

import json
import os
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
from ctl import CtlTest  # noqa: E402
from timeline import Timeline, Wrong  # noqa: E402
from work import (FILL, HANG, HANG_OBEYS_RESET, HANG_OBEYS_STOP, PAGE, Space, await_loss, command, settled)  # noqa: E402

HANG_SOFT, HANG_HARD = command(HANG, HANG_OBEYS_STOP), command(HANG, HANG_OBEYS_RESET)
RING = 65536  # records
LIST = 1024  # operations
NOBODY = 65534
GPU = "/org/pasidd/device/gpu0"


class Recording:
    """pasidctl trace, which has begun when this is made."""

    def __init__(self, test, *words):
        self.path = os.path.join(test.stack.dir, "trace.json")
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.process = subprocess.Popen(test.argv("trace", "-o", self.path, *words), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        test.addCleanup(self.process.kill)
        harness.wait_until(lambda: self.process.poll() is not None or os.path.exists(self.path) and
                           os.path.getsize(self.path), "a trace begins")

    def end(self, sig=signal.SIGINT):
        """Its status, and what it said."""
        if sig:
            self.process.send_signal(sig)
        self.out, self.err = self.process.communicate(timeout=60)
        return self.process.returncode

    def timeline(self):
        with open(self.path, encoding="utf-8") as f:
            return Timeline(f.read())


class TraceTest(CtlTest):
    devices = [{"slots": 2, "job_limit_ms": 250, "answer_ms": 500}]

    def record(self, work):
        """What happens while that is done."""
        recording = Recording(self)
        work()
        self.assertEqual((recording.end(), recording.err), (0, ""))
        self.assertRegex(recording.out, r"^\d+ events in [\d.]+ s; open .*trace.json in https://ui.perfetto.dev\n$")
        return recording.timeline()

    def only(self, timeline, category, **args):
        found = timeline.find(category, **args)
        self.assertEqual(len(found), 1, (category, args, found))
        return found[0]


class Timelines(TraceTest):
    def test_jobs_of_two_clients(self):
        spaces, bus = [], self.pasidd()

        def work():
            for _ in range(2):
                space = self.space()
                spaces.append(space)
                for _ in range(5):
                    self.assertTrue(space.wait(space.submit(space.add_one())))
            # The clients were told by the device; the daemon looks when it is told, too.
            harness.wait_until(lambda: not any(slot[1] for slot in bus.get(GPU, "Slots")), "a device at rest")

        timeline = self.record(work)
        self.assertEqual(timeline.devices, {1: "gpu0"})
        self.assertEqual({t for t in timeline.tracks.values() if t[0] != "context"},
                         {("device", 0), ("slot", 0), ("slot", 1)})
        for space in spaces:
            jobs = timeline.find("job", context=space.ctx)
            self.assertEqual([job.args["job"] for job in jobs], [1, 2, 3, 4, 5])
            for job in jobs:
                self.assertEqual(job.name, f"job {job.args['job']}")
                self.assertEqual(job.within, (f"context {space.ctx}",))
                self.assertEqual(job.args["end"], "done")
            made = self.only(timeline, "context", **{"owner pid": os.getpid(), "owner uid": os.getuid()} |
                             {"pasid": space.client.ctx_info(space.ctx)["pasid"]})
            self.assertEqual((made.name, made.track), ("made", ("context", space.ctx)))
        self.assertEqual(timeline.find("lost"), [])

    def test_maps(self):
        space = self.space()
        at = 0x40000000

        def work():
            space.client.bind(space.ctx, [(pc.MAP, pc.READ | pc.FIXED, space.buf, i * PAGE, at + 2 * i * PAGE, PAGE)
                                          for i in range(3)])
            space.client.unmap(space.ctx, at, PAGE)

        timeline = self.record(work)
        maps, unmaps = timeline.find("map"), timeline.find("unmap")
        self.assertEqual([(m.args["first"], m.args["last"]) for m in maps],
                         [(hex(at + 2 * i * PAGE), hex(at + 2 * i * PAGE + PAGE - 1)) for i in range(3)])
        self.assertEqual([(m.args["first"], m.args["last"]) for m in unmaps], [(hex(at), hex(at + PAGE - 1))])
        for mapped in maps + unmaps:
            self.assertEqual((mapped.track, mapped.within), (("context", space.ctx), ("bind",)))
        self.assertEqual(len({m.args["bus"] for m in maps}), 3)
        self.assertEqual(len(timeline.find("bind")), 2)

    def test_fault(self):
        space, other = self.space(), self.space()
        bad = 0x7000000000
        jobs = []

        def work():
            jobs.append(space.submit(space.add_one(), command(FILL, 1, bad, length=PAGE)))
            jobs.append(space.submit(space.add_one()))
            self.assertTrue(space.wait(jobs[1]))
            self.assertTrue(other.wait(other.submit(other.add_one())))

        timeline = self.record(work)
        fault = self.only(timeline, "fault")
        self.assertEqual((fault.args["context"], fault.args["job"], fault.args["iova"]), (space.ctx, jobs[0], hex(bad)))
        self.assertEqual((fault.args["access"], fault.args["code"]), ("write", "unmapped"))
        self.assertEqual(fault.within, (f"context {space.ctx}", f"job {jobs[0]}"))
        self.only(timeline, "job", context=space.ctx, job=jobs[1])

    def test_evictions(self):
        spaces = [self.space() for _ in range(3)]

        def work():
            for _ in range(2):
                for space in spaces:
                    self.assertTrue(space.wait(space.submit(space.add_one())))

        timeline = self.record(work)
        ids = [space.ctx for space in spaces]
        self.assertEqual(len(timeline.find("switch")), 6, "three contexts that take turns on two slots")
        evicted = timeline.find("eviction")
        self.assertEqual([(e.args["context"], e.args["by"]) for e in evicted if e.args["context"] in ids],
                         [(ids[0], ids[2]), (ids[1], ids[0]), (ids[2], ids[1]), (ids[0], ids[2])])

    def test_hang(self):
        space = self.space()
        jobs = []

        def work():
            jobs.append(space.submit(HANG_SOFT))
            await_loss(space.client, space.ctx)

        timeline = self.record(work)
        self.assertEqual(self.only(timeline, "job", context=space.ctx).args["end"], "stopped")
        self.assertEqual(self.only(timeline, "run", context=space.ctx).args["end"], "stopped")
        lost = self.only(timeline, "context", why="hang")
        self.assertEqual((lost.name, lost.args["job"], lost.track), ("lost", jobs[0], ("context", space.ctx)))
        self.assertEqual(timeline.find("reset"), [])

    def test_reset(self):
        space, other = self.space(), self.space()

        def work():
            space.submit(HANG_HARD)
            await_loss(space.client, space.ctx)
            self.assertTrue(other.wait(other.submit(other.add_one())))

        timeline = self.record(work)
        reset = self.only(timeline, "reset")
        self.assertEqual(reset.track, ("device", 0))
        job = self.only(timeline, "job", context=space.ctx)
        self.assertEqual(job.args["end"], "reset")
        self.assertLessEqual(job.begin, reset.begin)
        self.assertLessEqual(reset.begin, job.end)
        self.assertGreaterEqual(self.only(timeline, "job", context=other.ctx).begin, reset.end)

    def test_what_was_there_before(self):
        space, idle = self.space(), self.space()
        count = space.counter
        space.submit(space.add_one(), HANG_SOFT)
        harness.wait_until(lambda: space.counter > count, "the job begins")
        timeline = self.record(lambda: await_loss(space.client, space.ctx))
        self.assertEqual(self.only(timeline, "job", context=space.ctx).args["end"], "stopped")
        self.assertEqual({e.track for e in timeline.find("context") if e.name == "was there"},
                         {("context", space.ctx), ("context", idle.ctx)})


class Readers(TraceTest):
    def rings(self):
        return self.stack.memory()[0]["pasidd-trace"]

    def test_nothing_is_left(self):
        self.assertEqual(self.rings(), 0)
        first, second = Recording(self), subprocess.Popen(self.argv("trace"), bufsize=0,
                                                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                          stderr=subprocess.PIPE)
        self.addCleanup(second.kill)
        self.assertTrue(second.stdout.read(2))
        self.assertEqual(self.rings(), 1, "one for all")
        first.process.kill()
        first.process.wait()
        space = self.space()
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.assertEqual(self.rings(), 1)
        second.send_signal(signal.SIGTERM)
        rest, said = second.communicate(timeout=60)
        self.assertEqual(len(Timeline(b'{"' + rest).find("job", context=space.ctx)), 1)
        self.assertIn(b"open the timeline in", said)
        harness.wait_until(lambda: self.rings() == 0, "the ring is gone")

    def test_seconds(self):
        recording = Recording(self, "1", "--json")
        self.assertEqual(recording.end(None), 0)
        summary = json.loads(recording.out)
        self.assertEqual((summary["file"], summary["lost"]), (recording.path, 0))
        self.assertGreaterEqual(summary["seconds"], 1)
        recording.timeline()

    def test_lost(self):
        """A reader that is stopped while everything is overwritten."""
        def map_and_unmap(space):
            space.client.bind(space.ctx, [(pc.MAP, pc.READ | pc.FIXED, space.buf, 0, 0x40000000 + i * PAGE, PAGE)
                                          for i in range(LIST)])
            space.client.unmap(space.ctx, 0x40000000, LIST * PAGE)

        with pc.Client(self.stack.socket) as client:  # room for tables is there from now on
            space = Space(client)
            map_and_unmap(space)
            space.close()
        self.before = settled(self.look)
        space = self.space()
        recording = Recording(self)
        recording.process.send_signal(signal.SIGSTOP)
        harness.await_stopped(recording.process)
        for _ in range(RING // LIST):
            map_and_unmap(space)
        job = space.submit(space.add_one())
        self.assertTrue(space.wait(job))
        recording.process.send_signal(signal.SIGCONT)
        self.assertEqual((recording.end(), recording.err), (0, ""))
        self.assertRegex(recording.out, r"^\d+ events in .*, and \d+ that were overwritten before they were read; open ")
        timeline = recording.timeline()
        self.assertTrue(timeline.find("lost"))
        self.only(timeline, "job", context=space.ctx, job=job)

    def test_others_may_not(self):
        self.refuse(f"uid {NOBODY}", "sudo pasidctl trace 1 --bus ", "trace", 1, uid=NOBODY)
        self.assertEqual(self.rings(), 0)

    def test_nowhere_to_write(self):
        done = self.pasidctl("trace", "-o", "/nonexistent/trace.json")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(done.stderr, "pasidctl: /nonexistent/trace.json cannot be written: No such file or directory\n")
        if os.path.exists("/dev/full"):
            done = self.pasidctl("trace", "-o", "/dev/full", "1")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("the timeline cannot be written to /dev/full: No space left", done.stderr)


class Gone(TraceTest):
    """The daemon and its device end under a trace."""

    def test_device_gone_and_back(self):
        space = self.space()

        def work():
            self.stack.stop_gpu()
            await_loss(space.client, space.ctx)
            self.stack.start_gpu()
            self.stack.await_device(space.client)

        timeline = self.record(work)
        self.assertEqual([e.name for e in timeline.find("device")], ["gone", "ready"])
        self.assertEqual(self.only(timeline, "context", why="device").track, ("context", space.ctx))
        space.renew()
        self.assertTrue(space.wait(space.submit(space.add_one())))

    def test_daemon_gone(self):
        recording = Recording(self)
        self.stack.stop_daemon()
        self.assertEqual(recording.end(None), 1)
        self.assertRegex(recording.err, r"^pasidctl: pasidd is gone, .*; type: systemctl status pasidd\n$")
        recording.timeline()
        self.stack.start_daemon()
        self.await_name()
        with pc.Client(self.stack.socket) as client:
            self.stack.await_device(client)
        self.before = settled(self.look)


class Checker(unittest.TestCase):
    """It finds what is wrong."""

    GOOD = [{"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": "gpu0"}},
            {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "slot 0"}},
            {"ph": "B", "pid": 1, "tid": 2, "ts": 1.5, "cat": "run", "name": "context 1", "args": {"context": 1}},
            {"ph": "B", "pid": 1, "tid": 2, "ts": 2, "cat": "job", "name": "job 7", "args": {"context": 1, "job": 7}},
            {"ph": "i", "pid": 1, "tid": 2, "ts": 2, "cat": "fault", "name": "fault", "s": "t", "args": {}},
            {"ph": "E", "pid": 1, "tid": 2, "ts": 3, "args": {"end": "done"}},
            {"ph": "E", "pid": 1, "tid": 2, "ts": 3}]

    def judge(self, events):
        return Timeline(json.dumps({"traceEvents": events}))

    def wrong(self, what, events):
        with self.assertRaisesRegex(Wrong, what):
            self.judge(events)

    def changed(self, i, **keys):
        return [event | keys if k == i else event for k, event in enumerate(self.GOOD)]

    def test_good(self):
        timeline = self.judge(self.GOOD)
        self.assertEqual(timeline.find("job", job=7)[0].args["end"], "done")
        self.assertEqual(timeline.find("fault")[0].within, ("context 1", "job 7"))

    def test_bad(self):
        with self.assertRaisesRegex(Wrong, "no JSON"):
            Timeline(json.dumps({"traceEvents": self.GOOD})[:-1])
        self.wrong("a track without a name", self.GOOD[2:])
        self.wrong("a track without a name", self.GOOD[1:])
        self.wrong("never ended", self.GOOD[:-1])
        self.wrong("ends without having begun", self.GOOD + self.GOOD[-1:])
        self.wrong("time goes back", self.changed(4, ts=1))
        self.wrong("outside of its context's run", self.changed(3, args={"context": 2, "job": 7}))
        self.wrong("outside of its context's run", self.GOOD[:2] + self.GOOD[3:6])
        self.wrong("not where it belongs", self.changed(2, cat="bind"))
        self.wrong("within something else", self.GOOD[:3] + self.GOOD[2:])
        self.wrong("no name of a track", self.changed(1, args={"name": "lane 0"}))


if __name__ == "__main__":
    unittest.main()
