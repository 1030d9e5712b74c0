/* SPDX-License-Identifier: MIT */
/* See inspect.h. */
#include "service/inspect.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/util.h"
#include "service/private.h"

const char *inspect_mode_name(uint32_t mode)
{
	static const char *const names[] = {
		[PASID_MODE_GPU_MMU] = "gpu-mmu", [PASID_MODE_GLOBAL] = "global", [PASID_MODE_EXCLUSIVE] = "exclusive",
		[PASID_MODE_PASID] = "pasid",     [PASID_MODE_NESTED] = "nested",
	};

	return names[mode];
}

/* ---- devices ---- */

static const char *state_name(enum device_state state)
{
	static const char *const names[] = {
		[DEVICE_GONE] = "gone",   [DEVICE_OPENING] = "opening",     [DEVICE_SETUP] = "setup",
		[DEVICE_READY] = "ready", [DEVICE_RESETTING] = "resetting",
	};

	return names[state];
}

bool inspect_device(const struct service *s, uint32_t index, struct inspect_device *ret)
{
	const struct device *d = index < s->n_devices ? &s->devices[index] : NULL;

	if (!d)
		return false;
	*ret = (struct inspect_device){
		.name = d->config->name,
		.transport = d->config->spec,
		.driver = d->eops ? d->eops->name : "",
		.mode = inspect_mode_name(d->mode),
		.configured_mode = inspect_mode_name(d->config->mode),
		.state = state_name(d->state),
		.reason = d->state == DEVICE_GONE || d->state == DEVICE_OPENING ? d->gone_why : "",
		.table_format = device_kernel_tables(d) ? "" : pgtable_format_name(d->format),
		.slots = d->n_slots,
		.contexts = d->books->n_contexts,
		.pasids = ids_in_use(d->books->pasids),
		.asids = ids_in_use(d->books->asids),
		.switches = d->switches,
		.faults = d->faults,
		.strays = d->strays,
		.resets = d->resets,
		.table_pages = d->pool ? table_pool_used(d->pool) : 0,
		.table_pages_max = device_kernel_tables(d) ? 0 : d->config->table_pages,
		.gone = d->state != DEVICE_READY && d->state != DEVICE_RESETTING,
		.resetting = d->state == DEVICE_RESETTING,
	};
	return true;
}

bool inspect_slot(const struct service *s, uint32_t index, uint32_t slot, struct inspect_slot *ret)
{
	const struct device *d = index < s->n_devices ? &s->devices[index] : NULL;
	const struct run *run = d && slot < d->n_slots ? &d->runs[slot] : NULL;

	if (!run)
		return false;
	*ret = (struct inspect_slot){.slot = slot};
	if (!run->ctx || !run->count)
		return true;
	ret->ctx = run->ctx->books->id;
	ret->job = run->jobs[run->head % RUN_JOBS].number;
	return true;
}

/* ---- contexts ---- */

int inspect_contexts(const struct service *s, int (*each)(void *arg, uint32_t id), void *arg)
{
	for (size_t i = 0; i < s->n_devices; i++) {
		const struct context *books;

		TAILQ_FOREACH (books, &s->devices[i].books->contexts, in_device) {
			int r = books->tag ? each(arg, books->id) : 0;

			if (r)
				return r;
		}
	}
	return 0;
}

static const struct ctx *find(const struct service *s, uint32_t id)
{
	const struct context *books = books_any_context(s->books, id);

	return books ? books->tag : NULL;
}

static const char *lost_name(uint32_t why)
{
	switch (why) {
	case PASID_LOST_HANG:
		return "hang";
	case PASID_LOST_DEVICE:
		return "device";
	case PASID_LOST_DAEMON:
		return "daemon";
	case PASID_LOST_CLOSED:
		return "closed";
	default:
		return "";
	}
}

static const char *life_name(const struct ctx *ctx)
{
	if (ctx->free_asked || ctx->client->closing)
		return "ending";
	return ctx->books->lost ? "lost" : "ok";
}

/* Up to now: a job that takes long is not seen at its end only. */
static uint64_t device_time(const struct ctx *ctx)
{
	const struct device *d = ctx->dev;
	uint64_t now = util_now_ns(), ns = ctx->device_ns;

	for (unsigned int i = 0; i < d->n_slots; i++)
		if (d->runs[i].ctx == ctx && now > d->runs[i].on_since)
			ns += now - d->runs[i].on_since;
	return ns;
}

