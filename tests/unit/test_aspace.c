/* SPDX-License-Identifier: MIT */
/*
 * Address spaces against an array of pages: random bind lists of several owners in one space, good and bad operations
 * mixed, each plan judged operation by operation (refusals with their numbers), its steps replayed onto a flat page
 * table, then committed or undone. SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/aspace.h"
#include "unit/random.h"

#define PAGES 400u
#define BASE UINT64_C(0x7fff0000) /* of the aperture */
#define BUFS 5u
#define OPS 24u
#define PG ((uint64_t)ASPACE_PAGE)
#define GUARD (2 * PG)

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

/* The model: what each page holds. Pages with one id are one mapping. */
struct page {
	uint32_t id; /* 0: free */
	uint32_t owner;
	struct buffer *buf;
	uint64_t off;
	bool writable;
};

struct world {
	struct aspace as;
	struct buffer buf[BUFS];
	struct page page[PAGES];
	struct page table[PAGES]; /* what the steps made: id 1 if there, off is the bus address */
	uint32_t ids;
	unsigned int refused[256], planned, undone; /* that the run is worth something */
};

static uint64_t iova_of(size_t page)
{
	return BASE + page * PG;
}

static size_t mapping_end(const struct world *w, size_t i)
{
	uint32_t id = w->page[i].id;

	while (i + 1 < PAGES && w->page[i + 1].id == id)
		i++;
	return i;
}

static size_t mapping_begin(const struct world *w, size_t i)
{
	while (i > 0 && w->page[i - 1].id == w->page[i].id)
		i--;
	return i;
}

static uint64_t model_count(const struct world *w, const struct buffer *buf)
{
	uint64_t n = 0;

	for (size_t i = 0; i < PAGES; i++)
		if (w->page[i].id && mapping_begin(w, i) == i && (!buf || w->page[i].buf == buf))
			n++;
	return n;
}

/* The books say what the model says. */
static void check_books(struct world *w)
{
	struct itree_node *n = itree_first(&w->as.tree);
	uint64_t bytes = 0;

	for (size_t i = 0; i < PAGES; i++) {
		struct mapping *m = aspace_find(&w->as, iova_of(i) + below(PG));

		if (!w->page[i].id) {
			assert_null(m);
			continue;
		}
		bytes += PG;
		assert_non_null(m);
		assert_true(m->node.first == iova_of(mapping_begin(w, i)));
		assert_true(m->node.last == iova_of(mapping_end(w, i)) + PG - 1);
		assert_ptr_equal(m->buf, w->page[i].buf);
		assert_true(m->off + (iova_of(i) - m->node.first) == w->page[i].off);
		assert_int_equal(m->owner, w->page[i].owner);
		assert_int_equal(m->writable, w->page[i].writable);
		if (mapping_begin(w, i) == i) {
			assert_ptr_equal(n, &m->node);
			n = itree_next(n);
		}
	}
	assert_null(n);
	assert_true(w->as.bytes == bytes);
	assert_true(w->as.count == model_count(w, NULL));
}

static void check_uses(const struct world *w)
{
	for (size_t i = 0; i < BUFS; i++)
		assert_true(w->buf[i].uses == model_count(w, &w->buf[i]));
}

struct entry {
	uint64_t first, last, off, uses;
	const struct buffer *buf;
	uint64_t owner, made, writable;
};

/* Everything the books hold, in order; returns its length. */
static size_t dump(const struct world *w, struct entry *v)
{
	size_t n = 0;

	for (struct itree_node *i = itree_first(&w->as.tree); i; i = itree_next(i)) {
		struct mapping *m = container_of(i, struct mapping, node);

		v[n++] =
			(struct entry){i->first, i->last, m->off, m->buf->uses, m->buf, m->owner, m->made, m->writable};
	}
	v[n++] = (struct entry){.first = w->as.count, .last = w->as.bytes, .off = w->as.cursor};
	return n;
}

static bool free_around(const struct world *w, size_t page, size_t pages)
{
	size_t g = GUARD / PG, from = page > g ? page - g : 0;

	for (size_t i = from; i < page + pages + g && i < PAGES; i++)
		if (w->page[i].id)
			return false;
	return true;
}

