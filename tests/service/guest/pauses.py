# SPDX-License-Identifier: MIT
"""Has contexts, and asks the daemon for something small again and again. For each line that it reads it says when it began
to look, and, once it was told that the daemon is another one, how many seconds the longest wait for an answer took."""

import sys
import time

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402
import work  # noqa: E402

CONTEXTS = 16


def resumed(client):
    return any(opcode == pc.EV_RESUMED for opcode, _ in client.events)


with pc.Client("/run/pasidd/socket") as client:
    spaces = [work.Space(client) for _ in range(CONTEXTS)]
    print("begun", flush=True)
    for _ in sys.stdin:
        client.events.clear()
        longest = 0
        print("looking", flush=True)
        while not resumed(client):
            begun = time.monotonic()
            client.device_info()
            longest = max(longest, time.monotonic() - begun)
        print(longest, flush=True)
