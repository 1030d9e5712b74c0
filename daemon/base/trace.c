/* SPDX-License-Identifier: MIT */
/* See trace.h. */
#include "base/trace.h"

#include <assert.h>
#include <stdio.h>

#include "base/util.h"

_Static_assert(sizeof(struct pasid_trace_record) == 64, "a record is a cache line");
_Static_assert(sizeof(struct pasid_trace_head) <= PASID_TRACE_HEAD, "the head fits in front of the records");

static struct pasid_trace_head *head_of(const struct trace *t)
{
	return t->ring.p;
}

int trace_open(struct trace *t, uint64_t capacity)
{
	int r = 0;

	assert(capacity && !(capacity & (capacity - 1)));
	if (!trace_on(t)) {
		r = shm_init(&t->ring, "pasidd-trace", PASID_TRACE_HEAD + capacity * sizeof(struct pasid_trace_record));
		if (r < 0)
			return r;
		*head_of(t) = (struct pasid_trace_head){
			.magic = PASID_TRACE_MAGIC,
			.version = PASID_TRACE_VERSION,
			.head_bytes = PASID_TRACE_HEAD,
			.record_bytes = sizeof(struct pasid_trace_record),
			.capacity = capacity,
		};
		t->written = 0;
		r = 1;
	}
	t->readers++;
	return r;
}

void trace_name_device(struct trace *t, uint32_t index, const char *name)
{
	struct pasid_trace_head *h = head_of(t);

	assert(index < PASID_TRACE_DEVICES);
	snprintf(h->devices[index], sizeof(h->devices[index]), "%s", name);
	if (h->n_devices <= index)
		h->n_devices = index + 1;
}

void trace_known(struct trace *t)
{
	__atomic_store_n(&head_of(t)->opened, t->written + 1, __ATOMIC_RELEASE);
}

void trace_close(struct trace *t)
{
	assert(t->readers);
	if (!--t->readers)
		shm_fini(&t->ring);
}

void trace_fini(struct trace *t)
{
	t->readers = 0;
	shm_fini(&t->ring);
}

void trace_write(struct trace *t, const struct pasid_trace_record *r)
{
	struct pasid_trace_head *h = head_of(t);
	uint64_t capacity = (t->ring.bytes - PASID_TRACE_HEAD) / sizeof(*r);
	uint8_t *records = (uint8_t *)t->ring.p + PASID_TRACE_HEAD;
	struct pasid_trace_record *to = (void *)(records + (t->written & (capacity - 1)) * sizeof(*r));
	struct pasid_trace_record whole = *r;

	whole.seq = 0;
	whole.time_ns = util_now_ns();
	__atomic_store_n(&to->seq, 0, __ATOMIC_RELAXED);
	/* A reader who finds any of the rest finds this, too. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	*to = whole;
	__atomic_store_n(&to->seq, ++t->written, __ATOMIC_RELEASE);
	__atomic_store_n(&h->written, t->written, __ATOMIC_RELEASE);
}
