/* SPDX-License-Identifier: MIT */
/*
 * A client that works and believes nothing: it maps, unmaps, submits and frees at random, and compares every byte that it or
 * the GPU wrote with what it should be. It knows nothing of daemons that come and go; any error ends it.
 *
 *   worker SECONDS CONTEXTS BUFFERS SEED
 *
 * "ready" on stdout once it has all it wants; then it works until stdin is closed, or for SECONDS. The last line is "steps N
 * jobs N worst-us N median-us N resumed N". Status 1 and a sentence on stderr where something was not as it should be.
 */
#include <pasid/pasid.h>
#include <pasid/refgpu.h>

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGES 4u
#define BYTES (PAGES * 4096u)
#define CONTEXTS_MAX 1024u
#define BUFFERS_MAX 16384u
#define SAMPLES 65536u

struct buf {
	uint32_t id;
	uint32_t ctx; /* index of the context that maps it */
	uint64_t iova; /* 0: not mapped */
	uint32_t *map;
	uint32_t word; /* that fills it */
};

struct ctx {
	uint32_t id;
	uint32_t cmd_buf;
	uint64_t cmd_iova;
	struct refgpu_cmd *cmds;
	uint64_t faults;
};

static struct pasid *p;
static struct ctx ctxs[CONTEXTS_MAX];
static struct buf bufs[BUFFERS_MAX];
static uint32_t n_ctxs, n_bufs;
static uint64_t rng, steps, jobs, resumed;
static uint32_t samples[SAMPLES];
static uint64_t worst_us;

static uint32_t any(uint32_t n)
{
	rng = rng * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((rng >> 33) % n);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "worker %d, step %llu: %s: %s\n", (int)getpid(), (unsigned long long)steps, what,
		pasid_error(p));
	exit(1);
}

static void must(int r, const char *what)
{
	if (r < 0)
		die(what);
}

static void look_at_events(void)
{
	struct pasid_event ev = {.size = sizeof(ev)};
	int r;

	while ((r = pasid_next_event(p, &ev)) > 0) {
		if (ev.type == PASID_EVENT_DEVICE_BACK)
			continue; /* it was opened just before */
		if (ev.type != PASID_EVENT_RESUMED) {
			fprintf(stderr, "worker %d: %s\n", (int)getpid(), ev.text);
			exit(1);
		}
		resumed++;
	}
	must(r, "events");
}

static void check(const struct buf *b)
{
	for (uint32_t i = 0; i < BYTES / 4; i++) {
		if (b->map[i] == b->word)
			continue;
		fprintf(stderr, "worker %d, step %llu: word %u of buffer %u is 0x%x, not 0x%x\n", (int)getpid(),
			(unsigned long long)steps, i, b->id, b->map[i], b->word);
		exit(1);
	}
}

static void run(struct ctx *c, uint32_t n)
{
	uint64_t job;
	int r;

	must(pasid_submit(p, c->id, c->cmd_iova, n * sizeof(struct refgpu_cmd), &job), "submit");
	r = pasid_wait(p, c->id, job, 60000000000);
	must(r, "wait");
	if (r != 0)
		die("a job did not end well");
	jobs++;
}

/* ---- the steps ---- */

static void map(struct buf *b)
{
	b->ctx = any(n_ctxs);
	must(pasid_map(p, ctxs[b->ctx].id, b->id, 0, BYTES, PASID_READ | PASID_WRITE, &b->iova), "map");
}

static void unmap(struct buf *b)
{
	must(pasid_unmap(p, ctxs[b->ctx].id, b->iova, BYTES), "unmap");
	b->iova = 0;
}

static void make(struct buf *b)
{
	void *m;

	must(pasid_buf_new(p, NULL, BYTES, &b->id, &m), "buffer");
	b->map = m;
	b->word = any(UINT32_MAX);
	for (uint32_t i = 0; i < BYTES / 4; i++)
		b->map[i] = b->word;
	b->iova = 0;
}

static void remake(struct buf *b)
{
	check(b);
	if (b->iova)
		unmap(b);
	must(pasid_buf_free(p, b->id), "free");
	make(b);
}

static void toggle(struct buf *b)
{
	check(b);
	if (b->iova)
		unmap(b);
	else
		map(b);
}

static void fill(struct buf *b)
{
	struct ctx *c;

	if (!b->iova)
		map(b);
	c = &ctxs[b->ctx];
	b->word = any(UINT32_MAX);
	c->cmds[0] = (struct refgpu_cmd){.op = REFGPU_FILL, .value = b->word, .dst = b->iova, .len = BYTES};
	run(c, 1);
	check(b);
}

