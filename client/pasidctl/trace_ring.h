/* SPDX-License-Identifier: MIT */
/*
 * Reads the ring of <pasid/trace.h>. It is memory that another process writes while we read: each record is copied, judged by
 * its number before and after, and no number in it is believed.
 */
#ifndef PASIDCTL_TRACE_RING_H
#define PASIDCTL_TRACE_RING_H

#include <stddef.h>
#include <stdint.h>

#include <pasid/trace.h>

struct trace_ring {
	const void *map; /* NULL: nothing here */
	size_t bytes;
	uint64_t capacity;
	uint64_t next; /* number of the record that comes next */
	uint64_t lost; /* records that were overwritten before they were read */
	uint32_t n_devices;
	char devices[PASID_TRACE_DEVICES][32]; /* names, printable */
};

/* Takes fd. 0; -errno, and *why says what is wrong with it. */
int trace_ring_open(struct trace_ring *r, int fd, const char **why);
void trace_ring_close(struct trace_ring *r);
#define AUTO_TRACE_RING __attribute__((cleanup(trace_ring_close)))

/* 1 and a record, or 0: there is none now. */
int trace_ring_next(struct trace_ring *r, struct pasid_trace_record *ret);

#endif
