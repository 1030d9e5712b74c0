/* SPDX-License-Identifier: MIT */
/*
 * The io-pgtables against the naive model, with random operations: both formats, in windows at the bottom, around a
 * 512 GiB boundary and at the very top. Beside what is mapped it checks the books: pages held are pages reachable,
 * needs suffice, a refused map changes no byte, nothing leaks. $SEED repeats a run.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "pgtable/pgtable.h"
#include "pgtable_model.h"

#define POOL_BUS UINT64_C(0x7f0000000000)
#define POOL_PAGES 16384u
#define WINDOW_PAGES (UINT64_C(4) << 18) /* 4 GiB */
#define ROUNDS 800u
#define K512G (UINT64_C(1) << 39)

struct rig {
	const struct pgtable_format *format;
	struct table_pool *pool;
	const uint64_t *mem; /* a view of the pool of our own */
	uint64_t *copy;
	struct pgtable *pt;
	struct pgtable *other; /* shares the pool, and must not change */
	struct model model;
	struct rng rng;
	uint32_t budget;
};

static uint64_t seed;

static void rig_init(struct rig *g, const struct pgtable_format *format, uint64_t window)
{
	struct range r = {UINT64_C(0x12345000), UINT64_C(0x12345fff)};

	memset(g, 0, sizeof(*g));
	g->format = format;
	g->rng.s = seed;
	assert_int_equal(table_pool_new(&g->pool, POOL_BUS, POOL_PAGES), 0);
	table_pool_extend(g->pool, POOL_PAGES);
	g->mem = mmap(NULL, POOL_PAGES * (size_t)TABLE_PAGE, PROT_READ, MAP_SHARED, table_pool_fd(g->pool), 0);
	assert_true(g->mem != MAP_FAILED);
	assert_int_equal(pgtable_new(&g->other, format, g->pool), 0);
	assert_int_equal(pgtable_new(&g->pt, format, g->pool), 0);
	g->budget = pgtable_map_need(r, 0xabc000);
	assert_int_equal(table_pool_reserve(g->pool, g->budget), 0);
	assert_int_equal(pgtable_map(g->other, r, 0xabc000, true, &g->budget), 0);
	assert_int_equal(g->budget, 0);
	g->model = (struct model){.first = window, .pages = WINDOW_PAGES};
	g->model.page = calloc(WINDOW_PAGES, sizeof(*g->model.page));
	g->copy = malloc(POOL_PAGES * (size_t)TABLE_PAGE);
	assert_true(g->model.page && g->copy);
}

static void rig_fini(struct rig *g)
{
	struct pgtable_leaf leaf;

	assert_true(pgtable_walk(g->other, 0x12345678, &leaf));
	assert_int_equal(leaf.bus, 0xabc000);
	assert_int_equal(table_pool_used(g->pool), pgtable_pages(g->pt) + pgtable_pages(g->other));
	assert_null(pgtable_free(g->pt));
	assert_int_equal(table_pool_used(g->pool), pgtable_pages(g->other));
	assert_null(pgtable_free(g->other));
	assert_int_equal(table_pool_used(g->pool), 0);
	assert_int_equal(table_pool_unpromised(g->pool), POOL_PAGES);
	munmap((void *)g->mem, POOL_PAGES * (size_t)TABLE_PAGE);
	assert_null(table_pool_free(g->pool));
	free(g->model.page);
	free(g->copy);
}

static void promise(struct rig *g, uint32_t n)
{
	g->budget = n;
	assert_int_equal(table_pool_reserve(g->pool, n), 0);
}

static void promise_end(struct rig *g)
{
	table_pool_unreserve(g->pool, g->budget);
	g->budget = 0;
}

static void check(struct rig *g, struct range r)
{
	uint64_t bad;

	if (!model_agrees(&g->model, g->pt, r, &bad))
		fail_msg("%s: differs at iova 0x%llx", pgtable_format_name(g->format), (unsigned long long)bad);
}

/* Tables below and including the one at bus, counted by reading memory; none but the root may be empty. */
static uint32_t tables_below(const struct rig *g, uint64_t bus, unsigned level)
{
	bool x86 = g->format == &pgtable_x86_64;
	const uint64_t *e = g->mem + (bus - POOL_BUS) / 8;
	uint32_t n = 1, live = 0;

	for (unsigned i = 0; i < 512; i++) {
		bool table = x86 ? (e[i] & 0x81) == 0x01 : (e[i] & 3) == 3;

		live += e[i] != 0;
		if (level < 3 && table)
			n += tables_below(g, e[i] & UINT64_C(0xfffffffff000), level + 1);
	}
	if (level > 0)
		assert_true(live > 0);
	return n;
}

