/* SPDX-License-Identifier: MIT */
/*
 * One client with many contexts: many_contexts SOCKET CONTEXTS JOBS
 *
 * Each context has a page to fill, a page to copy it to, a page that receives what is in the slot's scratch memory, and
 * a counter. Every job counts itself, and leaves the context's own mark in scratch memory, so that another one's mark
 * shows up wherever it leaks. Prints "ok CONTEXTS JOBS SWITCHES", or what is wrong, and then ends with status 1.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pasid/pasid.h>
#include <pasid/refgpu.h>

#define PAGE 4096u
#define DEADLINE_NS 60000000000ll
#define JOB_CMDS 6u
#define JOB_BYTES (JOB_CMDS * REFGPU_CMD_SIZE)
#define MAX_JOBS 10u /* commands of all jobs of a context fit into a page */

enum { COUNTER, FROM, TO, SCRATCH, MARK, COMMANDS, N_PAGES };

struct one {
	uint32_t ctx, buf;
	uint32_t value;
	uint8_t *mem;
	uint64_t iova;
	uint64_t last_seen; /* of its fence, which only rises */
};

static struct pasid *p;

static void fail(const struct one *c, const char *what)
{
	printf("context %u: %s: %s\n", c ? c->ctx : 0, what, pasid_error(p));
	exit(1);
}

static uint64_t page(const struct one *c, unsigned int n)
{
	return c->iova + n * PAGE;
}

static void one_new(struct one *c)
{
	void *mem = NULL;

	if (pasid_ctx_new(p, NULL, &c->ctx) < 0 || pasid_buf_new(p, NULL, N_PAGES * PAGE, &c->buf, &mem) < 0 ||
	    pasid_map(p, c->ctx, c->buf, 0, N_PAGES * PAGE, PASID_READ | PASID_WRITE, &c->iova) < 0)
		fail(c, "set up");
	c->mem = mem;
	c->value = 0x5a000000u | c->ctx;
	for (unsigned int i = 0; i < PAGE / 4; i++)
		memcpy(c->mem + MARK * PAGE + 4 * i, &c->value, 4);
}

static void one_submit(struct one *c, unsigned int n)
{
	const struct refgpu_cmd cmds[JOB_CMDS] = {
		{.op = REFGPU_LOAD, .dst = page(c, SCRATCH), .src = 64, .len = PAGE},
		{.op = REFGPU_FILL, .value = c->value + n, .dst = page(c, FROM), .len = PAGE},
		{.op = REFGPU_COPY, .dst = page(c, TO), .src = page(c, FROM), .len = PAGE},
		{.op = REFGPU_NOP},
		{.op = REFGPU_STORE, .dst = 64, .src = page(c, MARK), .len = PAGE},
		{.op = REFGPU_ATOMIC, .dst = page(c, COUNTER), .value = 1},
	};
	uint64_t job;

	memcpy(c->mem + COMMANDS * PAGE + n * JOB_BYTES, cmds, sizeof(cmds));
	if (pasid_submit(p, c->ctx, page(c, COMMANDS) + n * JOB_BYTES, JOB_BYTES, &job) < 0)
		fail(c, "submit");
	if (job != n + 1) {
		printf("context %u: job %" PRIu64 " instead of %u\n", c->ctx, job, n + 1);
		exit(1);
	}
}

static void one_look(struct one *c)
{
	uint64_t done;

	if (pasid_fence(p, c->ctx, &done) < 0)
		fail(c, "fence");
	if (done < c->last_seen) {
		printf("context %u: its fence went back from %" PRIu64 " to %" PRIu64 "\n", c->ctx, c->last_seen, done);
		exit(1);
	}
	c->last_seen = done;
}

static void expect_words(const struct one *c, unsigned int n, uint32_t a, uint32_t b)
{
	for (unsigned int i = 0; i < PAGE / 4; i++) {
		uint32_t v;

		memcpy(&v, c->mem + n * PAGE + 4 * i, 4);
		if (v == a || v == b)
			continue;
		printf("context %u: word %u of page %u is %#x, expected %#x or %#x\n", c->ctx, i, n, v, a, b);
		exit(1);
	}
}

static void one_check(struct one *c, unsigned int jobs)
{
	uint64_t count;
	int r = pasid_wait(p, c->ctx, jobs, DEADLINE_NS);

	if (r != 0) {
		printf("context %u: wait: %d\n", c->ctx, r);
		fail(c, "wait");
	}
	one_look(c);
	memcpy(&count, c->mem, 8);
	if (count != jobs) {
		printf("context %u: %" PRIu64 " of %u jobs ran\n", c->ctx, count, jobs);
		exit(1);
	}
	expect_words(c, FROM, c->value + jobs - 1, c->value + jobs - 1);
	expect_words(c, TO, c->value + jobs - 1, c->value + jobs - 1);
	expect_words(c, SCRATCH, 0, c->value); /* scrubbed, or its own */
}

static uint64_t one_switches(const struct one *c)
{
	struct pasid_ctx_info info = {.size = sizeof(info)};

	if (pasid_ctx_info(p, c->ctx, &info) < 0)
		fail(c, "info");
	return info.switches;
}

int main(int argc, char **argv)
{
	unsigned long n = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
	unsigned int jobs = argc == 4 ? (unsigned int)strtoul(argv[3], NULL, 10) : 0;
	uint64_t switches = 0;
	struct one *all;

	if (n < 1 || n > 100000 || jobs < 1 || jobs > MAX_JOBS) {
		fprintf(stderr, "usage: many_contexts SOCKET CONTEXTS JOBS(1 to %u)\n", MAX_JOBS);
		return 2;
	}
	if (pasid_connect(&p, argv[1]) < 0)
		fail(NULL, "connect");
	all = calloc(n, sizeof(*all));
	if (!all)
		return 2;
	for (unsigned long i = 0; i < n; i++)
		one_new(&all[i]);
	for (unsigned int j = 0; j < jobs; j++)
		for (unsigned long i = 0; i < n; i++) {
			one_submit(&all[i], j);
			one_look(&all[i]);
			one_look(&all[(i * 7 + j) % n]);
		}
	for (unsigned long i = 0; i < n; i++)
		one_check(&all[i], jobs);
	for (unsigned long i = 0; i < n; i++)
		switches += one_switches(&all[i]);
	/* Half of them are freed; the rest ends with the connection. */
	for (unsigned long i = 0; i < n; i += 2)
		if (pasid_ctx_free(p, all[i].ctx) < 0 || pasid_buf_free(p, all[i].buf) < 0)
			fail(&all[i], "free");
	printf("ok %lu %lu %" PRIu64 "\n", n, n * jobs, switches);
	free(all);
	pasid_disconnect(p);
	return 0;
}
