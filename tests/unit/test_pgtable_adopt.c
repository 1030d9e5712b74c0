/* SPDX-License-Identifier: MIT */
/*
 * Page tables whose process died, taken over from their memory alone: what a second pool makes of it is compared with what
 * the first one knows, page by page, and everything goes on there. Then contents that nobody wrote. $SEED repeats a run.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "pgtable_adopt_rig.h"

#define POOL_PAGES 16384u
#define WINDOW_PAGES (UINT64_C(4) << 18) /* 4 GiB */
#define ROUNDS 400u

static uint64_t seed;

/* ---- Random changes, and every so often a successor. */

struct rig {
	const struct pgtable_format *format;
	struct table_pool *pool;
	struct pgtable *pt[2];
	struct model model[2];
	struct rng rng;
};

static void rig_change(struct rig *g, unsigned int i)
{
	struct range r = model_pick(&g->model[i], &g->rng);
	uint64_t bus = model_pick_bus(&g->rng, r);
	bool writable = rng_below(&g->rng, 2);

	if (rng_below(&g->rng, 2)) {
		assert_int_equal(take_away(g->pt[i], r), model_unmap(&g->model[i], r));
	} else if (model_free(&g->model[i], r)) {
		make(g->pt[i], r, bus, writable);
		model_map(&g->model[i], r, bus, writable);
	}
	if (rng_below(&g->rng, 4) == 0)
		pgtable_reclaim(g->pt[i]);
}

static void check(struct rig *g, unsigned int i)
{
	uint64_t bad;

	if (!model_agrees(&g->model[i], g->pt[i], model_window(&g->model[i]), &bad))
		fail_msg("%s: differs at iova 0x%llx", pgtable_format_name(g->format), (unsigned long long)bad);
}

/* Every page that the new pool has in a table the old one knows as well, to the bit. */
static void compare_pools(const struct table_pool *was, const struct table_pool *is, uint32_t in_tables)
{
	uint32_t n = 0;

	for (uint32_t page = 0; page < is->extent; page++) {
		const struct table_meta *a = &was->meta[page], *b = &is->meta[page];

		if (b->live == TABLE_UNKNOWN)
			continue;
		n++;
		assert_true(page < was->fresh);
		assert_int_equal(a->live, b->live);
		assert_int_equal(a->tables, b->tables);
		assert_memory_equal(&was->bits[page], &is->bits[page], sizeof(is->bits[page]));
	}
	assert_int_equal(n, in_tables);
	assert_int_equal(table_pool_used(is), in_tables);
}

static uint64_t model_bytes(const struct model *m)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < m->pages; i++)
		n += m->page[i] ? MODEL_PAGE : 0;
	return n;
}

/* The old process is no more, whether or not the invalidation of what it unmapped was complete. */
static void rig_succeed(struct rig *g)
{
	struct table_pool *pool;
	struct pgtable *pt[2];
	uint32_t in_tables = 0, aside = 0;

	if (rng_below(&g->rng, 2))
		pgtable_reclaim(g->pt[0]);
	pool = pool_again(g->pool);
	for (unsigned int i = 0; i < 2; i++) {
		struct count c = {0};

		assert_int_equal(pgtable_adopt(&pt[i], g->format, pool, pgtable_root(g->pt[i]), count_leaf, &c), 0);
		assert_int_equal(pgtable_root(pt[i]), pgtable_root(g->pt[i]));
		assert_int_equal(c.bytes, model_bytes(&g->model[i]));
		in_tables += pgtable_pages(pt[i]);
		for (uint32_t page = g->pt[i]->aside; page != TABLE_NONE; page = g->pool->meta[page].next)
			aside++;
	}
	compare_pools(g->pool, pool, in_tables);
	assert_int_equal(table_pool_used(g->pool), in_tables + aside);
	for (unsigned int i = 0; i < 2; i++) {
		pgtable_free(g->pt[i]);
		g->pt[i] = pt[i];
	}
	table_pool_free(g->pool);
	g->pool = pool;
	table_pool_adopted(pool);
	assert_int_equal(table_pool_used(pool), in_tables);
	assert_int_equal(table_pool_unpromised(pool), table_pool_extent(pool) - in_tables);
}

static void random_in_windows(const struct pgtable_format *format, uint64_t one, uint64_t two)
{
	struct rig g = {
		.format = format,
		.model = {{.first = one, .pages = WINDOW_PAGES}, {.first = two, .pages = WINDOW_PAGES}},
		.rng = {seed},
	};

	g.pool = pool_new(POOL_PAGES, POOL_PAGES / 2);
	for (unsigned int i = 0; i < 2; i++) {
		g.model[i].page = calloc(WINDOW_PAGES, sizeof(*g.model[i].page));
		assert_non_null(g.model[i].page);
		assert_int_equal(pgtable_new(&g.pt[i], format, g.pool), 0);
	}
	for (unsigned int n = 0; n < ROUNDS; n++) {
		rig_change(&g, (unsigned int)rng_below(&g.rng, 2));
		if (rng_below(&g.rng, 20) == 0)
			rig_succeed(&g);
		if (n == ROUNDS / 2)
			table_pool_extend(g.pool, POOL_PAGES);
	}
	for (unsigned int i = 0; i < 2; i++) {
		check(&g, i);
		pgtable_free(g.pt[i]);
		free(g.model[i].page);
	}
	pool_end(g.pool);
}

