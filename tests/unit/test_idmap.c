/* SPDX-License-Identifier: MIT */
/* The id map against an array, with ids that are dense, far apart, and in each other's way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/idmap.h"
#include "random.h"

#define IDS 700u

static struct rng rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

/* How the i-th id looks, never 0 and never twice: in a row, by powers of two (which meet in small maps), at the end. */
static uint32_t id_of(uint32_t shape, uint32_t i)
{
	switch (shape) {
	case 0:
		return i + 1;
	case 1:
		return (i + 1) << 20;
	case 2:
		return UINT32_MAX - i;
	default:
		return (i + 1) * 0x9e3779b1u;
	}
}

static void *object_of(uint32_t i)
{
	static char objects[IDS];

	return &objects[i];
}

static void compare(const struct idmap *m, uint32_t shape, const uint8_t *in)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < IDS; i++) {
		assert_ptr_equal(idmap_find(m, id_of(shape, i)), in[i] ? object_of(i) : NULL);
		count += in[i];
	}
	assert_int_equal(m->count, count);
	assert_null(idmap_find(m, 0));
	/* A probe has to find a free entry. */
	assert_true(!m->entries || m->count <= m->mask);
}

static void flip(struct idmap *m, uint32_t shape, uint8_t *in, uint32_t i)
{
	if (in[i])
		idmap_remove(m, id_of(shape, i));
	else
		assert_int_equal(idmap_add(m, id_of(shape, i), object_of(i)), 0);
	in[i] = !in[i];
}

static void test_random(void **state)
{
	rng.s = rng_seed();
	for (uint32_t round = 0; round < 40; round++) {
		uint32_t shape = round % 4, among = 1 + rnd(IDS);
		struct idmap m = {0};
		uint8_t in[IDS] = {0};

		for (int k = 0; k < 3000; k++) {
			flip(&m, shape, in, rnd(among));
			if (k % 16 == 0)
				compare(&m, shape, in);
		}
		/* Emptied, it is as good as new. */
		for (uint32_t i = 0; i < IDS; i++)
			if (in[i])
				flip(&m, shape, in, i);
		compare(&m, shape, in);
		flip(&m, shape, in, 7);
		compare(&m, shape, in);
		idmap_fini(&m);
		assert_null(idmap_find(&m, id_of(shape, 7)));
	}
}

static void test_empty(void **state)
{
	struct idmap m = {0};

	assert_null(idmap_find(&m, 0));
	assert_null(idmap_find(&m, 1));
	idmap_fini(&m);
	assert_int_equal(idmap_add(&m, UINT32_MAX, &m), 0);
	assert_ptr_equal(idmap_find(&m, UINT32_MAX), &m);
	idmap_fini(&m);
	assert_int_equal(m.count, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_empty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
