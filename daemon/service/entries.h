/* SPDX-License-Identifier: MIT */
/*
 * What the service writes into the journal: entries in the order in which things happened. A request that changes
 * something is an INTENT before anything outside the books is touched and a COMMIT, with its reply, once it holds; what
 * happens by itself is a DONE of a record, or one of the facts below. Whoever reads the journal applies all of them but
 * intents that were undone, or are still open at the end and can be made again: their requests are still in their sockets.
 *
 * A snapshot is the same entries, as few as lead to the state of now. These layouts are of ENTRIES_VERSION. Whoever changes
 * one counts it up, and reads entries of the versions before as they were, in adopt_intents.c and in adopt.c; behind them the journal goes on in the new one.
 */
#ifndef SERVICE_ENTRIES_H
#define SERVICE_ENTRIES_H

#include <stdint.h>

#include <pasid/protocol.h>
#include <pasid/range.h>

#include "core/record.h"
#include "service/layout.h"
#include "store/store.h"
#include "transport/transport.h"

#define ENTRIES_VERSION 1u
#define ENTRIES_OLDEST 1u /* that is still read */

enum entry_type {
	ENTRY_HEAD = 1,
	ENTRY_CLIENT, /* it is there; replaces what was said of it before */
	ENTRY_INTENT, /* struct record */
	ENTRY_DONE, /* struct record */
	ENTRY_UNDONE, /* the client's open intent had no effect */
	ENTRY_COMMIT, /* with the reply behind it; closes the client's open intent */
	ENTRY_DEVICE, /* it is ready; replaces what was said of it before */
	ENTRY_DEVICE_GONE,
	ENTRY_POOL, /* a device's table pages reach as far as that */
	ENTRY_RESET,
	ENTRY_TABLES, /* where a context's page tables are; context 0: those that all of the device share */
	ENTRY_LOST, /* a context's work is over; its tables may still be there */
	ENTRY_CLEARED, /* a context's tables and mappings are gone, or about to go */
	ENTRY_PUT, /* a job was put on a slot, and the device is not told before this is written */
	ENTRY_UNPUT, /* jobs behind `job` are on no slot */
	ENTRY_STOPPED, /* nothing is on a slot */
	ENTRY_FENCE, /* a client's fence memory has bus addresses of a device */
	ENTRY_FENCE_GONE,
	ENTRY_COUNTS, /* of a context */
	ENTRY_SPACE, /* where the kernel keeps a context's tables */
};

struct entry_head {
	uint32_t last_client, last_ctx; /* ids given */
};

#define ENTRY_CLIENT_HELLO 1u

struct entry_client {
	uint32_t client, uid; /* as in RECORD_CLIENT_OPEN */
	int32_t pid;
	uint32_t lines; /* of fence memory */
	uint64_t serial; /* of its last request that was committed */
	uint64_t fence; /* key of its fence memory */
	uint32_t flags;
	uint32_t last_buf;
	char name[64]; /* of its connection, in the fd store; or of its D-Bus connection */
};

struct entry_undone {
	uint32_t client, reserved;
};

struct entry_commit { /* the reply follows */
	uint32_t client;
	uint32_t with_fence;
	uint64_t serial;
};

struct entry_device {
	uint32_t index; /* of records */
	uint32_t opening; /* a number that no other opening has, of whichever device */
	uint32_t mode; /* that it is in */
	uint32_t n_slots;
	uint32_t pool_max, pool_extent; /* table pages; 0: none */
	uint32_t n_kept; /* fds of its transport */
	uint32_t saved_size; /* bytes of transport_ops.save */
	uint64_t ro_bytes, rw_bytes, keep_bytes; /* of its driver */
	struct range iova; /* what clients may map */
	uint64_t memory; /* key of the first of enum vault_memory; the others follow */
	struct bus_layout layout;
	char kept[TRANSPORT_KEEP_MAX][STORE_NAME_MAX]; /* their names in the fd store */
	char name[PASID_NAME_MAX];
	char spec[256];
	char format[16];
	char driver[PASID_NAME_MAX];
	uint8_t saved[TRANSPORT_SAVE_MAX];
};

struct entry_device_gone {
	uint32_t index, reserved;
};

struct entry_pool {
	uint32_t index, extent;
};

enum entry_reset_phase { RESET_ASKED = 1, RESET_SORTED, RESET_OVER };

struct entry_reset {
	uint32_t index;
	uint32_t phase; /* SORTED: what was on its slots is accounted for, and nothing is there */
};

struct entry_tables {
	uint32_t index, ctx;
	uint64_t root; /* bus address */
};

struct entry_lost {
	uint32_t ctx;
	uint32_t why; /* enum pasid_lost_why */
	uint64_t job;
};

struct entry_cleared {
	uint32_t ctx, reserved;
};

struct entry_put {
	uint32_t ctx, slot;
	uint64_t job, mark;
};

struct entry_unput {
	uint32_t ctx, reserved;
	uint64_t job;
};

struct entry_stopped {
	uint32_t index, slot;
};

struct entry_fence {
	uint32_t client, index;
	uint64_t bus;
	uint32_t mapped; /* the device has said so */
	uint32_t reserved;
};

struct entry_counts {
	uint32_t ctx, reserved;
	uint64_t switches, faults;
};

struct entry_space {
	uint32_t ctx;
	uint32_t saved_size; /* bytes of transport_space_ops.save */
	uint64_t window; /* key of its window memory; 0: it has none */
	uint8_t saved[TRANSPORT_SAVE_MAX];
};

/*
 * What is kept in the vault. Its keys are counted up and never used again; the kind is in the uppermost bits. Memory of our own
 * has two of them, one after the other: of an fd for writing, and of one that is read-only.
 */
enum vault_kind { VAULT_BUFFER = 1, VAULT_FENCE, VAULT_DEVICE, VAULT_WINDOW };
enum vault_memory {
	VAULT_RINGS,
	VAULT_MARKS,
	VAULT_KEEP,
	VAULT_TABLES,
	VAULT_DESCRIPTORS, /* these two in mode `nested` */
	VAULT_NEST_WINDOW,
	VAULT_MEMORIES,
};

#endif
