/* SPDX-License-Identifier: MIT */
/*
 * The translator of a device behind an Arm SMMUv3 whose first stage is ours (mode `nested`): an address space is installed
 * by storing its TTBR0 and ASID into a context descriptor. Without substreams there is one, and one slot; with them each
 * PASID has its own, where it stays until its context ends.
 *
 * Source: Arm System Memory Management Unit Architecture Specification, version 3 (Arm IHI 0070): registers (chapter 6),
 * commands (chapter 4), event records (chapter 7).
 */
#ifndef TRANSLATOR_SMMU_H
#define TRANSLATOR_SMMU_H

#include "translator/cdtable.h"
#include "translator/translator.h"
#include "transport/transport.h"

struct smmu_traits {
	unsigned int asid_bits;
	unsigned int address_bits; /* of bus addresses */
	unsigned int substream_bits;
	bool two_levels; /* of context descriptors */
	bool ranges; /* one command invalidates many pages */
	bool repeat; /* each invalidation has to be made twice */
};

#define SMMU_ADDRESS_BITS_MIN 40u /* of bus addresses: fewer leave too little to map */

/* What the SMMU can do. NULL, or why it cannot do what we need: a sentence without its subject. */
const char *smmu_judge(const struct transport_smmu *smmu, struct smmu_traits *ret);

/* table: its memory is zeroed, or a predecessor's, and known to the SMMU already. device: tells the device which PASID is whose (a driver that
 * tags); NULL: there are no substreams. Both live as long. */
int smmu_new(struct translator **ret, struct transport *t, const struct smmu_traits *traits,
	     const struct cdtable *table, struct translator *device);
/* For a successor, whose table's memory a predecessor has filled: it may have died between a store and the word about it.
 * Descriptors that are not right are cleared, the SMMU forgets all that it remembers, and has what is in memory from now
 * on; the TLB is left alone. 0, or -EIO: ask again. */
int smmu_adopted(struct translator *t, bool (*right)(void *arg, uint32_t substream, uint32_t asid, uint64_t ttbr0),
		 void *arg);
struct translator *smmu_free(struct translator *t); /* takes NULL, returns NULL */

#endif
