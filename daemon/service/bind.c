/* SPDX-License-Identifier: MIT */
/*
 * Bind lists. The books say first whether the whole list is possible, with every table page and quota taken; then the
 * tables follow, which cannot fail; then the device forgets what was unmapped, and only after that the reply goes out
 * and memory that nothing uses any more is given back.
 *
 * Where a list cuts a block or maps again what it unmaps, nothing runs in the address space from before the first entry
 * changes until the invalidation is complete: break before make, and work never sees the gap.
 */
#include "service/persist.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define SLICE_TABLES 512u /* table pages filled in one go: below a millisecond, others are looked after in between */
#define SLICE_MOST (3 * PASID_BIND_MAX) /* promised to a list of single pages, which is never sliced */
#define PIECE (1ull << 30) /* the largest block */

_Static_assert(sizeof(struct record_op) == sizeof(struct pasid_wire_bind_op), "a record keeps what came over the wire");

static void bind_step(struct pending *p);

static bool is_global(const struct ctx *ctx)
{
	return ctx->dev->books->traits.global;
}

static bool *busy_flag(struct ctx *ctx)
{
	return is_global(ctx) ? &ctx->dev->shared_busy : &ctx->busy;
}

/* ---- taking everything that the list needs ---- */

/* Was any of r mapped by a step before the n-th? Mostly answered by all that was mapped, as one range. */
static bool mapped_before(const struct aspace_step *step, size_t n, struct range all, struct range r)
{
	if (!range_overlaps(all, r))
		return false;
	for (size_t i = 0; i < n; i++)
		if (step[i].kind == ASPACE_MAP && range_overlaps(step[i].iova, r))
			return true;
	return false;
}

struct needs {
	uint64_t tables; /* pages; the sum may be more than there could ever be */
	bool maps, unmaps;
	bool splits; /* a block that is live by then is cut */
};

/* An exhausted pool or quota must not stop a list that only unmaps: it needs pages only where it cuts a block. A block
 * that the list itself has mapped is not in the tables yet, so that arithmetic has to say whether it may be cut. */
static struct needs list_needs(const struct ctx *ctx, const struct plan *plan)
{
	struct range mapped = {UINT64_MAX, 0};
	const struct aspace_step *step;
	struct needs needs = {0};
	uint64_t unmap_need = 0;
	uint32_t now;
	size_t n;

	step = plan_steps(plan, &n);
	for (size_t i = 0; i < n; i++) {
		if (step[i].kind == ASPACE_MAP) {
			needs.maps = true;
			needs.tables += pgtable_map_need(step[i].iova, step[i].bus);
			mapped.first = step[i].iova.first < mapped.first ? step[i].iova.first : mapped.first;
			mapped.last = step[i].iova.last > mapped.last ? step[i].iova.last : mapped.last;
			continue;
		}
		needs.unmaps = true;
		needs.tables += pgtable_unmap_need(step[i].iova);
		now = pgtable_unmap_need_now(ctx->pt, step[i].iova);
		unmap_need += now;
		needs.splits |= now > 0 || (needs.maps && pgtable_unmap_need(step[i].iova) > 0 &&
					    mapped_before(step, i, mapped, step[i].iova));
	}
	if (!needs.maps)
		needs.tables = unmap_need;
	return needs;
}

/* Charged first: whoever may not have them does not make the pool grow either. */
static int take_tables(struct ctx *ctx, uint64_t need, struct refusal *why)
{
	struct device *d = ctx->dev;
	int r;

	if (need > table_pool_max(d->pool))
		return refuse(why, PASID_WHY_QUOTA_TABLES, table_pool_used(d->pool) + need, table_pool_max(d->pool));
	r = is_global(ctx)
		    ? 0
		    : charge_take(&ctx->books->c_tables, ctx->books->client->account, PASID_RES_TABLES, need, why);
	if (r < 0)
		return r;
	r = device_reserve_tables(d, (uint32_t)need, why);
	if (r < 0 && !is_global(ctx))
		charge_return(&ctx->books->c_tables, need);
	return r;
}

/* What is charged is what the tables hold, plus what is promised to them. */
static void settle_tables(struct ctx *ctx, uint32_t promised)
{
	uint64_t holds = (uint64_t)pgtable_pages(ctx->pt) + promised;

	if (!is_global(ctx) && ctx->books->c_tables.amount > holds)
		charge_return(&ctx->books->c_tables, ctx->books->c_tables.amount - holds);
}

static void return_tables(struct ctx *ctx, uint32_t *budget)
{
	table_pool_unreserve(ctx->dev->pool, *budget);
	*budget = 0;
	settle_tables(ctx, 0);
}

