/* SPDX-License-Identifier: MIT */
/*
 * The fault queue: a bounded ring in system memory that the device fills and the driver empties.
 *
 * A record that finds no room is dropped and counted; the slot that caused it stalls or goes on all the same. put_lock
 * is held over the bus accesses of faultq_put, each a section of its own, so that records come whole and in order.
 */
#ifndef REFGPU_FAULTQ_H
#define REFGPU_FAULTQ_H

#include <pthread.h>
#include <stdint.h>

#include <pasid/refgpu.h>

#include "dma.h"
#include "irq.h"

struct faultq {
	pthread_mutex_t lock;
	pthread_mutex_t put_lock;
	uint64_t mailbox;
	uint64_t base;
	uint32_t size;
	uint64_t head;
	uint64_t tail;
	uint64_t lost;
	struct refgpu_status *status;
	struct irqs *irqs;
};

void faultq_init(struct faultq *q, struct refgpu_status *status, struct irqs *irqs);
void faultq_fini(struct faultq *q);
void faultq_start(struct faultq *q, uint64_t mailbox, uint64_t base, uint32_t size);
/* The driver consumed entries up to head; -EINVAL if that is no possible number. */
int faultq_set_head(struct faultq *q, uint64_t head);
void faultq_put(struct faultq *q, struct bus_port *port, const struct refgpu_fault *f);

#endif