/* The same judgement as aspace_plan()'s of one operation, page by page; applied if it is good. */
static uint32_t model_map(struct world *w, uint32_t owner, const struct aspace_op *op, bool done, uint64_t *n1,
			  uint64_t *n2)
{
	size_t pages = op->len / PG, at = (op->iova - BASE) / PG;

	if (!op->fixed && !done) {
		for (size_t i = 0; i + pages <= PAGES; i++)
			assert_false(free_around(w, i, pages));
		*n1 = op->len;
		return PASID_WHY_NO_ROOM;
	}
	if (!op->fixed) {
		assert_true(op->iova >= BASE && op->iova % PG == 0 && at + pages <= PAGES);
		assert_true(free_around(w, at, pages));
	}
	for (size_t i = at; i < at + pages; i++) {
		if (w->page[i].id) {
			*n1 = iova_of(mapping_begin(w, i));
			*n2 = iova_of(mapping_end(w, i)) + PG - 1;
			return PASID_WHY_OVERLAP;
		}
	}
	w->ids++;
	for (size_t i = 0; i < pages; i++)
		w->page[at + i] = (struct page){w->ids, owner, op->buf, op->off + i * PG, op->writable};
	return 0;
}

static uint32_t model_unmap(struct world *w, uint32_t owner, const struct aspace_op *op, uint64_t *n1, uint64_t *n2)
{
	size_t pages = op->len / PG, at = (op->iova - BASE) / PG, end = at + pages, i, j;

	for (i = at; i < end; i++) {
		if (w->page[i].id && w->page[i].owner == owner)
			continue;
		for (j = i; j + 1 < end && !(w->page[j + 1].id && w->page[j + 1].owner == owner);)
			j++;
		*n1 = iova_of(i);
		*n2 = iova_of(j) + PG - 1;
		return PASID_WHY_NOT_MAPPED;
	}
	/* What stays above becomes a mapping of its own. */
	if (end < PAGES && w->page[end].id == w->page[end - 1].id) {
		j = mapping_end(w, end);
		w->ids++;
		for (i = end; i <= j; i++)
			w->page[i].id = w->ids;
	}
	memset(&w->page[at], 0, pages * sizeof(w->page[0]));
	return 0;
}

static uint32_t model_op(struct world *w, uint32_t owner, const struct aspace_op *op, bool done, uint64_t *n1,
			 uint64_t *n2)
{
	bool map = op->kind == ASPACE_MAP, placed = !map || op->fixed;
	__extension__ unsigned __int128 end = (__extension__(unsigned __int128) op->iova) + op->len;
	__extension__ unsigned __int128 buf_end = (__extension__(unsigned __int128) op->off) + op->len;

	*n1 = *n2 = 0;
	if (!op->len)
		return PASID_WHY_EMPTY;
	*n2 = PG;
	if (placed && (*n1 = op->iova) % PG)
		return PASID_WHY_UNALIGNED;
	if (map && (*n1 = op->off) % PG)
		return PASID_WHY_UNALIGNED;
	if ((*n1 = op->len) % PG)
		return PASID_WHY_UNALIGNED;
	*n1 = op->iova;
	*n2 = op->len;
	if (placed && (end - 1) >> 64)
		return PASID_WHY_WRAPS;
	*n1 = op->off;
	if (map && buf_end >> 64)
		return PASID_WHY_WRAPS;
	*n1 = (uint64_t)buf_end;
	if (map && buf_end > (*n2 = op->buf->size))
		return PASID_WHY_BUFFER_END;
	*n1 = *n2 = 0;
	if (map && op->writable && !op->buf->writable)
		return PASID_WHY_READ_ONLY;
	if (placed && (op->iova < BASE || end > BASE + PAGES * PG)) {
		*n1 = BASE;
		*n2 = BASE + PAGES * PG - 1;
		return PASID_WHY_APERTURE;
	}
	return map ? model_map(w, owner, op, done, n1, n2) : model_unmap(w, owner, op, n1, n2);
}

