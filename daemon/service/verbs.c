/* SPDX-License-Identifier: MIT */
/*
 * Requests, one function each, except bind lists (bind.c). A request is judged and entered in the books first; where a
 * device has to do something about it, the verb is pending until the device has answered, or is gone (verb.c).
 */
#include "service/adopt.h"
#include "service/persist.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#include <pasid/pasid.h>

#include "base/util.h"

static enum service_outcome done(struct service_client *c, struct service_reply *reply, const void *body, size_t size)
{
	*reply = reply_ok(c->svc, &c->verb.msg, body, size);
	return SERVICE_REPLY;
}

static enum service_outcome refused(struct service_client *c, struct service_reply *reply, uint32_t reason, uint64_t n1,
				    uint64_t n2)
{
	refuse(&c->verb.why, reason, n1, n2);
	return verb_refused(c, reply);
}

static struct device *find_device(struct service_client *c, const char name[PASID_NAME_MAX])
{
	struct device_books *d = NULL;

	if (memchr(name, 0, PASID_NAME_MAX))
		d = books_device(c->svc->books, name);
	if (!d)
		refuse(&c->verb.why, PASID_WHY_NO_DEVICE, 0, 0);
	return d ? d->tag : NULL;
}

static struct record *new_record(struct service_client *c, uint32_t kind)
{
	struct record *rec = &c->svc->request.rec;

	*rec = (struct record){.kind = kind, .client = c->books->id, .serial = c->verb.msg.serial};
	return rec;
}

/* ---- HELLO, DEVICES, DEVICE_INFO ---- */

static enum service_outcome hello(struct service_client *c, const void *body, size_t size, int *fds,
				  struct service_reply *reply)
{
	const struct pasid_hello *in = body;
	struct pasid_hello_reply out = {
		.version = PASID_PROTOCOL_VERSION,
		.msg_max = PASID_MSG_MAX,
		.bind_max = PASID_BIND_MAX,
		.in_flight = PASID_IN_FLIGHT,
		.fence_bytes = c->fence.bytes,
	};

	if (c->hello)
		return refused(c, reply, PASID_WHY_NO_HELLO, 0, 0);
	if (in->magic != PASID_PROTOCOL_MAGIC || in->version != PASID_PROTOCOL_VERSION)
		return refused(c, reply, PASID_WHY_VERSION, in->version, PASID_PROTOCOL_VERSION);
	c->hello = true;
	done(c, reply, &out, sizeof(out));
	c->svc->reply.head.msg.fds = 1;
	reply->with_fence = true;
	return SERVICE_REPLY;
}

static enum service_outcome devices(struct service_client *c, const void *body, size_t size, int *fds,
				    struct service_reply *reply)
{
	struct pasid_wire_device *v = (void *)(c->svc->reply.bytes + sizeof(struct pasid_reply));

	for (size_t i = 0; i < c->svc->n_devices; i++) {
		const struct device *d = &c->svc->devices[i];

		v[i] = (struct pasid_wire_device){.mode = d->mode, .present = d->state == DEVICE_READY};
		strncpy(v[i].name, d->config->name, sizeof(v[i].name) - 1);
	}
	return done(c, reply, v, c->svc->n_devices * sizeof(*v));
}

static enum service_outcome device_info(struct service_client *c, const void *body, size_t size, int *fds,
					struct service_reply *reply)
{
	struct device *d = find_device(c, ((const struct pasid_device_query *)body)->name);
	struct pasid_wire_device_info out;

	if (!d)
		return verb_refused(c, reply);
	out = (struct pasid_wire_device_info){
		.mode = d->mode,
		.present = d->state == DEVICE_READY,
		.page_sizes = device_kernel_tables(d) ? 4096 : pgtable_format_page_sizes(d->format),
		.iova_first = d->books->traits.iova.first,
		.iova_last = d->books->traits.iova.last,
		.features = PASID_FEATURE_PARTIAL_UNMAP | (device_kernel_tables(d) ? 0 : PASID_FEATURE_ATOMIC_REPLACE),
		.pasid_bits = d->books->traits.pasid_bits,
		.slots = d->n_slots,
		.job_limit_ms = d->config->job_limit_ms,
		.submit_max = (uint32_t)d->books->traits.submit_max,
	};
	strncpy(out.name, d->config->name, sizeof(out.name) - 1);
	_Static_assert(ENGINE_NAME_MAX < sizeof(out.engine), "a driver's name has room");
	strncpy(out.engine, d->eops ? d->eops->name : "", sizeof(out.engine) - 1);
	return done(c, reply, &out, sizeof(out));
}

