/* SPDX-License-Identifier: MIT */
/*
 * x86-64 4-level paging. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, section 4.5
 * "4-Level Paging and 5-Level Paging" (the formats of PML4E, PDPTE, PDE and PTE), 4.6 "Access Rights" and 4.8 "Accessed
 * and Dirty Flags".
 *
 * Level 0 is the PML4. Only the lower half of the canonical addresses is used, so an IOVA has 47 bits. Leaves are user
 * pages, never executable (the device needs EFER.NXE or what stands for it); memory type is PAT entry 0 (write-back at
 * reset). Accessed and dirty are set from the start, so that the device has nothing to write into the tables. A right
 * holds only if every level grants it, so tables grant all.
 */
#include "pgtable/format.h"

#define PRESENT (UINT64_C(1) << 0)
#define WRITABLE (UINT64_C(1) << 1)
#define USER (UINT64_C(1) << 2)
#define ACCESSED (UINT64_C(1) << 5)
#define DIRTY (UINT64_C(1) << 6)
#define PAGE_SIZE_BIT (UINT64_C(1) << 7) /* PDPTE, PDE: a block; in a PTE the same bit is PAT */
#define NO_EXECUTE (UINT64_C(1) << 63)
#define ADDRESS UINT64_C(0x000ffffffffff000)

#define FORMAT_TOP_BITS 47

static inline uint64_t format_leaf(unsigned level, uint64_t bus, uint32_t prot)
{
	return bus | PRESENT | (prot & PGTABLE_WRITABLE ? WRITABLE : 0) | USER | ACCESSED | DIRTY |
	       (level == 3 ? 0 : PAGE_SIZE_BIT) | NO_EXECUTE;
}

static inline uint64_t format_table(uint64_t bus)
{
	return bus | PRESENT | WRITABLE | USER | ACCESSED;
}

/* A PTE is never asked. */
static inline bool format_is_table(uint64_t entry)
{
	return !(entry & PAGE_SIZE_BIT);
}

static inline uint64_t format_bus(uint64_t entry)
{
	return entry & ADDRESS;
}

static inline uint32_t format_prot(uint64_t entry)
{
	return entry & WRITABLE ? PGTABLE_WRITABLE : 0;
}

static const char *format_attributes(uint64_t entry)
{
	return entry & NO_EXECUTE ? "user, accessed, dirty, never executed" : "user, accessed, dirty";
}

#include "pgtable/walk_template.h"

const struct pgtable_format pgtable_x86_64 = FORMAT_OPS("x86-64");
