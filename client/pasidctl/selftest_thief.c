/* SPDX-License-Identifier: MIT */
/*
 * See selftest_checks.h: the thief, who is told where the bank's memory is and tries all that a program can to read it or
 * to change it. What its tries return is nobody's concern; what counts is which bytes it got, and the bank's own word.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "selftest_bank.h"
#include "selftest_checks.h"

#define SCRIBBLE 0x66666666u

struct thief {
	struct trial *t;
	struct space s;
	struct memory own, loot;
	uint64_t own_at, loot_at;
};

/* That its commands work is what makes its failures say anything. */
static struct thief thief_open(struct trial *t)
{
	struct thief x = {
		.t = t, .s = space_new(t), .own = memory_new(t, SECRET_BYTES), .loot = memory_new(t, SECRET_BYTES)};

	x.own_at = space_map(&x.s, &x.own, 0, x.own.len, READ_WRITE);
	x.loot_at = space_map(&x.s, &x.loot, 0, x.loot.len, READ_WRITE);
	pattern_write(x.own.map, x.own.len, trial_key(t));
	space_copy(&x.s, x.loot_at, x.own_at, PAGE);
	must_equal(t, x.loot.map, x.own.map, PAGE, "a copy of the thief's own bytes");
	bank_works(t);
	return x;
}

static void got_nothing(struct trial *t, const struct memory *loot, const char *after)
{
	size_t found = pattern_found(loot->map, loot->len, t->bank->key, SECRET_BYTES);

	if (found)
		trial_fail(t, "the thief has %zu of %u bytes of the bank's secret after %s%s", found, SECRET_BYTES,
			   after, t->info->mode == PASID_MODE_GLOBAL ? "; mode global keeps nobody apart" : "");
	bank_is_intact(t, after);
}

static void thief_reads(struct trial *t)
{
	struct thief x = thief_open(t);
	uint64_t job;

	for (uint64_t off = 0; off < SECRET_BYTES; off += PAGE)
		(void)space_try_copy(&x.s, x.loot_at + off, t->bank->secret + off, PAGE);
	got_nothing(t, &x.loot, "copies from where the bank has its secret");
	(void)space_try_copy(&x.s, x.loot_at, t->bank->mirror, PAGE);
	(void)space_try_copy(&x.s, x.loot_at + PAGE, t->bank->commands, PAGE);
	got_nothing(t, &x.loot, "copies from the rest of the bank's memory");
	/* Its commands, run by the thief. */
	if (pasid_submit(t->p, x.s.ctx, t->bank->commands, PLACE_BYTES, &job) == 0)
		(void)job_wait(&x.s, job);
	got_nothing(t, &x.loot, "a job of commands where the bank has its own");
}

static void thief_writes(struct trial *t)
{
	struct thief x = thief_open(t);

	for (uint64_t off = 0; off < SECRET_BYTES; off += PAGE)
		(void)space_try_fill(&x.s, t->bank->secret + off, PAGE, SCRIBBLE);
	(void)space_try_copy(&x.s, t->bank->mirror, x.own_at, PAGE);
	(void)space_try_fill(&x.s, t->bank->commands, PLACE_BYTES, SCRIBBLE);
	bank_is_intact(t, "writes to where the bank has its memory");
	bank_works(t);
	bank_is_intact(t, "more work for it");
}

/* The thief's own memory, where the bank has its secret. */
static void thief_same_iova(struct trial *t)
{
	struct thief x = thief_open(t);
	uint64_t at = t->bank->secret;

	space_map_at(&x.s, &x.own, 0, x.own.len, READ_WRITE, at);
	bank_works(t);
	for (uint64_t off = 0; off < SECRET_BYTES; off += PAGE)
		space_copy(&x.s, x.loot_at + off, at + off, PAGE);
	got_nothing(t, &x.loot, "copies from its own memory at the bank's addresses");
	must_equal(t, x.loot.map, x.own.map, SECRET_BYTES,
		   "a copy from the thief's own memory at the bank's addresses");
	space_fill(&x.s, at, PAGE, SCRIBBLE);
	bank_is_intact(t, "a fill of the thief's own memory at the bank's addresses");
	space_unmap(&x.s, at, x.own.len);
	(void)space_try_copy(&x.s, x.loot_at, at, PAGE);
	got_nothing(t, &x.loot, "unmapping its own memory at the bank's addresses");
}

/* Where drivers have windows, tables, rings; outside of the aperture; no address at all. Not where interrupts are made
 * (x86: 0xfee00000): a machine may take that amiss. */
static void thief_addresses(struct trial *t)
{
	const uint64_t places[] = {
		0x1000,       0,
		0x100000,     t->info->iova_last + 1,
		0x4000000000, t->info->iova_first - PAGE,
		0x8000000000, 0x100000000000,
		1ull << 63,   UINT64_MAX - PAGE + 1,
	};
	unsigned int n = trial_times(t, ARRAY_SIZE(places), 2, 2);
	struct thief x = thief_open(t);

	for (unsigned int i = 0; i < n; i++) {
		if (places[i] - t->info->iova_first <= t->info->iova_last - t->info->iova_first &&
		    t->info->mode == PASID_MODE_GLOBAL) /* somebody's memory, then */
			continue;
		(void)space_try_copy(&x.s, x.loot_at, places[i], PAGE);
		got_nothing(t, &x.loot, "copies from outside of what can be mapped");
		(void)space_try_fill(&x.s, places[i], PAGE, SCRIBBLE);
	}
	bank_works(t);
	bank_is_intact(t, "writes outside of what can be mapped");
	space_copy(&x.s, x.loot_at, x.own_at, PAGE);
	must_equal(t, x.loot.map, x.own.map, PAGE, "a copy of the thief's own bytes, afterwards");
}

