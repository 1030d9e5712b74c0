/* SPDX-License-Identifier: MIT */
/*
 * Random verbs for the books, and a model of what they should do: arrays, and a page-by-page picture of each address
 * space. What the books must answer is foretold from the model alone; rig_check() then recounts everything.
 *
 * Who includes it defines check(condition) and draw(below), the source of all choices. Limits, numbers and address
 * spaces are tiny, so that each of them is hit all the time. See books_rig_check.h for the recount.
 */
#ifndef TESTS_BOOKS_RIG_H
#define TESTS_BOOKS_RIG_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/books.h"

#define PAGE ((uint64_t)ASPACE_PAGE)
#define RIG_CLIENTS 4u
#define RIG_CONTEXTS 16u
#define RIG_BUFFERS 32u
#define RIG_PAGES 24u /* of a context's aperture */
#define RIG_BUS_PAGES 20u
#define RIG_OPS 6u
#define RIG_IOVA 0x10000ull
#define RIG_BUS 0x100000ull
#define RIG_DEVICES 2u /* 0: contexts with address spaces of their own, 1: `global` */
#define RIG_TOTAL (26 * PAGE)
#define RIG_ID_NEVER 999u

struct m_client {
	bool live;
	uint32_t id, last_buf;
	uid_t uid;
	struct client *c;
};

struct m_buffer {
	bool live; /* the device still has it mapped */
	bool named, told, writable, huge;
	uint32_t id, dev;
	uint64_t pages, bus;
	struct m_client *owner;
	struct buffer_entry *e;
};

struct m_page { /* of an address space */
	uint32_t ctx; /* id of who mapped it; 0: nobody */
	uint32_t serial; /* of the operation that mapped it */
	struct m_buffer *buf;
	uint64_t off; /* in pages */
	bool writable;
};

struct m_space {
	struct m_page page[RIG_PAGES];
};

struct m_context {
	bool live, lost;
	uint32_t id, dev;
	uint64_t submitted, ended;
	struct m_client *owner;
	struct context *c;
	struct m_space own;
	struct plan *plan; /* a bind list is open */
	struct record *open;
};

struct rig {
	struct books *books;
	struct device_books *dev[RIG_DEVICES];
	struct limit_policy policy;
	struct m_client client[RIG_CLIENTS];
	struct m_buffer buffer[RIG_BUFFERS];
	struct m_context context[RIG_CONTEXTS];
	struct m_space shared;
	uint32_t last_client, last_ctx, serial, open_binds;
	/* Told of each record; `after` says that the books now are what the records say. NULL: nobody is interested. */
	void (*record)(struct rig *g, enum record_phase phase, const struct record *rec, bool after);
	void *arg;
};

static const uint64_t rig_connection_limits[PASID_RES_COUNT] = {3, 5, 7, 12 * PAGE, 4 * PAGE, 9, 10, 9, 9};
static const uint64_t rig_uid_limits[PASID_RES_COUNT] = {4, 8, 11, 18 * PAGE, 6 * PAGE, 9, 13, 9, 2};

static inline void rig_unused(void *arg, struct buffer_entry *e)
{
	struct rig *g = arg;
	struct m_buffer *b = e->tag;

	check(b >= g->buffer && b->live && b->e == e);
	check(!b->told && !e->buffer.named && !e->buffer.uses);
	b->told = true;
}

static inline void rig_policy(struct limit_policy *p)
{
	memcpy(p->connection.v, rig_connection_limits, sizeof(rig_connection_limits));
	memcpy(p->uid.v, rig_uid_limits, sizeof(rig_uid_limits));
	p->total_bytes = RIG_TOTAL;
}

static inline void rig_devices(struct books *b, struct device_books *dev[RIG_DEVICES])
{
	struct device_traits t = {
		.pasid_bits = 3,
		.asid_bits = 2,
		.iova = {RIG_IOVA, RIG_IOVA + RIG_PAGES * PAGE - 1},
		.cmd_align = 8,
		.submit_max = 64,
	};

	t.name = "private";
	check(books_add_device(b, &t, &dev[0]) == 0);
	t.name = "shared";
	t.global = true;
	check(books_add_device(b, &t, &dev[1]) == 0);
	for (uint32_t i = 0; i < RIG_DEVICES; i++)
		books_set_window(dev[i], (struct range){RIG_BUS, RIG_BUS + RIG_BUS_PAGES * PAGE - 1});
}

