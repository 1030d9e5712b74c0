/* SPDX-License-Identifier: MIT */
/*
 * What the files of the D-Bus side share. link.c: the connection to the bus, and the loop. sender.c: who calls. object.c:
 * objects, interfaces, and calls to them; manager.c, device.c, context.c: their tables. look.c: what somebody may see of an
 * object. listing.c: answers about all objects. caller.c: a bus name as a client of the service; verbs.c: its calls.
 * signals.c: what is told without being asked. refuse.c: errors.
 */
#ifndef DBUS_PRIVATE_H
#define DBUS_PRIVATE_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <systemd/sd-bus.h>

#include <pasid/protocol.h>

#include "base/log.h"
#include "core/error.h"
#include "core/idmap.h"
#include "dbus/dbus.h"
#include "dbus/path.h"
#include "service/inspect.h"
#include "service/service.h"

#define BUS_NAME "org.pasidd"

#define SENDERS_MAX 4096u /* bus names whose owners are known */
#define SENDER_BUCKETS 256u
#define WAITING_MAX 16u /* calls of one name while it is being asked who that is */
#define WAITING_ALL_MAX 1024u
#define REQUESTS_MAX 16u /* calls of one name that the service has, or has not begun; as many as on the socket */
#define SUBSCRIBERS_MAX 256u
#define SUBSCRIBERS_UID_MAX 16u
#define LISTINGS_MAX 64u
#define LISTINGS_UID_MAX 4u
#define WAITERS_MAX 64u /* calls that wait for the end of a context, or of a reset */
#define OUT_SIGNALS_MAX 256u /* messages that the bus has not taken; beyond that signals are dropped */
#define OUT_MAX 320u /* ... and nothing more is read; an answer may have half a megabyte */

struct caller;
struct look;

struct who {
	uid_t uid;
	pid_t pid;
	bool admin;
};

struct waiting {
	STAILQ_ENTRY(waiting) link;
	sd_bus_message *m;
};

/* A bus name, from its first call until it is gone, or is forgotten because it has nothing here. */
struct sender {
	struct dbus *b;
	LIST_ENTRY(sender) in_bucket;
	TAILQ_ENTRY(sender) in_age; /* the one that called longest ago comes first */
	bool known;
	bool unsure; /* it was known on a connection to the bus that is gone; who has something here is asked about again */
	struct who who;
	gid_t *gids; /* its groups, as the bus says */
	size_t n_gids;
	sd_bus_slot *asking; /* who it is; NULL: that is answered */
	STAILQ_HEAD(, waiting) waiting;
	uint32_t n_waiting;
	bool subscribed;
	TAILQ_ENTRY(sender) in_subscribers;
	struct caller *caller; /* NULL: it has made nothing */
	uint32_t n_listings;
	bool tracing;
	char name[];
};

struct admins {
	gid_t gid;
	bool any;
	uid_t *uids; /* members */
	size_t n;
};

enum waiter_kind { WAIT_CONTEXT, WAIT_DEVICE };

struct waiter { /* answered once the context has ended, or the device was reset */
	TAILQ_ENTRY(waiter) link;
	enum waiter_kind kind;
	uint32_t id;
	sd_bus_message *m;
};

struct watched;
struct listing;
struct wire;

