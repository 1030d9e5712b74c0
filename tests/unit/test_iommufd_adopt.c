/* SPDX-License-Identifier: MIT */
/*
 * What a successor finds in an iommufd, as a made-up kernel has it: which objects it takes over, which it destroys, and what
 * it refuses. A real one is in tests/vm.
 */
#include "transport/iommufd.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>

#include "base/util.h"
#include "transport/kernel_abi.h"
#include "transport/transport.h"
#include "transport/vfio_priv.h"

#define FD 100
#define IDS 64u

enum kind { NOTHING, IOAS, HWPT, OTHER };

static struct {
	enum kind kind[IDS]; /* by id */
	uint32_t over[IDS]; /* what an HWPT is over */
	unsigned int users[IDS];
	bool no_files; /* it knows no MAP_FILE */
	int process_error, unmap_error;
	unsigned int processes; /* CHANGE_PROCESS */
	unsigned int emptied[IDS]; /* all of an IOAS unmapped */
	uint32_t destroyed;
} kernel;

static uint32_t make(enum kind kind, uint32_t over)
{
	uint32_t id = 1;

	while (kernel.kind[id])
		assert_true(++id < IDS);
	kernel.kind[id] = kind;
	kernel.over[id] = over;
	kernel.users[over]++;
	return id;
}

static int refuse(int error)
{
	errno = error;
	return -1;
}

static int destroy(uint32_t id)
{
	if (id >= IDS || !kernel.kind[id])
		return refuse(ENOENT);
	if (kernel.users[id])
		return refuse(EBUSY);
	kernel.kind[id] = NOTHING;
	kernel.users[kernel.over[id]]--;
	kernel.destroyed++;
	return 0;
}

static bool is(uint32_t id, enum kind kind)
{
	return id < IDS && kernel.kind[id] == kind;
}

static int unmap(const struct kabi_iommu_ioas_unmap *m)
{
	if (!is(m->ioas_id, IOAS))
		return refuse(ENOENT);
	assert_true(m->iova == 0 && m->length == UINT64_MAX);
	kernel.emptied[m->ioas_id]++;
	return kernel.unmap_error ? refuse(kernel.unmap_error) : 0;
}

int __wrap_ioctl(int fd, unsigned long request, void *arg);

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	struct kabi_iommu_ioas_alloc *ioas = arg;
	struct kabi_iommu_hwpt_alloc *hwpt = arg;
	struct kabi_iommu_ioas_iova_ranges *ranges = arg;

	assert_int_equal(fd, FD);
	switch (request) {
	case KABI_IOMMU_IOAS_ALLOC:
		ioas->out_ioas_id = make(IOAS, 0);
		return 0;
	case KABI_IOMMU_HWPT_ALLOC:
		assert_true(is(hwpt->pt_id, IOAS));
		hwpt->out_hwpt_id = make(HWPT, hwpt->pt_id);
		return 0;
	case KABI_IOMMU_DESTROY:
		return destroy(((struct kabi_iommu_destroy *)arg)->id);
	case KABI_IOMMU_IOAS_IOVA_RANGES:
		ranges->num_iovas = 1;
		return is(ranges->ioas_id, IOAS) ? 0 : refuse(ENOENT);
	case KABI_IOMMU_IOAS_MAP_FILE:
		assert_int_equal(((struct kabi_iommu_ioas_map_file *)arg)->fd, -1);
		return refuse(kernel.no_files ? ENOTTY : EBADF);
	case KABI_IOMMU_IOAS_UNMAP:
		return unmap(arg);
	case KABI_IOMMU_IOAS_CHANGE_PROCESS:
		kernel.processes++;
		return kernel.process_error ? refuse(kernel.process_error) : 0;
	default:
		fail_msg("request %#lx", request);
		return -1;
	}
}

/* ---- a predecessor ---- */

struct left {
	uint32_t device, store, ioas, hwpt;
};

/* Its device, its store, and the device's own space. */
static struct left predecessor(void)
{
	struct left l;

	memset(&kernel, 0, sizeof(kernel));
	l.device = make(OTHER, 0);
	kernel.users[l.device] = 1; /* bound */
	l.ioas = make(IOAS, 0);
	l.hwpt = make(HWPT, l.ioas);
	kernel.users[l.hwpt] = 1; /* attached */
	l.store = make(IOAS, 0);
	return l;
}

