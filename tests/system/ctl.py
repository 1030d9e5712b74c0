# SPDX-License-Identifier: MIT
"""pasidctl on the bus of a DbusTest."""

import json
import os
import subprocess

import harness
from dbus_stack import DbusTest


class CtlTest(DbusTest):
    def argv(self, *words):
        return [harness.program("PASIDCTL"), *map(str, words), "--bus", "unix:path=" + self.stack.bus_socket]

    def pasidctl(self, *words, uid=None):
        """The process when it has ended, run by another user if there is a uid."""
        user = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        if user and os.geteuid() != 0:
            self.skipTest("other users take root")
        try:
            return subprocess.run(self.argv(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                                  check=False, **user)
        except PermissionError:
            self.skipTest("other users cannot reach the build")

    def ok(self, *words, uid=None):
        """What it prints."""
        done = self.pasidctl(*words, uid=uid)
        self.assertEqual((done.returncode, done.stderr), (0, ""), words)
        return done.stdout

    def json(self, *words, uid=None):
        return json.loads(self.ok(*words, "--json", uid=uid))

    def refuse(self, said, todo, *words, uid=None):
        done = self.pasidctl(*words, uid=uid)
        self.assertEqual((done.returncode, done.stdout), (1, ""), words)
        self.assertRegex(done.stderr, r"^pasidctl: .*; type: .*\n$")
        self.assertIn(said, done.stderr)
        self.assertIn(f"; type: {todo}", done.stderr)

    def table(self, *words, uid=None):
        """The rows of a table as dicts, by its headings; a cell ends where two blanks begin."""
        lines = [line.rstrip() for line in self.ok(*words, uid=uid).splitlines()]
        rows = [[cell for cell in line.split("  ") if cell] for line in lines]
        return [dict(zip(map(str.strip, rows[0]), map(str.strip, row))) for row in rows[1:]]
