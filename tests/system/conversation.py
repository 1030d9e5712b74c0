# SPDX-License-Identifier: MIT
"""Conversations with the daemon as files: playing one, recording one, and laying one beside the other.

A conversation is a JSON file: a configuration, and a list of steps, one to a line of its own meaning:

    {"to": "daemon", "by": "a", "what": ..., "hex": [...], "fds": [...]}    a message of the client that is called "a"
    {"to": "a", "what": ..., "hex": [...], "fds": [...], "varies": [...]}   what the daemon sends to it: a reply or an event
    {"to": "a", "end": true}                                                the daemon ends the connection
    {"do": "connect" | "close", "by": "a"}
    {"do": "memory", "name": ..., "bytes": n, "seals": [...]}               makes a memfd
    {"do": "write", "name": ..., "at": n, "hex": [...]}                     the client writes to it
    {"do": "read", "name": ..., "at": n, "hex": [...]}                      the client finds this in it
    {"do": "fence", "by": "a", "line": n, "done": n, "state": n, "disrupted": n}    waits for done and state
    {"do": "stop gpu" | "start gpu"}

"hex" is the whole message, header and body; where it is split into strings is for the reader. "varies" names the only
bytes that may differ: [first, count, why].
"""

import array
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import time

MSG_MAX = 65536
TIMEOUT = 30  # s
FENCE_MEMORY = "fence memory"
SEALS = {"seal": fcntl.F_SEAL_SEAL, "shrink": fcntl.F_SEAL_SHRINK, "grow": fcntl.F_SEAL_GROW, "write": fcntl.F_SEAL_WRITE}


class Differs(AssertionError):
    """The daemon did something else than at the time of the recording."""


def split_hex(data):
    """A message as strings of hex: its header, a reply's status, its body in lines of 40 bytes."""
    cuts = [0, 16]
    if len(data) >= 48 and not struct.unpack_from("<H", data, 4)[0] & 0x8000 and struct.unpack_from("<Q", data, 8)[0]:
        cuts.append(48)
    cuts += range(cuts[-1] + 40, len(data), 40)
    return [data[a:b].hex() for a, b in zip(cuts, cuts[1:] + [len(data)]) if a < len(data)]


def join_hex(strings):
    return bytes.fromhex("".join(strings))


def masked(data, varies):
    data = bytearray(data)
    for first, count, _ in varies:
        data[first:first + count] = bytes(len(data[first:first + count]))
    return bytes(data)


