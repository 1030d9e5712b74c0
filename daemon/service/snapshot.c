/* SPDX-License-Identifier: MIT */
/*
 * The journal begun anew: the fewest entries that lead to the books, and to what runs, as they are. Made from the loop,
 * between two requests; those that are under way are said as they were before, with their intents at the end. All is said
 * twice: the first time it is only counted.
 */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "service/adopt.h"
#include "service/persist.h"

struct snapshot {
	struct service *s;
	uint64_t bytes;
	bool counting;
	struct record *bind; /* mappings of one context, up to a list's worth */
};

static void say2(struct snapshot *p, uint32_t type, const struct iovec *v, int n)
{
	uint64_t size = 0;

	for (int i = 0; i < n; i++)
		size += v[i].iov_len;
	p->bytes += journal_entry_bytes(size);
	if (!p->counting)
		journal_append(p->s->store->journal, type, v, n);
}

static void say(struct snapshot *p, uint32_t type, const void *e, size_t size)
{
	const struct iovec v = {(void *)(uintptr_t)e, size};

	say2(p, type, &v, 1);
}

static void say_record(struct snapshot *p, uint32_t type, const struct record *rec)
{
	say(p, type, rec, sizeof(*rec) + rec->n_ops * sizeof(rec->ops[0]));
}

/* ---- clients, and memory ---- */

static void say_replies(struct snapshot *p, struct service_client *c)
{
	uint64_t first = c->serial < PASID_IN_FLIGHT ? 1 : c->serial - PASID_IN_FLIGHT + 1;

	for (uint64_t serial = first; serial <= c->serial; serial++) {
		const struct kept_reply *k = &c->kept[serial % PASID_IN_FLIGHT];
		const struct entry_commit head = {c->books->id, k->with_fence, serial};
		const struct iovec v[] = {{(void *)(uintptr_t)&head, sizeof(head)}, {k->data, k->size}};

		if (k->size && ((const struct pasid_reply *)k->data)->msg.serial == serial)
			say2(p, ENTRY_COMMIT, v, 2);
	}
}

static void say_client(struct snapshot *p, struct service_client *c)
{
	struct entry_client e;
	struct buffer_entry *b;

	persist_client_entry(c, &e);
	say(p, ENTRY_CLIENT, &e, sizeof(e));
	say_replies(p, c);
	TAILQ_FOREACH (b, &c->books->all_buffers, in_client) {
		struct record rec = {
			.kind = RECORD_IMPORT,
			.client = c->books->id,
			.buf = b->buffer.id,
			.device = b->device->index,
			.size = b->buffer.size,
			.bus = b->buffer.bus,
			.key = b->tag ? ((struct buf *)b->tag)->key : 0,
			.writable = b->buffer.writable,
			.huge = b->huge,
		};

		if (b->tag && ((struct buf *)b->tag)->recorded)
			say_record(p, ENTRY_DONE, &rec);
	}
}

static bool is_being_freed(struct service_client *c, uint32_t buf)
{
	return c->verb.open && verb_intent(c)->kind == RECORD_BUF_FREE && verb_intent(c)->buf == buf;
}

/* What clients have given back, and what they have begun. */
static void say_rest_of_client(struct snapshot *p, struct service_client *c)
{
	struct record rec = {.kind = RECORD_BUF_FREE, .client = c->books->id};
	struct fence_map *m;
	struct buffer_entry *b;

	LIST_FOREACH (m, &c->fence_maps, link) {
		struct entry_fence e;

		persist_fence_entry(m, &e);
		say(p, ENTRY_FENCE, &e, sizeof(e));
	}
	TAILQ_FOREACH (b, &c->books->all_buffers, in_client) {
		rec.buf = b->buffer.id;
		if (!b->buffer.named && ((struct buf *)b->tag)->recorded && !is_being_freed(c, rec.buf))
			say_record(p, ENTRY_DONE, &rec);
	}
	if (c->verb.open)
		say_record(p, ENTRY_INTENT, c->verb.rec ? c->verb.rec : verb_intent(c));
}

