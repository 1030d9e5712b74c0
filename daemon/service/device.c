/* SPDX-License-Identifier: MIT */
/*
 * A device's life: opened, set up (setup.c), ready; reset when a slot does not obey; gone and tried again.
 *
 * Each opening has table pages, rings and marks of its own, in fresh memory: a device process that was only stopped may
 * wake up later with its old mappings, and must find in them nothing but what it already had.
 */
#include "service/adopt.h"
#include "service/persist.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define BACKOFF_MAX_MS 2000u
#define EXTEND_PAUSE_NS 1000000000ull /* after table pages that could not be had: what was short may be back */

static void arm(struct event *ev, uint32_t ms)
{
	struct timeval tv = {ms / 1000, (ms % 1000) * 1000};

	evtimer_add(ev, &tv);
}

bool device_usable(const struct device *d, struct refusal *why, bool *later)
{
	*later = d->state == DEVICE_RESETTING;
	if (d->state != DEVICE_READY)
		refuse(why, PASID_WHY_DEVICE_GONE, 0, 0);
	return d->state == DEVICE_READY;
}

/* ---- who waits ---- */

void device_wait(struct device *d, struct pending *p)
{
	if (p->dev)
		return;
	p->dev = d;
	p->round = d->round;
	TAILQ_INSERT_TAIL(&d->pending, p, link);
}

void device_unwait(struct pending *p)
{
	if (!p->dev)
		return;
	TAILQ_REMOVE(&p->dev->pending, p, link);
	p->dev = NULL;
}

void device_poke(struct device *d)
{
	static const struct timeval at_once = {0, 0};

	/* A timer, for it comes after a look at all fds. What is activated comes before, however often. */
	if (d->poke && !evtimer_pending(d->poke, NULL)) /* NULL: the daemon ends */
		evtimer_add(d->poke, &at_once);
}

static void retry_clients(struct device *d)
{
	struct client *c = NULL;

	if (!d->n_later)
		return;
	while ((c = books_next_client(d->svc->books, c))) {
		struct service_client *sc = c->tag;

		if (sc->later != d)
			continue;
		verb_not_later(sc);
		sc->ops->retry(sc->owner);
	}
}

/* Everyone who waits looks once; who still waits afterwards has queued itself again, in the new round. */
static void step_all(struct device *d)
{
	struct pending *p;

	d->round++;
	while ((p = TAILQ_FIRST(&d->pending)) && p->round < d->round) {
		device_unwait(p);
		p->step(p);
	}
	retry_clients(d);
}

static void on_poke(evutil_socket_t fd, short what, void *arg)
{
	struct device *d = arg;

	d->cleared = 0;
	if (d->state == DEVICE_SETUP && d->adoption)
		adopt_go_on(d);
	else if (d->state == DEVICE_SETUP)
		setup_go_on(d);
	if (!d->adoption)
		buf_unmap_later(d);
	step_all(d);
	if (d->state == DEVICE_READY && d->faults_left)
		faults_look(d);
	if (d->state == DEVICE_READY)
		run_installed(d);
	run_schedule(d);
}

/* ---- table pages ---- */

static void extend_failed(struct device *d, int err)
{
	d->extend_error = err;
	d->extend_after = util_now_ns() + EXTEND_PAUSE_NS;
	log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_ERROR,
		  "device %s: cannot map more than %u of %u table pages: %s; tried again when they are asked for",
		  d->config->name, table_pool_extent(d->pool), table_pool_max(d->pool), strerror(-err));
}

static void on_extended(void *arg, int err)
{
	struct device *d = arg;

	d->extending = false;
	if (d->state == DEVICE_GONE || !d->pool)
		return;
	if (err < 0) {
		extend_failed(d, err);
	} else {
		d->extend_error = 0;
		table_pool_extend(d->pool, table_pool_extent(d->pool) + pool_next_chunk(d));
		persist_pool(d);
	}
	device_poke(d);
}

uint32_t pool_next_chunk(const struct device *d)
{
	uint32_t more = table_pool_max(d->pool) - table_pool_extent(d->pool);

	return more < TABLE_CHUNK ? more : TABLE_CHUNK;
}

/* False: there is no more, or it cannot be had now. -EBUSY is for later: the device has enough to answer. */
static bool extend_pool(struct device *d)
{
	uint32_t extent = table_pool_extent(d->pool);
	uint32_t more = pool_next_chunk(d);
	uint64_t off = (uint64_t)extent * TABLE_PAGE;
	int r;

	if (d->extending)
		return true;
	if (!more || (d->extend_error && util_now_ns() < d->extend_after))
		return false;
	r = d->tops->dma_map(d->t, d->layout.tables.first + off, (uint64_t)more * TABLE_PAGE,
			     table_pool_device_fd(d->pool), off, TRANSPORT_READ, on_extended, d);
	d->extending = r == 0;
	if (r == 0 || r == -EBUSY)
		return true;
	extend_failed(d, r);
	return false;
}

