/* SPDX-License-Identifier: MIT */
/*
 * The part of an io-pgtable that no format changes: its life, its books, and how many pages a change may take.
 */
#include <errno.h>

#include "base/util.h"
#include "pgtable/format.h"

#define SIZE_4K (UINT64_C(1) << 12)
#define SIZE_2M (UINT64_C(1) << 21)
#define SIZE_1G (UINT64_C(1) << 30)
#define SIZE_512G (UINT64_C(1) << 39)

const char *pgtable_format_name(const struct pgtable_format *f)
{
	return f->name;
}

uint64_t pgtable_format_page_sizes(const struct pgtable_format *f)
{
	return f->page_sizes;
}

uint64_t pgtable_format_iova_last(const struct pgtable_format *f)
{
	return f->iova_last;
}

int pgtable_new(struct pgtable **ret, const struct pgtable_format *f, struct table_pool *pool)
{
	AUTO_FREE struct pgtable *pt = calloc(1, sizeof(*pt));
	uint32_t budget = 1;
	int r;

	if (!pt)
		return -ENOMEM;
	r = table_pool_reserve(pool, budget);
	if (r < 0)
		return r;
	pt->format = f;
	pt->pool = pool;
	pt->root = table_take(pool, &budget, true);
	pt->pages = 1;
	pt->aside = TABLE_NONE;
	pt->near_span = UINT64_MAX;
	*ret = TAKE_PTR(pt);
	return 0;
}

int pgtable_claim(struct pgtable *pt, uint64_t bus, uint32_t *ret)
{
	struct table_pool *p = pt->pool;
	uint64_t at = bus - p->bus;
	uint32_t page;

	if (bus < p->bus || at % TABLE_PAGE || at / TABLE_PAGE >= p->extent)
		return -EBADMSG;
	page = (uint32_t)(at / TABLE_PAGE);
	if (p->meta[page].live != TABLE_UNKNOWN)
		return -EBADMSG;
	p->unknown--;
	p->bits[page] = (struct table_bits){0};
	p->meta[page] = (struct table_meta){.next = pt->aside};
	pt->aside = page;
	pt->pages++;
	*ret = page;
	return 0;
}

static void unclaim(struct pgtable *pt)
{
	struct table_pool *p = pt->pool;

	while (pt->aside != TABLE_NONE) {
		uint32_t page = pt->aside;

		pt->aside = p->meta[page].next;
		p->meta[page].live = TABLE_UNKNOWN;
		p->unknown++;
	}
}

int pgtable_adopt(struct pgtable **ret, const struct pgtable_format *f, struct table_pool *pool, uint64_t root,
		  int (*leaf)(void *arg, const struct pgtable_leaf *l), void *arg)
{
	AUTO_FREE struct pgtable *pt = calloc(1, sizeof(*pt));
	int r;

	if (!pt)
		return -ENOMEM;
	*pt = (struct pgtable){.format = f, .pool = pool, .aside = TABLE_NONE, .near_span = UINT64_MAX};
	r = pgtable_claim(pt, root, &pt->root);
	if (r == 0)
		r = f->adopt(pt, leaf, arg);
	if (r) {
		unclaim(pt);
		return r;
	}
	pt->aside = TABLE_NONE;
	f->prune(pt);
	*ret = TAKE_PTR(pt);
	return 0;
}

struct pgtable *pgtable_free(struct pgtable *pt)
{
	if (!pt)
		return NULL;
	pt->format->drop(pt);
	pgtable_reclaim(pt);
	assert(pt->pages == 0);
	free(pt);
	return NULL;
}

uint64_t pgtable_root(const struct pgtable *pt)
{
	return table_bus(pt->pool, pt->root);
}

uint32_t pgtable_pages(const struct pgtable *pt)
{
	return pt->pages;
}

/* How many spans of `size` r touches: each may need a table of its own. */
static uint32_t spans(struct range r, uint64_t size)
{
	return (uint32_t)(r.last / size - r.first / size + 1);
}