bool inspect_context(const struct service *s, uint32_t id, struct inspect_context *ret)
{
	const struct ctx *ctx = find(s, id);

	if (!ctx)
		return false;
	*ret = (struct inspect_context){
		.id = id,
		.device = ctx->dev->books->index,
		.pasid = ctx->books->pasid,
		.asid = ctx->books->asid,
		.uid = ctx->books->client->uid,
		.pid = (uint32_t)ctx->books->client->pid,
		.opaque = ctx->books->opaque,
		.at_rest = ctx->life == CTX_CLEARED,
		.client = ctx->client,
		.device_name = ctx->dev->config->name,
		.state = life_name(ctx),
		.lost_reason = lost_name(ctx->lost_why),
		.bytes = ctx->books->bytes,
		.mapped = ctx->books->mappings,
		.table_bytes = ctx->pt ? (uint64_t)pgtable_pages(ctx->pt) * TABLE_PAGE : 0,
		.submitted = ctx->books->submitted,
		.completed = __atomic_load_n(&ctx->line->done, __ATOMIC_ACQUIRE),
		.maps = ctx->maps,
		.switches = ctx->switches,
		.device_time = device_time(ctx),
		.faults = ctx->books->faults.total,
		.lost_job = ctx->lost_job,
		.last_fault = ctx->last_fault,
	};
	return true;
}

uint64_t inspect_total_bytes(const struct service *s, uint64_t *limit)
{
	*limit = s->config->limits.total_bytes;
	return ledger_total_bytes(books_ledger(s->books));
}

uint32_t inspect_connections(const struct service *s, bool all, uid_t uid)
{
	struct client *c = NULL;
	uint32_t n = 0;

	while ((c = books_next_client(s->books, c)))
		n += all || c->uid == uid;
	return n;
}

uint64_t inspect_limit(const struct service *s, uid_t uid, bool connection, uint32_t resource)
{
	const struct limit_policy *policy = &s->config->limits;

	if (connection)
		return policy->connection.v[resource];
	for (uint32_t i = 0; i < policy->n_uids; i++)
		if (policy->uids[i].uid == uid)
			return policy->uids[i].limits.v[resource];
	return policy->uid.v[resource];
}

/* ---- mappings ---- */

bool inspect_own_tables(const struct service *s, uint32_t id)
{
	const struct ctx *ctx = find(s, id);

	return ctx && !device_kernel_tables(ctx->dev);
}

/* The context's own mapping that ends at or above `from`; NULL: there is none. */
static const struct mapping *own_mapping(const struct ctx *ctx, uint64_t from)
{
	struct itree_node *n = itree_at_or_above(&ctx->books->aspace->tree, from);

	for (; n; n = itree_next(n)) {
		const struct mapping *m = container_of(n, struct mapping, node);

		if (m->owner == ctx->books->id)
			return m;
	}
	return NULL;
}

static struct inspect_mapping show_mapping(const struct ctx *ctx, const struct mapping *m)
{
	return (struct inspect_mapping){
		.iova = m->node.first,
		.len = m->node.last - m->node.first + 1,
		.off = m->off,
		.bus = device_kernel_tables(ctx->dev) ? 0 : m->buf->bus + m->off,
		.flags = PASID_MAP_READ | (m->writable ? PASID_MAP_WRITE : 0),
		.buf = m->buf->id,
	};
}

int inspect_mappings(const struct service *s, uint32_t id, uint64_t from, uint32_t max,
		     int (*each)(void *arg, const struct inspect_mapping *m), void *arg)
{
	const struct ctx *ctx = find(s, id);
	const struct mapping *m;

	if (!ctx)
		return -ENOENT;
	for (; (m = own_mapping(ctx, from)); max--) {
		const struct inspect_mapping show = show_mapping(ctx, m);
		int r;

		if (!max)
			return 1;
		r = each(arg, &show);
		if (r)
			return r;
		if (m->node.last == UINT64_MAX)
			break;
		from = m->node.last + 1;
	}
	return 0;
}

/* ---- tables ---- */

/* In a shared address space nobody is shown what others have there. */
static bool is_foreign(const struct ctx *ctx, uint64_t iova)
{
	const struct mapping *m = ctx->dev->books->traits.global ? aspace_find(ctx->books->aspace, iova) : NULL;

	return ctx->dev->books->traits.global && (!m || m->owner != ctx->books->id);
}

static void say_leaf(const struct pgtable *pt, const struct pgtable_leaf *l, bool addresses, char *buf, size_t len)
{
	int n = snprintf(buf, len, "%s of %" PRIu64 " KiB", l->level == PGTABLE_LEVELS - 1 ? "page" : "block",
			 range_len(l->iova) / 1024);

	if (addresses)
		n += snprintf(buf + n, len - (size_t)n, " at bus 0x%" PRIx64, l->bus);
	snprintf(buf + n, len - (size_t)n, ", %s, %s", l->writable ? "read and write" : "read only",
		 pgtable_attributes(pt, l->entry));
}

static void say_level(const struct pgtable *pt, const struct pgtable_level *l, bool addresses, char *buf, size_t len)
{
	const struct pgtable_leaf leaf = {
		.iova = {0, l->size - 1}, .bus = l->bus, .entry = l->entry, .level = l->level, .writable = l->writable};

	if (l->kind == PGTABLE_LEAF)
		say_leaf(pt, &leaf, addresses, buf, len);
	else if (l->kind == PGTABLE_NOTHING)
		snprintf(buf, len, "nothing");
	else if (addresses)
		snprintf(buf, len, "table at bus 0x%" PRIx64, l->bus);
	else
		snprintf(buf, len, "table");
}

