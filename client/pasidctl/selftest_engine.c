/* SPDX-License-Identifier: MIT */
/* See selftest_checks.h: does the device do what commands say, in order, each once, and is it told? */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "selftest_checks.h"

#define DATA_PAGES 4u
#define DATA_BYTES (DATA_PAGES * PAGE)

/* ---- what one command does ---- */

/* How long it takes is known from the fastest of a few. */
static void first_job(struct trial *t)
{
	struct memory m = memory_new(t, 2 * PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), job;
	struct job j = job_at(&s, 0);
	int r;

	job_copy(&j, at + PAGE, at, PAGE);
	for (unsigned int i = 0; i < 3; i++) {
		uint64_t begun = util_now_ns();

		pattern_write(m.map, PAGE, trial_key(t));
		r = pasid_submit(t->p, s.ctx, j.iova, j.len, &job);
		if (r == -EOPNOTSUPP)
			trial_end(t, OUTCOME_UNTRIED, r, "%s", pasid_error(t->p));
		trial_must(t, r);
		job_done(&s, job);
		begun = util_now_ns() - begun;
		must_equal(t, m.map + PAGE, m.map, PAGE, "a copy of one page");
		if (!t->job_ns || begun < t->job_ns)
			t->job_ns = begun;
	}
}

static void check_fill(struct trial *t)
{
	static const struct {
		uint32_t off, len;
	} cases[] = {{4092, 8}, {100, 2 * PAGE}, {0, 4}, {64, 4032}, {8, 60}, {0, DATA_BYTES}};
	unsigned int n = trial_times(t, ARRAY_SIZE(cases), 2, 2);
	struct memory m = memory_new(t, DATA_BYTES);
	uint8_t should[DATA_BYTES];
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE);
	char what[96];

	for (unsigned int i = 0; i < n; i++) {
		uint32_t value = (uint32_t)trial_key(t);

		pattern_write(should, sizeof(should), trial_key(t));
		memcpy(m.map, should, sizeof(should));
		for (uint32_t b = 0; b < cases[i].len; b++)
			should[cases[i].off + b] = (uint8_t)(value >> b % 4 * 8);
		space_fill(&s, at + cases[i].off, cases[i].len, value);
		snprintf(what, sizeof(what), "a fill of %u bytes at offset %u with 0x%08x", cases[i].len, cases[i].off,
			 value);
		must_equal(t, m.map, should, sizeof(should), what);
	}
}

static void check_copy(struct trial *t)
{
	static const struct {
		uint32_t dst, src, len;
	} cases[] = {{4093, 1, 7},     {5, 4090, 2 * PAGE + 3}, {1, 0, 1},         {3, 4095, PAGE + 1},
		     {0, 0, PAGE - 1}, {8, 4088, 16},           {0, 0, DATA_BYTES}};
	unsigned int n = trial_times(t, ARRAY_SIZE(cases), 2, 2);
	struct memory dst = memory_new(t, DATA_BYTES), src = memory_new(t, DATA_BYTES);
	uint8_t should[DATA_BYTES];
	struct space s = space_new(t);
	uint64_t to = space_map(&s, &dst, 0, dst.len, READ_WRITE), from = space_map(&s, &src, 0, src.len, PASID_READ);
	char what[96];

	for (unsigned int i = 0; i < n; i++) {
		pattern_write(src.map, src.len, trial_key(t));
		pattern_write(should, sizeof(should), trial_key(t));
		memcpy(dst.map, should, sizeof(should));
		memcpy(should + cases[i].dst, src.map + cases[i].src, cases[i].len);
		space_copy(&s, to + cases[i].dst, from + cases[i].src, cases[i].len);
		snprintf(what, sizeof(what), "a copy of %u bytes from offset %u to offset %u", cases[i].len,
			 cases[i].src, cases[i].dst);
		must_equal(t, dst.map, should, sizeof(should), what);
	}
}

/* ---- many jobs ---- */

#define CELL 16u

