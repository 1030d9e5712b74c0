/* SPDX-License-Identifier: MIT */
/*
 * BAR 0: the registers of the device and of its slots, and the MSI-X table.
 *
 * Only the message loop comes here. Everything is 32 bits wide inside: an 8-byte access is its two halves, low first,
 * and a 64-bit register takes effect with its high half.
 */
#ifndef REFGPU_REGS_H
#define REFGPU_REGS_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/refgpu.h>

struct device;

struct slot_regs {
	uint64_t ring;
	uint32_t ring_size;
	uint64_t tail;
	uint64_t ctrl;
	uint32_t fault_mode;
};

struct regs {
	uint32_t format;
	uint64_t mailbox;
	uint64_t invq;
	uint32_t invq_size;
	uint64_t invq_tail;
	uint64_t faultq;
	uint32_t faultq_size;
	uint64_t faultq_head;
	struct slot_regs slot[REFGPU_MAX_SLOTS];
	uint32_t low_at; /* the 64-bit register whose low half was written last */
	uint32_t low;
	uint8_t msix[REFGPU_VECTORS * 16];
};

/* len is 4 or 8, offset a multiple of it, inside the BAR: else -EINVAL. What is no register reads as zero. */
int regs_read(struct device *d, uint64_t offset, uint32_t len, void *buf);
/* -EINVAL also where the value makes no sense; then it has no effect. What is no register ignores writes. */
int regs_write(struct device *d, uint64_t offset, uint32_t len, const void *buf);

#endif
