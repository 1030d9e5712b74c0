# SPDX-License-Identifier: MIT
"""Files as a C array of {name, text}: embed.py OUTPUT NAME=FILE..."""

import json
import sys

with open(sys.argv[1], "w", encoding="ascii") as out:
    for word in sys.argv[2:]:
        name, _, path = word.partition("=")
        with open(path, encoding="ascii") as file:
            lines = "\n".join(f"\t {json.dumps(line)}" for line in file)
        out.write(f"{{{json.dumps(name)},\n{lines}}},\n")
