#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""System tests on the reference GPU as a PCI device. Arguments: "type1" or "iommufd", then FILE or FILE.CLASS[.TEST] of
tests/system, each with all its tests."""

import os
import sys
from pathlib import Path

import vm


def main():
    way, *chosen = vm.ARGUMENTS
    os.environ["PASID_TEST_PCI"] = f"{way}:{vm.refgpu().bdf}"
    files = dict.fromkeys(str(Path(os.environ["SOURCE"], "tests/system", name.partition(".")[0] + ".py"))
                          for name in chosen)
    patterns = [word for name in chosen for word in ("-k", f"{name}.*" if name.count(".") < 2 else name)]
    vm.run_system([*files, *patterns])


if __name__ == "__main__":
    main()
