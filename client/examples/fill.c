/* SPDX-License-Identifier: MIT */
/*
 * Fills a buffer with a word on the reference GPU, in a private address space, and checks it. With the argument
 * "fault" it aims one page beyond the buffer, to show what a fault looks like.
 *
 *   cc fill.c $(pkg-config --cflags --libs libpasid) -o fill
 *   ./fill; ./fill fault
 */
#include <pasid/pasid.h>
#include <pasid/refgpu.h>

#include <stdio.h>
#include <string.h>

#define SIZE 65536u
#define WORD 0xc0ffee42u

static int check(struct pasid *p, int r, const char *what)
{
	if (r < 0)
		fprintf(stderr, "%s: %s\n", what, pasid_error(p));
	return r;
}

static void print_events(struct pasid *p)
{
	struct pasid_event ev = {.size = sizeof(ev)};

	while (pasid_next_event(p, &ev) > 0)
		printf("event: %s\n", ev.text);
}

static int verify(const uint32_t *data)
{
	for (size_t i = 0; i < SIZE / sizeof(*data); i++) {
		if (data[i] != WORD) {
			fprintf(stderr, "word %zu is 0x%x, not 0x%x\n", i, data[i], WORD);
			return 1;
		}
	}
	printf("the GPU wrote 0x%x to all %u bytes\n", WORD, SIZE);
	return 0;
}

/* One buffer holds the data, another the commands; both are mapped where the daemon likes. */
static int fill(struct pasid *p, int fault)
{
	uint64_t data_iova, cmd_iova, job;
	uint32_t ctx, data, cmd;
	void *data_map, *cmd_map;
	int r;

	if (check(p, pasid_ctx_new(p, NULL, &ctx), "context") < 0 ||
	    check(p, pasid_buf_new(p, NULL, SIZE, &data, &data_map), "data") < 0 ||
	    check(p, pasid_buf_new(p, NULL, 4096, &cmd, &cmd_map), "commands") < 0 ||
	    check(p, pasid_map(p, ctx, data, 0, SIZE, PASID_READ | PASID_WRITE, &data_iova), "map data") < 0 ||
	    check(p, pasid_map(p, ctx, cmd, 0, 4096, PASID_READ, &cmd_iova), "map commands") < 0)
		return 2;

	struct refgpu_cmd c = {.op = REFGPU_FILL, .value = WORD, .dst = data_iova, .len = SIZE};

	if (fault)
		c.len += 4096;
	memcpy(cmd_map, &c, sizeof(c));
	if (check(p, pasid_submit(p, ctx, cmd_iova, sizeof(c), &job), "submit") < 0)
		return 2;
	r = check(p, pasid_wait(p, ctx, job, 10000000000), "wait");
	print_events(p);
	if (r < 0)
		return 2;
	if (r == PASID_JOB_FAULTED) {
		printf("the job ended at its fault; the context goes on\n");
		return fault ? 0 : 1;
	}
	return verify(data_map);
}

int main(int argc, char **argv)
{
	struct pasid *p;
	int r;

	if (check(NULL, pasid_connect(&p, NULL), "connect") < 0)
		return 2;
	r = fill(p, argc > 1 && !strcmp(argv[1], "fault"));
	pasid_disconnect(p); /* the context and the buffers go with the connection */
	return r;
}
