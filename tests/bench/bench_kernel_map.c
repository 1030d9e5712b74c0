/* SPDX-License-Identifier: MIT */
/*
 * What a mapping costs through a running daemon ($PASIDD_SOCKET) whose device is a PCI device of the kernel's, against the
 * same asked of the kernel directly, by this process, for another device and in the same rounds.
 *
 *   bench_kernel_map MODE WAY BDF        MODE: of the daemon's device; WAY: "type1" or "iommufd"; BDF: the other device
 *
 *   MODE-map-SIZE             that much mapped and unmapped, two calls; limit: two ioctls
 *   MODE-map-SIZE-list        one of 48 that are mapped in one message, and unmapped in another; limit: two ioctls
 *   MODE-map-4K[-list]-socket the samples of 4 KiB; limit: two ping-pongs of as many bytes, with a process that sits in
 *                             epoll_wait
 *
 * The context has run, so that the device is in its address space (in mode pasid it is without that).
 */
#include <pasid/pasid.h>
#include <pasid/protocol.h>
#include <pasid/refgpu.h>

#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "direct.h"

#define LIST_ROUNDS 15u
#define ALONE_ROUNDS (4 * LIST_ROUNDS)
#define WARM 2u
/* In one sample, of calls and of ioctls: a short one is less likely to have waited for a processor, but reading the clock is
 * not to be in it. */
#define PAIRS 2u
#define DIRECT_PAIRS 8u
#define LIST 48u
#define PAGE UINT64_C(4096)
#define LARGEST (UINT64_C(2) << 20)
#define COMMANDS UINT64_C(0x200000)
#define IOVA UINT64_C(0x1000000) /* LIST times LARGEST from here lie below where an Arm machine has its interrupts */
#define RIGHTS (PASID_READ | PASID_WRITE | PASID_FIXED)
#define PASID 1u

static const struct {
	const char *name;
	uint64_t bytes;
} sizes[] = {{"4K", PAGE}, {"64K", 16 * PAGE}, {"2M", LARGEST}};

enum { ALONE, IN_LIST, KINDS };
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

static struct bench {
	struct pasid *p;
	uint32_t ctx, buf;
	struct direct direct;
	struct bare floor[KINDS]; /* the messages alone */
	struct pasid_bind_op map[LIST], unmap[LIST];
} bench;

static void check(struct bench *b, int r, const char *what)
{
	if (r != 0)
		die(what, pasid_error(b->p));
}

/* ---- setting up ---- */

/* A job of nothing: a NOP of the reference GPU, and no command that edu's driver knows. */
static void run_once(struct bench *b)
{
	uint64_t iova = COMMANDS, job;
	uint32_t buf;

	check(b, pasid_buf_new(b->p, NULL, PAGE, &buf, NULL), "commands");
	check(b, pasid_map(b->p, b->ctx, buf, 0, PAGE, PASID_READ | PASID_FIXED, &iova), "commands");
	check(b, pasid_submit(b->p, b->ctx, iova, sizeof(struct refgpu_cmd), &job), "submit");
	check(b, pasid_wait(b->p, b->ctx, job, -1), "wait");
}

static void setup(struct bench *b, const char *mode, const char *way, const char *bdf)
{
	bool pasid = !strcmp(mode, "pasid");

	if (pasid_connect(&b->p, NULL) < 0)
		die("connect", pasid_error(NULL));
	check(b, pasid_ctx_new(b->p, NULL, &b->ctx), "context");
	check(b, pasid_buf_new(b->p, NULL, LIST * LARGEST, &b->buf, NULL), "buffer");
	if (!pasid)
		run_once(b);
	direct_open(&b->direct, way, bdf, pasid ? PASID : 0, LIST * LARGEST);
	bare_start(&b->floor[ALONE], BARE_EPOLL, BIND_REQUEST(1), BIND_REPLY(1));
	bare_start(&b->floor[IN_LIST], BARE_EPOLL, BIND_REQUEST(LIST), BIND_REPLY(LIST));
}

/* Places in the buffer descend while addresses ascend, so that no two mappings are one. */
static uint64_t place(unsigned int i)
{
	return (LIST - 1 - i) * LARGEST;
}

static void make_lists(struct bench *b, uint64_t bytes)
{
	for (unsigned int i = 0; i < LIST; i++) {
		struct pasid_bind_op *m = &b->map[i], *u = &b->unmap[i];

		*m = (struct pasid_bind_op){.size = sizeof(*m), .type = PASID_MAP, .flags = RIGHTS, .buf = b->buf};
		m->off = place(i);
		m->iova = IOVA + i * LARGEST;
		m->len = bytes;
		*u = (struct pasid_bind_op){.size = sizeof(*u), .type = PASID_UNMAP, .iova = m->iova, .len = bytes};
	}
}

