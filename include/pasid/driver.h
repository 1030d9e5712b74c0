/* SPDX-License-Identifier: MIT */
/*
 * What pasidd and the drivers of GPUs and accelerators want of each other; docs/driver.md walks through it. A driver (an
 * *engine*) knows one kind of device: its registers, rings and marks, and nothing about clients. One whose device has an
 * MMU of its own offers a *translator* as well. It is built into the daemon, or a shared object that the configuration
 * names and that exports one symbol, `pasid_driver`. It needs no symbol of the daemon's: all comes through structs.
 *
 * A driver is a part of a privileged daemon and is believed. What it must not believe is everything else: what the device
 * writes or shows in its registers, what stands in the window, and commands, all of which clients can make. Each number
 * is checked against what was asked for before it is used; -EPROTO from a call that may say so gives the device up.
 *
 * Every call is made on the daemon's one loop, which serves all devices and all clients: none may sleep, wait for the
 * device or take a lock that another thread holds long, and none calls back into the daemon but through engine_device. A
 * driver that begins threads or installs signal handlers is wrong. Calls return 0 or -errno. Addresses and lengths are in
 * bytes. Structs that the daemon passes in live as long as the call; what they point to as well, unless said otherwise.
 */
#ifndef PASID_DRIVER_H
#define PASID_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/range.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of everything in this file. A daemon takes drivers with its own number, and no others. */
#define PASID_DRIVER_ABI 3u

#define ENGINE_NAME_MAX 31u /* letters, digits, '_' and '-' */
#define ENGINE_MAX_SLOTS 64u
#define ENGINE_MAX_IRQS 64u
#define ENGINE_MAX_ASID_BITS 16u
#define ENGINE_MAX_SUBMIT (1u << 30)
#define ENGINE_MAX_SUBMIT_READ (1u << 20) /* where engine_ops.reads: all of it is copied on the loop */
#define ENGINE_MAX_MEMORY (16u << 20) /* ro_bytes and rw_bytes together */
#define ENGINE_MAX_WINDOW 0xf000u
#define ENGINE_MIN_IOVA_BITS 20u
#define ENGINE_PAGE 4096u /* what sizes of memory are multiples of */

/* ---- What a driver is given. ----------------------------------------------------------------------------------- */

/* What a driver recognises its device by, from PCI config space. */
struct transport_ids {
	uint16_t vendor;
	uint16_t device;
	uint32_t class_code; /* base class, sub-class, programming interface: 24 bits */
};

/* The device as its driver reaches it, from `attach` to `detach`. */
struct engine_device {
	const struct engine_device_ops *ops;
};

struct engine_device_ops {
	/* A posted write of `width` (4 or 8) bytes to the register at `off` of a region (a BAR's number): no answer comes.
	 * It is ordered after earlier ones, and after earlier stores to memory that the device maps. If it cannot be made
	 * the device is lost; the driver is told by `detach`, later and never from inside of this call. */
	void (*region_write)(struct engine_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t value);
	/* Reads `width` (4 or 8) bytes of the register at `off`, also where it cannot be mapped, as in a BAR smaller than a
	 * page. 0 and *value; -EOPNOTSUPP where the device would have to be waited for (one that is a process and lets
	 * nobody map it there), -EINVAL, -EIO. */
	int (*region_read)(struct engine_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t *value);
	/* Maps a part of a region for plain loads, and stores if the region can be written; NULL if it cannot be had in a
	 * way that is safe. Lives until `detach`. What it reads may change at any time. */
	volatile void *(*region_map)(struct engine_device *d, uint32_t region, uint64_t off, uint64_t len);
};

/* Memory that the driver and the device share, at bus addresses of the daemon's choosing, zeroed at `attach` and kept until
 * `detach`. NULL and 0 where none was asked for. */
struct engine_memory {
	void *ro; /* ro_bytes; the device reads: rings, queues of requests */
	uint64_t ro_bus;
	void *rw; /* rw_bytes; the device writes: marks, fault records. Hostile */
	uint64_t rw_bus;
	/* keep_bytes of the driver's own, which no device sees. Where the daemon is killed and another one takes the device over
	 * while it runs, this, `ro` and `rw` are as they were left, at any instruction. */
	void *keep;
};

struct engine_config {
	unsigned int slots; /* the most to use; 0: as many as there are */
	/* Of the page tables that will be installed: "vmsa64" (Arm VMSAv8-64 stage 1, 4 KiB granule, 48 bits) or "x86-64"
	 * (4 levels); NULL: they are the kernel's. Lives until `detach`. */
	const char *format;
	struct range iova; /* what clients may map; only addresses in it are theirs to name */
	/* `adopt` of an engine with window_bytes: by slot, the window of the jobs that were put there and are not done; NULL:
	 * of none. Valid until they are done. */
	void *const *windows;
};

/* ---- Work. ----------------------------------------------------------------------------------------------------- */

/*
 * Work goes onto slots as jobs; a slot runs one address space at a time. Each job put on a slot has a mark, a number that
 * rises by slot; `look` says up to which mark jobs have begun and are done.
 */
