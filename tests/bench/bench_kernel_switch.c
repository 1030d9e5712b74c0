/* SPDX-License-Identifier: MIT */
/*
 * What it costs to move a device of the kernel's from one context's address space into another's (a switch in mode
 * exclusive), by the daemon's own translator and transport: asked for, done on the device's thread, heard of from the
 * loop. No device's work is in it, nor the scheduler. Limit: the ioctls alone, made by this thread for another device of
 * that kind in the same rounds.
 *
 *   bench_kernel_switch WAY BDF OTHER      WAY: "type1" or "iommufd"; BDF: the device; OTHER: the one for the limit
 *
 *   exclusive-switch-SIZE    with that much mapped in either; limit: one attach, or with type1 the unmaps and maps of it
 */
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "direct.h"
#include "reach.h"
#include "translator/domain.h"
#include "transport/transport.h"

#define ROUNDS 51u
#define WARM 5u
#define AREA (UINT64_C(2) << 20) /* mode exclusive maps no more at once */
#define LARGEST (8 * AREA)
#define IOVA UINT64_C(0x1000000)
#define SPACES DIRECT_SPACES

static const struct {
	const char *name;
	uint64_t bytes;
} sizes[] = {{"64K", 64 << 10}, {"16M", LARGEST}};

static struct bench {
	struct reach reach;
	struct transport *t; /* that of reach */
	struct translator *tr;
	struct transport_space *space[SPACES];
	struct transport_memory *memory;
	struct direct direct;
} bench;

/* ---- the daemon's side ---- */

static void on_changed(void *arg)
{
}

static void open_device(struct bench *b, const char *way, const char *bdf)
{
	reach_open(&b->reach, way, bdf);
	b->t = b->reach.t;
	if (domain_new(&b->tr, b->t, on_changed, NULL) < 0)
		die("a translator", "no memory");
}

/* Each of the address spaces maps the same, area by area. */
static void make_spaces(struct bench *b, uint64_t bytes)
{
	const struct transport_space_ops *ops = b->t->ops->spaces;
	bool done = false;

	reach_await(
		&b->reach,
		ops->hold(b->t, &b->memory, b->direct.fd, bytes, TRANSPORT_READ | TRANSPORT_WRITE, reach_done, &done),
		&done);
	for (unsigned int i = 0; i < SPACES; i++) {
		done = false;
		reach_await(&b->reach, ops->make(b->t, &b->space[i], reach_done, &done), &done);
		for (uint64_t at = 0; at < bytes; at += AREA) {
			uint64_t len = bytes - at < AREA ? bytes - at : AREA;

			done = false;
			reach_await(&b->reach,
				    ops->map(b->t, b->space[i], IOVA + at, len, b->memory, at,
					     TRANSPORT_READ | TRANSPORT_WRITE, reach_done, &done),
				    &done);
		}
	}
}

static void move(struct bench *b, unsigned int to)
{
	struct translator_space s = {.kernel = b->space[to]};
	int r = b->tr->ops->install(b->tr, 0, &s);

	while (r == 1 && b->tr->ops->ready(b->tr, 0, &s) == 0)
		reach_turn(&b->reach);
	if (r < 0 || b->tr->ops->ready(b->tr, 0, &s) != 1)
		die("a switch", "the device did not get there");
}

static void end_spaces(struct bench *b, unsigned int at)
{
	struct translator_space s = {.kernel = b->space[at]};

	while (b->tr->ops->remove(b->tr, 0, &s) != 0)
		reach_turn(&b->reach);
	for (unsigned int i = 0; i < SPACES; i++)
		if (b->t->ops->spaces->free(b->t, b->space[i]) < 0)
			die("an address space", "it cannot be freed");
	if (b->t->ops->spaces->release(b->t, b->memory) < 0)
		die("memory", "it cannot be released");
}

/* ---- the limit ---- */

static void map_areas(const struct direct *d, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += AREA)
		direct_map(d, IOVA + at, at, bytes - at < AREA ? bytes - at : AREA);
}

static void unmap_areas(const struct direct *d, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += AREA)
		direct_unmap(d, IOVA + at, bytes - at < AREA ? bytes - at : AREA);
}

static void move_direct(const struct direct *d, unsigned int to, uint64_t bytes)
{
	if (!d->type1) {
		direct_attach(d, to);
		return;
	}
	unmap_areas(d, bytes);
	map_areas(d, bytes);
}

/* ---- both ---- */

static double time_move(struct bench *b, unsigned int to)
{
	double t = now_ns();

	move(b, to);
	return (now_ns() - t) / 1e3;
}

static double time_move_direct(struct bench *b, unsigned int to, uint64_t bytes)
{
	double t = now_ns();

	move_direct(&b->direct, to, bytes);
	return (now_ns() - t) / 1e3;
}

static void measure(struct bench *b, const char *name, uint64_t bytes)
{
	static struct figure f;
	unsigned int to = 0;
	char text[64];

	make_spaces(b, bytes);
	map_areas(&b->direct, bytes);
	move(b, to);
	f.n = 0;
	for (unsigned int i = 0; i < WARM + ROUNDS; i++) {
		double direct;

		if (i == WARM)
			f.n = 0;
		to = !to;
		direct = time_move_direct(b, to, bytes);
		figure_add(&f, time_move(b, to), direct);
	}
	unmap_areas(&b->direct, bytes);
	end_spaces(b, to);
	snprintf(text, sizeof(text), "exclusive-switch-%s", name);
	f.name = text;
	f.unit = "us";
	figure_print(&f);
}

int main(int argc, char **argv)
{
	struct bench *b = &bench;

	if (argc != 4)
		die(argv[0], "WAY BDF OTHER");
	direct_open(&b->direct, argv[1], argv[3], 0, LARGEST);
	open_device(b, argv[1], argv[2]);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		measure(b, sizes[i].name, sizes[i].bytes);
	reach_close(&b->reach);
	domain_free(b->tr);
	return 0;
}
