/* SPDX-License-Identifier: MIT */
/*
 * What is told without being asked: to those who subscribed, of what they may see, and to the bus name that made a context.
 * Each is sent its own message; nothing is broadcast. The service's words are notes here, sent a few times a second, so that
 * what changes often costs little; a signal that the bus would have to queue behind many is dropped, and counted.
 */
#include "dbus/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define TICK_MS 100
#define PROPERTIES_NS 300000000u /* between two messages about one object's properties */
#define OBJECTS_A_TICK 256u
#define DIRTY_MAX \
	4096u /* contexts that wait for a bus that takes nothing; beyond that what would be told of them is dropped */
#define FAULTS_A_TICK 16u /* of one context */

struct watched { /* a context of which somebody may want to hear */
	TAILQ_ENTRY(watched) all; /* in dbus.watched */
	TAILQ_ENTRY(watched) link; /* in dbus.dirty */
	uint32_t id;
	uid_t uid;
	bool opaque;
	const struct service_client *client;
	bool dirty;
	bool made; /* and nobody was told yet */
	bool gone;
	uint32_t changes;
	bool switched;
	uint32_t faults; /* told since the last tick */
	uint64_t told_ns; /* of properties */
};

static bool anybody(const struct dbus *b)
{
	return b->n_subscribers || b->n_callers;
}

static void arm(struct dbus *b)
{
	static const struct timeval tv = {0, TICK_MS * 1000};

	if (!evtimer_pending(b->tick, NULL))
		evtimer_add(b->tick, &tv);
}

/* ---- sending ---- */

typedef int (*append_fn)(sd_bus_message *m, const struct look *l, const void *arg);

struct note {
	const char *path, *interface, *member;
	append_fn append;
	const void *arg;
};

static void send_one(struct dbus *b, struct sender *to, const struct note *n, const struct look *l)
{
	sd_bus_message *m = NULL;
	int r;

	if (link_crowded(b)) {
		b->dropped++;
		return;
	}
	r = sd_bus_message_new_signal(b->bus, &m, n->path, n->interface, n->member);
	if (r >= 0)
		r = sd_bus_message_set_destination(m, to->name);
	if (r >= 0)
		r = n->append(m, l, n->arg);
	if (r >= 0)
		r = sd_bus_send(b->bus, m, NULL);
	if (r < 0)
		b->dropped++;
	sd_bus_message_unref(m);
}

/* Of a context that is there still: to whom, and with what they see of it. */
static void send_context(struct dbus *b, const struct watched *w, const struct note *n)
{
	struct caller *maker = caller_find(b, w->client);
	struct look look;
	struct sender *s;

	TAILQ_FOREACH (s, &b->subscribers, in_subscribers)
		if (look_at_context(b, s, w->id, &look))
			send_one(b, s, n, &look);
	if (maker && !maker->sender->subscribed && look_at_context(b, maker->sender, w->id, &look))
		send_one(b, maker->sender, n, &look);
}

/* ---- contexts ---- */

static int append_changed(sd_bus_message *m, const struct look *l, const void *arg)
{
	const struct bus_interface *i = *object_interfaces(l->at.node);
	int r = sd_bus_message_append(m, "s", i->name);

	if (r >= 0)
		r = object_append_properties(i, l, m, *(const uint32_t *)arg, false);
	return r < 0 ? r : sd_bus_message_append(m, "as", 0);
}

static int append_added(sd_bus_message *m, const struct look *l, const void *arg)
{
	int r = sd_bus_message_append(m, "o", (const char *)arg);

	return r < 0 ? r : object_append_all(l, m);
}

static int append_removed(sd_bus_message *m, const struct look *l, const void *arg)
{
	return sd_bus_message_append(m, "oas", (const char *)arg, 4, "org.pasidd.Context1",
				     "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.Introspectable",
				     "org.freedesktop.DBus.Peer");
}

static int append_switched(sd_bus_message *m, const struct look *l, const void *arg)
{
	return sd_bus_message_append(m, "tt", l->context.switches, l->context.device_time);
}

