/* SPDX-License-Identifier: MIT */
/*
 * The verbs about devices, contexts, mappings and work: arguments to a message, the reply to results. The daemon is
 * the authority on what is allowed; here is refused only what cannot be put into a message.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef unsigned long long ull;

static int null_argument(struct pasid *p)
{
	return failure(p, -EINVAL, LOCAL_ARGUMENT, 0, 0);
}

int pasid_devices(struct pasid *p, struct pasid_device *v, size_t *n)
{
	const struct conn_call call = {.opcode = PASID_OP_DEVICES, .reply_unit = sizeof(struct pasid_wire_device)};
	size_t i, have, stride = 0;
	int r;

	if (!n || (!v && *n))
		r = null_argument(p);
	else if (*n && !struct_size(v, &stride))
		r = failure(p, -EINVAL, LOCAL_STRUCT, stride, 0);
	else
		r = conn_call(p, &call);
	if (r < 0)
		return error_call(p, r, "list the devices");
	have = conn_reply_len(p) / sizeof(struct pasid_wire_device);
	for (i = 0; i < have && i < *n; i++) {
		const struct pasid_wire_device *w = (const struct pasid_wire_device *)conn_reply(p) + i;
		struct pasid_device full = {.mode = w->mode, .present = w->present};
		char *at = (char *)v + i * stride;

		memcpy(full.name, w->name, sizeof(full.name) - 1);
		memcpy(at, &stride, sizeof(stride));
		struct_out(at, &full, sizeof(full));
	}
	*n = have;
	return 0;
}

static int device_info(struct pasid *p, const char *device, struct pasid_device_info *info)
{
	static const struct conn_call call = {.opcode = PASID_OP_DEVICE_INFO,
					      .body = sizeof(struct pasid_device_query),
					      .reply = sizeof(struct pasid_wire_device_info)};
	struct pasid_device_query *q = conn_body(p);
	const struct pasid_wire_device_info *w = conn_reply(p);
	struct pasid_device_info full = {0};
	int r;

	r = name_in(p, q->name, device);
	if (r == 0)
		r = conn_call(p, &call);
	if (r < 0)
		return r;
	memcpy(full.name, w->name, sizeof(full.name) - 1);
	memcpy(full.engine, w->engine, sizeof(full.engine) - 1);
	full.mode = w->mode;
	full.present = w->present;
	full.page_sizes = w->page_sizes;
	full.iova_first = w->iova_first;
	full.iova_last = w->iova_last;
	full.features = w->features;
	full.pasid_bits = w->pasid_bits;
	full.slots = w->slots;
	full.job_limit_ms = w->job_limit_ms;
	full.submit_max = w->submit_max;
	return struct_out(info, &full, sizeof(full)) ? 0 : failure(p, -EINVAL, LOCAL_STRUCT, info->size, 0);
}

int pasid_device_info(struct pasid *p, const char *device, struct pasid_device_info *info)
{
	int r = info ? device_info(p, device, info) : null_argument(p);

	return r < 0 ? error_call(p, r, "describe device %.40s", device ? device : "(the first)") : 0;
}

/* The reply to CTX_NEW into c, which goes on the list. */
static int ctx_adopt(struct pasid *p, struct ctx *c)
{
	const struct pasid_ctx_new_reply *w = conn_reply(p);

	if (((uint64_t)w->fence_line + 1) * PASID_FENCE_STRIDE > p->fence_bytes || ctx_find(p, w->ctx))
		return conn_kill(p, LOCAL_GARBLED, PASID_OP_CTX_NEW, w->fence_line);
	c->id = w->ctx;
	c->line = (const void *)(p->fences + (size_t)w->fence_line * PASID_FENCE_STRIDE);
	c->submitted = __atomic_load_n(&c->line->done, __ATOMIC_ACQUIRE);
	c->seen = c->told = __atomic_load_n(&c->line->disrupted, __ATOMIC_ACQUIRE);
	return ctx_insert(p, c);
}

static int ctx_new(struct pasid *p, const struct pasid_ctx_args *args, uint32_t *ctx)
{
	static const struct conn_call call = {.opcode = PASID_OP_CTX_NEW,
					      .body = sizeof(struct pasid_ctx_new),
					      .reply = sizeof(struct pasid_ctx_new_reply)};
	struct pasid_ctx_new *q = conn_body(p);
	void *array = p->ctx;
	struct ctx *c;
	int r;

	if (!array_room(&array, &p->ctx_room, p->ctxs, sizeof(struct ctx *)))
		return failure(p, -ENOMEM, LOCAL_SYSTEM, 0, 0);
	p->ctx = array;
	c = calloc(1, sizeof(*c));
	if (!c)
		return failure(p, -ENOMEM, LOCAL_SYSTEM, 0, 0);
	memset(q, 0, sizeof(*q));
	q->flags = args->flags;
	q->reserved = args->reserved;
	r = name_in(p, q->device, args->device);
	if (r == 0)
		r = conn_call(p, &call);
	if (r == 0)
		r = ctx_adopt(p, c);
	if (r < 0) {
		free(c);
		return r;
	}
	*ctx = c->id;
	return 0;
}

