/* SPDX-License-Identifier: MIT */
/*
 * Golden descriptors, typed by hand from the two manuals, never computed by either implementation:
 *
 *   Arm:   Architecture Reference Manual for A-profile (DDI 0487), chapter D8, "Translation table descriptor formats"
 *          (D8.3), "Memory access control" (AP and APTable), "Hardware updates to the translation tables" (the access
 *          flag); 4 KiB granule, 48-bit addresses.
 *   Intel: Software Developer's Manual, volume 3A, 4.5 "4-Level Paging and 5-Level Paging" (the tables named "Format of
 *          a ... Entry"), 4.6 "Access Rights", 4.7 "Page-Fault Exceptions" (reserved bits), MAXPHYADDR 48.
 *
 * First list: what the io-pgtables must write for chosen maps. Second list: what a descriptor means, asked of the
 * reference GPU's walker, all levels above it being plain. No constant here is shared with either of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/util.h"
#include "pgtable/pgtable.h"
#include "refgpu/walk.h"

#define ROOT UINT64_C(0x80000000)

/* ---- What is written ------------------------------------------------------------------------------------------- */

/*
 * A map in a fresh io-pgtable whose pool starts at ROOT, so that the tables are at 0x80000000, 0x80001000, ... in the
 * order of their levels; then the descriptor that must stand in entry `index` of the table at `table`.
 */
struct written {
	const struct pgtable_format *format;
	uint64_t iova, bytes, bus;
	bool writable;
	uint64_t table;
	unsigned index;
	uint64_t value;
	const char *what;
};

#define ARM &pgtable_vmsa64
#define INTEL &pgtable_x86_64