/* Remembers the first `pages` of the pool, or compares them with what was remembered. */
static void pool_remember(struct rig *g, uint32_t pages)
{
	memcpy(g->copy, g->mem, pages * (size_t)TABLE_PAGE);
}

static void pool_same(const struct rig *g, uint32_t pages)
{
	assert_int_equal(memcmp(g->copy, g->mem, pages * (size_t)TABLE_PAGE), 0);
}

static void op_map(struct rig *g, uint32_t high)
{
	struct range r = model_pick(&g->model, &g->rng);
	uint64_t bus = model_pick_bus(&g->rng, r);
	bool writable = rng_below(&g->rng, 2);
	uint32_t pages = pgtable_pages(g->pt), need = pgtable_map_need(r, bus);
	struct pgtable_leaf leaf;

	promise(g, need);
	if (model_free(&g->model, r)) {
		assert_int_equal(pgtable_map(g->pt, r, bus, writable, &g->budget), 0);
		model_map(&g->model, r, bus, writable);
		for (unsigned i = 0; i < 8; i++) {
			uint64_t iova = r.first + rng_below(&g->rng, range_len(r));

			assert_true(pgtable_walk(g->pt, iova, &leaf));
			assert_int_equal(range_len(leaf.iova), model_block(r, bus, iova));
		}
		check(g, r);
	} else {
		pool_remember(g, high);
		assert_int_equal(pgtable_map(g->pt, r, bus, writable, &g->budget), -EEXIST);
		assert_int_equal(g->budget, need);
		pool_same(g, high);
	}
	assert_int_equal(pgtable_pages(g->pt) - pages, need - g->budget);
	promise_end(g);
}

static void op_unmap(struct rig *g)
{
	struct range r = model_pick(&g->model, &g->rng);
	uint32_t now = pgtable_unmap_need_now(g->pt, r);
	uint32_t pages = pgtable_pages(g->pt);

	assert_true(pgtable_unmap_need(r) >= now && pgtable_unmap_need(r) <= 4);
	assert_int_equal(pgtable_splits(g->pt, r), now > 0);
	promise(g, now);
	assert_int_equal(pgtable_unmap(g->pt, r, &g->budget), model_unmap(&g->model, r));
	assert_int_equal(g->budget, 0);
	assert_int_equal(pgtable_pages(g->pt), pages + now);
	check(g, r);
}

static void books(struct rig *g)
{
	uint32_t pages = pgtable_pages(g->pt);
	uint32_t back = pgtable_reclaim(g->pt);

	assert_int_equal(pgtable_pages(g->pt), pages - back);
	assert_int_equal(tables_below(g, pgtable_root(g->pt), 0), pages - back);
	assert_int_equal(tables_below(g, pgtable_root(g->other), 0), pgtable_pages(g->other));
	assert_int_equal(table_pool_used(g->pool), pages - back + pgtable_pages(g->other));
	assert_int_equal(pgtable_reclaim(g->pt), 0);
}

static void outside_is_empty(const struct rig *g)
{
	struct range w = model_window(&g->model);
	struct pgtable_leaf leaf;

	if (w.first > 0)
		assert_false(pgtable_walk(g->pt, w.first - 1, &leaf));
	assert_false(pgtable_walk(g->pt, w.last + 1, &leaf));
	assert_false(pgtable_walk(g->pt, w.first ^ (UINT64_C(1) << 46), &leaf));
	assert_false(pgtable_walk(g->pt, UINT64_MAX, &leaf));
	assert_false(pgtable_next(g->pt, w.last + 1, &leaf));
	assert_int_equal(pgtable_levels(g->pt, UINT64_MAX, (struct pgtable_level[PGTABLE_LEVELS]){{0}}), 0);
}

/* Leaf after leaf, from the first address there is: all that is mapped, and nothing else. */
static void leaves(const struct rig *g)
{
	const struct model *m = &g->model;
	struct pgtable_leaf leaf, walked;
	uint64_t at = 0, bytes = 0, mapped = 0;

	while (pgtable_next(g->pt, at, &leaf)) {
		assert_true(leaf.iova.last >= at);
		assert_true(pgtable_walk(g->pt, leaf.iova.first, &walked));
		assert_true(leaf.iova.first == walked.iova.first && leaf.iova.last == walked.iova.last);
		assert_true(leaf.bus == walked.bus && leaf.entry == walked.entry && leaf.level == walked.level);
		assert_int_equal(leaf.writable, walked.writable);
		bytes += range_len(leaf.iova);
		at = leaf.iova.last + 1;
	}
	for (uint64_t i = 0; i < m->pages; i++)
		mapped += m->page[i] ? MODEL_PAGE : 0;
	assert_int_equal(bytes, mapped);
}

