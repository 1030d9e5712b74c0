/* SPDX-License-Identifier: MIT */
/*
 * The status page: shared memory that the device alone can write, and a read-only fd of it to hand out.
 *
 * There are two pages side by side, and every count goes to both: the one that clients map is a sealed memfd, so that
 * they may load from it without fear; the other is the file that --status names, or nobody's. Counters are changed by
 * status_add and status_set only, on pointers into such a pair.
 */
#ifndef REFGPU_STATUS_H
#define REFGPU_STATUS_H

#include <stdint.h>

#include <pasid/refgpu.h>

struct status_page {
	struct refgpu_status *page; /* REFGPU_BAR_STATUS_SIZE behind it lies its double */
	int fd_ro;
};

/* path: a file to use as the double (created, 0644), or NULL. */
int status_page_init(struct status_page *s, const char *path, unsigned int slots);
/* offset + len lies in the page. */
void status_page_read(const struct status_page *s, uint32_t offset, void *buf, uint32_t len);
void status_page_fini(struct status_page *s);

static inline uint64_t *status_double(uint64_t *counter)
{
	return counter + REFGPU_BAR_STATUS_SIZE / sizeof(*counter);
}

static inline void status_add(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
	__atomic_fetch_add(status_double(counter), n, __ATOMIC_RELAXED);
}

static inline void status_set(uint64_t *counter, uint64_t val)
{
	__atomic_store_n(counter, val, __ATOMIC_RELAXED);
	__atomic_store_n(status_double(counter), val, __ATOMIC_RELAXED);
}

#endif
