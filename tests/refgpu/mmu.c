/* SPDX-License-Identifier: MIT */
/*
 * One translation: look up, else walk and remember; and the fresh walk that watches the TLB.
 *
 * Lookup, walk, insertion and the access itself lie in one section of the caller, so whoever invalidates can wait for
 * all of them together.
 */
#include "mmu.h"
#include "status.h"

static void count(uint64_t *counter)
{
	status_add(counter, 1);
}

static int read8(void *arg, uint64_t bus, uint64_t *val)
{
	return bus_load64(arg, bus, val);
}

static int walk_fresh(const struct mmu_context *m, uint64_t va, struct refgpu_walk_result *ret)
{
	return refgpu_walk(m->format, m->root, va, REFGPU_READ, read8, m->port, ret);
}

static int page_of(struct mmu_page *ret, uint64_t base, uint64_t size, uint64_t va)
{
	ret->bus = base | (va & (size - 1));
	ret->left = size - (va & (size - 1));
	return 0;
}

static int conflict(const struct mmu_context *m)
{
	count(&m->status->conflicts);
	return REFGPU_FAULT_TLB_CONFLICT;
}

static int translate_hit(const struct mmu_context *m, uint64_t va, uint32_t access, const struct tlb_answer *hit,
			 struct mmu_page *ret)
{
	struct refgpu_walk_result fresh;
	int r;

	count(&m->status->tlb_hits);
	ret->level = refgpu_walk_level(m->format, hit->depth);
	r = walk_fresh(m, va, &fresh);
	if (!r && fresh.size != hit->size)
		return conflict(m);
	if (r || fresh.base != hit->base || fresh.writable != hit->writable)
		count(&m->status->stale_hits);
	if ((access & REFGPU_WRITE) && !hit->writable)
		return REFGPU_FAULT_PERMISSION;
	return page_of(ret, hit->base, hit->size, va);
}

/* Whether a walk from the root still comes by the table that the walk cache gave. */
static bool table_is_current(const struct mmu_context *m, uint64_t va, const struct refgpu_walk_table *t)
{
	struct refgpu_walk_result fresh;
	const struct refgpu_walk_table *now;

	walk_fresh(m, va, &fresh);
	if (fresh.n_tables < t->depth)
		return false;
	now = &fresh.tables[t->depth - 1];
	return now->table == t->table && now->writable == t->writable && now->user == t->user;
}

static int translate_miss(const struct mmu_context *m, uint64_t va, uint32_t access, const struct tlb_answer *miss,
			  struct mmu_page *ret)
{
	struct refgpu_walk_table start = {.table = m->root, .writable = true, .user = true};
	struct refgpu_walk_result walk;
	int r;

	count(&m->status->tlb_misses);
	count(&m->status->walks);
	if (miss->cached) {
		start = miss->table;
		if (!table_is_current(m, va, &start))
			count(&m->status->stale_hits);
	}
	r = refgpu_walk_from(m->format, &start, va, access, read8, m->port, &walk);
	ret->level = walk.level;
	tlb_insert_tables(m->tlb, m->asid, va, &walk, miss->generation);
	if (r)
		return r;
	if (tlb_insert(m->tlb, m->asid, va, &walk, miss->generation) < 0)
		return conflict(m);
	return page_of(ret, walk.base, walk.size, va);
}

int mmu_translate(const struct mmu_context *m, uint64_t va, uint32_t access, struct mmu_page *ret)
{
	const struct refgpu_walk_ops *ops = m->format == REFGPU_FORMAT_X86_64 ? &refgpu_walk_x86 : &refgpu_walk_vmsa;
	struct tlb_answer answer;

	*ret = (struct mmu_page){0};
	if (!ops->address_ok(va))
		return REFGPU_FAULT_ADDRESS_SIZE;
	if (!m->root) {
		ret->level = refgpu_walk_level(m->format, 0);
		return REFGPU_FAULT_TRANSLATION;
	}
	tlb_lookup(m->tlb, m->asid, va, &answer);
	if (answer.hit)
		return translate_hit(m, va, access, &answer, ret);
	return translate_miss(m, va, access, &answer, ret);
}
