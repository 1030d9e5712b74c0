/* SPDX-License-Identifier: MIT */
/*
 * The bank: draws a statement into its surface on the GPU and keeps it there, with parts of it in the GPU's scratch
 * memory, while somebody else uses the same GPU. At the end it looks whether its surface is still what it drew.
 *
 *   demo-bank DIRECTORY    prints "ready", then does what lines on stdin say: "look", or "end", which ends it
 *
 * Leaves in DIRECTORY: truth.bin (what the statement must be, drawn by the CPU), surface.bin (what the surface is, at
 * each look and at the end) and bank.png (the same as a picture, at the end).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "gpu.h"

#define ITEMS_MAX 1024u
#define UPLOAD_CELLS (PICTURE_GRAIN_WORDS * 4u) /* in the upload buffer: the grain, then the characters */
#define CELL_BYTES (PICTURE_CELL_WORDS * 4u)

struct bank {
	struct gpu gpu;
	struct gpu_queue queue;
	struct gpu_memory surface;
	struct gpu_memory vault;
	uint32_t vaults[DEMO_VAULT_CONTEXTS];
	uint32_t n_vaults;
	struct picture_item items[ITEMS_MAX];
	size_t n_items;
	uint32_t grain[PICTURE_GRAIN_WORDS];
	uint32_t truth[PICTURE_WORDS];
};

static void upload_fill(const struct bank *bank, struct gpu_memory *upload)
{
	uint32_t *cells = (uint32_t *)((char *)upload->map + UPLOAD_CELLS);
	unsigned int ink, c;

	memcpy(upload->map, bank->grain, sizeof(bank->grain));
	for (ink = 0; ink < PICTURE_INKS; ink++)
		for (c = 0; c < PICTURE_CHARS; c++)
			picture_cell(cells + (ink * PICTURE_CHARS + c) * PICTURE_CELL_WORDS, (char)(' ' + c), ink);
}

static void draw_item(struct bank *bank, const struct picture_item *item)
{
	uint64_t at = BANK_INK + item->y * PICTURE_PITCH + item->x * 4;
	struct refgpu_cmd cmd;
	uint32_t y;

	if (item->c) {
		cmd = (struct refgpu_cmd){
			.op = REFGPU_BLIT,
			.dst = at,
			.src = BANK_UPLOAD + UPLOAD_CELLS +
			       (item->ink * PICTURE_CHARS + (uint32_t)(item->c - ' ')) * CELL_BYTES,
			.width = PICTURE_CELL_WIDTH * 4,
			.height = PICTURE_CELL_HEIGHT,
			.dst_pitch = PICTURE_PITCH,
			.src_pitch = PICTURE_CELL_WIDTH * 4,
		};
		gpu_queue_add(&bank->queue, &cmd);
		return;
	}
	for (y = 0; y < item->height; y++) {
		cmd = (struct refgpu_cmd){
			.op = REFGPU_FILL,
			.value = picture_ink_word(item->ink),
			.dst = at + y * PICTURE_PITCH,
			.len = item->width * 4,
		};
		gpu_queue_add(&bank->queue, &cmd);
	}
}

/* Paper by FILL, grain by ADD32, ink by BLIT and FILL into a layer of its own, the sum by ADD32. */
static void draw_statement(struct bank *bank)
{
	struct refgpu_cmd paper = {
		.op = REFGPU_FILL, .value = picture_paper, .dst = BANK_SURFACE, .len = PICTURE_BYTES};
	struct refgpu_cmd sum = {.op = REFGPU_ADD32, .dst = BANK_SURFACE, .src = BANK_INK, .len = PICTURE_BYTES};
	struct gpu_memory upload, ink;
	uint32_t strip;
	size_t i;

	gpu_memory_map(&bank->gpu, bank->gpu.ctx, &ink, BANK_INK, PICTURE_BYTES);
	gpu_memory_map(&bank->gpu, bank->gpu.ctx, &upload, BANK_UPLOAD,
		       UPLOAD_CELLS + PICTURE_INKS * PICTURE_CHARS * CELL_BYTES);
	upload_fill(bank, &upload);
	gpu_queue_add(&bank->queue, &paper);
	for (strip = 0; strip < PICTURE_HEIGHT / PICTURE_GRAIN_ROWS; strip++) {
		struct refgpu_cmd grain = {.op = REFGPU_ADD32,
					   .dst = BANK_SURFACE + strip * UPLOAD_CELLS,
					   .src = BANK_UPLOAD,
					   .len = UPLOAD_CELLS};

		gpu_queue_add(&bank->queue, &grain);
	}
	for (i = 0; i < bank->n_items; i++)
		draw_item(bank, &bank->items[i]);
	gpu_queue_add(&bank->queue, &sum);
	gpu_queue_flush(&bank->queue);
	gpu_memory_drop(&bank->gpu, bank->gpu.ctx, &upload);
	gpu_memory_drop(&bank->gpu, bank->gpu.ctx, &ink);
}

