/* SPDX-License-Identifier: MIT */
/*
 * Calls that change something, as steps of the socket's messages. Only the bus name that made a context may touch it; others
 * that see it are told so.
 */
#include "dbus/private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/closer.h"
#include "base/util.h"

static const struct verb create, map, unmap, submit, closing;

static int not_yours(struct call *c, const char *what)
{
	return refuse_call(c->m, "AccessDenied", "only the bus name that made context %u may %s; uid %u may look",
			   c->look.at.id, what, c->from->who.uid);
}

static size_t put(void *body, const void *what, size_t size)
{
	memcpy(body, what, size);
	return size;
}

static size_t put_one_bind(const struct request *r, void *body, uint32_t kind)
{
	struct {
		struct pasid_bind_head head;
		struct pasid_wire_bind_op op;
	} bind = {
		.head = {.ctx = r->ctx, .count = 1},
		.op = {.kind = kind, .flags = r->flags, .buf = r->buf, .off = r->off, .iova = r->iova, .len = r->len},
	};

	return put(body, &bind, sizeof(bind));
}

/* ---- CreateContext ---- */

static size_t create_next(struct caller *c, struct request *r, void *body, uint16_t *opcode)
{
	struct pasid_ctx_new in = {.flags = r->flags};

	if (r->step)
		return 0;
	memcpy(in.device, r->device, sizeof(in.device));
	*opcode = PASID_OP_CTX_NEW;
	return put(body, &in, sizeof(in));
}

static void create_done(struct caller *c, struct request *r, const struct refusal *why, const void *body, size_t size)
{
	const struct pasid_ctx_new_reply *out = body;
	char path[BUS_PATH_MAX];

	r->step++;
	if (why->reason) {
		refuse_why(r->m, why);
		return;
	}
	path_of_context(out->ctx, path);
	if (r->m)
		sd_bus_reply_method_return(r->m, "ohu", path, service_client_fence(c->client), out->fence_line);
}

static const struct verb create = {create_next, create_done};

/* {name: value}; 0, or what the call was refused with. */
static int read_options(struct call *c, uint32_t *flags, bool *wrong)
{
	const char *name, *contents;
	int opaque, r = sd_bus_message_enter_container(c->m, 'a', "{sv}");
	char type;

	while (r >= 0 && (r = sd_bus_message_enter_container(c->m, 'e', "sv")) > 0) {
		r = sd_bus_message_read(c->m, "s", &name);
		if (r < 0)
			return r;
		r = sd_bus_message_peek_type(c->m, &type, &contents);
		if (r < 0)
			return r;
		*wrong = strcmp(name, "opaque") != 0 || strcmp(contents, "b") != 0;
		if (*wrong)
			return refuse_call(c->m, "InvalidArgument",
					   "there is no option %.40s of type %.20s; the only one is opaque, of type b",
					   name, contents);
		r = sd_bus_message_read(c->m, "v", "b", &opaque);
		if (r >= 0)
			r = sd_bus_message_exit_container(c->m);
		*flags = opaque ? PASID_CTX_NEW_OPAQUE : 0;
	}
	return r;
}

int verb_create_context(struct call *c)
{
	const struct refusal no_device = {.reason = PASID_WHY_NO_DEVICE};
	struct request r = {.verb = &create, .fd = -1};
	bool wrong = false;
	struct caller *caller;
	const char *device;
	int ret = sd_bus_message_read(c->m, "s", &device);

	if (ret < 0)
		return ret;
	ret = read_options(c, &r.flags, &wrong);
	if (ret < 0 || wrong)
		return ret;
	if (strlen(device) >= sizeof(r.device))
		return refuse_why(c->m, &no_device);
	strcpy(r.device, device);
	caller = caller_get(c);
	return caller ? caller_request(caller, c, &r, false) : 0;
}

/* ---- Map ---- */

enum { MAP_IMPORT, MAP_BIND, MAP_FREE, MAP_OVER };

static size_t map_next(struct caller *c, struct request *r, void *body, uint16_t *opcode)
{
	struct pasid_buf_import import = {0};
	const struct pasid_buf_query buf = {.buf = r->buf};

	switch (r->step) {
	case MAP_IMPORT:
		memcpy(import.device, r->device, sizeof(import.device));
		*opcode = PASID_OP_BUF_IMPORT;
		return put(body, &import, sizeof(import));
	case MAP_BIND:
		*opcode = PASID_OP_BIND;
		return put_one_bind(r, body, PASID_BIND_MAP);
	case MAP_FREE:
		*opcode = PASID_OP_BUF_FREE;
		return put(body, &buf, sizeof(buf));
	default:
		return 0;
	}
}

