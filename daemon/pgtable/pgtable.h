/* SPDX-License-Identifier: MIT */
/*
 * An io-pgtable: one address space's translation, in the format that the device's MMU walks. Formats are Arm VMSAv8-64
 * stage 1 (4 KiB granule, 48 bit) and x86-64 4-level; a third one is one more file.
 *
 * Entries are written so that a walker that runs meanwhile sees the old entry or the new one: a table is filled before
 * it is linked (release store). Nothing is invalidated here: after an unmap the caller invalidates, and only then gives
 * the emptied tables back (pgtable_reclaim). Not thread-safe.
 */
#ifndef PGTABLE_PGTABLE_H
#define PGTABLE_PGTABLE_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/range.h>

#include "pgtable/pool.h"

struct pgtable;
struct pgtable_format;

extern const struct pgtable_format pgtable_vmsa64;
extern const struct pgtable_format pgtable_x86_64;

/* What may be done with memory beside reading it, and what memory it is: a device's registers are not cached (which vmsa64 alone
 * says). */
enum pgtable_prot { PGTABLE_WRITABLE = 1, PGTABLE_DEVICE = 2 };

const char *pgtable_format_name(const struct pgtable_format *f); /* "vmsa64", "x86-64" */
uint64_t pgtable_format_page_sizes(const struct pgtable_format *f); /* bit per block size */
uint64_t pgtable_format_iova_last(const struct pgtable_format *f); /* highest IOVA: 2^48-1; x86-64: 2^47-1 */

/* Takes one page (the root) of the pool, unpromised. 0, -EAGAIN and -ENOSPC as table_pool_reserve(), -ENOMEM. */
int pgtable_new(struct pgtable **ret, const struct pgtable_format *f, struct table_pool *pool);

struct pgtable_leaf;

/*
 * Takes over what a predecessor left at `root`, in a pool adopted from it. Every entry is judged: each must be one that the
 * format writes, and each table a page of the pool's that is in no other place. `leaf` is called for each page or block, in
 * ascending order; what it returns, if not 0, ends it and is returned. Whoever died may have been in the middle of a change:
 * then some of it is there, and tables that it has just emptied are unlinked now and wait for pgtable_reclaim().
 * 0; -EBADMSG: this cannot be trusted; -ENOMEM. Unless it is 0 nothing was taken and nothing changed.
 */
int pgtable_adopt(struct pgtable **ret, const struct pgtable_format *f, struct table_pool *pool, uint64_t root,
		  int (*leaf)(void *arg, const struct pgtable_leaf *l), void *arg);
/* Gives all pages back at once: the device must have forgotten them. Takes NULL, returns NULL. */
struct pgtable *pgtable_free(struct pgtable *pt);

uint64_t pgtable_root(const struct pgtable *pt); /* bus address, for TTBR or CR3 */
uint32_t pgtable_pages(const struct pgtable *pt); /* table pages held, the root and those not reclaimed included */

/* The most table pages that mapping r to `bus` may take, or unmapping r (where it cuts a block; at most 4). Arithmetic on
 * the addresses alone: it holds whatever happens to the tables in between, so the needs of a list of changes can be added
 * up beforehand. */
uint32_t pgtable_map_need(struct range r, uint64_t bus);
uint32_t pgtable_unmap_need(struct range r);
/* The pages that unmapping r takes as the tables are now: 0 unless it cuts a block. Good until the next map; for an unmap
 * that must go on when the pool has nothing left. Two short walks. */
uint32_t pgtable_unmap_need_now(const struct pgtable *pt, struct range r);

/*
 * Maps r, page-aligned, to bus addresses from `bus`, in the largest blocks that fit. *budget holds pages promised by
 * table_pool_reserve() and sinks by those taken; it is enough if it was at least pgtable_map_need(). 0, or -EEXIST with
 * nothing changed and *budget as it was if any byte of r is mapped already.
 */
int pgtable_map(struct pgtable *pt, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget);

/*
 * Unmaps r, page-aligned; parts that are not mapped are left alone. A block that r cuts is split: the caller has made
 * sure that nothing runs in this address space until the invalidation is complete (pgtable_splits() tells). Tables that
 * became empty are unlinked and kept aside until pgtable_reclaim(). Returns the number of bytes that were mapped.
 */
uint64_t pgtable_unmap(struct pgtable *pt, struct range r, uint32_t *budget);
bool pgtable_splits(const struct pgtable *pt, struct range r);

/* Gives the tables that unmaps have set aside back to the pool; the invalidation of what was unmapped is complete.
 * Returns how many. */
uint32_t pgtable_reclaim(struct pgtable *pt);

struct pgtable_leaf {
	struct range iova; /* of the page or block */
	uint64_t bus; /* of iova.first */
	uint64_t entry; /* the descriptor itself */
	uint32_t level; /* 0 is the root's */
	bool writable;
};

/* What iova translates to; false if nothing. */
bool pgtable_walk(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret);
/* The lowest page or block that ends at or above iova; false if there is none. */
bool pgtable_next(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret);

#define PGTABLE_LEVELS 4u

enum pgtable_kind { PGTABLE_NOTHING, PGTABLE_TABLE, PGTABLE_LEAF };

struct pgtable_level { /* one step of a walk */
	uint64_t at; /* bus address of the descriptor */
	uint64_t entry; /* the descriptor */
	uint64_t bus; /* that it points to */
	uint64_t size; /* bytes that it stands for */
	uint32_t level; /* 0 is the root's */
	uint32_t index; /* in its table */
	enum pgtable_kind kind;
	bool writable; /* a leaf */
};

/* The way from the root to iova, as the device would take it; how many steps. The last one is a leaf, or nothing. */
unsigned int pgtable_levels(const struct pgtable *pt, uint64_t iova, struct pgtable_level v[PGTABLE_LEVELS]);
/* What a leaf says beside address and right to write, in words. */
const char *pgtable_attributes(const struct pgtable *pt, uint64_t entry);

#endif
