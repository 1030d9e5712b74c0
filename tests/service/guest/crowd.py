# SPDX-License-Identifier: MIT
"""Connects until that is refused, and says how many connections it has then, and with which numbers. For each line that it
reads it has the GPU fill a page in a context of each connection, in memory that is new, and says "ok"."""

import json
import sys

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402
import work  # noqa: E402

clients = []
try:
    while True:
        clients.append(pc.Client("/run/pasidd/socket"))
except pc.Refused as refused:
    print(json.dumps([len(clients), refused.code, refused.reason, refused.n1, refused.n2]), flush=True)
for _ in sys.stdin:
    for client in clients:
        space = work.Space(client)
        assert client.wait(space.ctx, space.submit(space.fill(1, 0x01010101)))
        assert space.data[work.PAGE:2 * work.PAGE] == b"\1" * work.PAGE
    print("ok", flush=True)
