/* SPDX-License-Identifier: MIT */
/*
 * What the bank and the thief need to use the GPU, on top of libpasid: a context with a buffer for commands that
 * belongs to it, and records on stdout that whoever runs the two can read.
 *
 * A record is one line of fields separated by tabs: its kind, then key=value. Everything that fails on the way to an
 * attempt (not the attempt itself) ends the program with status 2.
 */
#ifndef DEMO_GPU_H
#define DEMO_GPU_H

#include <pasid/pasid.h>
#include <pasid/refgpu.h>
#include <stdbool.h>

#define GPU_COMMANDS_MAX 256u
#define GPU_TIMEOUT_NS 10000000000ll

struct gpu {
	struct pasid *pasid;
	uint32_t ctx;
	uint32_t slots;
	uint32_t mode; /* enum pasid_mode */
};

/* A context's command buffer, mapped at iova. */
struct gpu_queue {
	struct gpu *gpu;
	uint32_t ctx;
	struct refgpu_cmd *cmds;
	uint64_t iova;
	uint32_t n; /* commands that wait for gpu_queue_run() */
};

/* A buffer of the program's own, mapped at iova of a context. */
struct gpu_memory {
	uint32_t buf;
	void *map;
	uint64_t iova;
	uint64_t size;
};

/* Prints one record. */
void record(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Prints what failed, with libpasid's own sentence, and exits with 2. */
void gpu_die(const struct gpu *gpu, const char *what, int r) __attribute__((noreturn));

/* Connects, and makes the first context. */
void gpu_open(struct gpu *gpu);

/* A new buffer, mapped into the context at this address. */
void gpu_memory_map(struct gpu *gpu, uint32_t ctx, struct gpu_memory *m, uint64_t iova, uint64_t size);

/* Takes the buffer out of the context and frees it. */
void gpu_memory_drop(struct gpu *gpu, uint32_t ctx, struct gpu_memory *m);

void gpu_queue_open(struct gpu *gpu, uint32_t ctx, struct gpu_queue *q, uint64_t iova);

/* Runs one job of n commands, and waits: 0 it completed, PASID_JOB_FAULTED, or what pasid_submit() or pasid_wait()
 * gave. */
int gpu_run(struct gpu_queue *q, const struct refgpu_cmd *cmds, uint32_t n);

/* Appends a command and runs the buffer when it is full; gpu_queue_flush() runs the rest. For work that must not
 * fail: ends the program if it does. */
void gpu_queue_add(struct gpu_queue *q, const struct refgpu_cmd *cmd);
void gpu_queue_flush(struct gpu_queue *q);

/* Prints a record for every event that has come; `attempt` names what was being done. Returns the number of faults. */
unsigned int gpu_events(struct gpu *gpu, const char *attempt);

/* Prints how often the context was switched onto the GPU. */
void gpu_record_switches(struct gpu *gpu, uint32_t ctx);

/* Writes size bytes to a new file that only the program's own user may read. */
void gpu_dump(struct gpu *gpu, const char *path, const void *data, size_t size);

#endif
