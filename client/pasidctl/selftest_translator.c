/* SPDX-License-Identifier: MIT */
/* See selftest_checks.h: does each context reach its own memory, at once, and nothing that it has no more? */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "selftest_checks.h"

#define ROUNDS 20u

/* ---- the same addresses in several contexts ---- */

/* Two pages of memory, at the same IOVA in every context. */
struct room {
	struct space s;
	struct memory m;
	uint64_t at;
};

static struct room room_new(struct trial *t, uint64_t at)
{
	struct room r = {.s = space_new(t), .m = memory_new(t, 2 * PAGE), .at = at};

	if (at)
		space_map_at(&r.s, &r.m, 0, r.m.len, READ_WRITE, at);
	else
		r.at = space_map(&r.s, &r.m, 0, r.m.len, READ_WRITE);
	return r;
}

static void check_private(struct trial *t)
{
	struct room a = room_new(t, 0), b = room_new(t, a.at);
	uint64_t key = trial_key(t);
	uint8_t all[PAGE];

	pattern_write(b.m.map, b.m.len, key);
	space_fill(&a.s, a.at, PAGE, 0x11111111);
	must_keep(t, b.m.map, b.m.len, key, "another context's memory at the same IOVA, after a fill");
	memset(all, 0x11, sizeof(all));
	must_equal(t, a.m.map, all, sizeof(all), "a fill of one page");
	space_copy(&b.s, b.at + PAGE, b.at, PAGE);
	must_equal(t, b.m.map + PAGE, b.m.map, PAGE, "a copy at an IOVA that another context has, too");
	must_equal(t, a.m.map, all, sizeof(all), "memory at the same IOVA, after another context's copy");
}

/* More contexts than slots in turn, so that each job is a switch; what they copy is new each time. */
static void check_switch(struct trial *t)
{
	static struct room rooms[SLOTS_MOST + 1];
	unsigned int contexts = t->info->slots + 1;
	unsigned int n = trial_times(t, contexts * 2 < 100 ? 100 : contexts * 2, 1, contexts * 2);
	char what[96];

	for (unsigned int i = 0; i < contexts; i++)
		rooms[i] = room_new(t, rooms[0].at);
	for (unsigned int i = 0; i < n; i++) {
		struct room *r = &rooms[i % contexts];

		pattern_write(r->m.map, PAGE, trial_key(t));
		memset(r->m.map + PAGE, 0, PAGE);
		space_copy(&r->s, r->at + PAGE, r->at, PAGE);
		snprintf(what, sizeof(what), "the copy after %u switches among %u contexts", i, contexts);
		must_equal(t, r->m.map + PAGE, r->m.map, PAGE, what);
	}
}

/* ---- what is not mapped any more ---- */

/* A context, a page to copy into, and a page that comes and goes. */
struct touch {
	struct space s;
	struct memory own, gone;
	uint64_t own_at;
};

static struct touch touch_new(struct trial *t)
{
	struct touch u = {.s = space_new(t), .own = memory_new(t, PAGE), .gone = memory_new(t, PAGE)};

	u.own_at = space_map(&u.s, &u.own, 0, PAGE, READ_WRITE);
	return u;
}

/* Reads `at` and writes there, where nothing is mapped: the memory that was there before stays as it is and unread. */
static void touch_gone(struct touch *u, uint64_t at, const char *what)
{
	struct trial *t = u->s.t;
	uint64_t key = trial_key(t);
	int r;

	pattern_write(u->gone.map, PAGE, key);
	memset(u->own.map, 0, PAGE);
	r = space_try_copy(&u->s, u->own_at, at, PAGE);
	if (pattern_found(u->own.map, PAGE, key, PAGE))
		trial_fail(t, "%s at 0x%llx could still be read by the device", what, (unsigned long long)at);
	space_faulted(&u->s, r, at, at + PAGE - 1, 1, PASID_FAULT_UNMAPPED);
	r = space_try_fill(&u->s, at, PAGE, 0x66666666);
	must_keep(t, u->gone.map, PAGE, key, what);
	space_faulted(&u->s, r, at, at + PAGE - 1, 2, PASID_FAULT_UNMAPPED);
}

/* A stale entry of a TLB shows here. */
static void check_unmap(struct trial *t)
{
	unsigned int n = trial_times(t, ROUNDS, 3, 1);
	struct touch u = touch_new(t);

	for (unsigned int i = 0; i < n; i++) {
		uint64_t at = space_map(&u.s, &u.gone, 0, PAGE, READ_WRITE);

		space_fill(&u.s, at, PAGE, i);
		space_unmap(&u.s, at, PAGE);
		touch_gone(&u, at, "memory that was unmapped");
	}
}

