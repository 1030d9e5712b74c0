/* SPDX-License-Identifier: MIT */
/*
 * What pasidd's devices did and when, as events in memory: a ring of records of one size, overwritten oldest first. pasidd writes
 * it, whoever got its fd from OpenTrace (docs/dbus.md, "The trace") reads it; docs/pasidctl.md is about `pasidctl trace`.
 *
 * Record n, from 1, is at (n - 1) % capacity. Its `seq` is 0 while it is being written and n when it is whole. A reader copies
 * it, looks at `seq` before and after, and has lost what is not n by then. All fields are little-endian.
 */
#ifndef PASID_TRACE_H
#define PASID_TRACE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PASID_TRACE_MAGIC 0x43525450u /* "PTRC" in memory */
#define PASID_TRACE_VERSION 1u
#define PASID_TRACE_DEVICES 64u
#define PASID_TRACE_HEAD 4096u /* bytes in front of the records */

enum pasid_trace_event {
	/* Contexts. */
	PASID_TRACE_CTX = 1, /* made; a: pid, b: uid, c: PASID */
	PASID_TRACE_CTX_GONE = 2, /* freed; nothing of it can happen any more */
	PASID_TRACE_CTX_LOST = 3, /* job: the guilty one or 0; a: why, as of a LOST event (docs/protocol.md) */
	/* Slots. */
	PASID_TRACE_SWITCH = 4, /* ctx was put on the slot, in place of whoever was there */
	PASID_TRACE_RUN = 5, /* the slot, which was idle, begins with jobs of ctx */
	PASID_TRACE_RUN_END = 6, /* the slot is idle; job: the one that did not end, or 0; a: enum pasid_trace_end */
	PASID_TRACE_JOB = 7, /* job came to the front of the slot */
	PASID_TRACE_JOB_END = 8, /* jobs a..job are done */
	/* Address spaces. */
	PASID_TRACE_BIND = 9, /* a list of maps and unmaps begins */
	PASID_TRACE_MAP = 10, /* a..b; c: bus address of a */
	PASID_TRACE_UNMAP = 11, /* a..b */
	PASID_TRACE_BIND_END = 12, /* it is in force; a: 1: it was taken back */
	/* Devices. */
	PASID_TRACE_FAULT = 13, /* job; a: address, b: access, c: code, as of a FAULT event. ctx 0: nobody is charged */
	PASID_TRACE_RESET = 14, /* a reset begins */
	PASID_TRACE_RESET_END = 15,
	PASID_TRACE_DEVICE_GONE = 16,
	PASID_TRACE_DEVICE_READY = 17, /* a: slots */
};

enum pasid_trace_end {
	PASID_TRACE_END_IDLE = 0, /* all jobs are done */
	PASID_TRACE_END_STOPPED = 1, /* the context ends, by whatever cause */
	PASID_TRACE_END_RESET = 2,
	PASID_TRACE_END_GONE = 3, /* the device is */
};

struct pasid_trace_record {
	uint64_t seq;
	uint64_t time_ns; /* CLOCK_MONOTONIC; never less than the record's before */
	uint16_t event; /* enum pasid_trace_event; others may come */
	uint16_t device; /* index into the head's devices */
	uint16_t slot; /* and 1; 0: none */
	uint16_t known; /* 1: nothing happened, it was so when somebody opened the trace */
	uint32_t ctx; /* 0: none */
	uint32_t reserved;
	uint64_t job;
	uint64_t a, b, c;
};

struct pasid_trace_head {
	uint32_t magic, version;
	uint32_t head_bytes; /* where the records begin */
	uint32_t record_bytes;
	uint64_t capacity; /* records; a power of two */
	uint64_t written; /* the last record that is whole */
	uint64_t opened; /* where what is `known` begins, for whoever opened it last */
	uint32_t n_devices;
	uint32_t reserved;
	char devices[PASID_TRACE_DEVICES][32]; /* names */
};

#ifdef __cplusplus
}
#endif

#endif
