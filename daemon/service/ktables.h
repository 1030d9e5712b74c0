/* SPDX-License-Identifier: MIT */
/*
 * An address space whose tables the kernel keeps (modes `exclusive` and `pasid`), and how it follows the books: a mapping
 * becomes areas (areas.h), so that cutting one costs little. A change goes in slices: what is gone is unmapped, then
 * what is new is mapped; if one fails, those before it are taken back. It takes no memory, however large it is. Work that
 * runs meanwhile may see the state in between.
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

typedef struct transport_memory *(*ktables_memory)(const struct buffer *buf); /* stays the caller's */

/* Begins to make one; pasid 0: the device is moved there, otherwise what it does under that PASID goes through it. 0,
 * -errno. */
int ktables_new(struct ktables **ret, struct transport *t, const struct ktables_window *window, uint32_t pasid,
		void (*changed)(void *arg), void *arg);
/* The same of one that a predecessor had: what it maps stays mapped, its window as well. saved: by ktables_save(). */
int ktables_adopt(struct ktables **ret, struct transport *t, const void *saved, size_t size,
		  const struct ktables_window *window, uint32_t pasid, void (*changed)(void *arg), void *arg);
/* What a successor needs of one that is made: at most TRANSPORT_SAVE_MAX bytes, and how many. */
size_t ktables_save(const struct ktables *k, void *buf);
/* 0: being made; 1: it is there; -errno: it could not be made. */
int ktables_made(struct ktables *k);
struct transport_space *ktables_space(const struct ktables *k);

/* Begins a change, to what the books show with their open plan; none is under way. The plan stays until it is done. */
void ktables_change(struct ktables *k, const struct aspace *as, const struct plan *plan, ktables_memory memory);
/* Goes on with it, for less than a millisecond. 1: not done yet; 0: done; -errno: taken back, why; -ENOTRECOVERABLE: it could neither be done nor taken
 * back. */
int ktables_go(struct ktables *k);

/* Begins to make good a change of which nobody knows how far it got: whatever is mapped in the n ranges, which lie in ascending
 * order, is unmapped, and what the books show there is mapped. They stay until it is done. */
void ktables_restore(struct ktables *k, const struct aspace *as, const struct range *r, size_t n,
		     ktables_memory memory);
/* As ktables_go(), but a failure is for good. */
int ktables_restore_go(struct ktables *k);

/* Begins, or goes on, to take its PASID away, so that the device cannot reach it. 0: it cannot; 1: not yet; -errno. */
int ktables_leave(struct ktables *k);
/* The device is not in it, and no change is under way. 0: *k is NULL; -errno: later. */
int ktables_end(struct ktables **k);
/* The transport has forgotten, or will, all that is out. Takes NULL, returns NULL. */
struct ktables *ktables_free(struct ktables *k);

#endif
