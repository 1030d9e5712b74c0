/* SPDX-License-Identifier: MIT */
/*
 * The connection to the bus, in the event loop: sd-bus says which fd it waits for, for what and until when. Nothing here
 * blocks: connecting, the name and the match are begun, and their answers come like everything else.
 *
 * When the connection is gone it is tried again. What bus names had is kept for KEEP_S: if it is the same bus then, each is asked
 * about; if not, nobody could say whose it is, and it goes. A bus that takes nothing (dbus-daemon does so for somebody else
 * who does not read, once that one has been sent enough fds) is left and entered anew.
 */
#include "dbus/private.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "dbus/wire.h"

#define TURN 32 /* messages before others get a look in */
#define TURN_NS 2000000u /* ... and no longer than that */
#define BACKOFF_FIRST_MS 100u
#define BACKOFF_MAX_MS 5000u
#define KEEP_S 5
#define WATCH_S 1
#define STALL_NS 5000000000u
#define MATCH_GONE                                                                  \
	"type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus'," \
	"interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''"

static void link_open(struct dbus *b);

/* ---- waiting ---- */

static void io_drop(struct dbus *b)
{
	if (b->io)
		event_free(b->io);
	b->io = NULL;
}

static uint32_t queued(const struct dbus *b)
{
	uint64_t n = 0;

	return b->bus && sd_bus_get_n_queued_write(b->bus, &n) >= 0 ? (uint32_t)n : 0;
}

bool link_crowded(const struct dbus *b)
{
	return !b->named || queued(b) >= OUT_SIGNALS_MAX;
}

void link_soon(struct dbus *b)
{
	static const struct timeval at_once = {0, 0};

	if (b->bus)
		evtimer_add(b->timer, &at_once);
}

static void on_io(evutil_socket_t fd, short what, void *arg);

static int wait_for(struct dbus *b, int fd, short what)
{
	if (b->io && fd == b->io_fd && what == b->io_what)
		return 0;
	io_drop(b);
	b->io_fd = fd;
	b->io_what = what;
	if (!what)
		return 0;
	b->io = event_new(b->base, fd, (short)(what | EV_PERSIST), on_io, b);
	return b->io && event_add(b->io, NULL) == 0 ? 0 : -ENOMEM;
}

static void wait_until(struct dbus *b, uint64_t until_us)
{
	uint64_t now = util_now_ns() / 1000;
	uint64_t wait = until_us > now ? until_us - now : 0;
	struct timeval tv = {(time_t)(wait / 1000000), (suseconds_t)(wait % 1000000)};

	if (until_us == UINT64_MAX)
		evtimer_del(b->timer);
	else
		evtimer_add(b->timer, &tv);
}

/* A second after something was said: has it been taken? */
static void watch(struct dbus *b)
{
	static const struct timeval tv = {WATCH_S, 0};

	if (!evtimer_pending(b->retry, NULL))
		evtimer_add(b->retry, &tv);
}

/* While the bus takes nothing, nothing is read either: an answer might be owed to it. */
static int rearm(struct dbus *b)
{
	bool full = queued(b) >= OUT_MAX;
	int events = sd_bus_get_events(b->bus), fd = sd_bus_get_fd(b->bus);
	uint64_t until = UINT64_MAX;
	short what = 0;
	int r = sd_bus_get_timeout(b->bus, &until);

	if (events < 0 || fd < 0 || r < 0)
		return events < 0 ? events : fd < 0 ? fd : r;
	if ((events & POLLIN) && !full)
		what |= EV_READ;
	if ((events & POLLOUT) || full)
		what |= EV_WRITE;
	watch(b);
	wait_until(b, full ? UINT64_MAX : until);
	return wait_for(b, fd, what);
}

/* ---- its end, and again ---- */

