# SPDX-License-Identifier: MIT
"""A journal seen from outside, as daemon/store/journal.c lays it out."""

import mmap
import struct

HEAD_BYTES = 4096
AREA_BYTES = 4 << 30
PUBLISHED = 64  # in the head: which area counts, and how far


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


class Journal:
    def __init__(self, fd):
        self.fd = fd
        self.map = mmap.mmap(fd, 0)
        place, = struct.unpack_from("<I", self.map, PUBLISHED)
        self.first = HEAD_BYTES + (AREA_BYTES if place >> 31 else 0)
        self.end = self.first + (place & (1 << 31) - 1) * 8

    def flip(self, bit):
        self.map[bit // 8] ^= 1 << bit % 8

    def set_version(self, version):
        """As another daemon would have it."""
        rest = struct.pack("<I", version) + self.map[self.first + 8:self.first + 16]
        self.map[self.first:self.first + 16] = struct.pack("<I", crc32c(rest)) + rest

    @property
    def snapshot_bytes(self):
        return struct.unpack_from("<Q", self.map, self.first + 8)[0]

    @property
    def version(self):
        """Of its first entries."""
        return struct.unpack_from("<I", self.map, self.first + 4)[0]

    @property
    def versions(self):
        """Those of its entries, in their order."""
        versions, at = [self.version], self.first + 16
        while at < self.end:
            _, size, kind, _ = struct.unpack_from("<IIII", self.map, at)
            if kind == 0:
                versions += struct.unpack_from("<I", self.map, at + 16)
            at += 16 + (size + 7 & ~7)
        return versions
