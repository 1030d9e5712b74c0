/* SPDX-License-Identifier: MIT */
/*
 * An engine is the driver of one kind of GPU: it knows registers, rings and marks, and nothing about clients. A driver
 * whose GPU has an MMU of its own offers a translator as well. Another GPU is one file more, and a line in engine.c.
 *
 * Work goes onto slots as jobs. Each job put on a slot has a mark, rising by slot; engine_slot says up to which mark
 * jobs have begun and are done. What the device writes is hostile: every look checks it, and -EPROTO means that the
 * device cannot be trusted any more.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/transport.h"
#include "translator/translator.h"

struct engine;

/* Memory that the driver and the device share, at bus addresses of the daemon's choosing; zeroed. */
struct engine_memory {
	void *ro; /* the device reads: rings, queues of requests */
	uint64_t ro_bus;
	void *rw; /* the device writes: marks, fault records */
	uint64_t rw_bus;
};

struct engine_config {
	unsigned int slots; /* the most to use; 0: as many as there are */
	const char *format; /* pgtable_format_name() of the tables that will be installed; NULL: the kernel's own */
	struct range iova; /* what clients may map */
};

struct engine_job {
	uint64_t iova; /* of the commands */
	uint64_t len;
	uint64_t number;
	uint64_t fence; /* bus address where the device stores `number` when it is done; 0 for an engine that `reads` */
	/* For an engine that `reads`, else NULL: the commands themselves, valid during the call. The client may write them
	 * at the same time. */
	const void *commands;
	void *window; /* window_bytes of memory that is in the job's address space at window_iova; hostile */
	uint64_t window_iova;
};

enum engine_control {
	ENGINE_PAUSE, /* hold the job where it is */
	ENGINE_RESUME, /* go on; a faulted access is tried again */
	ENGINE_TERMINATE, /* end the job that stalled on a fault as if it were done */
	ENGINE_STOP, /* drop all jobs of the slot: no fence is written; the slot forgets its address space */
};

struct engine_slot {
	uint64_t begun; /* highest mark begun */
	uint64_t done; /* highest mark done or dropped */
	bool settled; /* the last control asked of the slot has taken effect */
	bool still; /* no access is going on: idle, paused or stalled */
};

struct engine_ops {
	const char *name;
	uint32_t irqs;
	unsigned int asid_bits;
	unsigned int ring_jobs; /* jobs on one slot at a time */
	uint64_t cmd_align;
	uint64_t submit_max;
	uint64_t ro_bytes, rw_bytes; /* of engine_memory; multiples of 4096, or 0 */
	/* The GPU has no command processor: its driver reads the commands, checks every address in them, and completes jobs
	 * itself, whose fences are then the service's to write. */
	bool reads;
	uint64_t
		window_bytes; /* what the device needs in every address space that it works in, without an MMU of its own */
	bool tags_pasid; /* its accesses can carry the PASID that install names */
	unsigned int iova_bits; /* of the addresses that it can put out; 0: as many as there are */

	bool (*match)(const struct transport_ids *ids);
	/* Starts the device. 0, or -ENODEV (not what it claims to be), -EOPNOTSUPP (format). */
	int (*attach)(struct engine **ret, struct transport *t, const struct engine_memory *mem,
		      const struct engine_config *config);
	/* Starts it again after transport reset; marks begin at 0, tickets go on. */
	void (*restart)(struct engine *e);
	struct engine *(*detach)(struct engine *e); /* takes NULL; touches the device no more */
	unsigned int (*slots)(const struct engine *e);
	struct translator *(*translator)(struct engine *e); /* NULL: the GPU has no MMU */

	/* Puts a job behind the others of the slot; the device sees it with the next kick. -EAGAIN: the ring is full. */
	int (*submit)(struct engine *e, unsigned int slot, const struct engine_job *job, uint64_t *mark);
	/* Before another owner's job: clears what the last one left in the slot (registers, scratch memory). */
	int (*scrub)(struct engine *e, unsigned int slot);
	void (*kick)(struct engine *e, unsigned int slot);
	void (*control)(struct engine *e, unsigned int slot, enum engine_control what);
	int (*look)(struct engine *e, unsigned int slot, struct engine_slot *ret);
	/* An interrupt came, or one may have been missed. NULL: looking is enough. */
	void (*interrupt)(struct engine *e);
};

struct engine {
	const struct engine_ops *ops;
};

/* The driver for a device, or NULL. */
const struct engine_ops *engine_find(const struct transport_ids *ids);

extern const struct engine_ops engine_refgpu;
extern const struct engine_ops engine_edu;

#endif
