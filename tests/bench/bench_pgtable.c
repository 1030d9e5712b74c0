/* SPDX-License-Identifier: MIT */
/*
 * The io-pgtables alone, each figure beside the plain stores that it cannot avoid, into the same memfd and measured in
 * the same round. One line for each: name, value, unit, limit, ratio, separated by tabs; values are medians of ROUNDS.
 *
 * The limits: a plain loop of 8-byte stores, one per entry that changes; for a whole table that is unmapped the one
 * store into its parent; for a map that needs a fresh table its 4096 bytes zeroed and one store.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/util.h"
#include "pgtable/pgtable.h"

#define ROUNDS 101u
#define OPS 64u
#define BUS UINT64_C(0x100000000)
#define IOVA UINT64_C(0x4000000000)
#define PAGE UINT64_C(4096)
#define SPAN (512 * PAGE)
#define POOL_PAGES 4096u

struct bench {
	const struct pgtable_format *format;
	struct table_pool *pool;
	struct pgtable *pt;
	uint64_t *plain; /* the pool's memfd beyond what tables use */
};

struct figure {
	const char *name;
	double value[ROUNDS];
	double limit[ROUNDS];
};

enum {
	MAP_ONE,
	UNMAP_ONE,
	MAP_FAR,
	UNMAP_FAR,
	MAP_RUN_FRESH,
	UNMAP_TABLE,
	MAP_RUN,
	UNMAP_RUN,
	MAP_HALF,
	UNMAP_HALF,
	MAP_FRESH,
	FIGURES,
};

static const char *const names[FIGURES] = {
	[MAP_ONE] = "map-1-page",
	[UNMAP_ONE] = "unmap-1-page",
	[MAP_FAR] = "map-1-page-other-table",
	[UNMAP_FAR] = "unmap-1-page-other-table",
	[MAP_RUN_FRESH] = "map-512-pages-new-table",
	[UNMAP_TABLE] = "unmap-512-pages-whole-table",
	[MAP_RUN] = "map-511-pages",
	[UNMAP_RUN] = "unmap-511-pages",
	[MAP_HALF] = "map-256-pages",
	[UNMAP_HALF] = "unmap-256-pages",
	[MAP_FRESH] = "map-1-page-new-table",
};

static double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "bench_pgtable: %s\n", what);
	exit(1);
}

/* Stores n entries of a table, one every `stride` from v on, and keeps the compiler from doing anything cleverer. */
static __attribute__((noinline)) void plain_stores(uint64_t *e, unsigned n, uint64_t v, uint64_t stride)
{
	for (volatile uint64_t *p = e, *end = p + n; p < end; p++, v += stride)
		*p = v;
}

/* Nanoseconds for one of OPS operations: `pages` pages each, the i-th at IOVA + i * step. */
static double time_map(struct bench *b, unsigned pages, uint64_t step)
{
	uint32_t budget = 4 * OPS;
	double t;

	if (table_pool_reserve(b->pool, budget) < 0)
		die("reserve");
	t = now_ns();
	for (unsigned i = 0; i < OPS; i++) {
		struct range r = {IOVA + i * step, IOVA + i * step + pages * PAGE - 1};

		if (pgtable_map(b->pt, r, BUS + i * PAGE + PAGE, true, &budget) < 0)
			die("map");
	}
	t = now_ns() - t;
	table_pool_unreserve(b->pool, budget);
	return t / OPS;
}

static double time_unmap(struct bench *b, unsigned pages, uint64_t step)
{
	uint64_t bytes = 0;
	uint32_t budget = 0;
	double t = now_ns();

	for (unsigned i = 0; i < OPS; i++) {
		struct range r = {IOVA + i * step, IOVA + i * step + pages * PAGE - 1};

		bytes += pgtable_unmap(b->pt, r, &budget);
	}
	t = now_ns() - t;
	if (bytes != OPS * pages * PAGE)
		die("unmap");
	return t / OPS;
}

static double time_plain(struct bench *b, unsigned entries, uint64_t stride_ops, uint64_t v)
{
	double t = now_ns();

	for (unsigned i = 0; i < OPS; i++)
		plain_stores(b->plain + i * stride_ops, entries, v, v ? PAGE : 0);
	return (now_ns() - t) / OPS;
}

static double time_zero(struct bench *b)
{
	double t = now_ns();

	for (unsigned i = 0; i < OPS; i++) {
		memset(b->plain + i * 512, 0, 4096);
		plain_stores(b->plain + i * 512, 1, 1, 0);
	}
	return (now_ns() - t) / OPS;
}

