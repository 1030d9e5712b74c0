# SPDX-License-Identifier: MIT
"""Drivers from shared objects: which files the daemon takes, what it says of others, and the reference GPU driven by one.

What a driver's ops may hold is tested in tests/unit/test_engine.c.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import pasid_client as pc  # noqa: E402
import test_sharing  # noqa: E402

TOP = Path(__file__).resolve().parents[2]
SOMEBODY = 61003  # a uid
AS_ROOT = os.geteuid() == 0


def run(*argv, **options):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
               "timeout": 60, "check": False, **options}
    return subprocess.run([str(a) for a in argv], **options)


def built(name):
    """A built-in driver as a shared object, as the build made it."""
    return Path(harness.program("PASID_DRIVERS")) / f"driver-{name}.so"


class Place(unittest.TestCase):
    """A directory of the test's own."""

    def setUp(self):
        self.top = Path(tempfile.mkdtemp(prefix="pasidd-test-drivers-"))
        self.addCleanup(shutil.rmtree, self.top, ignore_errors=True)
        self.top.chmod(0o755)

    def copy(self, name, to=None):
        path = self.top / (to or f"{name}.so")
        shutil.copy(built(name), path)
        path.chmod(0o755)
        return path

    def compile(self, text, name="x", options=("-Wextra", "-Wpedantic")):
        """As strictly as can be, with the installed headers alone, unless the options say something else."""
        source, to = self.top / f"{name}.c", self.top / f"{name}.so"
        source.write_text(text)
        done = run(*shlex.split(os.environ.get("PASID_CC", "cc")), "-std=gnu11", "-O2", "-Wall", "-Werror", *options,
                   "-fPIC", "-shared", "-fvisibility=hidden", "-I", TOP / "include", source, "-o", to)
        self.assertEqual(done.returncode, 0, done.stdout)
        return to

    def changed(self, old, new):
        self.assertEqual(self.source.count(old), 1, old)
        return self.source.replace(old, new)

    def config(self, *drivers):
        path = self.top / "pasidd.json"
        path.write_text(json.dumps({"drivers": [str(d) for d in drivers]}))
        return path

    def check(self, *drivers, program=None, **options):
        return run(program or harness.program("PASIDD"), "--check-config", self.config(*drivers), **options)

    def accept(self, *drivers, **options):
        done = self.check(*drivers, **options)
        self.assertEqual((done.returncode, done.stdout), (0, f"{self.top}/pasidd.json: ok\n"))

    def refuse(self, said, *drivers, at=0, **options):
        done = self.check(*drivers, **options)
        start = f"pasidd: {self.top}/pasidd.json: drivers[{at}]: {drivers[at]}"
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(done.stdout, f"{start}{said}\n")

    def refuse_place(self, place, said, driver):
        done = self.check(driver)
        self.assertEqual((done.returncode, done.stdout),
                         (1, f"pasidd: {self.top}/pasidd.json: drivers[0]: {place} {said}\n"))