/* The way to an address, read from memory beside what is said of it. */
static void one_way(struct rig *g)
{
	struct range w = model_window(&g->model);
	uint64_t iova = w.first + rng_below(&g->rng, range_len(w)), bus = pgtable_root(g->pt);
	struct pgtable_level v[PGTABLE_LEVELS];
	unsigned int n = pgtable_levels(g->pt, iova, v);
	struct pgtable_leaf leaf;

	assert_in_range(n, 1, PGTABLE_LEVELS);
	for (unsigned int i = 0; i < n; i++) {
		assert_int_equal(v[i].level, i);
		assert_int_equal(v[i].index, iova / v[i].size % 512);
		assert_int_equal(v[i].at, bus + 8 * v[i].index);
		assert_int_equal(v[i].entry, g->mem[(v[i].at - POOL_BUS) / 8]);
		assert_int_equal(v[i].kind == PGTABLE_TABLE, i + 1 < n);
		bus = v[i].bus;
	}
	assert_int_equal(v[n - 1].kind == PGTABLE_LEAF, pgtable_walk(g->pt, iova, &leaf));
	if (v[n - 1].kind != PGTABLE_LEAF)
		return;
	assert_int_equal(v[n - 1].bus, leaf.bus);
	assert_int_equal(v[n - 1].writable, leaf.writable);
	assert_int_equal(v[n - 1].size, range_len(leaf.iova));
	assert_true(pgtable_attributes(g->pt, leaf.entry)[0]);
}

static void random_in_window(const struct pgtable_format *format, uint64_t window)
{
	struct rig g;
	uint32_t high = 0;

	rig_init(&g, format, window);
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint32_t used = table_pool_used(g.pool);

		if (used > high)
			high = used;
		if (rng_below(&g.rng, 2))
			op_map(&g, high);
		else
			op_unmap(&g);
		if (rng_below(&g.rng, 8) == 0)
			books(&g);
		one_way(&g);
		if (i % 100 == 0) {
			check(&g, model_window(&g.model));
			leaves(&g);
		}
	}
	check(&g, model_window(&g.model));
	outside_is_empty(&g);
	/* With all unmapped nothing is left but the root; half the time free() has something to do instead. */
	if (rng_below(&g.rng, 2)) {
		promise(&g, 0);
		pgtable_unmap(g.pt, model_window(&g.model), &g.budget);
		pgtable_reclaim(g.pt);
		assert_int_equal(pgtable_pages(g.pt), 1);
	}
	rig_fini(&g);
}

static void random_ops(void **state)
{
	const struct pgtable_format *f = *state;
	uint64_t top = pgtable_format_iova_last(f) + 1;

	random_in_window(f, 0);
	random_in_window(f, K512G - WINDOW_PAGES / 2 * MODEL_PAGE);
	random_in_window(f, top - WINDOW_PAGES * MODEL_PAGE);
}

static int map_one(struct rig *g, uint64_t iova, uint64_t len, uint64_t bus)
{
	struct range r;
	int ret;

	assert_true(range_make(&r, iova, len));
	promise(g, pgtable_map_need(r, bus));
	ret = pgtable_map(g->pt, r, bus, true, &g->budget);
	promise_end(g);
	return ret;
}

static uint64_t unmap_one(struct rig *g, uint64_t iova, uint64_t len)
{
	struct range r;
	uint64_t bytes;

	assert_true(range_make(&r, iova, len));
	promise(g, pgtable_unmap_need(r));
	bytes = pgtable_unmap(g->pt, r, &g->budget);
	promise_end(g);
	return bytes;
}

static uint32_t level_at(struct rig *g, uint64_t iova)
{
	struct pgtable_leaf leaf;

	assert_true(pgtable_walk(g->pt, iova, &leaf));
	return leaf.level;
}