int device_reserve_tables(struct device *d, uint32_t n, struct refusal *why)
{
	int r = table_pool_reserve(d->pool, n);
	bool more = true;

	if (r == -ENOSPC)
		return refuse(why, PASID_WHY_QUOTA_TABLES, table_pool_used(d->pool) + n, table_pool_max(d->pool));
	/* More before it is needed: nobody has to wait as long as a chunk lasts for one round trip. */
	if (r == -EAGAIN || table_pool_unpromised(d->pool) < TABLE_CHUNK / 2)
		more = extend_pool(d);
	if (r == -EAGAIN && !more)
		return refuse(why, PASID_WHY_QUOTA_KERNEL, (uint64_t)-d->extend_error, 0);
	return r;
}

/* ---- reset ---- */

static void on_reset(void *arg, int err)
{
	struct device *d = arg;

	if (d->state != DEVICE_RESETTING || err == -ENODEV)
		return; /* gone: lost follows */
	if (err < 0) {
		device_fail(d, "it cannot be reset");
		return;
	}
	/* The device runs nothing now; its marks are final. */
	run_after_reset(d);
	if (d->state == DEVICE_RESETTING) {
		d->state = DEVICE_READY;
		device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_RESET_END});
		tell_device(d);
		device_poke(d);
	}
}

void device_reset(struct device *d, const char *why)
{
	if (d->state != DEVICE_READY)
		return;
	log_about(&(struct log_about){.device = d->config->name}, &d->hung, LOG_WARN, "device %s: reset: %s",
		  d->config->name, why);
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_RESET});
	d->state = DEVICE_RESETTING;
	persist_reset(d, RESET_ASKED);
	d->resets++;
	tell_device(d);
	if (d->tops->reset(d->t, on_reset, d) < 0)
		device_fail(d, "it cannot be reset");
}

/* ---- gone ---- */

static void on_bury(evutil_socket_t fd, short what, void *arg)
{
	struct device *d = arg;

	if (d->t)
		d->t = d->tops->close(d->t);
	setup_drop_memory(d);
	arm(d->reopen, d->backoff_ms);
	d->backoff_ms = 2 * d->backoff_ms > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : 2 * d->backoff_ms;
}

/* Everything that was on the device is lost, and says so; buffers stay in the books and are mapped again later. */
static void drop_everything(struct device *d)
{
	struct context *ctx, *next_ctx;
	struct buffer_entry *e, *next;
	struct client *c = NULL;
	struct fence_map *m;

	run_forget(d);
	step_all(d);
	d->shared_busy = d->shared_held = false;
	TAILQ_FOREACH_SAFE (ctx, &d->books->contexts, in_device, next_ctx)
		ctx_device_gone(ctx->tag);
	d->shared_pt = pgtable_free(d->shared_pt);
	while ((c = books_next_client(d->svc->books, c)))
		LIST_FOREACH (m, &((struct service_client *)c->tag)->fence_maps, link)
			if (m->dev == d)
				m->state = BUF_UNMAPPED;
	TAILQ_FOREACH_SAFE (e, &d->books->buffers, in_device, next)
		buf_device_gone(e->tag);
	/* The contexts' entities went with ctx_device_gone(). */
	d->sched = sched_free(d->sched);
	if (d->engine)
		d->engine = d->eops->detach(d->engine);
	setup_drop_translator(d);
	step_all(d);
	/* Closing clients that waited for their fence memory. */
	d->reap_later = false;
	if (d->svc->reap)
		event_active(d->svc->reap, EV_TIMEOUT, 0);
}

void device_fail(struct device *d, const char *why)
{
	bool was_ready = d->state == DEVICE_READY || d->state == DEVICE_RESETTING;

	if (d->state == DEVICE_GONE)
		return;
	if (was_ready || strncmp(why, d->gone_why, sizeof(d->gone_why) - 1) != 0)
		log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_ERROR,
			  "device %s: %s: %s; %sit is tried again every %u ms at the latest", d->config->name,
			  was_ready ? "lost" : "not reachable", why, was_ready ? "its contexts are lost, " : "",
			  BACKOFF_MAX_MS);
	snprintf(d->gone_why, sizeof(d->gone_why), "%s", why);
	if (was_ready)
		device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_DEVICE_GONE});
	d->state = DEVICE_GONE;
	tell_device(d);
	d->extending = false;
	d->extend_error = 0;
	persist_device_gone(d);
	if (d->adoption) {
		d->adoption = adoption_free(d->adoption);
		adopt_over(d->svc);
	}
	/* What is out would be answered to those who are gone by then. */
	if (d->t)
		d->tops->forget(d->t);
	drop_everything(d);
	event_active(d->bury, EV_TIMEOUT, 0);
}

