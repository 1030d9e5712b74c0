/* SPDX-License-Identifier: MIT */
/*
 * The io-pgtables against the reference GPU's page walker, which shares no code with them: after random maps and unmaps
 * the two must say the same of every page that was touched, and of its neighbours. $SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/util.h"
#include "pgtable/pgtable.h"
#include "pgtable_model.h"
#include "refgpu/walk.h"

#define POOL_BUS UINT64_C(0x4000000000)
#define POOL_PAGES 16384u
#define WINDOW_PAGES (UINT64_C(5) << 17) /* 2.5 GiB */
#define ROUNDS 400u

struct device {
	const uint64_t *mem; /* the pool as the device sees it */
	uint32_t reads;
	uint32_t extent; /* pages */
};

static uint64_t seed;

static int device_read8(void *arg, uint64_t bus, uint64_t *val)
{
	struct device *d = arg;

	d->reads++;
	if (bus < POOL_BUS || bus - POOL_BUS >= (uint64_t)d->extent * TABLE_PAGE || bus % 8 != 0)
		return -1;
	*val = d->mem[(bus - POOL_BUS) / 8];
	return 0;
}

/* The walker's word for one address against the model's. */
static void compare_page(struct device *d, const struct pgtable *pt, enum refgpu_format fmt, uint64_t iova,
			 uint64_t want)
{
	struct refgpu_walk_result w;
	struct pgtable_leaf leaf = {0};
	bool mapped = pgtable_walk(pt, iova, &leaf);
	int r = refgpu_walk(fmt, pgtable_root(pt), iova, REFGPU_READ, device_read8, d, &w);

	if (mapped != (want != 0) || r != (want ? 0 : REFGPU_FAULT_TRANSLATION))
		fail_msg("0x%llx: refgpu %d, pgtable %d, model 0x%llx", (unsigned long long)iova, r, mapped,
			 (unsigned long long)want);
	if (!want)
		return;
	assert_int_equal(w.bus, (want & ~(MODEL_PAGE - 1)) | (iova & (MODEL_PAGE - 1)));
	assert_int_equal(w.size, range_len(leaf.iova));
	assert_int_equal(w.base, leaf.bus);
	assert_int_equal(w.level, fmt == REFGPU_FORMAT_X86_64 ? 4 - leaf.level : leaf.level);
	assert_int_equal(w.writable, leaf.writable);
	assert_int_equal(w.writable, (want & MODEL_WRITABLE) != 0);
	r = refgpu_walk(fmt, pgtable_root(pt), iova, REFGPU_WRITE, device_read8, d, &w);
	assert_int_equal(r, want & MODEL_WRITABLE ? 0 : REFGPU_FAULT_PERMISSION);
}

/* Every page of small ranges; of large ones the pages about both ends and 1,000 others. */
static void compare(struct device *d, const struct pgtable *pt, enum refgpu_format fmt, const struct model *m,
		    struct rng *g, struct range r)
{
	struct range w = model_window(m);
	uint64_t pages = range_len(r) / MODEL_PAGE;

	for (uint64_t i = 0; i < pages; i++) {
		if (pages > 3000 && i == 1000)
			i = pages - 1000;
		compare_page(d, pt, fmt, r.first + i * MODEL_PAGE + i % MODEL_PAGE,
			     model_at(m, r.first + i * MODEL_PAGE));
	}
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t iova = w.first + rng_below(g, range_len(w));

		compare_page(d, pt, fmt, iova, model_at(m, iova));
	}
	if (r.first > w.first)
		compare_page(d, pt, fmt, r.first - 1, model_at(m, r.first - 1));
	if (r.last < w.last)
		compare_page(d, pt, fmt, r.last + 1, model_at(m, r.last + 1));
}

static void change(struct table_pool *pool, struct pgtable *pt, struct model *m, struct rng *g, struct range r)
{
	bool map = model_free(m, r) && rng_below(g, 8);
	uint64_t bus = map ? model_pick_bus(g, r) : 0;
	uint32_t budget = map ? pgtable_map_need(r, bus) : pgtable_unmap_need(r);

	assert_int_equal(table_pool_reserve(pool, budget), 0);
	if (map) {
		bool writable = rng_below(g, 2);

		assert_int_equal(pgtable_map(pt, r, bus, writable, &budget), 0);
		model_map(m, r, bus, writable);
	} else {
		assert_int_equal(pgtable_unmap(pt, r, &budget), model_unmap(m, r));
	}
	table_pool_unreserve(pool, budget);
	if (rng_below(g, 2))
		pgtable_reclaim(pt);
}

static void random_in_window(const struct pgtable_format *f, enum refgpu_format fmt, uint64_t window)
{
	struct model m = {.first = window, .pages = WINDOW_PAGES};
	struct rng g = {seed};
	struct device d = {.extent = POOL_PAGES};
	struct table_pool *pool;
	struct pgtable *pt;

	assert_int_equal(table_pool_new(&pool, POOL_BUS, POOL_PAGES), 0);
	table_pool_extend(pool, POOL_PAGES);
	assert_int_equal(pgtable_new(&pt, f, pool), 0);
	d.mem = mmap(NULL, POOL_PAGES * (size_t)TABLE_PAGE, PROT_READ, MAP_SHARED, table_pool_fd(pool), 0);
	assert_true(d.mem != MAP_FAILED);
	m.page = calloc(WINDOW_PAGES, sizeof(*m.page));
	assert_non_null(m.page);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct range r = model_pick(&m, &g);

		change(pool, pt, &m, &g, r);
		compare(&d, pt, fmt, &m, &g, r);
	}
	assert_true(d.reads > 0);
	munmap((void *)(uintptr_t)d.mem, POOL_PAGES * (size_t)TABLE_PAGE);
	free(m.page);
	pgtable_free(pt);
	table_pool_free(pool);
}

static void random_vmsa(void **state)
{
	random_in_window(&pgtable_vmsa64, REFGPU_FORMAT_VMSA64, 0);
	random_in_window(&pgtable_vmsa64, REFGPU_FORMAT_VMSA64, (UINT64_C(1) << 39) - MODEL_1G);
	random_in_window(&pgtable_vmsa64, REFGPU_FORMAT_VMSA64, (UINT64_C(1) << 48) - WINDOW_PAGES * MODEL_PAGE);
}

static void random_x86(void **state)
{
	random_in_window(&pgtable_x86_64, REFGPU_FORMAT_X86_64, 0);
	random_in_window(&pgtable_x86_64, REFGPU_FORMAT_X86_64, (UINT64_C(1) << 39) - MODEL_1G);
	random_in_window(&pgtable_x86_64, REFGPU_FORMAT_X86_64, (UINT64_C(1) << 47) - WINDOW_PAGES * MODEL_PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(random_vmsa), cmocka_unit_test(random_x86)};

	seed = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