/* ---- contexts ---- */

static void say_jobs(struct snapshot *p, const struct context *b)
{
	struct record rec = {.kind = RECORD_SUBMIT, .client = b->client->id, .ctx = b->id};

	for (uint64_t n = b->ended + 1; n <= b->submitted; n++) {
		const struct job *job = books_job(b, n);

		rec.job = n;
		rec.iova = job->iova;
		rec.len = job->len;
		say_record(p, ENTRY_DONE, &rec);
	}
}

/* Its intent is still to come, and says it. */
static bool is_being_made(const struct ctx *ctx)
{
	const struct record *intent = verb_intent(ctx->client);

	return ctx->client->verb.open && intent->kind == RECORD_CTX_NEW && intent->ctx == ctx->books->id;
}

static void say_context(struct snapshot *p, const struct ctx *ctx)
{
	const struct context *b = ctx->books;
	const struct entry_tables tables = {b->device->index, b->id, ctx->pt ? pgtable_root(ctx->pt) : 0};
	const struct entry_lost lost = {b->id, ctx->lost_why, ctx->lost_job};
	const struct entry_cleared cleared = {.ctx = b->id};
	const struct entry_counts counts = {.ctx = b->id, .switches = ctx->switches, .faults = b->faults.total};
	struct record rec;

	if (!ctx->recorded || is_being_made(ctx))
		return;
	persist_context_record(ctx, &rec);
	if (b->lost)
		rec.job = b->submitted;
	say_record(p, ENTRY_DONE, &rec);
	say_jobs(p, b);
	say(p, ENTRY_COUNTS, &counts, sizeof(counts));
	if (tables.root && !b->device->traits.global)
		say(p, ENTRY_TABLES, &tables, sizeof(tables));
	if (ctx->kt && ctx->dev->recorded) {
		struct entry_space space;

		persist_space_entry(ctx, &space);
		say(p, ENTRY_SPACE, &space, sizeof(space));
	}
	if (ctx->lost_why)
		say(p, ENTRY_LOST, &lost, sizeof(lost));
	if (ctx->clear_recorded)
		say(p, ENTRY_CLEARED, &cleared, sizeof(cleared));
}

static void flush(struct snapshot *p)
{
	if (p->bind->n_ops)
		say_record(p, ENTRY_DONE, p->bind);
	p->bind->n_ops = 0;
}

static void say_mapping(void *arg, const struct mapping *m)
{
	struct snapshot *p = arg;
	const struct context *b = books_any_context(p->s->books, m->owner);
	const struct ctx *ctx = b->tag;

	if (!ctx->recorded || ctx->clear_recorded)
		return;
	if (p->bind->ctx != b->id || p->bind->n_ops == PASID_BIND_MAX)
		flush(p);
	p->bind->client = b->client->id;
	p->bind->ctx = b->id;
	p->bind->ops[p->bind->n_ops++] = (struct record_op){
		.kind = PASID_BIND_MAP,
		.flags = PASID_MAP_READ | PASID_MAP_FIXED | (m->writable ? PASID_MAP_WRITE : 0),
		.buf = m->buf->id,
		.off = m->off,
		.iova = m->node.first,
		.len = m->node.last - m->node.first + 1,
	};
}

/* Of a list that is under way its intent says what is to become of them. */
static void say_mappings(struct snapshot *p, const struct aspace *as)
{
	aspace_each_before(as, say_mapping, p);
	flush(p);
}

/* ---- devices ---- */

static void say_device(struct snapshot *p, const struct device *d)
{
	const struct entry_tables shared = {d->books->index, 0, d->shared_pt ? pgtable_root(d->shared_pt) : 0};
	const struct entry_device_gone gone = {.index = d->books->index};
	struct entry_device e;

	if (!d->layout.n_usable)
		return; /* nobody has anything there */
	if (!d->recorded) {
		persist_device_without(d, &e);
		say(p, ENTRY_DEVICE, &e, sizeof(e));
		say(p, ENTRY_DEVICE_GONE, &gone, sizeof(gone));
		return;
	}
	persist_device_entry(d, &e);
	say(p, ENTRY_DEVICE, &e, sizeof(e));
	if (shared.root)
		say(p, ENTRY_TABLES, &shared, sizeof(shared));
}

