/* SPDX-License-Identifier: MIT */
/*
 * The walks, written once and compiled into each format with its descriptors and its geometry as constants: four
 * levels of 512 entries, blocks at levels 1 (1 GiB) and 2 (2 MiB), pages at level 3. A format with another geometry
 * brings its own walks; nothing but struct pgtable_format asks for these.
 *
 * Before inclusion the file defines FORMAT_TOP_BITS and format_leaf(), format_table(), format_is_table(), format_bus(),
 * format_prot(), format_attributes().
 *
 * What makes it fast: descriptors are only read on the way down to a table; whether entries are free, and how many were
 * mapped, is answered by the bits beside the pool, 64 entries at a time; each entry is then stored once. A table that
 * is unmapped as a whole is unlinked unread, and its zeroing is left to whoever takes the page next.
 *
 * What a walker meanwhile sees: every entry is stored whole, and a table is complete before the release store that
 * links it.
 */
#ifndef PGTABLE_WALK_TEMPLATE_H
#define PGTABLE_WALK_TEMPLATE_H

#include <errno.h>

#define LAST_LEVEL 3u
#define LEVEL_SHIFT(level) (39u - 9u * (level))
#define LEVEL_SIZE(level) (UINT64_C(1) << LEVEL_SHIFT(level))
#define LEVEL_INDEX(iova, level) ((unsigned)((iova) >> LEVEL_SHIFT(level)) % TABLE_ENTRIES)
#define LEVEL_HAS_LEAVES(level) ((level) >= 1)

/* For a function that has the level as a constant, and as `down` the same thing for the level below. */
#define PER_LEVEL static inline __attribute__((always_inline))

/* clang-format off */
#define FORMAT_OPS(n) { \
	.name = (n), \
	.page_sizes = LEVEL_SIZE(1) | LEVEL_SIZE(2) | LEVEL_SIZE(3), \
	.iova_last = (UINT64_C(1) << FORMAT_TOP_BITS) - 1, \
	.map = format_map, \
	.unmap = format_unmap, \
	.walk = format_walk, \
	.adopt = format_adopt, \
	.prune = format_prune, \
	.levels = format_levels, \
	.next = format_next, \
	.attributes = format_attributes, \
	.drop = format_drop, \
}
/* clang-format on */

static inline uint64_t entry_load(const uint64_t *e)
{
	return __atomic_load_n(e, __ATOMIC_RELAXED);
}

static inline void entry_store(uint64_t *e, uint64_t v)
{
	__atomic_store_n(e, v, __ATOMIC_RELAXED);
}

/* The part of r, which lies in one table, that entry i of it stands for. */
static inline struct range entry_part(struct range r, unsigned level, unsigned i)
{
	uint64_t mask = LEVEL_SIZE(level) - 1;
	uint64_t first = (r.first & ~(LEVEL_SIZE(level) * TABLE_ENTRIES - 1)) + i * LEVEL_SIZE(level);
	struct range part = {first, first | mask};

	if (part.first < r.first)
		part.first = r.first;
	if (part.last > r.last)
		part.last = r.last;
	return part;
}

/* ---- Tables ---------------------------------------------------------------------------------------------------- */

static inline uint32_t child_at(const struct table_pool *p, uint32_t page, unsigned i)
{
	return table_at(p, format_bus(entry_load(table_entries(p, page) + i)));
}

/* Fills n free entries from i on with leaves for bus, bus + size... */
PER_LEVEL void leaves_fill(struct table_pool *p, uint32_t page, unsigned i, unsigned n, unsigned level, uint64_t bus,
			   uint32_t prot)
{
	uint64_t v = format_leaf(level, bus, prot);
	uint64_t *e = table_entries(p, page) + i;

	for (uint64_t *end = e + n; e < end; e++, v += LEVEL_SIZE(level))
		entry_store(e, v);
	bits_set(&p->bits[page], i, i + n - 1);
	p->meta[page].live = (uint16_t)(p->meta[page].live + n);
}

