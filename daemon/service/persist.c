/* SPDX-License-Identifier: MIT */
/* See persist.h. Facts as they happen; snapshot.c says the same of everything at once. */
#include "service/persist.h"

#include "service/adopt.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

#define ROOM_MORE (64u << 10) /* for the facts that a request causes at once: those of a whole turn of jobs, and more */

static struct journal *journal_of(const struct service *s)
{
	return s->store ? s->store->journal : NULL;
}

static void give_up(struct service *s, int error)
{
	log_error("the journal cannot be continued: %s; should this daemon be killed, all contexts will be lost",
		  strerror(-error));
	store_give_up(s->store);
}

void persist_append(struct service *s, uint32_t type, const struct iovec *v, int n)
{
	struct journal *j = journal_of(s);
	uint64_t size = 0;
	int r;

	if (!j)
		return;
	for (int i = 0; i < n; i++)
		size += v[i].iov_len;
	r = journal_room(j, journal_entry_bytes(size));
	if (r < 0) {
		give_up(s, r);
		return;
	}
	journal_append(j, type, v, n);
	if (journal_fat(j))
		snapshot_soon(s);
}

static void fact(struct service *s, uint32_t type, const void *p, size_t size)
{
	const struct iovec v = {(void *)(uintptr_t)p, size};

	persist_append(s, type, &v, 1);
}

/* Without its list of operations. */
static void done(struct service *s, const struct record *rec)
{
	fact(s, ENTRY_DONE, rec, sizeof(*rec));
}

/* ---- requests ---- */

bool persist_room(struct service *s, size_t bytes)
{
	struct journal *j = journal_of(s);

	return !j || journal_room(j, journal_entry_bytes(sizeof(struct record) + bytes) +
					     journal_entry_bytes(sizeof(struct entry_commit) + bytes) + ROOM_MORE) == 0;
}

void persist_intent(struct service_client *c, const struct record *rec)
{
	if (!journal_of(c->svc) || !c->recorded)
		return;
	*verb_intent(c) = *rec;
	verb_intent(c)->n_ops = 0;
	c->verb.open = true;
	fact(c->svc, ENTRY_INTENT, rec, sizeof(*rec) + rec->n_ops * sizeof(rec->ops[0]));
}

void persist_commit(struct service_client *c, const struct service_reply *reply)
{
	const struct entry_commit head = {c->books->id, reply->with_fence, c->serial};
	const struct entry_undone undone = {.client = c->books->id};
	const struct iovec v[] = {{(void *)(uintptr_t)&head, sizeof(head)},
				  {(void *)(uintptr_t)reply->data, reply->size}};

	if (c->verb.open && ((const struct pasid_reply *)reply->data)->code)
		fact(c->svc, ENTRY_UNDONE, &undone, sizeof(undone));
	c->verb.open = false;
	if (c->recorded)
		persist_append(c->svc, ENTRY_COMMIT, v, 2);
}

/* ---- clients and their memory ---- */

void persist_client_entry(const struct service_client *c, struct entry_client *e)
{
	const struct client *b = c->books;

	*e = (struct entry_client){
		.client = b->id,
		.uid = b->uid,
		.pid = b->pid,
		.lines = b->n_lines,
		.serial = c->serial,
		.fence = c->fence_key,
		.flags = c->hello ? ENTRY_CLIENT_HELLO : 0,
		.last_buf = b->last_buf,
	};

	memcpy(e->name, c->name, sizeof(e->name));
}

void persist_client(struct service_client *c)
{
	struct entry_client e;

	persist_client_entry(c, &e);
	fact(c->svc, ENTRY_CLIENT, &e, sizeof(e));
	c->recorded = true;
}

void persist_client_gone(struct service_client *c)
{
	const struct record rec = {.kind = RECORD_CLIENT_CLOSE, .client = c->books->id};

	if (!c->recorded)
		return;
	done(c->svc, &rec);
	store_drop(c->svc->store, c->fence_key);
	store_drop(c->svc->store, c->fence_key + 1);
}

static struct record buffer_record(const struct buf *b, uint32_t kind)
{
	return (struct record){.kind = kind, .client = b->books->client->id, .buf = b->books->buffer.id};
}

