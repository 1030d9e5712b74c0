/* SPDX-License-Identifier: MIT */
/*
 * Apps that come, ask for anything and go, at random, in any mode: what they ask for, and what each of them knows of itself.
 */
#ifndef TESTS_UNIT_SERVICE_RANDOM_H
#define TESTS_UNIT_SERVICE_RANDOM_H

#include "service_rig.h"

#define AT 0x400000ull /* IOVA; amidst nothing */
#define BUFFER_PAGES 2048u

static const uint64_t bytes = BUFFER_PAGES * PAGE;

#define SPAN_PAGES 4096u /* of IOVAs from AT */
#define COMMANDS 0x200000ull
#define BUFFERS 2u

enum asked { NOTHING, CTX, LIST, JOB, FREE };

/* What an app knows of itself. */
static struct known {
	uint32_t ctx; /* 0: none */
	uint32_t buf[BUFFERS];
	int fd[BUFFERS];
	enum asked asked;
	uint64_t at[SPAN_PAGES]; /* offset in the buffers, one behind the other, + 1; 0: not mapped */
	uint64_t after[SPAN_PAGES]; /* once the list that was asked for is done */
} known[APPS];

static unsigned int n_done[FREE + 1], n_refused, n_lost; /* requests */

static uint8_t mark_of(size_t i)
{
	return (uint8_t)(0xa0 + i);
}

static void come(size_t i)
{
	struct known *k = &known[i];
	static uint8_t fill[BUFFER_PAGES * PAGE];

	*k = (struct known){0};
	app_begin(&apps[i]);
	memset(fill, mark_of(i), sizeof(fill));
	for (size_t b = 0; b < BUFFERS; b++) {
		k->buf[b] = app_import(&apps[i], bytes, &k->fd[b]);
		assert_int_equal(pwrite(k->fd[b], fill, bytes, 0), bytes);
	}
}

/* Nobody else's bytes ever came into its memory. Zeros did: the device is cleared between two apps. */
static void go(size_t i)
{
	static uint8_t found[BUFFER_PAGES * PAGE];
	struct known *k = &known[i];

	app_end(&apps[i]);
	for (size_t b = 0; b < BUFFERS; b++) {
		assert_int_equal(pread(k->fd[b], found, bytes, 0), bytes);
		for (size_t at = sizeof(struct pasid_edu_cmd); at < bytes; at++)
			if (found[at] != mark_of(i) && found[at])
				fail_msg("app %zu has %#x at %zu of buffer %zu", i, found[at], at, b);
		close(k->fd[b]);
	}
}

static void random_list(size_t i)
{
	struct pasid_wire_bind_op op[6];
	struct known *k = &known[i];
	uint32_t n_ops = 1 + draw(ARRAY_SIZE(op));

	memcpy(k->after, k->at, sizeof(k->at));
	for (uint32_t o = 0; o < n_ops; o++) {
		size_t first = draw(SPAN_PAGES), n = 1, most = 1 + draw(draw(2) ? 5 : 1500);
		bool map = !k->after[first];
		uint32_t b = draw(BUFFERS);
		uint64_t off;

		while (n < most && first + n < SPAN_PAGES && !k->after[first + n] == map)
			n++;
		off = draw(BUFFER_PAGES - (uint32_t)n + 1) * PAGE;
		op[o] = map ? wire_map(k->buf[b], off, AT + first * PAGE, n * PAGE)
			    : wire_unmap(AT + first * PAGE, n * PAGE);
		for (size_t p = 0; p < n; p++)
			k->after[first + p] = map ? b * bytes + off + p * PAGE + 1 : 0;
	}
	k->asked = LIST;
	app_ask_bind(&apps[i], k->ctx, op, n_ops);
}

static void random_job(size_t i)
{
	const struct pasid_edu_cmd cmd = {
		.op = PASID_EDU_COPY,
		.dst = AT + draw(SPAN_PAGES) * PAGE,
		.src = AT + draw(SPAN_PAGES) * PAGE,
		.len = PAGE,
	};
	const struct pasid_wire_submit in = {.ctx = known[i].ctx, .iova = COMMANDS, .len = sizeof(cmd)};

	assert_int_equal(pwrite(known[i].fd[0], &cmd, sizeof(cmd), 0), sizeof(cmd));
	known[i].asked = JOB;
	app_ask(&apps[i], PASID_OP_SUBMIT, &in, sizeof(in), -1);
}

static void free_ctx(size_t i)
{
	const struct pasid_ctx_query in = {.ctx = known[i].ctx};

	known[i].asked = FREE;
	app_ask(&apps[i], PASID_OP_CTX_FREE, &in, sizeof(in), -1);
}

/* Where every context has its commands. */
static void map_commands(size_t i)
{
	struct pasid_wire_bind_op op = wire_map(known[i].buf[0], 0, COMMANDS, PAGE);

	op.flags &= ~(uint32_t)PASID_MAP_WRITE;
	memcpy(known[i].after, known[i].at, sizeof(known[i].at));
	known[i].asked = LIST;
	app_ask_bind(&apps[i], known[i].ctx, &op, 1);
}

/* A reply has come. */
static void learn(size_t i)
{
	struct known *k = &known[i];
	uint32_t why = apps[i].reply.reason;
	enum asked asked = k->asked;

	k->asked = NOTHING;
	n_done[asked] += why == 0;
	n_refused += why == PASID_WHY_QUOTA_KERNEL || why == PASID_WHY_QUOTA_MEMORY;
	n_lost += why == PASID_WHY_CONTEXT_LOST;
	if (asked == LIST && why == 0)
		memcpy(k->at, k->after, sizeof(k->at));
	if (asked == FREE)
		k->ctx = 0;
	if (asked == CTX && why == 0) {
		k->ctx = ((struct pasid_ctx_new_reply *)(void *)apps[i].body)->ctx;
		memset(k->at, 0, sizeof(k->at));
		map_commands(i);
	} else if (why == PASID_WHY_CONTEXT_LOST) {
		free_ctx(i);
	} else {
		assert_true(why == 0 || why == PASID_WHY_QUOTA_KERNEL || why == PASID_WHY_QUOTA_MEMORY ||
			    why == PASID_WHY_DEVICE_GONE);
	}
}

static void random_request(size_t i)
{
	struct known *k = &known[i];
	struct app *a = &apps[i];
	uint32_t what = draw(100);

	if (!a->client) {
		if (is_ready() && !kernel.fail_at)
			come(i);
	} else if (what < 2) {
		go(i);
	} else if (a->pending) {
		return;
	} else if (k->asked) {
		learn(i);
	} else if (!k->ctx) {
		k->asked = CTX;
		app_ask_ctx(a);
	} else if (what < 5) {
		free_ctx(i);
	} else if (what < 50) {
		random_job(i);
	} else {
		random_list(i);
	}
}

static void seed_random(void)
{
	unsigned int seed =
		getenv("SEED") ? (unsigned int)strtoul(getenv("SEED"), NULL, 0) : (unsigned int)util_now_ns();

	print_message("# SEED=%u\n", seed);
	srandom(seed);
}

#endif
