/* SPDX-License-Identifier: MIT */
/*
 * The scheduler against a model that knows no rings: everything that waits has a stamp of when it began to wait or had
 * its last turn, and the oldest stamp wins, among uids, then connections, then contexts. Random operations compare each
 * turn with it; a simulation of slots with jobs of random lengths holds the wait bound against it.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/sched.h"
#include "unit/random.h"

#define UIDS 6
#define CONNS 4
#define ENTS 48
#define SLOTS 8
#define MOST(a, b) ((a) > (b) ? (a) : (b))

static unsigned int rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rand_r(&rng) % below;
}

/* What a place in a ring is to the model. */
struct place {
	bool waits;
	uint64_t stamp;
};

struct ent {
	struct sched_entity *h; /* NULL: not added */
	int uid, conn;
	uint32_t jobs;
	bool held;
	int slot, resident;
	struct place place;
	/* for the wait bound */
	uint64_t since;
	uint32_t most_uids, most_conns, most_ents;
};

struct mslot {
	int running, resident; /* -1, or index */
	bool in_service, full;
	uint32_t offered, used, in_flight;
	uint64_t idle_since;
	uint32_t length[SLOTS * 8]; /* simulation: what its jobs still take, first to end first */
};

struct world {
	struct sched *s;
	unsigned int slots;
	uint32_t burst;
	struct ent ent[ENTS];
	struct place uid[UIDS], conn[UIDS][CONNS];
	struct mslot slot[SLOTS];
	uint64_t clock; /* of stamps */
	uint64_t now; /* of the simulation */
};

static void world_init(struct world *w, unsigned int slots, uint32_t burst)
{
	memset(w, 0, sizeof(*w));
	w->slots = slots;
	w->burst = burst;
	for (unsigned int i = 0; i < slots; i++)
		w->slot[i] = (struct mslot){.running = -1, .resident = -1, .in_service = true};
	assert_int_equal(sched_new(&w->s, slots, burst), 0);
}

static bool place_set(struct world *w, struct place *p, bool waits)
{
	bool begins = waits && !p->waits;

	if (begins)
		p->stamp = ++w->clock;
	p->waits = waits;
	return begins;
}

/* After any change: who waits now? */
static void settle(struct world *w)
{
	bool uid[UIDS] = {0}, conn[UIDS][CONNS] = {0};

	for (int i = 0; i < ENTS; i++) {
		struct ent *e = &w->ent[i];

		if (place_set(w, &e->place, e->h && e->jobs && !e->held && e->slot < 0)) {
			e->since = w->now;
			e->most_uids = e->most_conns = e->most_ents = 0;
		}
		if (e->place.waits)
			uid[e->uid] = conn[e->uid][e->conn] = true;
	}
	for (int u = 0; u < UIDS; u++) {
		place_set(w, &w->uid[u], uid[u]);
		for (int c = 0; c < CONNS; c++)
			place_set(w, &w->conn[u][c], conn[u][c]);
	}
}

/* Whose turn it is, or -1. */
static int model_first(const struct world *w)
{
	int u = -1, c = -1, best = -1;

	for (int i = 0; i < UIDS; i++)
		if (w->uid[i].waits && (u < 0 || w->uid[i].stamp < w->uid[u].stamp))
			u = i;
	for (int i = 0; u >= 0 && i < CONNS; i++)
		if (w->conn[u][i].waits && (c < 0 || w->conn[u][i].stamp < w->conn[u][c].stamp))
			c = i;
	for (int i = 0; i < ENTS; i++)
		if (w->ent[i].place.waits && w->ent[i].uid == u && w->ent[i].conn == c &&
		    (best < 0 || w->ent[i].place.stamp < w->ent[best].place.stamp))
			best = i;
	return best;
}

static int model_slot(const struct world *w, int i)
{
	int best = -1;

	for (int k = 0; k < (int)w->slots; k++) {
		const struct mslot *at = &w->slot[k];

		if (at->in_service && at->running < 0 && at->resident == i)
			return k;
		if (at->in_service && at->running < 0 && (best < 0 || at->idle_since < w->slot[best].idle_since))
			best = k;
	}
	return best;
}

