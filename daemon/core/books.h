/* SPDX-License-Identifier: MIT */
/*
 * The books: clients, devices, contexts, buffers, mappings and jobs, as the clients asked for them. Each verb is one
 * function that judges a record, takes what it needs (ids, addresses, quotas) and enters the result, or refuses and
 * changes nothing. What devices and kernels have to do about it is the service's business, before or after.
 *
 * No fds, no clock, no loop. Objects carry a `tag` for whoever runs them.
 */
#ifndef CORE_BOOKS_H
#define CORE_BOOKS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "core/aspace.h"
#include "core/charge.h"
#include "core/error.h"
#include "core/fault.h"
#include "core/idmap.h"
#include "core/ids.h"
#include "core/record.h"

#define BOOKS_MAX_HOLES 32u

struct books;

/* What a device is to its clients. */
struct device_traits {
	const char *name; /* at most PASID_NAME_MAX - 1 bytes; stays the caller's */
	bool global; /* one address space for all contexts */
	unsigned int pasid_bits, asid_bits;
	struct range iova; /* usable addresses of a context */
	uint64_t cmd_align; /* of a submission's address and length */
	uint64_t submit_max; /* bytes of a submission */
};

struct device_books {
	struct device_traits traits;
	uint32_t index;
	struct ids *pasids;
	struct ids *asids;
	struct range window; /* where buffers go in the device's bus address space */
	struct itree bus; /* of buffer_entry.bus_node, holes, and whatever else has addresses there */
	struct itree_node holes[BOOKS_MAX_HOLES];
	uint32_t n_holes;
	struct aspace shared; /* `global` only */
	uint32_t shared_asid; /* `global` only */
	TAILQ_HEAD(, context) contexts;
	uint32_t n_contexts;
	TAILQ_HEAD(, buffer_entry) buffers;
	void *tag;
};

struct client {
	uint32_t id;
	uid_t uid;
	pid_t pid;
	struct account *account;
	struct idmap buffers; /* named ones, by id */
	struct idmap every_buffer; /* all_buffers, by id */
	uint32_t last_buf;
	uint32_t n_lines; /* fence lines */
	uint64_t *lines; /* bitmap */
	TAILQ_HEAD(, context) contexts;
	TAILQ_HEAD(buffer_list, buffer_entry) all_buffers; /* named or still mapped */
	TAILQ_ENTRY(client) link; /* in books.clients */
	void *tag;
};

struct job {
	uint64_t number;
	uint64_t iova;
	uint64_t len;
};

struct context {
	uint32_t id;
	uint32_t pasid, asid;
	uint32_t line; /* in the client's fence memory, from 0 */
	bool line_retired; /* a device that is gone may still write there: not given out again */
	bool lost;
	bool opaque; /* other programs of the same user may not look at it */
	struct client *client;
	struct device_books *device;
	struct aspace own; /* not in `global` mode */
	struct aspace *aspace; /* &own or &device->shared */
	uint64_t mappings, bytes; /* of this context */
	uint64_t cleared; /* of these mappings, by books_ctx_clear_some() */
	uint64_t clear_from; /* where that goes on */
	struct job *jobs; /* ring of jobs not ended, by number & (jobs_size - 1) */
	uint32_t jobs_size;
	uint64_t submitted; /* last job number given */
	uint64_t ended; /* last job that ended */
	struct charge c_context, c_mappings, c_jobs, c_tables;
	struct fault_log faults;
	TAILQ_ENTRY(context) in_client, in_device;
	void *tag;
};

struct buffer_entry {
	struct buffer buffer;
	struct itree_node bus_node; /* in device->bus: its bus addresses */
	struct client *client;
	struct device_books *device;
	bool huge;
	bool reachable; /* the device has it mapped; otherwise it cannot be mapped into a context */
	struct charge c_buffer, c_bytes, c_huge;
	TAILQ_ENTRY(buffer_entry) in_client, in_device;
	void *tag;
};

/* Called for a buffer that nobody names and nothing maps any more: unmap it from the device, then books_buf_gone(). */
typedef void (*books_unused)(void *arg, struct buffer_entry *b);