static struct iommufd successor(const struct left *l, int want)
{
	struct iommufd i;

	iommufd_init(&i, FD);
	assert_int_equal(iommufd_adopt(&i, l->store), want);
	return i;
}

static void end(struct iommufd *i)
{
	i->fd = -1; /* there is none */
	while (!LIST_EMPTY(&i->spaces)) {
		struct transport_space *s = LIST_FIRST(&i->spaces);

		LIST_REMOVE(s, link);
		free(s);
	}
}

/* Memory that was held is let go, of the store alone, and pins are this process's. */
static void test_memory(void **state)
{
	static const struct {
		int unmap, process, want;
	} cases[] = {
		{0, 0, 0},      {ENOENT, 0, 0}, /* nothing was held: so say older kernels */
		{0, ENOTTY, 0}, {0, EINVAL, -EOPNOTSUPP}, {0, ENOMEM, -ENOMEM}, {EBUSY, 0, -EBUSY},
	};

	for (size_t k = 0; k < ARRAY_SIZE(cases); k++) {
		struct left l = predecessor();
		struct iommufd i;

		kernel.unmap_error = cases[k].unmap;
		kernel.process_error = cases[k].process;
		i = successor(&l, cases[k].want);
		assert_int_equal(kernel.emptied[l.store], 1);
		assert_int_equal(kernel.emptied[l.ioas], 0);
		assert_int_equal(kernel.processes, cases[k].want != -EBUSY);
		assert_int_equal(i.store, l.store);
		end(&i);
	}
}

static void test_by_address(void **state)
{
	struct left l = predecessor();
	struct iommufd i;

	kernel.no_files = true;
	i = successor(&l, -EOPNOTSUPP);
	assert_int_equal(kernel.emptied[l.store], 0);
	end(&i);
	/* It is known before anything is held. */
	iommufd_init(&i, FD);
	assert_int_equal(iommufd_make_store(&i), 0);
	assert_true(i.by_address);
	kernel.no_files = false;
	i.store = 0;
	assert_int_equal(iommufd_make_store(&i), 0);
	assert_false(i.by_address);
	end(&i);
}

static void test_space(void **state)
{
	struct left l = predecessor();
	struct iommufd i = successor(&l, 0);
	struct transport_space *s;

	assert_int_equal(iommufd_space_adopt(&i, l.hwpt, l.ioas, &s), -ENOENT);
	assert_int_equal(iommufd_space_adopt(&i, 60, 61, &s), -ENOENT);
	assert_true(LIST_EMPTY(&i.spaces));
	assert_int_equal(iommufd_space_adopt(&i, l.ioas, l.hwpt, &s), 0);
	assert_true(s->ioas == l.ioas && s->hwpt == l.hwpt);
	assert_ptr_equal(LIST_FIRST(&i.spaces), s);
	end(&i);
}

/* What was made and never told of goes; what is known, or in use, stays. */
static void test_sweep(void **state)
{
	struct left l = predecessor();
	struct iommufd i = successor(&l, 0);
	uint32_t known[2] = {0, make(OTHER, 0)};
	uint32_t lone = make(IOAS, 0), under = make(IOAS, 0), over = make(HWPT, under), moved_ioas = make(IOAS, 0);
	uint32_t moved = make(HWPT, moved_ioas);
	struct transport_space *s;

	assert_int_equal(iommufd_space_adopt(&i, l.ioas, l.hwpt, &s), 0);
	kernel.users[moved] = 1; /* the device was moved there, which nobody noted down */
	iommufd_sweep(&i, known, 2);
	assert_int_equal(kernel.destroyed, 3);
	assert_true(!kernel.kind[lone] && !kernel.kind[under] && !kernel.kind[over]);
	assert_true(kernel.kind[known[1]] && kernel.kind[l.store] && kernel.kind[l.device]);
	assert_true(kernel.kind[l.ioas] && kernel.kind[l.hwpt] && kernel.kind[moved] && kernel.kind[moved_ioas]);
	kernel.users[moved] = 0; /* it was moved back */
	iommufd_sweep(&i, known, 2);
	assert_true(!kernel.kind[moved] && !kernel.kind[moved_ioas]);
	assert_int_equal(kernel.destroyed, 5);
	end(&i);
}

