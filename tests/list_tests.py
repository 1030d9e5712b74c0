#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the names of the Python tests (test_*.py) in a directory, for meson."""

import sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).glob("test_*.py")):
    print(path.stem)
