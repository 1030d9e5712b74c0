/* SPDX-License-Identifier: MIT */
/*
 * What work costs through libpasid and a running daemon ($PASIDD_SOCKET) with the reference GPU, with NOPs as jobs:
 *
 *   submit-fence        from pasid_submit() to the end of pasid_wait(); limit: a bare request and reply in which the
 *                       peer also tells a third process, and the wait for the number which that one stores
 *   submit-16           a job when 16 are submitted before the last one is waited for; limit: a bare ping-pong
 *   fence, wait-done    pasid_fence(), and pasid_wait() on a job that is done; limit: a load from shared memory
 *   switch              ("switch" as argument; for a GPU with one slot) submit and wait, two contexts in turn; limit:
 *                       the same with one context alone
 */
#include <pasid/pasid.h>
#include <pasid/protocol.h>
#include <pasid/refgpu.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

#define ROUNDS 301u
#define WARM 20u
#define JOBS 16u
#define LOADS 2000u
#define PAGE UINT64_C(4096)

#define REQUEST (sizeof(struct pasid_msg) + sizeof(struct pasid_wire_submit))
#define REPLY (sizeof(struct pasid_reply) + sizeof(struct pasid_submit_reply))

struct bench {
	struct pasid *p;
	uint32_t ctx[2];
	uint64_t iova[2];
	struct bare job, echo;
};

static void check(struct bench *b, int r, const char *what)
{
	if (r != 0)
		die(what, pasid_error(b->p));
}

static void setup(struct bench *b)
{
	struct refgpu_cmd nop = {.op = REFGPU_NOP};
	uint32_t buf;
	void *map;

	if (pasid_connect(&b->p, NULL) < 0)
		die("connect", pasid_error(NULL));
	check(b, pasid_buf_new(b->p, NULL, PAGE, &buf, &map), "commands");
	memcpy(map, &nop, sizeof(nop));
	for (unsigned int i = 0; i < 2; i++) {
		check(b, pasid_ctx_new(b->p, NULL, &b->ctx[i]), "context");
		check(b, pasid_map(b->p, b->ctx[i], buf, 0, PAGE, PASID_READ, &b->iova[i]), "map");
	}
}

static uint64_t submit(struct bench *b, unsigned int i)
{
	uint64_t job;

	check(b, pasid_submit(b->p, b->ctx[i], b->iova[i], sizeof(struct refgpu_cmd), &job), "submit");
	return job;
}

static void run(struct bench *b, unsigned int i)
{
	check(b, pasid_wait(b->p, b->ctx[i], submit(b, i), -1), "wait");
}

/* ---- submit to fence, fences ---- */

static double time_jobs(struct bench *b)
{
	double t = now_ns();

	for (unsigned int i = 0; i < JOBS; i++)
		run(b, 0);
	return (now_ns() - t) / JOBS;
}

static double time_bare_jobs(struct bench *b)
{
	double t = now_ns();

	for (unsigned int i = 0; i < JOBS; i++) {
		bare_call(&b->job);
		bare_wait(&b->job);
	}
	return (now_ns() - t) / JOBS;
}

static double time_flight(struct bench *b)
{
	double t = now_ns();
	uint64_t job = 0;

	for (unsigned int i = 0; i < JOBS; i++)
		job = submit(b, 0);
	check(b, pasid_wait(b->p, b->ctx[0], job, -1), "wait");
	return (now_ns() - t) / JOBS;
}

static double time_fence(struct bench *b)
{
	double t = now_ns();
	uint64_t job;

	for (unsigned int i = 0; i < LOADS; i++)
		check(b, pasid_fence(b->p, b->ctx[0], &job), "fence");
	return (now_ns() - t) / LOADS;
}

static double time_wait(struct bench *b, uint64_t job)
{
	double t = now_ns();

	for (unsigned int i = 0; i < LOADS; i++)
		check(b, pasid_wait(b->p, b->ctx[0], job, -1), "wait");
	return (now_ns() - t) / LOADS;
}

static double time_loads(struct bench *b)
{
	double t = now_ns();
	uint64_t sum = 0;

	for (unsigned int i = 0; i < LOADS; i++)
		sum += __atomic_load_n(b->job.fence, __ATOMIC_ACQUIRE);
	__asm__ volatile("" ::"r"(sum));
	return (now_ns() - t) / LOADS;
}

static void bench_jobs(struct bench *b)
{
	static struct figure latency = {.name = "submit-fence", .unit = "ns"};
	static struct figure flight = {.name = "submit-16", .unit = "ns/job"};
	static struct figure fence = {.name = "fence", .unit = "ns"};
	static struct figure done = {.name = "wait-done", .unit = "ns"};

	bare_start(&b->job, BARE_JOB, REQUEST, REPLY);
	bare_start(&b->echo, BARE_EPOLL, REQUEST, REPLY);
	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double bare, value, loads;

		if (i == WARM)
			latency.n = flight.n = fence.n = done.n = 0;
		bare = time_bare_jobs(b);
		value = time_jobs(b);
		figure_add(&latency, value, bare);
		bare = bare_time(&b->echo, JOBS);
		value = time_flight(b);
		figure_add(&flight, value, bare);
		loads = time_loads(b);
		figure_add(&fence, time_fence(b), loads);
		figure_add(&done, time_wait(b, 1), loads);
	}
	figure_print(&latency);
	figure_print(&flight);
	figure_print(&fence);
	figure_print(&done);
	bare_stop(&b->job);
	bare_stop(&b->echo);
}

/* ---- switches ---- */

static double time_turns(struct bench *b, unsigned int contexts)
{
	double t = now_ns();

	for (unsigned int i = 0; i < JOBS; i++)
		run(b, i % contexts);
	return (now_ns() - t) / JOBS;
}

static uint64_t switches(struct bench *b)
{
	struct pasid_ctx_info info = {.size = sizeof(info)};

	check(b, pasid_ctx_info(b->p, b->ctx[1], &info), "context");
	return info.switches;
}

static void bench_switch(struct bench *b)
{
	static struct figure turns = {.name = "switch", .unit = "ns"};

	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double alone;

		if (i == WARM)
			turns.n = 0;
		alone = time_turns(b, 1);
		figure_add(&turns, time_turns(b, 2), alone);
	}
	if (switches(b) < ROUNDS * JOBS / 2)
		die("switch", "the contexts did not take turns on one slot");
	figure_print(&turns);
}

int main(int argc, char **argv)
{
	struct bench b = {0};

	setup(&b);
	if (argc > 1 && !strcmp(argv[1], "switch"))
		bench_switch(&b);
	else
		bench_jobs(&b);
	pasid_disconnect(b.p);
	return 0;
}