/* The next mapping at the same IOVA, of other memory, is what the device sees. */
static void check_remap(struct trial *t)
{
	unsigned int n = trial_times(t, ROUNDS, 2, 2);
	struct touch u = touch_new(t);
	uint64_t at = space_map(&u.s, &u.gone, 0, PAGE, READ_WRITE), key;

	space_fill(&u.s, at, PAGE, 1);
	for (unsigned int i = 0; i < n; i++) {
		struct memory next = memory_new(t, PAGE);

		pattern_write(next.map, PAGE, trial_key(t));
		key = trial_key(t);
		pattern_write(u.gone.map, PAGE, key);
		space_unmap(&u.s, at, PAGE);
		space_map_at(&u.s, &next, 0, PAGE, READ_WRITE, at);
		space_copy(&u.s, u.own_at, at, PAGE);
		must_equal(t, u.own.map, next.map, PAGE, "a copy from memory that was mapped in place of another");
		space_fill(&u.s, at, PAGE, i);
		must_keep(t, u.gone.map, PAGE, key, "memory in whose place other memory was mapped");
		trial_must(t, pasid_buf_free(t->p, u.gone.buf));
		u.gone = next;
	}
}

static void check_read_only(struct trial *t)
{
	struct touch u = touch_new(t);
	uint64_t at = space_map(&u.s, &u.gone, 0, PAGE, PASID_READ), key = trial_key(t);
	int r;

	pattern_write(u.gone.map, PAGE, key);
	space_copy(&u.s, u.own_at, at, PAGE);
	must_equal(t, u.own.map, u.gone.map, PAGE, "a copy from memory that is mapped for reading");
	r = space_try_fill(&u.s, at, PAGE, 0x66666666);
	must_keep(t, u.gone.map, PAGE, key, "memory that is mapped for reading only");
	space_faulted(&u.s, r, at, at + PAGE - 1, 2, PASID_FAULT_PERMISSION);
	/* For writing now, and then no more. */
	space_unmap(&u.s, at, PAGE);
	space_map_at(&u.s, &u.gone, 0, PAGE, READ_WRITE, at);
	space_fill(&u.s, at, PAGE, 1);
	space_unmap(&u.s, at, PAGE);
	space_map_at(&u.s, &u.gone, 0, PAGE, PASID_READ, at);
	pattern_write(u.gone.map, PAGE, key);
	r = space_try_fill(&u.s, at, PAGE, 0x66666666);
	must_keep(t, u.gone.map, PAGE, key, "memory that was mapped for writing, and is for reading only");
	space_faulted(&u.s, r, at, at + PAGE - 1, 2, PASID_FAULT_PERMISSION);
}

/* A new context takes the place, and maybe an id, that an earlier one had. */
static void check_freed_context(struct trial *t)
{
	unsigned int n = trial_times(t, ROUNDS, 3, 1);

	for (unsigned int i = 0; i < n; i++) {
		struct touch before = touch_new(t), u;
		uint64_t at;

		(void)job_at(&before.s, 0);
		at = space_map(&before.s, &before.gone, 0, PAGE, READ_WRITE);
		space_fill(&before.s, at, PAGE, i);
		space_free(&before.s);
		u = touch_new(t);
		(void)job_at(&u.s, 0);
		u.gone = before.gone;
		/* The daemon chooses the same addresses for the same mappings; if it does not, this may be one of them. */
		if (at != u.own_at && at - u.s.commands_iova >= u.s.commands.len)
			touch_gone(&u, at, "memory of a context that was freed");
		space_free(&u.s);
	}
}

/* ---- faults ---- */

/* A job that faults in the middle of a page: told with the address, to its owner, and not to others that work there. */
static void check_fault(struct trial *t)
{
	struct trial other = *t;
	struct pasid_event ev = {.size = sizeof(ev)};
	struct pasid_ctx_info info = {.size = sizeof(info)};
	struct touch u = touch_new(t);
	struct room bystander;
	uint64_t hole = space_hole(&u.s, PAGE);
	int r;

	trial_begin(&other, SAME_UID);
	bystander = room_new(&other, 0);
	space_fill(&bystander.s, bystander.at, PAGE, 1);
	r = space_try_copy(&u.s, u.own_at, hole + 0x123, 16);
	space_faulted(&u.s, r, hole + 0x123, hole + 0x123 + 15, 1, PASID_FAULT_UNMAPPED);
	r = space_try_fill(&u.s, hole + 0x400, 64, 1);
	space_faulted(&u.s, r, hole + 0x400, hole + 0x43f, 2, PASID_FAULT_UNMAPPED);
	space_fill(&u.s, u.own_at, PAGE, 1); /* the context goes on */
	space_fill(&bystander.s, bystander.at, PAGE, 1);
	if (pasid_next_event(other.p, &ev) != 0)
		trial_fail(t, "a fault of context %u was told to another connection: %s", u.s.ctx, ev.text);
	trial_must(t, pasid_ctx_info(t->p, u.s.ctx, &info));
	if (info.faults != 2)
		trial_fail(t, "context %u faulted twice, and the daemon counts %llu", u.s.ctx,
			   (unsigned long long)info.faults);
}

static const struct check checks[] = {
	{"private", check_private, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"switch", check_switch, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"unmap", check_unmap, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"remap", check_remap, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"read-only", check_read_only, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"freed-context", check_freed_context, NEEDS_WORK | NEEDS_PRIVATE, 0},
	{"fault", check_fault, NEEDS_WORK | NEEDS_PRIVATE | NEEDS_TOLD, 0},
};

const struct checks translator_checks = {checks, ARRAY_SIZE(checks)};