static struct record *record_copy(const struct record *rec)
{
	size_t size = sizeof(*rec) + rec->n_ops * sizeof(rec->ops[0]);
	struct record *copy = malloc(size);

	return copy ? memcpy(copy, rec, size) : NULL;
}

/* ---- the change itself ---- */

/* The next piece of a map: at most up to a boundary of the largest block, so that pieces make the same tables. */
static struct range next_piece(const struct verb *v, const struct aspace_step *step)
{
	struct range r = {v->at ? v->at : step->iova.first, step->iova.last};

	if ((r.first | (PIECE - 1)) < r.last)
		r.last = r.first | (PIECE - 1);
	return r;
}

static void map_piece(struct ctx *ctx, struct verb *v, const struct aspace_step *step)
{
	struct range r = next_piece(v, step);
	uint64_t bus = step->bus + (r.first - step->iova.first);

	/* Cannot be refused: the books have no mapping there. */
	if (pgtable_map(ctx->pt, r, bus, step->writable, &v->budget) < 0)
		abort();
	v->at = r.last == step->iova.last ? 0 : r.last + 1;
	v->next += !v->at;
}

/* Lets the tables follow the plan until a slice's worth of table pages is taken. True when all is done. */
static bool change_tables(struct ctx *ctx, struct verb *v, const struct plan *plan)
{
	uint32_t before = v->budget;
	const struct aspace_step *step;
	size_t n;

	step = plan_steps(plan, &n);
	while (v->next < n) {
		if (before - v->budget >= SLICE_TABLES)
			return false;
		if (step[v->next].kind == ASPACE_MAP) {
			map_piece(ctx, v, &step[v->next]);
			continue;
		}
		pgtable_unmap(ctx->pt, step[v->next].iova, &v->budget);
		fault_log_gone(&ctx->books->faults, step[v->next].iova, v->begun_ns);
		ctx->dev->svc->ranges[v->n_gone++] = step[v->next++].iova;
	}
	return true;
}

static void trace_list(const struct ctx *ctx, uint16_t event)
{
	device_trace(ctx->dev, (struct pasid_trace_record){.event = event, .ctx = ctx->books->id});
}

/* Counts what it made, too. */
static void tell_steps(struct ctx *ctx, const struct plan *plan)
{
	const struct aspace_step *step;
	size_t n;

	step = plan_steps(plan, &n);
	for (size_t i = 0; i < n; i++) {
		bool map = step[i].kind == ASPACE_MAP;

		ctx->maps += map;

		device_trace(ctx->dev, (struct pasid_trace_record){.event = map ? PASID_TRACE_MAP : PASID_TRACE_UNMAP,
								   .ctx = ctx->books->id,
								   .a = step[i].iova.first,
								   .b = step[i].iova.last,
								   .c = map ? step[i].bus : 0});
	}
}

static void reply_iovas(struct service_client *c, const struct record *rec, size_t *size)
{
	uint64_t *iova = (uint64_t *)(void *)(c->svc->reply.bytes + sizeof(struct pasid_reply));

	for (uint32_t i = 0; i < rec->n_ops; i++)
		iova[i] = rec->ops[i].iova;
	*size = rec->n_ops * sizeof(*iova);
}

static const void *reply_body(struct service_client *c)
{
	return c->svc->reply.bytes + sizeof(struct pasid_reply);
}

/* From here on the list holds, whoever goes on with it: the reply is known, and what must come before it is that the device
 * forgets, which a successor makes it do for everything. Memory that is used no more goes after that. */
static void keep_early(struct service_client *c, const struct record *rec)
{
	struct service_reply reply;
	size_t size;

	reply_iovas(c, rec, &size);
	reply = reply_ok(c->svc, &c->verb.msg, reply_body(c), size);
	service_keep(c, &reply);
	c->verb.kept = true;
}

/* The tables have followed; the device may still remember what was unmapped. */
static void commit(struct service_client *c, struct ctx *ctx, const struct record *rec, struct plan *plan,
		   bool invalidate)
{
	struct verb *v = &c->verb;

	return_tables(ctx, &v->budget);
	tell_steps(ctx, plan);
	books_bind_commit(c->svc->books, ctx->books, rec, plan);
	buf_take_unused(c->svc, &v->unused);
	if (v->n_gone)
		faults_unmapped(ctx);
	v->committed = true;
	v->ticket = 0;
	keep_early(c, rec);
	/* If the queue is full, or somebody else has used the list of ranges since the first slice, the whole ASID is
	 * invalidated later, which needs no list. */
	if (v->n_gone && invalidate && !v->sliced &&
	    run_invalidate(ctx->dev, ctx->books->asid, c->svc->ranges, v->n_gone, &v->ticket) < 0)
		v->ticket = 0;
}

