/* SPDX-License-Identifier: MIT */
/*
 * The thief: an app with a context of its own on the bank's GPU, which tries everything that an app can try to get at
 * the bank's memory. What may destroy something comes last, so that what can be stolen is stolen whole.
 *
 *   demo-thief DIRECTORY BANK-CONTEXT    waits for a line on stdin after each attempt, so that others can look
 *
 * It claims nothing: it reports what each attempt returned and leaves in DIRECTORY all bytes that it got: loot.bin (the
 * bank's surface, page by page), stash.bin (all else; records tell what lies where) and thief.png (loot.bin as a
 * picture). Whoever holds the bank's truth can then count.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "gpu.h"

#define STASH_PAGES 1024u
#define UNKNOWN_CONTEXT 0xfffffff0u
/* Where things lie in the device's address space, which is no secret (docs/architecture.md). Behind the rings: marks. */
#define RINGS_BUS 0x100000ull
#define RINGS_BYTES 0x48000ull
#define TABLES_BUS 0x4000000000ull
#define FENCES_BUS 0x8000000000ull
#define BUFFERS_BUS 0x100000000000ull

struct thief {
	struct gpu gpu;
	struct gpu_queue queue;
	struct gpu_memory loot;
	struct gpu_memory stash;
	struct gpu_memory own;
	uint32_t stash_used; /* pages */
	uint32_t bank; /* the bank's context id */
	const char *directory;
	/* The attempt that is being made, and what its tries gave so far. */
	const char *attempt;
	unsigned int tries;
	unsigned int done;
	unsigned int faulted;
	unsigned int refused;
};

static void attempt_begin(struct thief *t, const char *name)
{
	t->attempt = name;
	t->tries = t->done = t->faulted = t->refused = 0;
}

static void attempt_end(struct thief *t, const char *note)
{
	int c;

	gpu_events(&t->gpu, t->attempt);
	record("attempt\tname=%s\ttries=%u\tdone=%u\tfaulted=%u\trefused=%u\tnote=%s", t->attempt, t->tries, t->done,
	       t->faulted, t->refused, note);
	do {
		c = getchar();
		if (c == EOF)
			exit(2);
	} while (c != '\n');
}

/* Runs one job of n commands as a try of this attempt. Returns 1 if it completed. */
static int try_commands(struct thief *t, const struct refgpu_cmd *cmds, uint32_t n)
{
	int r = gpu_run(&t->queue, cmds, n);

	t->tries++;
	if (r == 0)
		t->done++;
	else if (r == PASID_JOB_FAULTED)
		t->faulted++;
	else
		gpu_die(&t->gpu, t->attempt, r);
	gpu_events(&t->gpu, t->attempt);
	return r == 0;
}

static int try_copy(struct thief *t, uint64_t dst, uint64_t src, uint64_t len)
{
	struct refgpu_cmd cmd = {.op = REFGPU_COPY, .dst = dst, .src = src, .len = len};

	return try_commands(t, &cmd, 1);
}

static int try_fill(struct thief *t, uint64_t dst, uint64_t len)
{
	struct refgpu_cmd cmd = {.op = REFGPU_FILL, .value = DEMO_SCRIBBLE, .dst = dst, .len = len};

	return try_commands(t, &cmd, 1);
}

static int try_atomic(struct thief *t, uint64_t dst)
{
	struct refgpu_cmd cmd = {.op = REFGPU_ATOMIC, .value = 0x01010101, .dst = dst};

	return try_commands(t, &cmd, 1);
}

/* Takes pages of the stash for what comes from iova (0: from no address). Returns the first byte's offset. */
static uint64_t stash_take(struct thief *t, uint32_t pages, uint64_t iova)
{
	uint64_t off = (uint64_t)t->stash_used * DEMO_PAGE;

	t->stash_used += pages;
	if (t->stash_used > STASH_PAGES)
		gpu_die(&t->gpu, "stash more", -ENOSPC);
	record("stash\tattempt=%s\toff=%llu\tiova=0x%llx\tlen=%u", t->attempt, (unsigned long long)off,
	       (unsigned long long)iova, pages * DEMO_PAGE);
	return off;
}

