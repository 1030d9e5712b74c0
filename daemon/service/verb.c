/* SPDX-License-Identifier: MIT */
/* What all requests go through: a reply at once, or a wait for a device and a reply then, or another try later. */
#include <string.h>

#include "base/util.h"
#include "service/private.h"

/* ---- at once ---- */

struct service_reply reply_ok(struct service *s, const struct pasid_msg *to, const void *body, size_t size)
{
	size_t total = sizeof(s->reply.head) + size;

	s->reply.head = (struct pasid_reply){
		.msg = {.size = (uint32_t)total, .opcode = to->opcode, .serial = to->serial},
	};
	if (size && body != s->reply.bytes + sizeof(s->reply.head))
		memcpy(s->reply.bytes + sizeof(s->reply.head), body, size);
	return (struct service_reply){.data = &s->reply, .size = total};
}

static struct service_reply reply_refusal(struct service *s, const struct pasid_msg *to, const struct refusal *why)
{
	s->reply.head = (struct pasid_reply){
		.msg = {.size = sizeof(s->reply.head), .opcode = to->opcode, .serial = to->serial},
		.code = refusal_code(why->reason),
		.reason = why->reason,
		.index = why->index,
		.n1 = why->n1,
		.n2 = why->n2,
	};
	return (struct service_reply){.data = &s->reply, .size = sizeof(s->reply.head)};
}

enum service_outcome verb_refused(struct service_client *c, struct service_reply *reply)
{
	*reply = reply_refusal(c->svc, &c->verb.msg, &c->verb.why);
	return SERVICE_REPLY;
}

/* ---- pending verbs ---- */

struct service_client *verb_client(struct pending *p)
{
	return container_of(container_of(p, struct verb, pending), struct service_client, verb);
}

void verb_wait(struct service_client *c, struct device *d, void (*step)(struct pending *p))
{
	c->verb.active = true;
	c->verb.pending.step = step;
	device_wait(d, &c->verb.pending);
}

static void verb_end(struct service_client *c, const struct service_reply *reply)
{
	c->verb.active = false;
	c->verb.ctx = NULL;
	c->verb.buf = NULL;
	service_keep(c, reply);
	c->verb.kept = false;
	if (c->owner)
		c->ops->reply(c->owner, reply);
	service_client_reap(c);
}

void verb_finish(struct service_client *c, const void *body, size_t size)
{
	struct service_reply reply = reply_ok(c->svc, &c->verb.msg, body, size);

	verb_end(c, &reply);
}

void verb_refuse(struct service_client *c, uint32_t reason, uint64_t n1, uint64_t n2)
{
	struct service_reply reply;

	refuse(&c->verb.why, reason, n1, n2);
	reply = reply_refusal(c->svc, &c->verb.msg, &c->verb.why);
	verb_end(c, &reply);
}

enum service_outcome verb_later(struct service_client *c, struct device *d)
{
	c->later = d;
	d->n_later++;
	return SERVICE_LATER;
}

void verb_not_later(struct service_client *c)
{
	if (c->later)
		c->later->n_later--;
	c->later = NULL;
}
