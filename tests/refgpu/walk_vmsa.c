/* SPDX-License-Identifier: MIT */
/*
 * VMSAv8-64 stage 1 descriptors: 4 KiB granule, 48-bit input and output, one TTBR (the lower half of the addresses).
 *
 * GPU programs are unprivileged, so AP[1] and APTable[0] decide whether they may come in at all, AP[2] and APTable[1]
 * whether they may write. Commands are data here: XN and PXN mean nothing. Bits that the architecture reserves inside
 * a block's output address must be zero; an output beyond 48 bits is an address size fault.
 */
#include "walk.h"

#define DESC_VALID (UINT64_C(1) << 0)
#define DESC_TABLE_OR_PAGE (UINT64_C(1) << 1)
#define DESC_AP_EL0 (UINT64_C(1) << 6)
#define DESC_AP_READ_ONLY (UINT64_C(1) << 7)
#define DESC_AF (UINT64_C(1) << 10)
#define DESC_BLOCK_NT (UINT64_C(1) << 16)
#define DESC_APTABLE_NO_EL0 (UINT64_C(1) << 61)
#define DESC_APTABLE_READ_ONLY (UINT64_C(1) << 62)
#define DESC_ADDRESS UINT64_C(0x0000fffffffff000)
#define DESC_ADDRESS_HIGH UINT64_C(0x000f000000000000)

static bool vmsa_address_ok(uint64_t va)
{
	return va >> 48 == 0;
}

static int vmsa_table(uint64_t desc, struct refgpu_walk_entry *ret)
{
	if (desc & DESC_ADDRESS_HIGH)
		return REFGPU_FAULT_ADDRESS_SIZE;
	ret->leaf = false;
	ret->out = desc & DESC_ADDRESS;
	ret->writable = !(desc & DESC_APTABLE_READ_ONLY);
	ret->user = !(desc & DESC_APTABLE_NO_EL0);
	return 0;
}

static int vmsa_leaf(uint32_t depth, uint64_t desc, struct refgpu_walk_entry *ret)
{
	uint64_t inside = refgpu_walk_span(depth) - 1;

	if (desc & DESC_ADDRESS & inside & ~DESC_BLOCK_NT)
		return REFGPU_FAULT_TRANSLATION;
	if (desc & DESC_ADDRESS_HIGH)
		return REFGPU_FAULT_ADDRESS_SIZE;
	if (!(desc & DESC_AF))
		return REFGPU_FAULT_ACCESS_FLAG;
	ret->leaf = true;
	ret->out = desc & DESC_ADDRESS & ~inside;
	ret->writable = !(desc & DESC_AP_READ_ONLY);
	ret->user = desc & DESC_AP_EL0;
	return 0;
}

static int vmsa_decode(uint32_t depth, uint64_t desc, struct refgpu_walk_entry *ret)
{
	bool upper = desc & DESC_TABLE_OR_PAGE;

	if (!(desc & DESC_VALID))
		return REFGPU_FAULT_TRANSLATION;
	if (depth == 3)
		return upper ? vmsa_leaf(depth, desc, ret) : REFGPU_FAULT_TRANSLATION;
	if (upper)
		return vmsa_table(desc, ret);
	return depth == 0 ? REFGPU_FAULT_TRANSLATION : vmsa_leaf(depth, desc, ret);
}

const struct refgpu_walk_ops refgpu_walk_vmsa = {
	.address_ok = vmsa_address_ok,
	.decode = vmsa_decode,
};
