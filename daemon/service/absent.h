/* SPDX-License-Identifier: MIT */
/*
 * What a journal tells of devices that are not configured any more, or to be something else: their contexts and buffers are
 * not taken over, and entries about them mean nothing.
 */
#ifndef SERVICE_ABSENT_H
#define SERVICE_ABSENT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/books.h"
#include "core/idmap.h"
#include "core/record.h"

#define ABSENT_DEVICES 64u

struct absent {
	bool device[ABSENT_DEVICES]; /* by the index of records */
	struct idmap contexts;
	struct absent_context *v; /* all there were */
	size_t n, max;
	struct absent_buffer *bufs;
	size_t n_bufs, max_bufs;
};

/* Is the record, or the fact, about something absent? Makes a note of what comes and goes.
 * -EINVAL, -EEXIST: a context that cannot be; -ENOMEM. */
int absent_record(struct absent *a, const struct record *rec, bool *ret);
bool absent_fact(const struct absent *a, uint32_t type, const void *p);
/* Whoever waits for jobs of a context that is absent stops waiting. */
void absent_tell(const struct absent *a, struct books *books);
void absent_fini(struct absent *a);

#endif
