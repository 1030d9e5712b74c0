/* SPDX-License-Identifier: MIT */
/* The parts of util.h that are not inline: mappings, arrays and the clock. */
#include "base/util.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

void *util_map_shared(size_t len, int prot, int fd, off_t off)
{
	void *p = mmap(NULL, len, prot, MAP_SHARED | MAP_NORESERVE, fd, off);

	if (p == MAP_FAILED)
		return NULL;
	/* A kernel that cannot is not one that forks them. */
	(void)madvise(p, len, MADV_DONTFORK);
	return p;
}

uint64_t util_now_ns(void)
{
	struct timespec ts;

	/* CLOCK_MONOTONIC and a valid pointer: there is no error to handle. */
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void *util_grow(void *v, size_t n, size_t *max, size_t size)
{
	size_t more = *max ? 2 * *max : 64;
	void *p;

	if (n < *max)
		return v;
	p = realloc(v, more * size);
	if (p)
		*max = more;
	return p;
}
