/* SPDX-License-Identifier: MIT */
/*
 * The address spaces of /dev/iommu on the kernel's mock devices (CONFIG_IOMMUFD_TEST), which are asked what is mapped, what
 * is pinned, and what is attached. Every call is failed at each place where the kernel can (fail-nth): afterwards
 * everything is as before.
 *
 * Mock devices have no cdev. What the daemon asks of one is turned into what the kernel's test interface has for it
 * (-Wl,--wrap=ioctl), so that all of the daemon's code runs as it is.
 *
 * Source: Linux drivers/iommu/iommufd/iommufd_test.h and selftest.c, Documentation/fault-injection/fault-injection.rst.
 */
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
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "transport/iommufd.h"
#include "transport/kernel_abi.h"
#include "transport/vfio_priv.h"

#define PAGE 4096ull
#define PAGES 8u /* of the buffer */
#define BASE 0x2000000ull /* mock domains begin at 16 MiB and end at 2 GiB */
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
static bool is_attached(uint32_t pasid, uint32_t hwpt)
{
	struct mock_cmd c = {.op = MOCK_PASID_CHECK, .size = sizeof(c), .id = mock.id, .word = {pasid, hwpt}};

	return __real_ioctl(iommu_fd, MOCK_CMD, &c) == 0;
}

/* The number that the next object would have; it is the same again when all that was made meanwhile is gone. */
static uint32_t next_id(void)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_destroy destroy = {.size = sizeof(destroy)};

	assert_int_equal(__real_ioctl(iommu_fd, KABI_IOMMU_IOAS_ALLOC, &alloc), 0);
	destroy.id = alloc.out_ioas_id;
	assert_int_equal(__real_ioctl(iommu_fd, KABI_IOMMU_DESTROY, &destroy), 0);
	return alloc.out_ioas_id;
}

static unsigned int open_fds(void)
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

/* What is mapped in an address space: the buffer's page, from 1, at each page from BASE; 0: none of it. */
struct model {
	unsigned int page[PAGES];
};

static void expect(const struct transport_space *s, const struct model *m)
{
	for (unsigned int at = 0; at < PAGES; at++)
		for (unsigned int page = 0; page < PAGES; page++)
			assert_int_equal(is_mapped(s, BASE + at * PAGE, buffer + page * PAGE), m->page[at] == page + 1);
}

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

static int set_up(void **state)
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

static int tear_down(void **state)
{
	munmap(buffer, PAGES * PAGE);
	close(memfd);
	close_device();
	return 0;
}

/* ---- opening ---- */

static unsigned int fds;

/* A passing lack of memory is no reason to do without PASIDs; -EINVAL is: an IOMMU that refuses them says that. */
static int open_with_pasids(void)
{
	int r = open_device();

	if (r == 0 && !(failure.happened && failure.error == EINVAL))
		assert_int_equal(iommu->pasid_bits, MOCK_PASID_BITS);
	return r;
}

static void expect_closed(void)
{
	assert_null(iommu);
	assert_int_equal(open_fds(), fds);
}

static void test_open(void **state)
{
	struct range v[4];
	size_t n = 4;

	fds = open_fds();
	assert_true(fail_everywhere("open", open_with_pasids, close_device, expect_closed) > 0);
	assert_int_equal(open_with_pasids(), 0);
	assert_int_equal(ops->ranges(iommu, v, &n), 0);
	assert_int_equal(n, 1);
	assert_true(v[0].first == 16u << 20 && v[0].last == (1ull << 31) - 1);
	close_device();
}

/* ---- address spaces ---- */

static struct transport_space *one, *two;
static struct transport_memory *memory;
static struct model in_one, in_two;
static uint32_t ids;

static int make_two(void)
{
	return ops->space_new(iommu, &two);
}

static void free_two(void)
{
	ops->space_free(iommu, two);
}

static int hold(void)
{
	return ops->hold(iommu, memfd, PAGES * PAGE, TRANSPORT_READ | TRANSPORT_WRITE, &memory);
}

static void release(void)
{
	ops->release(iommu, memory);
}

static void expect_nothing_new(void)
{
	assert_int_equal(next_id(), ids);
}

static int set_up_spaces(void **state)
{
	if (set_up(state) < 0)
		return -1;
	memset(&in_one, 0, sizeof(in_one));
	memset(&in_two, 0, sizeof(in_two));
	assert_int_equal(hold(), 0);
	ids = next_id();
	return ops->space_new(iommu, &one) < 0 || make_two() < 0 ? -1 : 0;
}

static int set_up_older(void **state)
{
	older_kernel = true;
	return set_up_spaces(state);
}

/* No test leaves anything. */
static int tear_down_spaces(void **state)
{
	ops->space_free(iommu, one);
	free_two();
	expect_nothing_new();
	release();
	older_kernel = false;
	return tear_down(state);
}

static int map_pages(struct transport_space *s, struct model *m, unsigned int at, unsigned int page, unsigned int n)
{
	int r = ops->map_held(iommu, s, BASE + at * PAGE, n * PAGE, memory, page * PAGE,
			      TRANSPORT_READ | TRANSPORT_WRITE);

	for (unsigned int i = 0; r == 0 && i < n; i++)
		m->page[at + i] = page + i + 1;
	return r;
}