/* What the entity on this slot may be given further. */
static uint32_t model_more(const struct world *w, unsigned int slot)
{
	const struct mslot *at = &w->slot[slot];
	const struct ent *e = at->running < 0 ? NULL : &w->ent[at->running];
	uint32_t room = at->in_flight < w->burst ? w->burst - at->in_flight : 0;

	if (!e || !at->in_service || at->offered || at->full || e->held)
		return 0;
	if (model_first(w) >= 0)
		room = at->used < w->burst ? w->burst - at->used : 0;
	return room < e->jobs ? room : e->jobs;
}

static void model_forget(struct world *w, int slot)
{
	if (w->slot[slot].resident >= 0)
		w->ent[w->slot[slot].resident].resident = -1;
	w->slot[slot].resident = -1;
}

static void model_turn(struct world *w, int i, int slot, const struct sched_turn *t)
{
	struct mslot *at = &w->slot[slot];
	struct ent *e = &w->ent[i];

	assert_int_equal(t->slot, slot);
	assert_ptr_equal(t->tag, e);
	assert_int_equal(t->switched, at->resident != i);
	assert_int_equal(t->jobs, e->jobs < w->burst ? e->jobs : w->burst);
	if (e->resident >= 0)
		model_forget(w, e->resident);
	model_forget(w, slot);
	at->resident = at->running = i;
	e->resident = e->slot = slot;
	at->offered = t->jobs;
	settle(w);
	w->uid[e->uid].stamp = ++w->clock;
	w->conn[e->uid][e->conn].stamp = ++w->clock;
}

/* Asks for a turn and holds it against the model. */
static bool next(struct world *w, struct sched_turn *t)
{
	int i = model_first(w), slot = i < 0 ? -1 : model_slot(w, i);
	bool any = sched_next(w->s, t);

	if (slot >= 0) {
		assert_true(any);
		model_turn(w, i, slot, t);
		return true;
	}
	if (any) {
		assert_in_range(t->slot, 0, w->slots - 1);
		assert_int_not_equal(model_more(w, t->slot), 0);
		assert_int_equal(t->jobs, model_more(w, t->slot));
		assert_false(t->switched);
		assert_ptr_equal(t->tag, &w->ent[w->slot[t->slot].running]);
		w->slot[t->slot].offered = t->jobs;
		return true;
	}
	for (unsigned int k = 0; k < w->slots; k++)
		assert_int_equal(model_more(w, k), 0);
	return false;
}

static void model_vacate(struct world *w, unsigned int slot)
{
	struct mslot *at = &w->slot[slot];

	if (at->running >= 0)
		w->ent[at->running].slot = -1;
	at->running = -1;
	at->offered = at->used = at->in_flight = 0;
	at->full = false;
	settle(w);
}

static void op_idle(struct world *w, unsigned int slot)
{
	sched_idle(w->s, slot);
	if (w->slot[slot].running >= 0)
		w->slot[slot].idle_since = ++w->clock;
	model_vacate(w, slot);
}

static void op_begun(struct world *w, unsigned int slot, uint32_t n)
{
	struct mslot *at = &w->slot[slot];
	struct ent *e = &w->ent[at->running];

	sched_begun(w->s, slot, n);
	if (n == 0 && at->used == 0) {
		at->idle_since = ++w->clock;
		model_vacate(w, slot);
		return;
	}
	at->offered = 0;
	at->used += n;
	at->in_flight += n;
	at->full = n == 0;
	assert_true(at->in_flight <= w->burst);
	e->jobs -= n < e->jobs ? n : e->jobs;
	sched_set_jobs(w->s, e->h, e->jobs);
	settle(w);
}

static void op_ended(struct world *w, unsigned int slot, uint32_t n)
{
	struct mslot *at = &w->slot[slot];

	sched_ended(w->s, slot, n);
	at->in_flight = n < at->in_flight ? at->in_flight - n : 0;
	at->full = false;
}

