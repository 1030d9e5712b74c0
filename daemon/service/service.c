/* SPDX-License-Identifier: MIT */
/* The service as a whole, and clients: how they come, and how everything of theirs goes. */
#include "service/adopt.h"
#include "service/persist.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

/* ---- the end of a client ---- */

static void client_free(struct service_client *c)
{
	shm_fini(&c->fence);
	for (size_t i = 0; i < ARRAY_SIZE(c->kept); i++)
		free(c->kept[i].data);
	free(c);
}

static void client_destroy(struct service_client *c)
{
	struct service *s = c->svc;

	persist_client_gone(c);
	books_client_close(s->books, c->books);
	s->lingering--;
	client_free(c);
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
		persist_buffer_freed(e->tag);
		books_buf_free(c->svc->books, &rec, &why);
	}
	buf_take_unused(c->svc, &unused);
	buf_unmap_unused(&unused);
}

void service_client_forget_buffers(struct service_client *c)
{
	free_buffers(c);
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
	struct client *c = s->adopting ? NULL : books_next_client(s->books, NULL), *next;

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
	/* Its name is somebody else's soon. */
	c->name[0] = '\0';
	if (c->recorded)
		persist_client(c);
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

/* Its fence memory as it was; new memory that nobody looks at, where that is not there any more. */
static int adopt_fence(struct service_client *c)
{
	uint64_t bytes = fence_bytes(c->books->n_lines);
	struct store *store = c->svc->store;
	int fd, ro_fd, r;

	r = store_get_pair(store, c->fence_key, &fd, &ro_fd);
	if (r == 0) {
		r = shm_adopt(&c->fence, bytes, fd, ro_fd);
		if (r == 0)
			return 0;
		close(fd);
		close(ro_fd);
	}
	c->doomed = true;
	return shm_init(&c->fence, "pasidd-fences", bytes);
}

int client_adopt(struct service *s, struct client *books, uint64_t fence_key)
{
	struct service_client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->svc = s;
	c->books = books;
	c->recorded = c->resumed = true;
	c->fence_key = fence_key;
	LIST_INIT(&c->fence_maps);
	TAILQ_INIT(&c->events);
	TAILQ_INIT(&c->verb.unused);
	r = adopt_fence(c);
	if (r < 0) {
		free(c);
		return r;
	}
	books->tag = c;
	return 0;
}

void client_forget(struct service_client *c)
{
	while (!LIST_EMPTY(&c->fence_maps))
		fence_map_free(LIST_FIRST(&c->fence_maps));
	c->books->tag = NULL;
	client_free(c);
}

bool service_client_keep(struct service_client *c, const char *name)
{
	struct store *store = c->svc->store;

	snprintf(c->name, sizeof(c->name), "%s", name);
	c->fence_key = store_keys(store, VAULT_FENCE, 2);
	if (store_keep(store, c->fence_key, 0, c->fence.fd) < 0 ||
	    store_keep(store, c->fence_key + 1, 0, c->fence.ro_fd) < 0) {
		store_drop(store, c->fence_key);
		return false;
	}
	persist_client(c);
	return true;
}

struct service_client *service_adopted(struct service *s, struct service_client *after)
{
	struct client *b = books_next_client(s->books, after ? after->books : NULL);

	for (; b; b = books_next_client(s->books, b)) {
		struct service_client *c = b->tag;

		if (!c->owner && !c->closing)
			return c;
	}
	return NULL;
}

const char *service_client_name(const struct service_client *c)
{
	return c->name;
}

uid_t service_client_uid(const struct service_client *c)
{
	return c->books->uid;
}

pid_t service_client_pid(const struct service_client *c)
{
	return c->books->pid;
}

bool service_client_doomed(const struct service_client *c)
{
	return c->doomed;
}

void service_client_own(struct service_client *c, const struct service_client_ops *ops, void *owner)
{
	c->ops = ops;
	c->owner = owner;
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
	if (c->verb.kept)
		return;
	persist_commit(c, r);
	kept_put(c, r);
}

void kept_put(struct service_client *c, const struct service_reply *r)
{
	struct kept_reply *k = &c->kept[c->serial % PASID_IN_FLIGHT];
	void *data;

	k->size = 0;
	data = k->room >= r->size ? k->data : realloc(k->data, r->size);
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

/* What was read of a journal that cannot be believed: neither devices nor the journal hear of it. */
static void forget_all(struct service *s)
{
	s->store = NULL;
	for (size_t i = 0; i < s->n_devices; i++)
		memset(s->devices[i].runs, 0, sizeof(s->devices[i].runs));
	while (s->books && books_next_client(s->books, NULL)) {
		struct client *b = books_next_client(s->books, NULL);
		struct context *ctx, *next_ctx;
		struct buffer_entry *e, *next;

		TAILQ_FOREACH_SAFE (ctx, &b->contexts, in_client, next_ctx) {
			if (ctx->tag)
				ctx_forget(ctx->tag);
			books_ctx_free(s->books, ctx);
		}
		TAILQ_FOREACH_SAFE (e, &b->all_buffers, in_client, next) {
			if (e->tag)
				buf_forget(e->tag);
			e->buffer.named = false;
			books_buf_gone(s->books, e);
		}
		if (b->tag)
			client_forget(b->tag);
		books_client_close(s->books, b);
	}
}

/* What the last process left on a device that was gone when it ended, or whose loss it was about to tell. */
/* The last process had cleared them and did not come to say it. */
static void tell_losses(struct device *d)
{
	struct context *b;

	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;

		if (ctx->life == CTX_CLEARED && ctx->lost_why && ctx->line->state != PASID_CTX_LOST)
			event_lost(ctx);
	}
}

static void lose_what_is_on(struct device *d)
{
	struct context *ctx, *next_ctx;
	struct buffer_entry *e, *next;

	TAILQ_FOREACH_SAFE (ctx, &d->books->contexts, in_device, next_ctx)
		ctx_device_gone(ctx->tag);
	TAILQ_FOREACH_SAFE (e, &d->books->buffers, in_device, next)
		buf_device_gone(e->tag);
}

static void begin(struct service *s)
{
	for (size_t i = 0; i < s->n_devices; i++) {
		s->adopting += s->devices[i].adoption != NULL;
		if (s->devices[i].opening > s->last_opening)
			s->last_opening = s->devices[i].opening;
	}
	for (size_t i = 0; i < s->n_devices; i++) {
		tell_losses(&s->devices[i]);
		if (!s->devices[i].adoption)
			lose_what_is_on(&s->devices[i]);
		device_begin(&s->devices[i]);
	}
	if (!s->adopting)
		snapshot_soon(s);
}

struct device *adopt_first(struct service *s)
{
	struct device *d = s->devices;

	while (!d->adoption)
		d++;
	return d;
}

void adopt_over(struct service *s)
{
	if (--s->adopting)
		return;
	snapshot_soon(s);
	event_active(s->reap, EV_TIMEOUT, 0); /* clients that ended meanwhile */
}

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

int service_new(struct service **ret, struct event_base *base, const struct service_config *config, struct store *store,
		char *why)
{
	struct service *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->base = base;
	s->config = config;
	s->store = store;
	TAILQ_INIT(&s->unused);
	r = books_new(&s->books, &config->limits, buf_unused, s);
	s->reap = event_new(base, -1, 0, on_reap, s);
	if (r == 0)
		r = snapshot_init(s);
	if (r == 0 && !s->reap)
		r = -ENOMEM;
	if (r == 0)
		r = add_devices(s);
	if (r == 0)
		r = adopt_journal(s, why);
	if (r < 0) {
		forget_all(s);
		service_free(s);
		return r;
	}
	begin(s);
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
	if (s->snapshot)
		event_free(s->snapshot);
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

	if (!ctx || ctx->free_asked || books->lost)
		return;
	if (!s->adopting) {
		ctx_lose(ctx, PASID_LOST_CLOSED, 0);
		return;
	}
	/* Once its device is taken over: what it runs there may not lose its tables before it is stopped. */
	ctx->lost_why = PASID_LOST_CLOSED;
	ctx->lost_job = 0;
	persist_lost(ctx);
}

bool service_client_waits(struct service_client *c)
{
	if (!c->svc->adopting)
		return false;
	verb_later(c, adopt_first(c->svc));
	return true;
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