class Files(Place):
    """Whose file it is."""

    def test_accepted(self):
        refgpu, edu = self.copy("refgpu"), self.copy("edu")
        self.accept(refgpu)
        self.accept(refgpu, edu)
        self.accept(f"{self.top}//.//{edu.name}")
        edu.chmod(0o444)
        self.accept(edu)
        self.accept()

    def test_not_there(self):
        self.refuse(": No such file or directory", self.top / "none.so")
        self.refuse_place(f"{self.top}/none:", "No such file or directory", self.top / "none" / "x.so")

    def test_no_file(self):
        self.refuse(" is no regular file", self.top)
        os.mkfifo(self.top / "fifo")
        self.refuse(" is no regular file", self.top / "fifo")
        self.refuse(" is no regular file", "/dev/null")
        self.refuse_place(self.copy("edu"), "is no directory", self.top / "edu.so" / "x.so")

    def test_links(self):
        edu = self.copy("edu")
        (self.top / "link.so").symlink_to(edu)
        self.refuse(" is a symbolic link; name what it points to", self.top / "link.so")
        (self.top / "link").symlink_to(self.top)
        self.refuse_place(self.top / "link", "is a symbolic link; name what it points to", self.top / "link" / "edu.so")

    def test_others_may_write_the_file(self):
        edu = self.copy("edu")
        for mode in (0o775, 0o757, 0o622, 0o4777):
            edu.chmod(mode)
            self.refuse(f" has mode {mode:04o}, others than its owner can write there; type: chmod go-w {edu}", edu)

    def test_others_may_write_the_directory(self):
        deep = self.top / "a" / "b"
        deep.mkdir(parents=True)
        edu = self.copy("edu", "a/b/edu.so")
        for place in (deep, deep.parent, self.top):
            for mode in (0o775, 0o757):
                place.chmod(mode)
                self.refuse_place(place, f"has mode {mode:04o}, others than its owner can write there; "
                                  f"type: chmod go-w {place}", edu)
            place.chmod(0o755)
        deep.chmod(0o1777)  # as /tmp: what lies there can be taken away by its owner alone
        self.accept(edu)

    @unittest.skipUnless(AS_ROOT, "only root can give files away")
    def test_somebody_elses(self):
        edu = self.copy("edu", "edu.so")
        os.chown(edu, SOMEBODY, 0)
        self.refuse(f" belongs to uid {SOMEBODY}; allowed is 0", edu)
        os.chown(edu, 0, SOMEBODY)
        self.accept(edu)
        os.chown(self.top, SOMEBODY, 0)
        self.refuse_place(self.top, f"belongs to uid {SOMEBODY}; allowed is 0", edu)

    @unittest.skipUnless(AS_ROOT, "only root can become somebody else")
    def test_a_daemon_without_rights(self):
        """Its own files will do, and root's; another uid's will not."""
        program = self.top / "pasidd"
        shutil.copy(harness.program("PASIDD"), program)
        edu = self.copy("edu")
        somebody = {"program": program, "user": SOMEBODY, "group": SOMEBODY, "extra_groups": []}
        self.accept(edu, **somebody)
        os.chown(edu, SOMEBODY, SOMEBODY)
        self.accept(edu, **somebody)
        os.chown(edu, SOMEBODY + 1, 0)
        self.refuse(f" belongs to uid {SOMEBODY + 1}; allowed is 0 or the daemon's own", edu, **somebody)

    def test_the_daemon_does_not_start(self):
        done = run(harness.program("PASIDD"), "--config", self.config(self.top / "none.so"), "--socket",
                   self.top / "socket")
        self.assertEqual(done.returncode, 1)
        self.assertIn("drivers[0]: ", done.stdout)
        self.assertFalse((self.top / "socket").exists())


class Contents(Place):
    """What is in it: the skeleton of "pasidctl driver new", and what can be wrong with one."""

    def setUp(self):
        super().setUp()
        self.source = self.skeleton("spare")

    def skeleton(self, name):
        done = run(harness.program("PASIDCTL"), "driver", "new", name, self.top / f"src-{name}")
        self.assertEqual(done.returncode, 0, done.stdout)
        return (self.top / f"src-{name}" / f"{name}.c").read_text()

    def test_skeleton(self):
        for name in ("spare", "a", "int", "engine", "translator_ops", "a" * 31):
            driver = self.compile(self.skeleton(name) if name != "spare" else self.source, name)
            self.accept(driver)
            symbols = run("nm", "-D", "--defined-only", driver).stdout.split()
            self.assertEqual(symbols[2::3], ["pasid_driver"])

    def test_no_object(self):
        text = self.top / "text.so"
        text.write_text("no ELF\n" * 1000)
        self.refuse(" cannot be loaded: invalid ELF header", text)
        empty = self.top / "empty.so"
        empty.touch()
        self.refuse(" cannot be loaded: file too short", empty)

    def test_no_driver(self):
        driver = self.compile("extern int x;\nint x;\n")
        self.refuse(' exports no "pasid_driver", so it is no driver of pasidd\'s', driver)

    def test_symbols_of_the_daemon(self):
        """There are none for it."""
        text = self.changed("\t/* FILL IN: acknowledge", "\tengine_find();\n\t/* FILL IN: acknowledge")
        driver = self.compile("extern void engine_find(void);\n" + text)
        self.refuse(" cannot be loaded: undefined symbol: engine_find", driver)

    def test_another_abi(self):
        driver = self.compile(self.changed(".abi = PASID_DRIVER_ABI", ".abi = PASID_DRIVER_ABI + 1"))
        self.refuse(" has version 4 of the driver interface, this pasidd 3; compile it again with this pasidd's "
                    "<pasid/driver.h>", driver)

    def test_not_whole(self):
        self.refuse(": its driver has no engine; it is required",
                    self.compile(self.changed("\t.engine = &spare_ops,\n", "") + "\nextern const void *const used;\n"
                                 "const void *const used = &spare_ops;\n"))
        self.refuse(": its driver has verbs, but not both fill() and copy()",
                    self.compile(self.changed(".copy = spare_copy", ".copy = 0 ? spare_copy : NULL")))
        self.refuse(": its driver spare has no look(); it is required",
                    self.compile(self.changed(".look = spare_look", ".look = 0 ? spare_look : NULL")))
        self.refuse(": its driver spare has irqs 65; allowed is 0 to 64",
                    self.compile(self.changed(".irqs = 1", ".irqs = 65")))

    def test_the_second_one_is_looked_at(self):
        good, bad = self.compile(self.source, "good"), self.compile(self.changed(".irqs = 1", ".irqs = 65"), "bad")
        self.refuse(": its driver spare has irqs 65; allowed is 0 to 64", good, bad, at=1)


