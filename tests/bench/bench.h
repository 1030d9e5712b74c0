/* SPDX-License-Identifier: MIT */
/*
 * What the benchmarks share: the clock, figures with their limits, and bare peers: the least that could answer a
 * request in another process, against which pasidd is measured in the same rounds.
 */
#ifndef TESTS_BENCH_H
#define TESTS_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define ROUNDS_MAX 1001u

/* Bytes of a bind list of n operations and of its reply (<pasid/protocol.h>). */
#define BIND_REQUEST(n) \
	(sizeof(struct pasid_msg) + sizeof(struct pasid_bind_head) + (n) * sizeof(struct pasid_wire_bind_op))
#define BIND_REPLY(n) (sizeof(struct pasid_reply) + (n) * sizeof(uint64_t))

/* Samples of something and of its limit, taken in turn. Medians are printed, so that a busy machine changes little. */
struct figure {
	const char *name;
	const char *unit;
	unsigned int n;
	double value[ROUNDS_MAX];
	double limit[ROUNDS_MAX];
};

static inline double now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#endif
}

void figure_add(struct figure *f, double value, double limit);
/* One line: name, value, unit, limit, ratio, separated by tabs. */
void figure_print(struct figure *f);

/* Says so and exits. */
void die(const char *what, const char *why) __attribute__((noreturn));

enum bare_kind {
	BARE_BLOCKING, /* recv, send */
	BARE_EPOLL, /* epoll_wait, recv, send: an event loop */
	BARE_CHAIN, /* an event loop that asks a third process by a message, hears by an eventfd, then answers */
	BARE_JOB, /* an event loop that tells a third process and answers; that one stores a number in memory */
};

/* A peer in a process of its own, over a SEQPACKET socket. */
struct bare {
	enum bare_kind kind;
	int fd;
	int pid, pid_device;
	size_t request, reply; /* bytes */
	uint64_t *fence; /* BARE_JOB: the number of the last job, as the third process stored it */
	uint64_t jobs;
	char *buf;
};

void bare_start(struct bare *b, enum bare_kind kind, size_t request, size_t reply);
void bare_stop(struct bare *b);
/* A request and its reply. */
void bare_call(struct bare *b);
/* Nanoseconds of each of n of them. */
double bare_time(struct bare *b, unsigned int n);
/* BARE_JOB: waits as pasid_wait() does for what the last call asked for. */
void bare_wait(struct bare *b);

#endif