static void on_lost(void *owner, int error, const char *why)
{
	device_fail(owner, why);
}

static bool on_irq(void *owner, uint32_t vector)
{
	struct device *d = owner;

	if (d->adoption)
		device_poke(d);
	if (d->state != DEVICE_READY)
		return false;
	if (d->eops->interrupt)
		d->eops->interrupt(d->engine);
	faults_look(d);
	if (d->state == DEVICE_READY)
		run_progress(d);
	if (d->state == DEVICE_READY)
		run_invalidated(d);
	if (d->state != DEVICE_READY)
		return true;
	step_all(d);
	run_schedule(d);
	return true;
}

static void on_room(void *owner)
{
	device_poke(owner);
}

const struct transport_events device_events = {
	.opened = setup_opened,
	.irq = on_irq,
	.room = on_room,
	.lost = on_lost,
};

static void device_open(struct device *d)
{
	int r;

	d->state = DEVICE_OPENING;
	d->opening = ++d->svc->last_opening;
	tell_device(d);
	r = d->tops->open(&d->t, d->svc->base, d->address, engine_irqs(&d->svc->config->drivers), d->config->answer_ms,
			  &device_events, d);
	if (r < 0) {
		d->t = NULL;
		device_fail(d, strerror(-r));
	}
}

void device_begin(struct device *d)
{
	if (d->adoption)
		adopt_device(d);
	else
		device_open(d);
}

static void on_reopen(evutil_socket_t fd, short what, void *arg)
{
	device_open(arg);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
	run_tick(arg);
}

/* ---- construction ---- */

static const struct pgtable_format *format_find(const char *name)
{
	return !strcmp(name, pgtable_format_name(&pgtable_x86_64)) ? &pgtable_x86_64 : &pgtable_vmsa64;
}

int device_init(struct device *d, struct service *s, const struct device_config *config)
{
	struct device_traits traits = {
		.name = config->name,
		.global = config->mode == PASID_MODE_GLOBAL,
		.pasid_bits = PASID_BITS_MAX,
		.asid_bits = ENGINE_MAX_ASID_BITS,
		.cmd_align = 4,
		.submit_max = 1u << 20,
	};
	int r;

	d->svc = s;
	d->config = config;
	d->mode = config->mode;
	d->backoff_ms = BACKOFF_FIRST_MS;
	TAILQ_INIT(&d->pending);
	TAILQ_INIT(&d->unmap_later);
	d->tops = transport_find(config->spec, &d->address);
	if (!d->tops)
		return -EINVAL;
	d->format = format_find(config->format);
	traits.iova = (struct range){IOVA_FIRST, pgtable_format_iova_last(d->format)};
	r = books_add_device(s->books, &traits, &d->books);
	if (r < 0)
		return r;
	d->books->tag = d;
	d->tick = evtimer_new(s->base, on_tick, d);
	d->reopen = evtimer_new(s->base, on_reopen, d);
	d->poke = event_new(s->base, -1, 0, on_poke, d);
	d->bury = event_new(s->base, -1, 0, on_bury, d);
	if (!d->tick || !d->reopen || !d->poke || !d->bury)
		return -ENOMEM;
	return 0;
}

static void event_drop(struct event **ev)
{
	if (*ev)
		event_free(*ev);
	*ev = NULL;
}

void device_fini(struct device *d)
{
	struct context *ctx, *next;

	if (!d->books)
		return;
	event_drop(&d->poke);
	if (d->state != DEVICE_GONE) {
		d->state = DEVICE_GONE;
		drop_everything(d);
	}
	TAILQ_FOREACH_SAFE (ctx, &d->books->contexts, in_device, next)
		ctx_clear_now(ctx->tag);
	step_all(d); /* verbs that waited for that */
	d->adoption = adoption_free(d->adoption);
	event_drop(&d->tick);
	event_drop(&d->reopen);
	event_drop(&d->bury);
	if (d->t)
		d->t = d->tops->close(d->t);
	setup_drop_memory(d);
}
