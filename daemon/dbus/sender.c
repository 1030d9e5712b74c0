/* SPDX-License-Identifier: MIT */
/*
 * Who calls: the bus is asked once for each name, without waiting for the answer, and its answer holds until the name is
 * gone. Meanwhile the name's calls wait in order. A bus gives a name to nobody else later; so what a name has here outlives a
 * connection to the bus, if that is the same bus and it still knows the name.
 */
#include "dbus/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define GROUPS_MAX 65536u /* of a process, NGROUPS_MAX */

static uint32_t bucket_of(const char *name)
{
	uint32_t h = 2166136261u;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 16777619u;
	return h % SENDER_BUCKETS;
}

static struct sender *sender_find(struct dbus *b, const char *name)
{
	struct sender *s;

	LIST_FOREACH (s, &b->buckets[bucket_of(name)], in_bucket)
		if (!strcmp(s->name, name))
			return s;
	return NULL;
}

/* ---- ends ---- */

static sd_bus_message *take_waiting(struct sender *s)
{
	struct waiting *w = STAILQ_FIRST(&s->waiting);
	sd_bus_message *m;

	if (!w)
		return NULL;
	m = w->m;
	STAILQ_REMOVE_HEAD(&s->waiting, link);
	s->n_waiting--;
	s->b->n_waiting--;
	free(w);
	return m;
}

static void drop_calls(struct sender *s)
{
	sd_bus_message *m;

	s->asking = sd_bus_slot_unref(s->asking);
	while ((m = take_waiting(s)))
		sd_bus_message_unref(m);
}

static void sender_free(struct sender *s)
{
	struct dbus *b = s->b;

	listing_drop(b, s);
	signals_forget(b, s);
	s->caller = caller_free(s->caller);
	if (s->tracing)
		service_trace_close(b->service);
	drop_calls(s);
	LIST_REMOVE(s, in_bucket);
	TAILQ_REMOVE(&b->senders, s, in_age);
	b->n_senders--;
	free(s->gids);
	free(s);
}

void sender_gone(struct dbus *b, const char *name)
{
	struct sender *s = sender_find(b, name);

	if (s)
		sender_free(s);
}

void sender_drop_all(struct dbus *b)
{
	while (!TAILQ_EMPTY(&b->senders))
		sender_free(TAILQ_FIRST(&b->senders));
}

void sender_drop_unsure(struct dbus *b)
{
	struct sender *s, *next;

	TAILQ_FOREACH_SAFE (s, &b->senders, in_age, next)
		if (s->unsure)
			sender_free(s);
}

void sender_suspend_all(struct dbus *b)
{
	struct sender *s, *next;

	TAILQ_FOREACH_SAFE (s, &b->senders, in_age, next) {
		drop_calls(s);
		if (!s->caller && !s->subscribed) {
			sender_free(s);
			continue;
		}
		s->known = false;
		s->unsure = true;
		if (s->caller)
			caller_suspend(s->caller);
	}
}

/* ---- how it comes ---- */

static bool has_something(const struct sender *s)
{
	return !s->known || s->caller || s->subscribed || s->n_listings || s->n_waiting || s->tracing;
}

/* Those who only looked are asked about again if they come back. */
static bool make_room(struct dbus *b)
{
	struct sender *s;

	if (b->n_senders < SENDERS_MAX)
		return true;
	TAILQ_FOREACH (s, &b->senders, in_age) {
		if (has_something(s))
			continue;
		sender_free(s);
		return true;
	}
	return false;
}

static int on_credentials(sd_bus_message *m, void *arg, sd_bus_error *error);

static int ask(struct sender *s)
{
	return sd_bus_call_method_async(s->b->bus, &s->asking, "org.freedesktop.DBus", "/org/freedesktop/DBus",
					"org.freedesktop.DBus", "GetConnectionCredentials", on_credentials, s, "s",
					s->name);
}

void sender_resume_all(struct dbus *b)
{
	struct sender *s, *next;

	TAILQ_FOREACH_SAFE (s, &b->senders, in_age, next)
		if (s->unsure && ask(s) < 0)
			sender_free(s);
}

static void sender_enter(struct sender *s)
{
	struct dbus *b = s->b;

	LIST_INSERT_HEAD(&b->buckets[bucket_of(s->name)], s, in_bucket);
	TAILQ_INSERT_TAIL(&b->senders, s, in_age);
	b->n_senders++;
}

static struct sender *sender_new(struct dbus *b, const char *name)
{
	struct sender *s = make_room(b) ? calloc(1, sizeof(*s) + strlen(name) + 1) : NULL;

	if (!s)
		return NULL;
	s->b = b;
	strcpy(s->name, name);
	STAILQ_INIT(&s->waiting);
	if (ask(s) < 0) {
		free(s);
		return NULL;
	}
	sender_enter(s);
	return s;
}

