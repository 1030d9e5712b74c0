/* SPDX-License-Identifier: MIT */
/*
 * What a device finds at which bus address, by purpose. Rings, tables and fences are reached by no GPU virtual address:
 * page tables only ever point into `buffers`.
 *
 * The layout follows from the addresses that the transport can map, so that it is the same each time the device is
 * opened. Holes in them (an interrupt controller's window) may lie in `fences` and `buffers`, where addresses are looked
 * for, but not under the rest.
 */
#ifndef SERVICE_LAYOUT_H
#define SERVICE_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>

#include <pasid/range.h>

#define LAYOUT_MAX_RANGES 16u

struct bus_layout {
	struct range usable[LAYOUT_MAX_RANGES]; /* ascending */
	size_t n_usable;
	struct range engine; /* rings, marks, queues */
	struct range nest; /* context descriptors, and the window; judged by who needs them */
	struct range tables;
	struct range fences;
	struct range buffers;
};

/* l->usable is the caller's. 0; -ERANGE: there is not enough, or a hole is in the way. */
int layout_make(struct bus_layout *l);
bool layout_usable(const struct bus_layout *l, struct range r);
/* Leaves of l->usable what fits into so many bits. */
void layout_clip(struct bus_layout *l, unsigned int bits);
/* Calls fn for each range between first and last that is not usable. */
void layout_holes(const struct bus_layout *l, struct range within, void (*fn)(void *arg, struct range hole), void *arg);

#endif
