/* SPDX-License-Identifier: MIT */
/*
 * The life of a context, and above all its end: its slot is stopped, the device forgets its ASID, and only then tables,
 * mappings and memory go. The same steps serve a context that is freed, one whose client died, and one that hung.
 */
#include "service/adopt.h"
#include "service/persist.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"

static void ctx_step(struct pending *p);
static void ctx_release(struct ctx *ctx);

static bool ctx_global(const struct ctx *ctx)
{
	return ctx->dev->books->traits.global;
}

void ctx_changed(void *dev)
{
	struct device *d = dev;

	if (d->adoption)
		d->adoption->since = util_now_ns();
	device_poke(d);
}

static void drop_window(struct ctx *ctx)
{
	persist_window_gone(ctx);
	shm_fini(&ctx->window);
}

static int kernel_tables(struct ctx *ctx)
{
	struct device *d = ctx->dev;
	struct ktables_window window = {WINDOW_IOVA, d->eops->window_bytes, -1};
	uint32_t pasid = device_exclusive(d) ? 0 : ctx->books->pasid;
	int r = window.len ? shm_init(&ctx->window, "pasidd-window", window.len) : 0;

	window.fd = ctx->window.fd;
	if (r == 0 && window.len && !persist_window(ctx))
		r = -ENOSPC;
	if (r == 0)
		r = ktables_new(&ctx->kt, d->t, &window, pasid, ctx_changed, d);
	if (r < 0)
		drop_window(ctx);
	return r;
}

static int own_tables(struct ctx *ctx)
{
	struct device *d = ctx->dev;
	int r = pgtable_new(&ctx->pt, d->format, d->pool);

	if (r == 0 && device_nested(d))
		r = nest_fill(d, ctx->pt);
	if (r < 0)
		ctx->pt = pgtable_free(ctx->pt);
	return r;
}

int ctx_start(struct service_client *c, struct device *d, struct context *books, struct fence_map *fence,
	      struct ctx **ret)
{
	AUTO_FREE struct ctx *ctx = calloc(1, sizeof(*ctx));
	int r;

	if (!ctx)
		return -ENOMEM;
	ctx->books = books;
	ctx->dev = d;
	ctx->client = c;
	ctx->slot = -1;
	TAILQ_INIT(&ctx->unused);
	ctx->pending.step = ctx_step;
	ctx->line = (struct pasid_fence_line *)((uint8_t *)c->fence.p + (size_t)books->line * PASID_FENCE_STRIDE);
	if (fence)
		ctx->fence_bus = fence->bus_node.first + (uint64_t)books->line * PASID_FENCE_STRIDE;
	memset(ctx->line, 0, sizeof(*ctx->line));
	r = sched_add(d->sched, books->client->uid, books->client->id, ctx, &ctx->se);
	if (r < 0)
		return r;
	if (ctx_global(ctx)) {
		ctx->pt = d->shared_pt;
		sched_hold(d->sched, ctx->se, d->shared_held);
	} else {
		r = device_kernel_tables(d) ? kernel_tables(ctx) : own_tables(ctx);
		if (r < 0) {
			sched_remove(d->sched, ctx->se);
			return r;
		}
	}
	books->tag = ctx;
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_CTX,
						    .ctx = books->id,
						    .a = (uint64_t)books->client->pid,
						    .b = books->client->uid,
						    .c = books->pasid});
	tell_made(ctx);
	*ret = TAKE_PTR(ctx);
	return 0;
}

int ctx_adopt(struct context *books)
{
	struct ctx *ctx = calloc(1, sizeof(*ctx));
	struct service_client *c = books->client->tag;

	if (!ctx)
		return -ENOMEM;
	ctx->books = books;
	ctx->dev = books->device->tag;
	ctx->client = c;
	ctx->slot = -1;
	TAILQ_INIT(&ctx->unused);
	ctx->pending.step = ctx_step;
	ctx->line = (struct pasid_fence_line *)((uint8_t *)c->fence.p + (size_t)books->line * PASID_FENCE_STRIDE);
	ctx->put = books->ended;
	ctx->recorded = true;
	books->tag = ctx;
	return 0;
}

