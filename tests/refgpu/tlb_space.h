/* SPDX-License-Identifier: MIT */
/*
 * What the TLB remembers of one ASID: pages, blocks and tables, in one hash that grows.
 *
 * A key says what it is (kind) and where (address divided by the kind's span). Nothing leaves but by the calls here;
 * running out of memory means that something is not remembered, never that something wrong is.
 */
#ifndef REFGPU_TLB_SPACE_H
#define REFGPU_TLB_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tlb_kind {
	TLB_LEAF_1G = 1, /* leaf kinds: the depth of the table that held the entry */
	TLB_LEAF_2M = 2,
	TLB_LEAF_4K = 3,
	TLB_TABLE_512G = 4, /* table kinds: 4 + the depth of the table that held the entry */
	TLB_TABLE_1G = 5,
	TLB_TABLE_2M = 6,
	TLB_KINDS = 7,
};

struct tlb_cell {
	uint64_t key; /* 0: empty */
	uint64_t val;
};

struct tlb_space {
	struct tlb_cell *cells;
	size_t size; /* a power of two, or 0 */
	size_t used;
	size_t count[TLB_KINDS];
};

/* NULL, or what `kind` remembers for the address; valid until the next change. */
const uint64_t *tlb_space_get(const struct tlb_space *s, enum tlb_kind kind, uint64_t va);
/* Remembers; returns 1 if the kind has one entry more, 0 if one was replaced, -ENOMEM if there is no room. */
int tlb_space_put(struct tlb_space *s, enum tlb_kind kind, uint64_t va, uint64_t val);
/* Whether anything of this kind lies in first..last. */
bool tlb_space_any(const struct tlb_space *s, enum tlb_kind kind, uint64_t first, uint64_t last);
/* Forgets all that overlaps first..last; returns the number of leaf entries forgotten. */
size_t tlb_space_drop(struct tlb_space *s, uint64_t first, uint64_t last);
size_t tlb_space_leaves(const struct tlb_space *s);
void tlb_space_fini(struct tlb_space *s);

#endif
