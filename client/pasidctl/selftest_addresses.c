/* SPDX-License-Identifier: MIT */
/* See selftest_checks.h: mappings of all shapes, what is no mapping, and what is left when they are gone. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "selftest_checks.h"

#define WORD 16u /* bytes that a spot check copies */

static struct pasid_bind_op op_map(const struct memory *m, uint64_t off, uint64_t len, uint64_t iova)
{
	return (struct pasid_bind_op){.size = sizeof(struct pasid_bind_op),
				      .type = PASID_MAP,
				      .flags = READ_WRITE | PASID_FIXED,
				      .buf = m->buf,
				      .off = off,
				      .iova = iova,
				      .len = len};
}

static struct pasid_bind_op op_unmap(uint64_t iova, uint64_t len)
{
	return (struct pasid_bind_op){
		.size = sizeof(struct pasid_bind_op), .type = PASID_UNMAP, .iova = iova, .len = len};
}

/* Does the device find byte `off` of m at this IOVA, for reading and for writing? */
struct probe {
	struct space *s;
	struct memory m; /* a page */
	uint64_t at;
};

static struct probe probe_new(struct space *s)
{
	struct probe p = {.s = s, .m = memory_new(s->t, PAGE)};

	p.at = space_map(s, &p.m, 0, PAGE, READ_WRITE);
	return p;
}

static void probe(struct probe *p, const struct memory *m, uint64_t off, uint64_t iova, const char *what)
{
	struct trial *t = p->s->t;
	char text[160];

	snprintf(text, sizeof(text), "%s: byte %llu, at 0x%llx", what, (unsigned long long)off,
		 (unsigned long long)iova);
	pattern_write(p->m.map, WORD, trial_key(t));
	space_copy(p->s, iova, p->at, WORD);
	must_equal(t, m->map + off, p->m.map, WORD, text);
	pattern_write(m->map + off, WORD, trial_key(t));
	space_copy(p->s, p->at, iova, WORD);
	must_equal(t, p->m.map, m->map + off, WORD, text);
}

/* The page of m at `off` was mapped at this IOVA, and is no more: the device does not write to it. */
static void probe_gone(struct space *s, const struct memory *m, uint64_t off, uint64_t iova, const char *what)
{
	uint64_t key = trial_key(s->t);
	int r;

	pattern_write(m->map + off, PAGE, key);
	r = space_try_fill(s, iova, PAGE, 0x66666666);
	must_keep(s->t, m->map + off, PAGE, key, what);
	space_faulted(s, r, iova, iova + PAGE - 1, 2, PASID_FAULT_UNMAPPED);
}

/* ---- shapes ---- */

#define BLOCK (2u << 20) /* what most tables map with one entry */
#define LARGE_BYTES (BLOCK + 4 * PAGE)

/* Where one entry can map the first 2 MiB of it. */
static uint64_t map_block(struct space *s, const struct memory *m)
{
	uint64_t at = (space_hole(s, LARGE_BYTES + BLOCK) + BLOCK - 1) & ~(uint64_t)(BLOCK - 1);

	space_map_at(s, m, 0, m->len, READ_WRITE, at);
	return at;
}

static void check_large(struct trial *t)
{
	static const uint64_t spots[] = {BLOCK - WORD / 2, LARGE_BYTES - WORD,  0, BLOCK, BLOCK / 2,
					 PAGE - 1,         BLOCK + 5 * PAGE / 2};
	unsigned int n = trial_times(t, ARRAY_SIZE(spots), 3, 2);
	struct memory m = memory_new(t, LARGE_BYTES);
	struct space s = space_new(t);
	struct probe p = probe_new(&s);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE);

	for (unsigned int i = 0; i < n; i++)
		probe(&p, &m, spots[i], at + spots[i], "a mapping of more than 2 MiB");
	space_unmap(&s, at, m.len);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t page = spots[i] & ~(uint64_t)(PAGE - 1);

		probe_gone(&s, &m, page, at + page, "a mapping of more than 2 MiB that was unmapped");
	}
}

