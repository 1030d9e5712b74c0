# SPDX-License-Identifier: MIT
"""Connects and says which devices there are, as JSON. With a number: waits until so many are present."""

import json
import sys
import time

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402

wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 0
end = time.monotonic() + 20
with pc.Client("/run/pasidd/socket") as client:
    while sum(present for _, _, present in client.devices()) < wanted and time.monotonic() < end:
        time.sleep(0.02)
    print(json.dumps(client.devices()))