static void random_changes(void **state)
{
	const struct pgtable_format *f = *state;
	uint64_t top = pgtable_format_iova_last(f) + 1;

	random_in_windows(f, 0, K512G - WINDOW_PAGES / 2 * MODEL_PAGE);
	random_in_windows(f, top - WINDOW_PAGES * MODEL_PAGE, MODEL_1G);
}

/* ---- Pages of unknown content. */

static void fill(const struct table_pool *p, uint32_t first, uint32_t end)
{
	memset(table_entries(p, first), 0xa5, (end - first) * (size_t)TABLE_PAGE);
}

/* Whatever lies in a page that no table had, a table made of it is empty; beyond the old extent as well. */
static void pages_are_zero_when_taken(void **state)
{
	const struct range r = {0, MODEL_2M - 1}, page = {MODEL_1G, MODEL_1G + MODEL_PAGE - 1};
	struct table_pool *old = pool_new(18, 8), *p;
	struct pgtable *pt, *was;
	struct count c = {0};

	assert_int_equal(pgtable_new(&was, *state, old), 0);
	make(was, r, MODEL_PAGE, true);
	fill(old, 4, 18);
	p = pool_again(old);
	assert_int_equal(pgtable_adopt(&pt, *state, p, pgtable_root(was), no_leaf, NULL), 0);
	assert_int_equal(pgtable_pages(pt), 4);
	pgtable_free(was);
	table_pool_free(old);
	table_pool_adopted(p);
	assert_int_equal(table_pool_unpromised(p), 4);
	assert_int_equal(take_away(pt, r), MODEL_2M);
	make(pt, page, 0, true);
	table_pool_extend(p, 18);
	assert_int_equal(table_pool_unpromised(p), 11);
	/* Each takes a table of level 3, the last ones from beyond the extent that the predecessor had. */
	for (uint64_t i = 1; i <= 8; i++)
		make(pt, (struct range){page.first + i * MODEL_2M, page.last + i * MODEL_2M}, 0, true);
	assert_int_equal(pgtable_reclaim(pt), 3);
	old = pool_again(p);
	assert_int_equal(pgtable_adopt(&was, *state, old, pgtable_root(pt), count_leaf, &c), 0);
	assert_int_equal(c.bytes, 9 * MODEL_PAGE);
	pgtable_free(was);
	table_pool_adopted(old);
	pool_end(old);
	pgtable_free(pt);
	pool_end(p);
}

/* ---- What nobody wrote. */

struct liar {
	const struct pgtable_format *format;
	struct table_pool *good; /* pages: root 0, and what is mapped below */
	struct pgtable *pt;
};

static uint64_t *entry_at(const struct table_pool *p, uint64_t iova, unsigned int level)
{
	uint64_t *e = table_entries(p, 0);

	for (unsigned int at = 0;; at++) {
		e += (iova >> (39 - 9 * at)) % TABLE_ENTRIES;
		if (at == level)
			return e;
		e = table_entries(p, table_at(p, *e & UINT64_C(0xfffffffff000)));
	}
}

static void liar_init(struct liar *l, const struct pgtable_format *format)
{
	l->format = format;
	l->good = pool_new(64, 32);
	assert_int_equal(pgtable_new(&l->pt, format, l->good), 0);
	assert_int_equal(pgtable_root(l->pt), POOL_BUS);
	make(l->pt, (struct range)AT(0, 0x5000), MODEL_PAGE, true);
	make(l->pt, (struct range)AT(MODEL_2M, MODEL_2M), MODEL_2M, false);
	make(l->pt, (struct range)AT(MODEL_1G, MODEL_1G), 0, true);
	make(l->pt, (struct range)AT(K512G, 0x2000), 0, true);
}

static void liar_fini(struct liar *l)
{
	pgtable_free(l->pt);
	pool_end(l->good);
}