int pasid_ctx_new(struct pasid *p, const struct pasid_ctx_args *a, uint32_t *ctx)
{
	struct pasid_ctx_args args = {0};
	int r;

	if (!ctx)
		r = null_argument(p);
	else if (a && !struct_in(&args, sizeof(args), a))
		r = failure(p, -EINVAL, LOCAL_STRUCT, a->size, 0);
	else
		r = ctx_new(p, &args, ctx);
	return r < 0 ? error_call(p, r, "make a context on device %.40s", args.device ? args.device : "(the first)")
		     : 0;
}

/* Sends a request that names a context and nothing else. */
static int ctx_call(struct pasid *p, uint16_t opcode, uint32_t ctx, size_t reply)
{
	const struct conn_call call = {.opcode = opcode, .body = sizeof(struct pasid_ctx_query), .reply = reply};
	const struct pasid_ctx_query q = {.ctx = ctx};

	memcpy(conn_body(p), &q, sizeof(q));
	return conn_call(p, &call);
}

int pasid_ctx_free(struct pasid *p, uint32_t ctx)
{
	int r = ctx_call(p, PASID_OP_CTX_FREE, ctx, 0);
	struct ctx *c = ctx_find(p, ctx);

	if (r < 0)
		return error_call(p, r, "free context %u", ctx);
	if (c)
		ctx_remove(p, c);
	return 0;
}

static int ctx_info(struct pasid *p, uint32_t ctx, struct pasid_ctx_info *info)
{
	const struct pasid_wire_ctx_info *w = conn_reply(p);
	struct pasid_ctx_info full = {0};
	int r;

	r = ctx_call(p, PASID_OP_CTX_INFO, ctx, sizeof(*w));
	if (r < 0)
		return r;
	full.pasid = w->pasid;
	full.lost = w->state != PASID_CTX_OK;
	full.mappings = w->mappings;
	full.mapped_bytes = w->mapped_bytes;
	full.table_bytes = w->table_bytes;
	full.submitted = w->submitted;
	full.completed = w->completed;
	full.faults = w->faults;
	full.switches = w->switches;
	return struct_out(info, &full, sizeof(full)) ? 0 : failure(p, -EINVAL, LOCAL_STRUCT, info->size, 0);
}

int pasid_ctx_info(struct pasid *p, uint32_t ctx, struct pasid_ctx_info *info)
{
	int r = info ? ctx_info(p, ctx, info) : null_argument(p);

	return r < 0 ? error_call(p, r, "describe context %u", ctx) : 0;
}

/* Sends count operations that are already in the message; *failed is the daemon's index. */
static int bind_send(struct pasid *p, uint32_t ctx, size_t count)
{
	const struct pasid_bind_head head = {.ctx = ctx, .count = (uint32_t)count};
	const struct conn_call call = {.opcode = PASID_OP_BIND,
				       .body = sizeof(head) + count * sizeof(struct pasid_wire_bind_op),
				       .reply = count * sizeof(uint64_t)};

	memcpy(conn_body(p), &head, sizeof(head));
	return conn_call(p, &call);
}

static struct pasid_wire_bind_op *bind_ops(struct pasid *p)
{
	return (void *)((char *)conn_body(p) + sizeof(struct pasid_bind_head));
}

static uint64_t bind_iova(const struct pasid *p, size_t i)
{
	uint64_t iova;

	memcpy(&iova, (const char *)conn_reply(p) + i * sizeof(iova), sizeof(iova));
	return iova;
}

int pasid_map(struct pasid *p, uint32_t ctx, uint32_t buf, uint64_t off, uint64_t len, uint32_t flags, uint64_t *iova)
{
	const struct pasid_wire_bind_op op = {
		.kind = PASID_BIND_MAP,
		.flags = flags,
		.buf = buf,
		.off = off,
		.iova = iova && flags & PASID_FIXED ? *iova : 0,
		.len = len,
	};
	int r = iova ? 0 : null_argument(p);

	if (r == 0) {
		memcpy(bind_ops(p), &op, sizeof(op));
		r = bind_send(p, ctx, 1);
	}
	if (r < 0 && flags & PASID_FIXED)
		return error_call(p, r, "map %llu bytes of buffer %u from byte %llu at 0x%llx in context %u", (ull)len,
				  buf, (ull)off, (ull)op.iova, ctx);
	if (r < 0)
		return error_call(p, r, "map %llu bytes of buffer %u from byte %llu in context %u", (ull)len, buf,
				  (ull)off, ctx);
	*iova = bind_iova(p, 0);
	return 0;
}

