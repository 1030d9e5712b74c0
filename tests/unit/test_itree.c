/* SPDX-License-Identifier: MIT */
/*
 * The range tree against a sorted array: random insertions, removals and shrinks, after each of which the tree's shape
 * and sums are checked from scratch, and searches for gaps against a search that tries every neighbour. SEED repeats a
 * run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/itree.h"
#include "base/util.h"
#include "unit/random.h"

#define NODES 96

static struct rng rng;

static uint64_t below(uint64_t n)
{
	return rng_below(&rng, n);
}

static int setup(void **state)
{
	rng.s = rng_seed();
	return 0;
}

/* The model: nodes in rising order. */
struct model {
	struct itree t;
	struct itree_node *v[8192];
	size_t n;
};

static int check_node(const struct itree_node *n, const struct itree_node *parent)
{
	uint64_t first, last, gap = 0;
	int lh = 0, rh = 0;

	if (!n)
		return 0;
	assert_ptr_equal(n->parent, parent);
	lh = check_node(n->left, n);
	rh = check_node(n->right, n);
	assert_true(lh - rh <= 1 && rh - lh <= 1);
	first = n->left ? n->left->sub_first : n->first;
	last = n->right ? n->right->sub_last : n->last;
	if (n->left) {
		assert_true(n->left->sub_last < n->first);
		gap = n->first - n->left->sub_last - 1;
		gap = n->left->sub_gap > gap ? n->left->sub_gap : gap;
	}
	if (n->right) {
		assert_true(n->right->sub_first > n->last);
		if (n->right->sub_first - n->last - 1 > gap)
			gap = n->right->sub_first - n->last - 1;
		gap = n->right->sub_gap > gap ? n->right->sub_gap : gap;
	}
	assert_true(n->sub_first == first);
	assert_true(n->sub_last == last);
	assert_true(n->sub_gap == gap);
	return 1 + (lh > rh ? lh : rh);
}

/* Shape, sums, and the same nodes in the same order both ways. */
static void check_tree(const struct model *m)
{
	struct itree_node *n = itree_first(&m->t), *prev = NULL;

	check_node(m->t.root, NULL);
	for (size_t i = 0; i < m->n; i++) {
		assert_ptr_equal(n, m->v[i]);
		assert_ptr_equal(itree_prev(n), prev);
		prev = n;
		n = itree_next(n);
	}
	assert_null(n);
}

