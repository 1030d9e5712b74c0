/* SPDX-License-Identifier: MIT */
/*
 * A first stage of our own over /dev/iommu, as a made-up kernel answers: what each refusal is called, that nothing is left of
 * what was begun, and how records of faults are told from lost ones.
 */
#include "transport/iommufd_nest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "transport/kernel_abi.h"

#define FD 100
#define DEVICE 7u
#define PARENT 9u
#define FIRST_ID 20u
#define OBJECTS 8u

static struct {
	unsigned long fails; /* this request, with that error */
	int error;
	uint32_t n; /* objects made, ids from FIRST_ID */
	uint32_t users[OBJECTS]; /* of each: what was made of it and is there */
	uint32_t of[OBJECTS]; /* made of that object; 0: of none */
	bool alive[OBJECTS];
	uint32_t hw_type;
	uint32_t carried_out; /* commands; UINT32_MAX: all */
	int events; /* the kernel's end of the queue */
} kernel;

static uint32_t make(uint32_t of)
{
	uint32_t at = kernel.n++;

	assert_true(at < OBJECTS);
	kernel.alive[at] = true;
	kernel.of[at] = of;
	if (of >= FIRST_ID)
		kernel.users[of - FIRST_ID]++;
	return FIRST_ID + at;
}

static void destroy(uint32_t id)
{
	uint32_t at = id - FIRST_ID;

	assert_true(at < kernel.n && kernel.alive[at]);
	assert_int_equal(kernel.users[at], 0); /* it could not be */
	kernel.alive[at] = false;
	if (kernel.of[at] >= FIRST_ID)
		kernel.users[kernel.of[at] - FIRST_ID]--;
}

static int veventq(struct kabi_iommu_veventq_alloc *m)
{
	int fds[2];

	assert_true(m->veventq_depth > 0 && m->type == KABI_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
	kernel.events = fds[0];
	m->out_veventq_fd = (uint32_t)fds[1];
	m->out_veventq_id = make(m->viommu_id);
	return 0;
}

static void hw_info(struct kabi_iommu_hw_info *m)
{
	struct kabi_iommu_hw_info_arm_smmuv3 *smmu = (void *)(uintptr_t)m->data_uptr;

	assert_int_equal(m->dev_id, DEVICE);
	m->out_data_type = kernel.hw_type;
	if (kernel.hw_type != KABI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3)
		return;
	smmu->flags = 1;
	for (uint32_t i = 0; i < ARRAY_SIZE(smmu->idr); i++)
		smmu->idr[i] = 0x100 + i;
}

int __wrap_ioctl(int fd, unsigned long request, void *arg);

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	struct kabi_iommu_viommu_alloc *viommu = arg;
	struct kabi_iommu_vdevice_alloc *vdevice = arg;
	struct kabi_iommu_hwpt_alloc *hwpt = arg;
	struct kabi_iommu_hwpt_invalidate *invalidate = arg;

	assert_int_equal(fd, FD);
	if (request == kernel.fails && kernel.error) {
		if (request == KABI_IOMMU_HWPT_INVALIDATE)
			invalidate->entry_num = 0;
		errno = kernel.error;
		return -1;
	}
	switch (request) {
	case KABI_IOMMU_VIOMMU_ALLOC:
		assert_true(viommu->hwpt_id == PARENT && viommu->dev_id == DEVICE);
		viommu->out_viommu_id = make(0);
		return 0;
	case KABI_IOMMU_VDEVICE_ALLOC:
		assert_int_equal(vdevice->virt_id, TRANSPORT_SMMU_STREAM);
		vdevice->out_vdevice_id = make(vdevice->viommu_id);
		return 0;
	case KABI_IOMMU_VEVENTQ_ALLOC:
		return veventq(arg);
	case KABI_IOMMU_HWPT_ALLOC:
		assert_int_equal(hwpt->data_type, KABI_IOMMU_HWPT_DATA_ARM_SMMUV3);
		hwpt->out_hwpt_id = make(hwpt->pt_id);
		return 0;
	case KABI_IOMMU_HWPT_INVALIDATE:
		if (kernel.carried_out < invalidate->entry_num)
			invalidate->entry_num = kernel.carried_out;
		return 0;
	case KABI_IOMMU_GET_HW_INFO:
		hw_info(arg);
		return 0;
	case KABI_IOMMU_DESTROY:
		destroy(((struct kabi_iommu_destroy *)arg)->id);
		return 0;
	default:
		fail_msg("request %#lx", request);
		return -1;
	}
}