static void link_close(struct dbus *b, bool keep)
{
	io_drop(b);
	evtimer_del(b->timer);
	evtimer_del(b->retry);
	listing_drop_all(b);
	signals_drop_all(b);
	if (keep)
		sender_suspend_all(b);
	else
		sender_drop_all(b);
	b->named = false;
	if (b->bus)
		sd_bus_close(b->bus);
	b->bus = sd_bus_unref(b->bus);
	b->wire = wire_close(b->wire);
}

static void try_later(struct dbus *b)
{
	struct timeval tv = {b->backoff_ms / 1000, (b->backoff_ms % 1000) * 1000};

	evtimer_add(b->retry, &tv);
	b->backoff_ms = 2 * b->backoff_ms > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : 2 * b->backoff_ms;
}

static void link_lost(struct dbus *b, const char *why)
{
	static const struct timeval keep = {KEEP_S, 0};

	if (!b->said)
		log_warn("D-Bus (%s): %s; pasidd runs on without it and tries again every %u ms at the latest",
			 b->where, why, BACKOFF_MAX_MS);
	b->said = true;
	link_close(b, true);
	if (!evtimer_pending(b->forget, NULL))
		evtimer_add(b->forget, &keep);
	try_later(b);
}

/* ---- work ---- */

/* As much as there is, but no longer than others can wait, and no further than answers find room. */
static void work(struct dbus *b)
{
	uint64_t until = util_now_ns() + TURN_NS;
	int r = 1;

	for (int i = 0; i < TURN && r > 0 && util_now_ns() < until; i++) {
		r = sd_bus_process(b->bus, NULL);
		if (r > 0 && queued(b) >= OUT_MAX)
			break;
	}
	if (r >= 0 && sd_bus_is_open(b->bus) <= 0)
		r = -ECONNRESET;
	if (r >= 0)
		r = rearm(b);
	if (r < 0)
		link_lost(b, b->named ? "the bus is gone" : strerror(-r));
}

static void on_io(evutil_socket_t fd, short what, void *arg)
{
	work(arg);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct dbus *b = arg;

	if (queued(b) >= OUT_MAX)
		rearm(b);
	else
		work(b);
}

static int on_message(sd_bus_message *m, void *arg, sd_bus_error *error)
{
	struct dbus *b = arg;

	if (!sd_bus_message_is_method_call(m, NULL, NULL) || !sd_bus_message_get_sender(m))
		return 0;
	if (sd_bus_message_is_method_call(m, "org.freedesktop.DBus.Peer", NULL))
		return 0; /* sd-bus knows */
	sender_call(b, m);
	return 1;
}

static int on_gone(sd_bus_message *m, void *arg, sd_bus_error *error)
{
	const char *name, *before, *after;

	if (sd_bus_message_read(m, "sss", &name, &before, &after) >= 0 && !after[0])
		sender_gone(arg, name);
	return 0;
}

/* Is it the bus from before? */
static void resume(struct dbus *b)
{
	sd_id128_t id = {0}, before = b->id;

	evtimer_del(b->forget);
	sd_bus_get_bus_id(b->bus, &id);
	b->id = id;
	if (sd_id128_equal(id, before))
		sender_resume_all(b);
	else
		sender_drop_unsure(b);
}

static int on_name(sd_bus_message *m, void *arg, sd_bus_error *error)
{
	struct dbus *b = arg;
	uint32_t how = 0;

	if (sd_bus_message_is_method_error(m, NULL) || sd_bus_message_read(m, "u", &how) < 0 || how != 1) {
		log_error("D-Bus (%s): the name " BUS_NAME " cannot be had: %s; tried again", b->where,
			  how ? "somebody else has it" : "the bus does not allow it, see its policy");
		b->said = true;
		sd_bus_close(b->bus); /* work() goes on from there */
		return 0;
	}
	b->named = true;
	b->said = false;
	b->backoff_ms = BACKOFF_FIRST_MS;
	resume(b);
	log_info("D-Bus (%s): there as " BUS_NAME, b->where);
	return 0;
}