static void op_jobs(struct world *w, struct ent *e, uint32_t jobs)
{
	sched_set_jobs(w->s, e->h, jobs);
	e->jobs = jobs;
	settle(w);
}

static void op_hold(struct world *w, struct ent *e, bool held)
{
	sched_hold(w->s, e->h, held);
	e->held = held;
	settle(w);
}

static void op_service(struct world *w, unsigned int slot, bool in_service)
{
	sched_slot_service(w->s, slot, in_service);
	w->slot[slot].in_service = in_service;
	if (!in_service)
		return;
	w->slot[slot].idle_since = 0;
	model_forget(w, (int)slot);
	model_vacate(w, slot);
}

static void op_add(struct world *w, int i)
{
	struct ent *e = &w->ent[i];

	*e = (struct ent){.uid = (int)rnd(UIDS), .conn = (int)rnd(CONNS), .slot = -1, .resident = -1};
	assert_int_equal(sched_add(w->s, (uid_t)e->uid, (uint64_t)e->conn, e, &e->h), 0);
}

static void op_remove(struct world *w, int i)
{
	struct ent *e = &w->ent[i];

	if (e->slot >= 0 && w->slot[e->slot].in_service)
		return;
	assert_null(sched_remove(w->s, e->h));
	e->h = NULL;
	if (e->resident >= 0)
		model_forget(w, e->resident);
	if (e->slot >= 0)
		model_vacate(w, (unsigned int)e->slot);
	settle(w);
}

static void world_check(const struct world *w)
{
	for (int i = 0; i < ENTS; i++) {
		if (!w->ent[i].h)
			continue;
		assert_int_equal(sched_running(w->s, w->ent[i].h), w->ent[i].slot);
		assert_int_equal(sched_resident(w->s, w->ent[i].h), w->ent[i].resident);
	}
	for (unsigned int k = 0; k < w->slots; k++) {
		const struct mslot *at = &w->slot[k];

		assert_int_equal(sched_slot_busy(w->s, k), at->running >= 0);
		assert_ptr_equal(sched_resident_tag(w->s, k), at->resident < 0 ? NULL : &w->ent[at->resident]);
	}
}

static void op_reset(struct world *w)
{
	sched_reset(w->s);
	for (unsigned int k = 0; k < w->slots; k++)
		op_service(w, k, true);
}

static void world_end(struct world *w)
{
	op_reset(w);
	for (int i = 0; i < ENTS; i++)
		if (w->ent[i].h)
			op_remove(w, i);
	assert_null(sched_free(w->s));
}

static void random_entity_op(struct world *w, uint32_t what, int i)
{
	struct ent *e = &w->ent[i];

	if (!e->h)
		op_add(w, i);
	else if (what < 60)
		op_jobs(w, e, rnd(3) ? rnd(2 * w->burst + 2) : 0);
	else if (what < 90)
		op_hold(w, e, rnd(3) == 0);
	else
		op_remove(w, i);
}

static void random_slot_op(struct world *w, uint32_t what, unsigned int slot)
{
	struct mslot *at = &w->slot[slot];
	struct sched_turn t;

	if (what < 50 && at->offered)
		op_begun(w, slot, rnd(at->offered + 1));
	else if (what < 60)
		op_ended(w, slot, rnd(at->in_flight + 2));
	else if (what < 75)
		op_idle(w, slot);
	else if (what < 78)
		op_service(w, slot, rnd(3) != 0);
	else
		next(w, &t);
}

static void test_model(void **state)
{
	static struct world w;

	(void)state;
	for (int round = 0; round < 40; round++) {
		world_init(&w, 1 + rnd(SLOTS), 1 + rnd(5));
		for (int n = 0; n < 3000; n++) {
			if (rnd(3))
				random_slot_op(&w, rnd(100), rnd(w.slots));
			else
				random_entity_op(&w, rnd(100), (int)rnd(ENTS));
			if (rnd(1000) == 0)
				op_reset(&w);
			world_check(&w);
		}
		world_end(&w);
	}
}