enum { PAGES = 64 };

/* All go in one list, the last one first; what the device knew of them goes, too. */
static void unmap_pages(struct space *s, const struct memory *m, uint64_t at, unsigned int n)
{
	struct pasid_bind_op ops[PAGES];

	for (uint64_t i = 0; i < PAGES; i++)
		ops[i] = op_unmap(at + (PAGES - 1 - i) * PAGE, PAGE);
	trial_must(s->t, pasid_bind(s->t->p, s->ctx, ops, PAGES, NULL));
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = i * (PAGES - 1) / (n - 1);

		probe_gone(s, m, (PAGES - 1 - page) * PAGE, at + page * PAGE, "64 pages that were unmapped one by one");
	}
}

/* Each page of a buffer by itself, the last one first. */
static void check_pages(struct trial *t)
{
	struct memory m = memory_new(t, PAGES * PAGE);
	struct pasid_bind_op ops[PAGES];
	struct space s = space_new(t);
	struct probe p = probe_new(&s);
	uint64_t at = space_hole(&s, m.len);
	unsigned int n = trial_times(t, PAGES, 3, 2);

	for (uint64_t i = 0; i < PAGES; i++)
		ops[i] = op_map(&m, (PAGES - 1 - i) * PAGE, PAGE, at + i * PAGE);
	trial_must(t, pasid_bind(t->p, s.ctx, ops, PAGES, NULL));
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = i * (PAGES - 1) / (n - 1);

		probe(&p, &m, (PAGES - 1 - page) * PAGE, at + page * PAGE, "64 pages mapped one by one");
	}
	unmap_pages(&s, &m, at, n);
}

/* A page out of the middle of what one entry may map: it alone goes. */
static void check_partial_unmap(struct trial *t)
{
	static const uint64_t page = BLOCK / 2;
	struct memory m = memory_new(t, LARGE_BYTES);
	struct space s = space_new(t);
	struct probe p = probe_new(&s);
	uint64_t at = map_block(&s, &m);

	probe(&p, &m, page, at + page, "a mapping of more than 2 MiB");
	if (!(t->info->features & PASID_FEATURE_PARTIAL_UNMAP)) {
		trial_refused(t, pasid_unmap(t->p, s.ctx, at + page, PAGE), -EOPNOTSUPP,
			      "an unmap of a part, which the device's features leave out,");
		return;
	}
	space_unmap(&s, at + page, PAGE);
	probe_gone(&s, &m, page, at + page, "a page that was unmapped from the middle of a mapping");
	probe(&p, &m, page - WORD, at + page - WORD, "what is left before a page that was unmapped");
	probe(&p, &m, page + PAGE, at + page + PAGE, "what is left after a page that was unmapped");
}

/* Jobs that fill a range are out while its mappings change; none of them may notice. */
struct busy {
	struct space s;
	unsigned int rounds;
	uint64_t at, len;
};

#define BUSY_ROUNDS 8u
#define BUSY_BYTES (64 * PAGE)

static struct busy busy_new(struct trial *t, uint64_t len)
{
	struct busy b = {.s = space_new(t), .rounds = trial_times(t, BUSY_ROUNDS, PLACES * 4, 1)};

	/* Long jobs are more likely to be under way at the right moment. A slow device has long jobs. */
	b.len = b.rounds == BUSY_ROUNDS ? len : PAGE;
	return b;
}

static void busy_begin(struct busy *b)
{
	for (unsigned int i = 0; i < PLACES; i++) {
		struct job j = job_at(&b->s, i);

		job_fill(&j, b->at, b->len, ~i);
		(void)job_submit(&j);
	}
}

static void busy_end(struct busy *b)
{
	for (uint64_t job = b->s.jobs - PLACES + 1; job <= b->s.jobs; job++)
		job_done(&b->s, job);
}

