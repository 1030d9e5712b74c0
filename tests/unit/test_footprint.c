/* SPDX-License-Identifier: MIT */
/* What mappings cost the kernel in tables, beside a naive model: a set of every 2 MiB that ever was mapped. */
#include "service/footprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "unit/random.h"

#define PAGE 4096ull
#define BLOCK (2ull << 20)
#define GIB (1ull << 30)
#define BLOCKS 4096u /* of the model: 8 GiB */
#define MAX_OPS 6u
#define OWNER 1u

static struct aspace as;
static struct footprint f;
static struct buffer buf = {.size = 3 * GIB, .bus = 1ull << 40, .writable = true, .named = true};
static bool ever[BLOCKS];

static uint32_t draw(uint32_t n)
{
	return (uint32_t)random() % n;
}

static uint64_t count(const bool *block)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < BLOCKS; i++)
		n += block[i];
	for (uint32_t gib = 0; gib < BLOCKS; gib += GIB / BLOCK)
		for (uint32_t i = 0; i < GIB / BLOCK; i++)
			if (block[gib + i]) {
				n += 2;
				break;
			}
	return n;
}

/* Maps what is free and unmaps what is not, or is refused by the books. */
static struct plan *random_plan(bool *after)
{
	struct aspace_op op[MAX_OPS];
	struct refusal why;
	struct plan *plan;
	size_t n = 1 + draw(MAX_OPS);

	for (size_t i = 0; i < n; i++) {
		uint64_t len = (1 + draw(draw(2) ? 4 : 600000)) * PAGE;

		op[i] = (struct aspace_op){
			.kind = draw(3) ? ASPACE_MAP : ASPACE_UNMAP,
			.fixed = true,
			.writable = true,
			.buf = &buf,
			.iova = draw(BLOCKS * BLOCK / PAGE - (uint32_t)(len / PAGE)) * PAGE,
			.len = len,
		};
	}
	if (aspace_plan(&as, OWNER, op, n, &plan, &why) < 0)
		return NULL;
	/* What it maps and unmaps again never comes to the kernel. */
	for (struct itree_node *m = itree_first(&as.tree); m; m = itree_next(m))
		for (uint64_t at = m->first / BLOCK; at <= m->last / BLOCK; at++)
			after[at] = true;
	return plan;
}

static void test_random(void **state)
{
	unsigned int kept = 0, not_kept = 0;

	srandom((unsigned int)rng_seed());
	aspace_init(&as, (struct range){0, BLOCKS * BLOCK - 1}, 0);
	for (unsigned int round = 0; round < 3000; round++) {
		bool after[BLOCKS];
		struct plan *plan;
		uint64_t tables;

		memcpy(after, ever, sizeof(after));
		plan = random_plan(after);
		if (!plan) {
			if (!draw(10))
				aspace_drop_owner(&as, OWNER, NULL, NULL, NULL);
			continue;
		}
		assert_int_equal(footprint_note(&f, plan, &tables), 0);
		assert_int_equal(tables, count(after) - count(ever));
		if (draw(3)) {
			footprint_end(&f, plan, true);
			plan_commit(plan, NULL, NULL);
			memcpy(ever, after, sizeof(ever));
			kept++;
		} else {
			footprint_end(&f, plan, false);
			plan_undo(plan);
			not_kept++;
		}
		if (!draw(50)) { /* the address space goes, and another comes */
			aspace_drop_owner(&as, OWNER, NULL, NULL, NULL);
			footprint_fini(&f);
			memset(ever, 0, sizeof(ever));
		}
	}
	print_message("# %u kept, %u not\n", kept, not_kept);
	assert_true(kept > 100 && not_kept > 50);
	footprint_fini(&f);
	aspace_fini(&as);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_random)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