/* Mostly sensible: near existing mappings, whole ones, parts of one; now and then nonsense. */
static void random_op(struct world *w, struct aspace_op *op)
{
	size_t at = below(PAGES), pages = 1 + below(below(4) ? 6 : 60);

	memset(op, 0, sizeof(*op));
	op->kind = below(2) ? ASPACE_MAP : ASPACE_UNMAP;
	op->fixed = below(3) != 0;
	op->buf = &w->buf[below(BUFS)];
	op->writable = op->buf->writable && below(2);
	if (op->kind == ASPACE_UNMAP) {
		for (int i = 0; i < 20 && !w->page[at].id; i++)
			at = below(PAGES);
		if (w->page[at].id && below(2)) {
			at = mapping_begin(w, at);
			pages = mapping_end(w, at) - at + 1;
		} else if (w->page[at].id && below(8)) {
			pages = 1 + below(mapping_end(w, at) - at + 1);
		}
	}
	if (at + pages > PAGES)
		pages = PAGES - at;
	op->iova = iova_of(at);
	op->len = pages * PG;
	op->off = below(op->buf->size / PG) * PG;
	if (op->off + op->len > op->buf->size && below(30))
		op->off = 0;
	if (below(20))
		return;
	switch (below(7)) {
	case 0:
		op->len = 0;
		break;
	case 1:
		op->len += 1 + below(PG - 1);
		break;
	case 2:
		op->iova = below(2) ? op->iova + 8 : UINT64_MAX - PG + 1;
		break;
	case 3:
		op->off = below(2) ? op->off + 1 : UINT64_MAX - PG + 1;
		break;
	case 4:
		op->len = UINT64_MAX - PG + 1;
		break;
	case 5:
		*op = (struct aspace_op){.kind = ASPACE_MAP,
					 .fixed = true,
					 .writable = true,
					 .buf = &w->buf[2],
					 .iova = iova_of(at),
					 .len = PG};
		break;
	default:
		op->iova = below(2) ? BASE - PG : iova_of(PAGES);
		break;
	}
}

/* Replays the steps; each must find the table as its kind wants it. */
static void replay_steps(struct world *w, const struct plan *p)
{
	const struct aspace_step *s;
	bool torn[PAGES] = {0}, replaces = false;
	size_t n;

	s = plan_steps(p, &n);
	for (size_t i = 0; i < n; i++) {
		size_t from = (s[i].iova.first - BASE) / PG, to = (s[i].iova.last - BASE) / PG;

		assert_true(s[i].iova.first % PG == 0 && s[i].iova.last % PG == PG - 1 && from <= to && to < PAGES);
		for (size_t k = from; k <= to; k++) {
			assert_int_equal(w->table[k].id, s[i].kind == ASPACE_UNMAP);
			if (s[i].kind == ASPACE_UNMAP) {
				torn[k] = true;
				w->table[k] = (struct page){0};
			} else {
				replaces = replaces || torn[k];
				w->table[k].id = 1;
				w->table[k].off = s[i].bus + (k - from) * PG;
				w->table[k].writable = s[i].writable;
			}
		}
	}
	assert_int_equal(plan_replaces(p), replaces);
}

static void check_table(const struct world *w)
{
	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(w->table[i].id, w->page[i].id != 0);
		if (!w->page[i].id)
			continue;
		assert_true(w->table[i].off == w->page[i].buf->bus + w->page[i].off);
		assert_int_equal(w->table[i].writable, w->page[i].writable);
	}
}

static void count_unused(void *arg, struct buffer *buf)
{
	unsigned int *count = arg;

	assert_true(buf->uses == 0);
	count[buf->id]++;
}

struct before {
	struct page page[PAGES], table[PAGES];
	struct entry dump[PAGES + 1];
	size_t entries;
	uint64_t count, uses[BUFS];
};

struct seen {
	const struct before *before;
	size_t n;
};

static void see_before(void *arg, const struct mapping *m)
{
	struct seen *seen = arg;
	const struct before *b = seen->before;
	size_t i = 0;

	while (i + 1 < b->entries && b->dump[i].first != m->node.first)
		i++;
	assert_true(i + 1 < b->entries); /* the last one is the whole */
	assert_true(b->dump[i].last == m->node.last && b->dump[i].off == m->off && b->dump[i].owner == m->owner);
	seen->n++;
}

/* While a plan is open, what was there before it can be told; and without one, what is there. */
static void check_before(const struct world *w, const struct before *b)
{
	struct seen seen = {b, 0};

	aspace_each_before(&w->as, see_before, &seen);
	assert_int_equal(seen.n, b->entries - 1);
}

static void check_undone(struct world *w, const struct before *b)
{
	struct entry now[PAGES + 1];

	memcpy(w->page, b->page, sizeof(w->page));
	memcpy(w->table, b->table, sizeof(w->table));
	assert_int_equal(dump(w, now), b->entries);
	assert_memory_equal(now, b->dump, b->entries * sizeof(now[0]));
	check_before(w, b);
}

