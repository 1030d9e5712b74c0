/* SPDX-License-Identifier: MIT */
/* Contexts, their mappings and their jobs. See books.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/books_private.h"

#define JOBS_FIRST 8u /* a job ring's first size; it doubles up to what the quota allows */

struct context *books_context(struct client *c, uint32_t id, struct books *b, struct refusal *why)
{
	struct context *ctx = idmap_find(&b->contexts, id);

	if (ctx && ctx->client == c)
		return ctx;
	refuse(why, PASID_WHY_NO_CONTEXT, id, 0);
	return NULL;
}

struct context *books_any_context(struct books *b, uint32_t id)
{
	return idmap_find(&b->contexts, id);
}

/* ---- fence lines ---- */

static bool line_take(struct client *c, uint32_t given, uint32_t *line)
{
	uint32_t i = 0;

	if (given) {
		i = given - 1;
	} else {
		while (i < c->n_lines && c->lines[i / 64] == UINT64_MAX)
			i = (i / 64 + 1) * 64;
		while (i < c->n_lines && (c->lines[i / 64] >> (i % 64) & 1))
			i++;
	}
	if (i >= c->n_lines || (c->lines[i / 64] >> (i % 64) & 1))
		return false;
	c->lines[i / 64] |= 1ull << (i % 64);
	*line = i;
	return true;
}

static void line_return(struct client *c, uint32_t line)
{
	c->lines[line / 64] &= ~(1ull << (line % 64));
}

/* ---- contexts ---- */

static int take_ids(struct device_books *d, struct record *rec)
{
	int r;

	r = rec->pasid ? ids_reserve_exact(d->pasids, rec->pasid) : ids_reserve(d->pasids, &rec->pasid);
	if (r < 0)
		return r;
	if (d->traits.global) {
		rec->asid = d->shared_asid;
		return 0;
	}
	r = rec->asid ? ids_reserve_exact(d->asids, rec->asid) : ids_reserve(d->asids, &rec->asid);
	if (r < 0)
		ids_release(d->pasids, rec->pasid);
	return r;
}

/* Whoever frees a context has seen to it that the device has forgotten it. */
static void return_id(struct ids *ids, uint32_t id)
{
	if (ids_release(ids, id))
		ids_drained(ids, id);
}

static void return_ids(struct device_books *d, const struct context *ctx)
{
	return_id(d->pasids, ctx->pasid);
	if (!d->traits.global)
		return_id(d->asids, ctx->asid);
}

/* Either PASIDs or ASIDs are used up. */
static int refuse_ids(const struct device_books *d, struct refusal *why)
{
	uint64_t pasids = (1ull << d->traits.pasid_bits) - 1;

	if (ids_in_use(d->pasids) == pasids)
		return refuse(why, PASID_WHY_QUOTA_IDS, pasids, pasids);
	return refuse(why, PASID_WHY_QUOTA_IDS, ids_in_use(d->asids), (1ull << d->traits.asid_bits) - 1);
}

int books_ctx_new(struct books *b, struct record *rec, struct refusal *why, struct context **ret)
{
	struct client *c = books_client(b, rec->client);
	struct device_books *d = books_device_at(b, rec->device);
	struct context *ctx = calloc(1, sizeof(*ctx));
	bool chosen = !rec->pasid;
	int r;

	if (!ctx)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	r = charge_take(&ctx->c_context, c->account, PASID_RES_CONTEXTS, 1, why);
	if (r < 0)
		goto fail;
	r = take_ids(d, rec);
	if (r < 0) {
		r = r == -ENOMEM ? refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0) : refuse_ids(d, why);
		goto fail_ids;
	}
	ctx->pasid = rec->pasid;
	ctx->asid = rec->asid;
	ctx->opaque = rec->opaque;
	if (!line_take(c, rec->line, &ctx->line)) {
		r = refuse(why, PASID_WHY_QUOTA_CONNECTION + PASID_RES_CONTEXTS, c->n_lines, c->n_lines);
		goto fail_line;
	}
	ctx->id = books_next_id(b->last_ctx, rec->ctx);
	if (!ctx->id || idmap_add(&b->contexts, ctx->id, ctx) < 0) {
		r = refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
		goto fail_map;
	}
	books_id_taken(&b->last_ctx, ctx->id);
	rec->ctx = ctx->id;
	rec->line = ctx->line + 1;
	ctx->submitted = ctx->ended = rec->job;
	ctx->client = c;
	ctx->device = d;
	ctx->aspace = d->traits.global ? &d->shared : &ctx->own;
	if (!d->traits.global)
		aspace_init(&ctx->own, d->traits.iova, ASPACE_PAGE);
	TAILQ_INSERT_TAIL(&c->contexts, ctx, in_client);
	TAILQ_INSERT_TAIL(&d->contexts, ctx, in_device);
	d->n_contexts++;
	*ret = ctx;
	return 0;

fail_map:
	line_return(c, ctx->line);
fail_line:
	return_ids(d, ctx);
