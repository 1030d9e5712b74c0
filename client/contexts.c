/* SPDX-License-Identifier: MIT */
/*
 * The contexts of a connection, sorted by id. Ids rise for the life of the daemon, so a new context almost always goes
 * to the end; looking one up is a binary search, because pasid_wait() and pasid_fence() do it without a system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Index of the first context whose id is not below `id`. */
static size_t ctx_lower(const struct pasid *p, uint32_t id)
{
	size_t lo = 0, hi = p->ctxs;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (p->ctx[mid]->id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct ctx *ctx_find(const struct pasid *p, uint32_t id)
{
	size_t i = ctx_lower(p, id);

	return i < p->ctxs && p->ctx[i]->id == id ? p->ctx[i] : NULL;
}

/* Makes room for one more than n elements. */
bool array_room(void **array, size_t *room, size_t n, size_t elem)
{
	size_t want = *room ? *room * 2 : 8;
	void *bigger;

	if (n < *room)
		return true;
	bigger = reallocarray(*array, want, elem);
	if (!bigger)
		return false;
	*array = bigger;
	*room = want;
	return true;
}

int ctx_insert(struct pasid *p, struct ctx *c)
{
	size_t i = ctx_lower(p, c->id);
	void *array = p->ctx;

	if (!array_room(&array, &p->ctx_room, p->ctxs, sizeof(struct ctx *)))
		return -ENOMEM;
	p->ctx = array;
	memmove(&p->ctx[i + 1], &p->ctx[i], (p->ctxs - i) * sizeof(struct ctx *));
	p->ctx[i] = c;
	p->ctxs++;
	return 0;
}

void ctx_remove(struct pasid *p, struct ctx *c)
{
	size_t i = ctx_lower(p, c->id);

	events_forget(p, c);
	p->ctxs--;
	memmove(&p->ctx[i], &p->ctx[i + 1], (p->ctxs - i) * sizeof(struct ctx *));
	free(c);
}
