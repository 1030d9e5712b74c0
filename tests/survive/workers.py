# SPDX-License-Identifier: MIT
"""Processes of worker.c, from outside: clients that compare every byte, and work until they are told to end."""

import subprocess


class Worker:
    """start(*args, **pipes): a Popen of the program with these arguments. A failure fails `case`, a test."""

    def __init__(self, case, start, contexts, buffers, seed, seconds=3600):
        self.case = case
        self.process = start(*map(str, (seconds, contexts, buffers, seed)), text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        case.addCleanup(self.kill)

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def await_ready(self):
        line = self.process.stdout.readline()
        self.case.assertEqual(line, "ready\n", "" if line else self.process.stderr.read())

    def end(self, seconds=60):
        """What it did, by name. That it had work, learnt of what happened, and saw nothing else of it, is asserted."""
        out, err = self.process.communicate("", seconds)
        self.case.assertEqual((self.process.returncode, err), (0, ""), out)
        words = out.split()
        did = dict(zip(words[::2], map(int, words[1::2])))
        self.case.assertGreater(did["jobs"], 0)
        self.case.assertGreater(did["resumed"], 0)
        return did


def begin(workers):
    """All of them at work."""
    for worker in workers:
        worker.await_ready()
    return workers
