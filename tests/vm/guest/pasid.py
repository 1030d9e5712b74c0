#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mode `pasid`: what the daemon has the kernel install for each context is read back from the IOMMU driver's debugfs.

No data moves under a PASID here, for no device in this guest can tag its accesses.
"""

import errno
import fcntl
import os
import re
import sys
import unittest
from pathlib import Path

import vm

sys.path.insert(0, os.path.join(os.environ["SOURCE"], "tests/system"))
import pasid_client as pc  # noqa: E402

PAGE, BLOCK = 4096, 2 << 20
DEBUG = Path("/sys/kernel/debug/iommu/intel")
# IOVA_PFN and the entries of each level, the page's own last; bit 0 says that it is there.
LINE = re.compile(r"^\s*0x([0-9a-f]+)\s*\|?((?:\s+0x[0-9a-f]+)+)\s*$", re.I)


class Pasid(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.device = vm.PciDevice(vm.pci_find(0x1234, 0x9a51)[0])
        cls.device.bind_vfio()
        cls.daemon = vm.Daemon({"name": "gpu0", "spec": f"iommufd:{cls.device.bdf}", "mode": "pasid", "answer_ms": 5000})
        with pc.Client(cls.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("gpu0", 4, 1)])

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def setUp(self):
        self.client = self.enterContext(pc.Client(self.daemon.socket))

    def tables(self, pasid):
        """The PASID's page table: {IOVA: leaf}; None if nothing is attached under it."""
        path = DEBUG / self.device.bdf / f"{pasid:x}" / "domain_translation_struct"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:  # debugfs, of a file that went after it was opened
            self.assertEqual(error.errno, errno.EIO)
            return None
        self.seen = text
        found = {}
        for line in text.splitlines():
            match = LINE.match(line)
            if match:
                entries = [int(word, 16) for word in match.group(2).split()]
                leaf = [entry for entry in entries if entry][-1]
                found[int(match.group(1), 16) * PAGE] = leaf
        return found

    def expect(self, pasid, *ranges):
        """The leaves are those of these ranges (first, bytes, writable) and of nothing else."""
        want = {at: writable for first, size, writable in ranges for at in range(first, first + size, PAGE)}
        found = self.tables(pasid)
        self.assertIsNotNone(found, f"nothing is attached under PASID {pasid}: {list(DEBUG.glob('*/*'))}")
        got = {at: bool(leaf & 2) for at, leaf in found.items()}
        self.assertEqual(got, want, self.seen[:2000])
        return found

    def buffer(self, pages):
        fd, view = pc.memfd(pages * PAGE)
        self.addCleanup(os.close, fd)
        self.addCleanup(view.close)
        return self.client.buf_import(fd)[0]

    def test_1_what_it_is(self):
        info = self.client.device_info()
        self.assertEqual((info["mode"], info["pasid_bits"]), (4, 20))

    def test_2_leaf_by_leaf(self):
        client = self.client
        one, two = client.ctx_new(), client.ctx_new()
        pasids = [client.ctx_info(ctx)["pasid"] for ctx in (one, two)]
        self.assertNotEqual(*pasids)
        a, b = self.buffer(8), self.buffer(8)
        at = 0x200000
        client.map(one, a, 0, 4 * PAGE, pc.READ | pc.WRITE | pc.FIXED, at)
        client.map(one, a, 4 * PAGE, 2 * PAGE, pc.READ | pc.FIXED, at + 16 * PAGE)
        client.map(two, b, 0, 8 * PAGE, pc.READ | pc.WRITE | pc.FIXED, at)
        first = self.expect(pasids[0], (at, 4 * PAGE, True), (at + 16 * PAGE, 2 * PAGE, False))
        second = self.expect(pasids[1], (at, 8 * PAGE, True))
        frames = [{leaf & 0xffffffffff000 for leaf in tables.values()} for tables in (first, second)]
        self.assertFalse(frames[0] & frames[1], "two contexts have a page in common")
        # The middle goes; what is left of the area stays where it was.
        client.unmap(one, at + PAGE, 2 * PAGE)
        after = self.expect(pasids[0], (at, PAGE, True), (at + 3 * PAGE, PAGE, True), (at + 16 * PAGE, 2 * PAGE, False))
        self.assertEqual({k: v & 0xffffffffff000 for k, v in after.items()},
                         {k: v & 0xffffffffff000 for k, v in first.items() if k in after})
        client.ctx_free(one)
        self.assertFalse(self.tables(pasids[0]), "its table is still there")
        self.expect(pasids[1], (at, 8 * PAGE, True))
        # A PASID is not given out again at once.
        again = client.ctx_info(client.ctx_new())["pasid"]
        self.assertNotIn(again, pasids)

    def test_3_one_buffer_in_two_contexts(self):
        client = self.client
        buf, at = self.buffer(2), 0x400000
        tables = []
        for _ in range(2):
            ctx = client.ctx_new()
            client.map(ctx, buf, 0, 2 * PAGE, pc.READ | pc.FIXED, at)
            tables.append(self.expect(client.ctx_info(ctx)["pasid"], (at, 2 * PAGE, False)))
        frames = [[leaf & 0xffffffffff000 for leaf in table.values()] for table in tables]
        self.assertEqual(*frames)

    def test_4_a_client_that_dies(self):
        other = pc.Client(self.daemon.socket)
        pasid = other.ctx_info(other.ctx_new())["pasid"]
        self.expect(pasid)
        other.close()
        vm.wait_for(lambda: not self.tables(pasid))

    def test_5_work_is_refused(self):
        with self.assertRaises(pc.Refused) as caught:
            self.client.submit(self.client.ctx_new(), 0x200000, 64)
        self.assertEqual((caught.exception.code, caught.exception.reason), (-95, 73))

    def test_6_many(self):
        contexts = [self.client.ctx_new() for _ in range(100)]
        self.assertEqual(len({self.client.ctx_info(ctx)["pasid"] for ctx in contexts}), 100)
        for ctx in contexts:
            self.client.ctx_free(ctx)

    def test_7_its_end_unpins(self):
        """Pages that are pinned for writing keep that seal off their file (memfd_create(2))."""
        fd, view = pc.memfd(PAGE)
        self.addCleanup(os.close, fd)
        view.close()

        def seal():
            try:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                return True
            except OSError as error:
                self.assertEqual(error.errno, errno.EBUSY)
                return False

        ctx = self.client.ctx_new()
        self.client.map(ctx, self.client.buf_import(fd)[0], 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, 0x400000)
        self.assertFalse(seal())
        self.client.ctx_free(ctx)
        vm.wait_for(seal)


if __name__ == "__main__":
    vm.main(sys.argv)