static void say_mapping(const struct inspect_mapping *m, char *buf, size_t len)
{
	snprintf(buf, len, "0x%" PRIx64 "-0x%" PRIx64 ", buffer %u from 0x%" PRIx64 ", %s", m->iova,
		 m->iova + (m->len - 1), m->buf, m->off, m->flags & PASID_MAP_WRITE ? "read and write" : "read only");
}

static int walk_record(const struct ctx *ctx, uint64_t iova, struct inspect_level v[INSPECT_LEVELS])
{
	const struct mapping *m = own_mapping(ctx, iova);
	struct inspect_mapping show;

	v[0] = (struct inspect_level){.says = "nothing"};
	if (!m || m->node.first > iova)
		return 1;
	show = show_mapping(ctx, m);
	say_mapping(&show, v[0].says, sizeof(v[0].says));
	return 1;
}

int inspect_walk(const struct service *s, uint32_t id, uint64_t iova, bool addresses,
		 struct inspect_level v[INSPECT_LEVELS])
{
	const struct ctx *ctx = find(s, id);
	struct pgtable_level levels[PGTABLE_LEVELS];
	unsigned int n;

	_Static_assert(INSPECT_LEVELS == PGTABLE_LEVELS, "as many as there may be");
	if (!ctx)
		return -ENOENT;
	if (!ctx->pt)
		return device_kernel_tables(ctx->dev) ? walk_record(ctx, iova, v) : 0;
	if (is_foreign(ctx, iova) && !addresses)
		return 0;
	n = pgtable_levels(ctx->pt, iova, levels);
	for (unsigned int i = 0; i < n; i++) {
		v[i] = (struct inspect_level){
			.level = levels[i].level,
			.index = levels[i].index,
			.at = addresses ? levels[i].at : 0,
			.entry = addresses ? levels[i].entry : 0,
		};
		say_level(ctx->pt, &levels[i], addresses, v[i].says, sizeof(v[i].says));
	}
	return (int)n;
}

int inspect_translate(const struct service *s, uint32_t id, uint64_t iova, struct inspect_mapping *ret)
{
	const struct ctx *ctx = find(s, id);
	const struct mapping *m = ctx ? own_mapping(ctx, iova) : NULL;
	struct pgtable_leaf leaf;

	if (!ctx)
		return -ENOENT;
	*ret = (struct inspect_mapping){.iova = iova};
	if (m && m->node.first <= iova) {
		*ret = show_mapping(ctx, m);
		ret->off += iova - ret->iova;
	}
	if (device_kernel_tables(ctx->dev))
		return ret->len ? 0 : -ENXIO;
	if (!ctx->pt || is_foreign(ctx, iova) || !pgtable_walk(ctx->pt, iova, &leaf))
		return -ENXIO;
	ret->bus = leaf.bus + (iova - leaf.iova.first);
	ret->flags = PASID_MAP_READ | (leaf.writable ? PASID_MAP_WRITE : 0);
	return 0;
}

/* The next leaf at or above `from` that may be shown. */
static bool next_leaf(const struct ctx *ctx, uint64_t from, struct pgtable_leaf *leaf)
{
	const struct mapping *m;

	if (!ctx->dev->books->traits.global)
		return pgtable_next(ctx->pt, from, leaf);
	m = own_mapping(ctx, from);
	return m && pgtable_next(ctx->pt, from > m->node.first ? from : m->node.first, leaf);
}

struct leaf_record {
	int (*each)(void *arg, const struct inspect_leaf *l);
	void *arg;
};

static int on_record(void *arg, const struct inspect_mapping *m)
{
	const struct leaf_record *to = arg;
	struct inspect_leaf show = {.iova = m->iova, .size = m->len};

	say_mapping(m, show.says, sizeof(show.says));
	return to->each(to->arg, &show);
}

int inspect_leaves(const struct service *s, uint32_t id, uint64_t from, uint32_t max, bool addresses,
		   int (*each)(void *arg, const struct inspect_leaf *l), void *arg)
{
	const struct ctx *ctx = find(s, id);
	struct leaf_record record = {each, arg};
	struct pgtable_leaf leaf;

	if (!ctx)
		return -ENOENT;
	if (device_kernel_tables(ctx->dev))
		return inspect_mappings(s, id, from, max, on_record, &record);
	for (; ctx->pt && next_leaf(ctx, from, &leaf); max--) {
		struct inspect_leaf show = {.iova = leaf.iova.first, .size = range_len(leaf.iova)};
		int r;

		if (!max)
			return 1;
		show.entry = addresses ? leaf.entry : 0;
		say_leaf(ctx->pt, &leaf, addresses, show.says, sizeof(show.says));
		r = each(arg, &show);
		if (r)
			return r;
		from = leaf.iova.last + 1;
	}
	return 0;
}