static bool forgotten(struct ctx *ctx, struct verb *v)
{
	struct device *d = ctx->dev;
	int r = v->ticket ? 0 : run_invalidate(d, ctx->books->asid, NULL, 0, &v->ticket);

	/* It may go on reaching what was unmapped, which stays pinned until it cannot. */
	if (r == -EIO && ctx->life == CTX_ALIVE)
		ctx_lose(ctx, PASID_LOST_DAEMON, 0);
	return r == 0 && v->ticket <= d->ticket_done;
}

static void wind_up(struct service_client *c, struct ctx *ctx)
{
	tell_changed(ctx, SERVICE_MEMORY);
	if (ctx->pt) {
		pgtable_reclaim(ctx->pt);
		settle_tables(ctx, 0);
	}
	buf_unmap_unused(&c->verb.unused);
}

/* ---- as a pending verb ---- */

static void let_go(struct service_client *c, struct ctx *ctx)
{
	trace_list(ctx, PASID_TRACE_BIND_END);
	*busy_flag(ctx) = false;
	if (c->verb.holding)
		ctx_hold(ctx, false);
	c->verb.holding = false;
	free(c->verb.rec);
	c->verb.rec = NULL;
	device_poke(ctx->dev);
}

static void finish(struct service_client *c, struct ctx *ctx)
{
	size_t size;

	wind_up(c, ctx);
	reply_iovas(c, c->verb.rec, &size);
	let_go(c, ctx);
	verb_finish(c, reply_body(c), size);
}

static void give_up(struct service_client *c, struct ctx *ctx)
{
	if (ctx->dev->state == DEVICE_READY || ctx->dev->state == DEVICE_RESETTING)
		return_tables(ctx, &c->verb.budget);
	books_bind_undo(c->svc->books, ctx->books, c->verb.plan);
	let_go(c, ctx);
	verb_refuse(c, PASID_WHY_CONTEXT_LOST, ctx->books->id, 0);
}

/* False: it was given up. A list that has begun is carried to its end unless the device is gone. */
static bool still_possible(struct service_client *c, struct ctx *ctx)
{
	struct verb *v = &c->verb;

	if (ctx->dev->state == DEVICE_READY && (ctx->life == CTX_ALIVE || v->next || v->at))
		return true;
	give_up(c, ctx);
	return false;
}

/* May the device remember translations of this address space? */
static bool ever_installed(const struct ctx *ctx)
{
	return ids_state(ctx->dev->books->asids, ctx->books->asid) == ID_INSTALLED;
}

static void bind_step(struct pending *p)
{
	struct service_client *c = verb_client(p);
	struct verb *v = &c->verb;
	struct ctx *ctx = v->ctx;
	struct device *d = ctx->dev;

	if (d->state == DEVICE_RESETTING)
		goto wait;
	if (!v->committed) {
		if (!still_possible(c, ctx))
			return;
		if (v->holding && !run_held_still(d, ctx))
			goto wait;
		if (!change_tables(ctx, v, v->plan)) {
			v->sliced = true;
			device_poke(d);
			goto wait;
		}
		/* It may have run for the first time between two slices. */
		v->invalidate |= v->n_gone && ever_installed(ctx);
		commit(c, ctx, v->rec, v->plan, v->invalidate);
	}
	if (d->state != DEVICE_READY || !v->invalidate || forgotten(ctx, v) || d->state == DEVICE_GONE) {
		finish(c, ctx);
		return;
	}
wait:
	device_wait(d, p);
}

static enum service_outcome no_memory(struct service_client *c, struct ctx *ctx, struct plan *plan,
				      struct service_reply *reply)
{
	books_bind_undo(c->svc->books, ctx->books, plan);
	refuse(&c->verb.why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	return verb_refused(c, reply);
}

/* Whoever translates has answered while it was asked. */
static enum service_outcome at_once(struct service_client *c, struct ctx *ctx, struct service_reply *reply)
{
	size_t size;

	wind_up(c, ctx);
	reply_iovas(c, c->verb.rec, &size);
	let_go(c, ctx);
	*reply = reply_ok(c->svc, &c->verb.msg, reply_body(c), size);
	return SERVICE_REPLY;
}

/* The list has to wait, or may have to: for a slot to be still, for its next slice, for the invalidation. */
static enum service_outcome bind_pending(struct service_client *c, struct ctx *ctx, const struct record *rec,
					 struct plan *plan, bool hold, struct service_reply *reply)
{
	struct verb *v = &c->verb;