bool persist_buffer_fd(struct service *s, struct record *rec, int fd)
{
	rec->key = store_keys(s->store, VAULT_BUFFER, 1);
	return store_keep(s->store, rec->key, rec->size, fd) == 0;
}

void persist_buffer_freed(const struct buf *b)
{
	const struct record rec = buffer_record(b, RECORD_BUF_FREE);

	if (b->recorded)
		done(b->dev->svc, &rec);
}

void persist_buffer_gone(const struct buf *b)
{
	const struct record rec = buffer_record(b, RECORD_BUF_GONE);

	if (b->recorded)
		done(b->dev->svc, &rec);
	store_drop(b->dev->svc->store, b->key);
}

void persist_fence_entry(const struct fence_map *m, struct entry_fence *e)
{
	*e = (struct entry_fence){
		.client = m->client->books->id,
		.index = m->dev->books->index,
		.bus = m->bus_node.first,
		.mapped = m->state == BUF_MAPPED,
	};
}

void persist_fence(const struct fence_map *m)
{
	struct entry_fence e;

	if (!m->client->recorded)
		return;
	persist_fence_entry(m, &e);
	fact(m->dev->svc, ENTRY_FENCE, &e, sizeof(e));
}

void persist_fence_gone(const struct fence_map *m)
{
	const struct entry_fence e = {.client = m->client->books->id, .index = m->dev->books->index};

	if (m->client->recorded)
		fact(m->dev->svc, ENTRY_FENCE_GONE, &e, sizeof(e));
}

/* ---- devices ---- */

void persist_device_gone(struct device *d)
{
	const struct entry_device_gone e = {.index = d->books->index};

	if (!d->recorded)
		return;
	d->recorded = false;
	fact(d->svc, ENTRY_DEVICE_GONE, &e, sizeof(e));
	store_drop_device(d->svc->store, d->kept, d->n_kept);
	for (uint32_t m = 0; m < 2 * VAULT_MEMORIES; m++)
		store_drop(d->svc->store, d->memory_key + m);
}

void persist_pool(const struct device *d)
{
	const struct entry_pool e = {d->books->index, table_pool_extent(d->pool)};

	if (d->recorded)
		fact(d->svc, ENTRY_POOL, &e, sizeof(e));
}

void persist_reset(const struct device *d, enum entry_reset_phase phase)
{
	const struct entry_reset e = {d->books->index, phase};

	if (d->recorded)
		fact(d->svc, ENTRY_RESET, &e, sizeof(e));
}

void persist_stopped(const struct device *d, unsigned int slot)
{
	const struct entry_stopped e = {d->books->index, slot};

	if (d->recorded)
		fact(d->svc, ENTRY_STOPPED, &e, sizeof(e));
}

static bool keep_memory(const struct device *d, enum vault_memory which, int fd, int ro_fd)
{
	return store_keep(d->svc->store, d->memory_key + 2 * which, 0, fd) == 0 &&
	       store_keep(d->svc->store, d->memory_key + 2 * which + 1, 0, ro_fd) == 0;
}

static bool keep_shm(const struct device *d, enum vault_memory which, const struct shm *m)
{
	return !m->bytes || keep_memory(d, which, m->fd, m->ro_fd);
}

/* Its fds are in the store before the journal says so. */
static bool keep_device(struct device *d)
{
	int fds[TRANSPORT_KEEP_MAX];
	size_t n = d->tops->keep(d->t, fds);

	d->n_kept = (uint32_t)n;
	d->memory_key = store_keys(d->svc->store, VAULT_DEVICE, 2 * VAULT_MEMORIES);
	return keep_shm(d, VAULT_RINGS, &d->rings) && keep_shm(d, VAULT_MARKS, &d->marks) &&
	       keep_shm(d, VAULT_KEEP, &d->keep) && keep_shm(d, VAULT_DESCRIPTORS, &d->nest.descriptors) &&
	       keep_shm(d, VAULT_NEST_WINDOW, &d->nest.window) &&
	       (!d->pool || keep_memory(d, VAULT_TABLES, table_pool_fd(d->pool), table_pool_device_fd(d->pool))) &&
	       store_put_device(d->svc->store, fds, n, d->kept) == 0;
}

