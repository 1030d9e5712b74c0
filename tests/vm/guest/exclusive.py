#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Mode `exclusive` on QEMU's edu device, by a daemon of this guest: two contexts at the same addresses.

exclusive.py iommufd|type1 [DRIVER]: a shared object in the build directory, instead of the built-in driver
"""

import errno
import fcntl
import mmap
import os
import platform
import struct
import sys
import unittest
from pathlib import Path

import vm
from edu import COMMANDS, COPY, DATA, FILL, LATE, PAGE, Space, a_hundred_switches, command, pc

HOW = os.environ.setdefault("VFIO_HOW", sys.argv[1])  # the runner imports this file once more
DRIVER = os.environ.setdefault("EXCLUSIVE_DRIVER", (sys.argv + [""])[2])
TYPE1_LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
AREAS = 64
MANY = 4000  # mappings
# Of edu's 28 address bits. On Arm a window of the kernel's, for interrupts, is in the middle.
IOVA_LAST = (1 << (27 if platform.machine() == "aarch64" else 28)) - 1
HUGE = 2 << 20
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


class Exclusive(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if HOW == "type1":  # for containers that are opened from now on
            with open(TYPE1_LIMIT, "w", encoding="ascii") as limit:
                limit.write(str(AREAS))
        device = vm.PciDevice(vm.pci_find(0x1234, 0x11e8)[0])
        device.bind_vfio()
        more = {"drivers": [os.path.join(os.environ["SOURCE"], "build-vm", DRIVER)]} if DRIVER else {}
        more["limits"] = {who: {"huge": 4 * HUGE} for who in ("connection", "uid")}
        cls.daemon = vm.Daemon({"name": "edu0", "spec": f"{HOW}:{device.bdf}", "mode": "exclusive", "job_limit_ms": 20000},
                               **more)
        with pc.Client(cls.daemon.socket) as client:
            vm.wait_for(lambda: client.devices() == [("edu0", 3, 1)])

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def setUp(self):
        self.one, self.two = (self.enterContext(pc.Client(self.daemon.socket)) for _ in range(2))

    def test_1_what_it_is(self):
        info = self.one.device_info()
        self.assertEqual((info["engine"], info["mode"], info["slots"]), ("edu", 3, 1))
        self.assertEqual(info["iova_last"], IOVA_LAST)
        self.assertEqual("driver-edu.so" in self.maps(), bool(DRIVER))

    def test_2_a_hundred_switches(self):
        a_hundred_switches(self, Space(self.one), Space(self.two))

    def test_3_fill_of_any_length(self):
        a = Space(self.one)
        a.run(command(FILL, 0x04030201, DATA + 100, 0, 2 * PAGE + 5))
        pattern = bytes((1, 2, 3, 4)) * (PAGE // 2 + 2)
        self.assertEqual(a.data[100:100 + 2 * PAGE + 5], pattern[:2 * PAGE + 5])
        self.assertEqual(a.data[:100], bytes(100))
        self.assertEqual(a.data[100 + 2 * PAGE + 5:4 * PAGE], bytes(4 * PAGE - 2 * PAGE - 105))

    def test_4_what_only_the_other_has(self):
        """The IOMMU refuses it, none of it is read, and the device's own memory gives nothing away."""
        a, b = Space(self.one), Space(self.two)
        secret = b"of the other one" * (PAGE // 16)
        fd, view = pc.memfd(PAGE)
        view[:] = secret
        self.two.map(b.ctx, self.two.buf_import(fd)[0], 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
        b.run(command(COPY, 0, DATA, LATE, PAGE))  # it passes through the device
        a.data[:PAGE] = b"\x5a" * PAGE
        a.run(command(COPY, 0, DATA, LATE, PAGE))
        self.assertNotIn(secret[:16], a.page(0))
        a.run(command(FILL, 0x66666666, LATE, 0, PAGE))
        self.assertEqual(view[:], secret)

    def test_5_unmapped(self):
        a = Space(self.one)
        a.data[:PAGE] = b"\x11" * PAGE
        self.one.unmap(a.ctx, DATA + PAGE, PAGE)  # out of the middle of an area
        a.run(command(FILL, 0x22222222, DATA + PAGE, 0, PAGE), command(COPY, 0, DATA + 2 * PAGE, DATA, PAGE))
        self.assertEqual(a.page(1), bytes(PAGE))
        self.assertEqual(a.page(2), a.page(0))

    def test_6_read_only(self):
        a = Space(self.one)
        fd, view = pc.memfd(PAGE)
        view[:] = b"\x33" * PAGE
        self.one.map(a.ctx, self.one.buf_import(fd)[0], 0, PAGE, pc.READ | pc.FIXED, LATE)
        a.run(command(COPY, 0, DATA, LATE, PAGE), command(FILL, 0x44444444, LATE, 0, PAGE))
        self.assertEqual(a.page(0), b"\x33" * PAGE)
        self.assertEqual(view[:], b"\x33" * PAGE)

    def test_7_the_window_cannot_be_named(self):
        a = Space(self.one)
        a.data[:PAGE] = b"\x77" * PAGE
        a.run(command(COPY, 0, DATA, 0x1000, PAGE), command(COPY, 0, 0x1000, DATA, PAGE),
              command(FILL, 1, 0xfee00000, 0, 64), command(99, 0, DATA, DATA, PAGE),
              command(COPY, 0, (1 << 64) - PAGE, DATA, 2 * PAGE))
        self.assertEqual(a.page(0), b"\x77" * PAGE)

    def test_8_commands_that_are_not_there(self):
        a = Space(self.one)
        job = self.one.submit(a.ctx, LATE, 64)
        self.assertTrue(self.one.wait(a.ctx, job, 30))
        self.assertEqual(self.one.next_fault()[2][0][:3], (job, LATE, 4))

    def test_9_ends_with_work_out(self):
        a, b = Space(self.one, 64), Space(self.two)
        a.cmd[:32] = command(COPY, 0, DATA, DATA + 32 * PAGE, 32 * PAGE)
        for _ in range(3):
            self.one.submit(a.ctx, COMMANDS, 32)
        self.one.close()
        b.run(command(FILL, 0x55555555, DATA, 0, PAGE))
        self.assertEqual(b.page(0), b"\x55" * PAGE)

    def test_a_full_table(self):
        """What the kernel refuses at once is refused to the client; what it refuses at a switch costs that context alone."""
        if HOW != "type1":
            return  # iommufd has no such limit
        a, b = Space(self.one), Space(self.two)
        pages = [(pc.MAP, pc.READ | pc.FIXED, a.buf, 0, LATE + i * 2 * PAGE, PAGE) for i in range(AREAS)]
        a.run(command(FILL, 1, DATA, 0, PAGE))
        with self.assertRaises(pc.Refused) as caught:
            self.one.bind(a.ctx, pages)
        self.assertEqual((caught.exception.reason, caught.exception.n1), (134, errno.ENOSPC))
        self.assertEqual(self.one.ctx_info(a.ctx)["mappings"], 2)
        a.run(command(FILL, 2, DATA, 0, PAGE))
        self.one.bind(a.ctx, pages[:8])
        b_pages = [(pc.MAP, pc.READ | pc.FIXED, b.buf, 0, LATE + i * 2 * PAGE, PAGE) for i in range(AREAS)]
        self.two.bind(b.ctx, b_pages)  # the device is not there
        job = self.two.submit(b.ctx, COMMANDS, 32)
        self.assertFalse(self.two.wait(b.ctx, job, 30))
        self.assertEqual(struct.unpack_from("<II", self.two.next_event(10)[1]), (b.ctx, 4))
        a.run(command(FILL, 0x03030303, DATA, 0, PAGE))
        self.assertEqual(a.page(0), b"\x03" * PAGE)

    def test_b_seals(self):
        """Memory that the device may write cannot be sealed against writing, nor can sealed memory be written by it; what
        is sealed while the device is elsewhere (type1 lets go then) costs that context alone."""
        a, b = Space(self.one), Space(self.two)
        a.run(command(FILL, 0x01010101, DATA, 0, PAGE))
        fd, view = pc.memfd(PAGE)
        view[:] = b"\x44" * PAGE
        view.close()
        buf = self.two.buf_import(fd)[0]
        self.two.map(b.ctx, buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)  # the device is not there
        if HOW == "iommufd":
            with self.assertRaises(OSError) as caught:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            self.assertEqual(caught.exception.errno, errno.EBUSY)
            self.two.unmap(b.ctx, LATE, PAGE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            with self.assertRaises(pc.Refused) as caught:
                self.two.map(b.ctx, buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
            self.assertEqual((caught.exception.reason, caught.exception.n1), (134, errno.EPERM))
            self.two.map(b.ctx, buf, 0, PAGE, pc.READ | pc.FIXED, LATE)
            b.run(command(FILL, 0x66666666, LATE, 0, PAGE))
        else:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            other = self.two.ctx_new()
            b.cmd[:32] = command(FILL, 0x66666666, DATA, 0, PAGE)
            job = self.two.submit(b.ctx, COMMANDS, 32)
            self.two.ctx_free(other)  # one leaves while another comes
            self.assertFalse(self.two.wait(b.ctx, job, 30))
            self.assertEqual(struct.unpack_from("<II", self.two.next_event(10)[1]), (b.ctx, 4))
            self.assertEqual(a.page(0), b"\x01" * PAGE)
        self.assertEqual(os.pread(fd, PAGE, 0), b"\x44" * PAGE)
        a.run(command(FILL, 0x03030303, DATA, 0, PAGE))
        self.assertEqual(a.page(0), b"\x03" * PAGE)

    def fds(self):
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))

    def test_c_many_mappings(self):
        """However many there are of a buffer and in however many contexts, it costs the daemon no more than one fd."""
        a, b, c = Space(self.one), Space(self.two), Space(self.two)
        a.run(command(FILL, 1, DATA, 0, PAGE))  # the device is here: of the others no page is mapped yet
        before = self.fds()
        places = [LATE + i * 2 * PAGE for i in range(MANY)]
        for space in (b, c):
            for i in range(0, MANY, 500):
                self.two.bind(space.ctx, [(pc.MAP, pc.READ | pc.FIXED, b.buf, 0, at, PAGE) for at in places[i:i + 500]])
        self.assertEqual(self.two.ctx_info(b.ctx)["mappings"], MANY + 2)
        self.assertLess(self.fds(), before + 8)
        for i in range(MANY, 0, -500):  # the newest first
            for space in (b, c):
                self.two.bind(space.ctx, [(pc.UNMAP, 0, 0, 0, at, PAGE) for at in reversed(places[i - 500:i])])
        b.data[:PAGE] = bytes(PAGE)
        b.run(command(FILL, 0x22222222, DATA, 0, PAGE))  # what was mapped before them still is
        self.assertEqual(b.page(0), b"\x22" * PAGE)
        self.assertLessEqual(self.fds(), before)

    def test_d_one_file_after_another(self):
        """A memfd that is open in two ways, and one that has the fd of another in the daemon."""
        a, b = Space(self.one), Space(self.two)
        fd, view = pc.memfd(PAGE)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        bufs = []
        for way, writable, flags, at in ((again, 0, pc.READ, LATE), (fd, 1, pc.READ | pc.WRITE, LATE + 2 * PAGE)):
            buf, _, got = self.two.buf_import(way)
            self.assertEqual(got, writable)
            a.run(command(FILL, 1, DATA, 0, PAGE))
            self.two.map(b.ctx, buf, 0, PAGE, flags | pc.FIXED, at)
            bufs.append(buf)
        b.run(command(FILL, 0x33333333, LATE + 2 * PAGE, 0, PAGE), command(COPY, 0, DATA, LATE, PAGE))
        self.assertEqual((view[:], b.page(0)), (b"\x33" * PAGE,) * 2)
        for buf, at in zip(bufs, (LATE, LATE + 2 * PAGE)):
            self.two.unmap(b.ctx, at, PAGE)
            self.two.buf_free(buf)
        for value in (0x44444444, 0x55555555):
            other, other_view = pc.memfd(PAGE)
            buf = self.two.buf_import(other)[0]
            a.run(command(FILL, 1, DATA, 0, PAGE))
            self.two.map(b.ctx, buf, 0, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
            b.run(command(FILL, value, LATE, 0, PAGE))
            self.assertEqual(other_view[:], struct.pack("<I", value) * (PAGE // 4))
            self.two.unmap(b.ctx, LATE, PAGE)
            self.two.buf_free(buf)
        self.assertEqual(view[:], b"\x33" * PAGE)

    def test_e_huge_pages(self):
        """A part of one is mapped. type1 maps all of it into the daemon for that, and nothing of it stays there."""
        Path(HUGE_PAGES).write_text("4")
        self.assertGreaterEqual(int(Path(HUGE_PAGES).read_text()), 2)
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, 2 * HUGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        view = mmap.mmap(fd, 2 * HUGE)
        self.addCleanup(view.close)
        a = Space(self.one)
        a.run(command(FILL, 1, DATA, 0, PAGE))  # the device is here
        buf, off = self.one.buf_import(fd)[0], HUGE + 3 * PAGE
        before = len(self.maps().splitlines())
        for i in range(20):
            self.one.map(a.ctx, buf, off, PAGE, pc.READ | pc.WRITE | pc.FIXED, LATE)
            if i == 0:
                a.run(command(FILL, 0x66666666, LATE, 0, PAGE))
            self.one.unmap(a.ctx, LATE, PAGE)
        self.assertEqual(view[off - PAGE:off + 2 * PAGE], bytes(PAGE) + b"\x66" * PAGE + bytes(PAGE))
        self.assertLess(len(self.maps().splitlines()), before + 5)
        self.one.buf_free(buf)

    def maps(self):
        return Path(f"/proc/{self.daemon.process.pid}/maps").read_text()


if __name__ == "__main__":
    vm.main(sys.argv)
