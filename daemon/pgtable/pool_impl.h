/* SPDX-License-Identifier: MIT */
/*
 * The inside of the table pool, for the code that walks and fills tables.
 *
 * The memfd holds descriptors and nothing else. What we know about a page lies beside it, in arrays indexed by the
 * page: a bit per entry that is not zero, how many of them there are, and how many of those point to tables. For a page
 * in no table, `live` says how many entries were left in it when it was put down: 0 means that all of it is zero. So is
 * a page that was never taken (at or above `fresh`).
 *
 * In an adopted pool a page that no table has claimed yet is marked by `live` (TABLE_UNKNOWN). What it holds stays unknown
 * when it becomes free, and so does what lies beyond the extent, so no page is fresh there.
 *
 * Always: promised <= free_count + extent - fresh, so a promised page can be taken.
 */
#ifndef PGTABLE_POOL_IMPL_H
#define PGTABLE_POOL_IMPL_H

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "base/shm.h"
#include "pgtable/pool.h"

#define TABLE_ENTRIES 512u
#define TABLE_NONE UINT32_MAX
#define TABLE_UNKNOWN UINT16_MAX

struct table_bits {
	uint64_t w[TABLE_ENTRIES / 64];
};

struct table_meta {
	uint16_t live; /* entries that are not zero, or TABLE_UNKNOWN */
	uint16_t tables; /* those of them that point to a table */
	uint32_t next; /* in pool.free or pgtable.aside; TABLE_NONE ends both */
};

struct table_pool {
	uint64_t *base; /* mem.p */
	uint64_t bus; /* of base */
	struct table_meta *meta;
	struct table_bits *bits;
	uint32_t max;
	uint32_t extent;
	uint32_t fresh; /* pages from here on were never taken */
	uint32_t free; /* pages that came back, the newest first */
	uint32_t free_count;
	uint32_t promised;
	uint32_t unknown; /* pages with TABLE_UNKNOWN */
	bool adopted;
	struct shm mem;
};

static inline uint64_t *table_entries(const struct table_pool *p, uint32_t page)
{
	return p->base + (size_t)page * TABLE_ENTRIES;
}

static inline uint64_t table_bus(const struct table_pool *p, uint32_t page)
{
	return p->bus + (uint64_t)page * TABLE_PAGE;
}

static inline uint32_t table_at(const struct table_pool *p, uint64_t bus)
{
	return (uint32_t)((bus - p->bus) / TABLE_PAGE);
}

/* The bits first..last that fall into word w. */
static inline uint64_t bits_mask(unsigned w, unsigned first, unsigned last)
{
	uint64_t m = ~UINT64_C(0);

	if (w == first / 64)
		m &= ~UINT64_C(0) << (first % 64);
	if (w == last / 64)
		m &= ~UINT64_C(0) >> (63 - last % 64);
	return m;
}

static inline bool bits_test(const struct table_bits *b, unsigned i)
{
	return b->w[i / 64] >> (i % 64) & 1;
}

static inline bool bits_any(const struct table_bits *b, unsigned first, unsigned last)
{
	uint64_t any = 0;

	if (first == last)
		return bits_test(b, first);
	for (unsigned w = first / 64; w <= last / 64; w++)
		any |= b->w[w] & bits_mask(w, first, last);
	return any != 0;
}

static inline void bits_set(struct table_bits *b, unsigned first, unsigned last)
{
	for (unsigned w = first / 64; w <= last / 64; w++)
		b->w[w] |= bits_mask(w, first, last);
}

static inline void bits_clear_one(struct table_bits *b, unsigned i)
{
	b->w[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* Clears first..last and returns how many were set. */
static inline unsigned bits_clear(struct table_bits *b, unsigned first, unsigned last)
{
	unsigned n = 0;

	for (unsigned w = first / 64; w <= last / 64; w++) {
		uint64_t hit = b->w[w] & bits_mask(w, first, last);

		/* All or nothing is the usual case, and the generic popcount is a library call. */
		if (hit == ~UINT64_C(0))
			n += 64;
		else if (hit)
			n += (hit & (hit - 1)) ? (unsigned)__builtin_popcountll(hit) : 1;
		b->w[w] &= ~hit;
	}
	return n;
}

/*
 * Takes one of the pages promised to the caller. It is zero, unless the caller is going to write every entry before
 * anyone can see the page and says so with zero == false; its counts and bits are zero in any case.
 */
static inline uint32_t table_take(struct table_pool *p, uint32_t *budget, bool zero)
{
	uint32_t page;

	assert(*budget > 0 && p->promised > 0);
	--*budget;
	p->promised--;
	if (p->free == TABLE_NONE) {
		assert(p->fresh < p->extent);
		return p->fresh++;
	}
	page = p->free;
	p->free = p->meta[page].next;
	p->free_count--;
	if (p->meta[page].live) {
		p->bits[page] = (struct table_bits){0};
		p->meta[page].live = 0;
		p->meta[page].tables = 0;
		if (zero)
			memset(table_entries(p, page), 0, TABLE_PAGE);
	}
	return page;
}

/* Gives a page back that nobody can see any more. */
static inline void table_put(struct table_pool *p, uint32_t page)
{
	assert(page < p->fresh);
	p->meta[page].next = p->free;
	p->free = page;
	p->free_count++;
}

#endif
