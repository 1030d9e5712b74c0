/* SPDX-License-Identifier: MIT */
/*
 * Taking over address spaces whose tables the kernel keeps. They are there with all that they map (of a type1 container's
 * only the one that the device is in: the others were lists, which are made again from the books), and the device goes on in
 * the one that it is in; it is moved there once more, for the last move may not have been made. What memory can be mapped of
 * is held anew. A bind list that was under way is taken back: whatever is mapped where it may have changed something is
 * unmapped, and what the books say is mapped; the client's request is made again after that. What a predecessor made and the
 * journal does not know goes at the end.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "service/adopt.h"
#include "service/areas.h"

/* ---- what was being changed ---- */

static int by_first(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->first < y->first ? -1 : x->first > y->first;
}

/* The kernel unmaps whole areas only, which may reach from one range into the next. */
static size_t merge(struct range *v, size_t n)
{
	size_t m = 0;

	qsort(v, n, sizeof(*v), by_first);
	for (size_t i = 1; i < n; i++) {
		if (v[i].first > v[m].last && v[i].first - v[m].last > 1)
			v[++m] = v[i];
		else if (v[i].last > v[m].last)
			v[m].last = v[i].last;
	}
	return n ? m + 1 : 0;
}

int adopt_kernel_again(struct ctx *ctx, const struct record *rec)
{
	struct range *v = calloc(rec->n_ops, sizeof(*v)), r;
	size_t n = 0;

	if (!v)
		return -ENOMEM;
	for (uint32_t i = 0; i < rec->n_ops; i++)
		if (range_make(&r, rec->ops[i].iova, rec->ops[i].len))
			v[n++] = areas_around(ctx->books->aspace, r);
	free(ctx->again);
	ctx->again = v;
	ctx->n_again = merge(v, n);
	return 0;
}

/* ---- contexts ---- */

static bool has_tables(const struct ctx *ctx)
{
	return ctx->life == CTX_ALIVE;
}

int adopt_kernel_windows(struct device *d)
{
	struct context *b;
	int fd, ro_fd, r = 0;

	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;

		if (!has_tables(ctx) || !d->eops->window_bytes)
			continue;
		r = store_get_pair(d->svc->store, ctx->window_key, &fd, &ro_fd);
		if (r < 0)
			return r;
		r = shm_adopt(&ctx->window, d->eops->window_bytes, fd, ro_fd);
		if (r < 0) {
			close(fd);
			close(ro_fd);
			return r;
		}
	}
	return 0;
}

int adopt_kernel_tables(struct ctx *ctx)
{
	struct device *d = ctx->dev;
	const struct ktables_window window = {WINDOW_IOVA, ctx->window.bytes, ctx->window.fd};
	struct refusal why;
	uint64_t tables;
	int r;

	if (!ctx->space || !ctx->space->saved_size)
		return -EBADMSG;
	r = footprint_adopt(&ctx->footprint, ctx->books->aspace, &tables);
	if (r == 0 && tables)
		r = charge_take(&ctx->books->c_tables, ctx->books->client->account, PASID_RES_TABLES, tables, &why);
	if (r < 0)
		return r;
	return ktables_adopt(&ctx->kt, d->t, ctx->space->saved, ctx->space->saved_size, &window,
			     device_exclusive(d) ? 0 : ctx->books->pasid, ctx_changed, d);
}

/* ---- step by step ---- */

/* True when all are there. */
static bool spaces_made(struct device *d)
{
	struct context *b;
	bool all = true;

	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;
		int made = ctx->kt ? ktables_made(ctx->kt) : 1;

		if (made < 0) {
			device_fail(d, "an address space of the last process is not there any more");
			return false;
		}
		all &= made > 0;
	}
	return all;
}

static bool buffers_held(struct device *d)
{
	struct buffer_entry *e;
	bool all = true;

	TAILQ_FOREACH (e, &d->books->buffers, in_device) {
		struct buf *b = e->tag;
		int r = 0;

		if (!e->buffer.named && !e->buffer.uses)
			continue;
		if (b->state == BUF_MAPPED && !b->memory)
			b->state = BUF_UNMAPPED;
		if (b->state == BUF_UNMAPPED)
			r = buf_map_again(b);
		if (b->state == BUF_REFUSED || (r < 0 && r != -EBUSY)) {
			device_fail(d, "memory that it has mapped cannot be held by this process");
			return false;
		}
		if (b->state != BUF_MAPPED)
			all = false;
	}
	return all;
}

/* PASIDs of contexts that nobody was told of. */
static bool detached(struct device *d)
{
	struct adoption *a = d->adoption;

	while (a->next_pasid < a->n_pasids) {
		int r = d->tops->spaces->detach_pasid(d->t, a->pasids[a->next_pasid], adopt_on_cleared, d);

		if (r == -EBUSY)
			return false;
		if (r < 0) {
			device_fail(d, "it cannot be taken out of an address space");
			return false;
		}
		a->next_pasid++;
		a->clearing++;
	}
	return !a->clearing;
}

/* What is idle is in its own. */
static bool moved(struct device *d)
{
	const struct translator_space space = d->runs[0].ctx ? run_space(d->runs[0].ctx) : (struct translator_space){0};
	int r;

	if (!device_exclusive(d))
		return true;
	r = d->adoption->asked ? d->tr->ops->ready(d->tr, 0, &space) : d->tr->ops->install(d->tr, 0, &space);
	if (r == -EAGAIN)
		return false;
	if (r < 0) {
		device_fail(d, "it is in nobody's address space for sure");
		return false;
	}
	if (!d->adoption->asked) {
		d->adoption->asked = true;
		return false;
	}
	return r > 0;
}

/* True when it is done: what the books show in these parts of each context's address space, or in all of it, is mapped. */
static bool mapped_again(struct device *d, bool whole)
{
	struct context *b;
	bool all = true;

	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;
		int r;

		if (!ctx->kt)
			continue;
		if (!d->adoption->asked && whole)
			ktables_restore(ctx->kt, b->aspace, &d->books->traits.iova, 1, buffer_memory);
		else if (!d->adoption->asked && ctx->again)
			ktables_restore(ctx->kt, b->aspace, ctx->again, ctx->n_again, buffer_memory);
		r = ktables_restore_go(ctx->kt);
		if (r < 0 && !ctx->lost_why)
			ctx->lost_why = PASID_LOST_DAEMON;
		if (r > 0)
			all = false;
	}
	d->adoption->asked = true;
	return all;
}

static bool told(struct device *d)
{
	return !d->tops->spaces->are_lists(d->t) || mapped_again(d, true);
}

static bool restored(struct device *d)
{
	struct context *b;

	if (!mapped_again(d, false))
		return false;
	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		ctx_forget_left(b->tag);
	return true;
}

static bool swept(struct device *d)
{
	struct adoption *a = d->adoption;

	if (!a->asked && d->tops->spaces->adopted(d->t, adopt_on_cleared, d) < 0)
		return false;
	a->clearing += !a->asked;
	a->asked = true;
	return !a->clearing;
}

static void next_phase(struct adoption *a)
{
	a->phase++;
	a->asked = false;
	a->since = util_now_ns();
}

void adopt_kernel_go_on(struct device *d)
{
	struct adoption *a = d->adoption;

	if (a->phase == ADOPT_SPACES && spaces_made(d) && buffers_held(d) && detached(d))
		next_phase(a);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_TELLING && told(d))
		next_phase(a);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_MOVING && moved(d))
		next_phase(a);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_RESTORING && restored(d))
		next_phase(a);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_SWEEPING && swept(d))
		next_phase(a);
}