static inline void rig_init(struct rig *g)
{
	memset(g, 0, sizeof(*g));
	rig_policy(&g->policy);
	check(books_new(&g->books, &g->policy, rig_unused, g) == 0);
	rig_devices(g->books, g->dev);
}

static inline void rig_say(struct rig *g, enum record_phase phase, const struct record *rec, bool after)
{
	if (g->record)
		g->record(g, phase, rec, after);
}

/* ---- the model ---- */

static inline struct m_space *m_space_of(struct rig *g, struct m_context *x)
{
	return x->dev == 1 ? &g->shared : &x->own;
}

/* Mappings of a context: runs of pages that one operation mapped. */
static inline uint64_t m_mappings(const struct m_space *s, uint32_t ctx)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < RIG_PAGES; i++)
		n += s->page[i].ctx == ctx && (i == 0 || s->page[i - 1].serial != s->page[i].serial);
	return n;
}

static inline uint64_t m_uses_in(const struct m_space *s, const struct m_buffer *b)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < RIG_PAGES; i++)
		n += s->page[i].ctx && s->page[i].buf == b && (i == 0 || s->page[i - 1].serial != s->page[i].serial);
	return n;
}

static inline uint64_t m_uses(struct rig *g, const struct m_buffer *b)
{
	uint64_t n = m_uses_in(&g->shared, b);

	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].dev == 0)
			n += m_uses_in(&g->context[i].own, b);
	return n;
}

static inline uint64_t m_context_holds(struct rig *g, struct m_context *x, uint32_t res)
{
	switch (res) {
	case PASID_RES_CONTEXTS:
		return 1;
	case PASID_RES_JOBS:
		return x->submitted - x->ended;
	case PASID_RES_MAPPINGS: /* an open list holds the most that it needs on the way */
		return x->plan ? x->c->c_mappings.amount : m_mappings(m_space_of(g, x), x->id);
	default:
		return 0;
	}
}

static inline uint64_t m_buffer_holds(const struct m_buffer *b, uint32_t res)
{
	switch (res) {
	case PASID_RES_BUFFERS:
		return 1;
	case PASID_RES_BYTES:
		return b->pages * PAGE;
	case PASID_RES_HUGE:
		return b->huge ? b->pages * PAGE : 0;
	default:
		return 0;
	}
}

/* What a client (m), a uid (m NULL), or everyone (m NULL, uid -1) holds of a resource. */
static inline uint64_t m_used(struct rig *g, const struct m_client *m, uid_t uid, uint32_t res)
{
	uint64_t n = 0;

#define OF(o) (m ? (o) == m : uid == (uid_t)-1 || (o)->uid == uid)
	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && OF(g->context[i].owner))
			n += m_context_holds(g, &g->context[i], res);
	for (uint32_t i = 0; i < RIG_BUFFERS; i++)
		if (g->buffer[i].live && OF(g->buffer[i].owner))
			n += m_buffer_holds(&g->buffer[i], res);
	for (uint32_t i = 0; i < RIG_CLIENTS && res == PASID_RES_CONNECTIONS && !m; i++)
		n += g->client[i].live && OF(&g->client[i]);
#undef OF
	return n;
}

/* The reason for which this much more is refused; 0: it is not. */
static inline uint32_t m_quota(struct rig *g, const struct m_client *m, uint32_t res, uint64_t amount)
{
	if (m_used(g, m, 0, res) + amount > rig_connection_limits[res])
		return PASID_WHY_QUOTA_CONNECTION + res;
	if (m_used(g, NULL, m->uid, res) + amount > rig_uid_limits[res])
		return PASID_WHY_QUOTA_UID + res;
	if (res == PASID_RES_BYTES && m_used(g, NULL, (uid_t)-1, res) + amount > RIG_TOTAL)
		return PASID_WHY_QUOTA_TOTAL;
	return 0;
}

static inline bool m_busy(const struct rig *g, const struct m_client *m)
{
	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].plan && g->context[i].owner == m)
			return true;
	return false;
}

static inline bool m_space_busy(struct rig *g, struct m_context *x)
{
	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].plan && m_space_of(g, &g->context[i]) == m_space_of(g, x))
			return true;
	return false;
}

