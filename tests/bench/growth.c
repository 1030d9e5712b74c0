/* SPDX-License-Identifier: MIT */
/*
 * How the daemon at $PASIDD_SOCKET grows: many 4 KiB mappings live at once in one context, and over 1,000 contexts. For
 * each number of mappings a line, separated by tabs:
 *
 *   contexts, mappings, ns to map one where the daemon chooses the IOVA, ns to map one at a given IOVA, ns to unmap
 *   one, ns of freeing the contexts for each of their mappings, bytes of the daemon's own memory for each, bytes of
 *   page tables for each
 *
 * All through libpasid in lists of up to 512. No two mappings can merge: every second page stays free. Times are those
 * of the repetition that was disturbed least, memory is what the first one added.
 *
 *   growth [MAPPINGS...]    instead of 1000 10000 100000 1000000
 */
#include <pasid/pasid.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "bench.h"

#define LIST 512u
#define CONTEXTS 1000u
#define REPEAT 9u
#define PAGE UINT64_C(4096)
#define PAGES 1024u /* of the buffer: mapped over and over */
#define IOVA UINT64_C(0x10000000)

struct growth {
	struct pasid *p;
	int daemon; /* pid */
	uint32_t buf;
	uint32_t ctx[CONTEXTS];
	unsigned int contexts;
	uint64_t each; /* mappings of a context */
	struct pasid_bind_op op[LIST];
};

struct sample {
	double chosen, fixed, unmap, free, memory, tables;
};

static void check(struct growth *g, int r, const char *what)
{
	if (r != 0)
		die(what, pasid_error(g->p));
}

static void setup(struct growth *g)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (pasid_connect(&g->p, NULL) < 0)
		die("connect", pasid_error(NULL));
	if (getsockopt(pasid_fd(g->p), SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		die("connect", "no SO_PEERCRED");
	g->daemon = peer.pid;
	check(g, pasid_buf_new(g->p, NULL, PAGES * PAGE, &g->buf, NULL), "buffer");
}

/* Bytes of the daemon's own memory: not files, so not page tables and not buffers. */
static double daemon_memory(const struct growth *g)
{
	char path[64], line[128];
	unsigned long kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", g->daemon);
	f = fopen(path, "re");
	if (!f)
		die(path, "cannot be opened");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lu", &kib) == 1)
			break;
	fclose(f);
	return (double)kib * 1024;
}

static double tables(struct growth *g)
{
	struct pasid_ctx_info info = {.size = sizeof(info)};
	double bytes = 0;

	for (unsigned int i = 0; i < g->contexts; i++) {
		check(g, pasid_ctx_info(g->p, g->ctx[i], &info), "info");
		if (info.mappings != g->each)
			die("info", "another number of mappings than there must be");
		bytes += (double)info.table_bytes;
	}
	return bytes;
}

static void ctx_new_all(struct growth *g)
{
	for (unsigned int i = 0; i < g->contexts; i++)
		check(g, pasid_ctx_new(g->p, NULL, &g->ctx[i]), "context");
}

static void ctx_free_all(struct growth *g)
{
	for (unsigned int i = 0; i < g->contexts; i++)
		check(g, pasid_ctx_free(g->p, g->ctx[i]), "free");
}

enum what { MAP_CHOSEN, MAP_FIXED, UNMAP };

static void fill_list(struct growth *g, enum what what, uint64_t first, unsigned int n)
{
	for (unsigned int k = 0; k < n; k++) {
		struct pasid_bind_op *op = &g->op[k];
		uint64_t i = first + k;

		*op = (struct pasid_bind_op){.size = sizeof(*op), .type = PASID_UNMAP, .len = PAGE};
		op->iova = IOVA + 2 * i * PAGE;
		if (what == UNMAP)
			continue;
		op->type = PASID_MAP;
		op->flags = PASID_READ | PASID_WRITE | (what == MAP_FIXED ? PASID_FIXED : 0);
		op->buf = g->buf;
		op->off = i * 7 % PAGES * PAGE;
	}
}

/* Does it for every mapping of every context; ns of each. */
static double bind_all(struct growth *g, enum what what)
{
	double t = 0, start;

	for (unsigned int c = 0; c < g->contexts; c++) {
		for (uint64_t i = 0; i < g->each; i += LIST) {
			unsigned int n = g->each - i < LIST ? (unsigned int)(g->each - i) : LIST;

			fill_list(g, what, i, n);
			start = now_ns();
			check(g, pasid_bind_any(g->p, g->ctx[c], g->op, n, NULL), "bind");
			t += now_ns() - start;
		}
	}
	return t / (double)(g->each * g->contexts);
}

static struct sample measure(struct growth *g)
{
	double n = (double)(g->each * g->contexts), t;
	struct sample s;

	ctx_new_all(g);
	s.memory = -daemon_memory(g);
	s.chosen = bind_all(g, MAP_CHOSEN);
	s.memory = (s.memory + daemon_memory(g)) / n;
	s.tables = tables(g) / n;
	t = now_ns();
	ctx_free_all(g);
	s.free = (now_ns() - t) / n;

	ctx_new_all(g);
	s.fixed = bind_all(g, MAP_FIXED);
	s.unmap = bind_all(g, UNMAP);
	ctx_free_all(g);
	return s;
}

/* The least of the n doubles that begin at v, one in each sample: of the run that was disturbed least. */
static double least(const double *v, unsigned int n)
{
	double min = *v;

	for (unsigned int i = 1; i < n; i++) {
		double x = *(const double *)(const void *)((const char *)v + i * sizeof(struct sample));

		min = x < min ? x : min;
	}
	return min;
}

static void grow(struct growth *g, unsigned int contexts, uint64_t mappings)
{
	unsigned int repeat = mappings < 1000000 ? REPEAT : 5;
	struct sample s[REPEAT];

	g->contexts = contexts;
	g->each = mappings / contexts;
	for (unsigned int i = 0; i < repeat; i++)
		s[i] = measure(g);
	printf("%u\t%" PRIu64 "\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\n", contexts, g->each * contexts,
	       least(&s[0].chosen, repeat), least(&s[0].fixed, repeat), least(&s[0].unmap, repeat),
	       least(&s[0].free, repeat), s[0].memory, s[0].tables);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const uint64_t all[] = {1000, 10000, 100000, 1000000};
	static struct growth g;

	setup(&g);
	for (unsigned int k = 0; k < 2; k++) {
		for (size_t i = 0; argc == 1 && i < sizeof(all) / sizeof(all[0]); i++)
			grow(&g, k ? CONTEXTS : 1, all[i]);
		for (int i = 1; i < argc; i++)
			grow(&g, k ? CONTEXTS : 1, strtoull(argv[i], NULL, 10));
	}
	pasid_disconnect(g.p);
	return 0;
}