/* Holds everyone who waits, and whoever just began (i), against the bound that the header gives. */
static void check_bound(struct world *w, uint32_t job_max, int i)
{
	uint32_t uids = 0, conns[UIDS] = {0}, ents[UIDS][CONNS] = {{0}};

	for (int k = 0; k < ENTS; k++)
		ents[w->ent[k].uid][w->ent[k].conn] += w->ent[k].place.waits;
	for (int u = 0; u < UIDS; u++) {
		uids += w->uid[u].waits;
		for (int c = 0; c < CONNS; c++)
			conns[u] += w->conn[u][c].waits;
	}
	for (int k = 0; k < ENTS; k++) {
		struct ent *e = &w->ent[k];
		uint32_t n;

		if (e->place.waits) {
			e->most_uids = MOST(e->most_uids, uids);
			e->most_conns = MOST(e->most_conns, conns[e->uid]);
			e->most_ents = MOST(e->most_ents, ents[e->uid][e->conn]);
		}
		n = e->most_uids * e->most_conns * e->most_ents;
		if (e->place.waits || k == i)
			assert_true(w->now - e->since <= (n + w->slots - 1) / w->slots * w->burst * job_max);
	}
}

/* Begins what may begin; lengths are mostly the longest, for that is where a bound is tested. */
static void simulate_begin(struct world *w, uint32_t job_max)
{
	struct sched_turn t;

	check_bound(w, job_max, -1);
	while (next(w, &t)) {
		struct mslot *at = &w->slot[t.slot];
		uint32_t n = rnd(3) ? t.jobs : 1 + rnd(t.jobs);

		for (uint32_t k = 0; k < n; k++)
			at->length[at->in_flight + k] = rnd(3) ? job_max : 1 + rnd(job_max);
		if (at->used == 0)
			check_bound(w, job_max, at->running);
		op_begun(w, t.slot, n);
	}
}

/* One unit of time on every slot. */
static void simulate_tick(struct world *w)
{
	w->now++;
	for (unsigned int k = 0; k < w->slots; k++) {
		struct mslot *at = &w->slot[k];

		if (at->in_flight == 0 || --at->length[0] > 0)
			continue;
		memmove(at->length, at->length + 1, (at->in_flight - 1) * sizeof(at->length[0]));
		op_ended(w, k, 1);
		if (at->in_flight == 0)
			op_idle(w, k);
	}
}

static void test_wait_bound(void **state)
{
	static struct world w;

	(void)state;
	for (int round = 0; round < 60; round++) {
		uint32_t job_max = 1 + rnd(6), ents = 1 + rnd(ENTS);

		world_init(&w, 1 + rnd(SLOTS), 1 + rnd(5));
		for (uint32_t i = 0; i < ents; i++)
			op_add(&w, (int)i);
		for (int n = 0; n < 1500; n++) {
			/* now and then a rush */
			for (uint32_t i = 0; i < ents; i++)
				if (rnd((n / 200) % 2 ? 60 : 4) == 0)
					op_jobs(&w, &w.ent[i], w.ent[i].jobs + 1 + rnd(rnd(10) ? 3 : 40));
			simulate_begin(&w, job_max);
			simulate_tick(&w);
		}
		world_end(&w);
	}
}

/* A scheduler of which each entity's tag is a counter of its turns. */
static unsigned int turn(struct sched *s, uint32_t *jobs)
{
	struct sched_turn t;

	assert_true(sched_next(s, &t));
	++*(unsigned int *)t.tag;
	sched_begun(s, t.slot, t.jobs);
	if (jobs)
		*jobs = t.jobs;
	return t.slot;
}