/* The name of the buffer goes in any case: from then on it lives as long as its mapping, or not at all. */
static void map_done(struct caller *c, struct request *r, const struct refusal *why, const void *body, size_t size)
{
	const struct pasid_buf_import_reply *imported = body;
	const uint64_t *iova = body;

	switch (r->step++) {
	case MAP_IMPORT:
		if (why->reason) {
			refuse_why(r->m, why);
			r->step = MAP_OVER;
		} else {
			r->buf = imported->buf;
		}
		break;
	case MAP_BIND:
		r->why = *why;
		if (!why->reason)
			r->iova = *iova;
		break;
	default:
		if (r->why.reason)
			refuse_why(r->m, &r->why);
		else if (r->m)
			sd_bus_reply_method_return(r->m, "t", r->iova);
		break;
	}
}

static const struct verb map = {map_next, map_done};

int verb_map(struct call *c)
{
	struct request r = {.verb = &map, .ctx = c->look.at.id, .fd = -1};
	int fd, ret;

	if (!c->look.mine)
		return not_yours(c, "map");
	ret = sd_bus_message_read(c->m, "httut", &fd, &r.off, &r.len, &r.flags, &r.iova);
	if (ret < 0)
		return ret;
	strcpy(r.device, c->look.context.device_name);
	r.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (r.fd < 0)
		return -errno;
	return caller_request(c->from->caller, c, &r, false);
}

/* ---- Unmap, Submit, Close: one message each ---- */

static size_t unmap_next(struct caller *c, struct request *r, void *body, uint16_t *opcode)
{
	*opcode = PASID_OP_BIND;
	return r->step ? 0 : put_one_bind(r, body, PASID_BIND_UNMAP);
}

static void empty_done(struct caller *c, struct request *r, const struct refusal *why, const void *body, size_t size)
{
	r->step++;
	if (why->reason)
		refuse_why(r->m, why);
	else if (r->m)
		sd_bus_reply_method_return(r->m, "");
}

static const struct verb unmap = {unmap_next, empty_done};

static int range_request(struct call *c, const struct verb *verb)
{
	struct request r = {.verb = verb, .ctx = c->look.at.id, .fd = -1};
	int ret = sd_bus_message_read(c->m, "tt", &r.iova, &r.len);

	return ret < 0 ? ret : caller_request(c->from->caller, c, &r, false);
}

int verb_unmap(struct call *c)
{
	return c->look.mine ? range_request(c, &unmap) : not_yours(c, "unmap");
}

static size_t submit_next(struct caller *c, struct request *r, void *body, uint16_t *opcode)
{
	const struct pasid_wire_submit in = {.ctx = r->ctx, .iova = r->iova, .len = r->len};

	*opcode = PASID_OP_SUBMIT;
	return r->step ? 0 : put(body, &in, sizeof(in));
}

static void submit_done(struct caller *c, struct request *r, const struct refusal *why, const void *body, size_t size)
{
	const struct pasid_submit_reply *out = body;

	r->step++;
	if (why->reason)
		refuse_why(r->m, why);
	else if (r->m)
		sd_bus_reply_method_return(r->m, "t", out->job);
}

static const struct verb submit = {submit_next, submit_done};

int verb_submit(struct call *c)
{
	return c->look.mine ? range_request(c, &submit) : not_yours(c, "submit");
}

static size_t close_next(struct caller *c, struct request *r, void *body, uint16_t *opcode)
{
	const struct pasid_ctx_query in = {.ctx = r->ctx};

	*opcode = PASID_OP_CTX_FREE;
	return r->step ? 0 : put(body, &in, sizeof(in));
}

static const struct verb closing = {close_next, empty_done};

/* A socket's context stays its owner's, who frees it; one that was made here is freed here. */
int verb_close(struct call *c)
{
	const struct request r = {.verb = &closing, .ctx = c->look.at.id, .fd = -1};
	struct caller *maker = caller_find(c->b, c->look.context.client);

	if (c->look.mine)
		return caller_request(c->from->caller, c, &r, false);
	if (!c->from->who.admin)
		return not_yours(c, "close it");
	log_info("context %u of pid %u, uid %u: closed over D-Bus by pid %d, uid %u", c->look.at.id,
		 c->look.context.pid, c->look.context.uid, c->from->who.pid, c->from->who.uid);
	if (maker)
		return caller_request(maker, c, &r, true);
	service_close_context(c->b->service, c->look.at.id);
	return signals_wait(c, WAIT_CONTEXT, c->look.at.id);
}
