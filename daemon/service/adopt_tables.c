/* SPDX-License-Identifier: MIT */
/*
 * Page tables that a process left: they say what their owners asked for, or they are made again. Where the kernel keeps them,
 * adopt_kernel.c does that.
 */
#include <errno.h>

#include "base/util.h"
#include "service/adopt.h"

/* ---- do they say what they should? ---- */

/* What tables say beside what they should say. */
struct comparison {
	const struct device *d;
	struct itree_node *next; /* mapping */
	uint64_t bytes; /* that the tables map */
	uint64_t own_bytes; /* ... besides, for the device itself */
	bool differs;
};

/* A block may cover several mappings that lie side by side in one buffer, and no more than what is mapped. n: the first
 * mapping that may have to do with it, or NULL. */
static bool leaf_agrees(const struct pgtable_leaf *l, struct itree_node *n)
{
	uint64_t at = l->iova.first;

	for (; n; n = itree_next(n)) {
		const struct mapping *m = container_of(n, struct mapping, node);

		if (n->first > at || m->writable != l->writable ||
		    m->buf->bus + m->off + (at - n->first) != l->bus + (at - l->iova.first))
			return false;
		if (n->last >= l->iova.last)
			return true;
		at = n->last + 1;
	}
	return false;
}

static int compare_leaf(void *arg, const struct pgtable_leaf *l)
{
	struct comparison *c = arg;

	if (!range_contains(c->d->books->traits.iova, l->iova)) {
		c->own_bytes += range_len(l->iova);
		c->differs |= !device_nested(c->d) || !nest_maps(c->d, l);
		return 0;
	}
	while (c->next && c->next->last < l->iova.first)
		c->next = itree_next(c->next);
	c->bytes += range_len(l->iova);
	c->differs |= !leaf_agrees(l, c->next);
	return 0;
}

int adopt_tables(struct device *d, struct pgtable **pt, uint64_t root, struct aspace *as, bool *differs)
{
	struct comparison c = {.d = d, .next = itree_first(&as->tree)};
	int r = pgtable_adopt(pt, d->format, d->pool, root, compare_leaf, &c);

	*differs = c.differs || c.bytes != as->bytes;
	/* What the device itself needs nobody changes. */
	if (r == 0 && device_nested(d) && c.own_bytes != nest_bytes(d))
		r = -EBADMSG;
	return r;
}

/* ---- made again ---- */

bool adopt_rebuilds(const struct device *d, const struct ctx *ctx)
{
	return ctx->life == CTX_ALIVE && (ctx->rebuild || (d->books->traits.global && d->adoption->rebuild_shared));
}

static void empty(struct pgtable *pt, struct range all)
{
	uint32_t no_budget = 0; /* whole mappings: nothing is split */

	pgtable_unmap(pt, all, &no_budget);
}

void adopt_empty_tables(struct device *d)
{
	struct context *b;

	if (d->books->traits.global) {
		if (d->adoption->rebuild_shared)
			empty(d->shared_pt, d->books->traits.iova);
		return;
	}
	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		if (adopt_rebuilds(d, b->tag))
			empty(((struct ctx *)b->tag)->pt, d->books->traits.iova);
}

/* Tables that were emptied, here or by the predecessor: nothing remembers them any more. */
void adopt_reclaim_tables(struct device *d)
{
	struct context *b;

	if (d->shared_pt)
		pgtable_reclaim(d->shared_pt);
	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;

		if (ctx->pt && !d->books->traits.global)
			pgtable_reclaim(ctx->pt);
	}
}

/* The pages were there before, so that they can be had; unless the tables were not what they should be. */
static int fill(struct device *d, struct pgtable *pt, struct aspace *as)
{
	int r = 0;

	for (struct itree_node *n = itree_first(&as->tree); n && r == 0; n = itree_next(n)) {
		const struct mapping *m = container_of(n, struct mapping, node);
		struct range iova = {n->first, n->last};
		uint64_t bus = m->buf->bus + m->off;
		uint32_t budget = pgtable_map_need(iova, bus);

		r = table_pool_reserve(d->pool, budget);
		if (r < 0)
			break;
		r = pgtable_map(pt, iova, bus, m->writable ? PGTABLE_WRITABLE : 0, &budget);
		table_pool_unreserve(d->pool, budget);
	}
	return r;
}

int adopt_fill_tables(struct device *d)
{
	struct context *b;

	if (d->books->traits.global)
		return d->adoption->rebuild_shared ? fill(d, d->shared_pt, &d->books->shared) : 0;
	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;

		if (adopt_rebuilds(d, ctx) && fill(d, ctx->pt, b->aspace) < 0)
			ctx->lost_why = PASID_LOST_DAEMON;
	}
	return 0;
}
