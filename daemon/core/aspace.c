/* SPDX-License-Identifier: MIT */
/*
 * Address spaces: memory for mappings, looking them up, and dropping them. Changes by bind lists are in plan.c.
 *
 * Mappings come from slabs that belong to one address space: 4 KiB each, so that a context with few mappings is small,
 * and a slab goes as soon as it is empty (the last one with room is kept). Every slab with room is on as->slabs, a full
 * one is on no list and is found again from the address of a mapping in it.
 */
#include "core/aspace.h"

#include <assert.h>
#include <stdlib.h>

#include "base/util.h"

#define SLAB_BYTES 4096u
#define SLAB_SPARE 16u /* left out at the end for malloc's own header, so that slabs lie side by side */
#define NEAR_MAX 64u /* mappings that aspace_nearest() looks at in each direction */

struct mapping_slab {
	struct mapping_slab *next, *prev; /* on as->slabs */
	struct mapping *free; /* given back, linked by node.left */
	uint32_t used; /* mappings in use */
	uint32_t fresh; /* from here on never used */
	struct mapping map[];
};

#define SLAB_MAPPINGS ((SLAB_BYTES - SLAB_SPARE - sizeof(struct mapping_slab)) / sizeof(struct mapping))

static inline struct mapping *mapping_of(struct itree_node *n)
{
	return n ? container_of(n, struct mapping, node) : NULL;
}

static void slab_link(struct aspace *as, struct mapping_slab *s)
{
	s->prev = NULL;
	s->next = as->slabs;
	if (s->next)
		s->next->prev = s;
	as->slabs = s;
}

static void slab_unlink(struct aspace *as, struct mapping_slab *s)
{
	if (s->prev)
		s->prev->next = s->next;
	else
		as->slabs = s->next;
	if (s->next)
		s->next->prev = s->prev;
}

static struct mapping_slab *slab_new(struct aspace *as)
{
	struct mapping_slab *s;
	void *p;

	if (posix_memalign(&p, SLAB_BYTES, SLAB_BYTES - SLAB_SPARE) != 0)
		return NULL;
	s = p;
	s->free = NULL;
	s->used = 0;
	s->fresh = 0;
	slab_link(as, s);
	return s;
}

struct mapping *aspace_mapping_new(struct aspace *as)
{
	struct mapping_slab *s = as->slabs;
	struct mapping *m;

	if (!s && !(s = slab_new(as)))
		return NULL;
	m = s->free;
	if (m)
		s->free = mapping_of(m->node.left);
	else
		m = &s->map[s->fresh++];
	if (++s->used == SLAB_MAPPINGS)
		slab_unlink(as, s);
	return m;
}

void aspace_mapping_free(struct aspace *as, struct mapping *m)
{
	struct mapping_slab *s = (struct mapping_slab *)((uintptr_t)m & ~(uintptr_t)(SLAB_BYTES - 1));

	m->node.left = s->free ? &s->free->node : NULL;
	s->free = m;
	if (s->used-- == SLAB_MAPPINGS)
		slab_link(as, s);
	if (s->used == 0 && (s->next || s->prev)) {
		slab_unlink(as, s);
		free(s);
	}
}

void aspace_init(struct aspace *as, struct range aperture, uint64_t guard)
{
	*as = (struct aspace){.aperture = aperture, .guard = guard, .cursor = aperture.first};
}

/*
 * Takes the mappings of `owner` (of everyone, if all) out of the books and calls gone for each run of adjacent ones.
 * Returns them, lowest first, linked by node.left: walking upwards never looks at that of a node that was passed. If
 * nothing stays, the tree is left as it is and forgotten as a whole.
 */
static struct mapping *take_out(struct aspace *as, uint32_t owner, bool all, void (*gone)(void *arg, struct range r),
				void *arg)
{
	struct itree_node *n, *next, *head = NULL, **tail = &head;
	struct range run = {0};

	all = all || (!as->mixed && as->owner == owner);
	if (!all && !as->mixed)
		return NULL;
	for (n = itree_first(&as->tree); n; n = next) {
		next = itree_next(n);
		if (!all && mapping_of(n)->owner != owner)
			continue;
		if (!all)
			itree_erase(&as->tree, n);
		as->count--;
		as->bytes -= n->last - n->first + 1;
		if (head && run.last + 1 == n->first) {
			run.last = n->last;
		} else {
			if (head && gone)
				gone(arg, run);
			run = (struct range){n->first, n->last};
		}
		*tail = n;
		tail = &n->left;
	}
	*tail = NULL;
	if (head && gone)
		gone(arg, run);
	if (all)
		as->tree.root = NULL;
	return mapping_of(head);
}

/* Frees mappings that were taken out. Returns how many. */
static uint64_t put_away(struct aspace *as, struct mapping *m, void (*unused)(void *arg, struct buffer *buf), void *arg)
{
	uint64_t count = 0;

	while (m) {
		struct mapping *next = mapping_of(m->node.left);
		struct buffer *buf = m->buf;

		aspace_mapping_free(as, m);
		if (--buf->uses == 0 && unused)
			unused(arg, buf);
		m = next;
		count++;
	}
	return count;
}

void aspace_fini(struct aspace *as)
{
	assert(!as->plan);
	put_away(as, take_out(as, 0, true, NULL, NULL), NULL, NULL);
	/* One empty slab may be left. */
	assert(!as->slabs || (as->slabs->used == 0 && !as->slabs->next));
	free(as->slabs);
	as->slabs = NULL;
}

uint64_t aspace_drop_owner(struct aspace *as, uint32_t owner, void (*gone)(void *arg, struct range r),
			   void (*unused)(void *arg, struct buffer *buf), void *arg)
{
	assert(!as->plan);
	return put_away(as, take_out(as, owner, false, gone, arg), unused, arg);
}

bool aspace_drop_some(struct aspace *as, uint32_t owner, uint64_t *from, uint64_t max,
		      void (*gone)(void *arg, struct range r), void (*unused)(void *arg, struct buffer *buf), void *arg)
{
	struct itree_node *n, *next;

	assert(!as->plan);
	for (n = itree_at_or_above(&as->tree, *from); n && max--; n = next) {
		next = itree_next(n);
		if (mapping_of(n)->owner != owner)
			continue;
		itree_erase(&as->tree, n);
		as->count--;
		as->bytes -= n->last - n->first + 1;
		if (gone)
			gone(arg, (struct range){n->first, n->last});
		n->left = NULL;
		put_away(as, mapping_of(n), unused, arg);
	}
	*from = n ? n->first : 0;
	return n;
}

struct mapping *aspace_find(struct aspace *as, uint64_t iova)
{
	struct itree_node *n = itree_at_or_above(&as->tree, iova);

	return n && n->first <= iova ? mapping_of(n) : NULL;
}

struct mapping *aspace_nearest(struct aspace *as, uint32_t owner, uint64_t iova)
{
	struct itree_node *above = itree_at_or_above(&as->tree, iova), *below = itree_below(&as->tree, iova);

	for (unsigned int i = 0; i < NEAR_MAX && above && mapping_of(above)->owner != owner; i++)
		above = itree_next(above);
	for (unsigned int i = 0; i < NEAR_MAX && below && mapping_of(below)->owner != owner; i++)
		below = itree_prev(below);
	if (above && mapping_of(above)->owner != owner)
		above = NULL;
	if (below && mapping_of(below)->owner != owner)
		below = NULL;
	if (!above || !below)
		return mapping_of(above ? above : below);
	if (above->first <= iova)
		return mapping_of(above);
	return mapping_of(above->first - iova < iova - below->last ? above : below);
}
