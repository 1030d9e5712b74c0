/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer: bytes as a list of maps, unmaps and reclaims on both page-table formats, against a naive model (a list of
 * ranges, searched from end to end) and the reference GPU's walker. 8 bytes an operation. Addresses lie about the
 * boundaries of tables and about both ends of the address space; an unmap may reach over all of it.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pgtable/pgtable.h"
#include "refgpu/walk.h"

#define POOL_BUS UINT64_C(0x4000000000)
#define POOL_PAGES 4096u
#define MAX_OPS 64u
#define MAX_ITEMS (2 * MAX_OPS)
#define SIZE_4K UINT64_C(0x1000)
#define SIZE_2M UINT64_C(0x200000)
#define SIZE_1G UINT64_C(0x40000000)
#define SIZE_512G UINT64_C(0x8000000000)

#define MUST(x)                           \
	do {                              \
		if (!(x))                 \
			__builtin_trap(); \
	} while (0)

struct op {
	uint8_t kind; /* bits 1:0 map, unmap, reclaim, map; bit 7 read-only */
	uint8_t units; /* of offset (1:0), of length (3:2), of the bus alignment (5:4) */
	uint8_t anchor;
	int8_t offset; /* from the anchor */
	uint16_t length;
	uint16_t bus;
};

/* What is mapped, as the model has it: disjoint, in no order, each from one map. */
struct item {
	struct range iova;
	uint64_t bus;
	bool writable;
};

struct rig {
	const struct pgtable_format *format;
	enum refgpu_format walk_format;
	struct table_pool *pool;
	const uint64_t *mem;
	struct pgtable *pt;
	struct item item[MAX_ITEMS];
	size_t items;
};

static struct rig rigs[2] = {
	{.format = &pgtable_vmsa64, .walk_format = REFGPU_FORMAT_VMSA64},
	{.format = &pgtable_x86_64, .walk_format = REFGPU_FORMAT_X86_64},
};

/* ---- The model ------------------------------------------------------------------------------------------------- */

static const struct item *model_find(const struct rig *g, struct range r)
{
	for (size_t i = 0; i < g->items; i++) {
		if (range_overlaps(g->item[i].iova, r))
			return &g->item[i];
	}
	return NULL;
}

static void model_add(struct rig *g, struct range r, uint64_t bus, bool writable)
{
	MUST(g->items < MAX_ITEMS);
	g->item[g->items++] = (struct item){r, bus, writable};
}

/* Returns the bytes that were mapped. */
static uint64_t model_unmap(struct rig *g, struct range r)
{
	size_t n = g->items;
	uint64_t bytes = 0;

	for (size_t i = 0; i < n;) {
		struct item it = g->item[i];
		struct range cut = it.iova;

		if (!range_overlaps(it.iova, r)) {
			i++;
			continue;
		}
		g->item[i] = g->item[--n];
		g->item[n] = g->item[--g->items];
		if (cut.first < r.first) {
			model_add(g, (struct range){it.iova.first, r.first - 1}, it.bus, it.writable);
			cut.first = r.first;
		}
		if (cut.last > r.last) {
			model_add(g, (struct range){r.last + 1, it.iova.last}, it.bus + (r.last + 1 - it.iova.first),
				  it.writable);
			cut.last = r.last;
		}
		bytes += range_len(cut);
	}
	return bytes;
}

/* ---- Tables against the model ---------------------------------------------------------------------------------- */

static int read8(void *arg, uint64_t bus, uint64_t *val)
{
	struct rig *g = arg;

	if (bus < POOL_BUS || bus - POOL_BUS >= POOL_PAGES * (uint64_t)TABLE_PAGE || bus % 8 != 0)
		return -1;
	*val = g->mem[(bus - POOL_BUS) / 8];
	return 0;
}

static void compare_at(struct rig *g, uint64_t iova)
{
	const struct item *it = model_find(g, (struct range){iova, iova});
	struct refgpu_walk_result w;
	struct pgtable_leaf leaf;
	int r;

	MUST(pgtable_walk(g->pt, iova, &leaf) == (it != NULL));
	if (iova > pgtable_format_iova_last(g->format))
		return;
	r = refgpu_walk(g->walk_format, pgtable_root(g->pt), iova, REFGPU_WRITE, read8, g, &w);
	if (!it) {
		MUST(r == REFGPU_FAULT_TRANSLATION);
		return;
	}
	MUST(leaf.writable == it->writable && r == (it->writable ? 0 : REFGPU_FAULT_PERMISSION));
	MUST(leaf.bus + (iova - leaf.iova.first) == it->bus + (iova - it->iova.first));
	MUST(w.bus == it->bus + (iova - it->iova.first) && w.size == range_len(leaf.iova) && w.base == leaf.bus);
}

static void compare_ends(struct rig *g, struct range r)
{
	compare_at(g, r.first);
	compare_at(g, r.first + range_len(r) / 2);
	compare_at(g, r.last);
	compare_at(g, r.first - 1);
	compare_at(g, r.last + 1);
}

