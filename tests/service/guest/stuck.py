# SPDX-License-Identifier: MIT
"""Sends the daemon a file that cannot be closed, as root, for mounting its file system takes that. Says how many children of
the daemon's hang, and lets go of them when stdin ends; a line in between makes another context, and is answered "ok"."""

import os
import sys
import time

sys.path.insert(0, "/opt/system")

import pasid_client as pc  # noqa: E402
import stuck_fuse  # noqa: E402
import work  # noqa: E402

try:
    files = stuck_fuse.StuckFiles()
except stuck_fuse.Unavailable as why:
    sys.exit(f"unavailable: {why}")
with files, pc.Client("/run/pasidd/socket") as client:
    space = work.Space(client)
    fd = files.open()
    try:
        client.buf_import(fd)
    except pc.Refused:
        pass
    while not files.stuck(stuck_fuse.FLUSH):
        time.sleep(0.01)
    print(files.stuck(), flush=True)
    for _ in sys.stdin:
        space.renew()
        print("ok", flush=True)
