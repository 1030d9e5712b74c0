/* SPDX-License-Identifier: MIT */
/* A device behind VFIO as a made-up kernel offers it: which interrupts are armed, and what is reset with it. */
#include "transport/vfio_priv.h"

#include <errno.h>
#include <linux/vfio.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "transport/kernel_abi.h"

#define FD 100
#define GROUP_FD 101
#define GROUP 7
#define OTHER_GROUP 8
#define OUR_ID 1u
#define NOT_OWNED UINT32_MAX

/* The kernel: what it offers, and what it was asked to do. */
static struct {
	uint32_t irqs[VFIO_PCI_NUM_IRQS]; /* how many of each kind */
	int arm_error; /* of MSI-X */
	int reset_error, info_error, hot_reset_error;
	uint32_t flags; /* of the hot reset's description */
	uint32_t n; /* devices on the bus, function 0 first; `who` of each: its group or devid */
	uint32_t who[4];
	unsigned int resets, hot_resets, unmasks;
	uint32_t armed, n_armed; /* kind, count */
	uint32_t n_fds;
	int32_t fd;
} kernel;

static int answer(int error)
{
	errno = error;
	return error ? -1 : 0;
}

static int irq_info(struct vfio_irq_info *i)
{
	i->count = kernel.irqs[i->index];
	i->flags = VFIO_IRQ_INFO_EVENTFD;
	return 0;
}

static int set_irqs(const struct vfio_irq_set *s)
{
	if (s->flags & VFIO_IRQ_SET_ACTION_UNMASK) {
		assert_int_equal(s->flags, VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE);
		assert_int_equal(s->index, kernel.armed);
		assert_int_equal(s->count, 1);
		kernel.unmasks++;
		return 0;
	}
	if (kernel.arm_error && s->index == VFIO_PCI_MSIX_IRQ_INDEX)
		return answer(kernel.arm_error);
	kernel.armed = s->index;
	kernel.n_armed = s->count;
	return 0;
}

static int hot_reset_info(struct vfio_pci_hot_reset_info *i)
{
	if (kernel.info_error)
		return answer(kernel.info_error);
	assert_true(i->argsz >= sizeof(*i) + kernel.n * sizeof(i->devices[0]));
	i->flags = kernel.flags;
	i->count = kernel.n;
	for (uint8_t k = 0; k < kernel.n; k++)
		i->devices[k] = (struct vfio_pci_dependent_device){.group_id = kernel.who[k], .bus = 1, .devfn = k};
	return 0;
}

static int hot_reset(const struct vfio_pci_hot_reset *r)
{
	kernel.hot_resets++;
	kernel.n_fds = r->count;
	assert_true(r->argsz >= sizeof(*r) + r->count * sizeof(r->group_fds[0]));
	if (r->count)
		memcpy(&kernel.fd, r->group_fds, sizeof(kernel.fd));
	return answer(kernel.hot_reset_error);
}

int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	assert_int_equal(fd, FD);
	switch (request) {
	case VFIO_DEVICE_GET_IRQ_INFO:
		return irq_info(arg);
	case VFIO_DEVICE_SET_IRQS:
		return set_irqs(arg);
	case VFIO_DEVICE_RESET:
		kernel.resets++;
		return answer(kernel.reset_error);
	case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
		return hot_reset_info(arg);
	case VFIO_DEVICE_PCI_HOT_RESET:
		return hot_reset(arg);
	}
	fail_msg("ioctl %#lx", request);
	return -1;
}

static int new_kernel(void **state)
{
	memset(&kernel, 0, sizeof(kernel));
	return 0;
}

/* ---- interrupts ---- */

static struct vfio_device armed(uint32_t want)
{
	struct vfio_device d;
	struct vfio_why why;
	int fds[4] = {1, 2, 3, 4};

	vfio_device_init(&d, FD);
	assert_int_equal(vfio_device_arm(&d, fds, want, &why), 0);
	return d;
}