void persist_device_entry(const struct device *d, struct entry_device *e)
{
	*e = (struct entry_device){
		.index = d->books->index,
		.opening = d->opening,
		.mode = d->mode,
		.n_slots = d->n_slots,
		.pool_max = d->pool ? table_pool_max(d->pool) : 0,
		.pool_extent = d->pool ? table_pool_extent(d->pool) : 0,
		.n_kept = d->n_kept,
		.ro_bytes = d->eops->ro_bytes,
		.rw_bytes = d->eops->rw_bytes,
		.keep_bytes = d->eops->keep_bytes,
		.iova = d->books->traits.iova,
		.memory = d->memory_key,
		.layout = d->layout,
	};
	memcpy(e->kept, d->kept, sizeof(e->kept));
	strncpy(e->name, d->config->name, sizeof(e->name) - 1);
	strncpy(e->spec, d->config->spec, sizeof(e->spec) - 1);
	strncpy(e->format, pgtable_format_name(d->format), sizeof(e->format) - 1);
	strncpy(e->driver, d->eops->name, sizeof(e->driver) - 1);
	e->saved_size = (uint32_t)d->tops->save(d->t, e->saved);
}

void persist_device_without(const struct device *d, struct entry_device *e)
{
	*e = (struct entry_device){
		.index = d->books->index,
		.opening = d->opening,
		.mode = d->mode,
		.n_slots = d->n_slots ? d->n_slots : 1,
		.iova = d->books->traits.iova,
		.layout = d->layout,
	};
	strncpy(e->name, d->config->name, sizeof(e->name) - 1);
	strncpy(e->spec, d->config->spec, sizeof(e->spec) - 1);
}

static void say_without(const struct device *d)
{
	const struct entry_device_gone gone = {.index = d->books->index};
	struct entry_device e;

	persist_device_without(d, &e);
	fact(d->svc, ENTRY_DEVICE, &e, sizeof(e));
	fact(d->svc, ENTRY_DEVICE_GONE, &gone, sizeof(gone));
}

void persist_device_again(struct device *d, const struct entry_device *e)
{
	fact(d->svc, ENTRY_DEVICE, e, sizeof(*e));
}

/* Of a device that cannot outlive this process a successor hears that it is gone: its contexts are lost. */
void persist_device(struct device *d)
{
	struct entry_device e;
	const char *why;

	if (!journal_of(d->svc))
		return;
	why = adopt_why_not(d);
	if (why) {
		log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_WARN,
			  "device %s: %s; should this daemon end or be killed, it is reset and its contexts are lost",
			  d->config->name, why);
		say_without(d);
		return;
	}
	d->recorded = true;
	if (!keep_device(d)) {
		log_warn("device %s: the fd store has no room for it; should this daemon be killed, its contexts will "
			 "be lost",
			 d->config->name);
		persist_device_gone(d);
		say_without(d);
		return;
	}
	persist_device_entry(d, &e);
	fact(d->svc, ENTRY_DEVICE, &e, sizeof(e));
	persist_shared_tables(d);
}

/* ---- contexts ---- */

void persist_context_record(const struct ctx *ctx, struct record *rec)
{
	const struct context *b = ctx->books;

	*rec = (struct record){
		.kind = RECORD_CTX_NEW,
		.client = b->client->id,
		.serial = ctx->client->verb.msg.serial,
		.ctx = b->id,
		.device = b->device->index,
		.pasid = b->pasid,
		.asid = b->asid,
		.line = b->line + 1,
		.job = b->ended,
		.opaque = b->opaque,
	};
}

static void tables(struct service *s, uint32_t index, uint32_t ctx, uint64_t root)
{
	const struct entry_tables e = {index, ctx, root};

	fact(s, ENTRY_TABLES, &e, sizeof(e));
}