static int unmap_pages(struct transport_space *s, struct model *m, unsigned int at, unsigned int n)
{
	int r = ops->unmap(iommu, s, BASE + at * PAGE, n * PAGE);

	for (unsigned int i = 0; r == 0 && i < n; i++)
		m->page[at + i] = 0;
	return r;
}

static void test_spaces(void **state)
{
	/* The store is made with the first memory that is held, and stays. */
	assert_int_equal(hold(), 0);
	release();
	ids = next_id();
	fds = open_fds();
	assert_true(fail_everywhere("make a space", make_two, free_two, expect_nothing_new) > 0);
	assert_true(fail_everywhere("hold", hold, release, expect_nothing_new) > 0);
	assert_int_equal(open_fds(), fds);
	expect_pins(0, PAGES, 0);
}

/* Pages 0 to 3 in one space, pages 1 to 3 elsewhere in the other. */
static int map_three(void)
{
	return map_pages(one, &in_one, 2, 1, 3);
}

static int unmap_three(void)
{
	return unmap_pages(one, &in_one, 2, 3);
}

static void map_three_again(void)
{
	assert_int_equal(map_three(), 0);
}

static void unmap_three_again(void)
{
	assert_int_equal(unmap_three(), 0);
}

static void expect_models(void)
{
	expect(one, &in_one);
	expect(two, &in_two);
	expect_pins(0, 4, 1);
	expect_pins(4, PAGES - 4, 0);
}

/* A page is pinned once, however many spaces have it; parts of what is held may be mapped anywhere; and nothing stays
 * pinned. */
static void test_mapping(void **state)
{
	expect_pins(0, PAGES, 0);
	assert_int_equal(map_pages(two, &in_two, 0, 0, 4), 0);
	expect_models();
	assert_true(fail_everywhere("map", map_three, unmap_three_again, expect_models) > 0);
	map_three_again();
	expect_models();
	assert_int_equal(map_pages(one, &in_one, 4, 5, 1), -EEXIST);
	expect_models();
	fail_everywhere("unmap", unmap_three, map_three_again, expect_models);
	/* The first space to map a page may be the first to let it go. */
	assert_int_equal(unmap_pages(two, &in_two, 0, 4), 0);
	expect(one, &in_one);
	expect_pins(1, 3, 1);
	unmap_three_again();
	expect(one, &in_one);
	expect_pins(0, PAGES, 0);
}

static void test_mapping_by_address(void **state)
{
	test_mapping(state);
}

/* ---- attaching ---- */

#define PASID 77u

static int attach_pasid(void)
{
	return ops->attach_pasid(iommu, device, one, PASID);
}

static void detach_pasid(void)
{
	assert_true(is_attached(PASID, one->hwpt));
	assert_int_equal(ops->detach_pasid(iommu, device, PASID), 0);
}

static void expect_detached(void)
{
	assert_true(is_attached(PASID, 0));
	assert_true(is_attached(PASID + 1, two->hwpt));
	assert_true(is_attached(0, iommu->own->hwpt));
}

static void test_pasid(void **state)
{
	assert_int_equal(ops->attach_pasid(iommu, device, two, PASID + 1), 0);
	assert_true(fail_everywhere("attach a PASID", attach_pasid, detach_pasid, expect_detached) > 0);
	/* Each PASID has its own. */
	assert_int_equal(attach_pasid(), 0);
	assert_true(is_attached(PASID, one->hwpt));
	assert_true(is_attached(PASID + 1, two->hwpt));
	detach_pasid();
	expect_detached();
	assert_int_equal(ops->detach_pasid(iommu, device, PASID + 1), 0);
	assert_true(is_attached(PASID + 1, 0));
}

static int move(void)
{
	return ops->attach(iommu, device, two);
}

static void move_to_one(void)
{
	assert_int_equal(ops->attach(iommu, device, one), 0);
	assert_true(is_attached(0, one->hwpt));
}

static void move_back(void)
{
	assert_true(is_attached(0, two->hwpt));
	move_to_one();
}

/* Where a move fails the device is nowhere but in its own. */
static void expect_moved_or_own(void)
{
	assert_false(is_attached(0, two->hwpt));
	if (!is_attached(0, one->hwpt))
		assert_true(is_attached(0, iommu->own->hwpt));
	move_to_one();
}

static void test_move(void **state)
{
	move_to_one();
	assert_true(fail_everywhere("move", move, move_back, expect_moved_or_own) > 0);
	assert_int_equal(ops->attach(iommu, device, iommu->own), 0);
	assert_true(is_attached(0, iommu->own->hwpt));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_open),
		cmocka_unit_test_setup_teardown(test_spaces, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_mapping, set_up_spaces, tear_down_spaces),
		cmocka_unit_test_setup_teardown(test_mapping_by_address, set_up_older, tear_down_spaces),
		cmocka_unit_test_setup_teardown(test_pasid, set_up_spaces, tear_down_spaces),
		cmocka_unit_test_setup_teardown(test_move, set_up_spaces, tear_down_spaces),
	};

	set_up_failures();
	return cmocka_run_group_tests_name("mock_iommu", tests, NULL, NULL);
}