class New(Place):
    """pasidctl driver new."""

    def new(self, *words, **options):
        return run(harness.program("PASIDCTL"), "driver", "new", *words, cwd=self.top, **options)

    def test_files(self):
        self.assertEqual(self.new("spare").returncode, 0)
        self.assertEqual({p.name for p in (self.top / "spare").iterdir()}, {"README.md", "meson.build", "spare.c"})
        for path in (self.top / "spare").iterdir():
            text = path.read_text()
            self.assertNotIn("@", text)
            self.assertIn("spare", text)
            self.assertTrue(text.endswith("\n"))
        self.assertEqual(self.new("spare", "other").returncode, 0)
        self.assertEqual((self.top / "other" / "spare.c").read_text(), (self.top / "spare" / "spare.c").read_text())

    def test_names(self):
        for name in ("", "A", "1a", "_a", "a-b", "a b", "a/b", "../a", "a.c", "a\n", "ä", "a" * 32, "a" * 100000):
            done = self.new(name)
            self.assertEqual(done.returncode, 2, name)
            self.assertIn("is no name for a driver", done.stdout)
        self.assertEqual(list(self.top.iterdir()), [])

    def test_something_is_there(self):
        (self.top / "a").mkdir()
        (self.top / "b").write_text("mine")
        (self.top / "c").symlink_to("nowhere")
        for name in ("a", "b", "c"):
            done = self.new(name)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stdout, f"pasidctl: {name} cannot be made: File exists; name another directory, or "
                             "move it away\n")
        self.assertEqual(list((self.top / "a").iterdir()), [])
        self.assertEqual((self.top / "b").read_text(), "mine")
        done = self.new("d", "none/d")
        self.assertEqual((done.returncode, done.stdout),
                         (1, "pasidctl: none/d cannot be made: No such file or directory\n"))

    def test_nothing_half_written(self):
        for limit in (0, 1000, 7000):
            # Python ignores SIGXFSZ, and its children then do, too: they get EFBIG.
            done = self.new("spare", restore_signals=False,
                            preexec_fn=lambda n=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)))
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertRegex(done.stdout, r"^pasidctl: files in spare cannot be written: .*; nothing is left of it\n$")
            self.assertEqual(list(self.top.iterdir()), [])


class Built(Place):
    def test_symbols(self):
        """One goes out; what comes in is libc's."""
        for name in ("edu", "refgpu"):
            out = run("nm", "-D", "--defined-only", built(name)).stdout
            names = {line.split()[-1].split("@")[0] for line in out.splitlines()}
            self.assertEqual({n for n in names if not n.startswith("__odr_asan")}, {"pasid_driver"})
            wanted = run("nm", "-D", "--undefined-only", built(name)).stdout
            names = {line.split()[-1].split("@")[0] for line in wanted.splitlines()}
            self.assertEqual({n for n in names if not re.match(r"__|_ITM_|(calloc|free|mem\w+|str\w+)$", n)}, set())


