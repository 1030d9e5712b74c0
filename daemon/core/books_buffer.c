/* SPDX-License-Identifier: MIT */
/* Buffers: their ids, charges and bus addresses. See books.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/books_private.h"

struct buffer_entry *books_buffer(struct client *c, uint32_t id, struct refusal *why)
{
	struct buffer_entry *e = idmap_find(&c->buffers, id);

	if (!e)
		refuse(why, PASID_WHY_NO_BUFFER, id, 0);
	return e;
}

struct buffer_entry *books_any_buffer(const struct client *c, uint32_t id)
{
	return idmap_find(&c->every_buffer, id);
}

/* Aligned like the largest block that could map the buffer, so that tables may use it. */
static bool bus_choose(struct device_books *d, uint64_t size, uint64_t *bus)
{
	uint64_t align = size >= 1ull << 30 ? 1ull << 30 : size >= 1ull << 21 ? 1ull << 21 : ASPACE_PAGE;

	return itree_find_gap(&d->bus, d->window, d->window.first, size, align, bus);
}

static int take_charges(struct buffer_entry *e, struct account *a, struct refusal *why)
{
	int r = charge_take(&e->c_buffer, a, PASID_RES_BUFFERS, 1, why);

	if (r == 0)
		r = charge_take(&e->c_bytes, a, PASID_RES_BYTES, e->buffer.size, why);
	if (r == 0 && e->huge)
		r = charge_take(&e->c_huge, a, PASID_RES_HUGE, e->buffer.size, why);
	return r;
}

static void entry_free(struct buffer_entry *e)
{
	charge_return_all(&e->c_huge);
	charge_return_all(&e->c_bytes);
	charge_return_all(&e->c_buffer);
	free(e);
}

int books_import(struct books *b, struct record *rec, struct refusal *why, struct buffer_entry **ret)
{
	struct client *c = books_client(b, rec->client);
	struct device_books *d = books_device_at(b, rec->device);
	struct buffer_entry *e;
	bool chosen = !rec->bus;
	int r;

	if (!rec->size)
		return refuse(why, PASID_WHY_EMPTY, 0, 0);
	if (rec->size % ASPACE_PAGE)
		return refuse(why, PASID_WHY_UNALIGNED, rec->size, ASPACE_PAGE);
	e = calloc(1, sizeof(*e));
	if (!e)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	e->buffer.size = rec->size;
	e->buffer.writable = rec->writable;
	e->buffer.named = true;
	e->huge = rec->huge;
	e->reachable = true;
	e->client = c;
	e->device = d;
	r = take_charges(e, c->account, why);
	if (r < 0)
		goto fail;
	if (!rec->bus && !bus_choose(d, rec->size, &rec->bus)) {
		r = refuse(why, PASID_WHY_NO_ROOM, rec->size, 0);
		goto fail;
	}
	e->buffer.bus = rec->bus;
	e->buffer.id = books_next_id(c->last_buf, rec->buf);
	if (!e->buffer.id || idmap_add(&c->buffers, e->buffer.id, e) < 0) {
		r = refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
		goto fail;
	}
	if (idmap_add(&c->every_buffer, e->buffer.id, e) < 0) {
		idmap_remove(&c->buffers, e->buffer.id);
		r = refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
		goto fail;
	}
	books_id_taken(&c->last_buf, e->buffer.id);
	rec->buf = e->buffer.id;
	e->bus_node.first = e->buffer.bus;
	e->bus_node.last = e->buffer.bus + (e->buffer.size - 1);
	itree_insert(&d->bus, &e->bus_node);
	TAILQ_INSERT_TAIL(&c->all_buffers, e, in_client);
	TAILQ_INSERT_TAIL(&d->buffers, e, in_device);
	*ret = e;
	return 0;
fail:
	if (chosen)
		rec->bus = 0;
	entry_free(e);
	return r;
}

void books_buffer_unused(void *arg, struct buffer *buf)
{
	struct books *b = arg;

	if (!buf->named)
		b->unused(b->arg, container_of(buf, struct buffer_entry, buffer));
}

int books_buf_free(struct books *b, const struct record *rec, struct refusal *why)
{
	struct client *c = books_client(b, rec->client);
	struct buffer_entry *e = books_buffer(c, rec->buf, why);

	if (!e)
		return refusal_code(why->reason);
	idmap_remove(&c->buffers, rec->buf);
	e->buffer.named = false;
	if (!e->buffer.uses)
		b->unused(b->arg, e);
	return 0;
}

void books_buf_gone(struct books *b, struct buffer_entry *e)
{
	assert(!e->buffer.named && !e->buffer.uses);
	itree_erase(&e->device->bus, &e->bus_node);
	idmap_remove(&e->client->every_buffer, e->buffer.id);
	TAILQ_REMOVE(&e->client->all_buffers, e, in_client);
	TAILQ_REMOVE(&e->device->buffers, e, in_device);
	entry_free(e);
}
