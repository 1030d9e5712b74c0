/* SPDX-License-Identifier: MIT */
/*
 * What clients hear without asking. Events are kept as states of their contexts, not as messages, so that a client that
 * does not read costs nothing: newest fault records, lost or not, the last job that a reset ended.
 */
#include "service/private.h"

#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- who looks on ---- */

void tell_made(struct ctx *ctx)
{
	struct service *s = ctx->dev->svc;

	if (s->observer)
		s->observer->context_made(s->observer_arg, ctx->books->id);
	tell_device(ctx->dev);
}

void tell_changed(struct ctx *ctx, uint32_t what)
{
	struct service *s = ctx->dev->svc;

	if (s->observer)
		s->observer->context_changed(s->observer_arg, ctx->books->id, what);
}

void tell_gone(struct ctx *ctx)
{
	struct service *s = ctx->dev->svc;

	if (s->observer)
		s->observer->context_gone(s->observer_arg, ctx->books->id);
	tell_device(ctx->dev);
}

void tell_device(struct device *d)
{
	if (d->svc->observer)
		d->svc->observer->device_changed(d->svc->observer_arg, d->books->index);
}

static void tell_fault(struct ctx *ctx)
{
	struct service *s = ctx->dev->svc;

	if (s->observer)
		s->observer->context_fault(s->observer_arg, ctx->books->id, &ctx->last_fault);
	tell_device(ctx->dev);
}

static void tell_lost(struct ctx *ctx)
{
	struct service *s = ctx->dev->svc;

	if (s->observer)
		s->observer->context_lost(s->observer_arg, ctx->books->id);
}

/* ---- clients ---- */

static void tell(struct service_client *c)
{
	if (c->owner)
		c->ops->events(c->owner);
}

static void queue(struct ctx *ctx)
{
	struct service_client *c = ctx->client;

	if (!ctx->has_events)
		TAILQ_INSERT_TAIL(&c->events, ctx, in_events);
	ctx->has_events = true;
	tell(c);
}

void event_fault(struct ctx *ctx)
{
	tell_fault(ctx);
	queue(ctx);
}

void fence_line_wake(struct pasid_fence_line *line)
{
	syscall(SYS_futex, &line->done, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void fence_line_lose(struct pasid_fence_line *line)
{
	__atomic_add_fetch(&line->disrupted, 1, __ATOMIC_RELEASE);
	__atomic_store_n(&line->state, PASID_CTX_LOST, __ATOMIC_RELEASE);
	fence_line_wake(line);
}

void event_lost(struct ctx *ctx)
{
	queue(ctx);
	fence_line_lose(ctx->line);
	tell_lost(ctx);
}

void event_reset(struct ctx *ctx, uint64_t job)
{
	ctx->reset_job = job;
	queue(ctx);
	__atomic_add_fetch(&ctx->line->disrupted, 1, __ATOMIC_RELEASE);
}

void event_device_back(struct device *d)
{
	struct client *c = NULL;

	while ((c = books_next_client(d->svc->books, c))) {
		struct service_client *sc = c->tag;

		if (!sc->hello)
			continue; /* no event before HELLO; it will ask what there is */
		sc->back |= 1ull << d->books->index;
		tell(sc);
	}
}

void event_forget(struct ctx *ctx)
{
	if (ctx->has_events)
		TAILQ_REMOVE(&ctx->client->events, ctx, in_events);
	ctx->has_events = false;
}

static size_t put_device_back(struct service_client *c, void *buf)
{
	uint32_t index = (uint32_t)__builtin_ctzll(c->back);
	struct pasid_ev_device ev = {.msg = {.size = sizeof(ev), .opcode = PASID_EV_DEVICE_BACK}};

	c->back &= c->back - 1;
	strncpy(ev.device, books_device_at(c->svc->books, index)->traits.name, sizeof(ev.device) - 1);
	memcpy(buf, &ev, sizeof(ev));
	return sizeof(ev);
}

static size_t put_faults(struct ctx *ctx, void *buf)
{
	struct pasid_ev_fault ev = {.msg = {.opcode = PASID_EV_FAULT}, .ctx = ctx->books->id};
	struct pasid_wire_fault faults[PASID_FAULTS_MAX];

	ev.count = fault_log_take(&ctx->books->faults, faults, &ev.dropped);
	ev.msg.size = (uint32_t)(sizeof(ev) + ev.count * sizeof(faults[0]));
	memcpy(buf, &ev, sizeof(ev));
	memcpy((uint8_t *)buf + sizeof(ev), faults, ev.count * sizeof(faults[0]));
	return ev.msg.size;
}

static size_t put_lost(struct ctx *ctx, uint32_t why, uint64_t job, void *buf)
{
	struct pasid_ev_lost ev = {
		.msg = {.size = sizeof(ev), .opcode = PASID_EV_LOST},
		.ctx = ctx->books->id,
		.why = why,
		.job = job,
	};

	memcpy(buf, &ev, sizeof(ev));
	return sizeof(ev);
}

/* One event of the context, oldest kind first; 0 if it has none. */
static size_t put_one(struct ctx *ctx, void *buf)
{
	uint64_t job = ctx->reset_job;

	if (ctx->books->faults.count)
		return put_faults(ctx, buf);
	if (job) {
		ctx->reset_job = 0;
		return put_lost(ctx, PASID_LOST_RESET, job, buf);
	}
	if (ctx->lost_why && !ctx->told_lost && ctx->life == CTX_CLEARED) {
		ctx->told_lost = true;
		return put_lost(ctx, ctx->lost_why, ctx->lost_job, buf);
	}
	return 0;
}

size_t service_next_event(struct service_client *c, void *buf)
{
	const struct pasid_msg resumed = {.size = sizeof(resumed), .opcode = PASID_EV_RESUMED};
	struct ctx *ctx;
	size_t n;

	if (c->resumed && !c->hello)
		c->resumed = false; /* no event before HELLO is answered */
	if (c->resumed) {
		c->resumed = false;
		memcpy(buf, &resumed, sizeof(resumed));
		return sizeof(resumed);
	}
	while ((ctx = TAILQ_FIRST(&c->events))) {
		n = put_one(ctx, buf);
		if (n)
			return n;
		event_forget(ctx);
	}
	return c->back ? put_device_back(c, buf) : 0;
}