/* Refused, and nothing has happened: as it was before, it is taken. */
static void refused(struct liar *l, struct table_pool *p, uint64_t *e, uint64_t root)
{
	uint64_t *copy = malloc(32 * (size_t)TABLE_PAGE), good = *entry_at(l->good, 0, 0);
	struct pgtable *pt;

	assert_non_null(copy);
	memcpy(copy, p->base, 32 * (size_t)TABLE_PAGE);
	assert_int_equal(pgtable_adopt(&pt, l->format, p, root, no_leaf, NULL), -EBADMSG);
	assert_memory_equal(copy, p->base, 32 * (size_t)TABLE_PAGE);
	assert_int_equal(table_pool_used(p), 0);
	if (e)
		*e = l->good->base[e - p->base];
	assert_int_equal(*entry_at(p, 0, 0), good);
	assert_int_equal(pgtable_adopt(&pt, l->format, p, POOL_BUS, no_leaf, NULL), 0);
	assert_int_equal(pgtable_pages(pt), pgtable_pages(l->pt));
	pgtable_free(pt);
	table_pool_adopted(p);
	pool_end(p);
	free(copy);
}

/* One entry is another one than it was: `set` in it, without `clear`. */
static void refused_with(struct liar *l, uint64_t iova, unsigned int level, uint64_t clear, uint64_t set)
{
	struct table_pool *p = pool_copy(l->good);
	uint64_t *e = entry_at(p, iova, level);

	*e = (*e & ~clear) | set;
	refused(l, p, e, POOL_BUS);
}

static void lies(void **state)
{
	const uint64_t address = UINT64_C(0xfffffffff000);
	struct liar l;

	liar_init(&l, *state);
	/* Tables: above itself, twice, before and behind the pool, in the part that the device does not see, a bit too many. */
	refused_with(&l, 0, 2, address, POOL_BUS);
	refused_with(&l, K512G, 0, address, *entry_at(l.good, 0, 0) & address);
	refused_with(&l, 0, 1, address, POOL_BUS - TABLE_PAGE);
	refused_with(&l, 0, 1, address, POOL_BUS + 64 * (uint64_t)TABLE_PAGE);
	refused_with(&l, 0, 1, address, POOL_BUS + 32 * (uint64_t)TABLE_PAGE);
	refused_with(&l, 0, 0, 0, UINT64_C(1) << 60);
	refused_with(&l, 0, 0, 1, 0);
	/* Leaves: not present, not aligned, other bits than ours, beyond 48 bits, a block where there can be none. */
	refused_with(&l, 0, 3, 1, 0);
	refused_with(&l, MODEL_2M, 2, 0, MODEL_PAGE);
	refused_with(&l, MODEL_1G, 1, 0, MODEL_2M);
	refused_with(&l, 0, 3, 0, UINT64_C(1) << 55);
	refused_with(&l, 0, 3, 0, UINT64_C(1) << 48);
	refused_with(&l, K512G, 0, UINT64_MAX, *entry_at(l.good, MODEL_1G, 1));
	if (pgtable_format_iova_last(l.format) >> 47 == 0)
		refused_with(&l, UINT64_C(1) << 47, 0, 0, *entry_at(l.good, 0, 0));
	refused(&l, pool_copy(l.good), NULL, POOL_BUS + 8);
	refused(&l, pool_copy(l.good), NULL, POOL_BUS - TABLE_PAGE);
	refused(&l, pool_copy(l.good), NULL, POOL_BUS + 32 * (uint64_t)TABLE_PAGE);
	refused(&l, pool_copy(l.good), NULL, UINT64_MAX);
	liar_fini(&l);
}

static void twice(void **state)
{
	struct table_pool *p;
	struct pgtable *pt, *other;
	struct liar l;

	liar_init(&l, *state);
	p = pool_copy(l.good);
	assert_int_equal(pgtable_adopt(&pt, l.format, p, POOL_BUS, no_leaf, NULL), 0);
	assert_int_equal(pgtable_adopt(&other, l.format, p, POOL_BUS, no_leaf, NULL), -EBADMSG);
	/* A page that holds the same, and points to the same tables. */
	memcpy(table_entries(p, 30), table_entries(p, 0), TABLE_PAGE);
	assert_int_equal(pgtable_adopt(&other, l.format, p, table_bus(p, 30), no_leaf, NULL), -EBADMSG);
	table_pool_adopted(p);
	/* Free pages are nobody's root. */
	assert_int_equal(pgtable_adopt(&other, l.format, p, table_bus(p, 30), no_leaf, NULL), -EBADMSG);
	pgtable_free(pt);
	pool_end(p);
	liar_fini(&l);
}

static int third_is_wrong(void *arg, const struct pgtable_leaf *leaf)
{
	unsigned int *n = arg;

	return ++*n == 3 ? -ESTALE : 0;
}

static void owner_disagrees(void **state)
{
	unsigned int n = 0;
	struct table_pool *p;
	struct pgtable *pt;
	struct liar l;

	liar_init(&l, *state);
	p = pool_copy(l.good);
	assert_int_equal(pgtable_adopt(&pt, l.format, p, POOL_BUS, third_is_wrong, &n), -ESTALE);
	assert_int_equal(n, 3);
	refused(&l, p, NULL, 1);
	liar_fini(&l);
}

