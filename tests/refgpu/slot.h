/* SPDX-License-Identifier: MIT */
/*
 * A slot: a thread that takes ring words in order, and obeys its control register between any two accesses.
 *
 * The message loop talks to it through the fields under `lock`; all else belongs to the thread. The mailbox tells the
 * driver where it is: begun before a word's first access, done after its fence, ctrl_ack once the value took effect.
 */
#ifndef REFGPU_SLOT_H
#define REFGPU_SLOT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <pasid/refgpu.h>

#include "dma.h"
#include "mmu.h"

/* Control values that wait for the slot. A driver that sends more before any is acknowledged replaces the last. */
#define SLOT_MAX_CTRL 16u

struct device;

/* What control means for the word that is being executed. */
enum slot_verdict {
	SLOT_GO = 0,
	SLOT_END, /* as if complete: its fence is written */
	SLOT_DROP, /* as if it had never been: nothing is written */
};

struct slot_ctrl {
	uint64_t value;
	uint64_t tail; /* of the ring when the value was written: what STOP drops */
};

struct slot {
	struct device *dev;
	uint32_t index;
	pthread_t thread;
	bool started;
	struct bus_port port;
	_Atomic uint32_t fault_mode;
	_Atomic bool attention; /* there is something under the lock to look at */

	pthread_mutex_t lock; /* for what follows */
	pthread_cond_t wake;
	pthread_cond_t parked_now;
	bool enabled;
	bool parked;
	bool quit;
	uint64_t ring;
	uint32_t ring_size; /* 0: no ring */
	uint64_t tail;
	uint64_t finished; /* `done`, for the check of the doorbell */
	struct slot_ctrl ctrl[SLOT_MAX_CTRL];
	unsigned int n_ctrl;

	/* the thread's own */
	uint64_t done;
	uint64_t job;
	bool in_job;
	enum refgpu_slot_state state;
	struct mmu_context mmu;
	uint8_t scratch[REFGPU_SCRATCH_SIZE];
	uint8_t bounce[2][DMA_REMOTE_MAX]; /* source and destination pieces that lie in memory without fd */
};

/* Starts the thread, parked. slot_fini takes a slot that was zeroed and never started. */
int slot_init(struct slot *s, struct device *dev, uint32_t index);
void slot_fini(struct slot *s);

/* For the message loop. start: the slot is parked, the ring registers are those at ENABLE. */
void slot_start(struct slot *s, uint64_t ring, uint32_t ring_size);
void slot_halt(struct slot *s);
void slot_park(struct slot *s);
/* -EINVAL: no ring, not enabled, or more words than the ring holds. */
int slot_doorbell(struct slot *s, uint64_t tail);
int slot_set_ring(struct slot *s, uint64_t ring, uint32_t ring_size);
int slot_control(struct slot *s, uint64_t value);

/* For the thread, outside sections. Obeys what came in; cheap when nothing did. */
enum slot_verdict slot_attend(struct slot *s);
/* HANG: obeys nothing but control (all == true) or nothing but a reset. */
enum slot_verdict slot_hang(struct slot *s, bool all);
/* Reports a fault of a command; if the slot's mode says so, waits for the driver. SLOT_GO: try again. */
enum slot_verdict slot_fault(struct slot *s, const struct refgpu_fault *f);
/* Reports a fault of a ring word, which never stalls. SLOT_END, or SLOT_DROP if a reset was all that was wrong. */
enum slot_verdict slot_word_fault(struct slot *s, uint32_t code, uint64_t addr, uint32_t access);

/* ring.c: takes and runs the next ring word. */
void ring_run(struct slot *s);
void slot_set_state(struct slot *s, enum refgpu_slot_state state);
uint64_t slot_mark(const struct slot *s, size_t field); /* bus address of a field of struct refgpu_slot_mark */
void slot_progress(struct slot *s); /* interrupts vector 0 */

/* exec.c: runs the commands of a job. */
enum slot_verdict exec_run(struct slot *s, uint64_t first, uint64_t len);

#endif
