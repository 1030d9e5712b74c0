/* SPDX-License-Identifier: MIT */
/* What every file needs: scoped clean-up of memory and fds, array sizes, and a clock for those who may have one. */
#ifndef BASE_UTIL_H
#define BASE_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline void util_freep(void *p)
{
	free(*(void **)p);
}

static inline void util_closep(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

/* As TAILQ_FOREACH of <sys/queue.h>, where the body may free `var`. */
#define TAILQ_FOREACH_SAFE(var, head, field, next) \
	for ((var) = TAILQ_FIRST(head); (var) && ((next) = TAILQ_NEXT(var, field), 1); (var) = (next))

/* Memory, and fds of our own making, that go when their scope ends unless they are handed on first. */
#define AUTO_FREE __attribute__((cleanup(util_freep)))
#define AUTO_CLOSE __attribute__((cleanup(util_closep)))

/* Hands a pointer on: returns it and forgets it. */
#define TAKE_PTR(p)                     \
	({                              \
		__typeof__(p) t_ = (p); \
		(p) = NULL;             \
		t_;                     \
	})

/* Hands an fd on: returns it and leaves -1. */
static inline int util_take_fd(int *fd)
{
	int t = *fd;

	*fd = -1;
	return t;
}

/* mmap() MAP_SHARED that the closer's children do not inherit, so that munmap() is the end of it. NULL and errno. */
void *util_map_shared(size_t len, int prot, int fd, off_t off);

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t util_now_ns(void);

/* Room for one more element of `size` bytes behind the n that v has room *max for: v, moved perhaps, or NULL and v as it was. */
void *util_grow(void *v, size_t n, size_t *max, size_t size);

#endif
