/* SPDX-License-Identifier: MIT */
/*
 * Writes records of <pasid/trace.h> as a timeline: Chrome's trace event format, JSON, which https://ui.perfetto.dev shows. A device
 * is a process; its slots are threads, on which contexts' runs and in them jobs lie; each context is a thread, too, for maps and
 * unmaps. What was begun is ended before something else begins on the same track, whatever the records say, and time never goes
 * back.
 */
#ifndef PASIDCTL_TIMELINE_H
#define PASIDCTL_TIMELINE_H

#include <stdint.h>
#include <stdio.h>

#include <pasid/trace.h>

struct timeline;

/* names: of the devices, printable, without quotes or backslashes. 0, -ENOMEM. */
int timeline_new(struct timeline **ret, FILE *f, const char names[][32], uint32_t n_devices);
/* 0, -ENOMEM. Records that make no sense are left out. */
int timeline_add(struct timeline *t, const struct pasid_trace_record *r);
/* n records are missing here. */
void timeline_lost(struct timeline *t, uint64_t n);
/* The end of the text. Takes NULL, returns NULL. */
struct timeline *timeline_end(struct timeline *t);

#endif
