/* SPDX-License-Identifier: MIT */
/*
 * What a successor of this process will have to know, told to the journal as it happens (entries.h). Without a store
 * nothing is told and all of this does nothing.
 *
 * Room for the entries of one request is made before it is judged. Facts come by themselves and find what room there is;
 * if memory for one cannot be had the journal is given up: a successor then declares everything lost.
 */
#ifndef SERVICE_PERSIST_H
#define SERVICE_PERSIST_H

#include "service/entries.h"
#include "service/private.h"
#include "store/store.h"

/* ---- requests ---- */
/* Room for a request of so many bytes, and its reply. False: refuse it. */
bool persist_room(struct service *s, size_t bytes);
/* rec holds what was chosen. Before anything but books changes. */
void persist_intent(struct service_client *c, const struct record *rec);
/* Also undoes the intent where the reply is a refusal. Only the first one of a serial counts. */
void persist_commit(struct service_client *c, const struct service_reply *reply);

/* ---- facts ---- */
void persist_client(struct service_client *c);
void persist_client_gone(struct service_client *c);
bool persist_buffer_fd(struct service *s, struct record *rec,
		       int fd); /* before its intent; false: there is no room for it */
void persist_buffer_freed(const struct buf *b);
void persist_buffer_gone(const struct buf *b);
void persist_device(struct device *d);
void persist_device_again(struct device *d, const struct entry_device *e);
void persist_device_gone(struct device *d);
void persist_pool(const struct device *d);
void persist_reset(const struct device *d, enum entry_reset_phase phase);
void persist_context(struct ctx *ctx); /* as an intent of the request that makes it, and where its tables are */
void persist_context_begun(struct ctx *ctx); /* the same, where the kernel keeps them: before it is asked, */
void persist_context_made(struct ctx *ctx); /* and once it has made them */
bool persist_window(struct ctx *ctx); /* keeps its window memory; false: there is no room for it */
void persist_window_gone(struct ctx *ctx);
void persist_space_entry(const struct ctx *ctx, struct entry_space *e);
void persist_shared_tables(const struct device *d);
void persist_lost(const struct ctx *ctx);
void persist_cleared(struct ctx *ctx);
void persist_context_gone(const struct ctx *ctx);
void persist_put(const struct ctx *ctx, unsigned int slot, const struct put_job *put);
void persist_unput(const struct ctx *ctx);
void persist_jobs_done(const struct ctx *ctx, uint64_t job);
void persist_stopped(const struct device *d, unsigned int slot);
void persist_fence(const struct fence_map *m);
void persist_fence_gone(const struct fence_map *m);
void persist_counts(const struct ctx *ctx);

/* ---- for snapshots (snapshot.c) ---- */
void persist_append(struct service *s, uint32_t type, const struct iovec *v, int n);
void persist_client_entry(const struct service_client *c, struct entry_client *e);
void persist_fence_entry(const struct fence_map *m, struct entry_fence *e);
void persist_device_entry(const struct device *d, struct entry_device *e);
/* As much of one that will not be taken over as the records of its contexts and buffers take; it is gone after that. */
void persist_device_without(const struct device *d, struct entry_device *e);
void persist_context_record(const struct ctx *ctx, struct record *rec);

int snapshot_init(struct service *s);
void snapshot_soon(struct service *s); /* from the loop */

#endif