/* Each job hands on what the one before it has put down. */
static void check_order(struct trial *t)
{
	unsigned int n = trial_times(t, PLACES, 1, 4);
	struct memory m = memory_new(t, PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), last = 0;

	pattern_write(m.map, CELL, trial_key(t));
	for (unsigned int i = 0; i < n; i++) {
		struct job j = job_at(&s, i);

		job_copy(&j, at + (i + 1) * CELL, at + i * CELL, CELL);
		last = job_submit(&j);
	}
	job_done(&s, last);
	for (unsigned int i = 1; i <= n; i++)
		if (memcmp(m.map + i * CELL, m.map, CELL) != 0)
			trial_fail(t, "of %u jobs, each of which hands on a word, job %u ran before job %u was done", n,
				   i + 1, i);
}

static void look_at_fence(struct trial *t, const struct space *s, const uint8_t *cells, uint64_t *seen)
{
	uint64_t done;

	trial_must(t, pasid_fence(t->p, s->ctx, &done));
	if (done < *seen || done > s->jobs)
		trial_fail(t, "the fence of context %u went from %llu to %llu, with %llu jobs submitted", s->ctx,
			   (unsigned long long)*seen, (unsigned long long)done, (unsigned long long)s->jobs);
	for (uint64_t i = *seen; i < done; i++)
		if (cells[i * CELL] != i + 1)
			trial_fail(t, "the fence of context %u said %llu before job %llu had written", s->ctx,
				   (unsigned long long)done, (unsigned long long)i + 1);
	*seen = done;
}

/* The fence rises, never ahead of what the jobs write. */
static void check_fence(struct trial *t)
{
	unsigned int n = trial_times(t, PLACES, 1, 3);
	struct memory m = memory_new(t, PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), seen = 0, until;
	struct pasid_ctx_info info = {.size = sizeof(info)};

	for (unsigned int i = 0; i < n; i++) {
		struct job j = job_at(&s, i);

		job_fill(&j, at + i * CELL, CELL, i + 1);
		(void)job_submit(&j);
	}
	until = util_now_ns() + 10000000000u;
	while (seen < n && util_now_ns() < until) {
		look_at_fence(t, &s, m.map, &seen);
		clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = 20000}, NULL);
	}
	job_done(&s, n);
	look_at_fence(t, &s, m.map, &seen);
	trial_must(t, pasid_ctx_info(t->p, s.ctx, &info));
	if (info.submitted != n || info.completed != n || info.faults)
		trial_fail(t, "of %u jobs the daemon counts %llu submitted, %llu completed, %llu faults", n,
			   (unsigned long long)info.submitted, (unsigned long long)info.completed,
			   (unsigned long long)info.faults);
}

/* A wheel of cells, which a job turns by one: how far it has turned says how often the job ran. */
#define WHEEL_CELLS 61u
#define WHEEL_BYTES (WHEEL_CELLS * CELL)
#define OUT_MAX 8u /* jobs */

struct wheel {
	struct space s;
	struct memory m;
	struct job turn;
	uint8_t was[WHEEL_BYTES];
};

static void wheel_make(struct trial *t, struct wheel *w)
{
	uint64_t at, spare;

	w->s = space_new(t);
	w->m = memory_new(t, PAGE);
	at = space_map(&w->s, &w->m, 0, w->m.len, READ_WRITE);
	spare = at + PAGE / 2;
	pattern_write(w->was, WHEEL_BYTES, trial_key(t));
	memcpy(w->m.map, w->was, WHEEL_BYTES);
	w->turn = job_at(&w->s, 0);
	job_copy(&w->turn, spare, at, WHEEL_BYTES);
	job_copy(&w->turn, at, spare + CELL, WHEEL_BYTES - CELL);
	job_copy(&w->turn, at + WHEEL_BYTES - CELL, spare, CELL);
}

static void wheel_turn(struct wheel *w)
{
	uint64_t job = job_submit(&w->turn);

	if (job > OUT_MAX)
		job_done(&w->s, job - OUT_MAX);
}

static bool wheel_stands_at(const struct wheel *w, size_t turns)
{
	size_t head = turns % WHEEL_CELLS * CELL;

	return memcmp(w->m.map, w->was + head, WHEEL_BYTES - head) == 0 &&
	       memcmp(w->m.map + WHEEL_BYTES - head, w->was, head) == 0;
}

