/* SPDX-License-Identifier: MIT */
/*
 * The kernel's mock devices (CONFIG_IOMMUFD_TEST), which are asked what is mapped, what is pinned, and what is attached, and
 * a way to fail every call at each place where the kernel can (fail-nth).
 *
 * Mock devices have no cdev. What the daemon asks of one is turned into what the kernel's test interface has for it
 * (-Wl,--wrap=ioctl), so that all of the daemon's code runs as it is.
 *
 * Source: Linux drivers/iommu/iommufd/iommufd_test.h and selftest.c, Documentation/fault-injection/fault-injection.rst.
 */
#ifndef TESTS_VM_MOCK_RIG_H
#define TESTS_VM_MOCK_RIG_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "transport/iommufd.h"
#include "transport/kernel_abi.h"
#include "transport/vfio_priv.h"

#define PAGE 4096ull
#define PAGES 24u /* of the buffer */
#define APERTURE ((struct range){16ull << 20, (2ull << 30) - 1})
#define CDEV_DIR "/dev/vfio/devices"
#define CDEV "mock"

/* ---- the kernel's test interface ---- */

#define MOCK_CMD _IO(KABI_IOMMU_TYPE, 0x80 + 32)

enum mock_op {
	MOCK_CHECK_MAP = 3,
	MOCK_CHECK_REFS = 4,
	MOCK_REPLACE = 10,
	MOCK_DEVICE = 12,
	MOCK_PASID_ATTACH = 18,
	MOCK_PASID_DETACH = 20,
	MOCK_PASID_CHECK = 21,
};
#define MOCK_DEVICE_PASID (1u << 2)
#define MOCK_PASID_BITS 20u

struct mock_cmd {
	uint32_t size, op, id, reserved;
	union {
		uint32_t word[12];
		uint64_t quad[6];
	};
	uint32_t last;
};

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

/* ---- failing ---- */

static struct {
	int fd; /* of fail-nth */
	unsigned int left; /* places to pass before the one that fails; 0: none fails any more */
	bool happened;
	int error; /* what the call that failed said; 0: it did not mind */
} failure;

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail_msg("%s: %s", path, strerror(errno));
	close(fd);
}

/* All allocations may fail, quietly. */
static void set_up_failures(void)
{
	static const char *const kinds[] = {"failslab", "fail_page_alloc", "fail_iommufd"};
	char path[80];

	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/verbose", kinds[i]);
		write_file(path, "0");
	}
	write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	write_file("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	failure.fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	assert_true(failure.fd >= 0);
}

static int try(int fd, unsigned long request, void *arg)
{
	char text[16];
	ssize_t n;
	int r, e;

	if (!failure.left)
		return __real_ioctl(fd, request, arg);
	snprintf(text, sizeof(text), "%u", failure.left);
	assert_true(pwrite(failure.fd, text, strlen(text), 0) > 0);
	r = __real_ioctl(fd, request, arg);
	e = errno;
	n = pread(failure.fd, text, sizeof(text) - 1, 0);
	/* To read and to write it may be what fails, if the call left that much. */
	failure.left = n > 0 ? (unsigned int)strtoul(text, NULL, 10) : 0;
	while (pwrite(failure.fd, "0", 1, 0) < 0)
		failure.left = 0;
	failure.happened = !failure.left;
	failure.error = r < 0 ? e : 0;
	errno = e;
	return r;
}

/* ---- the device ---- */

static struct {
	uint32_t id; /* of the kernel's object */
	uint32_t first_ioas; /* that it is in when it is made; 0: it has left */
} mock;

static int mock_cmd(int iommu, struct mock_cmd *c)
{
	c->size = sizeof(*c);
	return try(iommu, MOCK_CMD, c);
}

static int iommu_fd = -1; /* the one that is open */

/* A mock device is in an address space from the beginning. It is not made to fail: half made it has no PASIDs. */
static int mock_bind(struct kabi_vfio_device_bind_iommufd *bind)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct mock_cmd c = {.op = MOCK_DEVICE, .size = sizeof(c), .word[3] = MOCK_DEVICE_PASID};

	iommu_fd = bind->iommufd;
	if (__real_ioctl(iommu_fd, KABI_IOMMU_IOAS_ALLOC, &alloc) < 0)
		return -1;
	c.id = alloc.out_ioas_id;
	if (__real_ioctl(iommu_fd, MOCK_CMD, &c) < 0)
		return -1;
	mock.id = c.word[0];
	mock.first_ioas = alloc.out_ioas_id;
	bind->out_devid = c.word[2];
	return 0;
}

static int mock_attach(const struct kabi_vfio_device_attach_iommufd_pt *attach)
{
	bool pasid = attach->flags & KABI_VFIO_DEVICE_ATTACH_PASID;
	struct mock_cmd c = {.op = pasid ? MOCK_PASID_ATTACH : MOCK_REPLACE, .id = mock.id};
	struct kabi_iommu_destroy destroy = {.size = sizeof(destroy), .id = mock.first_ioas};
	int r;

	c.word[0] = pasid ? attach->pasid : attach->pt_id;
	c.word[1] = pasid ? attach->pt_id : 0;
	r = mock_cmd(iommu_fd, &c);
	if (r == 0 && !pasid && mock.first_ioas) {
		assert_int_equal(__real_ioctl(iommu_fd, KABI_IOMMU_DESTROY, &destroy), 0);
		mock.first_ioas = 0;
	}
	return r;
}