class Mistaken(Place):
    """Drivers of the reference GPU that are wrong about it in what shows only when they attach."""

    def setUp(self):
        super().setUp()
        self.source = (TOP / "daemon/engine/refgpu.c").read_text()

    def stack(self, old, new):
        driver = self.compile(self.changed(old, new), options=("-Drefgpu_driver=pasid_driver", "-D_GNU_SOURCE",
                                                               "-I", TOP / "daemon"))
        return self.enterContext(harness.Stack([{"slots": 2}], {"drivers": [str(driver)]}))

    def not_started(self, old, new):
        stack = self.stack(old, new)
        said = "its driver says that it has no slots, too many, or a translator that is not whole"
        harness.wait_until(lambda: f"not reachable: {said}" in stack.log_tail(None), "the driver is given up")
        with pc.Client(stack.socket) as client:
            self.assertEqual([present for _, _, present in client.devices()], [0])

    def test_more_slots_than_it_was_told(self):
        self.not_started("engine)->n_slots;", "engine)->n_slots ? REFGPU_MAX_SLOTS + 1 : 0;")

    def test_no_slots(self):
        self.not_started("engine)->n_slots;", "engine)->n_slots * 0;")

    def test_no_translator(self):
        self.not_started("return &of_engine(e)->translator;",
                         "return of_engine(e)->n_slots ? NULL : &of_engine(e)->translator;")

    def test_half_a_translator(self):
        self.not_started("\t.max_ranges = INV_RANGES,\n", "")

    def test_few_asids(self):
        """Of 2 bits there are 3, since 0 is none. A fourth context would have another's."""
        stack = self.stack(".asid_bits = 16", ".asid_bits = 2")
        with pc.Client(stack.socket) as client:
            stack.await_device(client)
            for _ in range(3):
                client.ctx_new()
            with self.assertRaises(pc.Refused) as caught:
                client.ctx_new()
            self.assertEqual((caught.exception.n1, caught.exception.n2), (3, 3))

    def test_more_interrupts_than_the_device_has(self):
        stack = self.stack(".irqs = REFGPU_VECTORS", ".irqs = 64")
        with pc.Client(stack.socket) as client:
            stack.await_device(client)


class Driven(test_sharing.TwoSlots):
    """The reference GPU by a driver from a file, with the built-in one beside it."""

    @classmethod
    def setUpClass(cls):
        place = Path(tempfile.mkdtemp(prefix="pasidd-test-drivers-"))
        cls.addClassCleanup(shutil.rmtree, place, ignore_errors=True)
        drivers = []
        for name in ("edu", "refgpu"):
            drivers.append(place / f"{name}.so")
            shutil.copy(built(name), drivers[-1])
            drivers[-1].chmod(0o755)
        cls.driver = drivers[-1]
        cls.config = {**test_sharing.TwoSlots.config, "drivers": [str(d) for d in drivers]}
        super().setUpClass()

    def test_it_is_the_one_that_was_named(self):
        self.assertIn(f", engine refgpu ({self.driver}), 2 slots", self.stack.log_tail(None))
        self.assertIn(str(self.driver), Path(f"/proc/{self.stack.daemon.pid}/maps").read_text())

    def test_its_faults(self):
        test_sharing.Unmapping.test_fault_is_a_diagnosis(self)

    def test_its_invalidations(self):
        test_sharing.Unmapping.test_map_touch_unmap_cycles(self)

    def test_reset_and_another_opening(self):
        space = self.space()
        self.assertTrue(space.wait(space.submit(space.add_one())))
        self.stack.stop_gpu()
        self.stack.start_gpu()
        client = self.client()
        self.stack.await_device(client)
        again = self.space(client)
        self.assertTrue(again.wait(again.submit(again.add_one())))


if __name__ == "__main__":
    unittest.main()
