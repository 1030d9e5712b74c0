# SPDX-License-Identifier: MIT
"""Has a connection that it asked the system bus for. For each line that it reads it makes contexts until one is refused, and
says as JSON which it has, and the numbers of the refusal."""

import errno
import json
import sys

sys.path.insert(0, "/opt/system")

import dbus_client  # noqa: E402
import pasid_client as pc  # noqa: E402

bus = dbus_client.Bus("/run/dbus/system_bus_socket")
client = pc.Client(dbus_client.Pasidd(bus).manager("OpenConnection"))
contexts = []
for _ in sys.stdin:
    try:
        while True:
            contexts.append(client.ctx_new())
    except pc.Refused as refused:
        if refused.code != -errno.EDQUOT:
            raise
        print(json.dumps({"contexts": contexts, "used": refused.n1, "limit": refused.n2}), flush=True)
