/* SPDX-License-Identifier: MIT */
/*
 * An address space whose tables the kernel keeps (mode `exclusive`), and how it follows the books: a plan's steps become
 * mappings of at most 2 MiB, so that cutting one costs little. Unmaps and maps are made in the plan's order; if one fails,
 * those before it are taken back. Work that runs meanwhile may see the state in between.
 *
 * Nothing here waits: what the kernel is asked for is answered through the transport, and `changed` says that it is worth
 * to look again.
 */
#ifndef SERVICE_KTABLES_H
#define SERVICE_KTABLES_H

#include <stddef.h>
#include <stdint.h>

#include "core/aspace.h"
#include "transport/transport.h"

struct ktables;

struct ktables_window { /* memory that is there from the beginning; the fd is used until it is made */
	uint64_t iova, len;
	int fd;
};

/* The memory at a bus address of the books: which, from where, and how many bytes from there on belong together. */
struct ktables_memory {
	struct transport_memory *memory;
	uint64_t off, len;
};
typedef struct ktables_memory (*ktables_find)(void *arg, uint64_t bus);

/* Begins to make one; pasid 0: the device is moved there, otherwise what it does under that PASID goes through it. 0,
 * -errno. */
int ktables_new(struct ktables **ret, struct transport *t, const struct ktables_window *window, uint32_t pasid,
		void (*changed)(void *arg), void *arg);
/* 0: being made; 1: it is there; -errno: it could not be made. */
int ktables_made(struct ktables *k);
struct transport_space *ktables_space(const struct ktables *k);

/* Begins a change; none is under way. 0, or -ENOMEM and nothing is begun. */
int ktables_change(struct ktables *k, const struct aspace_step *step, size_t n, ktables_find find, void *arg);
/* Goes on with it. 1: not done yet; 0: done; -errno: taken back, why; -ENOTRECOVERABLE: it could neither be done nor taken
 * back. */
int ktables_go(struct ktables *k);

/* Begins, or goes on, to take its PASID away, so that the device cannot reach it. 0: it cannot; 1: not yet; -errno. */
int ktables_leave(struct ktables *k);
/* The device is not in it, and no change is under way. 0: *k is NULL; -EBUSY: later. */
int ktables_end(struct ktables **k);
/* The transport has forgotten, or will, all that is out. Takes NULL, returns NULL. */
struct ktables *ktables_free(struct ktables *k);

#endif