/* What could not be asked of the device: it has enough to answer, is gone, or we have no memory or fds. */
static enum service_outcome not_mapped(struct service_client *c, struct device *d, int error,
				       struct service_reply *reply)
{
	if (error == -EBUSY)
		return verb_later(c, d);
	return refused(c, reply, error == -ENODEV ? PASID_WHY_DEVICE_GONE : PASID_WHY_QUOTA_MEMORY, 0, 0);
}

/* The kernel, or the device, would not. */
static void refuse_error(struct service_client *c, int error)
{
	if (error == -ENODEV)
		verb_refuse(c, PASID_WHY_DEVICE_GONE, 0, 0);
	else
		verb_refuse(c, PASID_WHY_QUOTA_KERNEL, (uint64_t)-error, 0);
}

/* ---- contexts ---- */

/* Table pages of a context that has no mappings yet: the root, and what the device itself needs there. */
static uint32_t first_tables(const struct device *d)
{
	return 1 + (device_nested(d) ? nest_tables(d) : 0);
}

/* Promised for a moment to know that they are there. */
static int root_page(struct device *d, struct refusal *why)
{
	int r = device_private_tables(d) ? device_reserve_tables(d, first_tables(d), why) : 0;

	if (r == 0 && device_private_tables(d))
		table_pool_unreserve(d->pool, first_tables(d));
	return r;
}

/* The context is made where its tables are: by the kernel, if it keeps them. */
static void ctx_new_step(struct pending *p)
{
	struct service_client *c = verb_client(p);
	struct ctx *ctx = c->verb.ctx;
	struct pasid_ctx_new_reply out;
	int made = ctx->kt ? ktables_made(ctx->kt) : -ENODEV;

	if (made == 0) {
		device_wait(c->verb.dev, p);
		return;
	}
	if (made < 0) {
		ctx_free(ctx);
		refuse_error(c, made);
		return;
	}
	if (ctx->dev->mode == PASID_MODE_PASID)
		ids_installed(ctx->dev->books->pasids, ctx->books->pasid);
	persist_context_made(ctx);
	out = (struct pasid_ctx_new_reply){
		.ctx = ctx->books->id,
		.pasid = ctx->books->pasid,
		.fence_line = ctx->books->line,
	};
	verb_finish(c, &out, sizeof(out));
}

static enum service_outcome ctx_new(struct service_client *c, const void *body, size_t size, int *fds,
				    struct service_reply *reply)
{
	const struct pasid_ctx_new *in = body;
	struct device *d = find_device(c, in->device);
	struct record *rec = new_record(c, RECORD_CTX_NEW);
	struct pasid_ctx_new_reply out;
	struct fence_map *fence = NULL;
	struct context *books;
	struct ctx *ctx;
	bool later;
	int r;

	if (!d)
		return verb_refused(c, reply);
	if (in->flags & ~PASID_CTX_NEW_OPAQUE)
		return refused(c, reply, PASID_WHY_FLAGS, in->flags, PASID_CTX_NEW_OPAQUE);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	if (!device_usable(d, &c->verb.why, &later))
		return later ? verb_later(c, d) : verb_refused(c, reply);
	r = d->eops->reads ? 0 : fence_map_get(c, d, &fence);
	if (r < 0)
		return not_mapped(c, d, r, reply);
	if (fence && fence->state == BUF_REFUSED) {
		r = fence->error;
		fence_map_drop(fence);
		return refused(c, reply, PASID_WHY_QUOTA_KERNEL, (uint64_t)-r, 0);
	}
	r = root_page(d, &c->verb.why);
	if (r < 0 && r != -EAGAIN)
		return verb_refused(c, reply);
	if ((fence && fence->state != BUF_MAPPED) || r == -EAGAIN)
		return verb_later(c, d);
	rec->device = d->books->index;
	rec->opaque = in->flags & PASID_CTX_NEW_OPAQUE;
	if (books_ctx_new(c->svc->books, rec, &c->verb.why, &books) < 0)
		return verb_refused(c, reply);
	r = device_private_tables(d)
		    ? charge_take(&books->c_tables, c->books->account, PASID_RES_TABLES, first_tables(d), &c->verb.why)
		    : 0;
	if (r < 0) {
		books_ctx_free(c->svc->books, books);
		return verb_refused(c, reply);
	}
	r = ctx_start(c, d, books, fence, &ctx);
	if (r < 0) {
		books_ctx_free(c->svc->books, books);
		return not_mapped(c, d, r, reply);
	}
	if (ctx->kt) {
		persist_context_begun(ctx);
		c->verb.ctx = ctx;
		c->verb.dev = d;
		verb_wait(c, d, ctx_new_step);
		return SERVICE_PENDING;
	}
	persist_context(ctx);
	out = (struct pasid_ctx_new_reply){.ctx = books->id, .pasid = books->pasid, .fence_line = books->line};
	return done(c, reply, &out, sizeof(out));
}

