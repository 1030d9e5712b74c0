/* SPDX-License-Identifier: MIT */
/*
 * Faults on their way to the client: bounded, and with what makes a diagnosis: the nearest mapping, and what was
 * unmapped there lately. One fault_log per context. Times are the caller's nanoseconds.
 */
#ifndef CORE_FAULT_H
#define CORE_FAULT_H

#include <stdint.h>

#include <pasid/protocol.h>
#include <pasid/range.h>

#define FAULT_GONE_MAX 32u /* removed ranges remembered per context: enough for a frame's worth of surfaces */

struct fault_gone {
	struct range r;
	uint64_t at_ns;
};

struct fault_log {
	struct pasid_wire_fault fault[PASID_FAULTS_MAX]; /* the newest ones, not yet sent, oldest first from `head` */
	uint32_t head, count;
	uint64_t dropped; /* since the last fault_log_take() */
	uint64_t total;
	struct fault_gone gone[FAULT_GONE_MAX]; /* ring, gone_next is the oldest */
	uint32_t gone_next, gone_count;
};

/* A range was unmapped at at_ns. A range adjacent to the newest one, or overlapping it, at the same time is
 * merged with it. */
void fault_log_gone(struct fault_log *l, struct range r, uint64_t at_ns);

/* Adds a fault, dropping the oldest if PASID_FAULTS_MAX wait. near_* are set by the caller; gone_* are filled
 * here: the newest removed range that contains addr, or else the newest whose nearest byte is at most 64 KiB from
 * it, or else zeros. now_ns is the time of the fault. What was entered. */
const struct pasid_wire_fault *fault_log_add(struct fault_log *l, const struct pasid_wire_fault *f, uint64_t now_ns);

/* Moves the waiting faults, oldest first, to v (room for PASID_FAULTS_MAX), returns how many; *dropped as in the
 * event. */
uint32_t fault_log_take(struct fault_log *l, struct pasid_wire_fault *v, uint64_t *dropped);

#endif