/* How many blocks of `size` r cuts at its ends, where there are such blocks: each takes a table. */
static uint32_t cuts(struct range r, uint64_t size, bool head, bool tail)
{
	head = head && r.first % size != 0;
	tail = tail && (r.last + 1) % size != 0;
	if (head && tail && r.first / size == r.last / size)
		return 1;
	return (uint32_t)head + (uint32_t)tail;
}

/* Tables for spans of `size`: for all that r touches, or, where blocks of that size fit, for the cut ones at its ends. */
static uint32_t tables(struct range r, uint64_t bus, uint64_t size)
{
	return (r.first ^ bus) % size ? spans(r, size) : cuts(r, size, true, true);
}

uint32_t pgtable_map_need(struct range r, uint64_t bus)
{
	return spans(r, SIZE_512G) + tables(r, bus, SIZE_1G) + tables(r, bus, SIZE_2M);
}

uint32_t pgtable_unmap_need(struct range r)
{
	return cuts(r, SIZE_1G, true, true) + cuts(r, SIZE_2M, true, true);
}

/* Bytes in the page or block that iova lies in; 0 if it lies in none. */
static uint64_t leaf_size(const struct pgtable *pt, uint64_t iova)
{
	struct pgtable_leaf leaf;

	return pt->format->walk(pt, iova, &leaf) ? range_len(leaf.iova) : 0;
}

uint32_t pgtable_unmap_need_now(const struct pgtable *pt, struct range r)
{
	uint64_t head = leaf_size(pt, r.first);
	/* A 2 MiB span that has a page of 4 KiB has nothing larger. */
	bool same = head == SIZE_4K && r.first / SIZE_2M == r.last / SIZE_2M;
	uint64_t tail = same ? head : leaf_size(pt, r.last);

	return cuts(r, SIZE_1G, head == SIZE_1G, tail == SIZE_1G) + cuts(r, SIZE_2M, head >= SIZE_2M, tail >= SIZE_2M);
}

bool pgtable_splits(const struct pgtable *pt, struct range r)
{
	return pgtable_unmap_need_now(pt, r) > 0;
}

static bool range_good(const struct pgtable *pt, struct range r)
{
	return range_aligned(r, SIZE_4K) && r.first <= r.last && r.last <= pt->format->iova_last;
}

int pgtable_map(struct pgtable *pt, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	assert(range_good(pt, r));
	assert(!(prot & PGTABLE_DEVICE) || pt->format == &pgtable_vmsa64);
	assert(bus % SIZE_4K == 0 && bus >> 48 == 0 && (bus + (r.last - r.first)) >> 48 == 0);
	return pt->format->map(pt, r, bus, prot, budget);
}

uint64_t pgtable_unmap(struct pgtable *pt, struct range r, uint32_t *budget)
{
	assert(range_good(pt, r));
	return pt->format->unmap(pt, r, budget);
}

uint32_t pgtable_reclaim(struct pgtable *pt)
{
	uint32_t n = 0;

	while (pt->aside != TABLE_NONE) {
		uint32_t page = pt->aside;

		pt->aside = pt->pool->meta[page].next;
		table_put(pt->pool, page);
		n++;
	}
	pt->pages -= n;
	return n;
}

bool pgtable_walk(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret)
{
	return iova <= pt->format->iova_last && pt->format->walk(pt, iova, ret);
}

bool pgtable_next(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret)
{
	return iova <= pt->format->iova_last && pt->format->next(pt, iova, ret);
}

unsigned int pgtable_levels(const struct pgtable *pt, uint64_t iova, struct pgtable_level v[PGTABLE_LEVELS])
{
	return iova <= pt->format->iova_last ? pt->format->levels(pt, iova, v) : 0;
}

const char *pgtable_attributes(const struct pgtable *pt, uint64_t entry)
{
	return pt->format->attributes(entry);
}
