/* SPDX-License-Identifier: MIT */
/* Devices and clients: who there is. See books.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "core/books_private.h"

static void set_lines(struct books *b, const struct limit_policy *policy)
{
	b->max_lines = policy->connection.v[PASID_RES_CONTEXTS];
	if (b->max_lines > BOOKS_MAX_CONTEXTS)
		b->max_lines = BOOKS_MAX_CONTEXTS;
	b->max_lines *= 2;
}

void books_set_limits(struct books *b, const struct limit_policy *policy)
{
	set_lines(b, policy);
	ledger_set_policy(b->ledger, policy);
}

int books_new(struct books **ret, const struct limit_policy *policy, books_unused unused, void *arg)
{
	struct books *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	TAILQ_INIT(&b->clients);
	b->unused = unused;
	b->arg = arg;
	set_lines(b, policy);
	r = ledger_new(&b->ledger, policy);
	if (r < 0) {
		free(b);
		return r;
	}
	*ret = b;
	return 0;
}

static void device_free(struct device_books *d)
{
	if (!d)
		return;
	assert(TAILQ_EMPTY(&d->contexts) && TAILQ_EMPTY(&d->buffers));
	if (d->traits.global)
		aspace_fini(&d->shared);
	ids_free(d->pasids);
	ids_free(d->asids);
	free(d);
}

struct books *books_free(struct books *b)
{
	if (!b)
		return NULL;
	assert(TAILQ_EMPTY(&b->clients));
	for (uint32_t i = 0; i < b->n_devices; i++)
		device_free(b->devices[i]);
	idmap_fini(&b->client_ids);
	idmap_fini(&b->contexts);
	ledger_free(b->ledger);
	free(b);
	return NULL;
}

int books_add_device(struct books *b, const struct device_traits *traits, struct device_books **ret)
{
	struct device_books *d;
	int r;

	if (b->n_devices == BOOKS_MAX_DEVICES)
		return -ENOSPC;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->traits = *traits;
	d->index = b->n_devices;
	TAILQ_INIT(&d->contexts);
	TAILQ_INIT(&d->buffers);
	if (traits->global)
		aspace_init(&d->shared, traits->iova, ASPACE_PAGE);
	r = ids_new(&d->pasids, traits->pasid_bits);
	if (r == 0)
		r = ids_new(&d->asids, traits->asid_bits);
	if (r == 0 && traits->global)
		r = ids_reserve(d->asids, &d->shared_asid);
	if (r < 0) {
		device_free(d);
		return r;
	}
	b->devices[b->n_devices++] = d;
	*ret = d;
	return 0;
}

void books_set_window(struct device_books *d, struct range window)
{
	d->window = window;
}

int books_add_hole(struct device_books *d, struct range hole)
{
	struct itree_node *n;

	if (d->n_holes == BOOKS_MAX_HOLES)
		return -ENOSPC;
	n = &d->holes[d->n_holes++];
	n->first = hole.first;
	n->last = hole.last;
	itree_insert(&d->bus, n);
	return 0;
}

struct device_books *books_device(struct books *b, const char *name)
{
	for (uint32_t i = 0; i < b->n_devices; i++)
		if (!name[0] || !strcmp(name, b->devices[i]->traits.name))
			return b->devices[i];
	return NULL;
}

struct device_books *books_device_at(struct books *b, uint32_t index)
{
	return index < b->n_devices ? b->devices[index] : NULL;
}

uint32_t books_n_devices(const struct books *b)
{
	return b->n_devices;
}

void books_last_ids(const struct books *b, uint32_t *client, uint32_t *ctx)
{
	*client = b->last_client;
	*ctx = b->last_ctx;
}

void books_go_on_from(struct books *b, uint32_t client, uint32_t ctx)
{
	books_id_taken(&b->last_client, client);
	books_id_taken(&b->last_ctx, ctx);
}

struct ledger *books_ledger(struct books *b)
{
	return b->ledger;
}

static struct client *client_free(struct client *c)
{
	if (!c)
		return NULL;
	account_close(c->account);
	idmap_fini(&c->buffers);
	idmap_fini(&c->every_buffer);
	free(c->lines);
	free(c);
	return NULL;
}

int books_client_open(struct books *b, struct record *rec, struct refusal *why, struct client **ret)
{
	struct client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	TAILQ_INIT(&c->contexts);
	TAILQ_INIT(&c->all_buffers);
	c->uid = rec->uid;
	c->pid = rec->pid;
	c->n_lines = (uint32_t)(rec->size ? rec->size : b->max_lines);
	c->lines = calloc((c->n_lines + 63) / 64 + 1, sizeof(*c->lines));
	if (!c->lines) {
		client_free(c);
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	r = account_open(b->ledger, c->uid, &c->account, why);
	if (r < 0) {
		client_free(c);
		return r;
	}
	c->id = books_next_id(b->last_client, rec->client);
	if (!c->id || idmap_add(&b->client_ids, c->id, c) < 0) {
		client_free(c);
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	books_id_taken(&b->last_client, c->id);
	rec->client = c->id;
	rec->size = c->n_lines;
	TAILQ_INSERT_TAIL(&b->clients, c, link);
	*ret = c;
	return 0;
}

void books_client_close(struct books *b, struct client *c)
{
	assert(TAILQ_EMPTY(&c->contexts) && TAILQ_EMPTY(&c->all_buffers));
	TAILQ_REMOVE(&b->clients, c, link);
	idmap_remove(&b->client_ids, c->id);
	client_free(c);
}

struct client *books_client(struct books *b, uint32_t id)
{
	return idmap_find(&b->client_ids, id);
}

struct client *books_next_client(struct books *b, struct client *c)
{
	return c ? TAILQ_NEXT(c, link) : TAILQ_FIRST(&b->clients);
}
