/* SPDX-License-Identifier: MIT */
/* fault logs against an array that keeps everything; and the edges of "adjacent" and "within 64 KiB" by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/fault.h"
#include "random.h"

static struct rng rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

static void gone(struct fault_log *l, uint64_t first, uint64_t last, uint64_t at)
{
	fault_log_gone(l, (struct range){first, last}, at);
}

/* The one fault that waits after adding one at addr, now. */
static struct pasid_wire_fault fault_at(struct fault_log *l, uint64_t addr, uint64_t now)
{
	struct pasid_wire_fault f = {.job = 7,
				     .addr = addr,
				     .access = 2,
				     .code = 3,
				     .near_first = 5,
				     .near_last = 6,
				     .gone_first = 99,
				     .gone_last = 99,
				     .gone_age_ns = 99};
	struct pasid_wire_fault v[PASID_FAULTS_MAX];
	uint64_t dropped = 99;

	fault_log_add(l, &f, now);
	assert_int_equal(fault_log_take(l, v, &dropped), 1);
	assert_int_equal(dropped, 0);
	assert_int_equal(v[0].job, 7);
	assert_int_equal(v[0].addr, addr);
	assert_int_equal(v[0].access, 2);
	assert_int_equal(v[0].code, 3);
	assert_int_equal(v[0].near_first, 5);
	assert_int_equal(v[0].near_last, 6);
	return v[0];
}

static void expect_gone(struct fault_log *l, uint64_t addr, uint64_t first, uint64_t last, uint64_t age)
{
	struct pasid_wire_fault f = fault_at(l, addr, 1000);

	assert_int_equal(f.gone_first, first);
	assert_int_equal(f.gone_last, last);
	assert_int_equal(f.gone_age_ns, age);
}

static void test_distance(void **state)
{
	struct fault_log l = {0};

	(void)state;
	expect_gone(&l, 0, 0, 0, 0);
	gone(&l, 0x100000, 0x100fff, 900);
	expect_gone(&l, 0x100000, 0x100000, 0x100fff, 100);
	expect_gone(&l, 0x100fff, 0x100000, 0x100fff, 100);
	expect_gone(&l, 0x100000 - 65536, 0x100000, 0x100fff, 100);
	expect_gone(&l, 0x100000 - 65537, 0, 0, 0);
	expect_gone(&l, 0x100fff + 65536, 0x100000, 0x100fff, 100);
	expect_gone(&l, 0x100fff + 65537, 0, 0, 0);

	/* newer and near, but the older one contains the address; of those that are only near the newest wins */
	gone(&l, 0x102000, 0x102fff, 950);
	expect_gone(&l, 0x100800, 0x100000, 0x100fff, 100);
	expect_gone(&l, 0x101000, 0x102000, 0x102fff, 50);
	gone(&l, 0x100000, 0x100fff, 990);
	expect_gone(&l, 0x100800, 0x100000, 0x100fff, 10);
	/* an age is never negative */
	gone(&l, 0x500000, 0x500fff, 2000);
	expect_gone(&l, 0x500000, 0x500000, 0x500fff, 0);
}

static void test_ends_of_space(void **state)
{
	struct fault_log l = {0};

	(void)state;
	gone(&l, UINT64_MAX - 4095, UINT64_MAX, 1);
	gone(&l, 0, 4095, 1); /* the ends of the address space are not adjacent */
	assert_int_equal(l.gone_count, 2);
	expect_gone(&l, UINT64_MAX, UINT64_MAX - 4095, UINT64_MAX, 999);
	expect_gone(&l, 0, 0, 4095, 999);
	gone(&l, UINT64_MAX - 4095, UINT64_MAX, 1);
	assert_int_equal(l.gone_count, 3);
	gone(&l, 0, UINT64_MAX, 1);
	assert_int_equal(l.gone_count, 3);
	expect_gone(&l, 0x123456789, 0, UINT64_MAX, 999);
}