static const struct iommufd iommufd = {.fd = FD};
static const struct transport_space parent = {.hwpt = PARENT};

static int setup(void **state)
{
	memset(&kernel, 0, sizeof(kernel));
	kernel.carried_out = UINT32_MAX;
	kernel.events = -1;
	kernel.hw_type = KABI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
	return 0;
}

static int teardown(void **state)
{
	for (uint32_t i = 0; i < kernel.n; i++)
		assert_false(kernel.alive[i]);
	if (kernel.events >= 0)
		close(kernel.events);
	return 0;
}

static struct iommufd_nest begin(void)
{
	struct iommufd_nest n;
	struct vfio_why why;

	assert_int_equal(iommufd_nest_init(&n, &iommufd, DEVICE, &parent, &why), 0);
	return n;
}

static void test_comes_and_goes(void **state)
{
	const uint64_t entry[2] = {0xb, 0xd4};
	struct iommufd_nest n = begin();

	assert_int_equal(iommufd_nest_entry(&n, entry), 0);
	assert_int_equal(kernel.n, 4);
	iommufd_nest_fini(&n);
	iommufd_nest_fini(&n);
	kernel.fails = KABI_IOMMU_HWPT_ALLOC;
	kernel.error = EIO;
	n = begin();
	assert_int_equal(iommufd_nest_entry(&n, entry), -EIO);
	iommufd_nest_fini(&n);
}

static const struct refusal {
	unsigned long request;
	int error, result;
	const char *says;
} refusals[] = {
	{KABI_IOMMU_VIOMMU_ALLOC, ENOTTY, -EOPNOTSUPP, "no vIOMMUs; it takes Linux 6.15"},
	{KABI_IOMMU_VIOMMU_ALLOC, EOPNOTSUPP, -EOPNOTSUPP, "(CANWBS)"},
	{KABI_IOMMU_VIOMMU_ALLOC, ENOMEM, -ENOMEM, "making a vIOMMU"},
	{KABI_IOMMU_VDEVICE_ALLOC, EOPNOTSUPP, -EOPNOTSUPP, "more than one stream id"},
	{KABI_IOMMU_VDEVICE_ALLOC, EBUSY, -EBUSY, "making a vDEVICE"},
	{KABI_IOMMU_VEVENTQ_ALLOC, ENOTTY, -EOPNOTSUPP, "does not pass on faults; it takes Linux 6.15"},
	{KABI_IOMMU_VEVENTQ_ALLOC, EMFILE, -EMFILE, "making a queue for faults"},
};

static void test_each_refusal_has_its_sentence(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		struct iommufd_nest n;
		struct vfio_why why = {""};

		kernel.fails = refusals[i].request;
		kernel.error = refusals[i].error;
		assert_int_equal(iommufd_nest_init(&n, &iommufd, DEVICE, &parent, &why), refusals[i].result);
		assert_non_null(strstr(why.text, refusals[i].says));
		for (uint32_t k = 0; k < kernel.n; k++)
			assert_false(kernel.alive[k]);
		kernel.n = 0;
	}
}

static void test_what_it_is(void **state)
{
	struct transport_smmu smmu;
	struct vfio_why why;

	assert_int_equal(iommufd_smmu_info(&iommufd, DEVICE, &smmu, &why), 0);
	assert_true(smmu.flags == TRANSPORT_SMMU_REPEAT && smmu.idr[0] == 0x100 && smmu.idr[5] == 0x105);
	kernel.hw_type = 1; /* VT-d */
	assert_int_equal(iommufd_smmu_info(&iommufd, DEVICE, &smmu, &why), -EOPNOTSUPP);
	assert_string_equal(why.text, "its IOMMU is no Arm SMMUv3");
	kernel.hw_type = KABI_IOMMU_HW_INFO_TYPE_NONE;
	assert_int_equal(iommufd_smmu_info(&iommufd, DEVICE, &smmu, &why), -EOPNOTSUPP);
	assert_non_null(strstr(why.text, "CONFIG_ARM_SMMU_V3_IOMMUFD"));
	kernel.fails = KABI_IOMMU_GET_HW_INFO;
	kernel.error = ENOTTY;
	assert_int_equal(iommufd_smmu_info(&iommufd, DEVICE, &smmu, &why), -EOPNOTSUPP);
	kernel.error = ENOMEM;
	assert_int_equal(iommufd_smmu_info(&iommufd, DEVICE, &smmu, &why), -ENOMEM);
}