/* One that had something with a process that is gone. */
struct sender *sender_adopt(struct dbus *b, const char *name, uid_t uid, pid_t pid)
{
	struct sender *s = make_room(b) ? calloc(1, sizeof(*s) + strlen(name) + 1) : NULL;

	if (!s)
		return NULL;
	s->b = b;
	s->unsure = true;
	s->who = (struct who){.uid = uid, .pid = pid};
	strcpy(s->name, name);
	STAILQ_INIT(&s->waiting);
	sender_enter(s);
	return s;
}

/* ---- the answer ---- */

struct credentials {
	uint32_t uid, pid;
	bool has_uid;
	gid_t *gids;
	size_t n_gids;
};

static int read_groups(sd_bus_message *m, struct credentials *c)
{
	const void *v;
	size_t n;
	int r = sd_bus_message_read_array(m, 'u', &v, &n);

	if (r < 0)
		return r;
	if (c->gids || n / sizeof(gid_t) > GROUPS_MAX)
		return -EMSGSIZE;
	c->gids = malloc(n + 1);
	if (!c->gids)
		return -ENOMEM;
	_Static_assert(sizeof(gid_t) == sizeof(uint32_t), "as on the wire");
	memcpy(c->gids, v, n);
	c->n_gids = n / sizeof(gid_t);
	return 0;
}

static int read_credential(sd_bus_message *m, struct credentials *c)
{
	const char *key;
	int r = sd_bus_message_read(m, "s", &key);

	if (r < 0)
		return r;
	if (!strcmp(key, "UnixUserID")) {
		r = sd_bus_message_read(m, "v", "u", &c->uid);
		c->has_uid = r >= 0;
	} else if (!strcmp(key, "ProcessID")) {
		r = sd_bus_message_read(m, "v", "u", &c->pid);
	} else if (!strcmp(key, "UnixGroupIDs")) {
		r = sd_bus_message_enter_container(m, 'v', "au");
		if (r >= 0)
			r = read_groups(m, c);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	} else {
		r = sd_bus_message_skip(m, "v");
	}
	return r;
}

static int read_credentials(sd_bus_message *m, struct credentials *c)
{
	int r;

	if (sd_bus_message_is_method_error(m, NULL))
		return -ESRCH;
	r = sd_bus_message_enter_container(m, 'a', "{sv}");
	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = read_credential(m, c);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	return r < 0 ? r : c->has_uid ? 0 : -EPERM;
}

/* Nobody is served whom the bus does not vouch for. */
static void turn_away(struct sender *s)
{
	sd_bus_message *m;

	while ((m = take_waiting(s))) {
		refuse_call(m, "AccessDenied", "the bus does not say who calls; try again");
		sd_bus_message_unref(m);
	}
	sender_free(s);
}

static int on_credentials(sd_bus_message *m, void *arg, sd_bus_error *error)
{
	struct sender *s = arg;
	struct credentials c = {0};
	sd_bus_message *call;
	int r = read_credentials(m, &c);

	s->asking = sd_bus_slot_unref(s->asking);
	free(s->gids);
	s->gids = c.gids;
	s->n_gids = c.n_gids;
	if (r < 0 || (s->unsure && c.uid != s->who.uid)) {
		turn_away(s);
		return 0;
	}
	s->known = true;
	s->unsure = false;
	s->who = (struct who){.uid = c.uid, .pid = (pid_t)c.pid};
	s->who.admin = admins_have(s->b, s);
	while ((call = take_waiting(s))) {
		object_call(s->b, s, call);
		sd_bus_message_unref(call);
	}
	return 0;
}

/* ---- calls ---- */

static int wait_for_answer(struct sender *s, sd_bus_message *m)
{
	struct waiting *w;

	if (s->n_waiting == WAITING_MAX || s->b->n_waiting == WAITING_ALL_MAX)
		return refuse_call(
			m, "TooManyCalls",
			"%u calls of this name wait, and %u of all, until the bus has said who calls; try again",
			s->n_waiting, s->b->n_waiting);
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->m = sd_bus_message_ref(m);
	STAILQ_INSERT_TAIL(&s->waiting, w, link);
	s->n_waiting++;
	s->b->n_waiting++;
	return 0;
}

void sender_call(struct dbus *b, sd_bus_message *m)
{
	const char *name = sd_bus_message_get_sender(m);
	struct sender *s = sender_find(b, name);

	if (!s)
		s = sender_new(b, name);
	if (!s) {
		refuse_call(m, "TooManyCalls", "%u bus names have something here, and no more can be served; try again",
			    b->n_senders);
		return;
	}
	TAILQ_REMOVE(&b->senders, s, in_age);
	TAILQ_INSERT_TAIL(&b->senders, s, in_age);
	if (s->known)
		object_call(b, s, m);
	else
		wait_for_answer(s, m);
}
