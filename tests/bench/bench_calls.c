/* SPDX-License-Identifier: MIT */
/*
 * What a bind costs through libpasid and a running daemon ($PASIDD_SOCKET), against bare messages of the same sizes:
 *
 *   map-unmap           one page mapped and unmapped, two calls, in a context that never ran; limit: two ping-pongs
 *                       with a process that sits in recv
 *   map-unmap-epoll     the same samples; limit: two ping-pongs with a process that sits in epoll_wait
 *   bind-256            one of 256 maps of scattered pages in one message (no two can merge)
 *   unmap-256           one of their 256 unmaps in one message, in a context that never ran
 *   unmap-256-ran       the same in a context that ran, with its invalidation complete; limit: a ping-pong in which
 *                       the peer asks a third process
 *
 * An argument is appended to the names.
 */
#include <pasid/pasid.h>
#include <pasid/protocol.h>
#include <pasid/refgpu.h>

#include <stdio.h>
#include <string.h>

#include "bench.h"

#define ROUNDS 301u
#define WARM 20u
#define PAIRS 20u
#define LIST 256u
#define LISTS 4u
#define PAGE UINT64_C(4096)
#define PAGES 1024u
#define IOVA UINT64_C(0x10000000)

enum { MAP_UNMAP, MAP_UNMAP_EPOLL, BIND, UNMAP, BIND_RAN, UNMAP_RAN, FIGURES };

static struct figure figures[FIGURES] = {
	[MAP_UNMAP] = {"map-unmap", "ns", 0, {0}, {0}},
	[MAP_UNMAP_EPOLL] = {"map-unmap-epoll", "ns", 0, {0}, {0}},
	[BIND] = {"bind-256", "ns/bind", 0, {0}, {0}},
	[UNMAP] = {"unmap-256", "ns/bind", 0, {0}, {0}},
	[BIND_RAN] = {"bind-256-ran", "ns/bind", 0, {0}, {0}},
	[UNMAP_RAN] = {"unmap-256-ran", "ns/bind", 0, {0}, {0}},
};

static struct bench {
	struct pasid *p;
	uint32_t idle, ran; /* contexts */
	uint32_t buf;
	struct pasid_bind_op map[LIST], unmap[LIST];
	struct bare blocking, epoll, list, chain;
} bench;

static void check(struct bench *b, int r, const char *what)
{
	if (r != 0)
		die(what, pasid_error(b->p));
}

/* A NOP on the GPU, so that from now on it may remember translations of the context. */
static void run_once(struct bench *b, uint32_t ctx)
{
	struct refgpu_cmd nop = {.op = REFGPU_NOP};
	uint64_t iova, job;
	uint32_t buf;
	void *map;

	check(b, pasid_buf_new(b->p, NULL, PAGE, &buf, &map), "commands");
	memcpy(map, &nop, sizeof(nop));
	check(b, pasid_map(b->p, ctx, buf, 0, PAGE, PASID_READ, &iova), "commands");
	check(b, pasid_submit(b->p, ctx, iova, sizeof(nop), &job), "submit");
	check(b, pasid_wait(b->p, ctx, job, -1), "wait");
}