struct engine_job {
	uint64_t iova; /* of the commands; a multiple of cmd_align */
	uint64_t len; /* of them; a multiple of cmd_align, at most submit_max; 0: none, the job is done at once */
	uint64_t number;
	/* Bus address where the device stores `number`, 8 bytes, when the job is done; 0 for an engine that `reads`. */
	uint64_t fence;
	/* For an engine that `reads`, else NULL: the bytes of the commands, as the client wrote them: hostile. Valid during
	 * the call. */
	const void *commands;
	/* window_bytes of memory that is in the job's address space at window_iova, valid until the job is done or
	 * dropped. The device can write it: hostile. */
	void *window;
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
	uint64_t done; /* highest mark done or dropped; never lower than before, but for a restart */
	bool settled; /* the last control asked of the slot has taken effect */
	bool still; /* no access is going on: idle, paused or stalled */
	uint64_t told; /* highest mark that the device was told of by a kick */
};

struct engine_access {
	struct range at;
	uint32_t access; /* 1 read, 2 write; 0: none, and `at` says nothing */
};

struct engine; /* a driver's own, of one device; begins with the struct below */
struct translator;

struct engine_ops {
	const char *name; /* clients see it: it names the format of commands */
	uint32_t irqs; /* interrupt vectors to arm, from 0; fewer if the device has fewer */
	unsigned int asid_bits; /* of the ASIDs that its MMU tells apart; means nothing without a translator */
	unsigned int ring_jobs; /* the most jobs on one slot at a time, at least 1 */
	uint64_t cmd_align; /* a power of two, at most ENGINE_PAGE */
	uint64_t submit_max; /* bytes of one job's commands */
	uint64_t ro_bytes, rw_bytes; /* of engine_memory; multiples of ENGINE_PAGE; 0 in `nested` and `exclusive` */
	uint64_t keep_bytes; /* of engine_memory; a multiple of ENGINE_PAGE, or 0 */
	/* The device has no command processor: its driver is given the commands' bytes, checks every address in them, and
	 * completes jobs itself, whose fences are then the daemon's to write. */
	bool reads;
	/* What the device needs in every address space that it works in, where an IOMMU keeps contexts apart; a multiple of
	 * ENGINE_PAGE, or 0. */
	uint64_t window_bytes;
	bool tags_pasid; /* its accesses can carry the PASID that install names; takes a translator */
	/* Of the addresses that it can put out, where an IOMMU keeps contexts apart; 0: as many as there are. */
	unsigned int iova_bits;

	/* Is it one of these? Looks at nothing but the ids; may be asked of any device. */
	bool (*match)(const struct transport_ids *ids);
	/* Starts the device. 0 and *ret; or -ENODEV (not what it claims to be), -EOPNOTSUPP (not that format), -ENOMEM,
	 * -EBUSY (not yet). After a failure nothing is kept; it is tried again from time to time. */
	int (*attach)(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
		      const struct engine_config *config);
	/* May be NULL: then a device whose daemon was killed is started anew, and what was on it is lost. As `attach`, but the
	 * device goes on: nothing of it is reset, and what was put on slots stays there. Jobs that it was told of by a kick are
	 * there, and it is told of them once more, for the kick itself may not have been made; others are forgotten. So are
	 * invalidations that it was not told of, and faults that were not asked for yet are still to be asked for. The daemon
	 * gives every slot a control, and has everything invalidated, after that. */
	int (*adopt)(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
		     const struct engine_config *config);
	/* Starts it again after it was reset: slots are empty, marks begin at 0, tickets of the translator go on. */
	void (*restart)(struct engine *e);
	/* Frees everything. The device may be gone, or still running: it is touched no more. Takes NULL, returns NULL. */
	struct engine *(*detach)(struct engine *e);
	/* 1 to ENGINE_MAX_SLOTS, and at most engine_config.slots if that is not 0; always the same. */
	unsigned int (*slots)(const struct engine *e);
	/* May be NULL: the device has no MMU. What it returns lives as long as the engine. */
	struct translator *(*translator)(struct engine *e);

	/* Puts a job behind the others of the slot, and says its mark; the device sees it with the next kick. -EAGAIN:
	 * the ring is full, and it is asked again after some progress. */
	int (*submit)(struct engine *e, unsigned int slot, const struct engine_job *job, uint64_t *mark);
	/* Before another owner's job: nothing that the last one left in the slot (registers, scratch memory, caches that
	 * can be read) is there when the next job begins. 0 or -EAGAIN as above. */
	int (*scrub)(struct engine *e, unsigned int slot);
	/* Makes the device see what was put. There may be nothing new. */
	void (*kick)(struct engine *e, unsigned int slot);
	/* A request, and the last one holds; it is in force when `look` says settled. A slot that does not get there in
	 * time costs its context, and the device a reset. */
	void (*control)(struct engine *e, unsigned int slot, enum engine_control what);
	/* How far the slot is: 0 and *ret, or -EPROTO if what the device wrote cannot be. Called after interrupts and from a
	 * timer, so that a lost interrupt costs time and nothing else. */
	int (*look)(struct engine *e, unsigned int slot, struct engine_slot *ret);
	/* For an engine that `reads`; may be NULL. The i-th of the accesses that the job of this mark makes, in any order, by
	 * IOVAs that clients may map; false: there are no more. Asked of jobs that are on the slot: where an IOMMU tells of a
	 * fault and not whose it is, this does. */
	bool (*names)(const struct engine *e, unsigned int slot, uint64_t mark, uint32_t i, struct engine_access *ret);
	/* May be NULL: looking is enough. An interrupt came, or one may have been missed: a hint, never evidence. */
	void (*interrupt)(struct engine *e);
};