int pasid_unmap(struct pasid *p, uint32_t ctx, uint64_t iova, uint64_t len)
{
	const struct pasid_wire_bind_op op = {.kind = PASID_BIND_UNMAP, .iova = iova, .len = len};
	int r;

	memcpy(bind_ops(p), &op, sizeof(op));
	r = bind_send(p, ctx, 1);
	return r < 0 ? error_call(p, r, "unmap %llu bytes at 0x%llx in context %u", (ull)len, (ull)iova, ctx) : 0;
}

/* The caller's operations, `stride` bytes apart, into the message. 0, or -EINVAL with p->why.index set. */
static int bind_fill(struct pasid *p, const struct pasid_bind_op *ops, size_t n, size_t stride)
{
	struct pasid_wire_bind_op *w = bind_ops(p);
	const char *at = (const char *)ops;
	size_t i;

	for (i = 0; i < n; i++, at += stride) {
		struct pasid_bind_op op;

		if (!struct_in(&op, sizeof(op), at) || op.size != stride) {
			p->why.index = (uint32_t)i;
			return failure(p, -EINVAL, LOCAL_STRUCT, op.size, 0);
		}
		memset(&w[i], 0, sizeof(w[i]));
		w[i].kind = op.type;
		w[i].flags = op.flags;
		w[i].len = op.len;
		w[i].buf = op.buf;
		w[i].off = op.off;
		if (op.type != PASID_MAP || op.flags & PASID_FIXED)
			w[i].iova = op.iova;
	}
	return 0;
}

static int bind_list(struct pasid *p, uint32_t ctx, const struct pasid_bind_op *ops, size_t n, size_t *failed)
{
	size_t stride = 0;
	int r = 0;

	p->why.index = 0;
	if (!ops && n)
		r = null_argument(p);
	else if (n > p->bind_max)
		r = failure(p, -EINVAL, PASID_WHY_TOO_MANY, n, p->bind_max);
	if (r == 0 && n) {
		memcpy(&stride, ops, sizeof(stride));
		r = bind_fill(p, ops, n, stride);
	}
	if (r == 0)
		r = bind_send(p, ctx, n);
	if (r == 0)
		return 0;
	if (failed)
		*failed = p->why.index;
	return error_call(p, r, "do operation %u of the %zu in a list for context %u (none was done)", p->why.index, n,
			  ctx);
}

int pasid_bind(struct pasid *p, uint32_t ctx, const struct pasid_bind_op *ops, size_t n, size_t *failed)
{
	return bind_list(p, ctx, ops, n, failed);
}

int pasid_bind_any(struct pasid *p, uint32_t ctx, struct pasid_bind_op *ops, size_t n, size_t *failed)
{
	const size_t at = offsetof(struct pasid_bind_op, iova);
	int r = bind_list(p, ctx, ops, n, failed);
	size_t i, stride;

	if (r < 0)
		return r;
	memcpy(&stride, ops, sizeof(stride));
	for (i = 0; i < n && stride >= at + sizeof(uint64_t); i++) {
		uint64_t iova = bind_iova(p, i);

		memcpy((char *)ops + i * stride + at, &iova, sizeof(iova));
	}
	return 0;
}

int pasid_submit(struct pasid *p, uint32_t ctx, uint64_t iova, uint64_t len, uint64_t *job)
{
	static const struct conn_call call = {.opcode = PASID_OP_SUBMIT,
					      .body = sizeof(struct pasid_wire_submit),
					      .reply = sizeof(struct pasid_submit_reply)};
	const struct pasid_wire_submit q = {.ctx = ctx, .iova = iova, .len = len};
	struct pasid_submit_reply reply;
	struct ctx *c;
	int r;

	memcpy(conn_body(p), &q, sizeof(q));
	r = conn_call(p, &call);
	if (r < 0)
		return error_call(p, r, "submit %llu bytes of commands at 0x%llx in context %u", (ull)len, (ull)iova,
				  ctx);
	memcpy(&reply, conn_reply(p), sizeof(reply));
	c = ctx_find(p, ctx);
	if (c)
		c->submitted = reply.job;
	if (job)
		*job = reply.job;
	return 0;
}
