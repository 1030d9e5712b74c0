# SPDX-License-Identifier: MIT
"""An architecture that pasidd was never tried on is refused when a build is configured: test_architectures.py SOURCE CC

The compiler is this machine's: it is not asked for anything before the refusal.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

REFUSED = [("riscv64", "little"), ("x86", "little"), ("arm", "little"), ("s390x", "big"), ("aarch64", "big")]
CROSS_FILE = """[binaries]
c = {cc}
[host_machine]
system = 'linux'
cpu_family = '{family}'
cpu = '{family}'
endian = '{endian}'
"""

source, *cc = sys.argv[1:]
for family, endian in REFUSED:
    with tempfile.TemporaryDirectory() as directory:
        cross = Path(directory, "cross.ini")
        cross.write_text(CROSS_FILE.format(cc=cc, family=family, endian=endian), encoding="utf-8")
        done = subprocess.run(["meson", "setup", "--cross-file", cross, Path(directory, "build"), source], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    want = f"pasidd runs on x86_64, aarch64 (little-endian), and not on {family} ({endian}-endian)"
    assert done.returncode == 1 and want in done.stdout, done.stdout
print(f"{len(REFUSED)} refused")