/* 1 GiB minus a page in its middle: 2 MiB blocks, and pages around the hole only. */
static void split_1g(void **state)
{
	struct rig g;

	rig_init(&g, *state, 0);
	assert_int_equal(map_one(&g, MODEL_1G, MODEL_1G, 5 * MODEL_1G), 0);
	assert_int_equal(pgtable_pages(g.pt), 2);
	assert_int_equal(level_at(&g, MODEL_1G), 1);
	assert_int_equal(unmap_one(&g, MODEL_1G + 7 * MODEL_2M + MODEL_PAGE, MODEL_PAGE), MODEL_PAGE);
	assert_int_equal(pgtable_pages(g.pt), 4);
	assert_int_equal(level_at(&g, MODEL_1G), 2);
	assert_int_equal(level_at(&g, MODEL_1G + 8 * MODEL_2M), 2);
	assert_int_equal(level_at(&g, MODEL_1G + 7 * MODEL_2M), 3);
	/* Both edges in the middle of a block: one level-2 and two level-3 tables, the middle goes unsplit. */
	assert_int_equal(map_one(&g, 2 * MODEL_1G, MODEL_1G, 5 * MODEL_1G), 0);
	assert_int_equal(unmap_one(&g, 2 * MODEL_1G + MODEL_PAGE, MODEL_1G - 2 * MODEL_PAGE),
			 MODEL_1G - 2 * MODEL_PAGE);
	assert_int_equal(pgtable_pages(g.pt), 7);
	assert_int_equal(pgtable_reclaim(g.pt), 0);
	rig_fini(&g);
}

/* Emptied tables wait for the invalidation, and what comes back is zero. */
static void tables_come_back(void **state)
{
	struct rig g;

	rig_init(&g, *state, 0);
	assert_int_equal(map_one(&g, 0, MODEL_2M, MODEL_PAGE), 0);
	assert_int_equal(pgtable_pages(g.pt), 4);
	assert_int_equal(unmap_one(&g, 0, MODEL_2M), MODEL_2M);
	assert_int_equal(pgtable_pages(g.pt), 4);
	assert_int_equal(map_one(&g, MODEL_PAGE, MODEL_PAGE, MODEL_PAGE), 0);
	assert_int_equal(pgtable_pages(g.pt), 7);
	assert_int_equal(pgtable_reclaim(g.pt), 3);
	/* The old level-3 table is full of entries; a new one made of it must not show them. */
	for (uint64_t i = 1; i <= 3; i++)
		assert_int_equal(map_one(&g, i * MODEL_1G, MODEL_PAGE, MODEL_PAGE), 0);
	for (uint64_t i = 1; i <= 3; i++)
		model_map(&g.model, (struct range){i * MODEL_1G, i * MODEL_1G + 4095}, MODEL_PAGE, true);
	model_map(&g.model, (struct range){MODEL_PAGE, 2 * MODEL_PAGE - 1}, MODEL_PAGE, true);
	check(&g, model_window(&g.model));
	rig_fini(&g);
}

/* The sum of needs taken beforehand carries a list in which each change pulls the ground from under the next. */
static void needs_add_up(void **state)
{
	struct range page = {0, 4095}, next = {4096, 8191}, block = {0, MODEL_2M - 1};
	struct rig g;

	/* Blocks that fit need no tables but those above them. */
	assert_int_equal(pgtable_map_need((struct range){0, 1024 * MODEL_1G - 1}, 1024 * MODEL_1G), 2);
	assert_int_equal(pgtable_map_need((struct range){0, MODEL_1G - 1}, MODEL_2M), 2);
	assert_int_equal(pgtable_map_need((struct range){0, MODEL_2M - 1}, MODEL_PAGE), 3);
	rig_init(&g, *state, 0);
	assert_int_equal(map_one(&g, 0, MODEL_PAGE, MODEL_PAGE), 0);
	promise(&g, pgtable_unmap_need(page) + pgtable_map_need(next, 0) + pgtable_unmap_need(next) +
			    pgtable_map_need(block, 0) + pgtable_unmap_need(page));
	assert_int_equal(pgtable_unmap(g.pt, page, &g.budget), 4096);
	assert_int_equal(pgtable_map(g.pt, next, 0, true, &g.budget), 0);
	assert_int_equal(pgtable_unmap(g.pt, next, &g.budget), 4096);
	assert_int_equal(pgtable_map(g.pt, block, 0, true, &g.budget), 0);
	assert_int_equal(pgtable_unmap(g.pt, page, &g.budget), 4096);
	promise_end(&g);
	rig_fini(&g);
}