/* Between two buffers of one context. */
static void copy(struct buf *to)
{
	struct buf *from = &bufs[any(n_bufs)];
	struct ctx *c;

	if (from == to)
		return;
	if (!to->iova)
		map(to);
	if (from->iova && from->ctx != to->ctx)
		unmap(from);
	c = &ctxs[to->ctx];
	if (!from->iova) {
		from->ctx = to->ctx;
		must(pasid_map(p, c->id, from->id, 0, BYTES, PASID_READ, &from->iova), "map");
	}
	c->cmds[0] = (struct refgpu_cmd){.op = REFGPU_COPY, .dst = to->iova, .src = from->iova, .len = BYTES};
	to->word = from->word;
	run(c, 1);
	check(to);
	check(from);
	/* It was mapped to be read. */
	unmap(from);
}

/* One list: a buffer is replaced by another one at the same address, all or nothing. */
static void replace(struct buf *b)
{
	struct buf *with = &bufs[any(n_bufs)];
	struct pasid_bind_op ops[2] = {{0}};
	size_t failed;

	if (!b->iova || with->iova || with == b)
		return;
	ops[0] = (struct pasid_bind_op){.size = sizeof(ops[0]), .type = PASID_UNMAP, .iova = b->iova, .len = BYTES};
	ops[1] = (struct pasid_bind_op){.size = sizeof(ops[0]),
					.type = PASID_MAP,
					.flags = PASID_READ | PASID_WRITE | PASID_FIXED,
					.buf = with->id,
					.iova = b->iova,
					.len = BYTES};
	must(pasid_bind(p, ctxs[b->ctx].id, ops, 2, &failed), "bind");
	with->ctx = b->ctx;
	with->iova = ops[1].iova;
	b->iova = 0;
}

static void new_context(struct ctx *c)
{
	void *m;

	must(pasid_ctx_new(p, NULL, &c->id), "context");
	must(pasid_buf_new(p, NULL, 4096, &c->cmd_buf, &m), "commands");
	c->cmds = m;
	must(pasid_map(p, c->id, c->cmd_buf, 0, 4096, PASID_READ, &c->cmd_iova), "map of commands");
}

static void renew_context(void)
{
	struct ctx *c = &ctxs[any(n_ctxs)];

	for (uint32_t i = 0; i < n_bufs; i++)
		if (bufs[i].iova && bufs[i].ctx == c - ctxs)
			bufs[i].iova = 0;
	must(pasid_ctx_free(p, c->id), "free of a context");
	must(pasid_buf_free(p, c->cmd_buf), "free of commands");
	new_context(c);
}

static void step(void)
{
	static void (*const steps_of[])(struct buf * b) = {toggle, toggle, toggle, fill, fill, copy, replace, remake};
	uint64_t begun = now_ns();
	uint32_t us;

	if (any(64) == 0)
		renew_context();
	else
		steps_of[any(sizeof(steps_of) / sizeof(steps_of[0]))](&bufs[any(n_bufs)]);
	us = (uint32_t)((now_ns() - begun) / 1000);
	samples[steps++ % SAMPLES] = us;
	worst_us = us > worst_us ? us : worst_us;
	look_at_events();
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static bool asked_to_end(void)
{
	struct pollfd in = {.fd = 0, .events = POLLIN};

	return poll(&in, 1, 0) > 0;
}

/* It may be opened just now, when the first daemon begins. */
static void await_device(void)
{
	struct pasid_device_info info = {.size = sizeof(info)};
	struct pasid_event ev = {.size = sizeof(ev)};
	struct pollfd fd = {.fd = pasid_fd(p), .events = POLLIN};

	for (;;) {
		must(pasid_device_info(p, NULL, &info), "device");
		if (info.present)
			return;
		poll(&fd, 1, 1000);
		while (pasid_next_event(p, &ev) > 0)
			;
	}
}

int main(int argc, char **argv)
{
	uint64_t end;
	uint64_t n;

	if (argc != 5)
		return 2;
	n_ctxs = (uint32_t)atoi(argv[2]);
	n_bufs = (uint32_t)atoi(argv[3]);
	rng = strtoull(argv[4], NULL, 10) * 2654435761u + 1;
	must(pasid_connect(&p, NULL), "connect");
	await_device();
	for (uint32_t i = 0; i < n_ctxs; i++)
		new_context(&ctxs[i]);
	for (uint32_t i = 0; i < n_bufs; i++) {
		make(&bufs[i]);
		if (any(2))
			map(&bufs[i]);
	}
	printf("ready\n");
	fflush(stdout);
	end = now_ns() + strtoull(argv[1], NULL, 10) * 1000000000u;
	while (now_ns() < end && !asked_to_end())
		step();
	for (uint32_t i = 0; i < n_bufs; i++)
		check(&bufs[i]);
	n = steps < SAMPLES ? steps : SAMPLES;
	qsort(samples, n, sizeof(samples[0]), by_value);
	printf("steps %llu jobs %llu worst-us %llu median-us %u resumed %llu\n", (unsigned long long)steps,
	       (unsigned long long)jobs, (unsigned long long)worst_us, n ? samples[n / 2] : 0,
	       (unsigned long long)resumed);
	pasid_disconnect(p);
	return 0;
}