/* Copies pages from iova on into the stash, each in a job of its own. */
static void try_pages(struct thief *t, uint64_t iova, uint32_t pages)
{
	uint64_t off = stash_take(t, pages, iova);
	uint32_t i;

	for (i = 0; i < pages; i++)
		try_copy(t, THIEF_SCAN + off + i * DEMO_PAGE, iova + (uint64_t)i * DEMO_PAGE, DEMO_PAGE);
}

/* Own memory, own addresses: shows that the thief's GPU commands work, without which nothing below says anything. */
static void try_own(struct thief *t)
{
	const unsigned char *got = t->stash.map;
	unsigned int i, wrong = 0;

	attempt_begin(t, "control");
	try_copy(t, THIEF_SCAN, THIEF_OWN, DEMO_PAGE);
	for (i = 0; i < DEMO_PAGE; i++)
		wrong += got[i] != DEMO_OWN;
	memset(t->stash.map, DEMO_POISON, DEMO_PAGE);
	attempt_end(t, wrong ? "own bytes did not arrive" : "own bytes arrived");
}

static void steal_surface(struct thief *t)
{
	uint32_t i;

	attempt_begin(t, "copy");
	for (i = 0; i < DEMO_SURFACE_PAGES; i++)
		try_copy(t, THIEF_LOOT + i * DEMO_PAGE, BANK_SURFACE + i * DEMO_PAGE, DEMO_PAGE);
	attempt_end(t, "");
}

/* The bank's IOVA with a buffer of the thief's behind it: in a private address space these are two places. */
static void read_same_iova(struct thief *t)
{
	struct gpu *gpu = &t->gpu;
	uint64_t iova = BANK_SURFACE;
	const char *note;
	int r;

	attempt_begin(t, "same-iova");
	r = pasid_map(gpu->pasid, gpu->ctx, t->own.buf, 0, PICTURE_BYTES, PASID_READ | PASID_WRITE | PASID_FIXED,
		      &iova);
	if (r < 0 && r != -EEXIST)
		gpu_die(gpu, "map at the bank's IOVA", r);
	note = r < 0 ? "mapping own memory there was refused: -EEXIST" : "own memory is mapped there";
	try_pages(t, BANK_SURFACE, DEMO_SURFACE_PAGES);
	if (r == 0) {
		try_fill(t, BANK_SURFACE, PICTURE_BYTES);
		r = pasid_unmap(gpu->pasid, gpu->ctx, iova, PICTURE_BYTES);
		if (r < 0)
			gpu_die(gpu, "unmap", r);
		try_pages(t, BANK_SURFACE, 1);
		memset(t->own.map, DEMO_OWN, PICTURE_BYTES);
	}
	attempt_end(t, note);
}

/* Maps a page, lets the GPU use it so that its TLB knows it, unmaps it, and uses it again. */
static void use_after_unmap(struct thief *t)
{
	char note[80];
	unsigned int round, i, wrong = 0;

	attempt_begin(t, "unmapped");
	for (round = 0; round < 8; round++) {
		struct refgpu_cmd touch = {.op = REFGPU_FILL, .value = 0x5a5a5a5a, .dst = THIEF_GONE, .len = DEMO_PAGE};
		const unsigned char *bytes;
		struct gpu_memory gone;
		int r;

		gpu_memory_map(&t->gpu, t->gpu.ctx, &gone, THIEF_GONE, DEMO_PAGE);
		bytes = gone.map;
		gpu_queue_add(&t->queue, &touch);
		gpu_queue_flush(&t->queue);
		r = pasid_unmap(t->gpu.pasid, t->gpu.ctx, THIEF_GONE, DEMO_PAGE);
		if (r < 0)
			gpu_die(&t->gpu, "unmap", r);
		try_pages(t, THIEF_GONE, 1);
		try_fill(t, THIEF_GONE, DEMO_PAGE);
		try_atomic(t, THIEF_GONE);
		for (i = 0; i < DEMO_PAGE; i++)
			wrong += bytes[i] != DEMO_OWN;
		r = pasid_buf_free(t->gpu.pasid, gone.buf);
		if (r < 0)
			gpu_die(&t->gpu, "free a buffer", r);
	}
	snprintf(note, sizeof(note), "%u bytes written through it", wrong);
	attempt_end(t, note);
}