static inline struct m_buffer *m_find_buffer(struct rig *g, const struct m_client *m, uint32_t id)
{
	for (uint32_t i = 0; i < RIG_BUFFERS; i++)
		if (g->buffer[i].live && g->buffer[i].named && g->buffer[i].owner == m && g->buffer[i].id == id)
			return &g->buffer[i];
	return NULL;
}

/* Something that is live, from a random place on; NULL if there is none. */
#define m_pick(array, n)                              \
	__extension__({                               \
		uint32_t at_ = draw(n), left_ = (n);  \
		while (left_ && !(array)[at_].live) { \
			at_ = (at_ + 1) % (n);        \
			left_--;                      \
		}                                     \
		left_ ? &(array)[at_] : NULL;         \
	})

#define m_spare(array, n)                              \
	__extension__({                                \
		uint32_t at_ = 0;                      \
		while (at_ < (n) && (array)[at_].live) \
			at_++;                         \
		at_ < (n) ? &(array)[at_] : NULL;      \
	})

static inline void m_drop_mappings(struct rig *g, struct m_context *x)
{
	struct m_space *s = m_space_of(g, x);

	for (uint32_t i = 0; i < RIG_PAGES; i++)
		if (s->page[i].ctx == x->id)
			s->page[i] = (struct m_page){0};
}

/* ---- clients ---- */

static inline void rig_open(struct rig *g)
{
	struct record rec = {.kind = RECORD_CLIENT_OPEN, .uid = 1000 + draw(2), .pid = 77};
	struct m_client *m = m_spare(g->client, RIG_CLIENTS);
	struct refusal why = {0};
	struct client *c = NULL;
	bool full = m_used(g, NULL, rec.uid, PASID_RES_CONNECTIONS) == rig_uid_limits[PASID_RES_CONNECTIONS];
	int r;

	if (!m)
		return;
	r = books_client_open(g->books, &rec, &why, &c);
	check(r == (full ? -EDQUOT : 0));
	check(why.reason == (full ? PASID_WHY_QUOTA_UID + PASID_RES_CONNECTIONS : PASID_WHY_NONE));
	if (r < 0)
		return;
	check(rec.client > g->last_client && c->id == rec.client && books_client(g->books, c->id) == c);
	g->last_client = rec.client;
	*m = (struct m_client){.live = true, .id = c->id, .uid = rec.uid, .c = c};
	rig_say(g, RECORD_INTENT, &rec, false);
	rig_say(g, RECORD_COMMIT, &rec, true);
}

/* ---- contexts ---- */

static inline uint32_t m_contexts_on(const struct rig *g, uint32_t dev)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		n += g->context[i].live && g->context[i].dev == dev;
	return n;
}

static inline uint32_t m_judge_ctx_new(struct rig *g, const struct m_client *m, uint32_t dev)
{
	uint32_t why = m_quota(g, m, PASID_RES_CONTEXTS, 1);

	if (!why && m_contexts_on(g, dev) == (dev == 0 ? 3 : 7)) /* numbers: 2 bits of ASIDs, 3 of PASIDs */
		why = PASID_WHY_QUOTA_IDS;
	return why;
}

static inline void rig_ctx_new(struct rig *g)
{
	struct m_client *m = m_pick(g->client, RIG_CLIENTS);
	struct m_context *x = m_spare(g->context, RIG_CONTEXTS);
	struct record rec = {.kind = RECORD_CTX_NEW, .device = draw(RIG_DEVICES)};
	struct refusal why = {0};
	struct context *c = NULL;
	uint32_t expect;

	if (!m || !x || m_busy(g, m))
		return;
	rec.client = m->id;
	expect = m_judge_ctx_new(g, m, rec.device);
	check(books_ctx_new(g->books, &rec, &why, &c) == refusal_code(expect) && why.reason == expect);
	if (expect) {
		check(!rec.pasid && !rec.asid && !rec.ctx);
		return;
	}
	check(rec.ctx > g->last_ctx);
	g->last_ctx = rec.ctx;
	rig_say(g, RECORD_INTENT, &rec, false);
	/* Taken back, and made again from its own record if it was not meant. */
	books_ctx_free(g->books, c);
	check(!books_any_context(g->books, rec.ctx));
	rig_say(g, RECORD_UNDO, &rec, true);
	if (draw(4) == 0)
		return;
	rig_say(g, RECORD_INTENT, &rec, false);
	check(books_ctx_new(g->books, &rec, &why, &c) == 0 && c->id == rec.ctx && c->pasid == rec.pasid);
	if (draw(2)) /* the device has seen it */
		ids_installed(g->dev[rec.device]->pasids, c->pasid);
	*x = (struct m_context){.live = true, .id = rec.ctx, .dev = rec.device, .owner = m, .c = c};
	rig_say(g, RECORD_COMMIT, &rec, true);
}

