/* SPDX-License-Identifier: MIT */
/*
 * What there is to see of the service: devices, contexts, their mappings, and what their tables say. Nothing here changes
 * anything, and nothing that is returned is to be kept beyond the call of the loop that asked for it. Who may see what is for
 * the caller to decide.
 */
#ifndef SERVICE_INSPECT_H
#define SERVICE_INSPECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <pasid/protocol.h>

struct service;
struct service_client;

const char *inspect_mode_name(uint32_t mode); /* as in the configuration */

/* ---- devices ---- */

struct inspect_device {
	const char *name, *transport, *driver, *mode, *configured_mode, *state, *reason, *table_format;
	uint32_t slots, contexts, pasids, asids;
	uint64_t switches, faults, strays, resets, table_pages, table_pages_max;
	bool gone; /* not reachable at the moment */
	bool resetting;
};

struct inspect_slot {
	uint32_t slot, ctx; /* 0: nobody's */
	uint64_t job; /* the first one on it that is not done; 0: none */
};

bool inspect_device(const struct service *s, uint32_t index, struct inspect_device *ret); /* false: there is none */
bool inspect_slot(const struct service *s, uint32_t index, uint32_t slot, struct inspect_slot *ret);

/* ---- contexts ---- */

struct inspect_context {
	uint32_t id, device, pasid, asid, uid, pid;
	uint32_t opaque; /* 0 or 1 */
	bool at_rest; /* it has ended, and nothing of it can reach memory */
	const struct service_client *client;
	const char *device_name, *state, *lost_reason;
	uint64_t bytes, mapped, table_bytes, submitted, completed, maps, switches, device_time, faults;
	uint64_t lost_job;
	struct pasid_wire_fault last_fault; /* job 0: none */
};

/* Calls each() for every context, whoever's it is, until it returns something else than 0, which is returned. */
int inspect_contexts(const struct service *s, int (*each)(void *arg, uint32_t id), void *arg);
bool inspect_context(const struct service *s, uint32_t id, struct inspect_context *ret); /* false: there is none */
uint64_t inspect_total_bytes(const struct service *s, uint64_t *limit);
uint32_t inspect_connections(const struct service *s, bool all, uid_t uid);

/* What holds for a connection and for a user, of a resource (enum pasid_resource). */
uint64_t inspect_limit(const struct service *s, uid_t uid, bool connection, uint32_t resource);

/* ---- what a context has mapped; all of these: -ENOENT if there is no such context ---- */

struct inspect_mapping {
	uint64_t iova, len, off, bus;
	uint32_t flags, buf;
};

/* True: its tables are ours, and what follows is read there. False: the kernel's, and it is what the kernel was told. */
bool inspect_own_tables(const struct service *s, uint32_t id);

/* Those that end at or above `from`, at most `max`. 1: there are more; 0; or what each() returned if it is not 0. */
int inspect_mappings(const struct service *s, uint32_t id, uint64_t from, uint32_t max,
		     int (*each)(void *arg, const struct inspect_mapping *m), void *arg);

struct inspect_level {
	uint32_t level, index;
	uint64_t at, entry; /* bus address of the entry; 0 where it is a record */
	char says[160];
};

#define INSPECT_LEVELS 4u

/* The way to iova. With addresses, or without any that say where memory is. How many levels. */
int inspect_walk(const struct service *s, uint32_t id, uint64_t iova, bool addresses,
		 struct inspect_level v[INSPECT_LEVELS]);
/* -ENXIO: nothing is mapped there. */
int inspect_translate(const struct service *s, uint32_t id, uint64_t iova, struct inspect_mapping *ret);

struct inspect_leaf {
	uint64_t iova, size, entry;
	char says[160];
};

/* As inspect_mappings(); where the kernel keeps the tables, the leaves are the mappings. */
int inspect_leaves(const struct service *s, uint32_t id, uint64_t from, uint32_t max, bool addresses,
		   int (*each)(void *arg, const struct inspect_leaf *l), void *arg);

#endif