static void finish(struct world *w, struct plan *p, const struct before *b)
{
	unsigned int count[BUFS] = {0};

	if (below(3) == 0) {
		plan_undo(p);
		check_undone(w, b);
		w->undone++;
	} else {
		plan_commit(p, count_unused, count);
		for (size_t i = 0; i < BUFS; i++)
			assert_int_equal(count[i], b->uses[i] > 0 && model_count(w, &w->buf[i]) == 0);
		w->planned++;
	}
}

static void random_list(struct world *w, uint32_t owner)
{
	size_t n = 1 + below(below(2) ? 3 : OPS);
	struct refusal why = {0};
	struct aspace_op ops[OPS];
	struct plan *p = NULL;
	struct before b;
	int64_t peak = 0, got_peak;
	uint64_t n1, n2;
	int e;

	memcpy(b.page, w->page, sizeof(b.page));
	memcpy(b.table, w->table, sizeof(b.table));
	b.entries = dump(w, b.dump);
	b.count = w->as.count;
	for (size_t i = 0; i < BUFS; i++)
		b.uses[i] = w->buf[i].uses;
	for (size_t i = 0; i < n; i++)
		random_op(w, &ops[i]);
	e = aspace_plan(&w->as, owner, ops, n, &p, &why);
	for (size_t i = 0; i < n; i++) {
		bool bad = e && i == why.index;
		uint32_t reason = model_op(w, owner, &ops[i], !bad, &n1, &n2);

		assert_int_equal(reason, bad ? why.reason : 0);
		if (bad) {
			assert_true(why.n1 == n1 && why.n2 == n2);
			break;
		}
		if ((int64_t)(model_count(w, NULL) - b.count) > peak)
			peak = (int64_t)(model_count(w, NULL) - b.count);
	}
	if (e) {
		assert_int_equal(e, refusal_code(why.reason));
		assert_true(e < 0 && why.index < n);
		w->refused[why.reason]++;
		check_undone(w, &b);
		return;
	}
	assert_true(plan_mappings(p, &got_peak) == (int64_t)(model_count(w, NULL) - b.count));
	assert_true(got_peak == peak);
	replay_steps(w, p);
	check_table(w);
	check_books(w);
	check_before(w, &b);
	finish(w, p, &b);
}

struct drop {
	const struct world *w;
	uint32_t owner;
	size_t at; /* pages below are done with */
	unsigned int unused[BUFS];
	bool unused_seen;
};

static void check_gone(void *arg, struct range r)
{
	struct drop *d = arg;
	size_t i = d->at, j;

	assert_false(d->unused_seen);
	while (i < PAGES && !(d->w->page[i].id && d->w->page[i].owner == d->owner))
		i++;
	for (j = i; j + 1 < PAGES && d->w->page[j + 1].id && d->w->page[j + 1].owner == d->owner;)
		j++;
	assert_true(r.first == iova_of(i) && r.last == iova_of(j) + PG - 1);
	d->at = j + 1;
}

static void drop_unused(void *arg, struct buffer *buf)
{
	struct drop *d = arg;

	d->unused_seen = true;
	count_unused(d->unused, buf);
}

static void drop_owner(struct world *w, uint32_t owner)
{
	struct drop d = {.w = w, .owner = owner};
	uint64_t count = w->as.count, uses[BUFS], removed;

	for (size_t i = 0; i < BUFS; i++)
		uses[i] = w->buf[i].uses;
	removed = aspace_drop_owner(&w->as, owner, check_gone, drop_unused, &d);
	for (size_t i = d.at; i < PAGES; i++)
		assert_false(w->page[i].id && w->page[i].owner == owner);
	for (size_t i = 0; i < PAGES; i++)
		if (w->page[i].owner == owner)
			w->page[i] = w->table[i] = (struct page){0};
	assert_true(removed == count - model_count(w, NULL));
	for (size_t i = 0; i < BUFS; i++)
		assert_int_equal(d.unused[i], uses[i] > 0 && w->buf[i].uses == 0);
}