static int mock_detach(const struct kabi_vfio_device_detach_iommufd_pt *detach)
{
	struct mock_cmd c = {.op = MOCK_PASID_DETACH, .id = mock.id, .word[0] = detach->pasid};

	return mock_cmd(iommu_fd, &c);
}

static bool older_kernel; /* than Linux 6.13 */

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	switch (request) {
	case KABI_VFIO_DEVICE_BIND_IOMMUFD:
		return mock_bind(arg);
	case KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT:
		return mock_attach(arg);
	case KABI_VFIO_DEVICE_DETACH_IOMMUFD_PT:
		return mock_detach(arg);
	case KABI_IOMMU_IOAS_MAP_FILE:
		if (older_kernel) {
			errno = ENOTTY;
			return -1;
		}
		return try(fd, request, arg);
	default:
		return try(fd, request, arg);
	}
}

/* ---- what the kernel says ---- */

/* Is page `page` of the buffer what is mapped at iova? */
static bool is_mapped(const struct transport_space *s, uint64_t iova, const uint8_t *page)
{
	struct mock_cmd c = {
		.op = MOCK_CHECK_MAP, .size = sizeof(c), .id = s->hwpt, .quad = {iova, PAGE, (uintptr_t)page}};

	return __real_ioctl(iommu_fd, MOCK_CMD, &c) == 0;
}

static bool is_pinned(const uint8_t *page, unsigned int times)
{
	struct mock_cmd c = {.op = MOCK_CHECK_REFS, .size = sizeof(c), .quad = {PAGE, (uintptr_t)page}};

	c.word[4] = times;
	return __real_ioctl(iommu_fd, MOCK_CMD, &c) == 0;
}

/* hwpt 0: nothing. */
static inline bool is_attached(uint32_t pasid, uint32_t hwpt)
{
	struct mock_cmd c = {.op = MOCK_PASID_CHECK, .size = sizeof(c), .id = mock.id, .word = {pasid, hwpt}};

	return __real_ioctl(iommu_fd, MOCK_CMD, &c) == 0;
}

/* The number that the next object would have; it is the same again when all that was made meanwhile is gone. */
static inline uint32_t next_id(void)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_destroy destroy = {.size = sizeof(destroy)};

	assert_int_equal(__real_ioctl(iommu_fd, KABI_IOMMU_IOAS_ALLOC, &alloc), 0);
	destroy.id = alloc.out_ioas_id;
	assert_int_equal(__real_ioctl(iommu_fd, KABI_IOMMU_DESTROY, &destroy), 0);
	return alloc.out_ioas_id;
}

static inline unsigned int open_fds(void)
{
	unsigned int n = 0;
	DIR *dir = opendir("/proc/self/fd");

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* ---- the rig ---- */

static const struct vfio_iommu_ops *const ops = &vfio_iommu_iommufd;
static const struct pci_place place = {.bdf = "0000:00:00.0", .cdev = CDEV, .driver = "vfio-pci"};
static struct vfio_iommu *iommu;
static int device = -1;
static int memfd = -1;
static uint8_t *buffer;

static void expect_pins(unsigned int first, unsigned int n, unsigned int times)
{
	for (unsigned int page = first; page < first + n; page++)
		if (!is_pinned(buffer + page * PAGE, times))
			fail_msg("page %u of the buffer is not pinned %u times", page, times);
}

static int open_device(void)
{
	struct vfio_why why;
	int r = ops->open(&iommu, &place, &device, &why);

	if (r < 0)
		iommu = NULL;
	return r;
}

static void close_device(void)
{
	close(device);
	device = -1;
	iommu = ops->close(iommu);
}

/* Runs `verb` until nothing is left to fail, and undoes it where it succeeds; `same` sees that all is as before, each time.
 * Returns how often it was refused. */
static unsigned int fail_everywhere(const char *name, int (*verb)(void), void (*undo)(void), void (*same)(void))
{
	unsigned int nth = 0, refused = 0;
	bool happened;
	int r;

	do {
		failure.left = ++nth;
		failure.happened = false;
		r = verb();
		failure.left = 0;
		happened = failure.happened;
		if (r < 0 && !happened)
			fail_msg("%s: %s, and nothing was made to fail", name, strerror(-r));
		if (r < 0)
			refused++;
		else
			undo();
		same();
	} while (happened);
	print_message("# %s: %u places to fail, %u of them refuse it\n", name, nth - 1, refused);
	return refused;
}

static inline int set_up(void **state)
{
	if (open_device() < 0)
		return -1;
	memfd = memfd_create("buffer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0 || ftruncate(memfd, PAGES * PAGE) < 0 || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		return -1;
	buffer = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (buffer == MAP_FAILED)
		return -1;
	memset(buffer, 1, PAGES * PAGE);
	return 0;
}

static inline int tear_down(void **state)
{
	munmap(buffer, PAGES * PAGE);
	close(memfd);
	close_device();
	return 0;
}

#endif
