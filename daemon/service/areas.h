/* SPDX-License-Identifier: MIT */
/*
 * Areas: what the kernel maps of an address space's books where it keeps the tables. Of each mapping, it is the part in each
 * 2 MiB of addresses, so that the books say where every area begins and ends, and nobody has to remember them.
 */
#ifndef SERVICE_AREAS_H
#define SERVICE_AREAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/aspace.h"

struct area_piece { /* an area that is mapped, or unmapped */
	const struct mapping *m; /* that it is a part of */
	struct range r;
	bool map;
};

/* Where in a plan a change is. First what is gone, area by area: an area is unmapped if it changes, and the rests that lie
 * in it are mapped at once, since the client asked for nothing to happen to them. Then what is new. */
struct area_walk {
	const struct aspace *as;
	const struct plan *plan;
	const struct mapping *gone; /* NULL: the new ones' turn */
	struct range area; /* of `gone`, if open */
	bool open; /* the area is unmapped; its rests are next */
	size_t made; /* index of the new mapping */
	uint64_t at; /* IOVA; 0: where the new mapping begins */
	uint64_t n; /* pieces passed */
};

/* Begins to go through the pieces of the address space's open plan. It is the same way each time. */
void areas_walk(struct area_walk *w, const struct aspace *as, const struct plan *plan);
/* False: there are no more. */
bool areas_next(struct area_walk *w, struct area_piece *p);

/* r, and all areas that a change of r may cut. */
struct range areas_around(const struct aspace *as, struct range r);
/* Areas that begin in r, one after the other; *at is where to look on, at first r.first. False: there are no more. */
bool areas_in(const struct aspace *as, struct range r, uint64_t *at, struct area_piece *p);

#endif
