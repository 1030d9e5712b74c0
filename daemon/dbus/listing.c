/* SPDX-License-Identifier: MIT */
/*
 * Answers about all objects: what lies below a path, all that can be seen as objects, and the same as JSON. There may be
 * thousands of contexts, so the long ones are made in pieces, between which others have their turn; a context that ends
 * meanwhile is left out.
 */
#include "dbus/private.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define PIECE 16u /* objects */

/* ---- ids of the contexts that somebody may see ---- */

struct ids_seen {
	struct dbus *b;
	struct sender *by;
	uint32_t *v;
	size_t n, room;
};

static int note_id(void *arg, uint32_t id)
{
	struct ids_seen *s = arg;
	struct look look;
	uint32_t *more;

	if (!look_at_context(s->b, s->by, id, &look))
		return 0;
	if (s->n == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		more = reallocarray(s->v, s->room, sizeof(*s->v));
		if (!more)
			return -ENOMEM;
		s->v = more;
	}
	s->v[s->n++] = id;
	return 0;
}

static int by_id(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int note_ids(struct ids_seen *s)
{
	int r = inspect_contexts(s->b->service, note_id, s);

	if (r < 0)
		free(s->v);
	else if (s->n)
		qsort(s->v, s->n, sizeof(*s->v), by_id);
	return r;
}

/* ---- introspection ---- */

static void put_args(FILE *f, const char *type, const char **names, const char *direction)
{
	size_t n;

	for (; (n = path_type(type)); type += n) {
		size_t len = strcspn(*names, " ");

		fprintf(f, "   <arg name=\"%.*s\" type=\"%.*s\"", (int)len, *names, (int)n, type);
		fprintf(f, direction ? " direction=\"%s\"/>\n" : "/>\n", direction);
		*names += len + (*names)[len] / ' ';
	}
}

static void put_interface(FILE *f, const struct bus_interface *i)
{
	const char *names;

	fprintf(f, " <interface name=\"%s\">\n", i->name);
	for (const struct bus_method *m = i->methods; m && m->member; m++) {
		names = m->args;
		fprintf(f, "  <method name=\"%s\">\n", m->member);
		put_args(f, m->in, &names, "in");
		put_args(f, m->out, &names, "out");
		fprintf(f, "  </method>\n");
	}
	for (const struct bus_property *p = i->properties; p && p->name; p++) {
		fprintf(f, "  <property name=\"%s\" type=\"%s\" access=\"read\">\n", p->name, p->type);
		fprintf(f, "   <annotation name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=\"%s\"/>\n",
			p->changes == BUS_SILENT ? "false"
			: p->changes             ? "true"
						 : "const");
		fprintf(f, "  </property>\n");
	}
	for (const struct bus_signal *s = i->signals; s && s->name; s++) {
		names = s->args;
		fprintf(f, "  <signal name=\"%s\">\n", s->name);
		put_args(f, s->type, &names, NULL);
		fprintf(f, "  </signal>\n");
	}
	fprintf(f, " </interface>\n");
}

static void put_node(FILE *f, const char *path)
{
	fprintf(f, " <node name=\"%s\"/>\n", strrchr(path, '/') + 1);
}

static int put_children(FILE *f, struct call *c)
{
	struct ids_seen ids = {.b = c->b, .by = c->from};
	char path[BUS_PATH_MAX];
	struct look look;
	int r;

	switch (c->look.at.node) {
	case NODE_ROOT:
		put_node(f, path_of_node(NODE_ORG));
		return 0;
	case NODE_ORG:
		put_node(f, path_of_node(NODE_MANAGER));
		return 0;
	case NODE_MANAGER:
		put_node(f, path_of_node(NODE_DEVICES));
		put_node(f, path_of_node(NODE_CONTEXTS));
		return 0;
	case NODE_DEVICES:
		for (uint32_t i = 0; look_at_device(c->b, c->from, i, &look); i++) {
			path_of_device(look.device.name, path);
			put_node(f, path);
		}
		return 0;
	case NODE_CONTEXTS:
		r = note_ids(&ids);
		for (size_t i = 0; r == 0 && i < ids.n; i++) {
			path_of_context(ids.v[i], path);
			put_node(f, path);
		}
		if (r == 0)
			free(ids.v);
		return r;
	default:
		return 0;
	}
}

int listing_introspect(struct call *c)
{
	const struct bus_interface *const *i;
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);
	int r;

	if (!f)
		return -errno;
	fputs("<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n"
	      " \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n",
	      f);
	for (i = object_interfaces(c->look.at.node); *i; i++)
		put_interface(f, *i);
	r = put_children(f, c);
	fputs("</node>\n", f);
	if (fclose(f) != 0 && r == 0)
		r = -errno;
	if (r == 0)
		r = sd_bus_reply_method_return(c->m, "s", text);
	free(text);
	return r;
}

/* ---- in pieces ---- */

struct listing {
	TAILQ_ENTRY(listing) link;
	struct sender *by;
	sd_bus_message *call;
	sd_bus_message *reply; /* GetManagedObjects */
	struct json_object *state; /* GetState */
	struct ids_seen contexts;
	uint32_t device; /* the next one */
	size_t context;
};

static void listing_free(struct listing *l)
{
	struct dbus *b = l->by->b;

	TAILQ_REMOVE(&b->listings, l, link);
	b->n_listings--;
	l->by->n_listings--;
	sd_bus_message_unref(l->call);
	sd_bus_message_unref(l->reply);
	json_object_put(l->state);
	free(l->contexts.v);
	free(l);
}

