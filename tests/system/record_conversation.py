#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records the conversation of version 1 with a fresh daemon and a fresh reference GPU.

    PASIDD=build/daemon/pasidd PASID_REFGPU=build/tests/refgpu/pasid-refgpu record_conversation.py FILE

tests/system/conversations/v1.json was made by this, once: test_conversation.py replays it against the daemon as it is
now. It is recorded again only for a part of the protocol that is new; what it says of the old parts must not change,
because clients of that version are out there.
"""

import argparse
import struct
import sys
from pathlib import Path

import conversation
import harness
import pasid_client as pc
from work import FILL, HANG, SET_TTBR, command

PAGE = 4096
DATA, CODE = 0x100000000, 0x100010000  # IOVAs of the client's own choice
FIXED = pc.READ | pc.WRITE | pc.FIXED
DEVICE = {"slots": 2, "job_limit_ms": 500}
LIMITS = {"limits": {"connection": {"contexts": 3}}}
AGE = "gone_age_ns: a duration"
TABLES = "table_bytes: how the tables are built is the daemon's business"
SWITCHES = "switches: when to switch is the daemon's business"
CHOSEN = "the daemon chooses the address"
PASID = "the daemon chooses the PASID"
FENCE_BYTES = "fence_bytes: the client takes what it is told"


class Script:
    """The client's side, step by step; the daemon's is written down as it comes."""

    def __init__(self, player):
        self.player = player
        self.steps = []
        self.serials = {}

    def do(self, **step):
        self.steps.append(self.player.play(step))

    def hear(self, by, what, varies=()):
        self.do(to=by, what=what, varies=list(varies))

    def send(self, by, what, opcode, body=b"", fds=(), header_fds=None, serial=None, size=None):
        """A request; only header_fds, serial and size may be other than right."""
        if serial is None:
            serial = self.serials[by] = self.serials.get(by, 0) + 1
        head = pc.HEADER.pack(16 + len(body) if size is None else size, opcode,
                              len(fds) if header_fds is None else header_fds, serial)
        self.do(to="daemon", by=by, what=what, hex=conversation.split_hex(head) + split_body(opcode, body),
                fds=list(fds))

    def ask(self, by, what, opcode, body=b"", fds=(), varies=(), **wrong):
        self.send(by, what, opcode, body, fds, **wrong)
        self.hear(by, "reply to " + what, varies)

    # Requests.

    def connect(self, by):
        self.do(do="connect", by=by)

    def hello(self, by):
        self.ask(by, "HELLO", pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0), varies=[(72, 8, FENCE_BYTES)])

    def ctx_new(self, by, what):
        self.ask(by, what, pc.CTX_NEW, pc.name("") + bytes(8), varies=[(52, 4, PASID)])

    def on_ctx(self, by, what, opcode, ctx, varies=(), reserved=0):
        self.ask(by, what, opcode, struct.pack("<II", ctx, reserved), varies=varies)

    def ctx_info(self, by, ctx):
        self.on_ctx(by, f"CTX_INFO of {ctx}", pc.CTX_INFO, ctx, [(52, 4, PASID), (80, 8, TABLES), (112, 8, SWITCHES)])

    def buf_import(self, by, what, *fds):
        self.ask(by, what, pc.BUF_IMPORT, pc.name("gpu0") + bytes(8), fds)

    def bind(self, by, what, ctx, ops, varies=()):
        body = struct.pack("<II", ctx, len(ops))
        self.ask(by, what, pc.BIND, body + b"".join(struct.pack("<IIIIQQQ", *op[:3], 0, *op[3:]) for op in ops),
                 varies=varies)

    def submit(self, by, what, ctx, iova, length):
        self.ask(by, what, pc.SUBMIT, struct.pack("<IIQQ", ctx, 0, iova, length))

    def commands(self, *commands):
        self.do(do="write", name="code", at=0, hex=[c.hex() for c in commands])


def split_body(opcode, body):
    """A request's body as strings of hex; BIND's operations one by one."""
    cuts = list(range(8, len(body), 40)) if opcode == pc.BIND else list(range(40, len(body), 40))
    return [body[a:b].hex() for a, b in zip([0] + cuts, cuts + [len(body)]) if a < b]


def greet(s):
    s.connect("a")
    s.ask("a", "DEVICES before HELLO: NO_HELLO", pc.DEVICES)
    s.ask("a", "HELLO of version 7: VERSION", pc.HELLO, struct.pack("<IIQ", 0x44534150, 7, 0))
    s.hello("a")
    s.ask("a", "a second HELLO: NO_HELLO", pc.HELLO, struct.pack("<IIQ", 0x44534150, 1, 0))
    s.ask("a", "DEVICES", pc.DEVICES)
    s.ask("a", "DEVICE_INFO", pc.DEVICE_INFO, pc.name("gpu0"))
    s.ask("a", "DEVICE_INFO of the first device", pc.DEVICE_INFO, pc.name(""))
    s.ask("a", "DEVICE_INFO of gpu1: NO_DEVICE", pc.DEVICE_INFO, pc.name("gpu1"))


def frames(s):
    s.ask("a", "opcode 99: OPCODE", 99)
    s.ask("a", "DEVICES with a body: BODY_SIZE", pc.DEVICES, bytes(8))
    s.ask("a", "DEVICES that says it has an fd: FD_COUNT", pc.DEVICES, header_fds=1)
    s.ask("a", "BUF_IMPORT without an fd: FD_COUNT", pc.BUF_IMPORT, pc.name("") + bytes(8))


def memory(s):
    s.ctx_new("a", "CTX_NEW")
    for name, seals, pages in (("data", ["shrink"], 4), ("code", ["shrink", "grow"], 1),
                               ("sealed", ["shrink", "write"], 1), ("unsealed", [], 1)):
        s.do(do="memory", name=name, bytes=pages * PAGE, seals=seals)
    s.do(do="memory", name="odd", bytes=PAGE + 1, seals=["shrink"])
    s.buf_import("a", "BUF_IMPORT", "data")
    s.buf_import("a", "BUF_IMPORT", "code")
    s.buf_import("a", "BUF_IMPORT, sealed against writing: not writable", "sealed")
    s.buf_import("a", "BUF_IMPORT of an fd that is read-only: not writable", "code ro")
    s.buf_import("a", "BUF_IMPORT of a file that can shrink: UNSEALED", "unsealed")
    s.buf_import("a", "BUF_IMPORT of a file of 4097 bytes: UNALIGNED", "odd")
    s.buf_import("a", "BUF_IMPORT of what is no memfd: NOT_MEMFD", "/dev/null")
    s.buf_import("a", "BUF_IMPORT of two fds: FD_COUNT", "data", "code")


def binds(s):
    s.bind("a", "BIND: a map and one for reading", 1,
           [(pc.MAP, FIXED, 1, 0, DATA, 4 * PAGE), (pc.MAP, pc.READ | pc.FIXED, 2, 0, CODE, PAGE)])
    s.bind("a", "BIND: the daemon chooses", 1, [(pc.MAP, pc.READ, 3, 0, 0, PAGE)], [(48, 8, CHOSEN)])
    s.bind("a", "BIND: unmap the last page", 1, [(pc.UNMAP, 0, 0, 0, DATA + 3 * PAGE, PAGE)])
    far = DATA + (1 << 30)
    for what, op in (
            ("not aligned: UNALIGNED", (pc.MAP, FIXED, 1, 0, far + 1, PAGE)),
            ("no length: EMPTY", (pc.MAP, FIXED, 1, 0, far, 0)),
            ("beyond 64 bits: WRAPS", (pc.UNMAP, 0, 0, 0, (1 << 64) - PAGE, 2 * PAGE)),
            ("an unknown flag: FLAGS", (pc.MAP, FIXED | 8, 1, 0, far, PAGE)),
            ("an unmap with a buffer: RESERVED", (pc.UNMAP, 0, 1, 0, DATA, PAGE)),
            ("kind 3: BIND_OP", (3, 0, 0, 0, DATA, PAGE)),
            ("buffer 99: NO_BUFFER", (pc.MAP, FIXED, 99, 0, far, PAGE)),
            ("an unmap of nothing: NOT_MAPPED", (pc.UNMAP, 0, 0, 0, DATA + 2 * PAGE, 2 * PAGE)),
            ("beyond the aperture: APERTURE", (pc.MAP, FIXED, 1, 0, 1 << 63, PAGE)),
            ("beyond the buffer: BUFFER_END", (pc.MAP, FIXED, 1, 3 * PAGE, far, 2 * PAGE)),
            ("a sealed buffer for writing: READ_ONLY", (pc.MAP, FIXED, 3, 0, far, PAGE)),
            ("a read-only buffer for writing: READ_ONLY", (pc.MAP, FIXED, 4, 0, far, PAGE))):
        s.bind("a", "BIND, " + what, 1, [op])
    s.bind("a", "BIND of nothing: EMPTY", 1, [])
    s.bind("a", "BIND, the third of three fails: OVERLAP, and all is as before", 1,
           [(pc.UNMAP, 0, 0, 0, DATA, PAGE), (pc.MAP, FIXED, 1, 0, far, PAGE), (pc.MAP, FIXED, 1, 0, CODE, PAGE)])
    s.bind("a", "BIND in context 77: NO_CONTEXT", 77, [(pc.UNMAP, 0, 0, 0, DATA, PAGE)])


def jobs(s):
    s.ctx_info("a", 1)
    s.commands(command(FILL, 0xC0FFEE42, DATA, length=2 * PAGE))
    s.submit("a", "SUBMIT: a FILL", 1, CODE, 64)
    s.do(do="fence", by="a", line=0, done=1, state=0, disrupted=0)
    s.do(do="read", name="data", at=2 * PAGE - 8, hex=[bytes(16).hex()])
    s.commands(command(FILL, 0x11111111, DATA + 3 * PAGE, length=64))
    s.submit("a", "SUBMIT: a FILL of what was unmapped", 1, CODE, 64)
    s.do(do="fence", by="a", line=0, done=2, state=0, disrupted=1)
    s.hear("a", "FAULT: a write, where something was unmapped", [(88, 8, AGE)])
    s.commands(command(SET_TTBR, 0, 0))
    s.submit("a", "SUBMIT: a privileged command", 1, CODE, 64)
    s.do(do="fence", by="a", line=0, done=3, state=0, disrupted=2)
    s.hear("a", "FAULT: a privileged command", [(88, 8, AGE)])
    s.submit("a", "SUBMIT of nothing: EMPTY", 1, CODE, 0)
    s.submit("a", "SUBMIT of 63 bytes: UNALIGNED", 1, CODE, 63)
    s.submit("a", "SUBMIT of too much: COMMANDS", 1, CODE, 1 << 40)
    s.submit("a", "SUBMIT beyond the aperture: APERTURE", 1, 1 << 63, 64)
    s.submit("a", "SUBMIT in context 77: NO_CONTEXT", 77, CODE, 64)
    s.ctx_info("a", 1)


def repeats(s):
    s.ctx_new("a", "CTX_NEW")
    serial = s.serials["a"]
    s.ask("a", "the same again: the kept reply, and no new context", pc.CTX_NEW, pc.name("") + bytes(8), serial=serial,
          varies=[(52, 4, PASID)])
    s.ask("a", "another request of that serial: the kept reply", pc.DEVICES, serial=serial, varies=[(52, 4, PASID)])
    s.ask("a", "the refusal before it again", pc.DEVICES, serial=serial - 2)
    s.ctx_new("a", "CTX_NEW: the next id")
    s.ask("a", "CTX_NEW, one too many: QUOTA_CONNECTION", pc.CTX_NEW, pc.name("") + bytes(8))
    s.on_ctx("a", "CTX_FREE, reserved not zero: RESERVED", pc.CTX_FREE, 3, reserved=1)
    s.on_ctx("a", "CTX_FREE", pc.CTX_FREE, 3)
    s.on_ctx("a", "CTX_FREE again: NO_CONTEXT", pc.CTX_FREE, 3)


def others(s):
    s.connect("b")
    s.hello("b")
    s.on_ctx("b", "CTX_INFO of a's context: NO_CONTEXT", pc.CTX_INFO, 1)
    s.on_ctx("b", "CTX_INFO of no context: NO_CONTEXT", pc.CTX_INFO, 1000)
    s.on_ctx("b", "BUF_FREE of a's buffer: NO_BUFFER", pc.BUF_FREE, 1)
    s.send("b", "HELLO again, by its serial: its fd comes again", pc.HELLO,
           struct.pack("<IIQ", 0x44534150, 1, 0), serial=1)
    s.hear("b", "reply to HELLO", [(72, 8, FENCE_BYTES)])
    s.send("b", "three requests at once", pc.DEVICES)
    s.send("b", "the second", pc.CTX_NEW, pc.name("") + bytes(8))
    s.send("b", "the third", pc.DEVICES)
    s.hear("b", "reply to the first")
    s.hear("b", "reply to the second", [(52, 4, PASID)])
    s.hear("b", "reply to the third")
    s.send("b", "a serial that skips ahead", pc.DEVICES, serial=1000)
    s.hear("b", "the end")
    s.do(do="close", by="b")
    s.connect("c")
    s.hello("c")
    s.send("c", "a size that is not the record's", pc.DEVICES, size=17)
    s.hear("c", "the end")
    s.do(do="close", by="c")


def losses(s):
    s.bind("a", "BIND in the second context", 2, [(pc.MAP, pc.READ | pc.FIXED, 2, 0, CODE, PAGE)])
    s.commands(command(HANG))
    s.submit("a", "SUBMIT: a job that hangs", 2, CODE, 64)
    s.do(do="fence", by="a", line=1, done=0, state=1)
    s.hear("a", "LOST: a job ran beyond the limit")
    s.submit("a", "SUBMIT in a lost context: CONTEXT_LOST", 2, CODE, 64)
    s.bind("a", "BIND in a lost context: CONTEXT_LOST", 2, [(pc.UNMAP, 0, 0, 0, CODE, PAGE)])
    s.on_ctx("a", "CTX_FREE of the lost context", pc.CTX_FREE, 2)
    s.do(do="stop gpu")
    s.hear("a", "LOST: the device is gone")
    s.ask("a", "CTX_NEW while the device is gone: DEVICE_GONE", pc.CTX_NEW, pc.name("") + bytes(8))
    s.do(do="start gpu")
    s.hear("a", "DEVICE_BACK")
    s.on_ctx("a", "CTX_FREE of the lost context", pc.CTX_FREE, 1)
    s.ctx_new("a", "CTX_NEW: a rising id")
    for buf in (1, 4):
        s.on_ctx("a", f"BUF_FREE of {buf}", pc.BUF_FREE, buf)
    s.on_ctx("a", "BUF_FREE again: NO_BUFFER", pc.BUF_FREE, 4)
    s.do(do="close", by="a")


def record():
    with harness.Stack([DEVICE], LIMITS) as stack:
        with pc.Client(stack.socket) as first:
            stack.await_device(first)
        with conversation.Player(stack) as player:
            script = Script(player)
            for part in (greet, frames, memory, binds, jobs, repeats, others, losses):
                part(script)
    return {"protocol": 1, "device": DEVICE, "config": LIMITS, "steps": script.steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.file.exists():
        sys.exit(f"{args.file} exists; what was recorded is not overwritten")
    conversation.save(args.file, record())


if __name__ == "__main__":
    main()