struct dbus {
	struct event_base *base;
	struct service *service;
	struct dbus_host host;
	char *where;
	struct admins admins;
	/* link.c */
	struct wire *wire;
	sd_bus *bus; /* NULL: there is none at the moment */
	struct event *io; /* what the bus waits for; NULL: nothing yet */
	int io_fd;
	short io_what;
	struct event *timer; /* its timeouts, and soon */
	struct event *retry; /* to connect; while there is a bus, to look whether it takes anything */
	struct event *forget; /* what names had on a bus that does not come back */
	sd_id128_t id; /* of the bus, the last time */
	uint32_t backoff_ms;
	bool named;
	bool said; /* that there is none */
	/* sender.c */
	LIST_HEAD(, sender) buckets[SENDER_BUCKETS];
	TAILQ_HEAD(, sender) senders;
	uint32_t n_senders, n_waiting;
	TAILQ_HEAD(, caller) callers;
	uint32_t n_callers;
	/* signals.c */
	TAILQ_HEAD(, sender) subscribers;
	uint32_t n_subscribers;
	struct idmap watched_ids;
	TAILQ_HEAD(, watched) watched, dirty;
	uint32_t n_dirty;
	uint64_t dirty_devices; /* by index */
	uint64_t device_told_ns[64];
	struct event *tick;
	uint64_t dropped;
	TAILQ_HEAD(, waiter) waiters;
	uint32_t n_waiters;
	/* listing.c */
	TAILQ_HEAD(, listing) listings;
	uint32_t n_listings;
	struct event *list;
	/* context.c: the systemd unit of the process that was asked about last */
	char *unit;
	uint32_t unit_pid;
	uint64_t unit_ns;
	struct log_limit limit;
};

/* ---- link.c, over wire.h ---- */
void link_soon(struct dbus *b); /* something was sent, or may be */
bool link_crowded(const struct dbus *b); /* the bus does not take what there is for it: signals are dropped */

/* ---- sender.c ---- */
void sender_call(struct dbus *b, sd_bus_message *m); /* carried out once it is known who that is */
void sender_gone(struct dbus *b, const char *name);
void sender_drop_all(struct dbus *b);
/* The connection is gone, perhaps the bus is not: what names had is kept, for a while, but for their calls. */
void sender_suspend_all(struct dbus *b);
/* It is there again, and it is the same bus, or another one. */
void sender_resume_all(struct dbus *b);
void sender_drop_unsure(struct dbus *b);
struct sender *sender_adopt(struct dbus *b, const char *name, uid_t uid, pid_t pid); /* NULL: no memory */

/* ---- admins.c ---- */
bool admins_have(const struct dbus *b, const struct sender *s);

/* ---- look.c: an object as somebody sees it ---- */
struct look {
	struct dbus *b;
	struct sender *by;
	struct bus_path at;
	uint32_t index; /* of a device */
	bool mine; /* a context that its own name looks at */
	union {
		struct inspect_device device;
		struct inspect_context context;
	};
};

/* False: there is no such object, for him. */
bool look_at(struct dbus *b, struct sender *by, const struct bus_path *at, struct look *ret);
bool look_at_context(struct dbus *b, struct sender *by, uint32_t id, struct look *ret);
bool look_at_device(struct dbus *b, struct sender *by, uint32_t index, struct look *ret);
/* May he see a context of this uid, made by that client? */
bool look_allowed(const struct sender *by, uid_t uid, bool opaque, const struct service_client *client);

/* ---- object.c ---- */
struct call {
	struct dbus *b;
	struct sender *from;
	sd_bus_message *m;
	struct look look; /* at the object */
};

/* A call that is refused has changed nothing. run() returns what is not negative, or -errno, of which the caller is told. */
struct bus_method {
	const char *member, *in, *out;
	const char *args; /* their names, in and out, with blanks between them */
	int (*run)(struct call *c);
	bool admin; /* for nobody else */
};

#define BUS_SILENT UINT32_MAX

struct bus_property {
	const char *name, *type;
	size_t offset; /* in the look, if there is no get */
	int (*get)(const struct look *l, sd_bus_message *m);
	uint32_t changes; /* enum service_change, or 1; 0: never; BUS_SILENT: it does, and nobody is told */
	bool secret; /* 0 for everybody but administrators */
};

struct bus_signal {
	const char *name, *type, *args;
};

struct bus_interface {
	const char *name;
	const struct bus_method *methods; /* all three end with one that has no name; NULL: none */
	const struct bus_property *properties;
	const struct bus_signal *signals;
};

extern const struct bus_interface manager_interface, device_interface, context_interface;

