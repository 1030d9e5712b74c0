/* SPDX-License-Identifier: MIT */
/*
 * x86-64 4-level entries, as a user-mode data access sees them: P, R/W and U/S count at every level.
 *
 * XD means nothing (commands are data), A and D are neither needed nor set. Reserved bits that are set (PS in a PML4
 * entry, address bits inside a large page other than PAT) are a translation fault; an output beyond 48 bits, which is
 * all that the bus has, is an address size fault.
 */
#include "walk.h"

#define ENTRY_PRESENT (UINT64_C(1) << 0)
#define ENTRY_WRITE (UINT64_C(1) << 1)
#define ENTRY_USER (UINT64_C(1) << 2)
#define ENTRY_LARGE (UINT64_C(1) << 7)
#define ENTRY_LARGE_PAT (UINT64_C(1) << 12)
#define ENTRY_ADDRESS UINT64_C(0x0000fffffffff000)
#define ENTRY_ADDRESS_HIGH UINT64_C(0x000f000000000000)

static bool x86_address_ok(uint64_t va)
{
	uint64_t top = va >> 47;

	return top == 0 || top == 0x1ffff;
}

static int x86_decode(uint32_t depth, uint64_t desc, struct refgpu_walk_entry *ret)
{
	bool large = depth < 3 && (desc & ENTRY_LARGE);
	uint64_t inside = refgpu_walk_span(depth) - 1;

	if (!(desc & ENTRY_PRESENT) || (large && depth == 0))
		return REFGPU_FAULT_TRANSLATION;
	if (large && (desc & ENTRY_ADDRESS & inside & ~ENTRY_LARGE_PAT))
		return REFGPU_FAULT_TRANSLATION;
	if (desc & ENTRY_ADDRESS_HIGH)
		return REFGPU_FAULT_ADDRESS_SIZE;
	ret->leaf = large || depth == 3;
	ret->out = desc & ENTRY_ADDRESS;
	if (large)
		ret->out &= ~inside;
	ret->writable = desc & ENTRY_WRITE;
	ret->user = desc & ENTRY_USER;
	return 0;
}

const struct refgpu_walk_ops refgpu_walk_x86 = {
	.address_ok = x86_address_ok,
	.decode = x86_decode,
};