/* ---- the transport ---- */

static void never(void *owner)
{
	fail_msg("it was opened");
}

static bool no_irq(void *owner, uint32_t vector)
{
	return true;
}

static void on_lost(void *owner, int error, const char *why)
{
	assert_int_equal(error, -ENODEV);
	*(bool *)owner = true;
}

static const struct transport_events events = {.opened = never, .irq = no_irq, .room = never, .lost = on_lost};

static int adopt(struct transport **t, struct event_base *base, const void *saved, size_t size, const int *fds,
		 size_t n, bool *lost)
{
	return transport_iommufd.adopt(t, base, "ffff:ff:1f.7", 1, 1000, saved, size, fds, n, &events, lost);
}

/* What cannot be a predecessor's is not taken; with what can be, a device that is not there is lost, and takes it along. */
static void test_arguments(void **state)
{
	struct vfio_saved s = {.form = VFIO_SAVED_FORM, .device = 1, .ioas = 2, .hwpt = 3, .store = 4};
	int fds[] = {open("/dev/null", O_RDWR | O_CLOEXEC), open("/dev/null", O_RDWR | O_CLOEXEC)};
	struct event_base *base = event_base_new();
	bool lost = false;
	struct transport *t;

	assert_true(base && fds[0] >= 0 && fds[1] >= 0);
	assert_int_equal(adopt(&t, base, &s, sizeof(s) - 1, fds, 2, &lost), -EBADMSG);
	assert_int_equal(adopt(&t, base, &s, 0, fds, 2, &lost), -EBADMSG);
	assert_int_equal(adopt(&t, base, &s, sizeof(s), fds, 1, &lost), -EBADMSG);
	assert_int_equal(adopt(&t, base, &s, sizeof(s), fds, TRANSPORT_KEEP_MAX + 1, &lost), -EBADMSG);
	s.form++;
	assert_int_equal(adopt(&t, base, &s, sizeof(s), fds, 2, &lost), -EBADMSG);
	s.form--;
	s.type1 = 2;
	assert_int_equal(adopt(&t, base, &s, sizeof(s), fds, 2, &lost), -EBADMSG);
	s.type1 = 0;
	assert_true(fcntl(fds[0], F_GETFD) >= 0 && fcntl(fds[1], F_GETFD) >= 0);
	assert_int_equal(adopt(&t, base, &s, sizeof(s), fds, 2, &lost), 0);
	while (!lost)
		event_base_loop(base, EVLOOP_ONCE);
	assert_null(t->ops->close(t));
	assert_true(fcntl(fds[0], F_GETFD) < 0 && fcntl(fds[1], F_GETFD) < 0);
	event_base_free(base);
}

/* Files that are not the device's and the kernel's are left where they are. */
static void test_files(void **state)
{
	static const struct vfio_iommu_ops *const both[] = {&vfio_iommu_iommufd, &vfio_iommu_type1};
	const struct vfio_saved s = {.form = VFIO_SAVED_FORM, .device = 1, .ioas = 2, .hwpt = 3, .store = 4};
	const struct pci_place at = {.bdf = "ffff:ff:1f.7", .cdev = "vfio99", .group = 99};
	int fds[] = {open("/dev/null", O_RDWR | O_CLOEXEC), open("/dev/null", O_RDWR | O_CLOEXEC), -1}, device = -1;

	for (size_t k = 0; k < ARRAY_SIZE(both); k++) {
		struct vfio_iommu *m = NULL;
		struct vfio_why why;

		assert_int_equal(both[k]->adopt(&m, &at, &s, fds, 2 + k, &device, &why), -EBADMSG);
		assert_null(m);
		assert_true(fds[0] >= 0 && fds[1] >= 0 && device < 0);
	}
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory), cmocka_unit_test(test_by_address), cmocka_unit_test(test_space),
		cmocka_unit_test(test_sweep),  cmocka_unit_test(test_arguments),  cmocka_unit_test(test_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