static int append_lost(sd_bus_message *m, const struct look *l, const void *arg)
{
	return sd_bus_message_append(m, "st", l->context.lost_reason, l->context.lost_job);
}

static int append_fault(sd_bus_message *m, const struct look *l, const void *arg)
{
	const struct pasid_wire_fault *f = arg;

	return sd_bus_message_append(m, "ttss(tt)(tt)t", f->job, f->addr, context_access(f->access),
				     context_code(f->code), f->near_first, f->near_last, f->gone_first, f->gone_last,
				     f->gone_age_ns);
}

static void tell_added(struct dbus *b, struct watched *w)
{
	char path[BUS_PATH_MAX];
	const struct note n = {path_of_node(NODE_MANAGER), "org.freedesktop.DBus.ObjectManager", "InterfacesAdded",
			       append_added, path};

	path_of_context(w->id, path);
	send_context(b, w, &n);
	w->made = false;
	w->changes = 0;
}

/* It cannot be looked at any more; who may hear of it was noted before. */
static void tell_removed(struct dbus *b, const struct watched *w)
{
	struct caller *maker = caller_find(b, w->client);
	char path[BUS_PATH_MAX];
	const struct note n = {path_of_node(NODE_MANAGER), "org.freedesktop.DBus.ObjectManager", "InterfacesRemoved",
			       append_removed, path};
	struct sender *s;

	path_of_context(w->id, path);
	TAILQ_FOREACH (s, &b->subscribers, in_subscribers)
		if (look_allowed(s, w->uid, w->opaque, w->client))
			send_one(b, s, &n, NULL);
	if (maker && !maker->sender->subscribed)
		send_one(b, maker->sender, &n, NULL);
}

static void tell_signal(struct dbus *b, struct watched *w, const char *member, append_fn append, const void *arg)
{
	char path[BUS_PATH_MAX];
	const struct note n = {path, context_interface.name, member, append, arg};

	if (w->made)
		tell_added(b, w);
	path_of_context(w->id, path);
	send_context(b, w, &n);
	link_soon(b);
}

static void tell_changed(struct dbus *b, struct watched *w)
{
	char path[BUS_PATH_MAX];
	const struct note n = {path, "org.freedesktop.DBus.Properties", "PropertiesChanged", append_changed,
			       &w->changes};

	path_of_context(w->id, path);
	send_context(b, w, &n);
	w->changes = 0;
	w->told_ns = util_now_ns();
}

/* ---- notes ---- */

static struct watched *watch_new(struct dbus *b, uint32_t id)
{
	struct inspect_context v;
	struct watched *w;

	if (!anybody(b) || !inspect_context(b->service, id, &v))
		return NULL;
	w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	*w = (struct watched){.id = id, .uid = v.uid, .opaque = v.opaque, .client = v.client};
	if (idmap_add(&b->watched_ids, id, w) < 0) {
		free(w);
		return NULL;
	}
	TAILQ_INSERT_TAIL(&b->watched, w, all);
	return w;
}

/* NULL: nobody wants to hear of it. */
static struct watched *watch(struct dbus *b, uint32_t id)
{
	struct watched *w = idmap_find(&b->watched_ids, id);

	return w ? w : watch_new(b, id);
}

static void set_dirty(struct dbus *b, struct watched *w, bool dirty)
{
	if (w->dirty == dirty)
		return;
	if (dirty) {
		TAILQ_INSERT_TAIL(&b->dirty, w, link);
		b->n_dirty++;
	} else {
		TAILQ_REMOVE(&b->dirty, w, link);
		b->n_dirty--;
	}
	w->dirty = dirty;
}

static void unwatch(struct dbus *b, struct watched *w)
{
	set_dirty(b, w, false);
	TAILQ_REMOVE(&b->watched, w, all);
	idmap_remove(&b->watched_ids, w->id);
	free(w);
}

static void mark(struct dbus *b, struct watched *w)
{
	set_dirty(b, w, true);
	arm(b);
}

static void on_made(void *arg, uint32_t id)
{
	struct watched *w = watch(arg, id);

	if (!w)
		return;
	w->made = true;
	mark(arg, w);
}

