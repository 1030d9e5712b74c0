/* SPDX-License-Identifier: MIT */
/*
 * The journal read back. Twice: the first time for what became of intents (adopt_intents.c); the second time everything but
 * those without effect is applied in its order.
 */
#include "service/adopt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "service/absent.h"
#include "service/adopt_intents.h"
#include "service/persist.h"

struct reading {
	struct service *s;
	char *why;
	uint64_t at; /* entries read */
	struct intents intents;
	struct device *device_of[ABSENT_DEVICES]; /* by the index of records */
	struct absent absent;
};

static int bad(struct reading *r, const char *what, uint64_t n1, uint64_t n2)
{
	snprintf(r->why, ADOPT_WHY_MAX, "entry %" PRIu64 ": %s (%" PRIu64 ", %" PRIu64 ")", r->at, what, n1, n2);
	return -EBADMSG;
}

/* Too little memory says nothing about the journal. */
static int bad_error(struct reading *r, const char *what, uint64_t n, int e)
{
	return e == -ENOMEM ? e : bad(r, what, n, (uint64_t)-e);
}

/* ---- records ---- */

static struct device *device_of(const struct reading *r, uint32_t index)
{
	return index < ARRAY_SIZE(r->device_of) ? r->device_of[index] : NULL;
}

static struct ctx *ctx_of(const struct reading *r, uint32_t id)
{
	struct context *b = books_any_context(r->s->books, id);

	return b ? b->tag : NULL;
}

static struct buf *buf_of(const struct reading *r, const struct record *rec)
{
	struct client *c = books_client(r->s->books, rec->client);
	struct buffer_entry *e = c ? books_any_buffer(c, rec->buf) : NULL;

	return e ? e->tag : NULL;
}

/* Of jobs on slots: those up to `job` are done, or the context is gone. */
static void off_slots(struct ctx *ctx, uint64_t job)
{
	for (unsigned int s = 0; s < ENGINE_MAX_SLOTS; s++) {
		struct run *run = &ctx->dev->runs[s];

		if (run->ctx != ctx)
			continue;
		while (run->count && run_job(run, 0)->number <= job) {
			run->head = (run->head + 1) % RUN_JOBS;
			run->count--;
		}
		if (!run->count)
			*run = (struct run){0};
	}
}

/* What runs goes before the books of it do. */
static void forget(struct reading *r, const struct record *rec)
{
	struct client *c = books_client(r->s->books, rec->client);

	if (rec->kind == RECORD_CTX_FREE && ctx_of(r, rec->ctx)) {
		off_slots(ctx_of(r, rec->ctx), UINT64_MAX);
		ctx_forget(ctx_of(r, rec->ctx));
	} else if (rec->kind == RECORD_BUF_GONE && buf_of(r, rec))
		buf_forget(buf_of(r, rec));
	else if (rec->kind == RECORD_CLIENT_CLOSE && c)
		client_forget(c->tag);
}

static int come(struct reading *r, const struct record *rec)
{
	struct client *c = books_client(r->s->books, rec->client);

	if (rec->kind == RECORD_JOBS_DONE)
		off_slots(ctx_of(r, rec->ctx), rec->job);
	if (rec->kind == RECORD_CTX_NEW)
		return ctx_adopt(books_any_context(r->s->books, rec->ctx));
	if (rec->kind != RECORD_IMPORT)
		return 0;
	return buf_adopt(TAILQ_LAST(&c->all_buffers, buffer_list), rec->key);
}

static bool names_a_device(const struct record *rec)
{
	return rec->kind == RECORD_CTX_NEW || rec->kind == RECORD_IMPORT;
}

static int apply_record(struct reading *r, const void *p, size_t size, bool intent)
{
	struct record *rec;
	struct device *d;
	bool absent;
	int e;

	if (!intent_is_whole(p, size))
		return bad(r, "a record of a wrong size", size, 0);
	if (intent && intents_skip(&r->intents, p))
		return 0;
	/* Its effect comes with a record of its own. */
	if (intent && ((const struct record *)p)->kind == RECORD_CTX_FREE)
		return 0;
	rec = malloc(size);
	if (!rec)
		return -ENOMEM;
	memcpy(rec, p, size);
	e = absent_record(&r->absent, rec, &absent);
	if (e < 0 || absent) {
		free(rec);
		return e < 0 ? bad_error(r, "a record of a device that is not there: error", 0, e) : 0;
	}
	d = device_of(r, rec->device);
	if (names_a_device(rec) && d)
		rec->device = d->books->index;
	if (rec->kind == RECORD_CLIENT_CLOSE || rec->kind == RECORD_CTX_FREE || rec->kind == RECORD_BUF_GONE)
		forget(r, rec);
	e = names_a_device(rec) && !d ? -ENODEV : books_replay(r->s->books, RECORD_INTENT, rec);
	/* A snapshot says it of a buffer that a request is freeing, too. */
	if (e == -ENOENT && rec->kind == RECORD_BUF_FREE)
		e = 0;
	else if (e == 0)
		e = come(r, rec);
	if (e < 0)
		e = bad_error(r, "a record that does not fit what came before it: kind, error", rec->kind, e);
	free(rec);
	return e;
}

