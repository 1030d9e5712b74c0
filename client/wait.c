/* SPDX-License-Identifier: MIT */
/*
 * Waiting for jobs. A context's fence line is read straight from shared memory: a job that has completed costs no
 * system call. Otherwise pasid_wait() spins for a moment, then sleeps on the low half of `done` as a futex; the daemon
 * wakes it at every progress and every change of state. A sleep is short, because a wake-up between the look and the
 * sleep, or the death of the daemon, would not end it.
 *
 * `done` is read first (acquire), then `disrupted`: the daemon raises the latter, and sends the event, before the
 * former passes the job.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define SPIN_NS 20000
#define SLEEP_NS 100000000 /* the longest sleep without a look at the socket */
#define SLOW_NS 1000000 /* where futexes are not allowed */

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#endif
}

static uint64_t line_done(const struct ctx *c)
{
	return __atomic_load_n(&c->line->done, __ATOMIC_ACQUIRE);
}

static bool line_lost(const struct ctx *c)
{
	return __atomic_load_n(&c->line->state, __ATOMIC_ACQUIRE) != PASID_CTX_OK;
}

/* Waits until events have told of every disrupted job that the fence line counts: they are in the socket, unless it
 * was full. Bounded, because a coalesced event may tell of fewer. */
static void wait_told(struct pasid *p, struct ctx *c, uint32_t disrupted, int64_t deadline)
{
	int64_t end = now_ns() + SLEEP_NS;

	end = deadline < end ? deadline : end;
	for (;;) {
		struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
		int64_t left = end - now_ns();
		struct timespec ts = {.tv_nsec = left > 0 ? left % 1000000000 : 0};

		if (conn_drain(p) < 0 || (int32_t)(disrupted - c->told) <= 0)
			return;
		if (left <= 0 || (ppoll(&pfd, 1, &ts, NULL) < 0 && errno != EINTR))
			break;
	}
	c->told = disrupted;
}

/* The job is complete: how did it end? */
static int wait_verdict(struct pasid *p, struct ctx *c, uint64_t job, int64_t deadline)
{
	uint32_t disrupted = __atomic_load_n(&c->line->disrupted, __ATOMIC_ACQUIRE);

	if (disrupted != c->seen) {
		wait_told(p, c, disrupted, deadline);
		c->seen = disrupted;
	}
	return events_disrupted(p, c->id, job);
}

/* Sleeps until `done` may have moved from `done`, for at most ns. */
static void wait_sleep(struct pasid *p, const struct ctx *c, uint64_t done, int64_t ns)
{
	struct timespec ts = {.tv_nsec = ns < SLEEP_NS ? ns : SLEEP_NS};
	struct pollfd pfd = {.fd = p->fd, .events = POLLIN};

	if (syscall(SYS_futex, &c->line->done, FUTEX_WAIT, (uint32_t)done, &ts, NULL, 0) == 0)
		return;
	if (errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT)
		return;
	if (ts.tv_nsec > SLOW_NS)
		ts.tv_nsec = SLOW_NS;
	(void)ppoll(&pfd, 1, &ts, NULL);
}

static int wait_lost(struct pasid *p, struct ctx *c)
{
	(void)conn_drain(p); /* it may know why */
	(void)failure(p, -EIO, PASID_WHY_CONTEXT_LOST, c->id, 0);
	return -EIO;
}

/* One look. 0 or PASID_JOB_*, -EIO, or -EAGAIN with *done: not yet. */
static int wait_look(struct pasid *p, struct ctx *c, uint64_t job, int64_t deadline, uint64_t *done)
{
	*done = line_done(c);
	if (*done < job && line_lost(c)) {
		*done = line_done(c); /* it may have completed before the context was lost */
		if (*done < job)
			return wait_lost(p, c);
	}
	return *done < job ? -EAGAIN : wait_verdict(p, c, job, deadline);
}

static int wait_loop(struct pasid *p, struct ctx *c, uint64_t job, int64_t timeout_ns)
{
	int64_t start = now_ns(), now = start, deadline = INT64_MAX;
	uint64_t done;

	if (timeout_ns >= 0 && timeout_ns < INT64_MAX - start)
		deadline = start + timeout_ns;
	for (;;) {
		int r = wait_look(p, c, job, deadline, &done);

		if (r != -EAGAIN)
			return r;
		if (now >= deadline)
			return failure(p, -ETIMEDOUT, PASID_WHY_TIMEOUT, job, done);
		if (p->spin && now - start < SPIN_NS) {
			cpu_relax();
		} else {
			r = conn_drain(p);
			if (r < 0) { /* the daemon is gone; the device may have been faster */
				int last = wait_look(p, c, job, deadline, &done);

				return last == -EAGAIN || last == -EIO ? conn_check(p) : last;
			}
			wait_sleep(p, c, done, deadline - now);
		}
		now = now_ns();
	}
}

/* Complete, and nothing new about how jobs ended: no clock, no system call. */
static bool wait_fast(const struct ctx *c, uint64_t job)
{
	return line_done(c) >= job && __atomic_load_n(&c->line->disrupted, __ATOMIC_RELAXED) == c->seen;
}

static int wait_find(struct pasid *p, uint32_t ctx, struct ctx **c)
{
	*c = ctx_find(p, ctx);
	if (p->dead)
		return conn_check(p);
	return *c ? 0 : failure(p, -ENOENT, PASID_WHY_NO_CONTEXT, ctx, 0);
}

int pasid_wait(struct pasid *p, uint32_t ctx, uint64_t job, int64_t timeout_ns)
{
	struct ctx *c;
	int r = wait_find(p, ctx, &c);

	if (r == 0 && job > c->submitted)
		r = failure(p, -ENOENT, LOCAL_NO_JOB, job, c->submitted);
	if (r == 0)
		r = wait_fast(c, job) ? events_disrupted(p, ctx, job) : wait_loop(p, c, job, timeout_ns);
	if (r >= 0)
		return r;
	if (r == -EIO)
		return error_call(p, r, "wait for job %llu of context %u, as %s", (unsigned long long)job, ctx,
				  error_lost_why(c->lost_why));
	return error_call(p, r, "wait for job %llu of context %u", (unsigned long long)job, ctx);
}

int pasid_fence(struct pasid *p, uint32_t ctx, uint64_t *job)
{
	struct ctx *c;
	int r = wait_find(p, ctx, &c);

	if (r == 0 && !job)
		r = failure(p, -EINVAL, LOCAL_ARGUMENT, 0, 0);
	if (r == 0) {
		bool lost = line_lost(c);

		*job = line_done(c);
		if (lost)
			r = failure(p, -EIO, PASID_WHY_CONTEXT_LOST, ctx, 0);
	}
	return r < 0 ? error_call(p, r, "read the fence of context %u", ctx) : 0;
}