/* Index of the lowest node with last >= addr. */
static size_t model_at(const struct model *m, uint64_t addr)
{
	size_t lo = 0, hi = m->n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (m->v[mid]->last >= addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* Inserts a range if it is free; says whether. */
static bool model_insert(struct model *m, struct itree_node *n, uint64_t first, uint64_t last)
{
	size_t i = model_at(m, first);

	if (i < m->n && m->v[i]->first <= last)
		return false;
	memset(n, 0xa5, sizeof(*n));
	n->first = first;
	n->last = last;
	if (below(2))
		itree_insert(&m->t, n);
	else
		itree_insert_before(&m->t, n, itree_at_or_above(&m->t, first));
	memmove(&m->v[i + 1], &m->v[i], (m->n - i) * sizeof(m->v[0]));
	m->v[i] = n;
	m->n++;
	return true;
}

static struct itree_node *model_erase(struct model *m, size_t i)
{
	struct itree_node *n = m->v[i];

	itree_erase(&m->t, n);
	m->n--;
	memmove(&m->v[i], &m->v[i + 1], (m->n - i) * sizeof(m->v[0]));
	memset(n, 0x5a, sizeof(*n));
	return n;
}

static void check_lookup(const struct model *m, uint64_t addr)
{
	size_t i = model_at(m, addr);

	assert_ptr_equal(itree_at_or_above(&m->t, addr), i < m->n ? m->v[i] : NULL);
	assert_ptr_equal(itree_below(&m->t, addr), i > 0 ? m->v[i - 1] : NULL);
}

/* The lowest address that fits, tried gap by gap in 128 bits; false if there is none. */
static bool naive_room(const struct model *m, const struct itree_want *w, uint64_t *addr)
{
	for (size_t i = 0; i <= m->n; i++) {
		__extension__ __int128 lo = w->from, hi = w->within.last;

		if (i > 0 && (__extension__(__int128) m->v[i - 1]->last) + 1 + w->guard > lo)
			lo = (__extension__(__int128) m->v[i - 1]->last) + 1 + w->guard;
		if (i < m->n && (__extension__(__int128) m->v[i]->first) - 1 - w->guard < hi)
			hi = (__extension__(__int128) m->v[i]->first) - 1 - w->guard;
		lo = (lo + w->align - 1) / w->align * w->align;
		if (lo + w->len - 1 <= hi) {
			*addr = (uint64_t)lo;
			return true;
		}
	}
	return false;
}

static void check_room(const struct model *m, uint64_t scale)
{
	struct itree_want w;
	uint64_t got = 0, want = 0;
	bool there;

	w.within.first = below(4) ? below(scale) : 0;
	w.within.last = below(4) ? w.within.first + below(scale) : UINT64_MAX;
	if (w.within.last < w.within.first)
		w.within.last = UINT64_MAX;
	w.from = w.within.first;
	if (below(2))
		w.from += below(w.within.last - w.within.first == UINT64_MAX ? scale
									     : w.within.last - w.within.first + 1);
	w.len = 1 + below(below(8) ? 40 : scale);
	w.align = UINT64_C(1) << below(below(8) ? 6 : 40);
	w.guard = below(2) ? 0 : below(below(8) ? 20 : UINT64_MAX);
	there = naive_room(m, &w, &want);
	assert_int_equal(itree_find_room(&m->t, &w, &got), there);
	if (there)
		assert_true(got == want);
	if (w.guard == 0) {
		assert_int_equal(itree_find_gap(&m->t, w.within, w.from, w.len, w.align, &got), there);
		if (there)
			assert_true(got == want);
	}
}

static void run(uint64_t base, uint64_t scale, unsigned int rounds)
{
	struct itree_node *pool = calloc(NODES, sizeof(*pool)), *spare[NODES];
	struct model *m = calloc(1, sizeof(*m));
	size_t n_spare = 0;

	assert_true(pool && m);
	for (size_t i = 0; i < NODES; i++)
		spare[n_spare++] = &pool[i];
	for (unsigned int i = 0; i < rounds; i++) {
		uint64_t first = base + below(scale), last = first + below(12);
		/* Long stretches of growing and of shrinking. */
		bool grow = ((i / 300) & 1) ? below(4) == 0 : below(4) != 0;

		if (last < first)
			last = UINT64_MAX;
		if (grow && n_spare) {
			if (model_insert(m, spare[n_spare - 1], first, last))
				n_spare--;
		} else if (m->n) {
			spare[n_spare++] = model_erase(m, below(m->n));
		}
		if (m->n && below(4) == 0) {
			struct itree_node *n = m->v[below(m->n)];
			uint64_t f = n->first + below(n->last - n->first + 1);

			itree_resize(&m->t, n, f, f + below(n->last - f + 1));
		}
		check_tree(m);
		check_lookup(m, base + below(scale));
		check_lookup(m, below(8) ? rng_next(&rng) : UINT64_MAX);
		check_room(m, base == 0 ? scale + 20 : UINT64_MAX);
	}
	free(m);
	free(pool);
}

static void test_random(void **state)
{
	(void)state;
	run(0, 200, 4000);
	run(0, 1000, 4000);
	run(0, UINT64_MAX, 2000);
	run(UINT64_MAX - 999, 1000, 4000);
}

/* Rising, falling and inside-out insertion and removal in trees of some thousands; depth as an AVL tree has it. */
static void test_orders(void **state)
{
	const size_t n = 5000;
	struct itree_node *pool = calloc(n, sizeof(*pool));
	struct model *m = calloc(1, sizeof(*m));

	(void)state;
	assert_true(pool && m);
	for (int order = 0; order < 4; order++) {
		for (size_t i = 0; i < n; i++) {
			uint64_t k = order == 0 ? i : order == 1 ? n - 1 - i : (i * 1237) % n;

			assert_true(model_insert(m, &pool[i], k * 3, k * 3 + below(3)));
		}
		check_tree(m);
		assert_true(check_node(m->t.root, NULL) <= 18);
		while (m->n) {
			model_erase(m, order == 0 ? 0 : order == 1 ? m->n - 1 : below(m->n));
			if (m->n % 500 == 0)
				check_tree(m);
		}
		assert_null(m->t.root);
	}
	free(m);
	free(pool);
}

/* Hundreds of gaps that are long enough but never once aligned, then one that is: skipped, and the last one found. */
static void test_misaligned_gaps(void **state)
{
	const size_t n = 2000;
	struct itree_node *pool = calloc(n, sizeof(*pool));
	struct model *m = calloc(1, sizeof(*m));
	struct range all = {0, UINT64_MAX};
	uint64_t addr = 0;

	(void)state;
	assert_true(pool && m);
	/* Free: 16 bytes that begin one beyond a multiple of 16, each time. */
	for (size_t i = 0; i < n; i++)
		assert_true(model_insert(m, &pool[i], i * 32 + (i ? 17 : 0), i * 32 + 32));
	assert_true(itree_find_gap(&m->t, all, 0, 16, 1, &addr));
	assert_true(addr == 33);
	assert_true(itree_find_gap(&m->t, all, 0, 16, 16, &addr));
	assert_true(addr == n * 32 + 16);
	/* Nothing above the last: a hole long enough for any alignment is found, however many come before it. */
	all.last = n * 32;
	assert_false(itree_find_gap(&m->t, all, 0, 16, 16, &addr));
	model_erase(m, n - 10);
	assert_true(itree_find_gap(&m->t, all, 0, 16, 16, &addr));
	assert_true(addr == (n - 10) * 32 + 16);
	/* Asked for from amidst the last 64, exact. */
	assert_true(itree_find_gap(&m->t, all, (n - 40) * 32, 16, 16, &addr));
	assert_true(addr == (n - 10) * 32 + 16);
	assert_false(itree_find_gap(&m->t, all, (n - 9) * 32 + 1, 16, 16, &addr));
	free(m);
	free(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_orders),
		cmocka_unit_test(test_misaligned_gaps),
	};

	return cmocka_run_group_tests_name("itree", tests, setup, NULL);
}