static void setup(struct bench *b)
{
	if (pasid_connect(&b->p, NULL) < 0)
		die("connect", pasid_error(NULL));
	check(b, pasid_ctx_new(b->p, NULL, &b->idle), "context");
	check(b, pasid_ctx_new(b->p, NULL, &b->ran), "context");
	check(b, pasid_buf_new(b->p, NULL, PAGES * PAGE, &b->buf, NULL), "buffer");
	run_once(b, b->ran);
	for (unsigned int i = 0; i < LIST; i++) {
		struct pasid_bind_op *m = &b->map[i], *u = &b->unmap[i];

		/* Every second page, from places in the buffer that alternate between its two ends. */
		*m = (struct pasid_bind_op){.size = sizeof(*m), .type = PASID_MAP, .buf = b->buf, .len = PAGE};
		m->flags = PASID_READ | PASID_WRITE | PASID_FIXED;
		m->iova = IOVA + 2 * i * PAGE;
		m->off = (i % 2 ? PAGES - 1 - i : i) * PAGE;
		*u = (struct pasid_bind_op){.size = sizeof(*u), .type = PASID_UNMAP, .iova = m->iova, .len = PAGE};
	}
	bare_start(&b->blocking, BARE_BLOCKING, BIND_REQUEST(1), BIND_REPLY(1));
	bare_start(&b->epoll, BARE_EPOLL, BIND_REQUEST(1), BIND_REPLY(1));
	bare_start(&b->list, BARE_BLOCKING, BIND_REQUEST(LIST), BIND_REPLY(LIST));
	bare_start(&b->chain, BARE_CHAIN, BIND_REQUEST(LIST), BIND_REPLY(LIST));
}

static double time_pairs(struct bench *b)
{
	uint64_t iova = IOVA;
	double t = now_ns();

	for (unsigned int i = 0; i < PAIRS; i++) {
		int r = pasid_map(b->p, b->idle, b->buf, 0, PAGE, PASID_READ | PASID_WRITE | PASID_FIXED, &iova);

		check(b, r, "map");
		check(b, pasid_unmap(b->p, b->idle, iova, PAGE), "unmap");
	}
	return (now_ns() - t) / PAIRS;
}

/* Nanoseconds of each operation of LISTS lists. */
static void time_lists(struct bench *b, uint32_t ctx, double *map, double *unmap)
{
	double t0, t1, t2;

	*map = *unmap = 0;
	for (unsigned int i = 0; i < LISTS; i++) {
		t0 = now_ns();
		check(b, pasid_bind(b->p, ctx, b->map, LIST, NULL), "bind");
		t1 = now_ns();
		check(b, pasid_bind(b->p, ctx, b->unmap, LIST, NULL), "unbind");
		t2 = now_ns();
		*map += (t1 - t0) / (LISTS * LIST);
		*unmap += (t2 - t1) / (LISTS * LIST);
	}
}

static void measure_round(struct bench *b, struct figure *f)
{
	double blocking, epoll, list, chain, pair, map, unmap;

	blocking = 2 * bare_time(&b->blocking, 2 * PAIRS);
	pair = time_pairs(b);
	epoll = 2 * bare_time(&b->epoll, 2 * PAIRS);
	figure_add(&f[MAP_UNMAP], pair, blocking);
	figure_add(&f[MAP_UNMAP_EPOLL], pair, epoll);

	list = bare_time(&b->list, LISTS) / LIST;
	time_lists(b, b->idle, &map, &unmap);
	figure_add(&f[BIND], map, list);
	figure_add(&f[UNMAP], unmap, list);

	chain = bare_time(&b->chain, LISTS) / LIST;
	time_lists(b, b->ran, &map, &unmap);
	figure_add(&f[BIND_RAN], map, list);
	figure_add(&f[UNMAP_RAN], unmap, chain);
}

int main(int argc, char **argv)
{
	struct bench *b = &bench;
	static char names[FIGURES][64];

	setup(b);
	for (unsigned int i = 0; i < WARM; i++)
		measure_round(b, figures);
	for (unsigned int i = 0; i < FIGURES; i++)
		figures[i].n = 0;
	for (unsigned int i = 0; i < ROUNDS; i++)
		measure_round(b, figures);
	for (unsigned int i = 0; i < FIGURES; i++) {
		snprintf(names[i], sizeof(names[i]), "%s%s", figures[i].name, argc > 1 ? argv[1] : "");
		figures[i].name = names[i];
		figure_print(&figures[i]);
	}
	bare_stop(&b->blocking);
	bare_stop(&b->epoll);
	bare_stop(&b->list);
	bare_stop(&b->chain);
	pasid_disconnect(b->p);
	return 0;
}
