/* SPDX-License-Identifier: MIT */
/*
 * What it costs to have a first stage of our own (mode nested), by the daemon's own page tables, translator and transport:
 * no socket, no scheduler and no device's work is in it. Limit, unless it says otherwise: the ioctl that does the same where
 * the kernel keeps the tables, made by this process for another device of that kind in the same rounds.
 *
 *   bench_nested WAY BDF OTHER      WAY: "iommufd"; BDF: the device; OTHER: the one for the limit
 *
 *   nested-switch       another context's address space is installed; limit: the device is attached to another HWPT
 *   nested-map-N        N pages of memory that was imported before; limit: IOMMU_IOAS_MAP_FILE
 *   nested-unmap-N      their unmap, complete: the SMMU has forgotten them, emptied tables are back; limit: IOMMU_IOAS_UNMAP
 *   nested-tlbi-va-N    N commands that invalidate a page each, in one call; limit: one that invalidates the ASID
 */
#include <stdio.h>
#include <string.h>

#include "base/shm.h"
#include "bench.h"
#include "direct.h"
#include "pgtable/pgtable.h"
#include "reach.h"
#include "translator/cdtable.h"
#include "translator/smmu.h"
#include "translator/translator.h"
#include "transport/transport.h"

#define ROUNDS 101u
#define WARM 10u
#define OPS 8u /* in one sample, so that reading the clock is not in it */
#define CONTEXTS 2u
#define PAGE UINT64_C(4096)
#define SPAN (512 * PAGE) /* what a table of pages maps */
#define IOVA UINT64_C(0x1000000)
#define POOL_PAGES 64u
/* Bus addresses, that is, of the second stage. */
#define DESCRIPTORS UINT64_C(0x100000000)
#define TABLES UINT64_C(0x200000000)
#define MEMORY UINT64_C(0x300000000)
#define READ_WRITE (TRANSPORT_READ | TRANSPORT_WRITE)

static const unsigned int map_pages[] = {1, 16, 256};
static const uint32_t tlbi_commands[] = {1, 4, 16, 32, 63};

#define MOST_PAGES 256u
#define MOST_COMMANDS 63u

static struct bench {
	struct reach reach;
	struct transport *t; /* that of reach */
	struct transport_smmu smmu;
	struct smmu_traits traits;
	struct shm descriptors;
	struct cdtable table;
	struct table_pool *pool;
	struct pgtable *pt[CONTEXTS];
	struct translator *tr;
	struct direct direct;
} bench;

static void check(int r, const char *what)
{
	if (r < 0)
		die(what, strerror(-r));
}

/* ---- setting up ---- */

static void prepare(struct bench *b)
{
	bool done = false;
	const char *why;

	reach_await(&b->reach, b->t->ops->nested->prepare(b->t, &b->smmu, reach_done, &done), &done);
	why = smmu_judge(&b->smmu, &b->traits);
	if (why)
		die("the SMMU", why);
}

static void import(struct bench *b, uint64_t bus, uint64_t bytes, int fd, uint32_t prot)
{
	bool done = false;

	reach_await(&b->reach, b->t->ops->dma_map(b->t, bus, bytes, fd, 0, prot, reach_done, &done), &done);
}

/* One descriptor: no device has substreams here. */
static void make_memory(struct bench *b)
{
	check(shm_init(&b->descriptors, "bench-descriptors", cdtable_bytes(0, b->traits.two_levels)), "descriptors");
	check(table_pool_new(&b->pool, TABLES, POOL_PAGES), "tables");
	table_pool_extend(b->pool, POOL_PAGES);
	import(b, DESCRIPTORS, b->descriptors.bytes, b->descriptors.ro_fd, TRANSPORT_READ);
	import(b, TABLES, POOL_PAGES * TABLE_PAGE, table_pool_device_fd(b->pool), TRANSPORT_READ);
	import(b, MEMORY, OPS * MOST_PAGES * PAGE, b->direct.fd, READ_WRITE);
}

static void attach(struct bench *b)
{
	uint64_t entry[2];
	bool done = false;

	b->table = (struct cdtable){
		.p = b->descriptors.p,
		.bus = DESCRIPTORS,
		.two_levels = b->traits.two_levels,
		.address_bits = b->traits.address_bits,
	};
	cdtable_entry(&b->table, entry);
	reach_await(&b->reach, b->t->ops->nested->attach(b->t, entry, reach_done, &done), &done);
	check(smmu_new(&b->tr, b->t, &b->traits, &b->table, NULL), "a translator");
}

static struct range pages_at(uint64_t iova, unsigned int pages)
{
	return (struct range){iova, iova + pages * PAGE - 1};
}

static void map(struct bench *b, struct pgtable *pt, struct range r, uint64_t bus)
{
	uint32_t budget = pgtable_map_need(r, bus);

	check(table_pool_reserve(b->pool, budget), "promised tables");
	check(pgtable_map(pt, r, bus, PGTABLE_WRITABLE, &budget), "a map");
	table_pool_unreserve(b->pool, budget);
}

/* A page at the end of what each of OPS operations maps keeps its table, as the kernel keeps those of other devices. */
static void make_contexts(struct bench *b)
{
	for (unsigned int i = 0; i < CONTEXTS; i++)
		check(pgtable_new(&b->pt[i], &pgtable_vmsa64, b->pool), "a table");
	for (unsigned int i = 0; i < OPS; i++)
		map(b, b->pt[0], pages_at(IOVA + (i + 1) * SPAN - PAGE, 1), MEMORY);
}