/* ---- clients ---- */

static int apply_client(struct reading *r, const void *p)
{
	const struct entry_client *e = p;
	struct client *b = books_client(r->s->books, e->client);
	struct record rec = {
		.kind = RECORD_CLIENT_OPEN, .client = e->client, .uid = e->uid, .pid = e->pid, .size = e->lines};
	struct service_client *c;
	int err = 0;

	if (!b) {
		err = books_replay(r->s->books, RECORD_INTENT, &rec);
		b = books_client(r->s->books, e->client);
		if (err == 0)
			err = client_adopt(r->s, b, e->fence);
	}
	if (err < 0)
		return bad_error(r, "a client that cannot be: id, error", e->client, err);
	c = b->tag;
	c->serial = e->serial;
	c->hello = e->flags & ENTRY_CLIENT_HELLO;
	b->last_buf = e->last_buf;
	memcpy(c->name, e->name, sizeof(c->name) - 1);
	return 0;
}

static int apply_commit(struct reading *r, const struct entry_commit *e, size_t size)
{
	const struct pasid_reply *reply = (const void *)(e + 1);
	struct client *b = books_client(r->s->books, e->client);
	struct service_client *c = b ? b->tag : NULL;

	if (!c || size < sizeof(*e) + sizeof(*reply) || size > sizeof(*e) + PASID_MSG_MAX)
		return bad(r, "a reply to nobody: client, bytes", e->client, size);
	c->serial = e->serial;
	c->hello |= reply->msg.opcode == PASID_OP_HELLO && !reply->code;
	kept_put(c, &(struct service_reply){reply, size - sizeof(*e), e->with_fence});
	return 0;
}

static int apply_fence(struct reading *r, const void *p)
{
	const struct entry_fence *e = p;
	struct client *b = books_client(r->s->books, e->client);
	struct device *d = device_of(r, e->index);

	if (!b || !d)
		return bad(r, "fence memory of nobody: client, device", e->client, e->index);
	return fence_map_adopt(b->tag, d, e->bus, e->mapped);
}

static int apply_fence_gone(struct reading *r, const void *p)
{
	const struct entry_fence *e = p;
	struct client *b = books_client(r->s->books, e->client);
	struct device *d = device_of(r, e->index);
	struct fence_map *m = b && d ? fence_map_find(b->tag, d) : NULL;

	if (!m)
		return bad(r, "fence memory of nobody goes: client, device", e->client, e->index);
	fence_map_free(m);
	return 0;
}

/* ---- devices ---- */

/* One that is configured to be another one, or in another mode, is not the one that was there. */
static bool is_same(const struct device_config *c, const struct entry_device *e)
{
	return !strncmp(c->name, e->name, sizeof(e->name)) && !strncmp(c->spec, e->spec, sizeof(e->spec)) &&
	       (c->mode == e->mode || (c->fallback && c->fallback == e->mode));
}

static struct device *configured(struct service *s, const struct entry_device *e)
{
	for (size_t i = 0; i < s->n_devices; i++)
		if (is_same(s->devices[i].config, e))
			return &s->devices[i];
	return NULL;
}

/* The books have to have its addresses before they hear of buffers there. */
static int take_layout(struct device *d, const struct entry_device *e)
{
	if (e->layout.n_usable > LAYOUT_MAX_RANGES || e->n_slots < 1 || e->n_slots > ENGINE_MAX_SLOTS)
		return -EBADMSG;
	d->books->traits.iova = e->iova;
	if (!d->layout.n_usable) {
		d->layout = e->layout;
		books_set_window(d->books, d->layout.buffers);
		layout_holes(&d->layout, (struct range){d->layout.fences.first, d->layout.buffers.last}, setup_add_hole,
			     d);
	}
	d->n_slots = e->n_slots;
	d->mode = e->mode;
	d->opening = e->opening;
	return 0;
}

