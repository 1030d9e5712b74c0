/* SPDX-License-Identifier: MIT */
/*
 * A process that dies at each instruction of a change of its page tables: a successor finds the memory as it is then, and
 * every address is what it was or what it was to be.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "pgtable_adopt_rig.h"

#define STEP_PAGES 16u
#define PICTURE 4096u

/* All that is mapped, ascending. */
struct picture {
	struct pgtable_leaf leaf[PICTURE];
	unsigned int n;
};

static int add_leaf(void *arg, const struct pgtable_leaf *l)
{
	struct picture *pic = arg;

	assert_true(pic->n < PICTURE);
	pic->leaf[pic->n++] = *l;
	return 0;
}

/* Bus address and MODEL_ flags, or 0. */
static uint64_t picture_at(const struct picture *pic, uint64_t iova)
{
	unsigned int low = 0, high = pic->n;
	const struct pgtable_leaf *l;

	while (low < high) {
		unsigned int mid = (low + high) / 2;

		if (pic->leaf[mid].iova.last < iova)
			low = mid + 1;
		else
			high = mid;
	}
	l = &pic->leaf[low];
	if (low == pic->n || l->iova.first > iova)
		return 0;
	return (l->bus + ((iova & ~(MODEL_PAGE - 1)) - l->iova.first)) | MODEL_MAPPED |
	       (l->writable ? MODEL_WRITABLE : 0);
}

struct change {
	struct range r;
	uint64_t bus;
	bool map;
};

struct story {
	const char *name;
	struct change before[3]; /* an empty range ends them */
	struct change dying;
};

#define AT(first, len)                     \
	{                                  \
		(first), (first) + (len)-1 \
	}

static const struct story stories[] = {
	{"a page beside others", {{AT(0, 8192), 0x5000, true}}, {AT(0x3000, 0x3000), 0x8000, true}},
	{"new tables on all levels",
	 {{AT(0, 4096), 0x5000, true}},
	 {AT(K512G - 0x2000, 0x4000), MODEL_1G - 0x2000, true}},
	{"blocks with pages about them", {{{0}}}, {AT(MODEL_1G - 0x1000, MODEL_1G + 0x2000), MODEL_1G - 0x1000, true}},
	{"a table stored whole", {{{0}}}, {AT(MODEL_2M, MODEL_2M), MODEL_PAGE, true}},
	{"pages of several", {{AT(0, 0x8000), 0x5000, true}}, {AT(0x2000, 0x3000), 0, false}},
	{"the last ones", {{AT(0x5000, 0x3000), 0, true}}, {AT(0x5000, 0x3000), 0, false}},
	{"the last ones on both sides of a boundary",
	 {{AT(K512G - 0x3000, 0x6000), 0, true}},
	 {AT(K512G - 0x3000, 0x6000), 0, false}},
	{"a block cut", {{AT(MODEL_2M, MODEL_2M), 0, true}}, {AT(MODEL_2M + 0x5000, 0x2000), 0, false}},
	{"a large block cut", {{AT(MODEL_1G, MODEL_1G), 0, true}}, {AT(MODEL_1G + MODEL_2M, MODEL_2M), 0, false}},
	{"a subtree",
	 {{AT(0, 4096), 0, true},
	  {AT(MODEL_1G + 0x5000, 0x2000), 0, true},
	  {AT(2 * MODEL_1G - 0x5000, 0x2000), 0, true}},
	 {AT(MODEL_1G, MODEL_1G), 0, false}},
};

static void change(struct pgtable *pt, const struct change *c)
{
	if (c->map)
		make(pt, c->r, c->bus, true);
	else
		take_away(pt, c->r);
}

struct dying {
	const struct story *story;
	const struct pgtable_format *format;
	struct table_pool *pool;
	struct pgtable *pt;
	struct picture before, after, now;
	uint64_t *last; /* memory as it was looked at last */
	unsigned int moments;
};

static void check_point(const struct dying *d, uint64_t iova)
{
	uint64_t now = picture_at(&d->now, iova), before = picture_at(&d->before, iova);
	bool touched = range_contains(d->story->dying.r, (struct range){iova, iova});

	if (now != before && !(touched && now == picture_at(&d->after, iova)))
		fail_msg("%s, %s: after %u stores 0x%llx is 0x%llx, and was 0x%llx", pgtable_format_name(d->format),
			 d->story->name, d->moments, (unsigned long long)iova, (unsigned long long)now,
			 (unsigned long long)before);
}

static void check_points(const struct dying *d, const struct picture *pic)
{
	for (unsigned int i = 0; i < pic->n; i++) {
		check_point(d, pic->leaf[i].iova.first);
		check_point(d, pic->leaf[i].iova.last);
	}
}

/* Takes everything back, and does it once more: as the record of what was wanted tells. */
static void finish(struct dying *d, struct pgtable *pt)
{
	const struct change *c = &d->story->dying;

	take_away(pt, c->r);
	if (c->map)
		make(pt, c->r, c->bus, true);
	pgtable_reclaim(pt);
}

static struct pgtable *adopt_picture(struct dying *d, struct table_pool *p, struct picture *pic)
{
	struct pgtable *pt;

