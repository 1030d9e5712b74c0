/* SPDX-License-Identifier: MIT */
/* The service as a whole, and clients: how they come, and how everything of theirs goes. */
#include "service/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

/* ---- the end of a client ---- */

static void client_destroy(struct service_client *c)
{
	struct service *s = c->svc;

	books_client_close(s->books, c->books);
	shm_fini(&c->fence);
	s->lingering--;
	for (size_t i = 0; i < ARRAY_SIZE(c->kept); i++)
		free(c->kept[i].data);
	free(c);
}

static void free_contexts(struct service_client *c)
{
	struct context *ctx, *next;

	TAILQ_FOREACH_SAFE (ctx, &c->books->contexts, in_client, next)
		if (!((struct ctx *)ctx->tag)->free_asked)
			ctx_free(ctx->tag);
}

static void free_buffers(struct service_client *c)
{
	struct unused unused = TAILQ_HEAD_INITIALIZER(unused);
	struct record rec = {.kind = RECORD_BUF_FREE, .client = c->books->id};
	struct buffer_entry *e, *next;
	struct refusal why;

	TAILQ_FOREACH_SAFE (e, &c->books->all_buffers, in_client, next) {
		if (!e->buffer.named)
			continue;
		rec.buf = e->buffer.id;
		books_buf_free(c->svc->books, &rec, &why);
	}
	buf_take_unused(c->svc, &unused);
	buf_unmap_unused(&unused);
}

static void drop_fences(struct service_client *c)
{
	struct fence_map *m, *next;

	for (m = LIST_FIRST(&c->fence_maps); m; m = next) {
		next = LIST_NEXT(m, link);
		fence_map_drop(m);
	}
}

/* Contexts first: their slots stop, the device forgets them. Then buffers, then the fence memory, then the client. */
static void client_reap(struct service_client *c)
{
	if (c->verb.active)
		return;
	free_contexts(c);
	if (!TAILQ_EMPTY(&c->books->contexts))
		return;
	free_buffers(c);
	if (!TAILQ_EMPTY(&c->books->all_buffers))
		return;
	drop_fences(c);
	if (LIST_EMPTY(&c->fence_maps))
		client_destroy(c);
}

static void on_reap(evutil_socket_t fd, short what, void *arg)
{
	struct service *s = arg;
	struct client *c = books_next_client(s->books, NULL), *next;

	for (; c; c = next) {
		struct service_client *sc = c->tag;

		next = books_next_client(s->books, c);
		if (sc->closing)
			client_reap(sc);
	}
}

void service_client_reap(struct service_client *c)
{
	if (c->closing)
		event_active(c->svc->reap, EV_TIMEOUT, 0);
}

struct service_client *service_client_close(struct service_client *c)
{
	if (!c)
		return NULL;
	c->owner = NULL;
	verb_not_later(c);
	c->closing = true;
	c->svc->lingering++;
	service_client_reap(c);
	return NULL;
}

/* ---- how it comes ---- */

/* At least a page, also for a connection that may have no contexts. */
static uint64_t fence_bytes(uint64_t lines)
{
	return lines ? (lines * PASID_FENCE_STRIDE + 4095) & ~4095ull : 4096;
}

