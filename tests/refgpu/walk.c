/* SPDX-License-Identifier: MIT */
/*
 * The part of a page-table walk that both formats share: four levels of 512 entries of 8 bytes.
 *
 * What an entry means is the formats' business (walk_vmsa.c, walk_x86.c). Rights only ever shrink on the way down,
 * and are judged at the end, so that a missing entry is always reported as such.
 */
#include "walk.h"

#include <string.h>

uint32_t refgpu_walk_level(enum refgpu_format fmt, uint32_t depth)
{
	return fmt == REFGPU_FORMAT_X86_64 ? REFGPU_WALK_DEPTHS - depth : depth;
}

static int walk_fault(struct refgpu_walk_result *ret, uint32_t code)
{
	ret->fault = code;
	return (int)code;
}

static int walk_end(struct refgpu_walk_result *ret, const struct refgpu_walk_table *at, uint64_t va, uint32_t access,
		    uint64_t out)
{
	ret->size = refgpu_walk_span(at->depth);
	ret->base = out;
	ret->bus = out | (va & (ret->size - 1));
	ret->writable = at->writable;
	if (!at->user || ((access & REFGPU_WRITE) && !at->writable))
		return walk_fault(ret, REFGPU_FAULT_PERMISSION);
	return 0;
}

int refgpu_walk_from(enum refgpu_format fmt, const struct refgpu_walk_table *start, uint64_t va, uint32_t access,
		     refgpu_read8_fn read8, void *arg, struct refgpu_walk_result *ret)
{
	const struct refgpu_walk_ops *ops = fmt == REFGPU_FORMAT_X86_64 ? &refgpu_walk_x86 : &refgpu_walk_vmsa;
	struct refgpu_walk_table at = *start;
	struct refgpu_walk_entry e;
	uint64_t desc;
	int r;

	memset(ret, 0, sizeof(*ret));
	if (!ops->address_ok(va))
		return walk_fault(ret, REFGPU_FAULT_ADDRESS_SIZE);
	for (;;) {
		ret->level = refgpu_walk_level(fmt, at.depth);
		r = read8(arg, at.table + ((va / refgpu_walk_span(at.depth)) % 512) * 8, &desc);
		if (r < 0)
			return walk_fault(ret, REFGPU_FAULT_BUS);
		r = ops->decode(at.depth, desc, &e);
		if (r)
			return walk_fault(ret, (uint32_t)r);
		at.writable = at.writable && e.writable;
		at.user = at.user && e.user;
		if (e.leaf)
			return walk_end(ret, &at, va, access, e.out);
		at.table = e.out;
		at.depth++;
		ret->tables[ret->n_tables++] = at;
	}
}

int refgpu_walk(enum refgpu_format fmt, uint64_t root, uint64_t va, uint32_t access, refgpu_read8_fn read8, void *arg,
		struct refgpu_walk_result *ret)
{
	struct refgpu_walk_table start = {.table = root, .depth = 0, .writable = true, .user = true};

	return refgpu_walk_from(fmt, &start, va, access, read8, arg, ret);
}