void ctx_forget_left(struct ctx *ctx)
{
	free(ctx->space);
	free(ctx->again);
	ctx->space = NULL;
	ctx->again = NULL;
	ctx->n_again = 0;
	ctx->rebuild = false;
}

void ctx_forget(struct ctx *ctx)
{
	ctx->books->tag = NULL;
	ctx_forget_left(ctx);
	free(ctx);
}

void ctx_hold(struct ctx *ctx, bool hold)
{
	struct device *d = ctx->dev;
	struct context *other;

	if (d->state != DEVICE_READY && d->state != DEVICE_RESETTING)
		return;
	if (!ctx_global(ctx)) {
		if (ctx->se)
			sched_hold(d->sched, ctx->se, hold || ctx->life != CTX_ALIVE);
	} else {
		d->shared_held = hold;
		TAILQ_FOREACH (other, &d->books->contexts, in_device) {
			struct ctx *o = other->tag;

			if (o && o->se)
				sched_hold(d->sched, o->se, hold || o->life != CTX_ALIVE);
		}
	}
	if (hold)
		run_hold(d, ctx, ctx_global(ctx));
	else
		run_release(d, ctx);
}

/* ---- its end ---- */

static void ctx_cleared(struct ctx *ctx)
{
	ctx->life = CTX_CLEARED;
	if (ctx->lost_why && !ctx->told_lost)
		event_lost(ctx);
	if (ctx->free_asked)
		ctx_release(ctx);
}

static void unmap_shared(void *arg, struct range r)
{
	struct ctx *ctx = arg;
	uint32_t no_budget = 0; /* whole mappings: nothing is split */

	pgtable_unmap(ctx->pt, r, &no_budget);
}

/* The next instalment, if others have had their turn since the last one. True if there are more. */
static bool clear_some(struct ctx *ctx)
{
	struct service *s = ctx->dev->svc;
	uint64_t before = ctx->books->aspace->count;
	bool more;

	if (ctx->dev->cleared >= ASPACE_TAKE_MAX)
		return true;
	more = books_ctx_clear_some(s->books, ctx->books, ctx->pt ? unmap_shared : NULL, ctx);
	/* In a shared address space it has looked at more than it has taken away. */
	ctx->dev->cleared += more || ctx_global(ctx) ? ASPACE_TAKE_MAX : before - ctx->books->aspace->count;
	buf_take_unused(s, &ctx->unused);
	return more;
}

/* Nothing can reach its memory any more. The books give it back by instalments, so that no client waits for the end of
 * another's million mappings, in one context or in hundreds. */
static void clear_step(struct ctx *ctx)
{
	/* In a shared address space a bind list may be open. */
	bool free_of_others = !ctx_global(ctx) || !ctx->dev->shared_busy || !ctx->books->mappings;

	if (free_of_others && !clear_some(ctx)) {
		buf_unmap_unused(&ctx->unused);
		ctx_cleared(ctx);
		return;
	}
	buf_unmap_unused(&ctx->unused);
	device_wait(ctx->dev, &ctx->pending);
	device_poke(ctx->dev);
}

static void clear_begin(struct ctx *ctx)
{
	ctx->life = CTX_CLEARING;
	persist_cleared(ctx);
	charge_return_all(&ctx->books->c_tables);
	footprint_fini(&ctx->footprint);
	if (ctx->se)
		ctx->se = sched_remove(ctx->dev->sched, ctx->se);
	clear_step(ctx);
}

static void stop_begin(struct ctx *ctx)
{
	struct device *d = ctx->dev;

	ctx->life = CTX_STOPPING;
	sched_hold(d->sched, ctx->se, true);
	sched_set_jobs(d->sched, ctx->se, 0);
	if (d->state == DEVICE_READY)
		ctx->slot = sched_resident(d->sched, ctx->se);
	if (ctx->slot >= 0)
		run_stop(d, (unsigned int)ctx->slot);
}