static void test_all_commands_or_none(void **state)
{
	const struct transport_smmu_command v[3] = {{{0x11}}, {{0x11}}, {{0x11}}};
	struct iommufd_nest n = begin();

	assert_int_equal(iommufd_nest_invalidate(&n, v, 3), 0);
	kernel.carried_out = 2;
	assert_int_equal(iommufd_nest_invalidate(&n, v, 3), -EIO);
	kernel.fails = KABI_IOMMU_HWPT_INVALIDATE;
	kernel.error = ENOMEM;
	assert_int_equal(iommufd_nest_invalidate(&n, v, 3), -ENOMEM);
	kernel.error = 0;
	iommufd_nest_fini(&n);
}

/* ---- records ---- */

struct record {
	struct kabi_iommufd_vevent_header head;
	struct transport_smmu_event event;
};

static void tell(const void *p, size_t size)
{
	assert_int_equal(send(kernel.events, p, size, 0), (ssize_t)size);
}

static void test_records(void **state)
{
	struct iommufd_nest n = begin();
	struct transport_smmu_event got[TRANSPORT_SMMU_EVENTS];
	struct record v[3] = {
		{{0, 0}, {{0x10}}},
		{{0, 1}, {{0x11}}},
		{{0, 5}, {{0x13}}},
	};
	const struct kabi_iommufd_vevent_header full = {KABI_IOMMU_VEVENTQ_FLAG_LOST_EVENTS, 8};
	uint64_t lost = 0;

	assert_int_equal(iommufd_nest_events(&n, got, TRANSPORT_SMMU_EVENTS, &lost), 0);
	tell(v, sizeof(v));
	assert_int_equal(iommufd_nest_events(&n, got, TRANSPORT_SMMU_EVENTS, &lost), 3);
	assert_true(got[0].word[0] == 0x10 && got[2].word[0] == 0x13);
	assert_int_equal(lost, 3); /* 2, 3, 4 */
	tell(&full, sizeof(full));
	assert_int_equal(iommufd_nest_events(&n, got, TRANSPORT_SMMU_EVENTS, &lost), 0);
	assert_int_equal(lost, 3 + 2 + 1); /* 6, 7, and what it says */
	v[0].head.sequence = 9;
	tell(v, sizeof(v[0]));
	assert_int_equal(iommufd_nest_events(&n, got, TRANSPORT_SMMU_EVENTS, &lost), 1);
	assert_int_equal(lost, 6);
	iommufd_nest_fini(&n);
}

static void test_numbers_begin_again(void **state)
{
	struct iommufd_nest n = begin();
	struct transport_smmu_event got[2];
	struct record r = {{0, 0x7fffffff}, {{0x10}}};
	uint64_t lost = 0;

	n.sequence = 0x7fffffff;
	tell(&r, sizeof(r));
	r.head.sequence = 0;
	assert_int_equal(iommufd_nest_events(&n, got, 2, &lost), 1);
	tell(&r, sizeof(r));
	assert_int_equal(iommufd_nest_events(&n, got, 2, &lost), 1);
	assert_int_equal(lost, 0);
	iommufd_nest_fini(&n);
}

static void test_half_a_record(void **state)
{
	struct iommufd_nest n = begin();
	struct transport_smmu_event got[2];
	const struct record r = {{0, 0}, {{0x10}}};
	uint64_t lost = 0;

	tell(&r, sizeof(r) - 8);
	assert_int_equal(iommufd_nest_events(&n, got, 2, &lost), -EPROTO);
	iommufd_nest_fini(&n);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_comes_and_goes), TEST(test_each_refusal_has_its_sentence),
		TEST(test_what_it_is),     TEST(test_all_commands_or_none),
		TEST(test_records),        TEST(test_numbers_begin_again),
		TEST(test_half_a_record),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
