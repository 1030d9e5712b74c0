# SPDX-License-Identifier: MIT
"""Owns a context, made over the system bus, or at the socket ("socket"). Says which, and then for each line that it reads
has the GPU fill a page there, and says "ok"."""

import sys

sys.path.insert(0, "/opt/system")

import dbus_client  # noqa: E402
import dbus_stack  # noqa: E402
import pasid_client as pc  # noqa: E402
import work  # noqa: E402


class OnBus:
    def __init__(self):
        self.work = dbus_stack.Work(dbus_client.Pasidd(dbus_client.Bus("/run/dbus/system_bus_socket")))
        self.id, self.data = self.work.id, self.work.view

    def fill(self, value):
        self.work.run(self.work.fill(1, value))


class AtSocket:
    def __init__(self):
        self.client = pc.Client("/run/pasidd/socket")
        self.work = work.Space(self.client)
        self.id, self.data = self.work.ctx, self.work.data

    def fill(self, value):
        assert self.client.wait(self.id, self.work.submit(self.work.fill(1, value)))


owner = AtSocket() if sys.argv[1:] == ["socket"] else OnBus()
print(owner.id, flush=True)
for i, _ in enumerate(sys.stdin):
    owner.fill(0x01010101 * (i + 1))
    assert owner.data[work.PAGE:2 * work.PAGE] == bytes([i + 1]) * work.PAGE
    print("ok", flush=True)