static inline void rig_end_context(struct rig *g, struct m_context *x, uint32_t kind)
{
	struct record rec = {.kind = kind, .client = x->owner->id, .ctx = x->id};

	rig_say(g, RECORD_INTENT, &rec, false);
	m_drop_mappings(g, x);
	x->ended = x->submitted;
	while (draw(2) && books_ctx_clear_some(g->books, x->c, NULL, NULL))
		check(!"so few mappings go at once");
	if (kind == RECORD_CTX_FREE) {
		books_ctx_free(g->books, x->c);
		x->live = false;
	} else {
		books_ctx_clear(g->books, x->c, NULL, NULL);
		books_ctx_lost(g->books, x->c);
		x->lost = true;
	}
	rig_say(g, RECORD_COMMIT, &rec, true);
}

static inline void rig_lose_or_free(struct rig *g)
{
	struct m_context *x = m_pick(g->context, RIG_CONTEXTS);

	if (x && !m_space_busy(g, x) && !m_busy(g, x->owner))
		rig_end_context(g, x, draw(4) ? RECORD_CTX_FREE : RECORD_CTX_LOST);
}

/* ---- buffers ---- */

/* The lowest place in the device's bus addresses; 0: there is none. */
static inline uint64_t m_bus(const struct rig *g, uint32_t dev, uint64_t pages)
{
	for (uint64_t at = RIG_BUS; at + pages * PAGE <= RIG_BUS + RIG_BUS_PAGES * PAGE; at += PAGE) {
		bool free = true;

		for (uint32_t i = 0; i < RIG_BUFFERS; i++) {
			const struct m_buffer *b = &g->buffer[i];

			if (b->live && b->dev == dev && at < b->bus + b->pages * PAGE && b->bus < at + pages * PAGE)
				free = false;
		}
		if (free)
			return at;
	}
	return 0;
}

static inline uint32_t m_judge_import(struct rig *g, const struct m_client *m, const struct record *rec)
{
	uint32_t why = 0;

	if (!rec->size)
		return PASID_WHY_EMPTY;
	if (rec->size % PAGE)
		return PASID_WHY_UNALIGNED;
	why = m_quota(g, m, PASID_RES_BUFFERS, 1);
	if (!why)
		why = m_quota(g, m, PASID_RES_BYTES, rec->size);
	if (!why && rec->huge)
		why = m_quota(g, m, PASID_RES_HUGE, rec->size);
	if (!why && !m_bus(g, rec->device, rec->size / PAGE))
		why = PASID_WHY_NO_ROOM;
	return why;
}

static inline void rig_gone(struct rig *g, struct m_buffer *b)
{
	struct record rec = {.kind = RECORD_BUF_GONE, .client = b->owner->id, .buf = b->id};

	check(b->told);
	b->live = false;
	books_buf_gone(g->books, b->e);
	rig_say(g, RECORD_INTENT, &rec, true);
}

static inline void rig_import_commit(struct rig *g, struct record *rec, bool undo)
{
	struct m_buffer *b = m_spare(g->buffer, RIG_BUFFERS);
	struct m_client *m = NULL;
	struct refusal why = {0};

	for (uint32_t i = 0; i < RIG_CLIENTS; i++)
		if (g->client[i].live && g->client[i].id == rec->client)
			m = &g->client[i];
	*b = (struct m_buffer){.live = true,
			       .named = true,
			       .writable = rec->writable,
			       .huge = rec->huge,
			       .id = rec->buf,
			       .dev = rec->device,
			       .pages = rec->size / PAGE,
			       .bus = rec->bus,
			       .owner = m,
			       .e = books_buffer(m->c, rec->buf, &why)};
	b->e->tag = b;
	if (!undo) {
		rig_say(g, RECORD_COMMIT, rec, true);
		return;
	}
	b->named = false;
	check(books_buf_free(g->books, rec, &why) == 0);
	rig_say(g, RECORD_UNDO, rec, true);
	rig_gone(g, b);
}

