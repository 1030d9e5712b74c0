/* SPDX-License-Identifier: MIT */
/*
 * The device: everything that a reset clears, and what it stands on.
 *
 * The message loop owns it and is the only one that starts, stops or maps anything. Slot threads and the invalidation
 * thread run between device_enable and device_disable; while disabled they are parked and touch nothing.
 */
#ifndef REFGPU_DEVICE_H
#define REFGPU_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/refgpu.h>

#include "dma.h"
#include "faultq.h"
#include "invq.h"
#include "irq.h"
#include "pci.h"
#include "regs.h"
#include "slot.h"
#include "status.h"
#include "tlb.h"

struct device {
	unsigned int n_slots;
	struct status_page status;
	struct dma dma;
	struct irqs irqs;
	struct tlb tlb;
	struct faultq faultq;
	struct invq invq;
	struct regs regs;
	struct pci pci;
	bool apart; /* what its configuration space says of it */
	struct bus_port loop_port; /* the message loop's own */
	pthread_mutex_t remote_atomics; /* makes ATOMIC on memory without fd atomic among slots */
	struct slot *slots;
	bool enabled;
	uint64_t mailbox;
	enum refgpu_format format;
};

/* status_path may be NULL. Returns 0 or -errno; device_free takes NULL and returns NULL. */
int device_new(struct device **ret, unsigned int n_slots, const char *status_path);
struct device *device_free(struct device *d);
void device_set_apart(struct device *d); /* see pci.h; before anybody looks */

/* Starts what the registers describe; -EINVAL if they do not describe it. */
int device_enable(struct device *d);
/* Returns when nothing runs any more. What is in the mailbox stays. */
void device_disable(struct device *d);
/* Back to the beginning: registers, TLB, scratch, queues. DMA maps and armed interrupts stay. */
void device_reset(struct device *d);
/* The same, asked for by the client: the status page says so. */
void device_reset_counted(struct device *d);

#endif