static int append_object(struct listing *l, const struct look *look)
{
	char path[BUS_PATH_MAX];
	int r;

	if (look->at.node == NODE_DEVICE)
		path_of_device(look->device.name, path);
	else
		path_of_context(look->at.id, path);
	r = sd_bus_message_open_container(l->reply, 'e', "oa{sa{sv}}");
	if (r >= 0)
		r = sd_bus_message_append(l->reply, "o", path);
	if (r >= 0)
		r = object_append_all(look, l->reply);
	return r < 0 ? r : sd_bus_message_close_container(l->reply);
}

static int add_object(struct listing *l, const struct look *look)
{
	const char *key = look->at.node == NODE_DEVICE ? "devices" : "contexts";
	struct json_object *o, *list;

	if (l->reply)
		return append_object(l, look);
	o = json_of_properties(look);
	if (!o || !json_object_object_get_ex(l->state, key, &list))
		return -ENOMEM;
	return json_object_array_add(list, o) < 0 ? -ENOMEM : 0;
}

/* True: there is something left. */
static bool one_object(struct listing *l, int *error)
{
	struct dbus *b = l->by->b;
	struct look look;

	if (look_at_device(b, l->by, l->device, &look)) {
		l->device++;
	} else if (l->context < l->contexts.n) {
		if (!look_at_context(b, l->by, l->contexts.v[l->context++], &look))
			return true;
	} else {
		return false;
	}
	*error = add_object(l, &look);
	return *error >= 0;
}

static int finish(struct listing *l)
{
	int r;

	if (!l->reply)
		return sd_bus_reply_method_return(
			l->call, "s",
			json_object_to_json_string_ext(l->state,
						       JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	r = sd_bus_message_close_container(l->reply);
	return r < 0 ? r : sd_bus_send(l->by->b->bus, l->reply, NULL);
}

static void go_on(struct listing *l)
{
	bool more = true;
	int r = 0;

	for (uint32_t i = 0; i < PIECE && more; i++)
		more = one_object(l, &r);
	if (r >= 0 && more) {
		/* Behind the others that are being made. */
		TAILQ_REMOVE(&l->by->b->listings, l, link);
		TAILQ_INSERT_TAIL(&l->by->b->listings, l, link);
		return;
	}
	if (r >= 0)
		r = finish(l);
	if (r < 0)
		refuse_call(l->call, "QuotaExceeded", "pasidd has no memory left for this answer; ask for less");
	link_soon(l->by->b);
	listing_free(l);
}

static void soon(struct dbus *b)
{
	static const struct timeval at_once = {0, 0};

	if (!TAILQ_EMPTY(&b->listings))
		evtimer_add(b->list, &at_once);
}

void listing_go_on(evutil_socket_t fd, short what, void *arg)
{
	struct dbus *b = arg;

	if (!TAILQ_EMPTY(&b->listings))
		go_on(TAILQ_FIRST(&b->listings));
	soon(b);
}

static bool too_many(struct call *c)
{
	struct listing *l;
	uint32_t n = 0;

	TAILQ_FOREACH (l, &c->b->listings, link)
		n += l->by->who.uid == c->from->who.uid;
	return n >= LISTINGS_UID_MAX || c->b->n_listings == LISTINGS_MAX;
}

static int begin(struct call *c, struct listing **ret)
{
	struct listing *l;
	int r;

	if (too_many(c))
		return refuse_call(c->m, "TooManyCalls",
				   "this user waits for %u answers of this size already; wait for one of them",
				   LISTINGS_UID_MAX);
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->by = c->from;
	l->call = sd_bus_message_ref(c->m);
	l->contexts = (struct ids_seen){.b = c->b, .by = c->from};
	TAILQ_INSERT_TAIL(&c->b->listings, l, link);
	c->b->n_listings++;
	c->from->n_listings++;
	r = note_ids(&l->contexts);
	if (r < 0) {
		l->contexts.v = NULL;
		listing_free(l);
		return r;
	}
	*ret = l;
	soon(c->b);
	return 1;
}

int listing_objects(struct call *c)
{
	struct listing *l;
	int r = begin(c, &l);

	if (r <= 0)
		return r;
	r = sd_bus_message_new_method_return(c->m, &l->reply);
	if (r >= 0)
		r = sd_bus_message_open_container(l->reply, 'a', "{oa{sa{sv}}}");
	if (r < 0)
		listing_free(l);
	return r;
}

int listing_state(struct call *c)
{
	struct listing *l;
	int r = begin(c, &l);

	if (r <= 0)
		return r;
	l->state = json_of_properties(&c->look);
	if (!l->state || json_object_object_add(l->state, "devices", json_object_new_array()) < 0 ||
	    json_object_object_add(l->state, "contexts", json_object_new_array()) < 0) {
		listing_free(l);
		return -ENOMEM;
	}
	return 0;
}

void listing_drop(struct dbus *b, struct sender *of)
{
	struct listing *l, *next;

	TAILQ_FOREACH_SAFE (l, &b->listings, link, next)
		if (l->by == of)
			listing_free(l);
}

void listing_drop_all(struct dbus *b)
{
	while (!TAILQ_EMPTY(&b->listings))
		listing_free(TAILQ_FIRST(&b->listings));
}