/* clang-format off */
static const struct written written[] = {
	/* Arm. Page: bits 1:0 = 11, AttrIndx 4:2 = 0, AP[2:1] 7:6, SH 9:8 = 11, AF 10, nG 11, PXN 53, UXN 54. */
	{ ARM, 0, 0x1000, 0x0, true, 0x80000000, 0, 0x0000000080001003, "table, level 0" },
	{ ARM, 0, 0x1000, 0x0, true, 0x80001000, 0, 0x0000000080002003, "table, level 1" },
	{ ARM, 0, 0x1000, 0x0, true, 0x80002000, 0, 0x0000000080003003, "table, level 2" },
	{ ARM, 0, 0x1000, 0x0, true, 0x80003000, 0, 0x0060000000000f43, "page, bus 0" },
	{ ARM, 0, 0x1000, 0x0, true, 0x80003000, 1, 0, "neighbour stays invalid" },
	{ ARM, 0x7000, 0x1000, 0x123456789000, true, 0x80003000, 7, 0x0060123456789f43, "page, rw" },
	{ ARM, 0x7000, 0x1000, 0x123456789000, false, 0x80003000, 7, 0x0060123456789fc3, "page, ro" },
	{ ARM, 0xfffffffff000, 0x1000, 0xfffffffff000, true, 0x80003000, 511, 0x0060ffffffffff43, "last page" },
	{ ARM, 0xfffffffff000, 0x1000, 0xfffffffff000, true, 0x80000000, 511, 0x80001003, "last root entry" },
	{ ARM, 0x200000, 0x200000, 0x40200000, true, 0x80002000, 1, 0x0060000040200f41, "2 MiB block, rw" },
	{ ARM, 0x200000, 0x200000, 0x40200000, false, 0x80002000, 1, 0x0060000040200fc1, "2 MiB block, ro" },
	{ ARM, 0x200000, 0x200000, 0x40201000, true, 0x80003000, 511, 0x0060000040400f43, "no block: bus unaligned" },
	{ ARM, 0x40000000, 0x40000000, 0x1c0000000, true, 0x80001000, 1, 0x00600001c0000f41, "1 GiB, rw" },
	{ ARM, 0x40000000, 0x40000000, 0x1c0000000, false, 0x80001000, 1, 0x00600001c0000fc1, "1 GiB block, ro" },
	{ ARM, 0x40000000, 0x40000000, 0x1c0200000, true, 0x80002000, 511, 0x0060000200000f41, "2 MiB: unaligned" },
	{ ARM, 0x8000000000, 0x1000, 0x1000, true, 0x80000000, 1, 0x0000000080001003, "second 512 GiB" },

	/* Intel. P 0, R/W 1, U/S 2, A 5, D 6, PS 7 (PDPTE, PDE), XD 63. */
	{ INTEL, 0, 0x1000, 0x0, true, 0x80000000, 0, 0x0000000080001027, "PML4E" },
	{ INTEL, 0, 0x1000, 0x0, true, 0x80001000, 0, 0x0000000080002027, "PDPTE, table" },
	{ INTEL, 0, 0x1000, 0x0, true, 0x80002000, 0, 0x0000000080003027, "PDE, table" },
	{ INTEL, 0, 0x1000, 0x0, true, 0x80003000, 0, 0x8000000000000067, "PTE, bus 0" },
	{ INTEL, 0, 0x1000, 0x0, true, 0x80003000, 1, 0, "neighbour stays not present" },
	{ INTEL, 0x7000, 0x1000, 0x123456789000, true, 0x80003000, 7, 0x8000123456789067, "PTE, rw" },
	{ INTEL, 0x7000, 0x1000, 0x123456789000, false, 0x80003000, 7, 0x8000123456789065, "PTE, ro" },
	{ INTEL, 0x7000, 0x1000, 0x1000, false, 0x80000000, 0, 0x0000000080001027, "upper levels of ro grant all" },
	{ INTEL, 0x7ffffffff000, 0x1000, 0xfffffffff000, true, 0x80003000, 511, 0x8000fffffffff067, "last page" },
	{ INTEL, 0x7ffffffff000, 0x1000, 0xfffffffff000, true, 0x80000000, 255, 0x80001027, "last lower-half PML4E" },
	{ INTEL, 0x200000, 0x200000, 0x40200000, true, 0x80002000, 1, 0x80000000402000e7, "PDE, 2 MiB, rw" },
	{ INTEL, 0x200000, 0x200000, 0x40200000, false, 0x80002000, 1, 0x80000000402000e5, "PDE, 2 MiB, ro" },
	{ INTEL, 0x200000, 0x200000, 0x40201000, true, 0x80003000, 511, 0x8000000040400067, "no block: bus unaligned" },
	{ INTEL, 0x40000000, 0x40000000, 0x1c0000000, true, 0x80001000, 1, 0x80000001c00000e7, "PDPTE, 1 GiB, rw" },
	{ INTEL, 0x40000000, 0x40000000, 0x1c0000000, false, 0x80001000, 1, 0x80000001c00000e5, "PDPTE, 1 GiB, ro" },
	{ INTEL, 0x40000000, 0x40000000, 0x1c0200000, true, 0x80002000, 511, 0x80000002000000e7, "2 MiB: unaligned" },
};
/* clang-format on */

static void check_written(const struct written *w)
{
	const size_t size = 64 * (size_t)TABLE_PAGE;
	struct table_pool *pool;
	struct pgtable *pt;
	const uint64_t *mem;
	struct range r;
	uint32_t budget;

	assert_int_equal(table_pool_new(&pool, ROOT, 4096), 0);
	table_pool_extend(pool, 4096);
	assert_int_equal(pgtable_new(&pt, w->format, pool), 0);
	assert_int_equal(pgtable_root(pt), ROOT);
	assert_true(range_make(&r, w->iova, w->bytes));
	budget = pgtable_map_need(r, w->bus);
	assert_int_equal(table_pool_reserve(pool, budget), 0);
	assert_int_equal(pgtable_map(pt, r, w->bus, w->writable, &budget), 0);
	table_pool_unreserve(pool, budget);
	mem = mmap(NULL, size, PROT_READ, MAP_SHARED, table_pool_fd(pool), 0);
	assert_true(mem != MAP_FAILED);
	if (mem[(w->table - ROOT) / 8 + w->index] != w->value)
		fail_msg("%s, %s: 0x%016llx is written, 0x%016llx expected", pgtable_format_name(w->format), w->what,
			 (unsigned long long)mem[(w->table - ROOT) / 8 + w->index], (unsigned long long)w->value);
	munmap((void *)(uintptr_t)mem, size);
	pgtable_free(pt);
	table_pool_free(pool);
}

