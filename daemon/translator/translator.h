/* SPDX-License-Identifier: MIT */
/*
 * A translator is told which address space runs where: install and remove on a slot, invalidate, faults. It may be the
 * GPU's own MMU (its driver offers it), context descriptors of an SMMU, or the kernel's attach of a PASID or a domain.
 * It never holds tables; it is told their root.
 *
 * Nothing here waits. An invalidation gives a ticket; it is complete once translator_invalidated() has reached it,
 * which is worth a look after every interrupt.
 */
#ifndef TRANSLATOR_TRANSLATOR_H
#define TRANSLATOR_TRANSLATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/range.h"

struct translator;
struct transport_space;

struct translator_fault {
	unsigned int slot;
	uint32_t asid;
	uint64_t addr; /* IOVA */
	uint32_t access; /* 1 read, 2 write, 4 fetch */
	uint32_t code; /* enum pasid_fault_code */
	uint64_t job; /* number as submitted; what the device says */
	bool stalled; /* the slot waits for engine control RESUME, TERMINATE or STOP */
};

/* An address space, as whoever translates wants it named. */
struct translator_space {
	uint32_t pasid, asid;
	uint64_t root; /* bus address of its tables, where they are ours */
	struct transport_space *kernel; /* the kernel's own */
};

struct translator_ops {
	/* The address space is current on the slot from the next job on. Its owner has seen to it that the slot is idle. 0;
	 * 1: it will be, once `ready` says so, and no job may begin before; -EAGAIN (the slot's ring is full, or the
	 * kernel has enough to do). */
	int (*install)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Takes the address space away from the slot, so that it may be freed. 0: it is not there; 1: it is leaving, ask
	 * again; -EAGAIN, as above; -EIO: nobody knows what is current there. NULL: whoever stops the slot has done it. */
	int (*remove)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Is what install said 1 of current there? 1; 0: not yet; -EIO: nobody knows what is; otherwise -errno: it is not,
	 * and will not be. NULL: it always is. */
	int (*ready)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Begins to forget n ranges of asid, or all of it if n is 0. 0 and a ticket, or -EAGAIN (the queue is full). This
	 * and the next two are NULL where the kernel keeps the tables: it does so when it unmaps, and tells of no faults. */
	int (*invalidate)(struct translator *t, uint32_t asid, const struct range *r, size_t n, uint64_t *ticket);
	/* The highest ticket that is complete with all before it: no access begun under what they named still goes on.
	 * 0 and the ticket, or -EPROTO if what the device wrote cannot be. */
	int (*invalidated)(struct translator *t, uint64_t *ticket);
	/* 1 and a fault, 0 if there is none, -EPROTO as above. *lost rises by the faults that the device dropped. */
	int (*next_fault)(struct translator *t, struct translator_fault *ret, uint64_t *lost);
	size_t max_ranges; /* in one invalidate */
};

/* Embedded by whoever provides one. */
struct translator {
	const struct translator_ops *ops;
};

/* As ops->invalidate, for any number of ranges in ascending or any order: neighbours are merged, and where too many are
 * left the whole ASID is invalidated instead. r is scratch afterwards. */
int translator_invalidate(struct translator *t, uint32_t asid, struct range *r, size_t n, uint64_t *ticket);

#endif