/* One uid with 100 contexts and one with a single one: half the turns each; so do connections within a uid. */
static void test_uids_first(void **state)
{
	struct sched_entity *e[102];
	unsigned int turns[102] = {0};
	struct sched *s = NULL;

	(void)state;
	assert_int_equal(sched_new(&s, 1, 4), 0);
	for (int i = 0; i < 102; i++) {
		/* 0..98 are one connection of uid 1, 99 and 100 another; 101 is uid 2, its connection a namesake */
		assert_int_equal(sched_add(s, i == 101 ? 2 : 1, i == 99 || i == 100 ? 8 : 7, &turns[i], &e[i]), 0);
		sched_set_jobs(s, e[i], 1000000);
	}
	for (int n = 0; n < 99 * 4; n++)
		sched_idle(s, turn(s, NULL));
	assert_int_equal(turns[101], 99 * 2);
	assert_int_equal(turns[99] + turns[100], 99);
	assert_in_range(turns[99], 49, 50);
	for (int i = 0; i < 99; i++)
		assert_int_equal(turns[i], 1);
	for (int i = 0; i < 102; i++)
		sched_remove(s, e[i]);
	sched_free(s);
}

static void test_burst(void **state)
{
	struct sched_entity *a, *b;
	struct sched *s = NULL;
	struct sched_turn t;
	unsigned int na = 0, nb = 0;
	uint32_t jobs;

	(void)state;
	assert_int_equal(sched_new(&s, 1, 4), 0);
	assert_int_equal(sched_add(s, 1, 1, &na, &a), 0);
	assert_int_equal(sched_add(s, 1, 1, &nb, &b), 0);
	assert_false(sched_next(s, &t));
	sched_set_jobs(s, a, 100);
	turn(s, &jobs);
	assert_int_equal(jobs, 4);
	assert_false(sched_next(s, &t)); /* alone, but a burst is in flight */
	sched_ended(s, 0, 3);
	turn(s, &jobs);
	assert_int_equal(jobs, 3);
	sched_set_jobs(s, b, 1); /* b waits; a has had its burst */
	assert_false(sched_next(s, &t));
	sched_idle(s, 0);
	turn(s, &jobs);
	assert_int_equal(nb, 1);
	assert_int_equal(jobs, 1);
	sched_set_jobs(s, b, 9);
	assert_true(sched_next(s, &t)); /* one of four is used, though a waits */
	assert_int_equal(t.jobs, 3);
	sched_begun(s, 0, 0); /* the slot is full: not asked again until a job ends */
	assert_false(sched_next(s, &t));
	sched_ended(s, 0, 1);
	turn(s, &jobs);
	assert_int_equal(jobs, 3);
	assert_false(sched_next(s, &t));
	sched_idle(s, 0);
	sched_remove(s, a);
	sched_remove(s, b);
	sched_free(s);
}

/* Thousands of contexts, every one of which gets its turn in the first round. */
static void test_many(void **state)
{
	enum { MANY = 5000 };
	static struct sched_entity *e[MANY];
	static unsigned int turns[MANY];
	struct sched *s = NULL;

	(void)state;
	assert_int_equal(sched_new(&s, 0, 2), -EINVAL);
	assert_int_equal(sched_new(&s, 65, 2), -EINVAL);
	assert_int_equal(sched_new(&s, 64, 0), -EINVAL);
	assert_int_equal(sched_new(&s, 64, 2), 0);
	for (int i = 0; i < MANY; i++) {
		assert_int_equal(sched_add(s, (uid_t)(i % 10), (uint64_t)(i % 100), &turns[i], &e[i]), 0);
		sched_set_jobs(s, e[i], 1 + rnd(100));
	}
	for (int n = 0; n < MANY; n++) {
		unsigned int slot = turn(s, NULL);

		if (n >= 63)
			sched_idle(s, (slot + 1) % 64);
	}
	for (int i = 0; i < MANY; i++)
		assert_int_equal(turns[i], 1);
	sched_reset(s);
	for (int i = 0; i < MANY; i++)
		sched_remove(s, e[i]);
	sched_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_burst), cmocka_unit_test(test_uids_first), cmocka_unit_test(test_many),
		cmocka_unit_test(test_model), cmocka_unit_test(test_wait_bound),
	};

	rng = (unsigned int)rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