void object_call(struct dbus *b, struct sender *from, sd_bus_message *m);
const struct bus_interface *const *object_interfaces(enum bus_node node); /* ours first; ends with NULL */
/* name: value, for those that changes names (all: every one). */
int object_append_properties(const struct bus_interface *i, const struct look *l, sd_bus_message *m, uint32_t changes,
			     bool all);
/* {interface: {name: value}}, of our own and of the standard ones. */
int object_append_all(const struct look *l, sd_bus_message *m);

/* ---- listing.c ---- */
int listing_introspect(struct call *c);
int listing_objects(struct call *c);
int listing_state(struct call *c);
void listing_drop(struct dbus *b, struct sender *of);
void listing_drop_all(struct dbus *b);
void listing_go_on(evutil_socket_t fd, short what, void *arg);

/* ---- json.c ---- */
struct json_object *json_of_properties(const struct look *l); /* of the object's own interface; NULL: no memory */

/* ---- caller.c ---- */
struct request {
	STAILQ_ENTRY(request) link;
	sd_bus_message *m; /* the call that is answered; NULL: nobody waits for an answer any more */
	const struct verb *verb;
	unsigned int step;
	bool paid; /* the rate has let it pass */
	uint32_t ctx, flags, buf;
	uint64_t iova, len, off;
	char device[PASID_NAME_MAX];
	int fd; /* -1: none */
	struct refusal why; /* of an earlier step, to be said when what that one did is undone */
};

struct caller {
	TAILQ_ENTRY(caller) link;
	struct dbus *b;
	struct sender *sender;
	struct service_client *client;
	uint64_t serial;
	bool out; /* the service has the first request's message, or wants it again later */
	bool greeted;
	STAILQ_HEAD(, request) requests;
	uint32_t n_requests;
	struct event *go;
};

/* What a call asks of the service, in steps that are messages of the socket's. */
struct verb {
	/* Writes the body of the next message; its size, and *opcode. 0: there is no other, it is answered. */
	size_t (*next)(struct caller *c, struct request *r, void *body, uint16_t *opcode);
	/* What that came to; why.reason 0: it is done. */
	void (*done)(struct caller *c, struct request *r, const struct refusal *why, const void *body, size_t size);
};

/* The name's own; made if there is none. NULL: the call was refused. */
struct caller *caller_get(struct call *c);
struct caller *caller_find(struct dbus *b, const struct service_client *client);
void caller_suspend(struct caller *c); /* nobody is answered any more; what has begun goes on */
struct caller *caller_free(struct caller *c); /* takes NULL, returns NULL */
/* Names that had something with a process that is gone; true if there are any. *b knows then which bus it was. */
bool callers_adopt(struct dbus *b);
/* Takes the fd in any case. The call is answered later, or refused. */
int caller_request(struct caller *c, struct call *call, const struct request *what, bool urgent);

/* ---- verbs.c ---- */
int verb_create_context(struct call *c);
int verb_map(struct call *c);
int verb_unmap(struct call *c);
int verb_submit(struct call *c);
int verb_close(struct call *c);

/* ---- context.c ---- */
const char *context_access(uint32_t access);
const char *context_code(uint32_t code);

/* ---- signals.c ---- */
extern const struct service_observer signals_observer;
int signals_subscribe(struct call *c);
int signals_unsubscribe(struct call *c);
void signals_forget(struct dbus *b, struct sender *s); /* it is going */
void signals_drop_all(struct dbus *b);
void signals_tick(evutil_socket_t fd, short what, void *arg);
/* Answers the call when that has come about. */
int signals_wait(struct call *c, enum waiter_kind kind, uint32_t id);

/* ---- refuse.c ---- */
/* org.pasidd.Error.NAME with a sentence. 0, or -errno. m NULL: nobody waits for it. */
__attribute__((format(printf, 3, 4))) int refuse_call(sd_bus_message *m, const char *name, const char *fmt, ...);
int refuse_why(sd_bus_message *m, const struct refusal *why);
const char *refuse_name(const struct refusal *why); /* the NAME that belongs to it */

#endif