static void what_is_written(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(written); i++)
		check_written(&written[i]);
}

/* What a split leaves behind: the pieces keep bus address and rights. */
static void what_a_split_writes(void **state)
{
	static const struct written after[] = {
		/* 1 GiB read-only at bus 0x1c0000000, the page at +0x200000 unmapped. */
		{.format = &pgtable_vmsa64, .table = 0x80001000, .index = 1, .value = 0x0000000080002003},
		{.format = &pgtable_vmsa64, .table = 0x80002000, .index = 0, .value = 0x00600001c0000fc1},
		{.format = &pgtable_vmsa64, .table = 0x80002000, .index = 1, .value = 0x0000000080003003},
		{.format = &pgtable_vmsa64, .table = 0x80002000, .index = 511, .value = 0x00600001ffe00fc1},
		{.format = &pgtable_vmsa64, .table = 0x80003000, .index = 0, .value = 0},
		{.format = &pgtable_vmsa64, .table = 0x80003000, .index = 1, .value = 0x00600001c0201fc3},
		{.format = &pgtable_x86_64, .table = 0x80001000, .index = 1, .value = 0x0000000080002027},
		{.format = &pgtable_x86_64, .table = 0x80002000, .index = 0, .value = 0x80000001c00000e5},
		{.format = &pgtable_x86_64, .table = 0x80002000, .index = 1, .value = 0x0000000080003027},
		{.format = &pgtable_x86_64, .table = 0x80002000, .index = 511, .value = 0x80000001ffe000e5},
		{.format = &pgtable_x86_64, .table = 0x80003000, .index = 0, .value = 0},
		{.format = &pgtable_x86_64, .table = 0x80003000, .index = 1, .value = 0x80000001c0201065},
	};

	for (size_t i = 0; i < ARRAY_SIZE(after); i++) {
		struct range all = {0x40000000, 0x7fffffff}, hole = {0x40200000, 0x40200fff};
		uint32_t budget = 16;
		struct table_pool *pool;
		struct pgtable *pt;
		uint64_t value;

		assert_int_equal(table_pool_new(&pool, ROOT, 32), 0);
		table_pool_extend(pool, 32);
		assert_int_equal(pgtable_new(&pt, after[i].format, pool), 0);
		assert_int_equal(table_pool_reserve(pool, budget), 0);
		assert_int_equal(pgtable_map(pt, all, 0x1c0000000, false, &budget), 0);
		assert_int_equal(pgtable_unmap(pt, hole, &budget), 0x1000);
		assert_int_equal(
			pread(table_pool_fd(pool), &value, 8, (off_t)(after[i].table - ROOT + after[i].index * 8)), 8);
		assert_int_equal(value, after[i].value);
		pgtable_free(pt);
		table_pool_free(pool);
	}
}

/* ---- What a descriptor means ----------------------------------------------------------------------------------- */

enum meaning {
	TO_TABLE, /* the walk goes on in the table at bus 0x90000000, whose leaf grants everything */
	LEAF_RW, /* the address translates to `bus`; reads and writes are allowed */
	LEAF_RO, /* reads only */
	NO_ACCESS, /* translates, but not for unprivileged accesses */
	NOT_THERE, /* translation fault: invalid, reserved, not present */
	NO_AF, /* Arm's access flag fault */
	TOO_WIDE, /* address size: output beyond 48 bits */
};

struct meant {
	enum refgpu_format format;
	unsigned depth; /* of the descriptor; 0 is the root's */
	uint64_t value;
	enum meaning meaning;
	uint64_t bus; /* of the page or block */
	const char *why;
};