/* Clears entries first..last, none of which is a table; returns how many were not clear. */
static inline unsigned leaves_clear(struct table_pool *p, uint32_t page, unsigned first, unsigned last)
{
	unsigned n = bits_clear(&p->bits[page], first, last);
	uint64_t *e = table_entries(p, page);

	if (n) {
		for (unsigned i = first; i <= last; i++)
			entry_store(e + i, 0);
	}
	p->meta[page].live = (uint16_t)(p->meta[page].live - n);
	return n;
}

/* Links `child`, complete by now, at entry i, which is free or holds the block that the child replaces. */
static inline void table_link(struct table_pool *p, uint32_t page, unsigned i, uint32_t child)
{
	if (!bits_test(&p->bits[page], i)) {
		bits_set(&p->bits[page], i, i);
		p->meta[page].live++;
	}
	p->meta[page].tables++;
	__atomic_store_n(table_entries(p, page) + i, format_table(table_bus(p, child)), __ATOMIC_RELEASE);
}

static inline void table_unlink(struct table_pool *p, uint32_t page, unsigned i)
{
	entry_store(table_entries(p, page) + i, 0);
	bits_clear_one(&p->bits[page], i);
	p->meta[page].live--;
	p->meta[page].tables--;
}

static inline uint32_t child_new(struct pgtable *pt, uint32_t *budget, bool zero)
{
	pt->pages++;
	return table_take(pt->pool, budget, zero);
}

/* Puts an unlinked table and all below it aside; returns the bytes that they mapped. Only tables that point to tables
 * are read. */
static uint64_t subtree_drop(struct pgtable *pt, uint32_t page, unsigned level)
{
	struct table_pool *p = pt->pool;
	struct table_meta *m = &p->meta[page];
	uint64_t bytes = (uint64_t)(m->live - m->tables) * LEVEL_SIZE(level);
	const uint64_t *e = table_entries(p, page);

	for (unsigned i = 0, left = m->tables; left > 0; i++) {
		uint64_t entry = entry_load(e + i);

		if (!entry || !format_is_table(entry))
			continue;
		bytes += subtree_drop(pt, table_at(p, format_bus(entry)), level + 1);
		left--;
	}
	pgtable_put_aside(pt, page);
	return bytes;
}

/* The table of `level` that iova belongs to; TABLE_NONE if there is none, or a block in its place. */
PER_LEVEL uint32_t table_down(const struct pgtable *pt, uint64_t iova, unsigned level)
{
	uint32_t page = pt->root;

	for (unsigned at = 0; at < level; at++) {
		uint64_t entry = entry_load(table_entries(pt->pool, page) + LEVEL_INDEX(iova, at));

		if (!entry || !format_is_table(entry))
			return TABLE_NONE;
		page = table_at(pt->pool, format_bus(entry));
	}
	return page;
}

/* The same for level 3, where the last one is remembered: changes tend to be neighbours. */
static inline uint32_t leaf_table(struct pgtable *pt, uint64_t iova)
{
	uint32_t page;

	if (pt->near_span == iova / LEVEL_SIZE(2))
		return pt->near;
	page = table_down(pt, iova, LAST_LEVEL);
	if (page != TABLE_NONE) {
		pt->near_span = iova / LEVEL_SIZE(2);
		pt->near = page;
	}
	return page;
}

/* ---- Is a range free? Only its two ends can lie in tables that exist: one in its middle would have live entries. - */

typedef bool free_fn(const struct table_pool *p, uint32_t page, struct range r);

PER_LEVEL bool free_edge(const struct table_pool *p, uint32_t page, struct range r, unsigned level, unsigned i,
			 free_fn *down)
{
	uint64_t entry;

	if (!bits_test(&p->bits[page], i))
		return true;
	entry = entry_load(table_entries(p, page) + i);
	return format_is_table(entry) && down(p, table_at(p, format_bus(entry)), entry_part(r, level, i));
}