/* Nothing of it runs any more, and no fault of it is left to be told of somebody who comes after it on the slot. False:
 * not yet, or the device was lost meanwhile and the context may be gone. */
static bool stop_done(struct ctx *ctx)
{
	struct device *d = ctx->dev;

	if (ctx->slot >= 0) {
		if (!run_settled(d, (unsigned int)ctx->slot))
			return false;
		faults_look(d);
		if (d->state != DEVICE_READY)
			return false;
		run_stopped(d, (unsigned int)ctx->slot);
		ctx->slot = -1;
	}
	ctx->life = CTX_INVALIDATING;
	return true;
}

/* In the shared address space only its own mappings go; they are unmapped before the invalidation. */
static bool clear_shared(struct ctx *ctx)
{
	if (ctx->dev->shared_busy && !ctx->busy)
		return false;
	ctx->dev->shared_busy = ctx->busy = true;
	if (!clear_some(ctx))
		return true;
	device_poke(ctx->dev);
	return false;
}

/* 0: the device is not there; 1: not yet; -errno: nobody knows. */
static int move_out(struct ctx *ctx)
{
	const struct translator_space space = {.kernel = ktables_space(ctx->kt)};
	struct translator *tr = ctx->dev->tr;
	int r = tr->ops->remove(tr, 0, &space);

	return r == -EAGAIN ? 1 : r;
}

/* Where the kernel keeps the tables: the device leaves the address space, then that goes as a whole. False: not yet, or
 * the device was lost meanwhile and the context may be gone. */
static bool leave(struct ctx *ctx)
{
	struct device *d = ctx->dev;
	int r;

	if (ctx->busy || !ktables_made(ctx->kt))
		return false;
	r = device_exclusive(d) ? move_out(ctx) : ktables_leave(ctx->kt);
	if (r < 0) {
		device_fail(d, "it cannot be taken out of an address space");
		return false;
	}
	if (r > 0)
		return false;
	persist_cleared(ctx); /* before what its tables are known by is somebody else's */
	if (ktables_end(&ctx->kt) < 0)
		return false;
	drop_window(ctx);
	return true;
}

/* Whoever translates has no way to its tables any more. False: not yet. */
static bool removed(struct ctx *ctx)
{
	const struct translator_space space = {
		.pasid = ctx->books->pasid, .asid = ctx->books->asid, .root = pgtable_root(ctx->pt)};
	struct device *d = ctx->dev;

	if (!d->tr->ops->remove || d->tr->ops->remove(d->tr, 0, &space) == 0)
		return true;
	run_refused(d, ctx->books->asid);
	return false;
}

static bool invalidate_begin(struct ctx *ctx)
{
	struct device *d = ctx->dev;

	if (ctx_global(ctx) && !clear_shared(ctx))
		return false;
	if (!ctx_global(ctx) && ctx->busy)
		return false;
	if (!ctx_global(ctx) && ids_state(d->books->asids, ctx->books->asid) != ID_INSTALLED) {
		ctx->ticket = d->ticket_done;
		return true;
	}
	return removed(ctx) && run_invalidate(d, ctx->books->asid, NULL, 0, &ctx->ticket) == 0;
}

static void invalidate_done(struct ctx *ctx)
{
	if (ctx_global(ctx)) {
		pgtable_reclaim(ctx->pt);
		ctx->dev->shared_busy = ctx->busy = false;
		device_poke(ctx->dev); /* whoever waited for that */
	} else {
		persist_cleared(ctx); /* before its pages are somebody else's */
		pgtable_free(ctx->pt);
	}
	ctx->pt = NULL;
}