static void check_nearest(struct world *w, uint32_t owner)
{
	uint64_t addr = BASE - 3 * PG + below((PAGES + 6) * PG), best = UINT64_MAX, first = 0;
	struct mapping *m = aspace_nearest(&w->as, owner, addr);

	for (size_t i = 0; i < PAGES; i++) {
		uint64_t a = iova_of(i), z = a + PG - 1, d = addr < a ? a - addr : addr > z ? addr - z : 0;

		if (w->page[i].id && w->page[i].owner == owner && d < best) {
			best = d;
			first = iova_of(mapping_begin(w, i));
		}
	}
	if (!m && best != UINT64_MAX) /* more than 64 of others in between */
		assert_true(model_count(w, NULL) > 64);
	else if (m && model_count(w, NULL) <= 64)
		assert_true(m->node.first == first);
	else if (!m)
		assert_true(best == UINT64_MAX);
	if (m)
		assert_int_equal(m->owner, owner);
}

static void world_init(struct world *w)
{
	static const uint64_t sizes[BUFS] = {8, 70, 3, 200, 1};

	memset(w, 0, sizeof(*w));
	aspace_init(&w->as, (struct range){BASE, BASE + PAGES * PG - 1}, GUARD);
	for (uint32_t i = 0; i < BUFS; i++)
		w->buf[i] = (struct buffer){.id = i,
					    .size = sizes[i] * PG,
					    .bus = (i + 1) * UINT64_C(0x10000000),
					    .writable = i != 2,
					    .named = true};
}

static void run(uint32_t owners, unsigned int rounds)
{
	static const uint32_t seen[] = {PASID_WHY_EMPTY,      PASID_WHY_UNALIGNED, PASID_WHY_WRAPS,
					PASID_WHY_BUFFER_END, PASID_WHY_READ_ONLY, PASID_WHY_APERTURE,
					PASID_WHY_OVERLAP,    PASID_WHY_NOT_MAPPED};
	struct world *w = malloc(sizeof(*w));

	assert_non_null(w);
	world_init(w);
	for (unsigned int i = 0; i < rounds; i++) {
		random_list(w, 1 + (uint32_t)below(owners));
		check_nearest(w, 1 + (uint32_t)below(owners));
		if (below(200) == 0)
			drop_owner(w, 1 + (uint32_t)below(owners));
		check_books(w);
		check_uses(w);
	}
	for (size_t i = 0; i < ARRAY_SIZE(seen); i++)
		assert_true(w->refused[seen[i]] > 0);
	assert_true(w->planned > rounds / 50 && w->undone > rounds / 100);
	aspace_fini(&w->as);
	memset(w->page, 0, sizeof(w->page));
	check_uses(w);
	free(w);
}

static void test_one_owner(void **state)
{
	(void)state;
	run(1, 8000);
}

static void test_shared(void **state)
{
	(void)state;
	run(3, 8000);
}

static struct aspace_op map_any(struct buffer *buf, uint64_t off, uint64_t len)
{
	return (struct aspace_op){.kind = ASPACE_MAP, .writable = true, .buf = buf, .off = off, .len = len};
}

static struct aspace_op map_at(struct buffer *buf, uint64_t off, uint64_t iova, uint64_t len)
{
	return (struct aspace_op){
		.kind = ASPACE_MAP, .fixed = true, .writable = true, .buf = buf, .off = off, .iova = iova, .len = len};
}

static struct aspace_op unmap(uint64_t iova, uint64_t len)
{
	return (struct aspace_op){.kind = ASPACE_UNMAP, .iova = iova, .len = len};
}

static void bind_ok(struct aspace *as, struct aspace_op *ops, size_t n)
{
	struct refusal why = {0};
	struct plan *p = NULL;

	assert_int_equal(aspace_plan(as, 1, ops, n, &p, &why), 0);
	plan_commit(p, NULL, NULL);
}

