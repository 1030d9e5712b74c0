/* SPDX-License-Identifier: MIT */
/*
 * Events for whoever looks: the ring of <pasid/trace.h>, in memory that readers have read-only. It is there while somebody has
 * it open, and until then an event costs one comparison. Nothing of it is ever read by us: where it goes on stands here.
 */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/trace.h>

#include "base/shm.h"

struct trace {
	struct shm ring; /* .p NULL: nobody looks */
	uint64_t written;
	unsigned int readers;
};

static inline bool trace_on(const struct trace *t)
{
	return t->ring.p;
}

/* One more reader. capacity, in records, is a power of two and counts for the first one. 1: it is the first one, and the
 * devices have to be named; 0; -errno. */
int trace_open(struct trace *t, uint64_t capacity);
void trace_name_device(struct trace *t, uint32_t index, const char *name);
/* From here on follows what is so already, for the reader who has just come. */
void trace_known(struct trace *t);
/* Takes a reader back; without any the ring goes. Those who have its fd keep what is in it. */
void trace_close(struct trace *t);
void trace_fini(struct trace *t);

/* Only if it is on. Number and time are filled in. */
void trace_write(struct trace *t, const struct pasid_trace_record *r);

#endif