static void on_changed(void *arg, uint32_t id, uint32_t what)
{
	struct watched *w = watch(arg, id);

	if (!w)
		return;
	w->changes |= what;
	w->switched |= (what & SERVICE_RUNS) != 0;
	mark(arg, w);
}

static void on_fault(void *arg, uint32_t id, const struct pasid_wire_fault *f)
{
	struct watched *w = watch(arg, id);
	struct dbus *b = arg;

	if (!w)
		return;
	w->changes |= SERVICE_FAULTS;
	mark(b, w);
	if (w->faults++ < FAULTS_A_TICK)
		tell_signal(b, w, "Fault", append_fault, f);
	else
		b->dropped++;
}

static void waiter_free(struct dbus *b, struct waiter *w)
{
	TAILQ_REMOVE(&b->waiters, w, link);
	b->n_waiters--;
	sd_bus_message_unref(w->m);
	free(w);
}

static void answer_waiters(struct dbus *b, enum waiter_kind kind, uint32_t id, bool gone)
{
	static const struct refusal no_device = {.reason = PASID_WHY_DEVICE_GONE};
	struct waiter *w, *next;

	TAILQ_FOREACH_SAFE (w, &b->waiters, link, next) {
		if (w->kind != kind || w->id != id)
			continue;
		if (gone)
			refuse_why(w->m, &no_device);
		else
			sd_bus_reply_method_return(w->m, "");
		waiter_free(b, w);
		link_soon(b);
	}
}

static void on_lost(void *arg, uint32_t id)
{
	struct watched *w = watch(arg, id);
	struct dbus *b = arg;

	answer_waiters(b, WAIT_CONTEXT, id, false);
	if (!w)
		return;
	w->changes |= SERVICE_STATE;
	mark(b, w);
	tell_signal(b, w, "Lost", append_lost, NULL);
}

/* Whoever was not told that it came is not told that it went. */
static void on_gone(void *arg, uint32_t id)
{
	struct dbus *b = arg;
	struct watched *w = watch(b, id);

	answer_waiters(b, WAIT_CONTEXT, id, false);
	if (!w)
		return;
	if (w->made) {
		unwatch(b, w);
		return;
	}
	w->gone = true;
	mark(b, w);
}

static void on_device(void *arg, uint32_t index)
{
	struct dbus *b = arg;
	struct inspect_device v;

	if (b->n_waiters && inspect_device(b->service, index, &v) && !v.resetting)
		answer_waiters(b, WAIT_DEVICE, index, v.gone);
	if (!b->n_subscribers)
		return;
	b->dirty_devices |= 1ull << index;
	arm(b);
}

const struct service_observer signals_observer = {
	.context_made = on_made,
	.context_changed = on_changed,
	.context_fault = on_fault,
	.context_lost = on_lost,
	.context_gone = on_gone,
	.device_changed = on_device,
};

/* ---- the tick ---- */

/* True: something is left for another tick. */
static bool tell_context(struct dbus *b, struct watched *w)
{
	w->faults = 0;
	if (w->made)
		tell_added(b, w);
	if (w->switched)
		tell_signal(b, w, "Switched", append_switched, NULL);
	w->switched = false;
	if (w->changes && util_now_ns() - w->told_ns >= PROPERTIES_NS)
		tell_changed(b, w);
	return w->changes != 0;
}

static void tell_devices(struct dbus *b)
{
	static const uint32_t all = 1;
	uint64_t now = util_now_ns(), dirty = b->dirty_devices;
	char path[BUS_PATH_MAX];
	const struct note n = {path, "org.freedesktop.DBus.Properties", "PropertiesChanged", append_changed, &all};

	for (uint32_t i = 0; dirty && !link_crowded(b); i++, dirty >>= 1) {
		struct look look;
		struct sender *s;

		if (!(dirty & 1) || now - b->device_told_ns[i] < PROPERTIES_NS)
			continue;
		b->device_told_ns[i] = now;
		b->dirty_devices &= ~(1ull << i);
		TAILQ_FOREACH (s, &b->subscribers, in_subscribers) {
			if (!look_at_device(b, s, i, &look))
				continue;
			path_of_device(look.device.name, path);
			send_one(b, s, &n, &look);
		}
	}
}