/* Chosen addresses: aligned as far as that helps, rising, reused only when there is no other, guarded. */
static void test_choice(void **state)
{
	const uint64_t m2 = UINT64_C(1) << 21, g1 = UINT64_C(1) << 30;
	struct buffer buf = {.size = 8 * g1, .bus = 64 * g1, .writable = true};
	struct aspace_op op, fill[2];
	struct refusal why = {0};
	struct plan *p = NULL;
	struct aspace as;
	uint64_t last;

	(void)state;
	aspace_init(&as, (struct range){PG, 16 * g1 - 1}, PG);
	op = map_any(&buf, 0, PG);
	bind_ok(&as, &op, 1);
	assert_true(op.iova == PG);
	op = map_any(&buf, m2, m2 + PG);
	bind_ok(&as, &op, 1);
	assert_true(op.iova % m2 == 0);
	op = map_any(&buf, g1, g1);
	bind_ok(&as, &op, 1);
	assert_true(op.iova % g1 == 0);
	last = op.iova + g1 - 1;
	op = map_any(&buf, PG, g1); /* its bus address is not aligned */
	bind_ok(&as, &op, 1);
	assert_true(op.iova == last + 1 + PG);
	/* Freed, and not given out again as long as there is something above. */
	last = op.iova;
	op = unmap(last, g1);
	bind_ok(&as, &op, 1);
	op = map_any(&buf, PG, PG);
	bind_ok(&as, &op, 1);
	assert_true(op.iova >= last + g1);
	aspace_fini(&as);

	/* Room for the length, not for its alignment; then, from the start again, the last pages; then none. */
	aspace_init(&as, (struct range){PG, 2 * m2 - PG - 1}, PG);
	fill[0] = map_any(&buf, 0, m2);
	fill[1] = map_any(&buf, 0, PG);
	bind_ok(&as, fill, 2);
	assert_true(fill[0].iova == PG && fill[1].iova == PG + m2 + PG);
	op = unmap(fill[0].iova, m2);
	bind_ok(&as, &op, 1);
	op = map_any(&buf, PG, 2 * m2 - PG * 2 - (m2 + 3 * PG) - PG);
	bind_ok(&as, &op, 1);
	op = map_any(&buf, 0, m2);
	bind_ok(&as, &op, 1);
	assert_true(op.iova == PG);
	op = map_any(&buf, 0, PG);
	assert_int_equal(aspace_plan(&as, 1, &op, 1, &p, &why), -ERANGE);
	assert_int_equal(why.reason, PASID_WHY_NO_ROOM);
	assert_true(why.n1 == PG);
	aspace_fini(&as);
	assert_true(buf.uses == 0);
}

/* Steps that continue one another are one; those that only look alike are not. */
static void test_merging(void **state)
{
	struct buffer a = {.size = 64 * PG, .bus = UINT64_C(0x10000000), .writable = true};
	struct aspace_op ops[] = {
		map_at(&a, 0, 16 * PG, PG),      map_at(&a, PG, 17 * PG, 2 * PG), /* one */
		map_at(&a, 4 * PG, 19 * PG, PG), /* another bus address */
		map_at(&a, 5 * PG, 21 * PG, PG), /* a hole before it */
		map_at(&a, 6 * PG, 22 * PG, PG), /* read-only */
		unmap(16 * PG, 2 * PG),          unmap(18 * PG, PG), /* one */
	};
	const struct aspace_step *s;
	struct refusal why = {0};
	struct plan *p = NULL;
	struct aspace as;
	size_t n;

	(void)state;
	ops[4].writable = false;
	aspace_init(&as, (struct range){0, UINT64_MAX}, 0);
	assert_int_equal(aspace_plan(&as, 1, ops, ARRAY_SIZE(ops), &p, &why), 0);
	s = plan_steps(p, &n);
	assert_int_equal(n, 5);
	assert_true(s[0].iova.first == 16 * PG && s[0].iova.last == 19 * PG - 1 && s[0].bus == a.bus);
	assert_true(s[1].bus == a.bus + 4 * PG && s[2].bus == a.bus + 5 * PG);
	assert_false(s[3].writable);
	assert_true(s[4].kind == ASPACE_UNMAP && s[4].iova.first == 16 * PG && s[4].iova.last == 19 * PG - 1);
	assert_false(plan_replaces(p));
	plan_undo(p);
	plan_undo(NULL);
	/* Mapped again: only what was unmapped before, wherever among the unmapped it lies. */
	bind_ok(&as, ops, 4);
	for (size_t i = 0; i < 4; i++) {
		static const uint64_t again[] = {20, 16, 17, 21};
		struct aspace_op list[] = {unmap(17 * PG, PG), unmap(21 * PG, PG), unmap(16 * PG, PG),
					   map_at(&a, 0, again[i] * PG, PG)};

		assert_int_equal(aspace_plan(&as, 1, list, ARRAY_SIZE(list), &p, &why), 0);
		assert_int_equal(plan_replaces(p), i != 0);
		plan_undo(p);
	}
	assert_true(as.count == 4 && aspace_drop_owner(&as, 1, NULL, NULL, NULL) == 4);
	assert_true(as.count == 0 && as.bytes == 0 && a.uses == 0);
	/* The very top of the address space. */
	ops[0] = map_at(&a, 0, UINT64_MAX - PG + 1, PG);
	bind_ok(&as, ops, 1);
	assert_non_null(aspace_find(&as, UINT64_MAX));
	ops[0] = map_any(&a, 0, PG);
	ops[1] = unmap(UINT64_MAX - PG + 1, PG);
	bind_ok(&as, ops, 2);
	aspace_fini(&as);
}