static struct ctx *find_ctx(struct service_client *c, uint32_t id)
{
	struct context *ctx = books_context(c->books, id, c->svc->books, &c->verb.why);

	return ctx ? ctx->tag : NULL;
}

static void ctx_free_step(struct pending *p)
{
	struct service_client *c = verb_client(p);

	if (!c->verb.ctx)
		verb_finish(c, NULL, 0);
	else
		device_wait(c->verb.dev, p);
}

static enum service_outcome ctx_free_request(struct service_client *c, const void *body, size_t size, int *fds,
					     struct service_reply *reply)
{
	const struct pasid_ctx_query *in = body;
	struct record *rec = new_record(c, RECORD_CTX_FREE);
	struct ctx *ctx = find_ctx(c, in->ctx);

	if (!ctx)
		return verb_refused(c, reply);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	c->verb.ctx = ctx;
	c->verb.dev = ctx->dev;
	rec->ctx = in->ctx;
	persist_intent(c, rec);
	ctx_free(ctx);
	if (!c->verb.ctx)
		return done(c, reply, NULL, 0);
	verb_wait(c, c->verb.dev, ctx_free_step);
	return SERVICE_PENDING;
}

static enum service_outcome ctx_info(struct service_client *c, const void *body, size_t size, int *fds,
				     struct service_reply *reply)
{
	const struct pasid_ctx_query *in = body;
	struct ctx *ctx = find_ctx(c, in->ctx);
	struct pasid_wire_ctx_info out;

	if (!ctx)
		return verb_refused(c, reply);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	out = (struct pasid_wire_ctx_info){
		.ctx = ctx->books->id,
		.pasid = ctx->books->pasid,
		.state = ctx->books->lost ? PASID_CTX_LOST : PASID_CTX_OK,
		.mappings = ctx->books->mappings,
		.mapped_bytes = ctx->books->bytes,
		.table_bytes = ctx->pt ? (uint64_t)pgtable_pages(ctx->pt) * TABLE_PAGE : 0,
		.submitted = ctx->books->submitted,
		.completed = __atomic_load_n(&ctx->line->done, __ATOMIC_ACQUIRE),
		.faults = ctx->books->faults.total,
		.switches = ctx->switches,
	};
	return done(c, reply, &out, sizeof(out));
}

/* ---- buffers ---- */

/* What an fd is, judged by fcntl alone until it has turned out to be a memfd: no call here can be made to wait. */
static bool judge_memfd(int fd, struct record *rec, struct refusal *why)
{
	int flags = fcntl(fd, F_GETFL);
	int seals = fcntl(fd, F_GET_SEALS);
	struct statfs fs;
	struct stat st;

	if (flags < 0 || seals < 0 || (flags & O_PATH)) {
		refuse(why, PASID_WHY_NOT_MEMFD, 0, 0);
		return false;
	}
	if (!(seals & F_SEAL_SHRINK)) {
		refuse(why, PASID_WHY_UNSEALED, (uint64_t)seals, F_SEAL_SHRINK);
		return false;
	}
	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0) {
		refuse(why, PASID_WHY_NOT_MEMFD, 0, 0);
		return false;
	}
	rec->size = (uint64_t)st.st_size;
	rec->huge = fs.f_type == HUGETLBFS_MAGIC;
	rec->writable = (flags & O_ACCMODE) == O_RDWR && !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
	return true;
}