/* Embedded in the driver's own struct. */
struct engine {
	const struct engine_ops *ops;
};

/* ---- Translation. ---------------------------------------------------------------------------------------------- */

struct transport_space; /* the daemon's */

/* An address space, as whoever translates wants it named. */
struct translator_space {
	uint32_t pasid, asid; /* not 0 */
	uint64_t root; /* bus address of its tables; 0: the kernel keeps them */
	struct transport_space *kernel; /* ... and calls them this; nothing for a driver to touch */
};

struct translator_fault {
	unsigned int slot;
	uint32_t asid;
	uint32_t pasid; /* of the access; 0: it had none */
	uint64_t addr; /* IOVA */
	uint32_t access; /* 1 read, 2 write, 4 fetch */
	uint32_t code; /* enum pasid_fault_code of <pasid/pasid.h> */
	uint64_t job; /* its number as submitted; what the device says */
	bool stalled; /* the slot waits for control RESUME, TERMINATE or STOP */
};

/*
 * A translator is told which address space runs where: install and remove on a slot, invalidate, faults. It never holds
 * tables; it is told their root. A driver's has install, invalidate, invalidated and next_fault; an invalidation gives a
 * ticket, and is complete once `invalidated` has reached it, which is looked at after every interrupt.
 */
struct translator_ops {
	/* The address space is current on the slot from the next job on. Its owner has seen to it that the slot is idle. 0;
	 * 1: it will be, once `ready` says so, and no job may begin before; -EAGAIN (the slot's ring is full, or whoever
	 * installs has enough to do). A driver's answers 0 or -EAGAIN. */
	int (*install)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Takes the address space away from the slot, so that it may be freed. 0: it is not there; 1: it is leaving, ask
	 * again; -EAGAIN, as above; -EIO: nobody knows what is current there. NULL: whoever stops the slot has done it. */
	int (*remove)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Is what install said 1 of current there? 1; 0: not yet; -EIO: nobody knows what is; otherwise -errno: it is not,
	 * and will not be. NULL: it always is. */
	int (*ready)(struct translator *t, unsigned int slot, const struct translator_space *s);
	/* Begins to forget n ranges of asid, at most max_ranges, or all of it if n is 0; of asid 0: all there is, of everybody. 0 and a ticket higher than all
	 * before, or -EAGAIN (the queue is full). This and the next two are NULL where the kernel keeps the tables: it
	 * does so when it unmaps, and tells of no faults. */
	int (*invalidate)(struct translator *t, uint32_t asid, const struct range *r, size_t n, uint64_t *ticket);
	/* The highest ticket that is complete with all before it: no access begun under what they named still goes on.
	 * 0 and the ticket, or -EPROTO if what the device wrote cannot be. */
	int (*invalidated)(struct translator *t, uint64_t *ticket);
	/* 1 and a fault, 0 if there is none, -EPROTO as above. *lost rises by the faults that the device dropped. */
	int (*next_fault)(struct translator *t, struct translator_fault *ret, uint64_t *lost);
	size_t max_ranges; /* in one invalidate, at least 1 */
};

/* Embedded by whoever provides one. */
struct translator {
	const struct translator_ops *ops;
};

/* ---- A shared object. ------------------------------------------------------------------------------------------ */

/* How a test program says the simplest commands to this device. Needs no device. */
struct pasid_driver_verbs {
	/* Each writes one command (engine's format) to `cmd` (engine_ops.submit_max bytes of room), and returns its length in
	 * bytes. dst and src are IOVAs of any alignment. */
	/* The bytes of `value`, lowest first, again and again. len and dst are multiples of 4. */
	size_t (*fill)(void *cmd, uint64_t dst, uint64_t len, uint32_t value);
	/* Any len but 0; the ranges do not overlap. */
	size_t (*copy)(void *cmd, uint64_t dst, uint64_t src, uint64_t len);
};

struct pasid_driver {
	uint32_t abi; /* PASID_DRIVER_ABI; stays the first member in every version */
	const struct engine_ops *engine;
	const struct pasid_driver_verbs *verbs; /* NULL: there are none */
};

/* What a driver defines, and the one symbol that it exports: compile the rest with -fvisibility=hidden. It is looked at
 * after the object's constructors have run; do without any. */
extern const struct pasid_driver pasid_driver __attribute__((visibility("default")));

#ifdef __cplusplus
}
#endif

#endif