static void test_best_kind(void **state)
{
	struct vfio_device d;

	kernel.irqs[VFIO_PCI_MSIX_IRQ_INDEX] = 2;
	kernel.irqs[VFIO_PCI_MSI_IRQ_INDEX] = 4;
	kernel.irqs[VFIO_PCI_INTX_IRQ_INDEX] = 1;
	d = armed(3);
	assert_int_equal(kernel.armed, VFIO_PCI_MSIX_IRQ_INDEX);
	assert_int_equal(d.n_irqs, 2);
	kernel.arm_error = EIO;
	d = armed(3);
	assert_int_equal(kernel.armed, VFIO_PCI_MSI_IRQ_INDEX);
	assert_int_equal(kernel.n_armed, 3);
	vfio_device_unmask(&d); /* the kernel masks no message */
	assert_int_equal(kernel.unmasks, 0);
}

static void test_level(void **state)
{
	struct vfio_device d;

	kernel.irqs[VFIO_PCI_INTX_IRQ_INDEX] = 1;
	d = armed(3);
	assert_int_equal(kernel.armed, VFIO_PCI_INTX_IRQ_INDEX);
	assert_int_equal(d.n_irqs, 1);
	for (unsigned int i = 1; i <= 3; i++) {
		vfio_device_unmask(&d);
		assert_int_equal(kernel.unmasks, i);
	}
}

static void test_none(void **state)
{
	struct vfio_device d = armed(3);

	assert_int_equal(d.n_irqs, 0);
	vfio_device_unmask(&d);
	assert_int_equal(kernel.unmasks, 0);
}

/* ---- reset ---- */

static const struct pci_place place = {.bdf = "0000:01:00.0", .group = GROUP};

/* Resets a device with or without a reset of its own; its group's fd, or -1. */
static int reset(bool own, int group_fd, struct vfio_why *why)
{
	struct vfio_device d;

	vfio_device_init(&d, FD);
	d.flags = VFIO_DEVICE_FLAGS_PCI | (own ? VFIO_DEVICE_FLAGS_RESET : 0u);
	why->text[0] = '\0';
	return vfio_device_reset(&d, &place, group_fd, why);
}

/* The devices on the bus; with an iommufd its ids, else groups. */
static void on_bus(uint32_t flags, uint32_t n, uint32_t first, uint32_t second)
{
	kernel.flags = flags;
	kernel.n = n;
	kernel.who[0] = first;
	kernel.who[1] = second;
}

static void test_own_reset(void **state)
{
	struct vfio_why why;

	assert_int_equal(reset(true, GROUP_FD, &why), 0);
	assert_int_equal(kernel.resets, 1);
	assert_int_equal(kernel.hot_resets, 0);
}

static void test_with_its_bus(void **state)
{
	struct vfio_why why;

	on_bus(0, 1, GROUP, 0);
	assert_int_equal(reset(false, GROUP_FD, &why), 0);
	assert_int_equal(kernel.resets, 0);
	kernel.reset_error = ENOTTY;
	assert_int_equal(reset(true, GROUP_FD, &why), 0);
	assert_int_equal(kernel.resets, 1);
	assert_int_equal(kernel.hot_resets, 2);
	assert_int_equal(kernel.n_fds, 1);
	assert_int_equal(kernel.fd, GROUP_FD);
	on_bus(KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID, 1, OUR_ID, 0);
	assert_int_equal(reset(false, -1, &why), 0);
	assert_int_equal(kernel.hot_resets, 3);
	assert_int_equal(kernel.n_fds, 0);
}

static void test_idle_neighbour(void **state)
{
	struct vfio_why why;

	on_bus(0, 2, GROUP, GROUP);
	assert_int_equal(reset(false, GROUP_FD, &why), 0);
	on_bus(KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID, 2, OUR_ID, KABI_VFIO_PCI_DEVID_OWNED);
	assert_int_equal(reset(false, -1, &why), 0);
	assert_int_equal(kernel.hot_resets, 2);
}

static void assert_spared(int group_fd)
{
	struct vfio_why why;

	assert_int_equal(reset(false, group_fd, &why), -EPERM);
	assert_non_null(strstr(why.text, "0000:01:00.1 there is not ours"));
	assert_int_equal(kernel.hot_resets, 0);
}

static void test_somebody_elses_neighbour(void **state)
{
	on_bus(0, 2, GROUP, OTHER_GROUP);
	assert_spared(GROUP_FD);
	on_bus(KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID, 2, OUR_ID, NOT_OWNED);
	assert_spared(-1);
}