/* What must be refused: blocks over pages, pages over blocks, and runs of which only the last page is taken. */
static void refusals(void **state)
{
	struct rig g;

	rig_init(&g, *state, 0);
	assert_int_equal(map_one(&g, MODEL_2M + 5 * MODEL_PAGE, MODEL_PAGE, 0), 0);
	assert_int_equal(map_one(&g, MODEL_2M, MODEL_2M, 0), -EEXIST);
	assert_int_equal(map_one(&g, 0, MODEL_1G, 0), -EEXIST);
	assert_int_equal(map_one(&g, 0, MODEL_2M + 6 * MODEL_PAGE, MODEL_PAGE), -EEXIST);
	assert_int_equal(map_one(&g, MODEL_1G, MODEL_1G, 0), 0);
	assert_int_equal(map_one(&g, MODEL_1G, MODEL_PAGE, 0), -EEXIST);
	assert_int_equal(map_one(&g, MODEL_1G + MODEL_2M, MODEL_2M, 0), -EEXIST);
	assert_int_equal(map_one(&g, MODEL_2M * 2, MODEL_1G, 0), -EEXIST);
	/* Emptied again, the same block fits. */
	assert_int_equal(unmap_one(&g, MODEL_2M + 5 * MODEL_PAGE, MODEL_PAGE), MODEL_PAGE);
	assert_int_equal(map_one(&g, MODEL_2M, MODEL_2M, 0), 0);
	assert_int_equal(level_at(&g, MODEL_2M), 2);
	rig_fini(&g);
}

static void formats(void **state)
{
	assert_string_equal(pgtable_format_name(&pgtable_vmsa64), "vmsa64");
	assert_string_equal(pgtable_format_name(&pgtable_x86_64), "x86-64");
	assert_int_equal(pgtable_format_iova_last(&pgtable_vmsa64), (UINT64_C(1) << 48) - 1);
	assert_int_equal(pgtable_format_iova_last(&pgtable_x86_64), (UINT64_C(1) << 47) - 1);
	assert_int_equal(pgtable_format_page_sizes(&pgtable_vmsa64), 0x40201000);
	assert_int_equal(pgtable_format_page_sizes(&pgtable_x86_64), 0x40201000);
	assert_null(pgtable_free(NULL));
	assert_null(table_pool_free(NULL));
}

static void pool_promises(void **state)
{
	struct table_pool *p;
	struct pgtable *pt;

	assert_int_equal(table_pool_new(&p, POOL_BUS, 8), 0);
	assert_int_equal(table_pool_bus(p), POOL_BUS);
	assert_int_equal(table_pool_max(p), 8);
	assert_int_equal(pgtable_new(&pt, &pgtable_vmsa64, p), -EAGAIN);
	assert_int_equal(table_pool_reserve(p, 9), -ENOSPC);
	table_pool_extend(p, 5);
	assert_int_equal(table_pool_extent(p), 5);
	assert_int_equal(pgtable_new(&pt, &pgtable_vmsa64, p), 0);
	assert_int_equal(pgtable_root(pt), POOL_BUS);
	assert_int_equal(table_pool_reserve(p, 5), -EAGAIN);
	assert_int_equal(table_pool_reserve(p, 8), -ENOSPC);
	assert_int_equal(table_pool_reserve(p, 4), 0);
	assert_int_equal(table_pool_unpromised(p), 0);
	assert_int_equal(table_pool_reserve(p, 1), -EAGAIN);
	table_pool_extend(p, 8);
	assert_int_equal(table_pool_reserve(p, 3), 0);
	assert_int_equal(table_pool_reserve(p, 1), -ENOSPC);
	assert_int_equal(table_pool_reserve(p, 0), 0);
	table_pool_unreserve(p, 7);
	assert_int_equal(table_pool_unpromised(p), 7);
	assert_int_equal(table_pool_used(p), 1);
	/* Whoever holds the fd cannot pull the memory from under us. */
	assert_int_equal(ftruncate(table_pool_fd(p), 0), -1);
	pgtable_free(pt);
	table_pool_free(p);
}

/* clang-format off */
#define BOTH(t) ON(t, vmsa64), ON(t, x86_64)
#define ON(t, f) { #t " " #f, t, NULL, NULL, (void *)(uintptr_t)&pgtable_##f }
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(formats),
		cmocka_unit_test(pool_promises),
		BOTH(split_1g),
		BOTH(tables_come_back),
		BOTH(needs_add_up),
		BOTH(refusals),
		BOTH(random_ops),
	};

	seed = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
