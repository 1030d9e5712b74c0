/* SPDX-License-Identifier: MIT */
/*
 * What libpasid's files share: the connection, its contexts, and the few calls between them.
 *
 * Always true: one request is out at a time; p->serial is the next serial to use and rises only when a request was
 * really sent; an event that arrives while a reply is awaited goes into its context's own storage, so memory grows
 * with contexts and buffers only; once p->dead is set, no byte is sent or received any more.
 */
#ifndef CLIENT_INTERNAL_H
#define CLIENT_INTERNAL_H

#include <stdarg.h>
#include <stdbool.h>

/* The library is built with hidden visibility: what the public header declares is what is visible. */
#pragma GCC visibility push(default)
#include <pasid/pasid.h>
#pragma GCC visibility pop
#include <pasid/protocol.h>

#include "sentence.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the protocol is little-endian and is used in place"
#endif

#define STRUCT_SIZE_MAX 4096u /* a caller's struct that claims to be larger was not initialised */
#define DEVICES_BACK_MAX 32u /* DEVICE_BACK events kept, one per device; beyond it the oldest goes */
#define DISRUPTED_MAX 64u /* faulted and reset jobs remembered for pasid_wait() */
#define ERROR_MAX 640u

/* Why the last request failed; the sentence is made from it. */
struct failure {
	uint32_t reason; /* enum pasid_reason or local_reason */
	uint32_t index;
	uint64_t n1, n2;
};

struct queued_fault {
	struct pasid_wire_fault f;
	uint64_t dropped; /* right before it */
};

struct ctx {
	uint32_t id;
	const struct pasid_fence_line *line; /* shared memory that daemon and device write */
	uint64_t submitted; /* the last job */
	uint32_t seen; /* line->disrupted when the socket was last emptied for it */
	uint32_t told; /* disrupted jobs that events told of, in the same count */
	uint32_t lost_why; /* enum pasid_lost_why once it is known, else 0 */

	/* Events not yet fetched. */
	struct ctx *next; /* in p->pending */
	bool pending;
	bool reset;
	bool lost;
	unsigned int fault_first; /* of the ring */
	unsigned int faults;
	uint64_t dropped; /* after the newest fault in the ring */
	uint64_t reset_job;
	uint64_t lost_job;
	struct queued_fault fault[PASID_FAULTS_MAX];
};

/* The program's own mapping of a buffer that pasid_buf_new() made. */
struct own_map {
	uint32_t buf;
	void *addr;
	size_t len;
};

struct disrupted {
	uint64_t job;
	uint32_t ctx;
	int how; /* PASID_JOB_FAULTED or PASID_JOB_RESET */
};

struct pasid {
	int fd;
	uint32_t dead; /* 0, or LOCAL_HANGUP or LOCAL_GARBLED */
	uint64_t dead_n1, dead_n2;
	uint64_t serial;
	uint32_t bind_max;
	bool spin; /* more than one CPU */
	char *out; /* PASID_MSG_MAX bytes each */
	char *in;
	const char *fences;
	size_t fence_bytes;

	struct ctx **ctx; /* sorted by id */
	size_t ctxs, ctx_room;
	struct own_map *map;
	size_t maps, map_room;

	struct ctx *pending, **pending_end; /* contexts with events, the longest waiting first */
	bool resumed;
	unsigned int devices_back;
	char device_back[DEVICES_BACK_MAX][PASID_NAME_MAX];
	struct disrupted disrupted[DISRUPTED_MAX];
	uint64_t disrupted_count; /* ever; the ring holds the latest */

	struct failure why;
	char error[ERROR_MAX];
};

/* connection.c */
struct conn_call {
	uint16_t opcode;
	size_t body; /* bytes at conn_body() */
	const int *fd; /* sent along, or NULL */
	int *take_fd; /* receives the reply's fd, or NULL; -1 on entry */
	size_t reply; /* bytes that the reply's body must have ... */
	size_t reply_unit; /* ... or, if not 0, must be a multiple of */
};

void *conn_body(struct pasid *p); /* where a request's body is built */
const void *conn_reply(const struct pasid *p); /* the body of the last reply */
size_t conn_reply_len(const struct pasid *p);
/* Sends a request and waits for its reply. 0 or -errno, with p->why filled. */
int conn_call(struct pasid *p, const struct conn_call *c);
/* Takes what has arrived into the event queue, without waiting. 0, or -ECONNRESET when the connection is over. */
int conn_drain(struct pasid *p);
/* Ends the connection for good and returns -ECONNRESET with p->why filled. */
int conn_kill(struct pasid *p, uint32_t reason, uint64_t n1, uint64_t n2);
/* -ECONNRESET with p->why filled if the connection is over, else 0. */
int conn_check(struct pasid *p);

/* contexts.c */
struct ctx *ctx_find(const struct pasid *p, uint32_t id);
int ctx_insert(struct pasid *p, struct ctx *c); /* takes c; -ENOMEM */
void ctx_remove(struct pasid *p, struct ctx *c);
bool array_room(void **array, size_t *room, size_t n, size_t elem);

/* events.c */
void events_init(struct pasid *p);
void events_take(struct pasid *p, const struct pasid_msg *m); /* m is a whole record of m->size bytes */
void events_forget(struct pasid *p, struct ctx *c);
int events_disrupted(const struct pasid *p, uint32_t ctx, uint64_t job); /* 0 or PASID_JOB_* */

/* error.c */
/* Fills p->why for a failure that the library finds by itself and returns code. */
int failure(struct pasid *p, int code, uint32_t reason, uint64_t n1, uint64_t n2);
/* Makes p->error: "cannot <do what>: <why>", and returns code. */
int error_call(struct pasid *p, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same for a connection that never came to be. */
int error_connect(const struct pasid *p, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
const char *error_lost_why(uint32_t why);

/* structs.c: structs that begin with their size. false: the size cannot be. */
bool struct_size(const void *s, size_t *size); /* false: it cannot be one */
bool struct_in(void *dst, size_t known, const void *src);
bool struct_out(void *dst, const void *src, size_t known);
/* Copies a device name (NULL: the first device) into a wire field. -ENAMETOOLONG with p->why filled. */
int name_in(struct pasid *p, char *dst, const char *name);

#endif
