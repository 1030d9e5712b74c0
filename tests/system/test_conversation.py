# SPDX-License-Identifier: MIT
"""What earlier clients said, said again to the daemon of today: it has to answer as then, byte for byte."""

import copy
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import conversation  # noqa: E402
import harness  # noqa: E402
import pasid_client as pc  # noqa: E402

RECORDED = Path(__file__).parent / "conversations"


def replay(recorded):
    with harness.Stack([recorded["device"]], recorded["config"]) as stack:
        with pc.Client(stack.socket) as first:
            stack.await_device(first)
        conversation.replay(stack, recorded)


def from_daemon(recorded):
    return [step for step in recorded["steps"] if step.get("to") not in (None, "daemon") and "hex" in step]


class Conversations(unittest.TestCase):
    def test_v1(self):
        replay(conversation.load(RECORDED / "v1.json"))

    def test_v1_has_every_opcode_and_event(self):
        recorded = conversation.load(RECORDED / "v1.json")
        asked, told = set(), set()
        for step in recorded["steps"]:
            if "hex" in step and "to" in step:
                opcode = pc.HEADER.unpack_from(conversation.join_hex(step["hex"]))[1]
                (asked if step["to"] == "daemon" else told).add(opcode)
        self.assertGreaterEqual(asked, set(range(pc.HELLO, pc.SUBMIT + 1)))
        self.assertGreaterEqual(told, {pc.EV_FAULT, pc.EV_LOST, pc.EV_DEVICE_BACK})

    def test_other_bytes_are_noticed(self):
        recorded = from_daemon(conversation.load(RECORDED / "v1.json"))
        for step in recorded:
            data = bytearray(conversation.join_hex(step["hex"]))
            varies = {i for first, count, _ in step.get("varies", []) for i in range(first, first + count)}
            self.assertLess(len(varies), 25, step["what"])
            for i in range(len(data)):
                data[i] ^= 1
                now = dict(step, hex=[bytes(data).hex()])
                with self.subTest(what=step["what"], byte=i):
                    if i in varies:
                        conversation.compare(step, now)
                    else:
                        self.assertRaises(conversation.Differs, conversation.compare, step, now)
                data[i] ^= 1
            self.assertRaises(conversation.Differs, conversation.compare, step, dict(step, fds=step["fds"] + ["mode 0"]))
            self.assertRaises(conversation.Differs, conversation.compare, step, {"to": step["to"], "end": True})

    def test_another_daemon_is_noticed(self):
        recorded = conversation.load(RECORDED / "v1.json")
        other = copy.deepcopy(recorded)
        other["config"]["limits"]["connection"]["contexts"] -= 1
        with self.assertRaises(conversation.Differs):
            replay(other)


if __name__ == "__main__":
    unittest.main()