static void wheel_check(struct trial *t, struct wheel *w)
{
	size_t turns = 0;

	job_done(&w->s, w->s.jobs);
	if (wheel_stands_at(w, w->s.jobs))
		return;
	while (turns < WHEEL_CELLS && !wheel_stands_at(w, turns))
		turns++;
	if (turns == WHEEL_CELLS)
		trial_fail(t, "context %u submitted %llu jobs, and some were carried out in part", w->s.ctx,
			   (unsigned long long)w->s.jobs);
	trial_fail(t, "context %u submitted %llu jobs, and the number of those that ran is %zu, not %zu, modulo %u",
		   w->s.ctx, (unsigned long long)w->s.jobs, turns, (size_t)w->s.jobs % WHEEL_CELLS, WHEEL_CELLS);
}

static void check_many_jobs(struct trial *t)
{
	unsigned int n = trial_times(t, 500, 3, 2);
	struct wheel w = {0};

	wheel_make(t, &w);
	for (unsigned int i = 0; i < n; i++)
		wheel_turn(&w);
	wheel_check(t, &w);
}

static void check_many_contexts(struct trial *t)
{
	static struct wheel wheels[2 * SLOTS_MOST];
	unsigned int contexts = t->info->slots + (t->info->slots < 8 ? t->info->slots + 1 : 8);
	unsigned int n = trial_times(t, 10, contexts * 3, 2);

	for (unsigned int i = 0; i < contexts; i++)
		wheel_make(t, &wheels[i]);
	for (unsigned int i = 0; i < n * contexts; i++)
		wheel_turn(&wheels[i % contexts]);
	for (unsigned int i = 0; i < contexts; i++)
		wheel_check(t, &wheels[i]);
}

/* ---- what is no job ---- */

static void check_submissions(struct trial *t)
{
	struct memory m = memory_new(t, PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), job;
	struct job j = job_at(&s, 0);
	int r;

	job_fill(&j, at, 64, 1);
	trial_refused(t, pasid_submit(t->p, s.ctx, j.iova, 0, &job), -EINVAL, "a job of no commands");
	trial_refused(t, pasid_submit(t->p, s.ctx, j.iova, 2ull * t->info->submit_max, &job), -ERANGE,
		      "a job of twice submit_max");
	if (t->info->iova_last < UINT64_MAX - PAGE)
		trial_refused(t, pasid_submit(t->p, s.ctx, t->info->iova_last + 1, j.len, &job), -ERANGE,
			      "commands beyond the aperture");
	r = pasid_submit(t->p, s.ctx, j.iova + 1, j.len, &job);
	if (r < 0) /* a driver may take commands anywhere */
		trial_refused(t, r, -EINVAL, "a job of misaligned commands");
	else
		s.jobs++;
	job_done(&s, job_submit(&j));
}

/* There they cannot be fetched. */
static void check_commands_unmapped(struct trial *t)
{
	struct memory m = memory_new(t, PAGE);
	struct space s = space_new(t);
	uint64_t at = space_map(&s, &m, 0, m.len, READ_WRITE), hole = space_hole(&s, PAGE), job;
	struct job j = job_at(&s, 0);
	int r;

	job_fill(&j, at, 64, 1);
	r = pasid_submit(t->p, s.ctx, hole, j.len, &job);
	if (r == 0) {
		s.jobs++;
		r = job_wait(&s, job);
		space_faulted(&s, r, hole, hole + PAGE - 1, 4, PASID_FAULT_UNMAPPED);
	}
	if (m.map[0])
		trial_fail(t, "commands at 0x%llx, where nothing is mapped, were carried out",
			   (unsigned long long)hole);
	space_fill(&s, at, 64, 1);
}

static const struct check checks[] = {
	{"first-job", first_job, NEEDS_WORK, 0},
	{"fill", check_fill, NEEDS_WORK, 0},
	{"copy", check_copy, NEEDS_WORK, 0},
	{"order", check_order, NEEDS_WORK, 0},
	{"fence", check_fence, NEEDS_WORK, 0},
	{"many-jobs", check_many_jobs, NEEDS_WORK, 0},
	{"many-contexts", check_many_contexts, NEEDS_WORK, 0},
	{"submissions", check_submissions, NEEDS_WORK, 0},
	{"commands-unmapped", check_commands_unmapped, NEEDS_WORK | NEEDS_PRIVATE, 0},
};

const struct checks engine_checks = {checks, ARRAY_SIZE(checks)};