static void say_address_spaces(struct snapshot *p, const struct device *d)
{
	struct context *b;

	if (d->books->traits.global)
		say_mappings(p, &d->books->shared);
	else
		TAILQ_FOREACH (b, &d->books->contexts, in_device)
			say_mappings(p, b->aspace);
}

static void say_slots(struct snapshot *p, const struct device *d)
{
	const struct entry_reset reset = {d->books->index, RESET_ASKED};

	for (unsigned int s = 0; s < d->n_slots && d->recorded; s++) {
		const struct run *run = &d->runs[s];

		for (uint32_t i = 0; i < run->count && run->ctx->recorded; i++) {
			const struct put_job *put = run_job(run, i);
			const struct entry_put e = {run->ctx->books->id, s, put->number, put->mark};

			say(p, ENTRY_PUT, &e, sizeof(e));
		}
	}
	if (d->recorded && d->state == DEVICE_RESETTING)
		say(p, ENTRY_RESET, &reset, sizeof(reset));
}

static void say_all(struct snapshot *p)
{
	struct service *s = p->s;
	struct entry_head head;
	struct client *c = NULL;
	struct context *b;

	books_last_ids(s->books, &head.last_client, &head.last_ctx);
	say(p, ENTRY_HEAD, &head, sizeof(head));
	for (size_t i = 0; i < s->n_devices; i++)
		say_device(p, &s->devices[i]);
	while ((c = books_next_client(s->books, c)))
		if (((struct service_client *)c->tag)->recorded)
			say_client(p, c->tag);
	for (size_t i = 0; i < s->n_devices; i++) {
		TAILQ_FOREACH (b, &s->devices[i].books->contexts, in_device)
			say_context(p, b->tag);
		say_address_spaces(p, &s->devices[i]);
		say_slots(p, &s->devices[i]);
	}
	while ((c = books_next_client(s->books, c)))
		if (((struct service_client *)c->tag)->recorded)
			say_rest_of_client(p, c->tag);
}

static void snapshot_now(struct service *s)
{
	struct snapshot p = {.s = s, .counting = true};
	int r = -ENOMEM;

	if (!s->store || !s->store->journal || s->adopting)
		return;
	p.bind = calloc(1, sizeof(*p.bind) + PASID_BIND_MAX * sizeof(p.bind->ops[0]));
	if (p.bind) {
		p.bind->kind = RECORD_BIND;
		say_all(&p);
		r = journal_begin(s->store->journal, p.bytes);
	}
	if (r == 0) {
		p.counting = false;
		p.bind->ctx = 0;
		say_all(&p);
		journal_switch(s->store->journal);
	} else {
		log_limited(&s->limit, LOG_WARN, "no memory for a shorter journal (%llu bytes): %s; it is tried again",
			    (unsigned long long)p.bytes, strerror(-r));
	}
	free(p.bind);
}

static void on_snapshot(evutil_socket_t fd, short what, void *arg)
{
	struct service *s = arg;

	if (s->store && !s->believed && !s->adopting) {
		s->believed = true;
		adopt_forget_unknown(s);
		store_believed(s->store);
	}
	snapshot_now(s);
}

int snapshot_init(struct service *s)
{
	s->snapshot = evtimer_new(s->base, on_snapshot, s);
	return s->snapshot ? 0 : -ENOMEM;
}

void snapshot_soon(struct service *s)
{
	static const struct timeval at_once = {0, 0};

	if (s->snapshot && !s->adopting && !evtimer_pending(s->snapshot, NULL))
		evtimer_add(s->snapshot, &at_once);
}