PER_LEVEL bool free_level(const struct table_pool *p, uint32_t page, struct range r, unsigned level, free_fn *down)
{
	unsigned first = LEVEL_INDEX(r.first, level);
	unsigned last = LEVEL_INDEX(r.last, level);
	bool head = r.first % LEVEL_SIZE(level) != 0;
	bool tail = (r.last + 1) % LEVEL_SIZE(level) != 0;

	if (first == last && (head || tail))
		return free_edge(p, page, r, level, first, down);
	if (head && !free_edge(p, page, r, level, first, down))
		return false;
	if (tail && !free_edge(p, page, r, level, last, down))
		return false;
	first += head;
	last -= tail;
	return first > last || !bits_any(&p->bits[page], first, last);
}

static bool free_3(const struct table_pool *p, uint32_t page, struct range r)
{
	return !bits_any(&p->bits[page], LEVEL_INDEX(r.first, 3), LEVEL_INDEX(r.last, 3));
}

static bool free_2(const struct table_pool *p, uint32_t page, struct range r)
{
	return free_level(p, page, r, 2, free_3);
}

static bool free_1(const struct table_pool *p, uint32_t page, struct range r)
{
	return free_level(p, page, r, 1, free_2);
}

static bool free_0(const struct table_pool *p, uint32_t page, struct range r)
{
	return free_level(p, page, r, 0, free_1);
}

/* ---- Mapping a range that is known to be free ------------------------------------------------------------------ */

typedef void map_fn(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget);

PER_LEVEL void map_level(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot,
			 uint32_t *budget, unsigned level, map_fn *down)
{
	const uint64_t size = LEVEL_SIZE(level);
	bool fits = LEVEL_HAS_LEAVES(level) && (r.first - bus) % size == 0;
	struct range part;

	for (uint64_t at = r.first; at <= r.last; bus += range_len(part), at = part.last + 1) {
		unsigned i = LEVEL_INDEX(at, level);
		bool exists = bits_test(&pt->pool->bits[page], i);
		bool whole;
		uint32_t child;

		part = (struct range){at, r.last};
		if (fits && at % size == 0 && range_len(part) >= size) {
			part.last = at + range_len(part) / size * size - 1;
			leaves_fill(pt->pool, page, i, (unsigned)(range_len(part) / size), level, bus, prot);
			continue;
		}
		if (part.last > (at | (size - 1)))
			part.last = at | (size - 1);
		/* A whole level-3 table is stored into from end to end: no need to zero it first. */
		whole = level + 1 == LAST_LEVEL && range_aligned(part, size);
		child = exists ? child_at(pt->pool, page, i) : child_new(pt, budget, !whole);
		down(pt, child, part, bus, prot, budget);
		if (!exists)
			table_link(pt->pool, page, i, child);
	}
}

static void map_3(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	leaves_fill(pt->pool, page, LEVEL_INDEX(r.first, 3), (unsigned)(range_len(r) / LEVEL_SIZE(3)), 3, bus, prot);
}

static void map_2(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	map_level(pt, page, r, bus, prot, budget, 2, map_3);
}

static void map_1(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	map_level(pt, page, r, bus, prot, budget, 1, map_2);
}

static void map_0(struct pgtable *pt, uint32_t page, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	map_level(pt, page, r, bus, prot, budget, 0, map_1);
}

static __attribute__((noinline)) int map_any(struct pgtable *pt, struct range r, uint64_t bus, uint32_t prot,
					     uint32_t *budget)
{
	if (!free_0(pt->pool, pt->root, r))
		return -EEXIST;
	map_0(pt, pt->root, r, bus, prot, budget);
	return 0;
}

static int format_map(struct pgtable *pt, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget)
{
	/* Less than 2 MiB into a level-3 table that is there: the usual small mapping. */
	if (r.first / LEVEL_SIZE(2) == r.last / LEVEL_SIZE(2) && range_len(r) < LEVEL_SIZE(2)) {
		uint32_t page = leaf_table(pt, r.first);

		if (page != TABLE_NONE) {
			unsigned first = LEVEL_INDEX(r.first, 3), last = LEVEL_INDEX(r.last, 3);

			if (bits_any(&pt->pool->bits[page], first, last))
				return -EEXIST;
			leaves_fill(pt->pool, page, first, last - first + 1, 3, bus, prot);
			return 0;
		}
	}
	return map_any(pt, r, bus, prot, budget);
}