static void import_undo(struct service_client *c, struct buffer_entry *e)
{
	struct record rec = {.kind = RECORD_IMPORT, .client = c->books->id, .buf = e->buffer.id};
	struct refusal why;
	struct unused unused = TAILQ_HEAD_INITIALIZER(unused);

	books_buf_free(c->svc->books, &rec, &why);
	if (!e->tag)
		books_buf_gone(c->svc->books, e);
	buf_take_unused(c->svc, &unused);
	buf_unmap_unused(&unused);
}

static void import_step(struct pending *p)
{
	struct service_client *c = verb_client(p);
	struct buf *b = c->verb.buf;
	struct pasid_buf_import_reply out;

	if (b->state == BUF_MAPPING) {
		device_wait(b->dev, p);
		return;
	}
	/* Of a client that is gone it is freed like any other. */
	if (b->state != BUF_MAPPED) {
		int error = b->state == BUF_REFUSED ? b->error : -ENODEV;

		c->verb.buf = NULL;
		import_undo(c, b->books);
		refuse_error(c, error);
		return;
	}
	b->recorded = c->recorded;
	out = (struct pasid_buf_import_reply){
		.size = b->books->buffer.size,
		.buf = b->books->buffer.id,
		.writable = b->books->buffer.writable,
	};
	verb_finish(c, &out, sizeof(out));
}

static enum service_outcome import(struct service_client *c, const void *body, size_t size, int *fds,
				   struct service_reply *reply)
{
	const struct pasid_buf_import *in = body;
	struct device *d = find_device(c, in->device);
	struct record *rec = new_record(c, RECORD_IMPORT);
	struct buffer_entry *e;
	bool later;
	int r;

