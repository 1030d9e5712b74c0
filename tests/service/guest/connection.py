# SPDX-License-Identifier: MIT
"""Asks for a connection over the system bus, makes so many contexts there, and says "ok"."""

import sys

sys.path.insert(0, "/opt/system")

import dbus_client  # noqa: E402
import pasid_client as pc  # noqa: E402

bus = dbus_client.Bus("/run/dbus/system_bus_socket")
client = pc.Client(dbus_client.Pasidd(bus).manager("OpenConnection"))
for _ in range(int(sys.argv[1])):
    client.ctx_new()
print("ok")
