/* SPDX-License-Identifier: MIT */
/*
 * The context descriptors of one stream of an SMMUv3: what a stream table entry points at. Without substreams it is one
 * descriptor; with them one for each, in one line or, beyond a page, in leaves of a page with a table above them. A substream
 * is the PASID of a PCIe access.
 *
 * Descriptors lie in memory that the SMMU reads at any time, also ahead of need, and keeps copies of; what has to be said to
 * it after a store is smmu.c's affair. All fields but a few are the same for every context: the tables are what
 * pgtable/vmsa64.c makes, and nothing is privileged.
 *
 * Source: Arm System Memory Management Unit Architecture Specification, version 3 (Arm IHI 0070): "Stream Table Entry",
 * "Level 1 Context Descriptor", "Context Descriptor" (chapter 5); "Configuration structure invalidation considerations",
 * "Configuration cache" (chapters 3 and 4).
 */
#ifndef TRANSLATOR_CDTABLE_H
#define TRANSLATOR_CDTABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CDTABLE_PAGE 4096u

struct cdtable {
	void *p; /* cdtable_bytes() of memory, zeroed, page-aligned */
	uint64_t bus; /* where the SMMU finds it: a multiple of a power of two that is no less than cdtable_bytes() */
	unsigned int bits; /* of substreams; 0: there are none */
	bool two_levels; /* the SMMU knows them (SMMU_IDR0.CD2L) */
	unsigned int address_bits; /* of bus addresses: 32, 36, 40, 42, 44 or 48 */
};

size_t cdtable_bytes(unsigned int bits, bool two_levels);
/* The first two words of the stream table entry that points at it. */
void cdtable_entry(const struct cdtable *t, uint64_t entry[2]);
/* Whether the descriptor of a substream (0 where there are none) is valid in memory, and whether it is this ASID's. */
bool cdtable_valid(const struct cdtable *t, uint32_t substream);
bool cdtable_has(const struct cdtable *t, uint32_t substream, uint32_t asid);
/* Whether it is valid, and whose. Of a substream that nobody had there may be no memory yet, and none is taken. */
bool cdtable_get(const struct cdtable *t, uint32_t substream, uint32_t *asid, uint64_t *ttbr0);
/* One store, which no later one of ours overtakes. */
void cdtable_clear(struct cdtable *t, uint32_t substream);
/* Everything but the first word. The descriptor is not valid, and the SMMU has no copy of it that is. */
void cdtable_fill(struct cdtable *t, uint32_t substream, uint64_t ttbr0);
/* Makes it valid. The SMMU has no copy from before it was filled: one that is read in pieces would be half of that. */
void cdtable_validate(struct cdtable *t, uint32_t substream, uint32_t asid);

#endif
