/* SPDX-License-Identifier: MIT */
/* See absent.h. */
#include "service/absent.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "service/entries.h"
#include "service/private.h"

struct absent_context {
	uint32_t id, client;
	uint32_t line; /* of the client's fence memory */
};

struct absent_buffer {
	uint32_t client, id;
};

static bool is_absent_device(const struct absent *a, uint32_t index)
{
	return index < ABSENT_DEVICES && a->device[index];
}

static int add_context(struct absent *a, const struct record *rec)
{
	struct absent_context *v = util_grow(a->v, a->n, &a->max, sizeof(*v));

	if (!v || !rec->line)
		return v ? -EINVAL : -ENOMEM;
	a->v = v;
	v[a->n++] = (struct absent_context){rec->ctx, rec->client, rec->line - 1};
	return idmap_find(&a->contexts, rec->ctx) ? -EEXIST : idmap_add(&a->contexts, rec->ctx, a);
}

static int add_buffer(struct absent *a, const struct record *rec)
{
	struct absent_buffer *v = util_grow(a->bufs, a->n_bufs, &a->max_bufs, sizeof(*v));

	if (!v)
		return -ENOMEM;
	a->bufs = v;
	v[a->n_bufs++] = (struct absent_buffer){rec->client, rec->buf};
	return 0;
}

static bool is_absent_buffer(struct absent *a, const struct record *rec)
{
	for (size_t i = 0; i < a->n_bufs; i++) {
		if (a->bufs[i].client != rec->client || a->bufs[i].id != rec->buf)
			continue;
		if (rec->kind == RECORD_BUF_GONE)
			a->bufs[i] = a->bufs[--a->n_bufs];
		return true;
	}
	return false;
}

int absent_record(struct absent *a, const struct record *rec, bool *ret)
{
	bool comes = rec->kind == RECORD_CTX_NEW || rec->kind == RECORD_IMPORT;

	*ret = comes && is_absent_device(a, rec->device);
	if (comes)
		return !*ret ? 0 : rec->kind == RECORD_CTX_NEW ? add_context(a, rec) : add_buffer(a, rec);
	if (rec->kind == RECORD_BUF_FREE || rec->kind == RECORD_BUF_GONE) {
		*ret = is_absent_buffer(a, rec);
		return 0;
	}
	*ret = rec->ctx && idmap_find(&a->contexts, rec->ctx);
	if (*ret && rec->kind == RECORD_CTX_FREE)
		idmap_remove(&a->contexts, rec->ctx);
	return 0;
}

/* Where they begin with a context's id, or a device's index. */
bool absent_fact(const struct absent *a, uint32_t type, const void *p)
{
	const uint32_t *word = p;

	switch (type) {
	case ENTRY_LOST:
	case ENTRY_CLEARED:
	case ENTRY_PUT:
	case ENTRY_UNPUT:
	case ENTRY_COUNTS:
	case ENTRY_SPACE:
		return idmap_find(&a->contexts, word[0]);
	case ENTRY_POOL:
	case ENTRY_RESET:
	case ENTRY_STOPPED:
	case ENTRY_TABLES:
	case ENTRY_DEVICE_GONE:
		return is_absent_device(a, word[0]);
	case ENTRY_FENCE:
	case ENTRY_FENCE_GONE:
		return is_absent_device(a, word[1]);
	default:
		return false;
	}
}

void absent_tell(const struct absent *a, struct books *books)
{
	for (size_t i = 0; i < a->n; i++) {
		const struct absent_context *ctx = &a->v[i];
		struct client *c = books_client(books, ctx->client);

		if (c && ctx->line < c->n_lines && idmap_find(&a->contexts, ctx->id))
			fence_line_lose((struct pasid_fence_line *)((struct service_client *)c->tag)->fence.p +
					ctx->line);
	}
}

void absent_fini(struct absent *a)
{
	idmap_fini(&a->contexts);
	free(a->v);
	free(a->bufs);
}
