/* SPDX-License-Identifier: MIT */
/*
 * The service: where clients' requests meet books, tables, translators, engines and transports. It is the only layer
 * that knows them all. Above it sessions move bytes; below it nobody knows what a client is.
 *
 * A request is carried out by service_request(): at once, or as a pending verb whose reply comes later, or not yet. Each
 * client has at most one request at a time. Everything runs on one event loop.
 */
#ifndef SERVICE_SERVICE_H
#define SERVICE_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/charge.h"
#include "core/error.h"
#include "engine/engine.h"

struct event_base;
struct service;
struct service_client;
struct store;

#define SERVICE_WHY_MAX 256u

struct device_config {
	const char *name; /* at most PASID_NAME_MAX - 1 bytes */
	const char *spec; /* transport.h: "vfio-user:/path" */
	uint32_t mode; /* enum pasid_mode */
	uint32_t fallback; /* ... instead of `nested` where that cannot be had; 0: then the device cannot, either */
	const char *format; /* pgtable_format_name() */
	uint32_t slots; /* the most to use; 0: all */
	uint32_t burst; /* jobs that a context may begin in one turn while others wait */
	uint32_t job_limit_ms;
	uint32_t answer_ms; /* how long the device may take for one answer, or for a STOP */
	uint32_t table_pages; /* the most table pages of all contexts together */
};

struct service_config {
	const struct device_config *devices; /* everything stays the caller's until service_free() */
	size_t n_devices;
	struct limit_policy limits;
	struct drivers drivers;
};

struct service_reply {
	const void *data; /* valid during the call that hands it over */
	size_t size;
	bool with_fence; /* service_client_fence() travels with it */
};

/* What a session hears about its client. */
struct service_client_ops {
	void (*reply)(void *owner, const struct service_reply *reply); /* to the pending request */
	void (*retry)(void *owner); /* the request that was answered with SERVICE_LATER may be made again */
	void (*events)(void *owner); /* service_next_event() has something */
};

/* What of a context changed. */
enum service_change {
	SERVICE_MEMORY = 1, /* mappings, tables */
	SERVICE_JOBS = 2, /* submitted, completed */
	SERVICE_RUNS = 4, /* put on a slot, time there */
	SERVICE_FAULTS = 8,
	SERVICE_STATE = 16,
};

struct pasid_wire_fault;

/* Somebody who looks on. He is told at once, in the middle of things, and only takes a note. */
struct service_observer {
	void (*context_made)(void *arg, uint32_t ctx);
	void (*context_changed)(void *arg, uint32_t ctx, uint32_t what); /* enum service_change */
	void (*context_fault)(void *arg, uint32_t ctx, const struct pasid_wire_fault *f);
	void (*context_lost)(void *arg, uint32_t ctx); /* nothing of it can reach memory any more */
	void (*context_gone)(void *arg, uint32_t ctx);
	void (*device_changed)(void *arg, uint32_t device); /* index */
};

enum service_outcome { SERVICE_REPLY = 0, SERVICE_PENDING = 1, SERVICE_LATER = 2 };

/* Begins to open the devices; those that cannot be reached are tried again and again. With a store (NULL: none; it stays the
 * caller's) what a process before this one left there is taken over; -EBADMSG and *why (SERVICE_WHY_MAX bytes): it cannot
 * be believed, and nothing was touched. */
int service_new(struct service **ret, struct event_base *base, const struct service_config *config, struct store *store,
		char *why);
/* Nothing of what a process before this one left can be believed: every client that it had is told so by its fence memory,
 * and in the log. store_begin_anew() ends their connections. */
void service_lose(struct store *store, const char *why);
/* All clients are closed. Takes NULL, returns NULL. Does not wait for devices: their connections just end. */
struct service *service_free(struct service *s);
/* The limits of the configuration that it was begun with have changed. */
void service_limits_changed(struct service *s);
/* Clients whose session is closed and whose contexts and buffers are not gone yet. */
size_t service_lingering(const struct service *s);

/* 0, -EDQUOT with *why. */
int service_client_new(struct service *s, uid_t uid, pid_t pid, const struct service_client_ops *ops, void *owner,
		       struct service_client **ret, struct refusal *why);
/* From now on it outlives this process: a successor finds its connection by `name` (STORE_NAME_MAX bytes, or the name of a
 * D-Bus connection). False: there is no room for what goes with it. */
bool service_client_keep(struct service_client *c, const char *name);
/* Those that are there from before this process and have no owner yet, one after the other; NULL: there is none. ops and
 * owner are theirs from now on; or it is closed. */
struct service_client *service_adopted(struct service *s, struct service_client *after);
const char *service_client_name(const struct service_client *c);
uid_t service_client_uid(const struct service_client *c);
pid_t service_client_pid(const struct service_client *c);
/* What there is of it is not whole: its contexts are lost, and whoever waits for their jobs stops waiting. */
bool service_client_doomed(const struct service_client *c);
/* Its requests, and what was answered to them, have to wait: retry() is called. */
bool service_client_waits(struct service_client *c);
void service_client_own(struct service_client *c, const struct service_client_ops *ops, void *owner);
/* Its buffers live only as long as they are mapped: it does not know their ids any more. */
void service_client_forget_buffers(struct service_client *c);
/* The session is gone: work is stopped, everything is taken back, in the background. Takes NULL, returns NULL. */
struct service_client *service_client_close(struct service_client *c);
int service_client_fence(const struct service_client *c); /* read-only fd; stays the client's */
/* Of the last request that was carried out, or is pending; 0: there was none. */
uint64_t service_client_serial(const struct service_client *c);
/* The reply to one of the last PASID_IN_FLIGHT requests, for as long as nothing else is requested; false: there was no memory
 * to keep it. */
bool service_client_kept(const struct service_client *c, uint64_t serial, struct service_reply *ret);
struct account *service_client_account(struct service_client *c);

/*
 * Carries out one request: msg is a whole, well-framed message of `size` bytes; fds came with it. An fd that is kept is
 * replaced by -1, the rest stays the caller's. SERVICE_REPLY fills *reply. After SERVICE_LATER nothing has changed, and
 * the same request is made again when retry() is called. After SERVICE_PENDING msg may be forgotten.
 */
enum service_outcome service_request(struct service_client *c, const void *msg, size_t size, int *fds, size_t n_fds,
				     struct service_reply *reply);

/* One, or none (NULL). */
void service_observe(struct service *s, const struct service_observer *o, void *arg);

/* What somebody may do to all that there is. A context of any client: it is lost; nothing happens if it is or ends already. */
void service_close_context(struct service *s, uint32_t ctx);
/* 0: it is on its way, device_changed() follows. -ENOENT, -ENODEV: it is not there to be reset. */
int service_reset_device(struct service *s, uint32_t device);

/* Moves the next event into buf (PASID_MSG_MAX bytes); its size, or 0 if there is none. */
size_t service_next_event(struct service_client *c, void *buf);

/* The memory of <pasid/trace.h>, read-only: an fd that is the caller's, or -errno. It is written to until each one that opened it
 * has closed it. */
int service_trace_open(struct service *s);
void service_trace_close(struct service *s);

#endif
