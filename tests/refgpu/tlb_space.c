/* SPDX-License-Identifier: MIT */
/*
 * The hash behind one ASID of the TLB: open addressing, linear probing, removal by moving the followers up.
 *
 * A range is looked through whichever way is shorter: by its pages, or by the cells. Addresses are 48 bits here: the
 * upper half of x86-64's canonical addresses keeps apart from the lower by bit 47.
 */
#include "tlb_space.h"

#include <errno.h>
#include <stdlib.h>

#define ADDRESS_MASK ((UINT64_C(1) << 48) - 1)
#define KEY_LIVE (UINT64_C(1) << 63)

static const uint8_t kind_shift[TLB_KINDS] = {
	[TLB_LEAF_1G] = 30,    [TLB_LEAF_2M] = 21,  [TLB_LEAF_4K] = 12,
	[TLB_TABLE_512G] = 39, [TLB_TABLE_1G] = 30, [TLB_TABLE_2M] = 21,
};

static uint64_t key_of(enum tlb_kind kind, uint64_t unit)
{
	return KEY_LIVE | unit << 3 | kind;
}

static enum tlb_kind key_kind(uint64_t key)
{
	return (enum tlb_kind)(key & 7);
}

static uint64_t key_unit(uint64_t key)
{
	return (key & ~KEY_LIVE) >> 3;
}

static uint64_t unit_of(enum tlb_kind kind, uint64_t va)
{
	return (va & ADDRESS_MASK) >> kind_shift[kind];
}

static size_t key_home(const struct tlb_space *s, uint64_t key)
{
	return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 24) & (s->size - 1);
}

/* The cell of the key, or the empty one where it would go. The space is never full. */
static size_t cell_find(const struct tlb_space *s, uint64_t key)
{
	size_t i = key_home(s, key);

	while (s->cells[i].key && s->cells[i].key != key)
		i = (i + 1) & (s->size - 1);
	return i;
}

static int space_resize(struct tlb_space *s, size_t size)
{
	struct tlb_space bigger = *s;
	size_t i;

	bigger.cells = calloc(size, sizeof(*bigger.cells));
	if (!bigger.cells)
		return -ENOMEM;
	bigger.size = size;
	for (i = 0; i < s->size; i++)
		if (s->cells[i].key)
			bigger.cells[cell_find(&bigger, s->cells[i].key)] = s->cells[i];
	free(s->cells);
	*s = bigger;
	return 0;
}

static void cell_remove(struct tlb_space *s, size_t hole)
{
	size_t mask = s->size - 1, i = hole, home;

	s->count[key_kind(s->cells[hole].key)]--;
	s->used--;
	for (;;) {
		s->cells[hole].key = 0;
		do {
			i = (i + 1) & mask;
			if (!s->cells[i].key)
				return;
			home = key_home(s, s->cells[i].key);
		} while (((i - home) & mask) < ((i - hole) & mask));
		s->cells[hole] = s->cells[i];
		hole = i;
	}
}

const uint64_t *tlb_space_get(const struct tlb_space *s, enum tlb_kind kind, uint64_t va)
{
	size_t i;

	if (!s->count[kind])
		return NULL;
	i = cell_find(s, key_of(kind, unit_of(kind, va)));
	return s->cells[i].key ? &s->cells[i].val : NULL;
}

int tlb_space_put(struct tlb_space *s, enum tlb_kind kind, uint64_t va, uint64_t val)
{
	uint64_t key = key_of(kind, unit_of(kind, va));
	size_t i;

	if (s->used * 2 >= s->size && space_resize(s, s->size ? s->size * 2 : 64))
		return -ENOMEM;
	i = cell_find(s, key);
	s->cells[i].val = val;
	if (s->cells[i].key)
		return 0;
	s->cells[i].key = key;
	s->used++;
	s->count[kind]++;
	return 1;
}

bool tlb_space_any(const struct tlb_space *s, enum tlb_kind kind, uint64_t first, uint64_t last)
{
	uint64_t u, lo = unit_of(kind, first), hi = unit_of(kind, last);
	size_t i;

	if (!s->count[kind])
		return false;
	if (hi - lo < s->size) {
		for (u = lo; u <= hi; u++)
			if (s->cells[cell_find(s, key_of(kind, u))].key)
				return true;
		return false;
	}
	for (i = 0; i < s->size; i++) {
		u = key_unit(s->cells[i].key);
		if (s->cells[i].key && key_kind(s->cells[i].key) == kind && u >= lo && u <= hi)
			return true;
	}
	return false;
}

/* Removal moves cells, also around the end: what is wanted no more is looked at again until the cell holds. */
static void kind_sweep(struct tlb_space *s, enum tlb_kind kind, uint64_t lo, uint64_t hi)
{
	bool moved = true;
	size_t i;
	uint64_t u;

	while (moved) {
		moved = false;
		for (i = 0; i < s->size; i++) {
			u = key_unit(s->cells[i].key);
			if (!s->cells[i].key || key_kind(s->cells[i].key) != kind || u < lo || u > hi)
				continue;
			cell_remove(s, i);
			moved = true;
			i--;
		}
	}
}

static void kind_drop(struct tlb_space *s, enum tlb_kind kind, uint64_t lo, uint64_t hi)
{
	uint64_t u;
	size_t i;

	if (!s->count[kind])
		return;
	if (hi - lo >= s->size) {
		kind_sweep(s, kind, lo, hi);
		return;
	}
	for (u = lo; u <= hi; u++) {
		i = cell_find(s, key_of(kind, u));
		if (s->cells[i].key)
			cell_remove(s, i);
	}
}

size_t tlb_space_leaves(const struct tlb_space *s)
{
	return s->count[TLB_LEAF_1G] + s->count[TLB_LEAF_2M] + s->count[TLB_LEAF_4K];
}

size_t tlb_space_drop(struct tlb_space *s, uint64_t first, uint64_t last)
{
	size_t before = tlb_space_leaves(s);
	int kind;

	/* A range over both halves of the canonical addresses, hole and all, is everything between in 48 bits. */
	if (last - first >= ADDRESS_MASK || (first & ADDRESS_MASK) > (last & ADDRESS_MASK)) {
		first = 0;
		last = ADDRESS_MASK;
	}
	for (kind = 1; kind < TLB_KINDS; kind++)
		kind_drop(s, (enum tlb_kind)kind, unit_of((enum tlb_kind)kind, first),
			  unit_of((enum tlb_kind)kind, last));
	return before - tlb_space_leaves(s);
}

void tlb_space_fini(struct tlb_space *s)
{
	free(s->cells);
	*s = (struct tlb_space){0};
}
