/* SPDX-License-Identifier: MIT */
/*
 * The invalidation queue: entries read from system memory by a thread of its own, so that nobody else ever waits.
 *
 * invq_head moves past an entry only when the TLB forgot what it names and every section that was open then is closed.
 * An entry that cannot be read or makes no sense invalidates everything: too much is safe, too little is not.
 */
#ifndef REFGPU_INVQ_H
#define REFGPU_INVQ_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "dma.h"
#include "irq.h"
#include "tlb.h"

struct invq {
	pthread_t thread;
	struct bus_port port;
	struct tlb *tlb;
	struct irqs *irqs;
	struct refgpu_status *status;
	pthread_mutex_t lock; /* for what follows */
	pthread_cond_t wake;
	pthread_cond_t parked_now;
	bool enabled;
	bool parked;
	bool quit;
	bool started;
	uint64_t mailbox;
	uint64_t base;
	uint32_t size;
	uint64_t head;
	uint64_t tail;
};

/* Starts the thread, parked. */
int invq_init(struct invq *q, struct dma *dma, struct tlb *tlb, struct irqs *irqs, struct refgpu_status *status);
void invq_fini(struct invq *q);
void invq_start(struct invq *q, uint64_t mailbox, uint64_t base, uint32_t size);
/* Asks the thread to stop touching memory; invq_park returns when it has. */
void invq_halt(struct invq *q);
void invq_park(struct invq *q);
/* -EINVAL for a tail that would mean more entries than there are. A tail that was rung before is harmless. */
int invq_doorbell(struct invq *q, uint64_t tail);

#endif