/* ---- Unmapping ------------------------------------------------------------------------------------------------- */

typedef uint64_t unmap_fn(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget);

/* Replaces the block at entry i by a table of smaller ones without r, which is a part of the block. */
PER_LEVEL uint64_t block_split(struct pgtable *pt, uint32_t page, unsigned i, struct range r, uint32_t *budget,
			       unsigned level, unmap_fn *down)
{
	uint64_t block = entry_load(table_entries(pt->pool, page) + i);
	uint32_t child = child_new(pt, budget, false);
	uint64_t bytes;

	leaves_fill(pt->pool, child, 0, TABLE_ENTRIES, level + 1, format_bus(block), format_prot(block));
	bytes = down(pt, child, r, budget);
	table_link(pt->pool, page, i, child);
	return bytes;
}

/* Unmaps r from the table at entry i, and unlinks it if nothing is left in it. */
PER_LEVEL uint64_t child_unmap(struct pgtable *pt, uint32_t page, unsigned i, struct range r, uint32_t *budget,
			       unsigned level, unmap_fn *down)
{
	uint32_t child = child_at(pt->pool, page, i);
	uint64_t bytes;

	if (range_aligned(r, LEVEL_SIZE(level))) {
		table_unlink(pt->pool, page, i);
		if (pt->pool->meta[child].tables > 0)
			return subtree_drop(pt, child, level + 1);
		pgtable_put_aside(pt, child);
		return pt->pool->meta[child].live * LEVEL_SIZE(level + 1);
	}
	bytes = down(pt, child, r, budget);
	if (pt->pool->meta[child].live == 0) {
		table_unlink(pt->pool, page, i);
		pgtable_put_aside(pt, child);
	}
	return bytes;
}

PER_LEVEL uint64_t unmap_level(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget, unsigned level,
			       unmap_fn *down)
{
	const uint64_t size = LEVEL_SIZE(level);
	unsigned last = LEVEL_INDEX(r.last, level);
	uint64_t bytes = 0;

	if (pt->pool->meta[page].tables == 0 && range_aligned(r, size))
		return leaves_clear(pt->pool, page, LEVEL_INDEX(r.first, level), last) * size;

	for (unsigned i = LEVEL_INDEX(r.first, level); i <= last; i++) {
		struct range part;

		if (!bits_test(&pt->pool->bits[page], i))
			continue;
		part = entry_part(r, level, i);
		if (format_is_table(entry_load(table_entries(pt->pool, page) + i)))
			bytes += child_unmap(pt, page, i, part, budget, level, down);
		else if (range_aligned(part, size))
			bytes += leaves_clear(pt->pool, page, i, i) * size;
		else
			bytes += block_split(pt, page, i, part, budget, level, down);
	}
	return bytes;
}

static uint64_t unmap_3(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget)
{
	return leaves_clear(pt->pool, page, LEVEL_INDEX(r.first, 3), LEVEL_INDEX(r.last, 3)) * LEVEL_SIZE(3);
}

static uint64_t unmap_2(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget)
{
	return unmap_level(pt, page, r, budget, 2, unmap_3);
}

static uint64_t unmap_1(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget)
{
	return unmap_level(pt, page, r, budget, 1, unmap_2);
}

static __attribute__((noinline)) uint64_t unmap_0(struct pgtable *pt, uint32_t page, struct range r, uint32_t *budget)
{
	return unmap_level(pt, page, r, budget, 0, unmap_1);
}

/* What one entry of a level-2 table stands for, if that is a table and its parent cannot become empty by it. */
static inline bool unmap_table(struct pgtable *pt, struct range r, uint64_t *bytes)
{
	unsigned i = LEVEL_INDEX(r.first, 2);
	uint32_t page = table_down(pt, r.first, 2);
	uint64_t entry;

	if (page == TABLE_NONE || pt->pool->meta[page].live <= 1)
		return false;
	entry = entry_load(table_entries(pt->pool, page) + i);
	if (!entry || !format_is_table(entry))
		return false;
	*bytes = child_unmap(pt, page, i, r, NULL, 2, unmap_3);
	return true;
}

