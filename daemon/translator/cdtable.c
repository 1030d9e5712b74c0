/* SPDX-License-Identifier: MIT */
/* See cdtable.h. */
#include "translator/cdtable.h"

#include <assert.h>

#define CD_WORDS 8u
#define CD_BYTES (CD_WORDS * 8u)
#define LEAF_BITS 6u /* descriptors in a leaf of a page, two to the power of */
#define LEAF_CDS (1u << LEAF_BITS)

#define STE_VALID (UINT64_C(1) << 0)
#define STE_CONFIG_S1 (UINT64_C(5) << 1) /* the kernel adds the second stage */
#define STE_S1FMT_4K_LEAVES (UINT64_C(1) << 4)
#define STE_S1CDMAX_SHIFT 59
/* Word 1. What comes without a substream where there are some ends there: S1DSS 0. How descriptors are read: write-back,
 * inner shareable. No ATS: EATS 0. */
#define STE1_S1DSS_TERMINATE UINT64_C(0)
#define STE1_S1CIR_WBRA (UINT64_C(1) << 2)
#define STE1_S1COR_WBRA (UINT64_C(1) << 4)
#define STE1_S1CSH_INNER (UINT64_C(3) << 6)

#define L1_VALID (UINT64_C(1) << 0)

/* Word 0. 48 bits of input (T0SZ), 4 KiB granule (TG0 0), table walks write-back and inner shareable, no second table (EPD1),
 * little-endian; a fault is recorded (R) and ends the access with an error (A, and no S); the ASID is not one of a processor's
 * (ASET), for whose invalidations nobody asks. */
#define CD_T0SZ UINT64_C(16)
#define CD_IRGN0_WBWA (UINT64_C(1) << 8)
#define CD_ORGN0_WBWA (UINT64_C(1) << 10)
#define CD_SH0_INNER (UINT64_C(3) << 12)
#define CD_EPD1 (UINT64_C(1) << 30)
#define CD_VALID (UINT64_C(1) << 31)
#define CD_IPS_SHIFT 32
#define CD_AA64 (UINT64_C(1) << 41)
#define CD_RECORD (UINT64_C(1) << 45)
#define CD_ABORT (UINT64_C(1) << 46)
#define CD_ASET (UINT64_C(1) << 47)
#define CD_ASID_SHIFT 48
#define CD_SAME \
	(CD_T0SZ | CD_IRGN0_WBWA | CD_ORGN0_WBWA | CD_SH0_INNER | CD_EPD1 | CD_AA64 | CD_RECORD | CD_ABORT | CD_ASET)
#define CD_WORD_TTB0 1u
#define CD_WORD_MAIR 3u
/* Attribute 0: normal memory, write-back, allocating; 1: device memory, nGnRE. As pgtable/vmsa64.c counts them. */
#define CD_MAIR UINT64_C(0x04ff)

static bool has_levels(unsigned int bits, bool two_levels)
{
	return two_levels && bits > LEAF_BITS;
}

static size_t leaves(unsigned int bits)
{
	return (size_t)1 << (bits - LEAF_BITS);
}

/* The table above the leaves, in pages. */
static size_t top_bytes(unsigned int bits)
{
	size_t bytes = leaves(bits) * sizeof(uint64_t);

	return (bytes + CDTABLE_PAGE - 1) / CDTABLE_PAGE * CDTABLE_PAGE;
}

size_t cdtable_bytes(unsigned int bits, bool two_levels)
{
	size_t line = ((size_t)1 << bits) * CD_BYTES;

	if (has_levels(bits, two_levels))
		return top_bytes(bits) + line;
	return line < CDTABLE_PAGE ? CDTABLE_PAGE : line;
}

void cdtable_entry(const struct cdtable *t, uint64_t entry[2])
{
	entry[0] = STE_VALID | STE_CONFIG_S1 | t->bus | (uint64_t)t->bits << STE_S1CDMAX_SHIFT |
		   (has_levels(t->bits, t->two_levels) ? STE_S1FMT_4K_LEAVES : 0);
	entry[1] = STE1_S1DSS_TERMINATE | STE1_S1CIR_WBRA | STE1_S1COR_WBRA | STE1_S1CSH_INNER;
}

