/* SPDX-License-Identifier: MIT */
/* See trace_ring.h. */
#include "trace_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"

#define TRIES 64u /* at records that are overwritten meanwhile; then the caller has its turn */
#define BYTES_MOST (1ull << 30)

static const struct pasid_trace_head *head_of(const struct trace_ring *r)
{
	return r->map;
}

/* NULL, or what is wrong with it. */
static const char *judge(struct trace_ring *r)
{
	struct pasid_trace_head h;

	memcpy(&h, r->map, sizeof(h));
	if (h.magic != PASID_TRACE_MAGIC)
		return "it is no trace";
	if (h.version != PASID_TRACE_VERSION)
		return "it has another version than this pasidctl; install matching ones";
	if (h.head_bytes != PASID_TRACE_HEAD || h.record_bytes != sizeof(struct pasid_trace_record) || !h.capacity ||
	    (h.capacity & (h.capacity - 1)) || h.capacity > (r->bytes - PASID_TRACE_HEAD) / h.record_bytes ||
	    h.n_devices > PASID_TRACE_DEVICES)
		return "its head makes no sense";
	r->capacity = h.capacity;
	r->next = h.opened ? h.opened : 1;
	r->n_devices = h.n_devices;
	memcpy(r->devices, h.devices, sizeof(r->devices));
	for (size_t i = 0; i < PASID_TRACE_DEVICES; i++) {
		r->devices[i][sizeof(r->devices[i]) - 1] = '\0';
		for (char *c = r->devices[i]; *c; c++)
			if (*c <= ' ' || *c > '~' || *c == '"' || *c == '\\')
				*c = '?';
	}
	return NULL;
}

int trace_ring_open(struct trace_ring *r, int fd, const char **why)
{
	AUTO_CLOSE int owned = fd;
	int seals = fcntl(owned, F_GET_SEALS);
	struct stat st;
	void *p;

	*r = (struct trace_ring){0};
	*why = "it is no memory that keeps its size";
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(owned, &st) < 0)
		return -EPROTO;
	if (st.st_size < (off_t)(PASID_TRACE_HEAD + sizeof(struct pasid_trace_record)) ||
	    st.st_size > (off_t)BYTES_MOST)
		return -EPROTO;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, owned, 0);
	*why = "it cannot be mapped";
	if (p == MAP_FAILED)
		return -errno;
	r->map = p;
	r->bytes = (size_t)st.st_size;
	*why = judge(r);
	if (!*why)
		return 0;
	trace_ring_close(r);
	return -EPROTO;
}

void trace_ring_close(struct trace_ring *r)
{
	if (r->map)
		munmap((void *)(uintptr_t)r->map, r->bytes);
	r->map = NULL;
}

/* False: there is nothing to read. What was overwritten, or is about to be, is skipped. */
static bool catch_up(struct trace_ring *r)
{
	uint64_t written = __atomic_load_n(&head_of(r)->written, __ATOMIC_ACQUIRE);
	uint64_t skip;

	if (written < r->next)
		return false;
	if (written - r->next < r->capacity)
		return true;
	skip = written - r->next - r->capacity + 1 + r->capacity / 8;
	r->next += skip;
	r->lost += skip;
	return true;
}

int trace_ring_next(struct trace_ring *r, struct pasid_trace_record *ret)
{
	const struct pasid_trace_record *records = (const void *)((const uint8_t *)r->map + PASID_TRACE_HEAD);

	for (unsigned int i = 0; i < TRIES && catch_up(r); i++) {
		const struct pasid_trace_record *from = &records[(r->next - 1) & (r->capacity - 1)];
		uint64_t before = __atomic_load_n(&from->seq, __ATOMIC_ACQUIRE), after;

		memcpy(ret, from, sizeof(*ret));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		after = __atomic_load_n(&from->seq, __ATOMIC_RELAXED);
		r->next++;
		if (before == r->next - 1 && after == before) {
			ret->seq = before;
			return 1;
		}
		r->lost++;
	}
	return 0;
}
