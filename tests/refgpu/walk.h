/* SPDX-License-Identifier: MIT */
/*
 * The page-table walkers: from a GPU virtual address to a bus address, for both formats.
 *
 * Pure functions: no state, no TLB, no memory but what read8 gives. They share no code with the daemon's tables, so
 * that a wrong idea there cannot cancel out here. Tables are never written: x86-64 A/D bits stay as they are.
 */
#ifndef REFGPU_WALK_H
#define REFGPU_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/refgpu.h>

/* Depth counts tables from the root: 0 is the root, 3 the last one. VMSA level is depth, x86-64 level 4 - depth. */
#define REFGPU_WALK_DEPTHS 4u

/* A table that a walk stands at, with the rights that the entries above it left. */
struct refgpu_walk_table {
	uint64_t table; /* bus address */
	uint32_t depth;
	bool writable;
	bool user; /* unprivileged accesses are allowed */
};

struct refgpu_walk_result {
	uint64_t bus; /* bus address of va itself */
	uint64_t base; /* bus address of the first byte of the page or block */
	uint64_t size; /* of the page or block: 4 KiB, 2 MiB or 1 GiB */
	bool writable;
	uint32_t level; /* where the walk ended, in the format's own numbers; 0 where none was made */
	uint32_t fault; /* enum refgpu_fault_code, 0: none */
	uint32_t n_tables;
	struct refgpu_walk_table
		tables[REFGPU_WALK_DEPTHS - 1]; /* below the starting point, top down; also on a fault */
};

/* Reads the 8 bytes at a bus address; 0, or negative where nothing is there. */
typedef int (*refgpu_read8_fn)(void *arg, uint64_t bus, uint64_t *val);

/*
 * Walks the tables at `root` (a bus address; 0 is not special here) for an access (enum refgpu_access, may be or'ed).
 * Returns 0, or the fault code that is also in ret->fault. A negative answer of read8 is REFGPU_FAULT_BUS. ret is
 * filled in either case; bus, base, size and writable mean something for 0 and REFGPU_FAULT_PERMISSION only.
 *
 * Source: Arm ARM (DDI 0487) D8.3, stage 1, 4 KiB granule, 48-bit addresses; Intel SDM volume 3A, 4.5.
 */
int refgpu_walk(enum refgpu_format fmt, uint64_t root, uint64_t va, uint32_t access, refgpu_read8_fn read8, void *arg,
		struct refgpu_walk_result *ret);

/* The same from a table further down: what a walk cache remembers. */
int refgpu_walk_from(enum refgpu_format fmt, const struct refgpu_walk_table *start, uint64_t va, uint32_t access,
		     refgpu_read8_fn read8, void *arg, struct refgpu_walk_result *ret);

/* The format's number for a depth. */
uint32_t refgpu_walk_level(enum refgpu_format fmt, uint32_t depth);

/* Bytes that one entry of a table at this depth covers. */
static inline uint64_t refgpu_walk_span(uint32_t depth)
{
	return UINT64_C(1) << (39 - 9 * depth);
}

/* What one descriptor says; the formats' half of the walk. */
struct refgpu_walk_entry {
	bool leaf;
	uint64_t out; /* the next table, or the first byte of the page or block */
	bool writable;
	bool user;
};

struct refgpu_walk_ops {
	bool (*address_ok)(uint64_t va);
	/* Returns 0 or a fault code other than permission, which is judged once, at the end. */
	int (*decode)(uint32_t depth, uint64_t desc, struct refgpu_walk_entry *ret);
};

extern const struct refgpu_walk_ops refgpu_walk_vmsa;
extern const struct refgpu_walk_ops refgpu_walk_x86;

#endif
