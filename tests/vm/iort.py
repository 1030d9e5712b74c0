# SPDX-License-Identifier: MIT
"""Linux lets user space have the first stage of an SMMU only if the firmware says that devices cannot get around the
caches, whatever a table of ours asks for: the flag CANWBS of a root complex in the ACPI table IORT. QEMU emulates no
caches, so that it is true there, but does not set it. Source: Arm DEN0049, "IO Remapping Table"."""

import struct

HEADER = struct.Struct("<4sIBB6s8sI4sI")  # of any ACPI table
REVISION = 24  # the OEM's; Linux takes the table with the higher one
CHECKSUM = 9
NODES = struct.Struct("<II")  # how many, and where the first one is; behind the header
NODE = struct.Struct("<BHBIII")  # type, length; the rest does not matter here
ROOT_COMPLEX = 2
MEMORY_FLAGS = NODE.size + 7
CANWBS = 1 << 2


def with_canwbs(table):
    """The table with that flag set on each root complex."""
    table = bytearray(table)
    signature, length, *_ = HEADER.unpack_from(table)
    if signature != b"IORT" or length != len(table):
        raise ValueError(f"not an IORT: {signature!r}, {length} of {len(table)} bytes")
    count, at = NODES.unpack_from(table, HEADER.size)
    found = 0
    for _ in range(count):
        kind, length, *_ = NODE.unpack_from(table, at)
        if kind == ROOT_COMPLEX:
            table[at + MEMORY_FLAGS] |= CANWBS
            found += 1
        at += length
    if not found:
        raise ValueError("the IORT has no root complex")
    revision = struct.unpack_from("<I", table, REVISION)[0]
    struct.pack_into("<I", table, REVISION, revision + 1)
    table[CHECKSUM] = 0
    table[CHECKSUM] = -sum(table) & 0xff
    return bytes(table)