/* A list that unmaps and maps: each access goes to the one memory or to the other. */
static void check_replace(struct trial *t)
{
	struct memory m[2] = {memory_new(t, BUSY_BYTES), memory_new(t, BUSY_BYTES)};
	struct busy b = busy_new(t, BUSY_BYTES);

	b.at = space_map(&b.s, &m[0], 0, m[0].len, READ_WRITE);
	for (unsigned int i = 0; i < b.rounds; i++) {
		const struct memory *next = &m[(i + 1) % 2];
		const struct pasid_bind_op ops[] = {op_unmap(b.at, next->len), op_map(next, 0, next->len, b.at)};

		busy_begin(&b);
		trial_must(t, pasid_bind(t->p, b.s.ctx, ops, ARRAY_SIZE(ops), NULL));
		busy_end(&b);
	}
	space_fill(&b.s, b.at, PAGE, 0x12345678);
	if (memcmp(m[b.rounds % 2].map, "\x78\x56\x34\x12", 4) != 0)
		trial_fail(t, "after %u replacements the device does not write to what was mapped last", b.rounds);
}

/* A page goes from the middle of what one entry may map, and what is before it is in use. */
static void check_split(struct trial *t)
{
	struct memory m = memory_new(t, LARGE_BYTES);
	struct busy b = busy_new(t, BLOCK / 2);

	for (unsigned int i = 0; i < b.rounds; i++) {
		b.at = map_block(&b.s, &m);
		busy_begin(&b);
		space_unmap(&b.s, b.at + BLOCK / 2, PAGE);
		busy_end(&b);
		space_unmap(&b.s, b.at, BLOCK / 2);
		space_unmap(&b.s, b.at + BLOCK / 2 + PAGE, LARGE_BYTES - BLOCK / 2 - PAGE);
	}
}

/* When an unmap returns, no access through the mapping happens any more, though jobs that make such accesses go on. */
static void check_unmap_in_use(struct trial *t)
{
	struct memory m = memory_new(t, BUSY_BYTES);
	struct busy b = busy_new(t, BUSY_BYTES);

	for (unsigned int i = 0; i < b.rounds; i++) {
		uint64_t key = trial_key(t);

		b.at = space_map(&b.s, &m, 0, m.len, READ_WRITE);
		busy_begin(&b);
		space_unmap(&b.s, b.at, m.len);
		pattern_write(m.map, m.len, key);
		for (uint64_t job = b.s.jobs - PLACES + 1; job <= b.s.jobs; job++)
			(void)job_wait(&b.s, job);
		must_keep(t, m.map, m.len, key, "memory that was unmapped while jobs wrote to it");
		(void)space_try_fill(&b.s, b.at + m.len - PAGE, PAGE, 0x66666666);
		must_keep(t, m.map, m.len, key, "memory that was unmapped while jobs wrote to it, by a later job");
	}
}

/* ---- what is refused ---- */

static int map_fixed(struct trial *t, uint32_t ctx, uint32_t buf, uint64_t off, uint64_t len, uint64_t iova)
{
	return pasid_map(t->p, ctx, buf, off, len, READ_WRITE | PASID_FIXED, &iova);
}

static void check_limits(struct trial *t)
{
	const struct pasid_device_info *info = t->info;
	struct memory m = memory_new(t, 2 * PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), any;

	if (at < info->iova_first || at + m.len - 1 > info->iova_last)
		trial_fail(t, "the daemon mapped at 0x%llx, outside of the aperture", (unsigned long long)at);
	trial_refused(t, map_fixed(t, s.ctx, m.buf, 0, PAGE, at + PAGE), -EEXIST, "a map over another");
	if (info->iova_last < UINT64_MAX - 2 * PAGE)
		trial_refused(t, map_fixed(t, s.ctx, m.buf, 0, 2 * PAGE, (info->iova_last + 1) - PAGE), -ERANGE,
			      "a map over the aperture's end");
	if (info->iova_first >= PAGE)
		trial_refused(t, map_fixed(t, s.ctx, m.buf, 0, PAGE, info->iova_first - PAGE), -ERANGE,
			      "a map before the aperture");
	trial_refused(t, pasid_map(t->p, s.ctx, m.buf, PAGE, 2 * PAGE, PASID_READ, &any), -ERANGE,
		      "a map beyond the buffer's end");
	trial_refused(t, pasid_map(t->p, s.ctx, m.buf, 8, PAGE, PASID_READ, &any), -EINVAL, "a map of no whole pages");
	trial_refused(t, pasid_map(t->p, s.ctx, UINT32_MAX, 0, PAGE, PASID_READ, &any), -ENOENT,
		      "a map of a buffer that is none");
	space_unmap(&s, at, m.len);
	trial_refused(t, pasid_unmap(t->p, s.ctx, at, m.len), -ENOENT, "an unmap of nothing");
}