/* ---- the bank's context id ---- */

static int call_submit(struct thief *t, uint32_t ctx)
{
	uint64_t job;

	return pasid_submit(t->gpu.pasid, ctx, BANK_COMMANDS, REFGPU_CMD_SIZE, &job);
}

static int call_map(struct thief *t, uint32_t ctx)
{
	uint64_t iova = THIEF_GONE;

	return pasid_map(t->gpu.pasid, ctx, t->own.buf, 0, DEMO_PAGE, PASID_READ | PASID_WRITE | PASID_FIXED, &iova);
}

static int call_unmap(struct thief *t, uint32_t ctx)
{
	return pasid_unmap(t->gpu.pasid, ctx, BANK_SURFACE, PICTURE_BYTES);
}

static int call_info(struct thief *t, uint32_t ctx)
{
	struct pasid_ctx_info info = {.size = sizeof(info)};

	return pasid_ctx_info(t->gpu.pasid, ctx, &info);
}

static int call_free(struct thief *t, uint32_t ctx)
{
	return pasid_ctx_free(t->gpu.pasid, ctx);
}

static const struct {
	const char *name;
	int (*call)(struct thief *t, uint32_t ctx);
} calls[] = {
	{"submit", call_submit}, {"map", call_map}, {"unmap", call_unmap}, {"info", call_info}, {"free", call_free},
};

/* Copies the sentence about the last call with the number id, where it stands as a word, as "#". */
static void error_without_id(const struct thief *t, uint32_t id, char *out, size_t size)
{
	const char *text = pasid_error(t->gpu.pasid);
	bool in_word = false;
	char number[16];
	size_t n = 0, length;

	length = (size_t)snprintf(number, sizeof(number), "%u", id);
	while (*text && n + 1 < size) {
		if (!in_word && strncmp(text, number, length) == 0 && !isalnum((unsigned char)text[length])) {
			out[n++] = '#';
			text += length;
			continue;
		}
		in_word = isalnum((unsigned char)*text);
		out[n++] = *text++;
	}
	out[n] = '\0';
}

static void use_bank_context(struct thief *t)
{
	char about_bank[256], about_unknown[256];
	size_t i;

	attempt_begin(t, "context-id");
	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int r, unknown;

		unknown = calls[i].call(t, UNKNOWN_CONTEXT);
		error_without_id(t, UNKNOWN_CONTEXT, about_unknown, sizeof(about_unknown));
		r = calls[i].call(t, t->bank);
		error_without_id(t, t->bank, about_bank, sizeof(about_bank));
		t->tries++;
		if (r == 0)
			t->done++;
		else
			t->refused++;
		record("call\tattempt=%s\tname=%s\tcode=%d\tunknown=%d\ttext=%s\tunknown_text=%s", t->attempt,
		       calls[i].name, r, unknown, about_bank, about_unknown);
	}
	attempt_end(t, "");
}

/* ---- other ways ---- */

static void scan(struct thief *t)
{
	attempt_begin(t, "scan");
	try_pages(t, BANK_SURFACE - 64 * DEMO_PAGE, 64 + DEMO_SURFACE_PAGES + 64);
	try_pages(t, BANK_COMMANDS, 8);
	try_pages(t, BANK_INK, 4);
	try_pages(t, BANK_UPLOAD, 4);
	try_pages(t, BANK_PROOF, 4);
	try_pages(t, BANK_VAULT, 8);
	attempt_end(t, "");
}

static void run_bank_commands(struct thief *t)
{
	uint64_t job;
	int r;

	attempt_begin(t, "fetch");
	r = pasid_submit(t->gpu.pasid, t->gpu.ctx, BANK_COMMANDS, REFGPU_CMD_SIZE, &job);
	if (r < 0)
		gpu_die(&t->gpu, "submit", r);
	r = pasid_wait(t->gpu.pasid, t->gpu.ctx, job, GPU_TIMEOUT_NS);
	if (r < 0)
		gpu_die(&t->gpu, "wait for a job", r);
	t->tries++;
	t->done += r == 0;
	t->faulted += r == PASID_JOB_FAULTED;
	attempt_end(t, "");
}

