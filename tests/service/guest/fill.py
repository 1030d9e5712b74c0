# SPDX-License-Identifier: MIT
"""Has the GPU, once it is there, fill a page of ours in each of so many contexts (1), and says "ok" and whose uid we are."""

import os
import sys
import time

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402
import work  # noqa: E402

contexts = int(sys.argv[1]) if len(sys.argv) > 1 else 1
with pc.Client("/run/pasidd/socket") as client:
    while not any(present for _, _, present in client.devices()):
        time.sleep(0.02)
    spaces = [work.Space(client) for _ in range(contexts)]
    for i, space in enumerate(spaces):
        if not client.wait(space.ctx, space.submit(space.fill(1, 0x01010101 * (i + 1)))):
            sys.exit(f"context {space.ctx} is lost")
    for i, space in enumerate(spaces):
        if space.data[work.PAGE:2 * work.PAGE] != bytes([i + 1]) * work.PAGE:
            sys.exit(f"context {space.ctx} has other bytes than its own")
    print(f"ok, uid {os.getuid()}")