static int apply_device(struct reading *r, const void *p)
{
	const struct entry_device *e = p;
	struct device *d = configured(r->s, e);

	if (e->index >= ARRAY_SIZE(r->device_of))
		return bad(r, "a device that cannot be: index", e->index, 0);
	if (!d && !r->absent.device[e->index])
		log_warn("device %.*s is not configured as it was: what was on it is lost", (int)sizeof(e->name),
			 e->name);
	r->absent.device[e->index] = !d;
	r->device_of[e->index] = d;
	if (!d)
		return 0;
	/* The same opening: it was taken over once before. */
	if (d->adoption && d->adoption->e.opening == e->opening) {
		d->adoption->e = *e;
		return 0;
	}
	adoption_free(d->adoption);
	d->adoption = calloc(1, sizeof(*d->adoption));
	if (!d->adoption)
		return -ENOMEM;
	d->adoption->e = *e;
	memset(d->runs, 0, sizeof(d->runs));
	return take_layout(d, e) < 0 ? bad(r, "a device that cannot be: index", e->index, 0) : 0;
}

static int apply_device_gone(struct reading *r, const void *p)
{
	const struct entry_device_gone *e = p;
	struct device *d = device_of(r, e->index);

	if (!d)
		return bad(r, "no such device: index", e->index, 0);
	d->adoption = adoption_free(d->adoption);
	memset(d->runs, 0, sizeof(d->runs));
	return 0;
}

static int apply_pool(struct reading *r, const void *p)
{
	const struct entry_pool *e = p;
	struct device *d = device_of(r, e->index);

	if (!d || !d->adoption || e->extent > d->adoption->e.pool_max)
		return bad(r, "table pages of no device: index, pages", e->index, e->extent);
	d->adoption->e.pool_extent = e->extent;
	return 0;
}

static int apply_reset(struct reading *r, const void *p)
{
	const struct entry_reset *e = p;
	struct device *d = device_of(r, e->index);

	if (!d || !d->adoption)
		return bad(r, "a reset of no device: index", e->index, 0);
	d->adoption->reset = e->phase == RESET_OVER ? 0 : e->phase;
	if (e->phase != RESET_ASKED)
		memset(d->runs, 0, sizeof(d->runs));
	return 0;
}

static int apply_stopped(struct reading *r, const void *p)
{
	const struct entry_stopped *e = p;
	struct device *d = device_of(r, e->index);

	if (!d || e->slot >= ENGINE_MAX_SLOTS)
		return bad(r, "no such slot: device, slot", e->index, e->slot);
	d->runs[e->slot] = (struct run){0};
	return 0;
}

/* ---- contexts ---- */

static int apply_tables(struct reading *r, const void *p)
{
	const struct entry_tables *e = p;
	struct device *d = device_of(r, e->index);
	struct ctx *ctx = e->ctx ? ctx_of(r, e->ctx) : NULL;

	if (!d)
		return bad(r, "tables of no device: index", e->index, 0);
	if (ctx)
		ctx->root = e->root;
	else if (!e->ctx && d->adoption)
		d->adoption->shared_root = e->root;
	return 0; /* of a context whose making was not committed */
}

static int apply_lost(struct reading *r, const void *p)
{
	const struct entry_lost *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);

	if (!ctx)
		return bad(r, "no such context: id", e->ctx, 0);
	ctx->lost_why = e->why;
	ctx->lost_job = e->job;
	books_ctx_lost(r->s->books, ctx->books);
	return 0;
}

static int apply_cleared(struct reading *r, const void *p)
{
	const struct entry_cleared *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);

	if (!ctx)
		return bad(r, "no such context: id", e->ctx, 0);
	books_ctx_clear(r->s->books, ctx->books, NULL, NULL);
	ctx->life = CTX_CLEARED;
	ctx->clear_recorded = true;
	ctx->root = 0;
	ctx->window_key = 0;
	return 0;
}

static int apply_put(struct reading *r, const void *p)
{
	const struct entry_put *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);
	struct run *run;

	if (!ctx || e->slot >= ENGINE_MAX_SLOTS || e->job > ctx->books->submitted)
		return bad(r, "a job that cannot be on a slot: context, job", e->ctx, e->job);
	run = &ctx->dev->runs[e->slot];
	if (run->ctx != ctx)
		*run = (struct run){.ctx = ctx};
	if (run->count == RUN_JOBS) { /* the oldest of them was done, or this one could not have been put there */
		run->head = (run->head + 1) % RUN_JOBS;
		run->count--;
	}
	*run_job(run, run->count++) = (struct put_job){e->job, e->mark};
	ctx->put = e->job;
	return 0;
}