/* Reads scratch memory from several contexts at a time, so that each slot of the GPU runs at least one of them. */
static void read_scratch(struct thief *t)
{
	uint32_t ctx[DEMO_VAULT_CONTEXTS], i;
	uint32_t n = t->gpu.slots * 2 < DEMO_VAULT_CONTEXTS ? t->gpu.slots * 2 : DEMO_VAULT_CONTEXTS;
	struct gpu_memory m[DEMO_VAULT_CONTEXTS];
	uint64_t job[DEMO_VAULT_CONTEXTS];
	int r;

	attempt_begin(t, "scratch");
	for (i = 0; i < n; i++) {
		uint64_t at = THIEF_SCRATCH + i * DEMO_STRIDE;
		struct refgpu_cmd load = {.op = REFGPU_LOAD, .dst = at + DEMO_PAGE, .len = REFGPU_SCRATCH_SIZE};

		r = pasid_ctx_new(t->gpu.pasid, NULL, &ctx[i]);
		if (r < 0)
			gpu_die(&t->gpu, "make a context", r);
		gpu_memory_map(&t->gpu, ctx[i], &m[i], at, DEMO_PAGE + REFGPU_SCRATCH_SIZE);
		memset(m[i].map, DEMO_POISON, m[i].size);
		memcpy(m[i].map, &load, sizeof(load));
	}
	for (i = 0; i < n; i++) {
		r = pasid_submit(t->gpu.pasid, ctx[i], m[i].iova, REFGPU_CMD_SIZE, &job[i]);
		if (r < 0)
			gpu_die(&t->gpu, "submit", r);
	}
	for (i = 0; i < n; i++) {
		uint64_t off = stash_take(t, REFGPU_SCRATCH_SIZE / DEMO_PAGE, BANK_SURFACE + DEMO_SECRET_OFFSET);

		r = pasid_wait(t->gpu.pasid, ctx[i], job[i], GPU_TIMEOUT_NS);
		if (r < 0)
			gpu_die(&t->gpu, "wait for a job", r);
		t->tries++;
		t->done += r == 0;
		t->faulted += r == PASID_JOB_FAULTED;
		memcpy((char *)t->stash.map + off, (char *)m[i].map + DEMO_PAGE, REFGPU_SCRATCH_SIZE);
		gpu_record_switches(&t->gpu, ctx[i]);
	}
	attempt_end(t, "");
}

/* Bus addresses at which rings, fences, queues, tables and buffers may lie, used as if they were the thief's own. */
static void reach_bus(struct thief *t)
{
	static const uint64_t bus[] = {0x1000,     0x10000,    RINGS_BUS,  RINGS_BUS + RINGS_BYTES,
				       TABLES_BUS, FENCES_BUS, BUFFERS_BUS};
	size_t i;

	attempt_begin(t, "bus");
	for (i = 0; i < sizeof(bus) / sizeof(bus[0]); i++) {
		try_pages(t, bus[i], 12);
		try_fill(t, bus[i], 64);
		try_fill(t, bus[i] + DEMO_PAGE, 64);
		try_atomic(t, bus[i]);
	}
	attempt_end(t, "");
}

/* Loads a root table of a guessed address, then copies as if it had worked. */
static void be_privileged(struct thief *t)
{
	uint64_t off;
	uint32_t i;

	attempt_begin(t, "privileged");
	off = stash_take(t, 16, BANK_SURFACE);
	for (i = 0; i < 16; i++) {
		const struct refgpu_cmd cmds[] = {
			{.op = REFGPU_SET_TTBR, .value = i + 1, .dst = TABLES_BUS + (uint64_t)i * DEMO_PAGE},
			{.op = REFGPU_COPY,
			 .dst = THIEF_SCAN + off + i * DEMO_PAGE,
			 .src = BANK_SURFACE + i * DEMO_PAGE,
			 .len = DEMO_PAGE},
		};

		try_commands(t, cmds, 2);
	}
	attempt_end(t, "");
}

/* ---- scribbling ---- */

static void scribble_fill(struct thief *t)
{
	uint32_t i;

	attempt_begin(t, "fill");
	for (i = 0; i < DEMO_SURFACE_PAGES; i += 10)
		try_fill(t, BANK_SURFACE + i * DEMO_PAGE, DEMO_PAGE);
	attempt_end(t, "");
}