/* Pages of one level-3 table that cannot become empty by it. */
static inline bool unmap_pages(struct pgtable *pt, struct range r, uint64_t *bytes)
{
	uint32_t page = leaf_table(pt, r.first);

	if (page == TABLE_NONE || pt->pool->meta[page].live <= range_len(r) / LEVEL_SIZE(3))
		return false;
	*bytes = unmap_3(pt, page, r, NULL);
	return true;
}

static uint64_t format_unmap(struct pgtable *pt, struct range r, uint32_t *budget)
{
	uint64_t bytes;

	/* The two usual cases need no look at the levels above. */
	if (r.first / LEVEL_SIZE(2) == r.last / LEVEL_SIZE(2) &&
	    (range_len(r) == LEVEL_SIZE(2) ? unmap_table(pt, r, &bytes) : unmap_pages(pt, r, &bytes)))
		return bytes;
	return unmap_0(pt, pt->root, r, budget);
}

/* ---- Looking, and the end -------------------------------------------------------------------------------------- */

static bool format_walk(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret)
{
	uint32_t page = pt->root;

	for (unsigned level = 0; level <= LAST_LEVEL; level++) {
		uint64_t mask = LEVEL_SIZE(level) - 1;
		uint64_t entry = entry_load(table_entries(pt->pool, page) + LEVEL_INDEX(iova, level));

		if (!entry)
			return false;
		if (level == LAST_LEVEL || !format_is_table(entry)) {
			*ret = (struct pgtable_leaf){
				.iova = {iova & ~mask, iova | mask},
				.bus = format_bus(entry),
				.entry = entry,
				.level = level,
				.writable = format_prot(entry) & PGTABLE_WRITABLE,
			};
			return true;
		}
		page = table_at(pt->pool, format_bus(entry));
	}
	return false;
}

static unsigned int format_levels(const struct pgtable *pt, uint64_t iova, struct pgtable_level v[PGTABLE_LEVELS])
{
	uint32_t page = pt->root;
	unsigned level;

	for (level = 0; level <= LAST_LEVEL; level++) {
		unsigned i = LEVEL_INDEX(iova, level);
		uint64_t entry = entry_load(table_entries(pt->pool, page) + i);
		bool leaf = level == LAST_LEVEL || !format_is_table(entry);

		v[level] = (struct pgtable_level){
			.at = table_bus(pt->pool, page) + i * sizeof(entry),
			.entry = entry,
			.bus = entry ? format_bus(entry) : 0,
			.size = LEVEL_SIZE(level),
			.level = level,
			.index = i,
			.kind = !entry ? PGTABLE_NOTHING
				: leaf ? PGTABLE_LEAF
				       : PGTABLE_TABLE,
			.writable = entry && leaf && (format_prot(entry) & PGTABLE_WRITABLE),
		};
		if (v[level].kind != PGTABLE_TABLE)
			return level + 1;
		page = table_at(pt->pool, format_bus(entry));
	}
	return level;
}

/* The first entry from i on that is not zero; TABLE_ENTRIES: none. */
static unsigned next_entry(const struct table_pool *p, uint32_t page, unsigned i)
{
	while (i < TABLE_ENTRIES) {
		uint64_t w = p->bits[page].w[i / 64] >> (i % 64);

		if (w)
			return i + (unsigned)__builtin_ctzll(w);
		i = (i / 64 + 1) * 64;
	}
	return TABLE_ENTRIES;
}

/* `base` is the IOVA of the table's first entry; iova lies in or below what the table stands for. */
static bool next_leaf(const struct pgtable *pt, uint32_t page, unsigned level, uint64_t base, uint64_t iova,
		      struct pgtable_leaf *ret)
{
	unsigned i = iova > base ? LEVEL_INDEX(iova, level) : 0;