/* Every leaf of every item. That nothing else is mapped follows from the number of bytes that unmaps return. */
static void compare_all(struct rig *g)
{
	struct pgtable_leaf leaf;

	for (size_t i = 0; i < g->items; i++) {
		const struct item *it = &g->item[i];

		for (uint64_t at = it->iova.first; at <= it->iova.last; at = leaf.iova.last + 1) {
			MUST(pgtable_walk(g->pt, at, &leaf));
			MUST(leaf.iova.first == at && range_contains(it->iova, leaf.iova));
			MUST(leaf.bus == it->bus + (at - it->iova.first) && leaf.writable == it->writable);
		}
	}
}

/* ---- Operations ------------------------------------------------------------------------------------------------ */

static uint64_t unit(unsigned n)
{
	static const uint64_t sizes[] = {SIZE_4K, SIZE_2M, SIZE_1G, SIZE_4K};

	return sizes[n % 4];
}

static struct range op_range(const struct rig *g, const struct op *op, bool map)
{
	const uint64_t end = pgtable_format_iova_last(g->format) + 1;
	const uint64_t anchors[] = {0,         SIZE_2M,       SIZE_1G, 2 * SIZE_1G, SIZE_512G - SIZE_1G,
				    SIZE_512G, end - SIZE_1G, end};
	uint64_t first = anchors[op->anchor % 8] + (uint64_t)(int64_t)op->offset * unit(op->units);
	uint64_t len = (op->length % 1536 + UINT64_C(1)) * unit(op->units >> 2);

	if (first >= end)
		first = op->offset < 0 ? 0 : end - SIZE_4K;
	/* Only as much as the pool has tables for, and in pages no more than is quick. */
	if (map && unit(op->units >> 4) == SIZE_4K && len > 4 * SIZE_2M)
		len = 4 * SIZE_2M - (op->length & 0xff) * SIZE_4K;
	else if (map && len > 4 * SIZE_1G)
		len = 4 * SIZE_1G - (op->length & 0xff) * SIZE_4K;
	if (len > end - first)
		len = end - first;
	return (struct range){first, first + len - 1};
}

static void op_map(struct rig *g, const struct op *op)
{
	struct range r = op_range(g, op, true);
	uint64_t a = unit(op->units >> 4);
	uint64_t bus = (op->bus * UINT64_C(0x10401000) & ~(a - 1)) | (r.first & (a - 1));
	bool writable = !(op->kind & 0x80);
	uint32_t pages = pgtable_pages(g->pt), need = pgtable_map_need(r, bus), budget = need;

	MUST(table_pool_reserve(g->pool, need) == 0);
	if (!model_find(g, r)) {
		MUST(pgtable_map(g->pt, r, bus, writable, &budget) == 0);
		model_add(g, r, bus, writable);
	} else {
		MUST(pgtable_map(g->pt, r, bus, writable, &budget) == -EEXIST && budget == need);
	}
	MUST(pgtable_pages(g->pt) == pages + (need - budget));
	table_pool_unreserve(g->pool, budget);
	compare_ends(g, r);
}

static void unmap(struct rig *g, struct range r)
{
	uint32_t need = pgtable_unmap_need(r), budget = pgtable_unmap_need_now(g->pt, r);

	MUST(budget <= need && pgtable_splits(g->pt, r) == (budget > 0));
	MUST(table_pool_reserve(g->pool, budget) == 0);
	MUST(pgtable_unmap(g->pt, r, &budget) == model_unmap(g, r));
	MUST(budget == 0);
	compare_ends(g, r);
}

static void rig_setup(struct rig *g)
{
	MUST(table_pool_new(&g->pool, POOL_BUS, POOL_PAGES) == 0);
	table_pool_extend(g->pool, POOL_PAGES);
	g->mem = mmap(NULL, POOL_PAGES * (size_t)TABLE_PAGE, PROT_READ, MAP_SHARED, table_pool_fd(g->pool), 0);
	MUST(g->mem != MAP_FAILED);
}

static void rig_run(struct rig *g, const uint8_t *data, size_t size)
{
	struct op op;

	g->items = 0;
	MUST(pgtable_new(&g->pt, g->format, g->pool) == 0);
	for (size_t i = 0; i < MAX_OPS && (i + 1) * sizeof(op) <= size; i++) {
		memcpy(&op, data + i * sizeof(op), sizeof(op));
		if (op.kind % 4 == 1)
			unmap(g, op_range(g, &op, false));
		else if (op.kind % 4 == 2)
			pgtable_reclaim(g->pt);
		else
			op_map(g, &op);
	}
	compare_all(g);
	if (size % 2) {
		unmap(g, (struct range){0, pgtable_format_iova_last(g->format)});
		pgtable_reclaim(g->pt);
		MUST(pgtable_pages(g->pt) == 1);
	}
	g->pt = pgtable_free(g->pt);
	MUST(table_pool_used(g->pool) == 0 && table_pool_unpromised(g->pool) == POOL_PAGES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < 2; i++) {
		if (!rigs[i].pool)
			rig_setup(&rigs[i]);
		rig_run(&rigs[i], data, size);
	}
	return 0;
}