/* The second step cannot be, so the first one is not. */
static void check_all_or_none(struct trial *t)
{
	struct memory m = memory_new(t, 2 * PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE);
	const struct pasid_bind_op ops[] = {op_unmap(at, m.len), op_map(&m, 0, PAGE, at), op_map(&m, 0, PAGE, at)};
	struct pasid_ctx_info info = {.size = sizeof(info)};
	size_t failed = 0;

	trial_refused(t, pasid_bind(t->p, s.ctx, ops, ARRAY_SIZE(ops), &failed), -EEXIST, "a list that maps twice");
	if (failed != 2)
		trial_fail(t, "the third of three operations was to fail, and number %zu did", failed + 1);
	trial_must(t, pasid_ctx_info(t->p, s.ctx, &info));
	if (info.mappings != 1 || info.mapped_bytes != m.len)
		trial_fail(t,
			   "after a list that was refused %llu mappings of %llu bytes are left instead of one of %zu",
			   (unsigned long long)info.mappings, (unsigned long long)info.mapped_bytes, m.len);
	space_unmap(&s, at, m.len);
}

/* 0, or what was refused. */
static int come_and_go(struct trial *t)
{
	const struct pasid_ctx_args args = {.size = sizeof(args), .device = t->device};
	uint32_t ctx, buf;
	uint64_t iova;
	int r = pasid_ctx_new(t->p, &args, &ctx);

	if (r == 0)
		r = pasid_buf_new(t->p, t->device, 16 * PAGE, &buf, NULL);
	if (r == 0)
		r = pasid_map(t->p, ctx, buf, 0, 16 * PAGE, READ_WRITE, &iova);
	if (r == 0)
		r = pasid_buf_free(t->p, buf);
	if (r == 0)
		r = pasid_ctx_free(t->p, ctx);
	if (r == 0 && pasid_ctx_free(t->p, ctx) != -ENOENT)
		trial_fail(t, "context %u could be freed twice", ctx);
	return r;
}

/* More rounds than there may be contexts at a time (docs/configuration.md): what is not given back is missed. */
static void check_released(struct trial *t)
{
	enum { ROUNDS = 300 };
	uint64_t until = util_now_ns() + 5000000000u;
	unsigned int i;

	trial_must(t, come_and_go(t));
	for (i = 1; i < ROUNDS && util_now_ns() < until; i++)
		if (come_and_go(t) < 0)
			trial_fail(t, "a context with a mapping came and went %u times, and then no more: %s", i,
				   pasid_error(t->p));
	if (i < ROUNDS)
		trial_end(t, OUTCOME_OK, 0, "%u times instead of %d, which took 5 s", i, ROUNDS);
}

static const struct check checks[] = {
	{"large", check_large, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"pages", check_pages, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"partial-unmap", check_partial_unmap, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"unmap-in-use", check_unmap_in_use, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"replace", check_replace, NEEDS_WORK, PASID_FEATURE_ATOMIC_REPLACE},
	{"split", check_split, NEEDS_WORK | NEEDS_PRIVATE, PASID_FEATURE_PARTIAL_UNMAP | PASID_FEATURE_ATOMIC_REPLACE},
	{"limits", check_limits, 0, 0},
	{"all-or-none", check_all_or_none, 0, 0},
	{"released", check_released, 0, 0},
};

const struct checks address_checks = {checks, ARRAY_SIZE(checks)};
