/* SPDX-License-Identifier: MIT */
/*
 * Rings of ready contexts, inside connections, inside uids, all made of one kind of node. What always holds: an entity
 * is on its connection's ring exactly if it has jobs, is not held and is on no slot; a connection or uid is on the ring
 * above it exactly if its own ring is not empty. Whoever becomes ready goes to the end of each ring that it was not on;
 * whoever gets a turn goes to the end of all of them. So between two turns of one node every other node of its ring has
 * at most one turn: this is where the wait bound comes from.
 *
 * An entity is resident on one slot at most; if it is on a slot, it is resident there. A slot never has more than
 * `burst` jobs in flight.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "base/util.h"
#include "core/sched.h"

#define SLOTS_MAX 64u
#define GROUP_BUCKETS 1024u

struct node;
TAILQ_HEAD(ring, node);

struct node {
	struct node *parent; /* NULL: the ring of uids itself */
	struct ring ring; /* children that are ready, next to run first */
	TAILQ_ENTRY(node) link; /* on parent->ring */
	bool queued; /* is on parent->ring */
};

/* A uid, or a connection of a uid. */
struct group {
	struct node node;
	struct group *above; /* a connection's uid; NULL: this is a uid */
	uid_t uid;
	uint64_t connection; /* 0 for a uid */
	uint32_t members; /* connections, or entities; freed with the last */
	LIST_ENTRY(group) hash;
};

LIST_HEAD(bucket, group);

struct sched_entity {
	struct node node;
	struct group *connection;
	void *tag;
	uint32_t jobs;
	bool held;
	int slot; /* runs there, or has been offered it; -1 */
	int resident; /* -1 */
};

struct slot {
	struct sched_entity *running;
	struct sched_entity *resident;
	bool in_service;
	bool full; /* the caller could begin none: ask no more until jobs end */
	uint32_t offered; /* jobs of a turn that the caller has not reported on yet */
	uint32_t used; /* jobs begun in this turn, counted up to `burst` */
	uint32_t in_flight; /* jobs begun and not ended, <= used */
	uint64_t idle_since; /* in events, not time; 0: never used */
};

struct sched {
	struct node root;
	unsigned int n_slots;
	uint32_t burst;
	uint32_t entities;
	uint64_t events;
	struct slot slot[SLOTS_MAX];
	struct bucket groups[GROUP_BUCKETS];
};

static void node_init(struct node *n, struct node *parent)
{
	n->parent = parent;
	n->queued = false;
	TAILQ_INIT(&n->ring);
}

static void node_enter(struct node *n)
{
	for (; n->parent && !n->queued; n = n->parent) {
		TAILQ_INSERT_TAIL(&n->parent->ring, n, link);
		n->queued = true;
	}
}

static void node_leave(struct node *n)
{
	for (; n->parent && n->queued && TAILQ_EMPTY(&n->ring); n = n->parent) {
		TAILQ_REMOVE(&n->parent->ring, n, link);
		n->queued = false;
	}
}

/* Leaves for its turn: what is above it and has more that is ready goes to the end. */
static void node_take_turn(struct node *n)
{
	node_leave(n);
	for (; n->parent; n = n->parent) {
		if (!n->queued)
			continue;
		TAILQ_REMOVE(&n->parent->ring, n, link);
		TAILQ_INSERT_TAIL(&n->parent->ring, n, link);
	}
}

static struct bucket *bucket_of(struct sched *s, uid_t uid, uint64_t connection)
{
	uint64_t h = (connection * UINT64_C(0x9e3779b97f4a7c15)) ^ (uid * UINT64_C(0xc2b2ae3d27d4eb4f));

	return &s->groups[(h >> 40) % GROUP_BUCKETS];
}

/* The group of that name, made if need be, without a member more. NULL: no memory. */
static struct group *group_get(struct sched *s, struct group *above, uid_t uid, uint64_t connection)
{
	struct bucket *b = bucket_of(s, uid, connection);
	struct group *g;

	LIST_FOREACH (g, b, hash)
		if (g->above == above && g->uid == uid && g->connection == connection)
			return g;
	g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	node_init(&g->node, above ? &above->node : &s->root);
	g->above = above;
	g->uid = uid;
	g->connection = connection;
	if (above)
		above->members++;
	LIST_INSERT_HEAD(b, g, hash);
	return g;
}