#define VMSA REFGPU_FORMAT_VMSA64
#define X86 REFGPU_FORMAT_X86_64

/* clang-format off */
static const struct meant meant[] = {
	{ VMSA, 0, 0x0000000000000000, NOT_THERE, 0, "bit 0 clear: invalid" },
	{ VMSA, 0, 0x0000000090000002, NOT_THERE, 0, "bit 0 clear: all else is ignored" },
	{ VMSA, 0, 0x0060000000000f41, NOT_THERE, 0, "4 KiB granule, level 0: no blocks" },
	{ VMSA, 0, 0x0000000090000003, TO_TABLE, 0, "table" },
	{ VMSA, 0, 0x4000000090000003, LEAF_RO, 0xa000000000, "APTable[1]: read-only below" },
	{ VMSA, 0, 0x2000000090000003, NO_ACCESS, 0, "APTable[0]: nothing for EL0 below" },
	{ VMSA, 0, 0x9800000090000003, TO_TABLE, 0, "NSTable, UXNTable, PXNTable: data accesses as before" },
	{ VMSA, 1, 0x0000000000000000, NOT_THERE, 0, "invalid" },
	{ VMSA, 1, 0x0000000090000003, TO_TABLE, 0, "table" },
	{ VMSA, 1, 0x07800000900008ff, TO_TABLE, 0, "table with ignored bits 58:55, 11 and 7:2" },
	{ VMSA, 1, 0x00600001c0000f41, LEAF_RW, 0x1c0000000, "1 GiB block" },
	{ VMSA, 1, 0x00600001c0000fc1, LEAF_RO, 0x1c0000000, "1 GiB block, AP[2]" },
	{ VMSA, 1, 0x00600001c0000b41, NO_AF, 0, "1 GiB block, AF clear" },
	{ VMSA, 1, 0x00600001c0000f01, NO_ACCESS, 0, "1 GiB block, AP[1] clear: EL1 only" },
	{ VMSA, 2, 0x0000000000000000, NOT_THERE, 0, "invalid" },
	{ VMSA, 2, 0x0000000090000003, TO_TABLE, 0, "table" },
	{ VMSA, 2, 0x0060000040200f41, LEAF_RW, 0x40200000, "2 MiB block" },
	{ VMSA, 2, 0x0060000040200fc1, LEAF_RO, 0x40200000, "2 MiB block, AP[2]" },
	{ VMSA, 2, 0x0060000040200b41, NO_AF, 0, "2 MiB block, AF clear" },
	{ VMSA, 2, 0x0060000040200f40, NOT_THERE, 0, "2 MiB block, valid bit clear" },
	{ VMSA, 3, 0x0060123456789f43, LEAF_RW, 0x123456789000, "page" },
	{ VMSA, 3, 0x0060123456789fc3, LEAF_RO, 0x123456789000, "page, AP[2]" },
	{ VMSA, 3, 0x0060123456789f41, NOT_THERE, 0, "level 3, bits 1:0 = 01: reserved" },
	{ VMSA, 3, 0x0060123456789f42, NOT_THERE, 0, "page, valid bit clear" },
	{ VMSA, 3, 0x0060123456789b43, NO_AF, 0, "page, AF clear" },
	{ VMSA, 3, 0x0060123456789f03, NO_ACCESS, 0, "page, AP[2:1] = 00" },
	{ VMSA, 3, 0x0060123456789f83, NO_ACCESS, 0, "page, AP[2:1] = 10" },
	{ VMSA, 3, 0x0060123456789743, LEAF_RW, 0x123456789000, "page, nG clear: global" },
	{ VMSA, 3, 0x07e0123456789f43, LEAF_RW, 0x123456789000, "page with software bits 58:55" },
	{ VMSA, 3, 0x0060ffffffffff43, LEAF_RW, 0xfffffffff000, "page, highest output address" },
	{ VMSA, 3, 0x0000123456789443, LEAF_RW, 0x123456789000, "page, executable, non-shareable, global" },

	{ X86, 0, 0x0000000000000000, NOT_THERE, 0, "PML4E, P clear" },
	{ X86, 0, 0x0000000090000026, NOT_THERE, 0, "PML4E, P clear: all else is ignored" },
	{ X86, 0, 0x0000000090000027, TO_TABLE, 0, "PML4E" },
	{ X86, 0, 0x00000000900000a7, NOT_THERE, 0, "PML4E, bit 7 is reserved" },
	{ X86, 0, 0x0000000090000025, LEAF_RO, 0xa000000000, "PML4E, R/W clear: read-only below" },
	{ X86, 0, 0x0000000090000023, NO_ACCESS, 0, "PML4E, U/S clear: supervisor below" },
	{ X86, 0, 0x8000000090000027, TO_TABLE, 0, "PML4E, XD: data accesses as before" },
	{ X86, 0, 0x0001000090000027, TOO_WIDE, 0, "PML4E, address beyond MAXPHYADDR" },
	{ X86, 1, 0x0000000000000000, NOT_THERE, 0, "PDPTE, P clear" },
	{ X86, 1, 0x0000000090000027, TO_TABLE, 0, "PDPTE, table" },
	{ X86, 1, 0x0000000090000025, LEAF_RO, 0xa000000000, "PDPTE, table, R/W clear" },
	{ X86, 1, 0x0000000090000023, NO_ACCESS, 0, "PDPTE, table, U/S clear" },
	{ X86, 1, 0x80000001c00000e7, LEAF_RW, 0x1c0000000, "PDPTE, PS: 1 GiB" },
	{ X86, 1, 0x80000001c00000e5, LEAF_RO, 0x1c0000000, "PDPTE, PS: 1 GiB, R/W clear" },
	{ X86, 1, 0x80000001c00000e3, NO_ACCESS, 0, "PDPTE, PS: 1 GiB, U/S clear" },
	{ X86, 1, 0x80000001c00010e7, LEAF_RW, 0x1c0000000, "PDPTE, PS: bit 12 is PAT" },
	{ X86, 1, 0x80000001c00020e7, NOT_THERE, 0, "PDPTE, PS: bit 13 is reserved" },
	{ X86, 1, 0x80000001e00000e7, NOT_THERE, 0, "PDPTE, PS: bit 29 is reserved" },
	{ X86, 2, 0x0000000090000027, TO_TABLE, 0, "PDE, table" },
	{ X86, 2, 0x0000000090000e27, TO_TABLE, 0, "PDE, table, ignored bits 11:9" },
	{ X86, 2, 0x80000000402000e7, LEAF_RW, 0x40200000, "PDE, PS: 2 MiB" },
	{ X86, 2, 0x80000000402000e5, LEAF_RO, 0x40200000, "PDE, PS: 2 MiB, R/W clear" },
	{ X86, 2, 0x80000000402010e7, LEAF_RW, 0x40200000, "PDE, PS: bit 12 is PAT" },
	{ X86, 2, 0x80000000402020e7, NOT_THERE, 0, "PDE, PS: bit 13 is reserved" },
	{ X86, 2, 0x80000000403000e7, NOT_THERE, 0, "PDE, PS: bit 20 is reserved" },
	{ X86, 3, 0x8000123456789067, LEAF_RW, 0x123456789000, "PTE" },
	{ X86, 3, 0x8000123456789065, LEAF_RO, 0x123456789000, "PTE, R/W clear" },
	{ X86, 3, 0x8000123456789063, NO_ACCESS, 0, "PTE, U/S clear" },
	{ X86, 3, 0x8000123456789066, NOT_THERE, 0, "PTE, P clear" },
	{ X86, 3, 0x80001234567891ef, LEAF_RW, 0x123456789000, "PTE, PWT, PAT (bit 7, not PS) and G" },
	{ X86, 3, 0xfff0123456789e67, LEAF_RW, 0x123456789000, "PTE, ignored bits and protection key" },
	{ X86, 3, 0x0000123456789007, LEAF_RW, 0x123456789000, "PTE, A and D clear: no fault" },
	{ X86, 3, 0x8002123456789067, TOO_WIDE, 0, "PTE, address beyond MAXPHYADDR" },
	{ X86, 3, 0x8000fffffffff067, LEAF_RW, 0xfffffffff000, "PTE, highest address" },
};
/* clang-format on */