/* Keeps a table in each of the OPS spans by a page at its end, or takes those pages away again. */
static void hold(struct bench *b, bool on)
{
	uint32_t budget = 4 * OPS;

	if (table_pool_reserve(b->pool, budget) < 0)
		die("reserve");
	for (unsigned i = 0; i < OPS; i++) {
		struct range r = {IOVA + i * SPAN + 511 * PAGE, IOVA + i * SPAN + SPAN - 1};

		if (!on)
			pgtable_unmap(b->pt, r, &budget);
		else if (pgtable_map(b->pt, r, BUS, true, &budget) < 0)
			die("hold");
	}
	table_pool_unreserve(b->pool, budget);
}

static void measure_round(struct bench *b, struct figure *f, unsigned k)
{
	/* Into tables that are there. */
	hold(b, true);
	f[MAP_ONE].limit[k] = time_plain(b, 1, 1, BUS);
	f[MAP_ONE].value[k] = time_map(b, 1, PAGE);
	f[UNMAP_ONE].limit[k] = time_plain(b, 1, 1, 0);
	f[UNMAP_ONE].value[k] = time_unmap(b, 1, PAGE);
	f[MAP_FAR].limit[k] = time_plain(b, 1, 512, BUS);
	f[MAP_FAR].value[k] = time_map(b, 1, SPAN);
	f[UNMAP_FAR].limit[k] = time_plain(b, 1, 512, 0);
	f[UNMAP_FAR].value[k] = time_unmap(b, 1, SPAN);
	f[MAP_RUN].limit[k] = time_plain(b, 511, 512, BUS);
	f[MAP_RUN].value[k] = time_map(b, 511, SPAN);
	f[UNMAP_RUN].limit[k] = time_plain(b, 511, 512, 0);
	f[UNMAP_RUN].value[k] = time_unmap(b, 511, SPAN);
	f[MAP_HALF].limit[k] = time_plain(b, 256, 512, BUS);
	f[MAP_HALF].value[k] = time_map(b, 256, SPAN);
	f[UNMAP_HALF].limit[k] = time_plain(b, 256, 512, 0);
	f[UNMAP_HALF].value[k] = time_unmap(b, 256, SPAN);
	hold(b, false);
	pgtable_reclaim(b->pt);

	/* A table of its own for each, recycled ones with old entries in them. */
	f[MAP_RUN_FRESH].limit[k] = time_plain(b, 512, 512, BUS);
	f[MAP_RUN_FRESH].value[k] = time_map(b, 512, SPAN);
	f[UNMAP_TABLE].limit[k] = time_plain(b, 1, 1, 0);
	f[UNMAP_TABLE].value[k] = time_unmap(b, 512, SPAN);
	pgtable_reclaim(b->pt);
	f[MAP_FRESH].limit[k] = time_zero(b);
	f[MAP_FRESH].value[k] = time_map(b, 1, SPAN);
	time_unmap(b, 1, SPAN);
	pgtable_reclaim(b->pt);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v)
{
	qsort(v, ROUNDS, sizeof(*v), by_value);
	return v[ROUNDS / 2];
}

static void bench_format(const struct pgtable_format *format)
{
	static struct figure f[FIGURES];
	struct bench b = {.format = format};

	if (table_pool_new(&b.pool, UINT64_C(1) << 40, POOL_PAGES) < 0)
		die("pool");
	table_pool_extend(b.pool, POOL_PAGES / 2);
	if (pgtable_new(&b.pt, format, b.pool) < 0)
		die("table");
	b.plain = mmap(NULL, OPS * TABLE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, table_pool_fd(b.pool),
		       POOL_PAGES / 2 * (off_t)TABLE_PAGE);
	if (b.plain == MAP_FAILED)
		die("mmap");
	for (unsigned i = 0; i < 5; i++)
		measure_round(&b, f, i);
	for (unsigned i = 0; i < ROUNDS; i++)
		measure_round(&b, f, i);
	for (unsigned i = 0; i < FIGURES; i++) {
		double value = median(f[i].value), limit = median(f[i].limit);

		printf("pgtable-%s-%s\t%.2f\tns\t%.2f\t%.2f\n", pgtable_format_name(format), names[i], value, limit,
		       value / limit);
	}
	munmap(b.plain, OPS * TABLE_PAGE);
	pgtable_free(b.pt);
	table_pool_free(b.pool);
}

int main(void)
{
	bench_format(&pgtable_vmsa64);
	bench_format(&pgtable_x86_64);
	return 0;
}