	pic->n = 0;
	assert_int_equal(pgtable_adopt(&pt, d->format, p, pgtable_root(d->pt), add_leaf, pic), 0);
	return pt;
}

static bool same_picture(const struct picture *a, const struct picture *b)
{
	for (unsigned int i = 0; i < a->n; i++) {
		uint64_t first = a->leaf[i].iova.first, last = a->leaf[i].iova.last;

		if (picture_at(a, first) != picture_at(b, first) || picture_at(a, last) != picture_at(b, last))
			return false;
	}
	return true;
}

/* Every table but the root has something in it. */
static void nothing_empty(const struct pgtable *pt)
{
	uint32_t in_tables = 0;

	for (uint32_t page = 0; page < pt->pool->extent; page++) {
		const struct table_meta *m = &pt->pool->meta[page];

		in_tables += m->live != TABLE_UNKNOWN && (m->live > 0 || page == pt->root);
	}
	for (uint32_t page = pt->aside; page != TABLE_NONE; page = pt->pool->meta[page].next)
		in_tables++;
	assert_int_equal(in_tables, pt->pages);
}

/* It dies now. */
static void successor(struct dying *d)
{
	struct table_pool *p = pool_copy(d->pool), *again;
	struct pgtable *pt = adopt_picture(d, p, &d->now), *same;

	check_points(d, &d->before);
	check_points(d, &d->after);
	check_points(d, &d->now);
	nothing_empty(pt);
	pgtable_reclaim(pt);
	table_pool_adopted(p);
	finish(d, pt);
	again = pool_again(p);
	same = adopt_picture(d, again, &d->now);
	assert_int_equal(pgtable_pages(same), pgtable_pages(pt));
	assert_true(same_picture(&d->now, &d->after) && same_picture(&d->after, &d->now));
	pgtable_free(pt);
	pool_end(p);
	pgtable_free(same);
	table_pool_free(again);
}

static void look(struct dying *d)
{
	size_t bytes = STEP_PAGES * (size_t)TABLE_PAGE;

	if (memcmp(d->last, d->pool->base, bytes) == 0)
		return;
	memcpy(d->last, d->pool->base, bytes);
	d->moments++;
	successor(d);
}

/* Carries the change out in a process of its own, which is stopped after each instruction. False: it may not be traced. */
static bool stepwise(struct dying *d)
{
	bool crashed = false;
	int status;
	pid_t pid;

	assert_int_equal(madvise(d->pool->base, STEP_PAGES * (size_t)TABLE_PAGE, MADV_DOFORK), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(77);
		raise(SIGSTOP);
		change(d->pt, &d->story->dying);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		crashed = WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP;
		look(d);
		if (crashed || ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
	}
	assert_false(crashed);
	if (WIFSIGNALED(status) || WEXITSTATUS(status) == 77)
		return false;
	assert_int_equal(WEXITSTATUS(status), 0);
	return true;
}

/* How it ends if nobody dies. */
static void after_it(struct dying *d)
{
	struct table_pool *p = pool_copy(d->pool), *again;
	struct pgtable *pt = adopt_picture(d, p, &d->before);

	table_pool_adopted(p);
	change(pt, &d->story->dying);
	again = pool_again(p);
	pgtable_free(adopt_picture(d, again, &d->after));
	table_pool_free(again);
	pgtable_free(pt);
	pool_end(p);
}

static bool die_in(struct dying *d)
{
	size_t bytes = STEP_PAGES * (size_t)TABLE_PAGE;
	uint64_t *first;
	bool traced;

	d->pool = pool_new(STEP_PAGES, STEP_PAGES);
	assert_int_equal(pgtable_new(&d->pt, d->format, d->pool), 0);
	for (size_t i = 0; i < ARRAY_SIZE(d->story->before) && d->story->before[i].r.last; i++)
		change(d->pt, &d->story->before[i]);
	after_it(d);
	d->last = malloc(bytes);
	first = malloc(bytes);
	assert_true(d->last && first);
	memcpy(d->last, d->pool->base, bytes);
	memcpy(first, d->pool->base, bytes);
	d->moments = 0;
	traced = stepwise(d);
	assert_true(!traced || d->moments > 0);
	/* This process knows nothing of what the other one has done to the memory. */
	memcpy(d->pool->base, first, bytes);
	free(first);
	free(d->last);
	pgtable_free(d->pt);
	table_pool_free(d->pool);
	return traced;
}

static void dies_in_a_change(void **state)
{
	struct dying *d = calloc(1, sizeof(*d));
	bool traced = true;

	assert_non_null(d);
	d->format = *state;
	for (size_t i = 0; i < ARRAY_SIZE(stories) && traced; i++) {
		d->story = &stories[i];
		traced = die_in(d);
	}
	free(d);
	if (!traced) {
		printf("# skipped: this process may not trace its child\n");
		skip();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{"dies_in_a_change vmsa64", dies_in_a_change, NULL, NULL, (void *)(uintptr_t)&pgtable_vmsa64},
		{"dies_in_a_change x86_64", dies_in_a_change, NULL, NULL, (void *)(uintptr_t)&pgtable_x86_64},
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
