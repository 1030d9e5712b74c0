/* SPDX-License-Identifier: MIT */
/*
 * A bus name as a client of the service: what it asks becomes messages as on the socket, so that the same judges, quotas and
 * pending verbs serve both. One message is with the service at a time; other calls of the name wait behind it. The name's
 * contexts end with it.
 */
#include "dbus/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/closer.h"
#include "base/util.h"

static void caller_go(struct caller *c);

static void request_free(struct caller *c, struct request *r)
{
	closer_close(r->fd, c->sender->who.uid);
	sd_bus_message_unref(r->m);
	free(r);
}

static void pop(struct caller *c)
{
	struct request *r = STAILQ_FIRST(&c->requests);

	STAILQ_REMOVE_HEAD(&c->requests, link);
	c->n_requests--;
	request_free(c, r);
}

/* ---- what the service says ---- */

static void go_soon(struct caller *c, uint64_t wait_ns)
{
	struct timeval tv = {(time_t)(wait_ns / 1000000000), (suseconds_t)(wait_ns / 1000 % 1000000)};

	evtimer_add(c->go, &tv);
}

static void take_reply(struct caller *c, const struct service_reply *reply)
{
	const struct pasid_reply *head = reply->data;
	const struct refusal why = {.reason = head->reason, .index = head->index, .n1 = head->n1, .n2 = head->n2};
	struct request *r = STAILQ_FIRST(&c->requests);

	c->out = false;
	if (!c->greeted) {
		c->greeted = true;
		return;
	}
	r->verb->done(c, r, &why, head + 1, reply->size - sizeof(*head));
	link_soon(c->b);
}

static void on_reply(void *owner, const struct service_reply *reply)
{
	struct caller *c = owner;

	take_reply(c, reply);
	go_soon(c, 0);
}

static void on_retry(void *owner)
{
	struct caller *c = owner;

	c->out = false;
	go_soon(c, 0);
}

/* The same comes as signals. */
static void on_events(void *owner)
{
	static uint8_t buf[PASID_MSG_MAX];
	struct caller *c = owner;

	while (service_next_event(c->client, buf))
		;
}

static const struct service_client_ops caller_ops = {.reply = on_reply, .retry = on_retry, .events = on_events};

/* ---- what is said to it ---- */

static union {
	struct pasid_msg head;
	uint8_t bytes[512];
} message;

static size_t greeting(void *body, uint16_t *opcode)
{
	const struct pasid_hello hello = {.magic = PASID_PROTOCOL_MAGIC, .version = PASID_PROTOCOL_VERSION};

	*opcode = PASID_OP_HELLO;
	memcpy(body, &hello, sizeof(hello));
	return sizeof(hello);
}

/* True: it is answered, and the next one may follow. */
static bool ask(struct caller *c, struct request *r, size_t body, uint16_t opcode)
{
	bool with_fd = opcode == PASID_OP_BUF_IMPORT;
	struct service_reply reply;

	message.head = (struct pasid_msg){
		.size = (uint32_t)(sizeof(message.head) + body),
		.opcode = opcode,
		.fds = with_fd,
		.serial = c->serial + 1,
	};
	c->out = true;
	switch (service_request(c->client, &message, message.head.size, &r->fd, with_fd, &reply)) {
	case SERVICE_REPLY:
		c->serial++;
		take_reply(c, &reply);
		return true;
	case SERVICE_PENDING:
		c->serial++;
		return false;
	default:
		return false;
	}
}

/* A new request is paid for like a message on the socket. */
static bool rate_allows(struct caller *c, struct request *r)
{
	uint64_t wait = r->paid ? 0 : account_rate(service_client_account(c->client), util_now_ns());

	r->paid = !wait;
	if (wait)
		go_soon(c, wait);
	return !wait;
}

static void caller_go(struct caller *c)
{
	void *body = message.bytes + sizeof(message.head);
	struct request *r;
	uint16_t opcode;
	size_t size;

	while (!c->out && (r = STAILQ_FIRST(&c->requests))) {
		if (c->greeted && !rate_allows(c, r))
			return;
		size = c->greeted ? r->verb->next(c, r, body, &opcode) : greeting(body, &opcode);
		if (!size) {
			pop(c);
			continue;
		}
		if (!ask(c, r, size, opcode))
			return;
	}
	link_soon(c->b);
}

static void on_go(evutil_socket_t fd, short what, void *arg)
{
	caller_go(arg);
}