	v->rec = record_copy(rec);
	if (!v->rec) {
		return_tables(ctx, &v->budget);
		return no_memory(c, ctx, plan, reply);
	}
	v->ctx = ctx;
	v->plan = plan;
	v->holding = hold;
	*busy_flag(ctx) = true;
	trace_list(ctx, PASID_TRACE_BIND);
	if (hold)
		ctx_hold(ctx, true);
	else if (change_tables(ctx, v, plan))
		commit(c, ctx, rec, plan, v->invalidate);
	else
		v->sliced = true;
	/* The device may be lost by that, and with it all that would be waited for. */
	if (v->committed && (!v->invalidate || forgotten(ctx, v) || ctx->dev->state == DEVICE_GONE))
		return at_once(c, ctx, reply);
	verb_wait(c, ctx->dev, bind_step);
	if (!v->committed || !v->invalidate)
		device_poke(ctx->dev); /* nothing of the device is waited for, or it may have happened */
	return SERVICE_PENDING;
}

/* ---- where the kernel keeps the tables ---- */

struct transport_memory *buffer_memory(const struct buffer *b)
{
	const struct buffer_entry *e = container_of(b, const struct buffer_entry, buffer);

	return ((const struct buf *)e->tag)->memory;
}

/* The tables that the kernel may need are charged until the context ends, as long as the kernel keeps them. It may have
 * made some, too, where it refuses the plan later. */
static int take_kernel_tables(struct ctx *ctx, const struct plan *plan, struct refusal *why)
{
	uint64_t tables;
	int r = footprint_note(&ctx->footprint, plan, &tables);

	if (r < 0)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	r = tables ? charge_take(&ctx->books->c_tables, ctx->books->client->account, PASID_RES_TABLES, tables, why) : 0;
	footprint_end(&ctx->footprint, plan, r == 0);
	return r;
}

static void note_gone(struct ctx *ctx, const struct plan *plan, uint64_t now)
{
	const struct aspace_step *step;
	size_t n;

	step = plan_steps(plan, &n);
	for (size_t i = 0; i < n; i++)
		if (step[i].kind == ASPACE_UNMAP)
			fault_log_gone(&ctx->books->faults, step[i].iova, now);
}

static void kernel_done(struct service_client *c, struct ctx *ctx)
{
	struct verb *v = &c->verb;

	note_gone(ctx, v->plan, v->begun_ns);
	tell_steps(ctx, v->plan);
	books_bind_commit(c->svc->books, ctx->books, v->rec, v->plan);
	buf_take_unused(c->svc, &v->unused);
	keep_early(c, v->rec);
	finish(c, ctx);
}

/* The kernel would not; what it had done is taken back, or the context has no tables that are true. */
static void kernel_refused(struct service_client *c, struct ctx *ctx, int error)
{
	uint32_t id = ctx->books->id;

	books_bind_undo(c->svc->books, ctx->books, c->verb.plan);
	let_go(c, ctx);
	if (error == -ENOTRECOVERABLE) {
		ctx_lose(ctx, PASID_LOST_DAEMON, 0);
		verb_refuse(c, PASID_WHY_CONTEXT_LOST, id, 0);
	} else {
		verb_refuse(c, PASID_WHY_QUOTA_KERNEL, (uint64_t)-error, 0);
	}
}

static void bind_kernel_step(struct pending *p)
{
	struct service_client *c = verb_client(p);
	struct ctx *ctx = c->verb.ctx;
	struct device *d = ctx->dev;
	int r;

	if (!ctx->kt || (d->state != DEVICE_READY && d->state != DEVICE_RESETTING)) {
		books_bind_undo(c->svc->books, ctx->books, c->verb.plan);
		let_go(c, ctx);
		verb_refuse(c, PASID_WHY_CONTEXT_LOST, ctx->books->id, 0);
		return;
	}
	r = ktables_go(ctx->kt);
	if (r > 0)
		device_wait(d, p);
	else if (r == 0)
		kernel_done(c, ctx);
	else
		kernel_refused(c, ctx, r);
}

static enum service_outcome bind_kernel(struct service_client *c, struct ctx *ctx, const struct record *rec,
					struct plan *plan, struct service_reply *reply)
{
	struct verb *v = &c->verb;

