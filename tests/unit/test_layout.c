/* SPDX-License-Identifier: MIT */
/* Where things go in a device's address space, for apertures as IOMMUs have them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "service/layout.h"

#define MSI_FIRST 0xfee00000ull
#define MSI_LAST 0xfeefffffull

static struct range holes[8];
static size_t n_holes;

static void take_hole(void *arg, struct range hole)
{
	assert_true(n_holes < ARRAY_SIZE(holes));
	holes[n_holes++] = hole;
}

static struct bus_layout layout(size_t n, const struct range *usable)
{
	struct bus_layout l = {.n_usable = n};

	memcpy(l.usable, usable, n * sizeof(*usable));
	return l;
}

static bool apart(struct range a, struct range b)
{
	return !range_overlaps(a, b);
}

static void check(struct bus_layout *l, unsigned int bits)
{
	assert_int_equal(layout_make(l), 0);
	assert_true(apart(l->engine, l->tables) && apart(l->tables, l->fences) && apart(l->fences, l->buffers));
	assert_true(apart(l->engine, l->buffers) && apart(l->engine, l->fences) && apart(l->tables, l->buffers));
	assert_true(apart(l->nest, l->engine) && apart(l->nest, l->tables) && apart(l->nest, l->fences));
	/* A table of descriptors has to be at a multiple of its size, and is the first thing there. */
	assert_int_equal(l->nest.first % range_len(l->nest), 0);
	assert_int_equal(l->buffers.last, (1ull << bits) - 1);
	assert_int_equal(range_len(l->buffers), 7 * (1ull << (bits - 3)));
	n_holes = 0;
	layout_holes(l, (struct range){l->fences.first, l->buffers.last}, take_hole, NULL);
}

/* All of 47 bits: a device that is a process. The numbers stand in docs/architecture.md. */
static void test_process(void **state)
{
	struct bus_layout l = layout(1, (struct range[]){{0, (1ull << 47) - 1}});

	check(&l, 47);
	assert_int_equal(l.engine.first, 0x100000);
	assert_int_equal(l.tables.first, 0x4000000000);
	assert_int_equal(l.fences.first, 0x8000000000);
	assert_int_equal(l.buffers.first, 0x100000000000);
	assert_int_equal(n_holes, 0);
}

static void test_x86(void **state)
{
	struct bus_layout l = layout(2, (struct range[]){{0, MSI_FIRST - 1}, {MSI_LAST + 1, (1ull << 48) - 1}});

	check(&l, 47);
	assert_int_equal(n_holes, 0);
	/* 39 bits: the window of the interrupt controller lies where fences are looked for. */
	l = layout(2, (struct range[]){{0, MSI_FIRST - 1}, {MSI_LAST + 1, (1ull << 39) - 1}});
	check(&l, 39);
	assert_int_equal(n_holes, 1);
	assert_int_equal(holes[0].first, MSI_FIRST);
	assert_int_equal(holes[0].last, MSI_LAST);
	assert_true(range_contains(l.fences, holes[0]));
}

static void test_arm(void **state)
{
	struct bus_layout l = layout(2, (struct range[]){{0, 0x7ffffff}, {0x8100000, UINT64_MAX}});

	check(&l, 47);
	assert_int_equal(n_holes, 0);
}

static void test_holes(void **state)
{
	struct bus_layout l = layout(4, (struct range[]){{0, 0xfffffff},
							 {0x20000000, 0x6fffffffff},
							 {0x8000001000, 0x1fffffffffff},
							 {0x200000001000, 0x7fffffffefff}});

	/* The last address is not quite a power of two's, so that half of it is used. */
	check(&l, 46);
	assert_int_equal(n_holes, 2);
	assert_int_equal(holes[0].first, 0x7000000000);
	assert_int_equal(holes[0].last, 0x8000000fff);
	assert_int_equal(holes[1].first, 0x200000000000);
	assert_int_equal(holes[1].last, 0x200000000fff);
	l = layout(2, (struct range[]){{0, 0xfffffff}, {0x8000001000, 0x7fffffffffff}});
	assert_int_equal(layout_make(&l), -ERANGE); /* no tables */
}

static void test_too_little(void **state)
{
	struct bus_layout l = layout(0, (struct range[]){{0, 0}});

	assert_int_equal(layout_make(&l), -ERANGE);
	l = layout(1, (struct range[]){{0, 0xffffffff}});
	assert_int_equal(layout_make(&l), -ERANGE);
	l = layout(1, (struct range[]){{0x200000, UINT64_MAX}});
	assert_int_equal(layout_make(&l), -ERANGE); /* no rings */
	l = layout(1, (struct range[]){{0x100000, (1ull << 36) - 1}});
	check(&l, 36);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_process), cmocka_unit_test(test_x86),        cmocka_unit_test(test_arm),
		cmocka_unit_test(test_holes),   cmocka_unit_test(test_too_little),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
