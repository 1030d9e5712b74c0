# SPDX-License-Identifier: MIT
"""A daemon that is followed by one of a later version, which goes on in the older journal, and by the older one again, which
leaves the newer one's alone."""

import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402
import survive  # noqa: E402
from journal_file import Journal  # noqa: E402

MOMENTS = 12
NEVER = 1 << 40


class Upgrade(survive.OrderedTest):
    def journal(self, stack):
        return Journal(next(fd for name, fd in stack.manager.store.entries if name[0] == "="))

    def becomes(self, stack, program):
        """The next daemon will be that one."""
        stack.manager.argv = [harness.program(program) if arg in (harness.program("PASIDD"), harness.program(
            "PASIDD_TOMORROW")) else arg for arg in stack.manager.argv]

    def test_up_and_down(self):
        stack = self.start_stack()
        rigs = [survive.Rig(stack) for _ in range(3)]
        for rig in rigs:
            self.addCleanup(rig.close)
        self.assertEqual(self.journal(stack).versions, [1])
        stack.kill_and(lambda: self.becomes(stack, "PASIDD_TOMORROW"))
        for _ in range(3):
            self.assertEqual([rig.fate() for rig in rigs], ["kept"] * 3, stack.log_tail())
            stack.kill_daemon()
        self.assertEqual([rig.fate() for rig in rigs], ["kept"] * 3, stack.log_tail())
        self.assertEqual(self.journal(stack).versions, [2])
        stack.kill_and(lambda: self.becomes(stack, "PASIDD"))
        harness.wait_until(lambda: any("STATUS=keeping the contexts of a newer pasidd" in line
                                       for lines in stack.manager.said for line in lines), "it says so")
        stack.kill_and(lambda: self.becomes(stack, "PASIDD_TOMORROW"))
        self.assertEqual([rig.fate() for rig in rigs], ["kept"] * 3, stack.log_tail())
        with stack.connect() as client:
            stack.await_device(client)

    def upgrade(self, n):
        """The first of the later version is killed at its n-th system call. How many there were, and of which versions the
        entries were that the second one found."""
        stack, versions = self.start_stack(), []
        said = Path(f"{self.orders}.said")
        with stack.connect() as client:
            stack.await_device(client)
        rig = survive.Rig(stack)
        said.unlink(missing_ok=True)

        def begin():
            self.becomes(stack, "PASIDD_TOMORROW")
            self.orders.write_text(f"call {n}\n", encoding="ascii")
            stack.manager.meanwhile = lambda: versions.extend(self.journal(stack).versions)

        starts = stack.manager.starts
        stack.kill_and(begin)
        fate = rig.fate()
        self.orders.write_text("", encoding="ascii")
        word, calls = harness.wait_until(lambda: said.exists() and said.read_text(encoding="ascii"), "its end").split()
        self.orders.unlink()
        harness.wait_until(lambda: stack.manager.starts == starts + 1 + (word == "killed"), "the one that stays")
        self.assertEqual((fate, rig.fate()), ("kept", "kept"), f"killed at call {n}\n{stack.log_tail()}")
        rig.close()
        stack.stop()
        return int(calls), versions

    def test_killed_while_it_begins(self):
        count, _ = self.upgrade(NEVER)
        seen = [self.upgrade(n)[1] for n in sorted(self.random.sample(range(1, count), MOMENTS))]
        print(f"# killed at {MOMENTS} of {count} calls, and then found: {seen}")
        self.assertTrue(all(found in ([], [1], [1, 2], [2]) for found in seen), seen)

    def test_killed_between_the_versions(self):
        """The last that it does before it is there is to write down more and more."""
        n, _ = self.upgrade(NEVER)
        while (found := self.upgrade(n)[1]) != [1, 2]:
            self.assertNotEqual(found, [1], "entries of the later version do not say so")
            n -= 10


if __name__ == "__main__":
    unittest.main()