/* The kernel would take it: it is in the same iommufd. But it works. */
static void test_working_neighbour(void **state)
{
	on_bus(KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID, 2, OUR_ID, OUR_ID + 1);
	assert_spared(-1);
}

static void test_no_reset(void **state)
{
	struct vfio_why why;

	kernel.info_error = ENODEV;
	assert_int_equal(reset(false, GROUP_FD, &why), -ENODEV);
	assert_non_null(strstr(why.text, "it has no reset"));
	kernel.info_error = ENOSPC;
	assert_int_equal(reset(false, GROUP_FD, &why), -ENOSPC);
	kernel.info_error = 0;
	on_bus(0, 2, GROUP, GROUP);
	kernel.hot_reset_error = EINVAL;
	assert_int_equal(reset(false, GROUP_FD, &why), -EINVAL);
	assert_non_null(strstr(why.text, "2 devices in all: Invalid argument; bind each of them to vfio-pci"));
}

/* ---- registers ---- */

#define REGS_AT 8192u /* in the device's file */
#define REGS 4096u

/* Through the file where nothing may be mapped; of what is mapped the file is not asked. */
static void test_registers(void **state)
{
	const uint64_t pattern = 0x1122334455667788;
	struct vfio_device d;
	uint64_t v;

	for (unsigned int mapped = 0; mapped < 2; mapped++) {
		int fd = memfd_create("device", MFD_CLOEXEC);

		assert_int_equal(ftruncate(fd, REGS_AT + REGS), 0);
		vfio_device_init(&d, fd);
		d.n_regions = 1;
		d.regions[0] = (struct vfio_region){
			.size = REGS,
			.offset = REGS_AT,
			.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
			.n_areas = mapped,
			.areas[0].at = {0, REGS - 1},
		};
		assert_int_equal(vfio_device_map(&d, 0, 0, 8) != NULL, mapped);
		assert_int_equal(vfio_device_write(&d, 0, 16, 8, pattern), 0);
		assert_int_equal(vfio_device_write(&d, 0, REGS - 4, 4, pattern), 0);
		v = 0;
		assert_int_equal(pread(fd, &v, 8, REGS_AT + 16), 8);
		assert_true(v == pattern);
		assert_int_equal(vfio_device_read(&d, 0, 16, 8, &v), 0);
		assert_true(v == pattern);
		assert_int_equal(vfio_device_read(&d, 0, 20, 4, &v), 0);
		assert_int_equal(v, pattern >> 32);
		assert_int_equal(vfio_device_read(&d, 0, REGS - 4, 4, &v), 0);
		assert_int_equal(v, pattern & UINT32_MAX);
		assert_int_equal(vfio_device_read(&d, 0, 2, 4, &v), -EINVAL);
		assert_int_equal(vfio_device_read(&d, 0, 0, 2, &v), -EINVAL);
		assert_int_equal(vfio_device_read(&d, 0, REGS - 4, 8, &v), -EINVAL);
		assert_int_equal(vfio_device_read(&d, 0, UINT64_MAX - 7, 8, &v), -EINVAL);
		assert_int_equal(vfio_device_read(&d, 1, 0, 4, &v), -EINVAL);
		d.regions[0].flags = VFIO_REGION_INFO_FLAG_WRITE;
		assert_int_equal(vfio_device_read(&d, 0, 0, 4, &v), -EINVAL);
		vfio_device_fini(&d);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registers),
		cmocka_unit_test_setup(test_best_kind, new_kernel),
		cmocka_unit_test_setup(test_level, new_kernel),
		cmocka_unit_test_setup(test_none, new_kernel),
		cmocka_unit_test_setup(test_own_reset, new_kernel),
		cmocka_unit_test_setup(test_with_its_bus, new_kernel),
		cmocka_unit_test_setup(test_idle_neighbour, new_kernel),
		cmocka_unit_test_setup(test_somebody_elses_neighbour, new_kernel),
		cmocka_unit_test_setup(test_working_neighbour, new_kernel),
		cmocka_unit_test_setup(test_no_reset, new_kernel),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
