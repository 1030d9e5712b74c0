/* SPDX-License-Identifier: MIT */
/*
 * An address space: who has mapped what where. Mappings are disjoint, keyed by their last byte, so that one lookup
 * finds the one that contains an address or the next one above it. Books only: no I/O, no page tables, no clock.
 *
 * A change comes as a list of operations. aspace_plan() does every check and takes everything that the change needs;
 * then the books already show the result and nothing that is left can fail. The caller lets the page tables follow
 * (plan_steps), then calls plan_commit(), or plan_undo() to have the books as they were. One plan at a time per address
 * space.
 */
#ifndef CORE_ASPACE_H
#define CORE_ASPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/range.h>

#include "base/itree.h"
#include "core/buffer.h"
#include "core/error.h"

#define ASPACE_PAGE 4096u
#define ASPACE_TAKE_MAX 16384u /* mappings that one list may take away: about a millisecond */

struct mapping {
	struct itree_node node; /* in aspace.tree; node.first..node.last is the IOVA range */
	struct buffer *buf; /* counted in buf->uses */
	uint64_t off; /* into buf, of the first byte */
	uint32_t owner; /* context id; differs within one address space in `global` mode only */
	uint16_t made; /* private: its place in the open plan's list of new mappings, from 1; 0: not new */
	bool writable;
	bool rest; /* of one that the open plan made: it is what stays of a mapping from before the plan */
};

struct mapping_slab;
struct plan;

struct aspace {
	struct itree tree;
	struct range aperture; /* usable IOVAs, page-aligned */
	uint64_t guard; /* bytes left free around a range that we choose */
	uint64_t count; /* mappings */
	uint64_t bytes; /* mapped */
	/* Private. */
	uint64_t cursor; /* addresses of our choice are sought from here on first */
	struct mapping_slab *slabs; /* those with room */
	struct plan *plan; /* the open one */
	uint32_t owner; /* of all mappings, unless mixed */
	bool mixed; /* mappings of more than one owner may be there */
};

enum aspace_kind { ASPACE_MAP, ASPACE_UNMAP };

struct aspace_op {
	enum aspace_kind kind;
	bool fixed; /* map: at iova; otherwise any address, which is written to iova */
	bool writable; /* map */
	struct buffer *buf; /* map */
	uint64_t off; /* map */
	uint64_t iova;
	uint64_t len;
};

/* What page tables have to do, in this order. Adjacent steps may have been merged where that changes nothing. */
struct aspace_step {
	enum aspace_kind kind;
	bool writable; /* map */
	struct range iova;
	uint64_t bus; /* map: bus address of iova.first */
};

void aspace_init(struct aspace *as, struct range aperture, uint64_t guard);
/* Drops all mappings (their buffers' uses sink) and returns the memory; no plan is open. The owner looks after page
 * tables and buffers. */
void aspace_fini(struct aspace *as);

/*
 * Judges ops in order, each on top of the ones before it, and applies them to the books for context `owner`. 0 and a
 * plan, or -errno with *why filled (index and all) and nothing changed; ops[].iova of maps that are not fixed is
 * filled (also of those before the one that is refused).
 * Refusals, the first that holds: TOO_MANY (n beyond PASID_BIND_MAX), EMPTY (also n == 0), UNALIGNED (iova, off, len by
 * 4096), WRAPS (iova, off), BUFFER_END, READ_ONLY, APERTURE (maps and unmaps), OVERLAP (n1..n2 the mapping in the way,
 * the lowest if there are several), NO_ROOM, NOT_MAPPED (an unmap must be covered by mappings of `owner` without a
 * hole; n1..n2 is the first hole, clipped to the range, and cut short after 64 mappings of others), UNMAPS_MANY (the list
 * would take away more than ASPACE_TAKE_MAX mappings), QUOTA_MEMORY. iova
 * counts only for unmaps and fixed maps, buf, off and writable only for maps.
 * An unmap may cut mappings; cutting the middle of one makes two of it.
 * A map that is not fixed goes to a free range with `guard` bytes free on both sides (or the aperture's end), aligned
 * to 2 MiB (1 GiB) if it is at least that long and its bus address is aligned so, to 4 KiB otherwise or where there is
 * no such range; an IOVA that was just freed is preferably not given out again at once.
 * A buffer's uses count the plan's new mappings at once, and those that it removes until plan_commit().
 */
int aspace_plan(struct aspace *as, uint32_t owner, struct aspace_op *ops, size_t n, struct plan **ret,
		struct refusal *why);

const struct aspace_step *plan_steps(const struct plan *p, size_t *n);
/* How many mappings more (or less, negative) the address space has with the plan, and the most on the way there (>= 0),
 * counted between operations. */
int64_t plan_mappings(const struct plan *p, int64_t *peak);
/* True if a page that the plan unmaps is mapped again by it: the tables must break before they make. */
bool plan_replaces(const struct plan *p);

/* What a plan comes to, until it ends: the mappings from before it that are gone, in no order (the next one after m, NULL
 * the first; NULL: that was the last), and those that are new, of which some may be NULL. What it mapped and unmapped again
 * is in neither. A new mapping that is the rest of one that is gone lies within it and maps the same there. */
const struct mapping *plan_gone(const struct plan *p, const struct mapping *m);
struct mapping *const *plan_made(const struct plan *p, size_t *n);

/* Calls each() for every mapping that there was before the open plan; without one, for every mapping. In no order. */
void aspace_each_before(const struct aspace *as, void (*each)(void *arg, const struct mapping *m), void *arg);

/* Makes the change final and frees the plan. Calls unused(arg, buf) once for each buffer whose uses the plan brought to
 * 0 (not for one that had none before it); buf may be freed there, the address space must not be used. unused may be
 * NULL. */
void plan_commit(struct plan *p, void (*unused)(void *arg, struct buffer *buf), void *arg);
/* Puts the books back as they were and frees the plan. Cannot fail. Takes NULL. */
void plan_undo(struct plan *p);

/* Removes every mapping of `owner` and calls gone(arg, range) for each maximal run of adjacent ones, then
 * unused(arg, buf) as above. The calls must not use the address space. Returns the number of mappings removed. No plan
 * is open. gone and unused may be NULL. */
uint64_t aspace_drop_owner(struct aspace *as, uint32_t owner, void (*gone)(void *arg, struct range r),
			   void (*unused)(void *arg, struct buffer *buf), void *arg);

/* Memory for a mapping, from the address space's own slabs; for the plan's use. NULL if there is none. */
struct mapping *aspace_mapping_new(struct aspace *as);
void aspace_mapping_free(struct aspace *as, struct mapping *m);

/* The same by instalments: looks at most at `max` mappings (of whomever) from *from on, and moves *from behind them; gone is
 * called for each mapping by itself. Begins with *from 0. True if there are more to look at. */
bool aspace_drop_some(struct aspace *as, uint32_t owner, uint64_t *from, uint64_t max,
		      void (*gone)(void *arg, struct range r), void (*unused)(void *arg, struct buffer *buf),
		      void *arg);

/* The mapping that contains iova, or NULL. */
struct mapping *aspace_find(struct aspace *as, uint64_t iova);
/* The mapping of `owner` nearest to iova (containing it, or the smaller distance below or above; below if equal), or
 * NULL. It looks at most at 64 mappings in each direction. */
struct mapping *aspace_nearest(struct aspace *as, uint32_t owner, uint64_t iova);

#endif