static int apply_unput(struct reading *r, const void *p)
{
	const struct entry_unput *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);

	if (!ctx || e->job > ctx->books->submitted)
		return bad(r, "no such job: context, job", e->ctx, e->job);
	ctx->put = e->job;
	for (unsigned int s = 0; s < ENGINE_MAX_SLOTS; s++) {
		struct run *run = &ctx->dev->runs[s];

		while (run->ctx == ctx && run->count && run_job(run, run->count - 1)->number > e->job)
			run->count--;
		if (!run->count)
			*run = (struct run){0};
	}
	return 0;
}

static int apply_space(struct reading *r, const void *p)
{
	const struct entry_space *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);

	if (e->saved_size > sizeof(e->saved))
		return bad(r, "an address space that cannot be: context, bytes", e->ctx, e->saved_size);
	if (!ctx)
		return 0; /* of a context whose making was not committed */
	if (!ctx->space)
		ctx->space = malloc(sizeof(*ctx->space));
	if (!ctx->space)
		return -ENOMEM;
	*ctx->space = *e;
	ctx->window_key = e->window;
	return 0;
}

static int apply_counts(struct reading *r, const void *p)
{
	const struct entry_counts *e = p;
	struct ctx *ctx = ctx_of(r, e->ctx);

	if (!ctx)
		return bad(r, "no such context: id", e->ctx, 0);
	ctx->switches = e->switches;
	ctx->books->faults.total = e->faults;
	return 0;
}

/* ---- entries ---- */

static int apply_head(struct reading *r, const void *p)
{
	const struct entry_head *e = p;

	books_go_on_from(r->s->books, e->last_client, e->last_ctx);
	return 0;
}

static int nothing(struct reading *r, const void *p)
{
	return 0;
}

static const struct {
	size_t size;
	int (*apply)(struct reading *r, const void *p);
} facts[] = {
	[ENTRY_HEAD] = {sizeof(struct entry_head), apply_head},
	[ENTRY_CLIENT] = {sizeof(struct entry_client), apply_client},
	[ENTRY_UNDONE] = {sizeof(struct entry_undone), nothing},
	[ENTRY_DEVICE] = {sizeof(struct entry_device), apply_device},
	[ENTRY_DEVICE_GONE] = {sizeof(struct entry_device_gone), apply_device_gone},
	[ENTRY_POOL] = {sizeof(struct entry_pool), apply_pool},
	[ENTRY_RESET] = {sizeof(struct entry_reset), apply_reset},
	[ENTRY_TABLES] = {sizeof(struct entry_tables), apply_tables},
	[ENTRY_LOST] = {sizeof(struct entry_lost), apply_lost},
	[ENTRY_CLEARED] = {sizeof(struct entry_cleared), apply_cleared},
	[ENTRY_PUT] = {sizeof(struct entry_put), apply_put},
	[ENTRY_UNPUT] = {sizeof(struct entry_unput), apply_unput},
	[ENTRY_STOPPED] = {sizeof(struct entry_stopped), apply_stopped},
	[ENTRY_FENCE] = {sizeof(struct entry_fence), apply_fence},
	[ENTRY_FENCE_GONE] = {sizeof(struct entry_fence), apply_fence_gone},
	[ENTRY_COUNTS] = {sizeof(struct entry_counts), apply_counts},
	[ENTRY_SPACE] = {sizeof(struct entry_space), apply_space},
};

/* Layouts have not changed since the first version. */
static int apply(void *arg, const struct journal_entry *entry)
{
	struct reading *r = arg;
	uint32_t type = entry->type;
	const void *p = entry->p;
	size_t size = entry->size;

	r->at++;
	if (entry->version < ENTRIES_OLDEST)
		return bad(r, "of a version that is not read any more: version, oldest", entry->version,
			   ENTRIES_OLDEST);
	if (type == ENTRY_INTENT || type == ENTRY_DONE)
		return apply_record(r, p, size, type == ENTRY_INTENT);
	if (type == ENTRY_COMMIT)
		return apply_commit(r, p, size);
	if (type >= ARRAY_SIZE(facts) || !facts[type].apply)
		return bad(r, "an entry of an unknown type: type, bytes", type, size);
	if (size != facts[type].size)
		return bad(r, "an entry of a wrong size: type, bytes", type, size);
	return absent_fact(&r->absent, type, p) ? 0 : facts[type].apply(r, p);
}