/* Frees the group if it has no member, and then perhaps the one above. */
static void group_put(struct group *g)
{
	while (g && g->members == 0) {
		struct group *above = g->above;

		LIST_REMOVE(g, hash);
		free(g);
		if (above)
			above->members--;
		g = above;
	}
}

int sched_new(struct sched **ret, unsigned int slots, unsigned int burst)
{
	struct sched *s;

	if (slots < 1 || slots > SLOTS_MAX || burst < 1)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	node_init(&s->root, NULL);
	for (unsigned int i = 0; i < GROUP_BUCKETS; i++)
		LIST_INIT(&s->groups[i]);
	s->n_slots = slots;
	s->burst = burst;
	for (unsigned int i = 0; i < slots; i++)
		s->slot[i].in_service = true;
	*ret = s;
	return 0;
}

struct sched *sched_free(struct sched *s)
{
	if (!s)
		return NULL;
	assert(s->entities == 0);
	free(s);
	return NULL;
}

int sched_add(struct sched *s, uid_t uid, uint64_t connection, void *tag, struct sched_entity **ret)
{
	struct sched_entity *e = calloc(1, sizeof(*e));
	struct group *u, *c;

	if (!e)
		return -ENOMEM;
	u = group_get(s, NULL, uid, 0);
	c = u ? group_get(s, u, uid, connection) : NULL;
	if (!c) {
		group_put(u);
		free(e);
		return -ENOMEM;
	}
	node_init(&e->node, &c->node);
	c->members++;
	e->connection = c;
	e->tag = tag;
	e->slot = -1;
	e->resident = -1;
	s->entities++;
	*ret = e;
	return 0;
}

/* Puts the entity on its rings or takes it off, whichever its jobs, its hold and its slot ask for. */
static void entity_update(struct sched_entity *e)
{
	if (e->jobs > 0 && !e->held && e->slot < 0)
		node_enter(&e->node);
	else
		node_leave(&e->node);
}

static struct slot *slot_at(struct sched *s, unsigned int slot)
{
	assert(slot < s->n_slots);
	return &s->slot[slot];
}

static void slot_forget_resident(struct slot *at)
{
	if (at->resident)
		at->resident->resident = -1;
	at->resident = NULL;
}

/* Nobody runs on it any more; who did goes to the end of its rings if it has more. */
static void slot_vacate(struct slot *at)
{
	struct sched_entity *e = at->running;

	at->running = NULL;
	at->offered = 0;
	at->used = 0;
	at->in_flight = 0;
	at->full = false;
	if (e) {
		e->slot = -1;
		entity_update(e);
	}
}

struct sched_entity *sched_remove(struct sched *s, struct sched_entity *e)
{
	if (!e)
		return NULL;
	e->held = true;
	if (e->slot >= 0) {
		assert(!s->slot[e->slot].in_service);
		slot_vacate(&s->slot[e->slot]);
	}
	entity_update(e);
	if (e->resident >= 0)
		slot_forget_resident(&s->slot[e->resident]);
	e->connection->members--;
	group_put(e->connection);
	s->entities--;
	free(e);
	return NULL;
}

void sched_set_jobs(struct sched *s, struct sched_entity *e, uint32_t jobs)
{
	(void)s;
	e->jobs = jobs;
	entity_update(e);
}

void sched_hold(struct sched *s, struct sched_entity *e, bool held)
{
	(void)s;
	e->held = held;
	entity_update(e);
}

/* Where e would run now, or -1: all slots are taken. */
static int slot_for(const struct sched *s, const struct sched_entity *e)
{
	int best = -1;

	for (unsigned int i = 0; i < s->n_slots; i++) {
		const struct slot *at = &s->slot[i];

		if (at->running || !at->in_service)
			continue;
		if (at->resident == e)
			return (int)i;
		if (best < 0 || at->idle_since < s->slot[best].idle_since)
			best = (int)i;
	}
	return best;
}