/* ---- measuring: microseconds for one mapping, its end included ---- */

static double time_alone(struct bench *b, uint64_t bytes)
{
	uint64_t iova = IOVA;
	double t = now_ns();

	for (unsigned int i = 0; i < PAIRS; i++) {
		check(b, pasid_map(b->p, b->ctx, b->buf, 0, bytes, RIGHTS, &iova), "map");
		check(b, pasid_unmap(b->p, b->ctx, iova, bytes), "unmap");
	}
	return (now_ns() - t) / PAIRS / 1e3;
}

static double time_alone_direct(struct bench *b, uint64_t bytes)
{
	double t = now_ns();

	for (unsigned int i = 0; i < DIRECT_PAIRS; i++) {
		direct_map(&b->direct, IOVA, 0, bytes);
		direct_unmap(&b->direct, IOVA, bytes);
	}
	return (now_ns() - t) / DIRECT_PAIRS / 1e3;
}

static double time_list(struct bench *b)
{
	double t = now_ns();

	check(b, pasid_bind(b->p, b->ctx, b->map, LIST, NULL), "a list of maps");
	check(b, pasid_bind(b->p, b->ctx, b->unmap, LIST, NULL), "a list of unmaps");
	return (now_ns() - t) / LIST / 1e3;
}

static double time_list_direct(struct bench *b, uint64_t bytes)
{
	double t = now_ns();

	for (unsigned int i = 0; i < LIST; i++)
		direct_map(&b->direct, IOVA + i * LARGEST, place(i), bytes);
	for (unsigned int i = 0; i < LIST; i++)
		direct_unmap(&b->direct, IOVA + i * LARGEST, bytes);
	return (now_ns() - t) / LIST / 1e3;
}

/* socket: for what the messages alone take, or NULL. */
static void measure_alone(struct bench *b, uint64_t bytes, struct figure *f, struct figure *socket)
{
	double floor = socket ? 2 * bare_time(&b->floor[ALONE], DIRECT_PAIRS) / 1e3 : 0;
	double direct = time_alone_direct(b, bytes);
	double daemon = time_alone(b, bytes);

	figure_add(f, daemon, direct);
	if (socket)
		figure_add(socket, daemon, floor);
}

static void measure_list(struct bench *b, uint64_t bytes, struct figure *f, struct figure *socket)
{
	double floor = socket ? 2 * bare_time(&b->floor[IN_LIST], 2) / LIST / 1e3 : 0;
	double direct = time_list_direct(b, bytes);
	double daemon = time_list(b);

	figure_add(f, daemon, direct);
	if (socket)
		figure_add(socket, daemon, floor);
}

static void measure_kind(struct bench *b, unsigned int kind, uint64_t bytes, struct figure *f, struct figure *socket)
{
	unsigned int rounds = kind == ALONE ? ALONE_ROUNDS : LIST_ROUNDS;

	for (unsigned int i = 0; i < WARM + rounds; i++) {
		if (i == WARM) {
			f->n = 0;
			if (socket)
				socket->n = 0;
		}
		(kind == ALONE ? measure_alone : measure_list)(b, bytes, f, socket);
	}
}

static void print(struct figure *f, const char *mode, const char *size, bool list, const char *against)
{
	char name[64];

	snprintf(name, sizeof(name), "%s-map-%s%s%s", mode, size, list ? "-list" : "", against);
	f->name = name;
	f->unit = "us";
	figure_print(f);
}

static void measure(struct bench *b, const char *mode)
{
	static struct figure figure, socket;

	for (unsigned int s = 0; s < SIZES; s++) {
		make_lists(b, sizes[s].bytes);
		for (unsigned int kind = 0; kind < KINDS; kind++) {
			measure_kind(b, kind, sizes[s].bytes, &figure, s == 0 ? &socket : NULL);
			print(&figure, mode, sizes[s].name, kind == IN_LIST, "");
			if (s == 0)
				print(&socket, mode, sizes[s].name, kind == IN_LIST, "-socket");
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		die(argv[0], "MODE WAY BDF");
	setup(&bench, argv[1], argv[2], argv[3]);
	measure(&bench, argv[1]);
	for (unsigned int kind = 0; kind < KINDS; kind++)
		bare_stop(&bench.floor[kind]);
	pasid_disconnect(bench.p);
	return 0;
}