static inline void rig_import(struct rig *g)
{
	struct m_client *m = m_pick(g->client, RIG_CLIENTS);
	struct record rec = {.kind = RECORD_IMPORT,
			     .device = draw(RIG_DEVICES),
			     .size = draw(6) * PAGE,
			     .writable = draw(3) > 0,
			     .huge = draw(3) == 0};
	struct buffer_entry *e = NULL;
	struct refusal why = {0};
	uint64_t bus;
	uint32_t expect;

	if (!m || m_busy(g, m) || !m_spare(g->buffer, RIG_BUFFERS))
		return;
	rec.client = m->id;
	rec.size += draw(16) ? 0 : 8;
	expect = m_judge_import(g, m, &rec);
	bus = m_bus(g, rec.device, rec.size / PAGE);
	check(books_import(g->books, &rec, &why, &e) == refusal_code(expect) && why.reason == expect);
	if (expect)
		return;
	check(rec.bus == bus && e->buffer.bus == bus && rec.buf > m->last_buf && e->reachable);
	m->last_buf = rec.buf;
	rig_say(g, RECORD_INTENT, &rec, false);
	rig_import_commit(g, &rec, true);
	if (draw(4) == 0)
		return;
	check(books_import(g->books, &rec, &why, &e) == 0 && rec.bus == bus);
	rig_say(g, RECORD_INTENT, &rec, false);
	rig_import_commit(g, &rec, false);
}

/* An id that the client does not have: somebody else's, a former one, or one that nobody ever had. */
static inline uint32_t m_wrong_buffer(struct rig *g, const struct m_client *m)
{
	const struct m_buffer *b = m_pick(g->buffer, RIG_BUFFERS);

	return b && !m_find_buffer(g, m, b->id) ? b->id : RIG_ID_NEVER;
}

static inline void rig_buf_free(struct rig *g)
{
	struct m_buffer *b = m_pick(g->buffer, RIG_BUFFERS);
	struct record rec = {.kind = RECORD_BUF_FREE};
	struct refusal why = {0};

	if (!b || m_busy(g, b->owner))
		return;
	rec.client = b->owner->id;
	rec.buf = b->named && draw(8) ? b->id : m_wrong_buffer(g, b->owner);
	if (rec.buf != b->id || !b->named) {
		check(books_buf_free(g->books, &rec, &why) == -ENOENT);
		check(why.reason == PASID_WHY_NO_BUFFER && why.n1 == rec.buf && why.n2 == 0);
		return;
	}
	rig_say(g, RECORD_INTENT, &rec, false);
	b->named = false;
	check(books_buf_free(g->books, &rec, &why) == 0);
	rig_say(g, RECORD_COMMIT, &rec, true);
}

static inline void rig_gone_any(struct rig *g)
{
	struct m_buffer *b = m_pick(g->buffer, RIG_BUFFERS);

	if (b && b->told)
		rig_gone(g, b);
}

/* ---- the end of a client ---- */

static inline void rig_close(struct rig *g, struct m_client *m)
{
	struct record rec = {.client = m->id};
	struct refusal why = {0};

	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].owner == m)
			rig_end_context(g, &g->context[i], RECORD_CTX_FREE);
	for (uint32_t i = 0; i < RIG_BUFFERS; i++) {
		struct m_buffer *b = &g->buffer[i];

		if (!b->live || b->owner != m)
			continue;
		rec.kind = RECORD_BUF_FREE;
		rec.buf = b->id;
		if (b->named) {
			rig_say(g, RECORD_INTENT, &rec, false);
			b->named = false;
			check(books_buf_free(g->books, &rec, &why) == 0);
			rig_say(g, RECORD_COMMIT, &rec, true);
		}
		rig_gone(g, b);
	}
	rec = (struct record){.kind = RECORD_CLIENT_CLOSE, .client = m->id};
	rig_say(g, RECORD_INTENT, &rec, false);
	books_client_close(g->books, m->c);
	m->live = false;
	rig_say(g, RECORD_COMMIT, &rec, true);
}

static inline void rig_close_any(struct rig *g)
{
	struct m_client *m = m_pick(g->client, RIG_CLIENTS);

	for (uint32_t i = 0; m && i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].owner == m && m_space_busy(g, &g->context[i]))
			return;
	if (m && draw(4) == 0)
		rig_close(g, m);
}

#endif