/* Somewhere in the tables a word that was not there. */
static void spoil(struct table_pool *p, struct rng *g, uint32_t pages)
{
	uint64_t *e = table_entries(p, (uint32_t)rng_below(g, pages)) + rng_below(g, 8);
	uint64_t *other = table_entries(p, (uint32_t)rng_below(g, pages)) + rng_below(g, 8);

	switch (rng_below(g, 4)) {
	case 0:
		*e = rng_next(g);
		break;
	case 1:
		*e ^= UINT64_C(1) << rng_below(g, 64);
		break;
	case 2:
		*e = *other;
		break;
	default:
		*e = (*e & ~UINT64_C(0xfffffffff000)) | table_bus(p, (uint32_t)rng_below(g, 40));
	}
}

static void spoiled(void **state)
{
	const struct range all = {0, pgtable_format_iova_last(*state)};
	struct rng rng = {seed};
	unsigned int taken = 0;
	struct liar l;

	liar_init(&l, *state);
	for (unsigned int n = 0; n < 3000; n++) {
		struct table_pool *p = pool_copy(l.good);
		uint64_t times = 1 + rng_below(&rng, 3);
		struct count c = {0};
		struct pgtable *pt;
		int r;

		while (times--)
			spoil(p, &rng, pgtable_pages(l.pt) + 1);
		r = pgtable_adopt(&pt, l.format, p, POOL_BUS, count_leaf, &c);
		table_pool_adopted(p);
		if (r == 0) {
			taken++;
			assert_int_equal(take_away(pt, all), c.bytes);
			pgtable_free(pt);
		} else {
			assert_int_equal(r, -EBADMSG);
		}
		pool_end(p);
	}
	assert_true(taken > 0 && taken < 3000);
	liar_fini(&l);
}

/* ---- What a pool is made of. */

static int adopt_fds(int fd, int ro_fd, uint32_t max)
{
	struct table_pool *p;
	int r = table_pool_adopt(&p, POOL_BUS, max, 4, fd, ro_fd);

	if (r == 0)
		table_pool_free(p);
	return r;
}

static void fds(void **state)
{
	struct table_pool *p = pool_new(8, 4), *other = pool_new(8, 4), *no;
	int fd = table_pool_fd(p), ro_fd = table_pool_device_fd(p);
	int bare = memfd_create("bare", MFD_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	assert_true(bare >= 0 && zero >= 0);
	assert_int_equal(ftruncate(bare, 8 * TABLE_PAGE), 0);
	assert_int_equal(adopt_fds(fd, ro_fd, 7), -EBADMSG);
	assert_int_equal(adopt_fds(fd, ro_fd, 9), -EBADMSG);
	assert_int_equal(adopt_fds(fd, fd, 8), -EBADMSG);
	assert_int_equal(adopt_fds(ro_fd, ro_fd, 8), -EBADMSG);
	assert_int_equal(adopt_fds(fd, table_pool_device_fd(other), 8), -EBADMSG);
	assert_int_equal(adopt_fds(bare, ro_fd, 8), -EBADMSG);
	assert_int_equal(adopt_fds(zero, ro_fd, 8), -EBADMSG);
	assert_int_equal(adopt_fds(-1, ro_fd, 8), -EBADMSG);
	assert_int_equal(table_pool_adopt(&no, POOL_BUS + 1, 8, 4, fd, ro_fd), -EBADMSG);
	assert_int_equal(table_pool_adopt(&no, UINT64_C(1) << 48, 8, 4, fd, ro_fd), -EBADMSG);
	assert_int_equal(table_pool_adopt(&no, POOL_BUS, 0, 0, fd, ro_fd), -EBADMSG);
	assert_int_equal(table_pool_adopt(&no, POOL_BUS, 8, 9, fd, ro_fd), -EBADMSG);
	/* The device could open it for writing. */
	assert_int_equal(fchmod(fd, 0600), 0);
	assert_int_equal(adopt_fds(fd, ro_fd, 8), -EBADMSG);
	assert_int_equal(fchmod(fd, 0), 0);
	/* Those that were refused are as they were; these are taken. */
	assert_int_equal(adopt_fds(dup(fd), dup(ro_fd), 8), 0);
	close(bare);
	close(zero);
	table_pool_free(p);
	table_pool_free(other);
}

/* clang-format off */
#define BOTH(t) ON(t, vmsa64), ON(t, x86_64)
#define ON(t, f) { #t " " #f, t, NULL, NULL, (void *)(uintptr_t)&pgtable_##f }
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fds), BOTH(pages_are_zero_when_taken), BOTH(lies),
		BOTH(twice),           BOTH(owner_disagrees),           BOTH(spoiled),
		BOTH(random_changes),
	};

	seed = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
