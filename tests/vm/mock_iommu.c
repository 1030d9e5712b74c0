/* SPDX-License-Identifier: MIT */
/*
 * What the daemon does with address spaces of /dev/iommu, call by call, on the kernel's mock devices: after a failure
 * everything is as before.
 */
#include "mock_rig.h"

#define BASE 0x2000000ull
#define SPAN 8u /* pages from there on, and of the buffer, that tests use */

/* What is mapped in an address space: the buffer's page, from 1, at each page from BASE; 0: none of it. */
struct model {
	unsigned int page[SPAN];
};

static void expect(const struct transport_space *s, const struct model *m)
{
	for (unsigned int at = 0; at < SPAN; at++)
		for (unsigned int page = 0; page < SPAN; page++)
			assert_int_equal(is_mapped(s, BASE + at * PAGE, buffer + page * PAGE), m->page[at] == page + 1);
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
	assert_true(v[0].first == APERTURE.first && v[0].last == APERTURE.last);
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

static int moved; /* what the last move said */

static int move(void)
{
	moved = ops->attach(iommu, device, two);
	return moved;
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
	assert_true(is_attached(0, moved < 0 ? iommu->own->hwpt : one->hwpt));
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