static void setup(struct bench *b, const char *way, const char *bdf, const char *other)
{
	direct_open(&b->direct, way, other, 0, OPS * MOST_PAGES * PAGE);
	reach_open(&b->reach, way, bdf);
	b->t = b->reach.t;
	prepare(b);
	make_memory(b);
	attach(b);
	make_contexts(b);
}

static uint32_t asid_of(unsigned int context)
{
	return context + 1;
}

static void finish(struct bench *b)
{
	reach_close(&b->reach);
	smmu_free(b->tr);
	for (unsigned int i = 0; i < CONTEXTS; i++)
		pgtable_free(b->pt[i]);
	table_pool_free(b->pool);
	shm_fini(&b->descriptors);
}

/* ---- a switch ---- */

static void install(struct bench *b, unsigned int to)
{
	struct translator_space s = {.pasid = asid_of(to), .asid = asid_of(to), .root = pgtable_root(b->pt[to])};

	check(b->tr->ops->install(b->tr, 0, &s), "a switch");
}

static double time_switch(struct bench *b)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		install(b, (i + 1) % CONTEXTS);
	return (now_ns() - t) / OPS / 1e3;
}

static double time_switch_direct(struct bench *b)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		direct_attach(&b->direct, (i + 1) % DIRECT_SPACES);
	return (now_ns() - t) / OPS / 1e3;
}

/* Both begin, and end, in the first address space: OPS is even. */
static void measure_switch(struct bench *b)
{
	static struct figure f = {.name = "nested-switch", .unit = "us"};

	install(b, 0);
	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double direct = time_switch_direct(b);

		if (i == WARM)
			f.n = 0;
		figure_add(&f, time_switch(b), direct);
	}
	figure_print(&f);
}

/* ---- mappings ---- */

static double time_map(struct bench *b, unsigned int pages)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		map(b, b->pt[0], pages_at(IOVA + i * SPAN, pages), MEMORY + i * pages * PAGE);
	return (now_ns() - t) / OPS / 1e3;
}

static double time_map_direct(struct bench *b, unsigned int pages)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		direct_map(&b->direct, IOVA + i * SPAN, i * pages * PAGE, pages * PAGE);
	return (now_ns() - t) / OPS / 1e3;
}

static void unmap(struct bench *b, struct range r)
{
	uint32_t budget = 0; /* no block is cut */
	uint64_t ticket;

	if (pgtable_unmap(b->pt[0], r, &budget) != range_len(r))
		die("an unmap", "it was not mapped");
	check(translator_invalidate(b->tr, asid_of(0), &r, 1, &ticket), "an invalidation");
	pgtable_reclaim(b->pt[0]);
}

static double time_unmap(struct bench *b, unsigned int pages)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		unmap(b, pages_at(IOVA + i * SPAN, pages));
	return (now_ns() - t) / OPS / 1e3;
}

static double time_unmap_direct(struct bench *b, unsigned int pages)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		direct_unmap(&b->direct, IOVA + i * SPAN, pages * PAGE);
	return (now_ns() - t) / OPS / 1e3;
}

static void print(struct figure *f, const char *what, unsigned int n)
{
	char name[64];

	snprintf(name, sizeof(name), "nested-%s-%u", what, n);
	f->name = name;
	f->unit = "us";
	figure_print(f);
}

static void measure_maps(struct bench *b, unsigned int pages)
{
	static struct figure maps, unmaps;

	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double direct;

		if (i == 0 || i == WARM)
			maps.n = unmaps.n = 0;
		direct = time_map_direct(b, pages);
		figure_add(&maps, time_map(b, pages), direct);
		direct = time_unmap_direct(b, pages);
		figure_add(&unmaps, time_unmap(b, pages), direct);
	}
	print(&maps, "map", pages);
	print(&unmaps, "unmap", pages);
}

/* ---- invalidations ---- */

/* As smmu.c makes them. */
#define CMD_TLBI_NH_ASID UINT64_C(0x11)
#define CMD_TLBI_NH_VA UINT64_C(0x12)
#define TLBI_ASID_SHIFT 48

static double time_commands(struct bench *b, const struct transport_smmu_command *v, uint32_t n)
{
	double t = now_ns();

	for (unsigned int i = 0; i < OPS; i++)
		check(b->t->ops->nested->invalidate(b->t, v, n), "commands");
	return (now_ns() - t) / OPS / 1e3;
}

static void measure_commands(struct bench *b, uint32_t n)
{
	static struct figure f;
	const uint64_t asid = (uint64_t)asid_of(0) << TLBI_ASID_SHIFT;
	const struct transport_smmu_command all = {{CMD_TLBI_NH_ASID | asid}};
	struct transport_smmu_command v[MOST_COMMANDS];

	for (uint32_t i = 0; i < n; i++)
		v[i] = (struct transport_smmu_command){{CMD_TLBI_NH_VA | asid, IOVA + i * 2 * PAGE}};
	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double limit;

		if (i == 0 || i == WARM)
			f.n = 0;
		limit = time_commands(b, &all, 1);
		figure_add(&f, time_commands(b, v, n), limit);
	}
	print(&f, "tlbi-va", n);
}

int main(int argc, char **argv)
{
	struct bench *b = &bench;

	if (argc != 4)
		die(argv[0], "WAY BDF OTHER");
	setup(b, argv[1], argv[2], argv[3]);
	measure_switch(b);
	for (unsigned int i = 0; i < sizeof(map_pages) / sizeof(map_pages[0]); i++)
		measure_maps(b, map_pages[i]);
	for (unsigned int i = 0; i < sizeof(tlbi_commands) / sizeof(tlbi_commands[0]); i++)
		measure_commands(b, tlbi_commands[i]);
	finish(b);
	return 0;
}
