/* SPDX-License-Identifier: MIT */
/*
 * Going on where a process ended that was killed: its journal becomes the books again, and the clients, contexts and buffers
 * that go with them (adopt.c); then each device is taken over as it runs (adopt_device.c). Nothing that a client was told
 * is lost by that, and what it was not told yet is told, or done again, since its request is still in its socket.
 */
#ifndef SERVICE_ADOPT_H
#define SERVICE_ADOPT_H

#include "service/entries.h"
#include "service/private.h"

#define ADOPT_WHY_MAX 256u

enum adoption_phase {
	ADOPT_READ, /* the journal is being read */
	ADOPT_OPENING, /* the transport takes over */
	ADOPT_ATTACHING, /* ... the first stage, too */
	ADOPT_SPACES, /* address spaces and memory are taken over, where the kernel keeps the tables, */
	ADOPT_TELLING, /* what a space maps is said again if only its process knew, */
	ADOPT_MOVING, /* the device goes into the one that it is in, to be sure, */
	ADOPT_RESTORING, /* changes that were under way are made good, */
	ADOPT_SWEEPING, /* and what belongs to nobody goes */
	ADOPT_CLEARING, /* what the device may have mapped for nobody goes */
	ADOPT_RESETTING, /* the last process was about to, or a slot does not obey */
	ADOPT_STILL, /* slots are held whose tables have to be made again */
	ADOPT_INVALIDATING, /* the device forgets everything that it knows of tables */
};

/* A device that is being taken over. */
struct adoption {
	struct entry_device e;
	enum adoption_phase phase;
	uint64_t shared_root;
	bool rebuild_shared;
	uint32_t reset; /* enum entry_reset_phase; 0: none was under way */
	uint64_t since;
	uint64_t ticket;
	struct range *clear; /* bus addresses that may be mapped for nobody */
	size_t n_clear, max_clear, next_clear;
	uint32_t clearing; /* answers that are still to come */
	uint32_t *pasids; /* that may be attached for nobody */
	size_t n_pasids, max_pasids, next_pasid;
	bool asked; /* what the phase takes */
};

/* Reads the store's journal into a service that has its devices and nothing else. 0, also if there is nothing; -EBADMSG: it
 * contradicts itself, or the configuration: the service is good for nothing but service_free(), which touches no device. */
int adopt_journal(struct service *s, char why[ADOPT_WHY_MAX]);
/* Everything was read: what is kept and belongs to nothing goes. */
void adopt_forget_unknown(struct service *s);

/* ---- adopt_device.c ---- */
struct adoption *adoption_free(struct adoption *a); /* takes NULL, returns NULL */
int adoption_clear_later(struct adoption *a, struct range bus); /* 0, -ENOMEM */
int adoption_detach_later(struct adoption *a, uint32_t pasid);
void adopt_device(struct device *d); /* instead of opening it */
void adopt_opened(struct device *d);
void adopt_go_on(struct device *d); /* looks whether something is left to wait for */
void adopt_over(struct service *s); /* a device was taken over, or could not be */
struct device *adopt_first(struct service *s); /* one that is not yet; clients' requests wait for all of them */
/* Why a device that is open cannot be taken over by another process: a sentence without its end. NULL: it can. */
const char *adopt_why_not(const struct device *d);
void adopt_prepared(struct device *d, const char *why); /* nest_prepare(); why: it cannot be had */
void adopt_on_cleared(void *device, int err); /* one of those that adoption.clearing counts */
int adopt_shm(struct device *d, enum vault_memory which, uint64_t bytes, struct shm *m);

/* ---- adopt_tables.c ---- */
/* The tables at root, which is not trusted. differs: they do not say what the address space does. A negative errno: they
 * cannot be used, or what the device itself needs is not in them. */
int adopt_tables(struct device *d, struct pgtable **pt, uint64_t root, struct aspace *as, bool *differs);
bool adopt_rebuilds(const struct device *d, const struct ctx *ctx); /* its tables are made again */
void adopt_empty_tables(struct device *d);
void adopt_reclaim_tables(struct device *d); /* emptied here, or by the predecessor: nothing remembers them any more */
/* The pages were there before, so that they can be had; unless the tables were not what they should be: then a context is
 * marked to be lost, or, if all share them, a negative errno returned. */
int adopt_fill_tables(struct device *d);

/* ---- adopt_kernel.c: where the kernel keeps the tables ---- */
int adopt_kernel_windows(struct device *d); /* before its driver takes it over */
int adopt_kernel_tables(struct ctx *ctx);
/* The request may have been carried out by halves. */
int adopt_kernel_again(struct ctx *ctx, const struct record *rec);
void adopt_kernel_go_on(struct device *d);

/* ---- context.c, buffer.c, service.c: the running side of what the books have ---- */
int ctx_adopt(struct context *books);
void ctx_forget_left(struct ctx *ctx); /* what only its taking over needed */
void ctx_forget(struct ctx *ctx); /* its books go elsewhere, or are gone */
int buf_adopt(struct buffer_entry *e, uint64_t key);
void buf_adopt_fd(struct buf *b); /* once it is known to be still there */
void buf_forget(struct buf *b);
int fence_map_adopt(struct service_client *c, struct device *d, uint64_t bus, bool mapped);
int client_adopt(struct service *s, struct client *books, uint64_t fence_key);
void client_forget(struct service_client *c);

#endif