/* The next one in turn; false: the bus takes nothing at the moment, and what there is to tell can wait. */
static bool tell_next(struct dbus *b, struct watched *w)
{
	if (link_crowded(b) && b->n_dirty < DIRTY_MAX)
		return false;
	if (w->gone) {
		tell_removed(b, w);
		unwatch(b, w);
		return true;
	}
	set_dirty(b, w, false);
	set_dirty(b, w, tell_context(b, w));
	return true;
}

void signals_tick(evutil_socket_t fd, short what, void *arg)
{
	struct dbus *b = arg;
	uint32_t n = b->n_dirty < OBJECTS_A_TICK ? b->n_dirty : OBJECTS_A_TICK;

	while (n-- && tell_next(b, TAILQ_FIRST(&b->dirty)))
		;
	tell_devices(b);
	if (b->n_dirty || b->dirty_devices)
		arm(b);
	link_soon(b);
}

/* ---- who hears ---- */

/* 1: it has come about; -ENODEV: it will not. */
static int came_about(struct dbus *b, enum waiter_kind kind, uint32_t id)
{
	struct inspect_context context;
	struct inspect_device device;

	if (kind == WAIT_CONTEXT)
		return !inspect_context(b->service, id, &context) || context.at_rest;
	if (!inspect_device(b->service, id, &device) || device.gone)
		return -ENODEV;
	return !device.resetting;
}

int signals_wait(struct call *c, enum waiter_kind kind, uint32_t id)
{
	const struct refusal gone = {.reason = PASID_WHY_DEVICE_GONE};
	struct waiter *w;
	int r = came_about(c->b, kind, id);

	if (r)
		return r > 0 ? sd_bus_reply_method_return(c->m, "") : refuse_why(c->m, &gone);
	if (c->b->n_waiters == WAITERS_MAX)
		return refuse_call(c->m, "TooManyCalls",
				   "it is under way, but %u calls wait for an end of that kind, which is the most",
				   WAITERS_MAX);
	w = malloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct waiter){.kind = kind, .id = id, .m = sd_bus_message_ref(c->m)};
	TAILQ_INSERT_TAIL(&c->b->waiters, w, link);
	c->b->n_waiters++;
	return 0;
}

void signals_drop_all(struct dbus *b)
{
	while (!TAILQ_EMPTY(&b->waiters))
		waiter_free(b, TAILQ_FIRST(&b->waiters));
	while (!TAILQ_EMPTY(&b->watched))
		unwatch(b, TAILQ_FIRST(&b->watched));
	idmap_fini(&b->watched_ids);
	b->dirty_devices = 0;
	evtimer_del(b->tick);
}

int signals_subscribe(struct call *c)
{
	struct dbus *b = c->b;
	struct sender *s;
	uint32_t n = 0;

	TAILQ_FOREACH (s, &b->subscribers, in_subscribers)
		n += s->who.uid == c->from->who.uid;
	if (!c->from->subscribed && (n == SUBSCRIBERS_UID_MAX || b->n_subscribers == SUBSCRIBERS_MAX))
		return refuse_call(c->m, "TooManyCalls",
				   "%u bus names of uid %u have subscribed, and %u of all; unsubscribe one of them", n,
				   c->from->who.uid, b->n_subscribers);
	if (!c->from->subscribed) {
		TAILQ_INSERT_TAIL(&b->subscribers, c->from, in_subscribers);
		b->n_subscribers++;
	}
	c->from->subscribed = true;
	return sd_bus_reply_method_return(c->m, "");
}

void signals_forget(struct dbus *b, struct sender *s)
{
	if (!s->subscribed)
		return;
	TAILQ_REMOVE(&b->subscribers, s, in_subscribers);
	b->n_subscribers--;
	s->subscribed = false;
}

int signals_unsubscribe(struct call *c)
{
	signals_forget(c->b, c->from);
	return sd_bus_reply_method_return(c->m, "");
}
