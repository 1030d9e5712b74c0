/* SPDX-License-Identifier: MIT */
/*
 * Arm VMSAv8-64 stage 1, 4 KiB granule, 48-bit addresses, four levels from level 0. Source: Arm Architecture Reference
 * Manual for A-profile (DDI 0487), chapter D8 "The AArch64 Virtual Memory System Architecture": "Translation table
 * descriptor formats" (D8.3; table, block and page descriptors), "Memory access control" (AP, UXN, PXN) and "Memory
 * region attributes" (SH, AttrIndx).
 *
 * What the device needs beside TTBR and ASID, the same for all tables: TCR with T0SZ 16, TG0 4 KiB, IRGN0 and ORGN0
 * write-back write-allocate, SH0 inner shareable, IPS 48 bit, EPD1 set; MAIR with attribute 0 = 0xff, normal memory,
 * write-back, read- and write-allocate, and attribute 1 = 0x04, device memory, nGnRE.
 *
 * Leaves are unprivileged, never executable, tagged with the ASID, and have the access flag set, so that the device has
 * nothing to write into the tables. Tables add no restriction of their own.
 */
#include "pgtable/format.h"

#define VALID (UINT64_C(1) << 0)
#define TABLE_OR_PAGE (UINT64_C(1) << 1) /* levels 0 to 2: a table, not a block; level 3: always set */
#define ATTR_INDEX_0 (UINT64_C(0) << 2)
#define ATTR_INDEX_1 (UINT64_C(1) << 2)
#define AP_UNPRIVILEGED (UINT64_C(1) << 6) /* AP[1] */
#define AP_READ_ONLY (UINT64_C(1) << 7) /* AP[2] */
#define SH_INNER (UINT64_C(3) << 8)
#define ACCESS_FLAG (UINT64_C(1) << 10)
#define NOT_GLOBAL (UINT64_C(1) << 11)
#define PXN (UINT64_C(1) << 53)
#define UXN (UINT64_C(1) << 54)
#define ADDRESS UINT64_C(0x0000fffffffff000)

#define FORMAT_TOP_BITS 48

static inline uint64_t format_leaf(unsigned level, uint64_t bus, uint32_t prot)
{
	return bus | VALID | (level == 3 ? TABLE_OR_PAGE : 0) | (prot & PGTABLE_DEVICE ? ATTR_INDEX_1 : ATTR_INDEX_0) |
	       AP_UNPRIVILEGED | (prot & PGTABLE_WRITABLE ? 0 : AP_READ_ONLY) | SH_INNER | ACCESS_FLAG | NOT_GLOBAL |
	       PXN | UXN;
}

static inline uint64_t format_table(uint64_t bus)
{
	return bus | VALID | TABLE_OR_PAGE;
}

/* Level 3 is never asked. */
static inline bool format_is_table(uint64_t entry)
{
	return entry & TABLE_OR_PAGE;
}

static inline uint64_t format_bus(uint64_t entry)
{
	return entry & ADDRESS;
}

static inline uint32_t format_prot(uint64_t entry)
{
	return (entry & AP_READ_ONLY ? 0 : PGTABLE_WRITABLE) | (entry & ATTR_INDEX_1 ? PGTABLE_DEVICE : 0);
}

static const char *format_attributes(uint64_t entry)
{
	return entry & ATTR_INDEX_1 ? "device memory, unprivileged, never executed, of this ASID"
				    : "normal memory, unprivileged, never executed, of this ASID";
}

#include "pgtable/walk_template.h"

const struct pgtable_format pgtable_vmsa64 = FORMAT_OPS("vmsa64");