	for (; (i = next_entry(pt->pool, page, i)) < TABLE_ENTRIES; i++) {
		uint64_t entry = entry_load(table_entries(pt->pool, page) + i);
		uint64_t first = base + i * LEVEL_SIZE(level);

		if (level == LAST_LEVEL || !format_is_table(entry)) {
			*ret = (struct pgtable_leaf){
				.iova = {first, first + (LEVEL_SIZE(level) - 1)},
				.bus = format_bus(entry),
				.entry = entry,
				.level = level,
				.writable = format_prot(entry) & PGTABLE_WRITABLE,
			};
			return true;
		}
		if (next_leaf(pt, table_at(pt->pool, format_bus(entry)), level + 1, first, iova, ret))
			return true;
	}
	return false;
}

static bool format_next(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret)
{
	return next_leaf(pt, pt->root, 0, 0, iova, ret);
}

static void format_drop(struct pgtable *pt)
{
	subtree_drop(pt, pt->root, 0);
}

/* ---- Taking over what a predecessor left ----------------------------------------------------------------------- */

struct adoption {
	struct pgtable *pt;
	int (*leaf)(void *arg, const struct pgtable_leaf *l);
	void *arg;
};

static int adopt_table(const struct adoption *a, uint32_t page, unsigned level, uint64_t iova);

static int adopt_leaf(const struct adoption *a, uint64_t entry, unsigned level, uint64_t iova)
{
	uint64_t bus = format_bus(entry), mask = LEVEL_SIZE(level) - 1;
	uint32_t prot = format_prot(entry);
	struct pgtable_leaf leaf = {
		.iova = {iova, iova | mask},
		.bus = bus,
		.entry = entry,
		.level = level,
		.writable = prot & PGTABLE_WRITABLE,
	};

	if (!LEVEL_HAS_LEAVES(level) || bus & mask || bus >> 48 || entry != format_leaf(level, bus, prot))
		return -EBADMSG;
	return a->leaf(a->arg, &leaf);
}

/* Entry i of a table, which is not clear and stands for what begins at iova. */
static int adopt_entry(const struct adoption *a, uint32_t page, unsigned i, unsigned level, uint64_t iova)
{
	struct table_pool *p = a->pt->pool;
	uint64_t entry = entry_load(table_entries(p, page) + i);
	uint32_t child;
	int r;

	if (iova >> FORMAT_TOP_BITS)
		return -EBADMSG;
	bits_set(&p->bits[page], i, i);
	p->meta[page].live++;
	if (level == LAST_LEVEL || !format_is_table(entry))
		return adopt_leaf(a, entry, level, iova);
	if (entry != format_table(format_bus(entry)))
		return -EBADMSG;
	r = pgtable_claim(a->pt, format_bus(entry), &child);
	if (r < 0)
		return r;
	p->meta[page].tables++;
	return adopt_table(a, child, level + 1, iova);
}

static int adopt_table(const struct adoption *a, uint32_t page, unsigned level, uint64_t iova)
{
	const uint64_t *e = table_entries(a->pt->pool, page);
	int r = 0;

	for (unsigned i = 0; i < TABLE_ENTRIES && r == 0; i++, iova += LEVEL_SIZE(level)) {
		if (entry_load(e + i))
			r = adopt_entry(a, page, i, level, iova);
	}
	return r;
}

static int format_adopt(struct pgtable *pt, int (*leaf)(void *arg, const struct pgtable_leaf *l), void *arg)
{
	return adopt_table(&(struct adoption){pt, leaf, arg}, pt->root, 0, 0);
}

/* Only tables that point to tables are read. */
static void prune_below(struct pgtable *pt, uint32_t page)
{
	const uint64_t *e = table_entries(pt->pool, page);

	for (unsigned i = 0, left = pt->pool->meta[page].tables; left > 0; i++) {
		uint64_t entry = entry_load(e + i);
		uint32_t child;

		if (!entry || !format_is_table(entry))
			continue;
		left--;
		child = table_at(pt->pool, format_bus(entry));
		prune_below(pt, child);
		if (pt->pool->meta[child].live > 0)
			continue;
		table_unlink(pt->pool, page, i);
		pgtable_put_aside(pt, child);
	}
}

static void format_prune(struct pgtable *pt)
{
	prune_below(pt, pt->root);
}

#endif