/* A turn for whom it is, if there is a slot. */
static bool next_ready(struct sched *s, struct sched_turn *ret)
{
	struct node *n = &s->root;
	struct sched_entity *e;
	struct slot *at;
	int slot;

	if (TAILQ_EMPTY(&n->ring))
		return false;
	while (!TAILQ_EMPTY(&n->ring))
		n = TAILQ_FIRST(&n->ring);
	e = container_of(n, struct sched_entity, node);
	slot = slot_for(s, e);
	if (slot < 0)
		return false;

	at = &s->slot[slot];
	node_take_turn(&e->node);
	e->slot = slot;
	at->running = e;
	at->offered = e->jobs < s->burst ? e->jobs : s->burst;
	*ret = (struct sched_turn){
		.slot = (unsigned int)slot, .tag = e->tag, .switched = at->resident != e, .jobs = at->offered};
	if (at->resident != e) {
		if (e->resident >= 0) /* a slot out of service */
			slot_forget_resident(&s->slot[e->resident]);
		slot_forget_resident(at);
		at->resident = e;
		e->resident = slot;
	}
	return true;
}

/* More for someone who runs. While others wait, what is left of the burst; else as much as keeps no more than a
 * burst in flight, for that much will delay whoever comes next. */
static bool next_more(struct sched *s, struct sched_turn *ret)
{
	bool waited_for = !TAILQ_EMPTY(&s->root.ring);

	for (unsigned int i = 0; i < s->n_slots; i++) {
		struct slot *at = &s->slot[i];
		struct sched_entity *e = at->running;
		uint32_t room = s->burst - (waited_for ? at->used : at->in_flight);

		if (!e || !at->in_service || at->offered || at->full || e->held || e->jobs == 0 || room == 0)
			continue;
		at->offered = e->jobs < room ? e->jobs : room;
		*ret = (struct sched_turn){.slot = i, .tag = e->tag, .switched = false, .jobs = at->offered};
		return true;
	}
	return false;
}

bool sched_next(struct sched *s, struct sched_turn *ret)
{
	return next_ready(s, ret) || next_more(s, ret);
}

void sched_begun(struct sched *s, unsigned int slot, uint32_t n)
{
	struct slot *at = slot_at(s, slot);

	assert(at->running && at->offered > 0 && n <= at->offered);
	if (n == 0 && at->used == 0) {
		sched_idle(s, slot);
		return;
	}
	at->offered = 0;
	at->in_flight += n;
	at->used = n < s->burst - at->used ? at->used + n : s->burst;
	at->full = n == 0;
}

void sched_adopt(struct sched *s, unsigned int slot, struct sched_entity *e, uint32_t n)
{
	struct slot *at = slot_at(s, slot);

	assert(!at->running && !at->resident && e->slot < 0 && e->resident < 0 && n > 0);
	at->running = at->resident = e;
	e->slot = e->resident = (int)slot;
	at->used = at->in_flight = n < s->burst ? n : s->burst;
	entity_update(e);
}

void sched_ended(struct sched *s, unsigned int slot, uint32_t n)
{
	struct slot *at = slot_at(s, slot);

	at->in_flight = n < at->in_flight ? at->in_flight - n : 0;
	at->full = false;
}

void sched_idle(struct sched *s, unsigned int slot)
{
	struct slot *at = slot_at(s, slot);

	if (!at->running)
		return;
	at->idle_since = ++s->events;
	slot_vacate(at);
}

void sched_slot_service(struct sched *s, unsigned int slot, bool in_service)
{
	struct slot *at = slot_at(s, slot);

	at->in_service = in_service;
	if (!in_service)
		return;
	at->idle_since = 0;
	slot_forget_resident(at);
	slot_vacate(at);
}

void sched_reset(struct sched *s)
{
	for (unsigned int i = 0; i < s->n_slots; i++)
		sched_slot_service(s, i, true);
}

int sched_running(const struct sched *s, const struct sched_entity *e)
{
	(void)s;
	return e->slot;
}

int sched_resident(const struct sched *s, const struct sched_entity *e)
{
	(void)s;
	return e->resident;
}

void *sched_resident_tag(const struct sched *s, unsigned int slot)
{
	assert(slot < s->n_slots);
	return s->slot[slot].resident ? s->slot[slot].resident->tag : NULL;
}

bool sched_slot_busy(const struct sched *s, unsigned int slot)
{
	assert(slot < s->n_slots);
	return s->slot[slot].running != NULL;
}