static void test_counts(void **state)
{
	struct buffer a = {.size = 4 * PG, .writable = true};
	struct aspace_op *ops = calloc(PASID_BIND_MAX + 1, sizeof(*ops));
	struct refusal why = {0};
	struct plan *p = NULL;
	struct aspace as;

	(void)state;
	assert_non_null(ops);
	aspace_init(&as, (struct range){0, UINT64_MAX}, PG);
	assert_int_equal(aspace_plan(&as, 1, ops, 0, &p, &why), -EINVAL);
	assert_int_equal(why.reason, PASID_WHY_EMPTY);
	for (size_t i = 0; i <= PASID_BIND_MAX; i++)
		ops[i] = map_any(&a, 0, PG);
	assert_int_equal(aspace_plan(&as, 1, ops, PASID_BIND_MAX + 1, &p, &why), -EINVAL);
	assert_int_equal(why.reason, PASID_WHY_TOO_MANY);
	assert_true(why.n1 == PASID_BIND_MAX + 1 && why.n2 == PASID_BIND_MAX);
	for (int round = 0; round < 20; round++)
		bind_ok(&as, ops, PASID_BIND_MAX);
	/* A list whose last operation fails after the first has unmapped thousands, cutting one in two. */
	ops[0] = unmap(0, PG);
	for (size_t i = 1; i < 512; i++)
		ops[i] = unmap(2 * i * PG, PG);
	ops[512] = unmap(PG, PG);
	assert_int_equal(aspace_plan(&as, 1, ops, 513, &p, &why), -ENOENT);
	assert_int_equal(why.index, 512);
	assert_true(as.count == 20 * PASID_BIND_MAX && a.uses == as.count);
	assert_true(aspace_drop_owner(&as, 2, NULL, NULL, NULL) == 0);
	assert_true(aspace_drop_owner(&as, 1, NULL, NULL, NULL) == 20 * PASID_BIND_MAX);
	assert_true(as.count == 0 && as.bytes == 0 && a.uses == 0);
	aspace_fini(&as);
	free(ops);
}

/* Every reason of the protocol has a code, every other number -EINVAL. */
static void test_refusals(void **state)
{
	struct refusal r = {.index = 7};

	(void)state;
	assert_int_equal(refuse(&r, PASID_WHY_OVERLAP, 1, 2), -EEXIST);
	assert_true(r.reason == PASID_WHY_OVERLAP && r.index == 7 && r.n1 == 1 && r.n2 == 2);
	assert_int_equal(refusal_code(PASID_WHY_NONE), 0);
	assert_int_equal(refusal_code(PASID_WHY_TIMEOUT), -ETIMEDOUT);
	for (uint32_t i = 0; i < PASID_RES_COUNT; i++) {
		assert_int_equal(refusal_code(PASID_WHY_QUOTA_UID + i), -EDQUOT);
		assert_int_equal(refusal_code(PASID_WHY_QUOTA_CONNECTION + i), -EDQUOT);
	}
	for (uint32_t i = PASID_WHY_QUOTA_TOTAL; i <= PASID_WHY_QUOTA_STORE; i++)
		assert_int_equal(refusal_code(i), -EDQUOT);
	assert_int_equal(refusal_code(PASID_WHY_QUOTA_UID + PASID_RES_COUNT), -EINVAL);
	assert_int_equal(refusal_code(12345), -EINVAL);
	assert_int_equal(refusal_code(UINT32_MAX), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_owner), cmocka_unit_test(test_shared), cmocka_unit_test(test_choice),
		cmocka_unit_test(test_merging),   cmocka_unit_test(test_counts), cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests_name("aspace", tests, setup, NULL);
}