fail_ids:
	if (chosen)
		rec->pasid = rec->asid = 0;
	charge_return_all(&ctx->c_context);
fail:
	free(ctx);
	return r;
}

struct clearing {
	struct books *books;
	void (*gone)(void *arg, struct range r);
	void *arg;
};

static void clearing_gone(void *arg, struct range r)
{
	struct clearing *c = arg;

	if (c->gone)
		c->gone(c->arg, r);
}

static void clearing_unused(void *arg, struct buffer *buf)
{
	struct clearing *c = arg;

	books_buffer_unused(c->books, buf);
}

static void clear_end(struct context *ctx)
{
	ctx->mappings = 0;
	ctx->bytes = 0;
	charge_return_all(&ctx->c_mappings);
	books_jobs_done(ctx, ctx->submitted);
}

void books_ctx_clear(struct books *b, struct context *ctx, void (*gone)(void *arg, struct range r), void *arg)
{
	struct clearing c = {b, gone, arg};

	/* In a shared address space somebody else's bind list may be open by now; one without mappings is not bothered. */
	if (ctx->mappings)
		aspace_drop_owner(ctx->aspace, ctx->id, clearing_gone, clearing_unused, &c);
	clear_end(ctx);
}

bool books_ctx_clear_some(struct books *b, struct context *ctx, void (*gone)(void *arg, struct range r), void *arg)
{
	struct clearing c = {b, gone, arg};
	uint64_t before = ctx->aspace->count;
	bool more = false;

	if (ctx->mappings > ctx->cleared)
		more = aspace_drop_some(ctx->aspace, ctx->id, &ctx->clear_from, ASPACE_TAKE_MAX, clearing_gone,
					clearing_unused, &c);
	ctx->cleared += before - ctx->aspace->count;
	if (more && ctx->cleared < ctx->mappings)
		return true;
	clear_end(ctx);
	return false;
}

void books_ctx_lost(struct books *b, struct context *ctx)
{
	ctx->lost = true;
	books_jobs_done(ctx, ctx->submitted);
}

void books_ctx_free(struct books *b, struct context *ctx)
{
	struct client *c = ctx->client;
	struct device_books *d = ctx->device;

	books_ctx_clear(b, ctx, NULL, NULL);
	if (!d->traits.global)
		aspace_fini(&ctx->own);
	return_ids(d, ctx);
	charge_return_all(&ctx->c_tables);
	charge_return_all(&ctx->c_context);
	if (!ctx->line_retired)
		line_return(c, ctx->line);
	d->n_contexts--;
	TAILQ_REMOVE(&c->contexts, ctx, in_client);
	TAILQ_REMOVE(&d->contexts, ctx, in_device);
	idmap_remove(&b->contexts, ctx->id);
	free(ctx->jobs);
	free(ctx);
}

/* ---- bind lists ---- */

static int op_refused(struct refusal *why, uint32_t index, uint32_t reason, uint64_t n1, uint64_t n2)
{
	why->index = index;
	return refuse(why, reason, n1, n2);
}

static int op_map(struct context *ctx, const struct record_op *w, struct aspace_op *op, uint32_t i, struct refusal *why)
{
	const uint32_t allowed = PASID_MAP_READ | PASID_MAP_WRITE | PASID_MAP_FIXED;
	struct buffer_entry *e;

	if ((w->flags & ~allowed) || !(w->flags & PASID_MAP_READ))
		return op_refused(why, i, PASID_WHY_FLAGS, w->flags, allowed);
	e = books_buffer(ctx->client, w->buf, why);
	if (!e) {
		why->index = i;
		return refusal_code(why->reason);
	}
	if (e->device != ctx->device)
		return op_refused(why, i, PASID_WHY_OTHER_DEVICE, w->buf, 0);
	if (!e->reachable)
		return op_refused(why, i, PASID_WHY_DEVICE_GONE, 0, 0);
	*op = (struct aspace_op){
		.kind = ASPACE_MAP,
		.fixed = w->flags & PASID_MAP_FIXED,
		.writable = w->flags & PASID_MAP_WRITE,
		.buf = &e->buffer,
		.off = w->off,
		.iova = w->iova,
		.len = w->len,
	};
	return 0;
}

/* From what came over the wire (or out of a journal) to what the address space understands. */
static int op_judge(struct context *ctx, const struct record_op *w, struct aspace_op *op, uint32_t i,
		    struct refusal *why)
{
	if (w->reserved)
		return op_refused(why, i, PASID_WHY_RESERVED, 0, 0);
	if (w->kind == PASID_BIND_MAP)
		return op_map(ctx, w, op, i, why);
	if (w->kind != PASID_BIND_UNMAP)
		return op_refused(why, i, PASID_WHY_BIND_OP, w->kind, 0);
	if (w->flags)
		return op_refused(why, i, PASID_WHY_FLAGS, w->flags, 0);
	if (w->buf || w->off)
		return op_refused(why, i, PASID_WHY_RESERVED, 0, 0);
	*op = (struct aspace_op){.kind = ASPACE_UNMAP, .fixed = true, .iova = w->iova, .len = w->len};
	return 0;
}