int caller_request(struct caller *c, struct call *call, const struct request *what, bool urgent)
{
	struct request *r = NULL;
	uint32_t n = c->n_requests;

	if (n < REQUESTS_MAX || urgent)
		r = malloc(sizeof(*r));
	if (!r) {
		closer_close(what->fd, c->sender->who.uid);
		return n < REQUESTS_MAX
			       ? -ENOMEM
			       : refuse_call(call->m, "TooManyCalls",
					     "%u calls of this bus name are not answered yet, which is the most; "
					     "wait for one of them",
					     n);
	}
	*r = *what;
	r->m = sd_bus_message_ref(call->m);
	STAILQ_INSERT_TAIL(&c->requests, r, link);
	c->n_requests++;
	if (n == 0)
		go_soon(c, 0);
	return 0;
}

/* ---- how it comes and goes ---- */

struct caller *caller_find(struct dbus *b, const struct service_client *client)
{
	struct caller *c;

	TAILQ_FOREACH (c, &b->callers, link)
		if (c->client == client)
			break;
	return c;
}

/* Its contexts outlive this process, if the name does. A bus has names of its own, so it is told by both. False: they cannot,
 * and a successor would not know of their work. */
static bool keep(struct caller *c)
{
	char id[SD_ID128_STRING_MAX], name[64];

	sd_id128_to_string(c->b->id, id);
	return snprintf(name, sizeof(name), "%s%s", id, c->sender->name) < (int)sizeof(name) &&
	       service_client_keep(c->client, name);
}

static struct caller *caller_new(struct sender *s, struct refusal *why)
{
	struct caller *c = calloc(1, sizeof(*c));

	refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	if (!c)
		return NULL;
	c->b = s->b;
	c->sender = s;
	STAILQ_INIT(&c->requests);
	c->go = evtimer_new(c->b->base, on_go, c);
	if (c->go && service_client_new(c->b->service, s->who.uid, s->who.pid, &caller_ops, c, &c->client, why) == 0 &&
	    !keep(c)) {
		refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
		service_client_close(c->client);
		c->client = NULL;
	}
	if (!c->client) {
		if (c->go)
			event_free(c->go);
		free(c);
		return NULL;
	}
	TAILQ_INSERT_TAIL(&c->b->callers, c, link);
	c->b->n_callers++;
	return c;
}

/* ---- from before this process ---- */

static bool adopt_one(struct dbus *b, struct service_client *client)
{
	char id[SD_ID128_STRING_MAX];
	const char *name = service_client_name(client);
	struct sender *s;
	struct caller *c;

	snprintf(id, sizeof(id), "%s", name);
	if (!strchr(name, ':') || sd_id128_from_string(id, &b->id) < 0)
		return false;
	s = sender_adopt(b, strchr(name, ':'), service_client_uid(client), service_client_pid(client));
	c = s ? calloc(1, sizeof(*c)) : NULL;
	if (!c)
		return false;
	c->go = evtimer_new(b->base, on_go, c);
	if (!c->go) {
		free(c);
		return false;
	}
	c->b = b;
	c->sender = s;
	c->client = client;
	c->serial = service_client_serial(client);
	c->greeted = c->serial > 0;
	STAILQ_INIT(&c->requests);
	TAILQ_INSERT_TAIL(&b->callers, c, link);
	b->n_callers++;
	s->caller = c;
	service_client_own(client, &caller_ops, c);
	service_client_forget_buffers(client);
	return true;
}

bool callers_adopt(struct dbus *b)
{
	struct service_client *client, *next = service_adopted(b->service, NULL);
	bool any = false;

	while ((client = next)) {
		next = service_adopted(b->service, client);
		if (adopt_one(b, client))
			any = true;
		else
			service_client_close(client);
	}
	return any;
}

struct caller *caller_get(struct call *call)
{
	struct sender *s = call->from;
	struct refusal why = {0};

	if (!s->caller)
		s->caller = caller_new(s, &why);
	if (!s->caller)
		refuse_why(call->m, &why);
	return s->caller;
}

void caller_suspend(struct caller *c)
{
	struct request *first = STAILQ_FIRST(&c->requests), *r;

	while (first && (r = STAILQ_NEXT(first, link))) {
		STAILQ_REMOVE(&c->requests, r, request, link);
		c->n_requests--;
		request_free(c, r);
	}
	if (first)
		first->m = sd_bus_message_unref(first->m);
}

struct caller *caller_free(struct caller *c)
{
	if (!c)
		return NULL;
	event_free(c->go);
	while (!STAILQ_EMPTY(&c->requests))
		pop(c);
	service_client_close(c->client);
	TAILQ_REMOVE(&c->b->callers, c, link);
	c->b->n_callers--;
	free(c);
	return NULL;
}
