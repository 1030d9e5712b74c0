/* SPDX-License-Identifier: MIT */
/*
 * Address ranges as first and last byte, both inclusive, so that the top of the address space has a name and nothing
 * wraps. Whoever holds an address and a length that someone else chose turns them into a range here, or is told no.
 */
#ifndef PASID_RANGE_H
#define PASID_RANGE_H

#include <stdbool.h>
#include <stdint.h>

struct range {
	uint64_t first;
	uint64_t last; /* inclusive, >= first */
};

/* False if len is 0 or addr + len - 1 does not fit in 64 bits; *ret is untouched then. */
static inline bool range_make(struct range *ret, uint64_t addr, uint64_t len)
{
	if (len == 0 || addr + (len - 1) < addr)
		return false;
	ret->first = addr;
	ret->last = addr + (len - 1);
	return true;
}

/* Bytes in the range; 0 stands for 2^64. */
static inline uint64_t range_len(struct range r)
{
	return r.last - r.first + 1;
}

static inline bool range_contains(struct range outer, struct range inner)
{
	return inner.first >= outer.first && inner.last <= outer.last;
}

static inline bool range_overlaps(struct range a, struct range b)
{
	return a.first <= b.last && b.first <= a.last;
}

/* Both ends on a boundary of `size`, a power of two. */
static inline bool range_aligned(struct range r, uint64_t size)
{
	return (r.first & (size - 1)) == 0 && ((r.last + 1) & (size - 1)) == 0;
}

#endif