/* One step after the other as far as it goes; waits for the device where it has to. */
static void ctx_step(struct pending *p)
{
	struct ctx *ctx = container_of(p, struct ctx, pending);
	struct device *d = ctx->dev;

	if (ctx->life == CTX_CLEARING) {
		clear_step(ctx);
		return;
	}
	if (d->state != DEVICE_READY) {
		if (d->state == DEVICE_RESETTING)
			device_wait(d, p);
		return; /* gone: ctx_device_gone() finishes it */
	}
	if (ctx->life == CTX_STOPPING && !stop_done(ctx)) {
		if (d->state == DEVICE_READY)
			device_wait(d, p);
		return;
	}
	if (ctx->kt) {
		if (leave(ctx))
			clear_begin(ctx);
		else if (d->state == DEVICE_READY)
			device_wait(d, p);
		return;
	}
	if (ctx->life == CTX_INVALIDATING && (ctx->ticket || invalidate_begin(ctx)) && ctx->ticket <= d->ticket_done) {
		invalidate_done(ctx);
		clear_begin(ctx);
		return;
	}
	device_wait(d, p);
}

static void ctx_kill(struct ctx *ctx)
{
	if (ctx->life != CTX_ALIVE)
		return;
	/* The device is just being lost, and this context's turn has not come yet. */
	if (ctx->dev->state != DEVICE_READY && ctx->dev->state != DEVICE_RESETTING) {
		ctx_device_gone(ctx);
		return;
	}
	stop_begin(ctx);
	ctx_step(&ctx->pending);
}

static void trace_lost(const struct ctx *ctx)
{
	device_trace(ctx->dev, (struct pasid_trace_record){.event = PASID_TRACE_CTX_LOST,
							   .ctx = ctx->books->id,
							   .job = ctx->lost_job,
							   .a = ctx->lost_why});
}

void ctx_lose(struct ctx *ctx, uint32_t why, uint64_t job)
{
	ctx->lost_why = why;
	ctx->lost_job = job;
	persist_lost(ctx);
	trace_lost(ctx);
	books_ctx_lost(ctx->dev->svc->books, ctx->books);
	tell_changed(ctx, SERVICE_STATE);
	ctx_kill(ctx);
}

/* The last step. Its ASID is invalidated by now, or its device forgot everything. */
static void ctx_release(struct ctx *ctx)
{
	struct service_client *c = ctx->client;
	struct device *d = ctx->dev;

	tell_gone(ctx);
	device_unwait(&ctx->pending);
	event_forget(ctx);
	persist_context_gone(ctx);
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_CTX_GONE, .ctx = ctx->books->id});
	books_ctx_free(c->svc->books, ctx->books);
	if (c->verb.ctx == ctx)
		c->verb.ctx = NULL;
	ctx_forget_left(ctx);
	free(ctx);
	device_poke(d);
	service_client_reap(c);
}

void ctx_free(struct ctx *ctx)
{
	ctx->free_asked = true;
	tell_changed(ctx, SERVICE_STATE);
	if (ctx->life == CTX_CLEARED)
		ctx_release(ctx);
	else
		ctx_kill(ctx);
}

void ctx_device_gone(struct ctx *ctx)
{
	struct device *d = ctx->dev;

	if (ctx->life == CTX_CLEARED || ctx->life == CTX_CLEARING)
		return;
	device_unwait(&ctx->pending);
	/* Also for one that was being stopped and was not told yet: a device that does not answer hangs by itself. */
	ctx->lost_why = PASID_LOST_DEVICE;
	ctx->lost_job = 0;
	persist_lost(ctx);
	persist_cleared(ctx);
	ctx->slot = -1;
	ctx->busy = false;
	if (!ctx_global(ctx))
		pgtable_free(ctx->pt);
	ctx->pt = NULL;
	ctx->kt = ktables_free(ctx->kt);
	drop_window(ctx);
	trace_lost(ctx);
	books_ctx_lost(d->svc->books, ctx->books);
	tell_changed(ctx, SERVICE_STATE);
	clear_begin(ctx);
}

void ctx_clear_now(struct ctx *ctx)
{
	while (books_ctx_clear_some(ctx->dev->svc->books, ctx->books, NULL, NULL))
		;
	buf_take_unused(ctx->dev->svc, &ctx->unused);
	buf_unmap_unused(&ctx->unused);
	device_unwait(&ctx->pending);
	ctx->life = CTX_CLEARED;
	if (ctx->free_asked)
		ctx_release(ctx);
}