/* Leaves a part of the statement in scratch memory from several contexts, so that every slot of the GPU has held it. */
static void fill_scratch(struct bank *bank)
{
	struct gpu *gpu = &bank->gpu;
	uint64_t jobs[DEMO_VAULT_CONTEXTS];
	uint32_t i;
	int r;

	bank->n_vaults = gpu->slots * 2 < DEMO_VAULT_CONTEXTS ? gpu->slots * 2 : DEMO_VAULT_CONTEXTS;
	for (i = 0; i < bank->n_vaults; i++) {
		uint64_t at = BANK_VAULT + i * DEMO_STRIDE;
		struct gpu_memory *m = &bank->vault;
		struct refgpu_cmd *cmd;

		r = pasid_ctx_new(gpu->pasid, NULL, &bank->vaults[i]);
		if (r < 0)
			gpu_die(gpu, "make a context", r);
		gpu_memory_map(gpu, bank->vaults[i], m, at, DEMO_PAGE + REFGPU_SCRATCH_SIZE);
		memcpy((char *)m->map + DEMO_PAGE, (char *)bank->truth + DEMO_SECRET_OFFSET, REFGPU_SCRATCH_SIZE);
		cmd = m->map;
		*cmd = (struct refgpu_cmd){.op = REFGPU_STORE, .src = at + DEMO_PAGE, .len = REFGPU_SCRATCH_SIZE};
	}
	for (i = 0; i < bank->n_vaults; i++) {
		r = pasid_submit(gpu->pasid, bank->vaults[i], BANK_VAULT + i * DEMO_STRIDE, REFGPU_CMD_SIZE, &jobs[i]);
		if (r < 0)
			gpu_die(gpu, "submit", r);
	}
	for (i = 0; i < bank->n_vaults; i++) {
		r = pasid_wait(gpu->pasid, bank->vaults[i], jobs[i], GPU_TIMEOUT_NS);
		if (r)
			gpu_die(gpu, "wait for a job", r);
	}
}

/* Bytes in which the two differ. */
static size_t differences(const void *a, const void *b)
{
	const unsigned char *x = a, *y = b;
	size_t i, n = 0;

	for (i = 0; i < PICTURE_BYTES; i++)
		n += x[i] != y[i];
	return n;
}

/* The surface as the GPU sees it: copied by the GPU into fresh memory. */
static size_t differences_on_gpu(struct bank *bank)
{
	struct refgpu_cmd copy = {.op = REFGPU_COPY, .dst = BANK_PROOF, .src = BANK_SURFACE, .len = PICTURE_BYTES};
	struct gpu_memory proof;
	size_t n;

	gpu_memory_map(&bank->gpu, bank->gpu.ctx, &proof, BANK_PROOF, PICTURE_BYTES);
	gpu_queue_add(&bank->queue, &copy);
	gpu_queue_flush(&bank->queue);
	n = differences(proof.map, bank->truth);
	gpu_memory_drop(&bank->gpu, bank->gpu.ctx, &proof);
	return n;
}

static void open_bank(struct bank *bank)
{
	int r;

	r = picture_grain(bank->grain);
	if (r < 0)
		gpu_die(&bank->gpu, "draw random numbers", r);
	bank->n_items = picture_items(bank->items, ITEMS_MAX, bank->grain[0] * 2654435761u);
	if (!bank->n_items)
		gpu_die(&bank->gpu, "set the statement", -1);
	picture_draw(bank->truth, bank->grain, bank->items, bank->n_items);
	gpu_open(&bank->gpu);
	gpu_queue_open(&bank->gpu, bank->gpu.ctx, &bank->queue, BANK_COMMANDS);
	gpu_memory_map(&bank->gpu, bank->gpu.ctx, &bank->surface, BANK_SURFACE, PICTURE_BYTES);
}

static void keep_surface(struct bank *bank, const char *directory)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/surface.bin", directory);
	gpu_dump(&bank->gpu, path, bank->surface.map, PICTURE_BYTES);
}

static void check_and_leave(struct bank *bank, const char *directory)
{
	unsigned int faults = gpu_events(&bank->gpu, "bank");
	size_t on_cpu = differences(bank->surface.map, bank->truth);
	size_t on_gpu = differences_on_gpu(bank);
	char path[4096];
	uint32_t i;
	int r;

	keep_surface(bank, directory);
	snprintf(path, sizeof(path), "%s/bank.png", directory);
	r = picture_write_png(path, bank->surface.map);
	if (r < 0)
		gpu_die(&bank->gpu, "write a picture", r);
	gpu_record_switches(&bank->gpu, bank->gpu.ctx);
	for (i = 0; i < bank->n_vaults; i++)
		gpu_record_switches(&bank->gpu, bank->vaults[i]);
	record("checked\tbytes=%u\tchanged_cpu=%zu\tchanged_gpu=%zu\tfaults=%u", PICTURE_BYTES, on_cpu, on_gpu, faults);
}

/* Does what is asked for on stdin. False: nobody asked for the end. */
static bool obey(struct bank *bank, const char *directory)
{
	char line[16];

	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "end\n")) {
			check_and_leave(bank, directory);
			return true;
		}
		if (!strcmp(line, "look\n")) {
			keep_surface(bank, directory);
			record("looked");
		}
	}
	return false;
}

int main(int argc, char **argv)
{
	static struct bank bank;
	char path[4096];
	size_t n;

	if (argc != 2) {
		fprintf(stderr, "usage: demo-bank DIRECTORY\n");
		return 2;
	}
	open_bank(&bank);
	draw_statement(&bank);
	n = differences(bank.surface.map, bank.truth);
	if (n) {
		record("died\twhat=draw: %zu of %u bytes are not what the CPU drew\tcode=0\ttext=", n, PICTURE_BYTES);
		return 2;
	}
	fill_scratch(&bank);
	snprintf(path, sizeof(path), "%s/truth.bin", argv[1]);
	gpu_dump(&bank.gpu, path, bank.truth, PICTURE_BYTES);
	record("ready\tctx=%u\tmode=%u\tslots=%u\titems=%zu\tvaults=%u", bank.gpu.ctx, bank.gpu.mode, bank.gpu.slots,
	       bank.n_items, bank.n_vaults);
	if (!obey(&bank, argv[1]))
		return 2;
	bank.gpu.pasid = pasid_disconnect(bank.gpu.pasid);
	return 0;
}