class Connection:
    """One client: its socket, and its fence memory."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self.fences = None

    def close(self):
        self.socket.close()
        if self.fences:
            self.fences.close()

    def send(self, data, fds):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], control, socket.MSG_NOSIGNAL)

    def receive(self):
        """The next message and what its fds are; b"" at the end of the connection."""
        try:
            data, control, _, _ = self.socket.recvmsg(MSG_MAX + 1, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return b"", []
        kinds = []
        for _, _, payload in control:
            for fd in array.array("i", payload):
                kinds.append(self.take(fd))
        return data, kinds

    def take(self, fd):
        """The daemon's only fd is read-only fence memory. Any other is called what it is."""
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                return f"mode {status.st_mode:#o}"
            if not self.fences:
                self.fences = mmap.mmap(fd, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
            return FENCE_MEMORY
        finally:
            os.close(fd)

    def fence(self, line):
        return struct.unpack_from("<QII", self.fences, 64 * line)


class Player:
    """Plays steps against a stack (of harness.py). Each method returns what really happened, as a step."""

    def __init__(self, stack):
        self.stack = stack
        self.connections = {}
        self.memories = {}

    def close(self):
        for connection in self.connections.values():
            connection.close()
        for fd, view in self.memories.values():
            view.close()
            os.close(fd)
        self.connections, self.memories = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def play(self, step):
        if step.get("to") == "daemon":
            return self.say(step)
        if "to" in step:
            return self.hear(step)
        return getattr(self, "do_" + step["do"].replace(" ", "_"))(step)

    def say(self, step):
        opened = []
        try:
            fds = [self.open(fd, opened) for fd in step.get("fds", [])]
            self.connections[step["by"]].send(join_hex(step["hex"]), fds)
        finally:
            for fd in opened:
                os.close(fd)
        return step

    def open(self, name, opened):
        """"NAME" is a memory, "NAME ro" the same opened for reading only, and "/PATH" a file."""
        if name.startswith("/"):
            fd = os.open(name, os.O_RDWR)
        elif name.endswith(" ro"):
            fd = os.open(f"/proc/self/fd/{self.memories[name[:-3]][0]}", os.O_RDONLY)
        else:
            return self.memories[name][0]
        opened.append(fd)
        return fd

    def hear(self, step):
        data, fds = self.connections[step["to"]].receive()
        if not data:
            return {"to": step["to"], "end": True}
        heard = {"to": step["to"], "what": step.get("what", ""), "hex": split_hex(data), "fds": fds}
        if step.get("varies"):
            heard["varies"] = step["varies"]
        return heard

    def do_connect(self, step):
        self.connections[step["by"]] = Connection(self.stack.socket)
        return step

    def do_close(self, step):
        self.connections.pop(step["by"]).close()
        return step

    def do_memory(self, step):
        fd = os.memfd_create(step["name"], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, step["bytes"])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, sum(SEALS[s] for s in step["seals"]))
        self.memories[step["name"]] = fd, mmap.mmap(fd, step["bytes"], prot=mmap.PROT_READ | (
            0 if "write" in step["seals"] else mmap.PROT_WRITE))
        return step

    def do_write(self, step):
        data = join_hex(step["hex"])
        self.memories[step["name"]][1][step["at"]:step["at"] + len(data)] = data
        return step

    def do_read(self, step):
        length = len(join_hex(step["hex"]))
        return dict(step, hex=[self.memories[step["name"]][1][step["at"]:step["at"] + length].hex()])

    def do_fence(self, step):
        connection = self.connections[step["by"]]
        end = time.monotonic() + TIMEOUT
        while True:
            done, state, disrupted = connection.fence(step["line"])
            if done >= step["done"] and state == step["state"] or time.monotonic() > end:
                now = {"done": done, "state": state, "disrupted": disrupted}
                return {key: now.get(key, value) for key, value in step.items()}
            time.sleep(0.001)

    def do_stop_gpu(self, step):
        self.stack.stop_gpu(0)
        return step

    def do_start_gpu(self, step):
        self.stack.start_gpu(0)
        return step


def compare(step, happened):
    """Raises Differs unless what happened is what is written, but for the bytes that vary."""
    if step.get("to") in (None, "daemon") or "end" in step or "end" in happened:
        same = step == happened
    else:
        data, now = join_hex(step["hex"]), join_hex(happened["hex"])
        varies = step.get("varies", [])
        same = len(data) == len(now) and masked(data, varies) == masked(now, varies) \
            and step["fds"] == happened["fds"]
    if not same:
        raise Differs(f"recorded:\n{dump_step(step)}\nnow:\n{dump_step(happened)}")


def replay(stack, conversation):
    with Player(stack) as player:
        for n, step in enumerate(conversation["steps"]):
            try:
                compare(step, player.play(step))
            except (OSError, Differs) as problem:
                raise Differs(f"step {n}, {step.get('what') or step.get('do')}: {problem}\n{stack.log_tail()}") from None


# Files.

def dump_step(step):
    """Readable JSON: short fields on one line, each piece of hex on a line of its own if there are several."""
    fields = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in step.items() if k not in ("hex", "fds", "varies")]
    pieces = step.get("hex", [])
    if len(pieces) == 1:
        fields.append(f"\"hex\": {json.dumps(pieces)}")
    elif pieces:
        fields.append("\"hex\": [\n      " + ",\n      ".join(json.dumps(p) for p in pieces) + "]")
    fields += [f"{json.dumps(k)}: {json.dumps(step[k])}" for k in ("fds", "varies") if step.get(k) is not None]
    return "    {" + ", ".join(fields) + "}"


def save(path, conversation):
    head = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in conversation.items() if k != "steps"]
    steps = ",\n".join(dump_step(step) for step in conversation["steps"])
    path.write_text("{\n" + ",\n".join(head) + ",\n  \"steps\": [\n" + steps + "\n  ]\n}\n")


def load(path):
    return json.loads(path.read_text())
