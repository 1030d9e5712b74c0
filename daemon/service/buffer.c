/* SPDX-License-Identifier: MIT */
/*
 * Memory of clients that devices map: buffers, and the fence memory of each connection. It is unmapped from the device
 * after everything else, when no table points to it any more, and its bus address is given out again only after that.
 */
#include "service/adopt.h"
#include "service/persist.h"

#include <errno.h>
#include <string.h>

#include "base/closer.h"
#include "base/util.h"

/* ---- buffers ---- */

static void on_buf_mapped(void *arg, int err)
{
	struct buf *b = arg;

	b->state = err < 0 ? BUF_REFUSED : BUF_MAPPED;
	b->error = err;
	b->books->reachable = err == 0;
	device_poke(b->dev);
}

/* Where the kernel keeps the tables, memory is mapped where and when a context maps it, and not before. */
static int buf_map(struct buf *b, transport_done done, void *arg)
{
	uint32_t prot = TRANSPORT_READ | (b->books->buffer.writable ? TRANSPORT_WRITE : 0);

	if (device_kernel_tables(b->dev))
		return b->dev->tops->spaces->hold(b->dev->t, &b->memory, b->fd, b->books->buffer.size, prot, done, arg);
	return b->dev->tops->dma_map(b->dev->t, b->books->buffer.bus, b->books->buffer.size, b->fd, 0, prot, done, arg);
}

int buf_start(struct buffer_entry *e, struct device *d, int fd, uint64_t key, struct buf **ret)
{
	struct buf *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->books = e;
	b->dev = d;
	b->fd = fd;
	b->key = key;
	b->state = BUF_MAPPING;
	r = buf_map(b, on_buf_mapped, b);
	if (r < 0) {
		free(b);
		return r;
	}
	e->tag = b;
	*ret = b;
	return 0;
}

int buf_adopt(struct buffer_entry *e, uint64_t key)
{
	struct buf *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	b->books = e;
	b->dev = e->device->tag;
	b->fd = -1;
	b->key = key;
	b->state = BUF_MAPPED;
	b->recorded = true;
	e->tag = b;
	return 0;
}

static void unused_remove(struct buf *b);

void buf_adopt_fd(struct buf *b)
{
	const struct buffer_entry *e = b->books;

	unused_remove(b); /* its device is asked when all is known */
	b->fd = store_get(b->dev->svc->store, b->key);
	if (b->fd < 0)
		((struct service_client *)e->client->tag)->doomed = true;
}

void buf_forget(struct buf *b)
{
	unused_remove(b);
	closer_close(b->fd, CLOSER_OURS);
	b->books->tag = NULL;
	free(b);
}

static void buf_gone(struct buf *b)
{
	struct service *s = b->dev->svc;
	struct service_client *c = b->books->client->tag;

	persist_buffer_gone(b);
	books_buf_gone(s->books, b->books);
	closer_close(b->fd, CLOSER_OURS); /* perhaps the last one: then gigabytes are freed */
	if (c->verb.buf == b)
		c->verb.buf = NULL;
	device_poke(b->dev);
	service_client_reap(c);
	free(b);
}

static void on_buf_unmapped(void *arg, int err)
{
	struct buf *b = arg;
	struct device *d = b->dev;

	if (err == -ENODEV)
		return; /* the device is gone; lost follows, and buf_device_gone() with it */
	if (err < 0) {
		device_fail(d, "it refuses to unmap a buffer");
		return;
	}
	buf_gone(b);
	buf_unmap_later(d);
}

void buf_unused(void *arg, struct buffer_entry *e)
{
	struct service *s = arg;
	struct buf *b = e->tag;

	if (!b)
		return; /* its import did not get that far */
	b->unused = &s->unused;
	TAILQ_INSERT_TAIL(b->unused, b, in_unused);
}

static void unused_remove(struct buf *b)
{
	if (b->unused)
		TAILQ_REMOVE(b->unused, b, in_unused);
	b->unused = NULL;
}

void buf_take_unused(struct service *s, struct unused *to)
{
	struct buf *b;

	while ((b = TAILQ_FIRST(&s->unused))) {
		unused_remove(b);
		b->unused = to;
		TAILQ_INSERT_TAIL(to, b, in_unused);
	}
}

/* 0: it is asked for; 1: there is nothing to wait for; -errno. */
static int buf_ask_unmap(struct buf *b)
{
	struct device *d = b->dev;
	int r;

	if (device_kernel_tables(d)) {
		r = d->tops->spaces->release(d->t, b->memory);
		return r < 0 ? r : 1;
	}
	return d->tops->dma_unmap(d->t, b->books->buffer.bus, b->books->buffer.size, on_buf_unmapped, b);
}

/* False: the transport takes no more at the moment. The device can still reach it then, so it stays. */
static bool buf_unmap(struct buf *b)
{
	int r = 1;

	if (b->state == BUF_MAPPED && b->dev->state != DEVICE_GONE)
		r = buf_ask_unmap(b);
	if (r < 0)
		return false;
	if (r == 0) {
		b->state = BUF_UNMAPPING;
		return true;
	}
	/* While the device is being set up the answer to the mapping is still to come: buf_again_answer() ends it. */
	if (b->state == BUF_MAPPING)
		return true;
	buf_gone(b);
	return true;
}

static void buf_unmap_or_wait(struct buf *b)
{
	if (buf_unmap(b))
		return;
	b->unused = &b->dev->unmap_later;
	TAILQ_INSERT_TAIL(b->unused, b, in_unused);
}

void buf_unmap_unused(struct unused *list)
{
	struct buf *b;

	while ((b = TAILQ_FIRST(list))) {
		unused_remove(b);
		buf_unmap_or_wait(b);
	}
}