void persist_context(struct ctx *ctx)
{
	struct record rec;

	persist_context_record(ctx, &rec);
	persist_intent(ctx->client, &rec);
	ctx->recorded = ctx->client->recorded;
	if (ctx->recorded && ctx->pt && !ctx->dev->books->traits.global)
		tables(ctx->dev->svc, ctx->dev->books->index, ctx->books->id, pgtable_root(ctx->pt));
}

void persist_context_begun(struct ctx *ctx)
{
	struct record rec;

	persist_context_record(ctx, &rec);
	persist_intent(ctx->client, &rec);
}

void persist_space_entry(const struct ctx *ctx, struct entry_space *e)
{
	*e = (struct entry_space){.ctx = ctx->books->id, .window = ctx->window_key};
	e->saved_size = (uint32_t)ktables_save(ctx->kt, e->saved);
}

void persist_context_made(struct ctx *ctx)
{
	struct entry_space e;

	ctx->recorded = ctx->client->recorded;
	if (!ctx->dev->recorded || !ctx->recorded)
		return;
	persist_space_entry(ctx, &e);
	fact(ctx->dev->svc, ENTRY_SPACE, &e, sizeof(e));
}

bool persist_window(struct ctx *ctx)
{
	struct store *store = ctx->dev->svc->store;

	if (!ctx->dev->recorded)
		return true;
	ctx->window_key = store_keys(store, VAULT_WINDOW, 2);
	if (store_keep(store, ctx->window_key, 0, ctx->window.fd) == 0 &&
	    store_keep(store, ctx->window_key + 1, 0, ctx->window.ro_fd) == 0)
		return true;
	persist_window_gone(ctx);
	return false;
}

void persist_window_gone(struct ctx *ctx)
{
	if (!ctx->window_key)
		return;
	store_drop(ctx->dev->svc->store, ctx->window_key);
	store_drop(ctx->dev->svc->store, ctx->window_key + 1);
	ctx->window_key = 0;
}

void persist_shared_tables(const struct device *d)
{
	if (d->recorded && d->shared_pt)
		tables(d->svc, d->books->index, 0, pgtable_root(d->shared_pt));
}

void persist_lost(const struct ctx *ctx)
{
	const struct entry_lost e = {ctx->books->id, ctx->lost_why, ctx->lost_job};

	if (ctx->recorded)
		fact(ctx->dev->svc, ENTRY_LOST, &e, sizeof(e));
}

void persist_cleared(struct ctx *ctx)
{
	const struct entry_cleared e = {.ctx = ctx->books->id};

	if (ctx->recorded && !ctx->clear_recorded)
		fact(ctx->dev->svc, ENTRY_CLEARED, &e, sizeof(e));
	ctx->clear_recorded = true;
}

void persist_context_gone(const struct ctx *ctx)
{
	const struct record rec = {.kind = RECORD_CTX_FREE, .client = ctx->books->client->id, .ctx = ctx->books->id};

	if (ctx->recorded)
		done(ctx->dev->svc, &rec);
}

void persist_counts(const struct ctx *ctx)
{
	const struct entry_counts e = {
		.ctx = ctx->books->id, .switches = ctx->switches, .faults = ctx->books->faults.total};

	if (ctx->recorded)
		fact(ctx->dev->svc, ENTRY_COUNTS, &e, sizeof(e));
}

/* ---- work ---- */

void persist_put(const struct ctx *ctx, unsigned int slot, const struct put_job *put)
{
	const struct entry_put e = {ctx->books->id, slot, put->number, put->mark};

	if (ctx->recorded)
		fact(ctx->dev->svc, ENTRY_PUT, &e, sizeof(e));
}

void persist_unput(const struct ctx *ctx)
{
	const struct entry_unput e = {.ctx = ctx->books->id, .job = ctx->put};

	if (ctx->recorded)
		fact(ctx->dev->svc, ENTRY_UNPUT, &e, sizeof(e));
}

void persist_jobs_done(const struct ctx *ctx, uint64_t job)
{
	const struct record rec = {
		.kind = RECORD_JOBS_DONE, .client = ctx->books->client->id, .ctx = ctx->books->id, .job = job};

	if (ctx->recorded)
		done(ctx->dev->svc, &rec);
}
