/* SPDX-License-Identifier: MIT */
/*
 * The TLB and walk cache of the device: translations and tables by ASID, kept until they are invalidated.
 *
 * Nothing else makes it forget: no new TTBR, no slot switch, no lack of room (it grows). So an invalidation that a
 * driver left out shows. A walk that began before an invalidation never leaves its result behind after it: lookups
 * hand out the generation, and tlb_insert drops what comes with an old one. All calls may come from any thread.
 */
#ifndef REFGPU_TLB_H
#define REFGPU_TLB_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "tlb_space.h"
#include "walk.h"

#define TLB_ASIDS 65536u

struct tlb {
	pthread_mutex_t lock;
	uint64_t generation; /* of the last invalidation */
	struct tlb_space *space[TLB_ASIDS];
	uint64_t leaves; /* pages and blocks remembered now */
	struct refgpu_status *status;
};

struct tlb_answer {
	bool hit; /* base, size, writable and depth are those of a page or block */
	uint64_t base;
	uint64_t size;
	bool writable;
	uint32_t depth;
	bool cached; /* no hit, but a walk may start at `table` */
	struct refgpu_walk_table table;
	uint64_t generation;
};

/* status may be NULL: where to keep tlb_entries. */
void tlb_init(struct tlb *t, struct refgpu_status *status);
void tlb_fini(struct tlb *t);

void tlb_lookup(struct tlb *t, uint16_t asid, uint64_t va, struct tlb_answer *ret);

/* Remembers the tables of a walk, whether or not it found a page. */
void tlb_insert_tables(struct tlb *t, uint16_t asid, uint64_t va, const struct refgpu_walk_result *walk,
		       uint64_t generation);
/* Remembers a page or block; -EEXIST if one of another size overlaps it (then nothing changes). */
int tlb_insert(struct tlb *t, uint16_t asid, uint64_t va, const struct refgpu_walk_result *walk, uint64_t generation);

/* After these, no lookup gives what was there before; accesses that already looked up are the caller's business. */
void tlb_invalidate_range(struct tlb *t, uint16_t asid, uint64_t first, uint64_t last);
void tlb_invalidate_asid(struct tlb *t, uint16_t asid);
void tlb_invalidate_all(struct tlb *t);

#endif
