/* SPDX-License-Identifier: MIT */
/* See selftest_trial.h: the process, its verdict, and memory. */
#include "selftest_trial.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define BUDGET_NS 1200000000ull /* for the jobs of one check */
#define FOUND_BYTES 16u /* as many of a pattern are no accident */

void trial_end(struct trial *t, enum outcome outcome, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(t->verdict->text, sizeof(t->verdict->text), fmt, ap);
	va_end(ap);
	t->verdict->error = error;
	t->verdict->outcome = outcome;
	_exit(0);
}

void trial_must(struct trial *t, int r)
{
	if (r < 0)
		trial_end(t, r == -EDQUOT ? OUTCOME_UNTRIED : OUTCOME_FAIL, r, "%s", pasid_error(t->p));
}

void trial_refused(struct trial *t, int r, int should, const char *what)
{
	if (r >= 0)
		trial_fail(t, "%s was not refused, and should have been with %s", what, strerrorname_np(-should));
	if (r != should)
		trial_fail(t, "%s was refused with %s instead of %s: %s", what, strerrorname_np(-r),
			   strerrorname_np(-should), pasid_error(t->p));
}

static void become(struct trial *t, uid_t uid)
{
	if (uid == SAME_UID)
		return;
	if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
		trial_end(t, OUTCOME_UNTRIED, -errno, "uid %u cannot be taken: %s", uid, strerror(errno));
}

void trial_begin(struct trial *t, uid_t uid)
{
	int r;

	become(t, uid);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* which a change of uid forgets */
	r = pasid_connect(&t->p, t->socket);
	if (r < 0)
		trial_end(t, r == -EDQUOT ? OUTCOME_UNTRIED : OUTCOME_FAIL, r, "%s", pasid_error(NULL));
}

unsigned int trial_times(struct trial *t, unsigned int want, unsigned int jobs, unsigned int least)
{
	uint64_t most = BUDGET_NS / (t->job_ns ? t->job_ns * jobs : 1);

	if (most >= want)
		return want;
	if (most < least)
		most = least;
	snprintf(t->verdict->text, sizeof(t->verdict->text), "%llu times instead of %u, as a job takes %llu ms",
		 (unsigned long long)most, want, (unsigned long long)(t->job_ns / 1000000));
	return (unsigned int)most;
}

bool mode_tells(uint32_t mode)
{
	return mode == PASID_MODE_GPU_MMU || mode == PASID_MODE_GLOBAL || mode == PASID_MODE_NESTED;
}

/* ---- memory and what is in it ---- */

struct memory memory_new(struct trial *t, size_t len)
{
	struct memory m = {.len = len};
	void *map;

	trial_must(t, pasid_buf_new(t->p, t->device, len, &m.buf, &map));
	m.map = map;
	return m;
}

/* The output function of SplitMix64 (Steele, Lea, Flood 2014): one-to-one, and no two inputs look alike. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

uint64_t trial_key(struct trial *t)
{
	return mix(t->keys++);
}

static uint8_t pattern_byte(uint64_t key, size_t i)
{
	return (uint8_t)(mix(key + i / 8) >> i % 8 * 8);
}

void pattern_write(void *at, size_t len, uint64_t key)
{
	uint8_t *p = at;

	for (size_t i = 0; i < len; i++)
		p[i] = pattern_byte(key, i);
}

size_t pattern_found(const void *at, size_t len, uint64_t key, size_t pattern_len)
{
	uint8_t part[FOUND_BYTES];
	size_t found = 0;

	for (size_t off = 0; off + FOUND_BYTES <= pattern_len; off += FOUND_BYTES) {
		for (size_t i = 0; i < FOUND_BYTES; i++)
			part[i] = pattern_byte(key, off + i);
		found += memmem(at, len, part, FOUND_BYTES) ? FOUND_BYTES : 0;
	}
	return found;
}

size_t first_difference(const void *a, const void *b, size_t len)
{
	const uint8_t *x = a, *y = b;
	size_t i = 0;

	while (i < len && x[i] == y[i])
		i++;
	return i;
}

void must_equal(struct trial *t, const void *is, const void *should, size_t len, const char *what)
{
	const uint8_t *x = is, *y = should;
	size_t i = first_difference(is, should, len), n = 0;

	if (i == len)
		return;
	for (size_t at = i; at < len; at++)
		n += x[at] != y[at];
	trial_fail(t, "%s: %zu of %zu bytes are wrong; byte %zu is 0x%02x and should be 0x%02x", what, n, len, i, x[i],
		   y[i]);
}

void must_keep(struct trial *t, const void *at, size_t len, uint64_t key, const char *what)
{
	const uint8_t *p = at;

	for (size_t i = 0; i < len; i++)
		if (p[i] != pattern_byte(key, i))
			trial_fail(t, "%s: byte %zu of %zu was 0x%02x and is 0x%02x now", what, i, len,
				   pattern_byte(key, i), p[i]);
}