/* ---- what was under way ---- */

/* A request that held when it was written is answered; its session will find the answer. One that frees a context whose
 * end was not reached is made again. */
static void answer_open(struct reading *r, struct service_client *c, const struct record *rec)
{
	const struct pasid_submit_reply job = {.job = rec->job};
	struct pasid_msg msg = {.serial = rec->serial, .opcode = PASID_OP_SUBMIT};
	struct service_reply reply;

	if (rec->kind == RECORD_CTX_FREE && ctx_of(r, rec->ctx))
		return;
	if (rec->kind != RECORD_SUBMIT)
		msg.opcode = rec->kind == RECORD_CTX_FREE ? PASID_OP_CTX_FREE : PASID_OP_BUF_FREE;
	reply = reply_ok(r->s, &msg, &job, rec->kind == RECORD_SUBMIT ? sizeof(job) : 0);
	c->serial = rec->serial;
	service_keep(c, &reply);
}

/* Its PASID may be attached to something that nobody knows of. */
static int forget_context(struct reading *r, const struct record *rec)
{
	struct device *d = device_of(r, rec->device);

	return d && d->adoption && d->mode == PASID_MODE_PASID ? adoption_detach_later(d->adoption, rec->pasid) : 0;
}

static int bind_again(struct ctx *ctx, const struct record *rec)
{
	ctx->rebuild = true;
	return device_kernel_tables(ctx->dev) ? adopt_kernel_again(ctx, rec) : 0;
}

/* The device may have it, or may not; what is sure is that the request will be made again. */
static int forget_import(struct reading *r, const struct record *rec)
{
	struct device *d = device_of(r, rec->device);
	struct range bus;

	store_drop(r->s->store, rec->key);
	if (!d || !d->adoption || device_kernel_tables(d) || !range_make(&bus, rec->bus, rec->size))
		return 0;
	return adoption_clear_later(d->adoption, bus);
}

static int settle_intents(struct reading *r)
{
	int e = 0;

	for (size_t i = 0; e == 0 && i < r->intents.n_open; i++) {
		const struct record *rec = r->intents.open[i].rec;
		struct client *c = books_client(r->s->books, rec->client);
		struct ctx *ctx = ctx_of(r, rec->ctx);

		if (!c)
			continue;
		if (rec->kind == RECORD_BIND && ctx)
			e = bind_again(ctx, rec);
		else if (rec->kind == RECORD_CTX_NEW)
			e = forget_context(r, rec);
		else if (rec->kind == RECORD_IMPORT)
			e = forget_import(r, rec);
		else if (intent_holds_at_once(rec->kind))
			answer_open(r, c->tag, rec);
	}
	return e;
}

/* Of clients whose fence memory the device may or may not have: it is asked to forget it, and asked anew when it is wanted. */
static int settle_fences(struct reading *r)
{
	struct client *c = NULL;
	struct fence_map *m;
	int e = 0;

	while ((c = books_next_client(r->s->books, c)))
		LIST_FOREACH (m, &((struct service_client *)c->tag)->fence_maps, link) {
			if (!m->dev->adoption)
				m->state = BUF_UNMAPPED;
			else if (m->state != BUF_MAPPED && e == 0)
				e = adoption_clear_later(m->dev->adoption,
							 (struct range){m->bus_node.first, m->bus_node.last});
		}
	return e;
}

static void find_fds(struct service *s)
{
	struct client *c = NULL;
	struct buffer_entry *e;

	while ((c = books_next_client(s->books, c)))
		TAILQ_FOREACH (e, &c->all_buffers, in_client)
			buf_adopt_fd(e->tag);
}

int adopt_journal(struct service *s, char why[ADOPT_WHY_MAX])
{
	struct reading r = {.s = s, .why = why};
	int e;

	if (!s->store || !s->store->journal)
		return 0;
	why[0] = '\0';
	ledger_lenient(books_ledger(s->books), true);
	e = intents_read(&r.intents, s->store->journal);
	if (e == 0)
		e = journal_read(s->store->journal, apply, &r);
	if (e == 0)
		e = settle_intents(&r);
	if (e == 0)
		e = settle_fences(&r);
	if (e == 0)
		find_fds(s);
	if (e == 0)
		absent_tell(&r.absent, s->books);
	absent_fini(&r.absent);
	ledger_lenient(books_ledger(s->books), false);
	intents_fini(&r.intents);
	return e;
}