	if (!d)
		return verb_refused(c, reply);
	if (in->flags)
		return refused(c, reply, PASID_WHY_FLAGS, in->flags, 0);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	if (!device_usable(d, &c->verb.why, &later))
		return later ? verb_later(c, d) : verb_refused(c, reply);
	rec->device = d->books->index;
	if (!judge_memfd(fds[0], rec, &c->verb.why) || books_import(c->svc->books, rec, &c->verb.why, &e) < 0)
		return verb_refused(c, reply);
	if (!persist_buffer_fd(c->svc, rec, fds[0])) {
		import_undo(c, e);
		return refused(c, reply, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	persist_intent(c, rec);
	r = buf_start(e, d, fds[0], rec->key, &c->verb.buf);
	if (r < 0) {
		import_undo(c, e);
		return not_mapped(c, d, r, reply);
	}
	fds[0] = -1;
	if (c->verb.buf->state == BUF_MAPPED)
		device_poke(d);
	verb_wait(c, d, import_step);
	return SERVICE_PENDING;
}

static void buf_free_step(struct pending *p)
{
	struct service_client *c = verb_client(p);

	if (!c->verb.buf)
		verb_finish(c, NULL, 0);
	else
		device_wait(c->verb.dev, p);
}

static enum service_outcome buf_free_request(struct service_client *c, const void *body, size_t size, int *fds,
					     struct service_reply *reply)
{
	const struct pasid_buf_query *in = body;
	struct record *rec = new_record(c, RECORD_BUF_FREE);
	struct buffer_entry *e = books_buffer(c->books, in->buf, &c->verb.why);
	struct unused unused = TAILQ_HEAD_INITIALIZER(unused);

	if (!e)
		return verb_refused(c, reply);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	rec->buf = in->buf;
	persist_intent(c, rec);
	c->verb.buf = e->buffer.uses ? NULL : e->tag;
	c->verb.dev = e->device->tag;
	books_buf_free(c->svc->books, rec, &c->verb.why);
	buf_take_unused(c->svc, &unused);
	buf_unmap_unused(&unused);
	if (!c->verb.buf)
		return done(c, reply, NULL, 0);
	verb_wait(c, c->verb.dev, buf_free_step);
	return SERVICE_PENDING;
}

/* ---- work ---- */

static enum service_outcome submit(struct service_client *c, const void *body, size_t size, int *fds,
				   struct service_reply *reply)
{
	const struct pasid_wire_submit *in = body;
	struct ctx *ctx = find_ctx(c, in->ctx);
	struct record *rec = new_record(c, RECORD_SUBMIT);
	struct pasid_submit_reply out;

	if (!ctx)
		return verb_refused(c, reply);
	if (in->reserved)
		return refused(c, reply, PASID_WHY_RESERVED, 0, 0);
	if (ctx->life != CTX_ALIVE || ctx->books->lost)
		return refused(c, reply, PASID_WHY_CONTEXT_LOST, in->ctx, 0);
	if (ctx->dev->mode == PASID_MODE_PASID && !ctx->dev->eops->tags_pasid)
		return refused(c, reply, PASID_WHY_NO_PASID, 0, 0);
	rec->ctx = in->ctx;
	rec->iova = in->iova;
	rec->len = in->len;
	if (books_submit(c->svc->books, ctx->books, rec, &c->verb.why) < 0)
		return verb_refused(c, reply);
	persist_intent(c, rec);
	tell_changed(ctx, SERVICE_JOBS);
	run_jobs_changed(ctx);
	run_schedule(ctx->dev);
	out.job = rec->job;
	return done(c, reply, &out, sizeof(out));
}

static enum service_outcome bind_list(struct service_client *c, const void *body, size_t size, int *fds,
				      struct service_reply *reply)
{
	return bind_request(c, body, size, reply);
}

/* ---- dispatch ---- */

static const struct opcode {
	enum service_outcome (*run)(struct service_client *c, const void *body, size_t size, int *fds,
				    struct service_reply *reply);
	size_t body; /* bytes, exactly; of BIND: at least */
	size_t fds;
} opcodes[] = {
	[PASID_OP_HELLO] = {hello, sizeof(struct pasid_hello), 0},
	[PASID_OP_DEVICES] = {devices, 0, 0},
	[PASID_OP_DEVICE_INFO] = {device_info, sizeof(struct pasid_device_query), 0},
	[PASID_OP_CTX_NEW] = {ctx_new, sizeof(struct pasid_ctx_new), 0},
	[PASID_OP_CTX_FREE] = {ctx_free_request, sizeof(struct pasid_ctx_query), 0},
	[PASID_OP_CTX_INFO] = {ctx_info, sizeof(struct pasid_ctx_query), 0},
	[PASID_OP_BUF_IMPORT] = {import, sizeof(struct pasid_buf_import), 1},
	[PASID_OP_BUF_FREE] = {buf_free_request, sizeof(struct pasid_buf_query), 0},
	[PASID_OP_BIND] = {bind_list, sizeof(struct pasid_bind_head), 0},
	[PASID_OP_SUBMIT] = {submit, sizeof(struct pasid_wire_submit), 0},
};

static enum service_outcome dispatch(struct service_client *c, const void *msg, size_t size, int *fds, size_t n_fds,
				     struct service_reply *reply)
{
	const struct pasid_msg *m = msg;
	size_t body = size - sizeof(*m);
	const struct opcode *op = m->opcode < ARRAY_SIZE(opcodes) ? &opcodes[m->opcode] : NULL;

	c->verb.msg = *m;
	c->verb.why = (struct refusal){0};
	c->verb.ctx = NULL;
	c->verb.buf = NULL;
	if (c->svc->adopting)
		return verb_later(c, adopt_first(c->svc));
	if (!persist_room(c->svc, size))
		return refused(c, reply, PASID_WHY_QUOTA_MEMORY, 0, 0);
	if (!op || !op->run)
		return refused(c, reply, PASID_WHY_OPCODE, m->opcode, 0);
	if (!c->hello && m->opcode != PASID_OP_HELLO)
		return refused(c, reply, PASID_WHY_NO_HELLO, 0, 0);
	if (n_fds != op->fds || m->fds != n_fds)
		return refused(c, reply, PASID_WHY_FD_COUNT, n_fds, op->fds);
	if (m->opcode == PASID_OP_BIND ? body < op->body : body != op->body)
		return refused(c, reply, PASID_WHY_BODY_SIZE, size, sizeof(*m) + op->body);
	return op->run(c, (const uint8_t *)msg + sizeof(*m), body, fds, reply);
}

enum service_outcome service_request(struct service_client *c, const void *msg, size_t size, int *fds, size_t n_fds,
				     struct service_reply *reply)
{
	uint64_t before = c->serial;
	enum service_outcome outcome;

	c->serial = ((const struct pasid_msg *)msg)->serial;
	outcome = dispatch(c, msg, size, fds, n_fds, reply);
	if (outcome == SERVICE_LATER)
		c->serial = before;
	if (outcome == SERVICE_REPLY) {
		service_keep(c, reply);
		c->verb.kept = false;
	}
	return outcome;
}