/* Memory for one question: the entry under test at its depth, plain tables above, and at 0x90000000 a chain that ends
 * in a page at 0xa000000000 that grants everything. Every table is the same in all its entries. */
static int meant_read8(void *arg, uint64_t bus, uint64_t *val)
{
	const struct meant *m = arg;
	const uint64_t table = m->format == VMSA ? 0x3 : 0x27;
	const uint64_t page = m->format == VMSA ? UINT64_C(0xa000000f43) : UINT64_C(0xa000000067);
	unsigned below = (unsigned)(bus - 0x90000000) / 0x1000;

	if (bus >= ROOT && bus < ROOT + 0x4000) {
		unsigned depth = (unsigned)(bus - ROOT) / 0x1000;

		*val = depth == m->depth ? m->value : (ROOT + (depth + 1) * 0x1000) | table;
		return depth <= m->depth ? 0 : -1;
	}
	if (bus < 0x90000000 || m->depth + 1 + below > 3)
		return -1;
	*val = m->depth + 1 + below == 3 ? page : (0x90000000 + UINT64_C(0x1000) * (below + 1)) | table;
	return 0;
}

static void check_meant(const struct meant *m)
{
	static const int read_code[] = {0,
					0,
					0,
					REFGPU_FAULT_PERMISSION,
					REFGPU_FAULT_TRANSLATION,
					REFGPU_FAULT_ACCESS_FLAG,
					REFGPU_FAULT_ADDRESS_SIZE};
	const uint64_t va = UINT64_C(0x123456789abc);
	struct refgpu_walk_result rd, wr;
	int want = read_code[m->meaning];
	int want_write = m->meaning == LEAF_RO ? REFGPU_FAULT_PERMISSION : want;
	int r = refgpu_walk(m->format, ROOT, va, REFGPU_READ, meant_read8, (void *)(uintptr_t)m, &rd);
	int w = refgpu_walk(m->format, ROOT, va, REFGPU_WRITE, meant_read8, (void *)(uintptr_t)m, &wr);
	bool leaf = m->meaning == LEAF_RO || m->meaning == LEAF_RW;

	if (r != want || w != want_write)
		fail_msg("0x%016llx at depth %u (%s): read %d, write %d; expected %d, %d", (unsigned long long)m->value,
			 m->depth, m->why, r, w, want, want_write);
	if (m->meaning == TO_TABLE)
		assert_int_equal(rd.bus, 0xa000000abc);
	if (leaf && rd.base != m->bus)
		fail_msg("0x%016llx (%s): bus 0x%llx", (unsigned long long)m->value, m->why,
			 (unsigned long long)rd.base);
	if (leaf)
		assert_int_equal(rd.bus, m->bus + (va & (rd.size - 1)));
	if (leaf && m->bus != 0xa000000000)
		assert_int_equal(rd.size, UINT64_C(1) << (39 - 9 * m->depth));
	if (want == REFGPU_FAULT_TRANSLATION)
		assert_int_equal(rd.level, m->format == VMSA ? m->depth : 4 - m->depth);
}

static void what_is_meant(void **state)
{
	unsigned n[2] = {0, 0};

	for (size_t i = 0; i < ARRAY_SIZE(meant); i++) {
		check_meant(&meant[i]);
		n[meant[i].format]++;
	}
	assert_true(n[VMSA] >= 20 && n[X86] >= 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written),
		cmocka_unit_test(what_a_split_writes),
		cmocka_unit_test(what_is_meant),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
