/* SPDX-License-Identifier: MIT */
/*
 * The TLB: one lock, one space per ASID, one generation for all.
 *
 * A remembered value is a bus address (4 KiB aligned) with the rights in its low bits. Under the lock no memory of
 * the bus is touched, so a bus error cannot leave it held.
 */
#include "tlb.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"

#define VAL_WRITABLE UINT64_C(1)
#define VAL_USER UINT64_C(2)
#define VAL_ADDRESS (~UINT64_C(0xfff))

void tlb_init(struct tlb *t, struct refgpu_status *status)
{
	memset(t, 0, sizeof(*t));
	pthread_mutex_init(&t->lock, NULL);
	t->status = status;
}

/* With the lock held, after any change. */
static void tlb_unlock(struct tlb *t)
{
	if (t->status)
		status_set(&t->status->tlb_entries, t->leaves);
	pthread_mutex_unlock(&t->lock);
}

static void space_free(struct tlb *t, uint32_t asid)
{
	if (!t->space[asid])
		return;
	t->leaves -= tlb_space_leaves(t->space[asid]);
	tlb_space_fini(t->space[asid]);
	free(t->space[asid]);
	t->space[asid] = NULL;
}

void tlb_fini(struct tlb *t)
{
	tlb_invalidate_all(t);
	pthread_mutex_destroy(&t->lock);
}

static bool space_find_leaf(const struct tlb_space *s, uint64_t va, struct tlb_answer *ret)
{
	const uint64_t *val;
	uint32_t depth;

	for (depth = TLB_LEAF_4K; depth >= TLB_LEAF_1G; depth--) {
		val = tlb_space_get(s, (enum tlb_kind)depth, va);
		if (!val)
			continue;
		ret->hit = true;
		ret->base = *val & VAL_ADDRESS;
		ret->size = refgpu_walk_span(depth);
		ret->writable = *val & VAL_WRITABLE;
		ret->depth = depth;
		return true;
	}
	return false;
}

static void space_find_table(const struct tlb_space *s, uint64_t va, struct tlb_answer *ret)
{
	const uint64_t *val;
	uint32_t depth;

	for (depth = 3; depth > 0; depth--) {
		val = tlb_space_get(s, (enum tlb_kind)(TLB_TABLE_512G + depth - 1), va);
		if (!val)
			continue;
		ret->cached = true;
		ret->table.table = *val & VAL_ADDRESS;
		ret->table.depth = depth;
		ret->table.writable = *val & VAL_WRITABLE;
		ret->table.user = *val & VAL_USER;
		return;
	}
}

void tlb_lookup(struct tlb *t, uint16_t asid, uint64_t va, struct tlb_answer *ret)
{
	const struct tlb_space *s;

	*ret = (struct tlb_answer){0};
	pthread_mutex_lock(&t->lock);
	ret->generation = t->generation;
	s = t->space[asid];
	if (s && !space_find_leaf(s, va, ret))
		space_find_table(s, va, ret);
	pthread_mutex_unlock(&t->lock);
}

static struct tlb_space *space_get(struct tlb *t, uint16_t asid)
{
	if (!t->space[asid])
		t->space[asid] = calloc(1, sizeof(*t->space[asid]));
	return t->space[asid];
}

void tlb_insert_tables(struct tlb *t, uint16_t asid, uint64_t va, const struct refgpu_walk_result *walk,
		       uint64_t generation)
{
	struct tlb_space *s;
	uint32_t i;

	if (!walk->n_tables)
		return;
	pthread_mutex_lock(&t->lock);
	s = generation == t->generation ? space_get(t, asid) : NULL;
	for (i = 0; s && i < walk->n_tables; i++) {
		const struct refgpu_walk_table *w = &walk->tables[i];
		uint64_t rights = (w->writable ? VAL_WRITABLE : 0) | (w->user ? VAL_USER : 0);

		tlb_space_put(s, (enum tlb_kind)(TLB_TABLE_512G + w->depth - 1), va, w->table | rights);
	}
	pthread_mutex_unlock(&t->lock);
}

static enum tlb_kind leaf_kind(uint64_t size)
{
	return size == refgpu_walk_span(1) ? TLB_LEAF_1G : size == refgpu_walk_span(2) ? TLB_LEAF_2M : TLB_LEAF_4K;
}

static bool space_conflicts(const struct tlb_space *s, uint64_t va, uint64_t size)
{
	uint64_t first = va & ~(size - 1), last = va | (size - 1);
	int kind;

	for (kind = TLB_LEAF_1G; kind <= TLB_LEAF_4K; kind++)
		if (kind != (int)leaf_kind(size) && tlb_space_any(s, (enum tlb_kind)kind, first, last))
			return true;
	return false;
}

int tlb_insert(struct tlb *t, uint16_t asid, uint64_t va, const struct refgpu_walk_result *walk, uint64_t generation)
{
	struct tlb_space *s;
	int r = 0;

	pthread_mutex_lock(&t->lock);
	s = generation == t->generation ? space_get(t, asid) : NULL;
	if (s && space_conflicts(s, va, walk->size))
		r = -EEXIST;
	else if (s &&
		 tlb_space_put(s, leaf_kind(walk->size), va, walk->base | (walk->writable ? VAL_WRITABLE : 0)) == 1)
		t->leaves++;
	tlb_unlock(t);
	return r;
}

void tlb_invalidate_range(struct tlb *t, uint16_t asid, uint64_t first, uint64_t last)
{
	pthread_mutex_lock(&t->lock);
	t->generation++;
	if (t->space[asid])
		t->leaves -= tlb_space_drop(t->space[asid], first, last);
	tlb_unlock(t);
}

void tlb_invalidate_asid(struct tlb *t, uint16_t asid)
{
	pthread_mutex_lock(&t->lock);
	t->generation++;
	space_free(t, asid);
	tlb_unlock(t);
}

void tlb_invalidate_all(struct tlb *t)
{
	uint32_t asid;

	pthread_mutex_lock(&t->lock);
	t->generation++;
	for (asid = 0; asid < TLB_ASIDS; asid++)
		space_free(t, asid);
	tlb_unlock(t);
}