/* Each of the bank's numbers is answered as one that never was. */
static void thief_ids(struct trial *t)
{
	const struct bank_page *bank = t->bank;
	struct pasid_ctx_info info = {.size = sizeof(info)};
	const uint32_t foreign[] = {bank->ctx, UINT32_MAX - 1};
	struct space s = space_new(t);
	uint64_t job, at = bank->mirror;

	for (size_t i = 0; i < ARRAY_SIZE(foreign); i++) {
		uint32_t ctx = foreign[i];

		trial_refused(t, pasid_ctx_info(t->p, ctx, &info), -ENOENT, "a look at a context of the bank's");
		trial_refused(t, pasid_map(t->p, ctx, 1, 0, PAGE, PASID_READ, &at), -ENOENT,
			      "a map into a context of the bank's");
		trial_refused(t, pasid_unmap(t->p, ctx, bank->secret, SECRET_BYTES), -ENOENT,
			      "an unmap in a context of the bank's");
		if (t->job_ns)
			trial_refused(t, pasid_submit(t->p, ctx, bank->commands, PLACE_BYTES, &job), -ENOENT,
				      "a job in a context of the bank's");
		trial_refused(t, pasid_ctx_free(t->p, ctx), -ENOENT, "the end of a context of the bank's");
	}
	trial_refused(t, pasid_map(t->p, s.ctx, bank->buf, 0, PAGE, PASID_READ, &at), -ENOENT,
		      "a map of a buffer of the bank's");
	trial_refused(t, pasid_buf_free(t->p, bank->buf), -ENOENT, "the end of a buffer of the bank's");
	trial_refused(t, pasid_unmap(t->p, s.ctx, bank->secret, SECRET_BYTES), -ENOENT,
		      "an unmap of the bank's memory");
	if (t->job_ns)
		bank_works(t);
	bank_is_intact(t, "the use of its ids");
}

/* Commands that were good when they were submitted, and are others when they are carried out. */
static void thief_rewrites(struct trial *t)
{
	unsigned int n = trial_times(t, 50, 4, 1);
	struct thief x = thief_open(t);
	struct job good = job_at(&x.s, 0), bad = job_at(&x.s, 1), runs = job_at(&x.s, 2);

	for (unsigned int i = 0; i < 2; i++)
		job_copy(&good, x.loot_at + i * PAGE, x.own_at, PAGE);
	job_copy(&bad, x.loot_at, t->bank->secret, PAGE);
	job_fill(&bad, t->bank->secret, PAGE, SCRIBBLE);
	if (good.len != bad.len)
		trial_end(t, OUTCOME_SKIP, 0, "a copy and a fill are commands of different lengths");
	runs.len = good.len;
	for (unsigned int i = 0; i < n; i++) {
		uint64_t job, done = 0;

		memcpy(runs.at, good.at, good.len);
		job = job_submit(&runs);
		for (unsigned int k = 1; done < job && k < 1000000; k++) {
			memcpy(runs.at, k % 2 ? bad.at : good.at, good.len);
			trial_must(t, pasid_fence(t->p, x.s.ctx, &done));
		}
		(void)job_wait(&x.s, job);
	}
	got_nothing(t, &x.loot, "changing commands while they were carried out");
}

/* What the device keeps inside, wherever one of its slots does. */
static void thief_leftovers(struct trial *t)
{
	static struct space all[2 * SLOTS_MOST];
	unsigned int contexts = 2 * t->info->slots;
	size_t len = t->local && t->local->bytes < SECRET_BYTES ? t->local->bytes : SECRET_BYTES;
	struct memory loot = memory_new(t, (size_t)contexts * SECRET_BYTES);
	uint8_t command[PLACE_BYTES];

	bank_works(t);
	for (unsigned int i = 0; i < contexts; i++) {
		struct job j;
		uint64_t at;

		all[i] = space_new(t);
		at = space_map(&all[i], &loot, (uint64_t)i * SECRET_BYTES, SECRET_BYTES, READ_WRITE);
		j = job_at(&all[i], 0);
		if (t->local)
			job_add(&j, command, t->local->fetch(command, at, len));
		else /* what a device without an answer from memory has in its buffers */
			job_copy(&j, at, t->bank->secret, PAGE);
		(void)job_submit(&j);
	}
	for (unsigned int i = 0; i < contexts; i++)
		(void)job_wait(&all[i], all[i].jobs);
	got_nothing(t, &loot, "reading what was left inside of the device");
}

static const struct check checks[] = {
	{"thief-leftovers", thief_leftovers, NEEDS_WORK | NEEDS_BANK, 0},
	{"thief-reads", thief_reads, NEEDS_WORK | NEEDS_BANK, 0},
	{"thief-same-iova", thief_same_iova, NEEDS_WORK | NEEDS_BANK | NEEDS_PRIVATE, 0},
	{"thief-addresses", thief_addresses, NEEDS_WORK | NEEDS_BANK, 0},
	{"thief-ids", thief_ids, NEEDS_BANK, 0},
	{"thief-rewrites", thief_rewrites, NEEDS_WORK | NEEDS_BANK, 0},
	{"thief-writes", thief_writes, NEEDS_WORK | NEEDS_BANK, 0},
};

const struct checks thief_checks = {checks, ARRAY_SIZE(checks)};
