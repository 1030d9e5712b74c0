/* SPDX-License-Identifier: MIT */
/*
 * PASIDs and ASIDs of one device: small numbers that name an address space towards hardware, and that must not be given
 * out again while the device, or a TLB, may remember the last owner. 0 is never given out.
 *
 *   free -> reserved (a context has it) -> installed (the device may have seen it) -> draining (its context is going,
 *   an invalidation is on its way) -> quarantined (invalidated; waits for its turn) -> free
 *
 * A reserved id that was not installed goes back to free at once. Quarantined ids are reused in the order in which they
 * came, and only when no free one is left. A transition that is not in the picture is our own bug, and asserted.
 */
#ifndef CORE_IDS_H
#define CORE_IDS_H

#include <stdbool.h>
#include <stdint.h>

enum id_state { ID_FREE, ID_RESERVED, ID_INSTALLED, ID_DRAINING, ID_QUARANTINED };

struct ids; /* one number space: 16 bit for ASIDs, 20 bit for PASIDs */

/* Numbers 1 .. (1 << bits) - 1. bits 1..20: 0, -EINVAL, -ENOMEM. Takes memory as numbers are used. */
int ids_new(struct ids **ret, unsigned int bits);
struct ids *ids_free(struct ids *s); /* takes NULL, returns NULL */

/* ids_reserve() gives out numbers below 1 << bits only, 1..20, from now on. */
void ids_limit(struct ids *s, unsigned int bits);
/* The lowest free number, else the one quarantined longest. 0, -ENOSPC, -ENOMEM. */
int ids_reserve(struct ids *s, uint32_t *ret);
/* Takes this very number, which is free or quarantined (for rebuilding from records). 0, -EEXIST, -EINVAL,
 * -ENOMEM. */
int ids_reserve_exact(struct ids *s, uint32_t id);
void ids_installed(struct ids *s, uint32_t id); /* reserved or installed -> installed */
/* Its context is going: reserved -> free (returns false: nothing to invalidate), installed -> draining (true). */
bool ids_release(struct ids *s, uint32_t id);
void ids_drained(struct ids *s, uint32_t id); /* draining -> quarantined: the invalidation is complete */
void ids_drained_all(struct ids *s); /* a reset or a full invalidation: all draining -> quarantined */
enum id_state ids_state(const struct ids *s, uint32_t id); /* free, too, if there is no such number */
uint32_t ids_in_use(const struct ids *s); /* reserved, installed or draining */

#endif