static void scribble_atomic(struct thief *t)
{
	uint32_t i;

	attempt_begin(t, "atomic");
	for (i = 5; i < DEMO_SURFACE_PAGES; i += 10)
		try_atomic(t, BANK_SURFACE + i * DEMO_PAGE + 8 * i);
	attempt_end(t, "");
}

static void scribble_blit(struct thief *t)
{
	const uint32_t bar = PICTURE_CELL_HEIGHT * PICTURE_WIDTH;
	uint32_t *words = t->own.map;
	uint32_t i, y;

	attempt_begin(t, "blit");
	memset(words, 0, bar * sizeof(*words));
	picture_text(words, 2 * PICTURE_CELL_WIDTH, 1, "THE THIEF WAS HERE * THE THIEF WAS HERE", PICTURE_RED);
	for (i = 0; i < bar; i++)
		words[i] = words[i] ? words[i] + picture_paper : 0x5a5a5a5au;
	for (y = 40; y + PICTURE_CELL_HEIGHT <= PICTURE_HEIGHT; y += 80) {
		struct refgpu_cmd blit = {
			.op = REFGPU_BLIT,
			.dst = BANK_SURFACE + y * PICTURE_PITCH,
			.src = THIEF_OWN,
			.width = PICTURE_PITCH,
			.height = PICTURE_CELL_HEIGHT,
			.dst_pitch = PICTURE_PITCH,
			.src_pitch = PICTURE_PITCH,
		};

		try_commands(t, &blit, 1);
	}
	attempt_end(t, "");
}

static void open_thief(struct thief *t)
{
	gpu_open(&t->gpu);
	gpu_queue_open(&t->gpu, t->gpu.ctx, &t->queue, THIEF_COMMANDS);
	gpu_memory_map(&t->gpu, t->gpu.ctx, &t->loot, THIEF_LOOT, PICTURE_BYTES);
	gpu_memory_map(&t->gpu, t->gpu.ctx, &t->stash, THIEF_SCAN, STASH_PAGES * DEMO_PAGE);
	gpu_memory_map(&t->gpu, t->gpu.ctx, &t->own, THIEF_OWN, PICTURE_BYTES);
	memset(t->loot.map, DEMO_POISON, t->loot.size);
	memset(t->stash.map, DEMO_POISON, t->stash.size);
	memset(t->own.map, DEMO_OWN, t->own.size);
	record("context\tctx=%u\tmode=%u", t->gpu.ctx, t->gpu.mode);
}

static void keep_loot(struct thief *t)
{
	char path[4096];
	int r;

	snprintf(path, sizeof(path), "%s/loot.bin", t->directory);
	gpu_dump(&t->gpu, path, t->loot.map, PICTURE_BYTES);
	snprintf(path, sizeof(path), "%s/stash.bin", t->directory);
	gpu_dump(&t->gpu, path, t->stash.map, (size_t)t->stash_used * DEMO_PAGE);
	snprintf(path, sizeof(path), "%s/thief.png", t->directory);
	r = picture_write_png(path, t->loot.map);
	if (r < 0)
		gpu_die(&t->gpu, "write a picture", r);
}

int main(int argc, char **argv)
{
	static struct thief thief;

	if (argc != 3) {
		fprintf(stderr, "usage: demo-thief DIRECTORY BANK-CONTEXT\n");
		return 2;
	}
	thief.directory = argv[1];
	thief.bank = (uint32_t)strtoul(argv[2], NULL, 10);
	open_thief(&thief);
	try_own(&thief);
	steal_surface(&thief);
	read_same_iova(&thief);
	use_after_unmap(&thief);
	scan(&thief);
	read_scratch(&thief);
	run_bank_commands(&thief);
	reach_bus(&thief);
	be_privileged(&thief);
	use_bank_context(&thief);
	scribble_fill(&thief);
	scribble_atomic(&thief);
	scribble_blit(&thief);
	gpu_record_switches(&thief.gpu, thief.gpu.ctx);
	keep_loot(&thief);
	record("end");
	thief.gpu.pasid = pasid_disconnect(thief.gpu.pasid);
	return 0;
}