int books_bind(struct books *b, struct context *ctx, struct record *rec, struct plan **ret, struct refusal *why)
{
	struct plan *plan;
	int64_t peak;
	int r;

	for (uint32_t i = 0; i < rec->n_ops; i++) {
		r = op_judge(ctx, &rec->ops[i], &b->ops[i], i, why);
		if (r < 0)
			return r;
	}
	r = aspace_plan(ctx->aspace, ctx->id, b->ops, rec->n_ops, &plan, why);
	if (r < 0)
		return r;
	plan_mappings(plan, &peak);
	if (peak > 0)
		r = charge_take(&ctx->c_mappings, ctx->client->account, PASID_RES_MAPPINGS, (uint64_t)peak, why);
	if (r < 0) {
		plan_undo(plan);
		return r;
	}
	for (uint32_t i = 0; i < rec->n_ops; i++) {
		rec->ops[i].iova = b->ops[i].iova;
		if (rec->ops[i].kind == PASID_BIND_MAP)
			rec->ops[i].flags |= PASID_MAP_FIXED;
	}
	*ret = plan;
	return 0;
}

/* The charge was for the most mappings on the way; what stays is the count. */
static void settle_mappings(struct context *ctx)
{
	charge_return(&ctx->c_mappings, ctx->c_mappings.amount - ctx->mappings);
}

void books_bind_commit(struct books *b, struct context *ctx, const struct record *rec, struct plan *plan)
{
	int64_t peak;

	ctx->mappings += (uint64_t)plan_mappings(plan, &peak);
	/* An unmap is covered by mappings of this context without a hole, so lengths add up exactly. */
	for (uint32_t i = 0; i < rec->n_ops; i++)
		ctx->bytes += rec->ops[i].kind == PASID_BIND_MAP ? rec->ops[i].len : -rec->ops[i].len;
	plan_commit(plan, books_buffer_unused, b);
	settle_mappings(ctx);
}

void books_bind_undo(struct books *b, struct context *ctx, struct plan *plan)
{
	plan_undo(plan);
	settle_mappings(ctx);
}

/* ---- jobs ---- */

static int jobs_grow(struct context *ctx)
{
	uint32_t size = ctx->jobs_size ? 2 * ctx->jobs_size : JOBS_FIRST;
	struct job *jobs = calloc(size, sizeof(*jobs));

	if (!jobs)
		return -ENOMEM;
	for (uint64_t n = ctx->ended + 1; n <= ctx->submitted; n++)
		jobs[n & (size - 1)] = ctx->jobs[n & (ctx->jobs_size - 1)];
	free(ctx->jobs);
	ctx->jobs = jobs;
	ctx->jobs_size = size;
	return 0;
}

static int judge_commands(const struct context *ctx, const struct record *rec, struct refusal *why)
{
	const struct device_traits *t = &ctx->device->traits;
	struct range r;

	if (!rec->len)
		return refuse(why, PASID_WHY_EMPTY, 0, 0);
	if (rec->len > t->submit_max)
		return refuse(why, PASID_WHY_COMMANDS, rec->len, t->submit_max);
	if (rec->iova % t->cmd_align)
		return refuse(why, PASID_WHY_UNALIGNED, rec->iova, t->cmd_align);
	if (rec->len % t->cmd_align)
		return refuse(why, PASID_WHY_UNALIGNED, rec->len, t->cmd_align);
	if (!range_make(&r, rec->iova, rec->len))
		return refuse(why, PASID_WHY_WRAPS, rec->iova, rec->len);
	if (!range_contains(t->iova, r))
		return refuse(why, PASID_WHY_APERTURE, t->iova.first, t->iova.last);
	return 0;
}

int books_submit(struct books *b, struct context *ctx, struct record *rec, struct refusal *why)
{
	int r = judge_commands(ctx, rec, why);

	if (r < 0)
		return r;
	r = charge_take(&ctx->c_jobs, ctx->client->account, PASID_RES_JOBS, 1, why);
	if (r < 0)
		return r;
	if (ctx->submitted - ctx->ended == ctx->jobs_size && jobs_grow(ctx) < 0) {
		charge_return(&ctx->c_jobs, 1);
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	rec->job = ++ctx->submitted;
	ctx->jobs[rec->job & (ctx->jobs_size - 1)] =
		(struct job){.number = rec->job, .iova = rec->iova, .len = rec->len};
	return 0;
}

const struct job *books_job(const struct context *ctx, uint64_t number)
{
	if (number <= ctx->ended || number > ctx->submitted)
		return NULL;
	return &ctx->jobs[number & (ctx->jobs_size - 1)];
}

void books_jobs_done(struct context *ctx, uint64_t number)
{
	assert(number <= ctx->submitted);
	if (number <= ctx->ended)
		return;
	charge_return(&ctx->c_jobs, number - ctx->ended);
	ctx->ended = number;
}