void buf_unmap_later(struct device *d)
{
	struct buf *b;

	while ((b = TAILQ_FIRST(&d->unmap_later)) && b->state == BUF_MAPPED) {
		unused_remove(b);
		if (buf_unmap(b))
			continue;
		b->unused = &d->unmap_later;
		TAILQ_INSERT_HEAD(b->unused, b, in_unused);
		return;
	}
	if (d->reap_later)
		event_active(d->svc->reap, EV_TIMEOUT, 0);
	d->reap_later = false;
}

void buf_drop(struct buf *b)
{
	unused_remove(b);
	buf_gone(b);
}

static bool buf_wanted(const struct buf *b)
{
	return b->books->buffer.named || b->books->buffer.uses;
}

/* The device is back. If it refuses a buffer that it took before, that one cannot be mapped into contexts any more. */
static void on_buf_again(void *arg, int err)
{
	struct buf *b = arg;

	on_buf_mapped(b, err);
	if (!buf_wanted(b) && !b->unused)
		buf_unmap_or_wait(b);
}

int buf_map_again(struct buf *b)
{
	int r = buf_map(b, on_buf_again, b);

	if (r == 0)
		b->state = BUF_MAPPING;
	return r;
}

void buf_device_gone(struct buf *b)
{
	if (!b)
		return;
	b->state = BUF_UNMAPPED;
	b->memory = NULL;
	b->books->reachable = false;
	if (buf_wanted(b))
		return;
	unused_remove(b);
	buf_gone(b);
}

/* ---- fences ---- */

static void on_fence_mapped(void *arg, int err)
{
	struct fence_map *m = arg;

	if (err == -ENODEV)
		return; /* lost follows */
	/* It is this client that cannot be served: the kernel has room for so many mappings. */
	m->state = err < 0 ? BUF_REFUSED : BUF_MAPPED;
	m->error = err;
	if (err == 0)
		persist_fence(m);
	device_poke(m->dev);
	service_client_reap(m->client);
}

int fence_map_again(struct fence_map *m)
{
	int r = m->dev->tops->dma_map(m->dev->t, m->bus_node.first, m->client->fence.bytes, m->client->fence.fd, 0,
				      TRANSPORT_READ | TRANSPORT_WRITE, on_fence_mapped, m);

	if (r == 0)
		m->state = BUF_MAPPING;
	return r;
}

struct fence_map *fence_map_find(struct service_client *c, struct device *d)
{
	struct fence_map *m;

	LIST_FOREACH (m, &c->fence_maps, link)
		if (m->dev == d)
			return m;
	return NULL;
}

void fence_map_free(struct fence_map *m)
{
	itree_erase(&m->dev->books->bus, &m->bus_node);
	LIST_REMOVE(m, link);
	free(m);
}

static void fence_map_gone(struct fence_map *m)
{
	persist_fence_gone(m);
	fence_map_free(m);
}

int fence_map_adopt(struct service_client *c, struct device *d, uint64_t bus, bool mapped)
{
	struct fence_map *m = fence_map_find(c, d);
	struct itree_node *n;
	struct range r;

	if (m) {
		m->state = mapped ? BUF_MAPPED : BUF_MAPPING;
		return m->bus_node.first == bus ? 0 : -EBADMSG;
	}
	if (!range_make(&r, bus, c->fence.bytes))
		return -EBADMSG;
	n = itree_at_or_above(&d->books->bus, r.first);
	if (n && n->first <= r.last)
		return -EBADMSG;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->client = c;
	m->dev = d;
	m->state = mapped ? BUF_MAPPED : BUF_MAPPING;
	m->bus_node.first = r.first;
	m->bus_node.last = r.last;
	itree_insert(&d->books->bus, &m->bus_node);
	LIST_INSERT_HEAD(&c->fence_maps, m, link);
	return 0;
}

int fence_map_get(struct service_client *c, struct device *d, struct fence_map **ret)
{
	struct range window = d->layout.fences;
	struct fence_map *m = fence_map_find(c, d);
	uint64_t bus;

	if (m) {
		*ret = m;
		return m->state == BUF_UNMAPPED ? fence_map_again(m) : 0;
	}
	if (!itree_find_gap(&d->books->bus, window, window.first, c->fence.bytes, 4096, &bus))
		return -ENOSPC;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->client = c;
	m->dev = d;
	m->bus_node.first = bus;
	m->bus_node.last = bus + (c->fence.bytes - 1);
	itree_insert(&d->books->bus, &m->bus_node);
	LIST_INSERT_HEAD(&c->fence_maps, m, link);
	persist_fence(m); /* the device may have it from now on */
	*ret = m;
	return fence_map_again(m);
}

static void on_fence_unmapped(void *arg, int err)
{
	struct fence_map *m = arg;
	struct service_client *c = m->client;

	if (err == -ENODEV)
		return; /* lost follows */
	m->state = BUF_UNMAPPED;
	if (err < 0) {
		device_fail(m->dev, "it refuses to unmap fence memory");
		service_client_reap(c);
		return;
	}
	fence_map_gone(m);
	service_client_reap(c);
}

void fence_map_drop(struct fence_map *m)
{
	struct device *d = m->dev;

	if (m->state == BUF_UNMAPPING || m->state == BUF_MAPPING)
		return; /* the answer comes, or the device goes: looked at again then */
	if (m->state == BUF_MAPPED && d->state != DEVICE_GONE) {
		if (d->tops->dma_unmap(d->t, m->bus_node.first, m->client->fence.bytes, on_fence_unmapped, m) == 0)
			m->state = BUF_UNMAPPING;
		else
			d->reap_later =
				true; /* the transport is busy: with the next answer, or when the device is gone */
		return;
	}
	fence_map_gone(m);
}
