# SPDX-License-Identifier: MIT
"""Connects, makes a context and leaves, again and again, until stdin ends. Says how often that went well, how often the
daemon had no device yet, and how often a connection was cut. That it could not connect ends it."""

import errno
import json
import select
import sys

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402

served = early = cut = 0
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with pc.Client("/run/pasidd/socket") as client:
            client.ctx_new()
        served += 1
    except pc.Refused as refused:
        if refused.code != -errno.ENODEV:
            raise
        early += 1
    except (ConnectionResetError, BrokenPipeError):
        cut += 1
print(json.dumps({"served": served, "early": early, "cut": cut}))