	if (take_kernel_tables(ctx, plan, &v->why) < 0) {
		books_bind_undo(c->svc->books, ctx->books, plan);
		return verb_refused(c, reply);
	}
	v->rec = record_copy(rec);
	if (!v->rec)
		return no_memory(c, ctx, plan, reply);
	persist_intent(c, rec);
	ktables_change(ctx->kt, ctx->books->aspace, plan, buffer_memory);
	v->ctx = ctx;
	v->plan = plan;
	v->holding = false;
	v->begun_ns = util_now_ns();
	ctx->busy = true;
	trace_list(ctx, PASID_TRACE_BIND);
	verb_wait(c, ctx->dev, bind_kernel_step);
	device_poke(ctx->dev);
	return SERVICE_PENDING;
}

/* ---- the request ---- */

static int judge_list(struct service_client *c, const struct pasid_bind_head *head, size_t size)
{
	size_t expected = sizeof(*head) + (size_t)head->count * sizeof(struct pasid_wire_bind_op);

	if (!head->count)
		return refuse(&c->verb.why, PASID_WHY_EMPTY, 0, 0);
	if (head->count > PASID_BIND_MAX)
		return refuse(&c->verb.why, PASID_WHY_TOO_MANY, head->count, PASID_BIND_MAX);
	if (size != expected)
		return refuse(&c->verb.why, PASID_WHY_BODY_SIZE, sizeof(struct pasid_msg) + size,
			      sizeof(struct pasid_msg) + expected);
	return 0;
}

static struct ctx *judge_context(struct service_client *c, uint32_t id)
{
	struct context *books = books_context(c->books, id, c->svc->books, &c->verb.why);
	struct ctx *ctx = books ? books->tag : NULL;

	if (ctx && (ctx->life != CTX_ALIVE || ctx->books->lost)) {
		refuse(&c->verb.why, PASID_WHY_CONTEXT_LOST, id, 0);
		ctx = NULL;
	}
	return ctx;
}

enum service_outcome bind_request(struct service_client *c, const void *body, size_t size, struct service_reply *reply)
{
	const struct pasid_bind_head *head = body;
	struct record *rec = &c->svc->request.rec;
	struct verb *v = &c->verb;
	struct needs needs;
	bool later, hold, sliced;
	struct plan *plan;
	struct ctx *ctx;
	size_t out;
	int r;

	if (judge_list(c, head, size) < 0)
		return verb_refused(c, reply);
	ctx = judge_context(c, head->ctx);
	if (!ctx)
		return verb_refused(c, reply);
	if (!device_usable(ctx->dev, &c->verb.why, &later))
		return later ? verb_later(c, ctx->dev) : verb_refused(c, reply);
	if (*busy_flag(ctx))
		return verb_later(c, ctx->dev);
	*rec = (struct record){
		.kind = RECORD_BIND,
		.client = c->books->id,
		.serial = c->verb.msg.serial,
		.ctx = head->ctx,
		.n_ops = head->count,
	};
	memcpy(rec->ops, head + 1, head->count * sizeof(rec->ops[0]));
	if (books_bind(c->svc->books, ctx->books, rec, &plan, &c->verb.why) < 0)
		return verb_refused(c, reply);
	if (ctx->kt)
		return bind_kernel(c, ctx, rec, plan, reply);
	needs = list_needs(ctx, plan);
	r = take_tables(ctx, needs.tables, &v->why);
	if (r < 0) {
		books_bind_undo(c->svc->books, ctx->books, plan);
		return r == -EAGAIN ? verb_later(c, ctx->dev) : verb_refused(c, reply);
	}
	persist_intent(c, rec);
	v->budget = (uint32_t)needs.tables;
	v->begun_ns = util_now_ns();
	v->next = v->at = v->n_gone = 0;
	v->committed = v->sliced = false;
	sliced = v->budget > SLICE_MOST;
	v->invalidate = needs.unmaps && ever_installed(ctx);
	/* What goes in slices may find work running that did not run yet. */
	hold = needs.unmaps && (v->invalidate || sliced) && (needs.splits || plan_replaces(plan));
	if (v->invalidate || sliced)
		return bind_pending(c, ctx, rec, plan, hold, reply);
	trace_list(ctx, PASID_TRACE_BIND);
	while (!change_tables(ctx, v, plan))
		;
	commit(c, ctx, rec, plan, false);
	wind_up(c, ctx);
	trace_list(ctx, PASID_TRACE_BIND_END);
	reply_iovas(c, rec, &out);
	*reply = reply_ok(c->svc, &v->msg, reply_body(c), out);
	return SERVICE_REPLY;
}