static uint64_t *descriptor(const struct cdtable *t, uint32_t substream)
{
	size_t skip = has_levels(t->bits, t->two_levels) ? top_bytes(t->bits) : 0;

	assert(substream >> t->bits == 0);
	return (uint64_t *)((uint8_t *)t->p + skip + (size_t)substream * CD_BYTES);
}

bool cdtable_valid(const struct cdtable *t, uint32_t substream)
{
	return __atomic_load_n(descriptor(t, substream), __ATOMIC_RELAXED) & CD_VALID;
}

bool cdtable_has(const struct cdtable *t, uint32_t substream, uint32_t asid)
{
	return cdtable_valid(t, substream) &&
	       __atomic_load_n(descriptor(t, substream), __ATOMIC_RELAXED) >> CD_ASID_SHIFT == asid;
}

bool cdtable_get(const struct cdtable *t, uint32_t substream, uint32_t *asid, uint64_t *ttbr0)
{
	const uint64_t *top = (const uint64_t *)t->p + (substream >> LEAF_BITS);
	const uint64_t *cd = descriptor(t, substream);

	if (has_levels(t->bits, t->two_levels) && !(__atomic_load_n(top, __ATOMIC_RELAXED) & L1_VALID))
		return false;
	*asid = (uint32_t)(__atomic_load_n(cd, __ATOMIC_ACQUIRE) >> CD_ASID_SHIFT);
	*ttbr0 = __atomic_load_n(&cd[CD_WORD_TTB0], __ATOMIC_RELAXED);
	return cdtable_valid(t, substream);
}

/* SMMU_IDR5.OAS and CD.IPS have the same code. */
static uint64_t size_code(unsigned int address_bits)
{
	return address_bits <= 40 ? (address_bits - 32) / 4 : (address_bits - 42) / 2 + 3 - (address_bits == 48);
}

/* The leaf is all zeros the first time, which is a line of descriptors that are not valid. It stays linked. */
static void link_leaf(const struct cdtable *t, uint32_t substream)
{
	uint64_t *top = (uint64_t *)t->p + (substream >> LEAF_BITS);
	uint64_t leaf = t->bus + top_bytes(t->bits) + (uint64_t)(substream >> LEAF_BITS) * CDTABLE_PAGE;

	__atomic_store_n(top, leaf | L1_VALID, __ATOMIC_RELEASE);
}

/*
 * The SMMU reads descriptors and tables as another observer in the inner shareable domain: that is how the entry has it read
 * them (S1CSH, SH0), and the kernel nests only behind SMMUs that are coherent (IHI 0070, SMMU_IDR0.COHACC). It takes a
 * descriptor's 64 bytes in any order and need not take them at once, which is why nothing but V may change while V is set,
 * and why the SMMU is told before and after V is. C11's releases order our stores for such an observer (DDI 0487, B2.3 "Barrier-ordered-before": STLR, DMB ISH; on x86, whose
 * stores stay in order, nothing is needed): V is seen set after all that stands below it, and what is stored after the
 * clearing is not seen before it. The system call that has the SMMU forget its copy comes behind either: the kernel orders
 * its command after what this processor stored before. tests/unit/test_ordering.py looks for the instructions.
 */
void cdtable_clear(struct cdtable *t, uint32_t substream)
{
	uint64_t *cd = descriptor(t, substream);

	__atomic_store_n(cd, 0, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

void cdtable_fill(struct cdtable *t, uint32_t substream, uint64_t ttbr0)
{
	uint64_t *cd = descriptor(t, substream);

	__atomic_store_n(&cd[CD_WORD_TTB0], ttbr0, __ATOMIC_RELAXED);
	__atomic_store_n(&cd[CD_WORD_MAIR], CD_MAIR, __ATOMIC_RELAXED);
	if (has_levels(t->bits, t->two_levels))
		link_leaf(t, substream);
}

void cdtable_validate(struct cdtable *t, uint32_t substream, uint32_t asid)
{
	uint64_t *cd = descriptor(t, substream);
	uint64_t word0 =
		CD_SAME | CD_VALID | size_code(t->address_bits) << CD_IPS_SHIFT | (uint64_t)asid << CD_ASID_SHIFT;

	__atomic_store_n(cd, word0, __ATOMIC_RELEASE);
}