int service_client_new(struct service *s, uid_t uid, pid_t pid, const struct service_client_ops *ops, void *owner,
		       struct service_client **ret, struct refusal *why)
{
	struct record rec = {.kind = RECORD_CLIENT_OPEN, .uid = uid, .pid = pid};
	struct service_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	c->svc = s;
	c->ops = ops;
	c->owner = owner;
	LIST_INIT(&c->fence_maps);
	TAILQ_INIT(&c->events);
	TAILQ_INIT(&c->verb.unused);
	r = books_client_open(s->books, &rec, why, &c->books);
	if (r < 0) {
		free(c);
		return r;
	}
	c->books->tag = c;
	r = shm_init(&c->fence, "pasidd-fences", fence_bytes(c->books->n_lines));
	if (r < 0) {
		log_limited(&s->limit, LOG_ERROR, "pid %d, uid %u: no fence memory: %s", pid, uid, strerror(-r));
		books_client_close(s->books, c->books);
		shm_fini(&c->fence);
		free(c);
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	*ret = c;
	return 0;
}

int service_client_fence(const struct service_client *c)
{
	return c->fence.ro_fd;
}

/* ---- replies, for repeats ---- */

void service_keep(struct service_client *c, const struct service_reply *r)
{
	struct kept_reply *k = &c->kept[c->serial % PASID_IN_FLIGHT];
	void *data = k->room >= r->size ? k->data : realloc(k->data, r->size);

	k->size = 0;
	if (!data)
		return;
	k->room = k->room >= r->size ? k->room : r->size;
	k->data = memcpy(data, r->data, r->size);
	k->size = r->size;
	k->with_fence = r->with_fence;
}

uint64_t service_client_serial(const struct service_client *c)
{
	return c->serial;
}

bool service_client_kept(const struct service_client *c, uint64_t serial, struct service_reply *ret)
{
	const struct kept_reply *k = &c->kept[serial % PASID_IN_FLIGHT];

	*ret = (struct service_reply){k->data, k->size, k->with_fence};
	return k->size > 0;
}

struct account *service_client_account(struct service_client *c)
{
	return c->books->account;
}

/* ---- the service ---- */

static int add_devices(struct service *s)
{
	int r = 0;

	s->devices = calloc(s->config->n_devices + 1, sizeof(*s->devices));
	if (!s->devices)
		return -ENOMEM;
	while (r == 0 && s->n_devices < s->config->n_devices) {
		const struct device_config *config = &s->config->devices[s->n_devices];

		r = device_init(&s->devices[s->n_devices++], s, config);
		if (r < 0)
			log_error("device %s: %s: %s", config->name, config->spec, strerror(-r));
	}
	if (!s->config->n_devices)
		log_warn("no devices are configured; there is nothing to share");
	return r;
}

int service_new(struct service **ret, struct event_base *base, const struct service_config *config)
{
	struct service *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->base = base;
	s->config = config;
	TAILQ_INIT(&s->unused);
	r = books_new(&s->books, &config->limits, buf_unused, s);
	s->reap = event_new(base, -1, 0, on_reap, s);
	if (r == 0 && !s->reap)
		r = -ENOMEM;
	if (r == 0)
		r = add_devices(s);
	if (r < 0) {
		service_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

struct service *service_free(struct service *s)
{
	struct client *c;

	if (!s)
		return NULL;
	for (size_t i = 0; i < s->n_devices; i++)
		device_fini(&s->devices[i]);
	/* No device is left to wait for: one look at each closing client is enough. */
	while (s->books && (c = books_next_client(s->books, NULL)))
		client_reap(c->tag);
	if (s->reap)
		event_free(s->reap);
	books_free(s->books);
	trace_fini(&s->trace);
	free(s->devices);
	free(s);
	return NULL;
}

void service_limits_changed(struct service *s)
{
	books_set_limits(s->books, &s->config->limits);
}

void service_observe(struct service *s, const struct service_observer *o, void *arg)
{
	s->observer = o;
	s->observer_arg = arg;
}

void service_close_context(struct service *s, uint32_t id)
{
	struct context *books = books_any_context(s->books, id);
	struct ctx *ctx = books ? books->tag : NULL;

	if (ctx && !ctx->free_asked && !books->lost)
		ctx_lose(ctx, PASID_LOST_CLOSED, 0);
}

int service_reset_device(struct service *s, uint32_t device)
{
	struct device *d = device < s->n_devices ? &s->devices[device] : NULL;

	if (!d)
		return -ENOENT;
	if (d->state != DEVICE_READY && d->state != DEVICE_RESETTING)
		return -ENODEV;
	device_reset(d, "somebody who may asked for it");
	return 0;
}

size_t service_lingering(const struct service *s)
{
	return s->lingering;
}