/* policy, and what it points to, stays the caller's. */
int books_new(struct books **ret, const struct limit_policy *policy, books_unused unused, void *arg);
struct books *books_free(struct books *b); /* all clients are closed by then; takes NULL */
/* For those who come from now on, and for what others ask. What policy points to stays the caller's. */
void books_set_limits(struct books *b, const struct limit_policy *policy);
int books_add_device(struct books *b, const struct device_traits *traits, struct device_books **ret);
/* Before the first import. */
void books_set_window(struct device_books *d, struct range window);
/* No buffer gets addresses in the hole. -ENOSPC: there are too many. */
int books_add_hole(struct device_books *d, struct range hole);
struct device_books *books_device(struct books *b, const char *name); /* "": the first; NULL if there is none */
struct device_books *books_device_at(struct books *b, uint32_t index);
uint32_t books_n_devices(const struct books *b);
/* The last ids given: none is given twice, whoever goes on with these books. */
void books_last_ids(const struct books *b, uint32_t *client, uint32_t *ctx);
void books_go_on_from(struct books *b, uint32_t client, uint32_t ctx);
struct ledger *books_ledger(struct books *b);

int books_client_open(struct books *b, struct record *rec, struct refusal *why, struct client **ret);
void books_client_close(struct books *b, struct client *c); /* its contexts and buffers are gone */
struct client *books_client(struct books *b, uint32_t id);
struct client *books_next_client(struct books *b, struct client *c); /* NULL: the first */

/* The client's context or buffer of that id; NULL and *why if it has none. */
struct context *books_context(struct client *c, uint32_t id, struct books *b, struct refusal *why);
struct context *books_any_context(struct books *b, uint32_t id);
struct buffer_entry *books_buffer(struct client *c, uint32_t id, struct refusal *why);
struct buffer_entry *books_any_buffer(const struct client *c, uint32_t id); /* named or not; NULL: there is none */

int books_ctx_new(struct books *b, struct record *rec, struct refusal *why, struct context **ret);
/* Its mappings and jobs are dropped; gone() (may be NULL) is told each range. Idempotent. */
void books_ctx_clear(struct books *b, struct context *ctx, void (*gone)(void *arg, struct range r), void *arg);
/* The same by instalments: each looks at no more than 16,384 mappings, others' in a shared address space included. True if
 * there are more. */
bool books_ctx_clear_some(struct books *b, struct context *ctx, void (*gone)(void *arg, struct range r), void *arg);
void books_ctx_lost(struct books *b, struct context *ctx);
/* The device has forgotten it by then: its ids go into quarantine, or are free at once if it never ran. */
void books_ctx_free(struct books *b, struct context *ctx);

int books_import(struct books *b, struct record *rec, struct refusal *why, struct buffer_entry **ret);
/* Takes the name away; unused() follows if nothing maps it. */
int books_buf_free(struct books *b, const struct record *rec, struct refusal *why);
void books_buf_gone(struct books *b, struct buffer_entry *e);

/* rec->ops are judged and entered for the context; chosen addresses are filled in. The plan is the caller's, who ends it
 * with books_bind_commit() or books_bind_undo(). */
int books_bind(struct books *b, struct context *ctx, struct record *rec, struct plan **ret, struct refusal *why);
void books_bind_commit(struct books *b, struct context *ctx, const struct record *rec, struct plan *plan);
void books_bind_undo(struct books *b, struct context *ctx, struct plan *plan);

int books_submit(struct books *b, struct context *ctx, struct record *rec, struct refusal *why);
const struct job *books_job(const struct context *ctx, uint64_t number); /* submitted and not ended */
void books_jobs_done(struct context *ctx, uint64_t number); /* all jobs up to number have ended */

/*
 * Applies a record in one phase: how a successor rebuilds, and how tests compare. INTENT is applied as if it committed;
 * UNDO takes it back. unused() is told of buffers as ever and leaves them: they go with their own record, BUF_GONE, and
 * those still there at the end are those that the device may still have mapped. 0, or -errno: a record that does not fit
 * the books (damaged, or out of order), which are as they were.
 */
int books_replay(struct books *b, enum record_phase phase, struct record *rec);
/* Everything that counts, as text in a fixed order. */
void books_dump(struct books *b, FILE *f);

#endif