static void test_merge(void **state)
{
	struct fault_log l = {0};

	(void)state;
	gone(&l, 0x2000, 0x2fff, 5);
	gone(&l, 0x3000, 0x3fff, 5);
	gone(&l, 0x1000, 0x1fff, 5);
	assert_int_equal(l.gone_count, 1);
	expect_gone(&l, 0x1000, 0x1000, 0x3fff, 995);
	gone(&l, 0x2000, 0x4fff, 5); /* overlaps */
	assert_int_equal(l.gone_count, 1);
	expect_gone(&l, 0x1000, 0x1000, 0x4fff, 995);
	gone(&l, 0x5000, 0x5fff, 6); /* another time */
	gone(&l, 0x7000, 0x7fff, 6); /* a hole */
	gone(&l, 0x6000, 0x6fff, 6); /* fills it, but only the newest is merged with */
	assert_int_equal(l.gone_count, 3);
	expect_gone(&l, 0x7000, 0x6000, 0x7fff, 994);
	expect_gone(&l, 0x5000, 0x5000, 0x5fff, 994);
}

/* The 33rd removed range displaces the first. */
static void test_gone_is_bounded(void **state)
{
	struct fault_log l = {0};

	(void)state;
	for (uint64_t i = 0; i <= FAULT_GONE_MAX; i++)
		gone(&l, i << 32, (i << 32) + 4095, i);
	assert_int_equal(l.gone_count, FAULT_GONE_MAX);
	expect_gone(&l, 0, 0, 0, 0);
	for (uint64_t i = 1; i <= FAULT_GONE_MAX; i++)
		expect_gone(&l, i << 32, i << 32, (i << 32) + 4095, 1000 - i);
}

/* Random adds and takes: what is taken is the newest 16 in order, the rest is counted. */
static void test_random(void **state)
{
	struct fault_log l = {0};
	uint64_t added = 0, taken = 0;

	(void)state;
	for (int i = 0; i < 50000; i++) {
		struct pasid_wire_fault v[PASID_FAULTS_MAX];
		uint64_t dropped, waiting;
		uint32_t n;

		if (rnd(20)) {
			struct pasid_wire_fault f = {.job = ++added, .addr = rnd(1000)};

			fault_log_add(&l, &f, added);
			assert_int_equal(l.total, added);
			continue;
		}
		waiting = added - taken;
		n = fault_log_take(&l, v, &dropped);
		assert_int_equal(n, waiting < PASID_FAULTS_MAX ? waiting : PASID_FAULTS_MAX);
		assert_int_equal(dropped, waiting - n);
		for (uint32_t k = 0; k < n; k++)
			assert_int_equal(v[k].job, added - n + 1 + k);
		taken = added;
	}
}

/* Random removals and faults against a list of all removals ever. */
static void test_random_gone(void **state)
{
	struct entry {
		struct range r;
		uint64_t at;
	} all[FAULT_GONE_MAX];
	struct fault_log l = {0};
	uint32_t n = 0;

	(void)state;
	for (uint64_t now = 1; now < 20000; now++) {
		/* apart by a page at least, so that nothing merges */
		uint64_t first = (uint64_t)rnd(64) * 0x4000, addr = rnd(64 * 0x4000);
		const struct entry *best = NULL;
		struct pasid_wire_fault f;

		if (rnd(3) == 0) {
			gone(&l, first, first + 0xfff, now);
			if (n == FAULT_GONE_MAX)
				memmove(all, all + 1, --n * sizeof(all[0]));
			all[n++] = (struct entry){{first, first + 0xfff}, now};
			continue;
		}
		f = fault_at(&l, addr, now);
		for (uint32_t i = 0; i < n; i++)
			if (addr + 65536 >= all[i].r.first && addr <= all[i].r.last + 65536)
				best = &all[i];
		for (uint32_t i = 0; i < n; i++)
			if (addr >= all[i].r.first && addr <= all[i].r.last)
				best = &all[i];
		assert_int_equal(f.gone_first, best ? best->r.first : 0);
		assert_int_equal(f.gone_last, best ? best->r.last : 0);
		assert_int_equal(f.gone_age_ns, best ? now - best->at : 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_distance), cmocka_unit_test(test_ends_of_space),
		cmocka_unit_test(test_merge),    cmocka_unit_test(test_gone_is_bounded),
		cmocka_unit_test(test_random),   cmocka_unit_test(test_random_gone),
	};

	rng.s = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