/* ---- connecting ---- */

static int open_at(struct dbus *b)
{
	int fd, r = wire_open(&b->wire, b->base, b->where, &fd);

	if (r < 0)
		return r;
	r = sd_bus_new(&b->bus);
	if (r >= 0)
		r = sd_bus_set_fd(b->bus, fd, fd); /* from here on it is its own */
	if (r < 0) {
		close(fd);
		return r;
	}
	r = sd_bus_set_bus_client(b->bus, 1);
	return r >= 0 ? sd_bus_start(b->bus) : r;
}

/* Names are watched before the first one can call. */
static void link_open(struct dbus *b)
{
	int r = open_at(b);

	if (r >= 0)
		r = sd_bus_add_filter(b->bus, NULL, on_message, b);
	if (r >= 0)
		r = sd_bus_add_match_async(b->bus, NULL, MATCH_GONE, on_gone, NULL, b);
	if (r >= 0)
		r = sd_bus_request_name_async(b->bus, NULL, BUS_NAME, 0, on_name, b);
	if (r >= 0)
		r = rearm(b);
	if (r < 0)
		link_lost(b, strerror(-r));
}

static void on_retry(evutil_socket_t fd, short what, void *arg)
{
	struct dbus *b = arg;
	uint64_t still;

	if (!b->bus)
		link_open(b);
	else if (!wire_behind(b->wire, &still))
		return; /* until there is something again */
	else if (still > STALL_NS)
		link_lost(b, "the bus has taken nothing for 5 s, as if it waited for somebody who does not read");
	else
		watch(b);
}

static void on_forget(evutil_socket_t fd, short what, void *arg)
{
	sender_drop_unsure(arg);
}

/* ---- as a whole ---- */

int dbus_new(struct dbus **ret, struct event_base *base, struct service *s, const char *where,
	     const struct dbus_host *host)
{
	static const struct timeval keep = {KEEP_S, 0};
	struct dbus *b = calloc(1, sizeof(*b));
	struct sockaddr_un addr;
	socklen_t len;

	if (!b)
		return -ENOMEM;
	b->base = base;
	b->service = s;
	b->host = *host;
	b->backoff_ms = BACKOFF_FIRST_MS;
	TAILQ_INIT(&b->senders);
	TAILQ_INIT(&b->subscribers);
	TAILQ_INIT(&b->callers);
	TAILQ_INIT(&b->watched);
	TAILQ_INIT(&b->dirty);
	TAILQ_INIT(&b->waiters);
	TAILQ_INIT(&b->listings);
	b->where = strdup(where);
	b->timer = evtimer_new(base, on_timer, b);
	b->retry = evtimer_new(base, on_retry, b);
	b->forget = evtimer_new(base, on_forget, b);
	b->tick = evtimer_new(base, signals_tick, b);
	b->list = evtimer_new(base, listing_go_on, b);
	if (!b->where || !b->timer || !b->retry || !b->forget || !b->tick || !b->list) {
		dbus_free(b);
		return -ENOMEM;
	}
	service_observe(s, &signals_observer, b);
	if (strcmp(where, "none") != 0 && wire_address(where, &addr, &len) == -EINVAL) {
		dbus_free(b);
		return -EINVAL;
	}
	if (callers_adopt(b))
		evtimer_add(b->forget, &keep);
	if (strcmp(where, "none") != 0)
		link_open(b);
	*ret = b;
	return 0;
}

struct dbus *dbus_free(struct dbus *b)
{
	struct event *events[5];

	if (!b)
		return NULL;
	service_observe(b->service, NULL, NULL);
	link_close(b, false);
	memcpy(events, (struct event *[]){b->timer, b->retry, b->forget, b->tick, b->list}, sizeof(events));
	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		if (events[i])
			event_free(events[i]);
	free(b->admins.uids);
	free(b->unit);
	free(b->where);
	free(b);
	return NULL;
}
