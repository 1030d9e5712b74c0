/* SPDX-License-Identifier: MIT */
/* A context of the reference GPU and its command buffer, for the bank and the thief. See gpu.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu.h"

void record(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

void gpu_die(const struct gpu *gpu, const char *what, int r)
{
	record("died\twhat=%s\tcode=%d\ttext=%s", what, r, pasid_error(gpu->pasid));
	exit(2);
}

/* Waits for an event, and says whether it is that a device is present. */
static bool device_came(struct gpu *gpu)
{
	struct pollfd pfd = {.fd = pasid_fd(gpu->pasid), .events = POLLIN};
	struct pasid_event ev = {.size = sizeof(ev)};
	int r;

	r = pasid_next_event(gpu->pasid, &ev);
	if (r < 0)
		gpu_die(gpu, "read events", r);
	if (r > 0)
		return ev.type == PASID_EVENT_DEVICE_BACK;
	r = poll(&pfd, 1, GPU_TIMEOUT_NS / 1000000);
	if (r == 0)
		gpu_die(gpu, "wait for the device", -ETIMEDOUT);
	return false;
}

/* The daemon may be ready before its device is. */
static void wait_for_device(struct gpu *gpu, struct pasid_device_info *info)
{
	int r;

	for (;;) {
		*info = (struct pasid_device_info){.size = sizeof(*info)};
		r = pasid_device_info(gpu->pasid, NULL, info);
		if (r < 0)
			gpu_die(gpu, "ask for the device", r);
		if (info->present && info->slots)
			return;
		while (!device_came(gpu))
			;
	}
}

void gpu_open(struct gpu *gpu)
{
	struct pasid_device_info info;
	int r;

	r = pasid_connect(&gpu->pasid, NULL);
	if (r < 0) {
		gpu->pasid = NULL;
		gpu_die(gpu, "connect", r);
	}
	wait_for_device(gpu, &info);
	gpu->slots = info.slots;
	gpu->mode = info.mode;
	r = pasid_ctx_new(gpu->pasid, NULL, &gpu->ctx);
	if (r < 0)
		gpu_die(gpu, "make a context", r);
}

void gpu_memory_map(struct gpu *gpu, uint32_t ctx, struct gpu_memory *m, uint64_t iova, uint64_t size)
{
	int r;

	m->iova = iova;
	m->size = (size + 4095) & ~4095ull;
	r = pasid_buf_new(gpu->pasid, NULL, m->size, &m->buf, &m->map);
	if (r < 0)
		gpu_die(gpu, "make a buffer", r);
	r = pasid_map(gpu->pasid, ctx, m->buf, 0, m->size, PASID_READ | PASID_WRITE | PASID_FIXED, &m->iova);
	if (r < 0)
		gpu_die(gpu, "map a buffer", r);
}

void gpu_memory_drop(struct gpu *gpu, uint32_t ctx, struct gpu_memory *m)
{
	int r;

	r = pasid_unmap(gpu->pasid, ctx, m->iova, m->size);
	if (r < 0)
		gpu_die(gpu, "unmap a buffer", r);
	r = pasid_buf_free(gpu->pasid, m->buf);
	if (r < 0)
		gpu_die(gpu, "free a buffer", r);
}

void gpu_queue_open(struct gpu *gpu, uint32_t ctx, struct gpu_queue *q, uint64_t iova)
{
	struct gpu_memory m;

	gpu_memory_map(gpu, ctx, &m, iova, GPU_COMMANDS_MAX * REFGPU_CMD_SIZE);
	*q = (struct gpu_queue){.gpu = gpu, .ctx = ctx, .cmds = m.map, .iova = iova};
}

int gpu_run(struct gpu_queue *q, const struct refgpu_cmd *cmds, uint32_t n)
{
	uint64_t job;
	int r;

	memcpy(q->cmds, cmds, n * sizeof(*cmds));
	r = pasid_submit(q->gpu->pasid, q->ctx, q->iova, n * sizeof(*cmds), &job);
	if (r < 0)
		return r;
	return pasid_wait(q->gpu->pasid, q->ctx, job, GPU_TIMEOUT_NS);
}

void gpu_queue_flush(struct gpu_queue *q)
{
	uint64_t job;
	int r;

	if (!q->n)
		return;
	r = pasid_submit(q->gpu->pasid, q->ctx, q->iova, q->n * sizeof(*q->cmds), &job);
	if (r < 0)
		gpu_die(q->gpu, "submit", r);
	r = pasid_wait(q->gpu->pasid, q->ctx, job, GPU_TIMEOUT_NS);
	if (r > 0)
		gpu_events(q->gpu, "own-work");
	if (r)
		gpu_die(q->gpu, "wait for a job", r);
	q->n = 0;
}

void gpu_queue_add(struct gpu_queue *q, const struct refgpu_cmd *cmd)
{
	q->cmds[q->n++] = *cmd;
	if (q->n == GPU_COMMANDS_MAX)
		gpu_queue_flush(q);
}

unsigned int gpu_events(struct gpu *gpu, const char *attempt)
{
	struct pasid_event ev;
	unsigned int faults = 0;

	for (;;) {
		int r;

		ev = (struct pasid_event){.size = sizeof(ev)};
		r = pasid_next_event(gpu->pasid, &ev);
		if (r < 0)
			gpu_die(gpu, "read events", r);
		if (r == 0)
			return faults;
		if (ev.type != PASID_EVENT_FAULT) {
			record("event\tattempt=%s\ttype=%u\tctx=%u\ttext=%s", attempt, ev.type, ev.ctx, ev.text);
			continue;
		}
		faults++;
		record("fault\tattempt=%s\tctx=%u\taddr=0x%llx\taccess=%u\tcode=%u\tdropped=%llu\ttext=%s", attempt,
		       ev.ctx, (unsigned long long)ev.addr, ev.access, ev.code, (unsigned long long)ev.dropped,
		       ev.text);
	}
}

void gpu_record_switches(struct gpu *gpu, uint32_t ctx)
{
	struct pasid_ctx_info info = {.size = sizeof(info)};
	int r;

	r = pasid_ctx_info(gpu->pasid, ctx, &info);
	if (r < 0)
		gpu_die(gpu, "ask for a context", r);
	record("switches\tctx=%u\tn=%llu\tjobs=%llu\tfaults=%llu", ctx, (unsigned long long)info.switches,
	       (unsigned long long)info.completed, (unsigned long long)info.faults);
}

void gpu_dump(struct gpu *gpu, const char *path, const void *data, size_t size)
{
	size_t done = 0;
	int fd;

	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		gpu_die(gpu, "open a file to write", -errno);
	while (done < size) {
		ssize_t n = write(fd, (const char *)data + done, size - done);

		if (n < 0)
			gpu_die(gpu, "write a file", -errno);
		done += (size_t)n;
	}
	if (close(fd) < 0)
		gpu_die(gpu, "write a file", -errno);
}
