/* SPDX-License-Identifier: MIT */
/*
 * A verb as plain data: who asked for what, and which ids and addresses were chosen for it. No pointers. A verb fills
 * its record before its first step that anyone else can see; books that apply the same records in the same order are
 * the same books, and what a failed verb has to undo follows from its record alone.
 *
 * A field that the books choose (marked "chosen") is 0 in a new request and filled in by the verb; when a record is
 * applied again it is there already and is taken as it is.
 */
#ifndef CORE_RECORD_H
#define CORE_RECORD_H

#include <stdint.h>

enum record_kind {
	RECORD_CLIENT_OPEN = 1,
	RECORD_CLIENT_CLOSE,
	RECORD_CTX_NEW,
	RECORD_CTX_FREE,
	RECORD_IMPORT,
	RECORD_BUF_FREE,
	RECORD_BIND,
	RECORD_SUBMIT,
	RECORD_JOBS_DONE, /* not a verb: jobs up to `job` ended */
	RECORD_CTX_LOST, /* not a verb: the context's work is over, its mappings are gone */
	RECORD_BUF_GONE, /* not a verb: a freed buffer that nothing maps is unmapped from the device as well */
};

/* What happens to the verb of a record. Undo exists for IMPORT and CTX_NEW alone; everything else rolls forward. */
enum record_phase { RECORD_INTENT, RECORD_COMMIT, RECORD_UNDO };

struct record_op { /* of a BIND; the layout of struct pasid_wire_bind_op */
	uint32_t kind;
	uint32_t flags; /* PASID_MAP_FIXED is set once the iova is chosen */
	uint32_t buf;
	uint32_t reserved;
	uint64_t off;
	uint64_t iova; /* chosen unless fixed */
	uint64_t len;
};

struct record {
	uint32_t kind; /* enum record_kind */
	uint32_t client; /* chosen for CLIENT_OPEN */
	uint64_t serial; /* of the client's request */
	uint32_t ctx; /* chosen for CTX_NEW */
	uint32_t buf; /* chosen for IMPORT */
	uint32_t device; /* index, from 0 */
	uint32_t uid; /* CLIENT_OPEN */
	int32_t pid; /* CLIENT_OPEN */
	uint32_t pasid; /* CTX_NEW, chosen */
	uint32_t asid; /* CTX_NEW, chosen; the device's own in `global` mode */
	uint32_t line; /* CTX_NEW, chosen: fence line + 1 */
	uint64_t size; /* IMPORT; CLIENT_OPEN, chosen: fence lines */
	uint64_t bus; /* IMPORT, chosen */
	uint32_t writable; /* IMPORT */
	uint32_t huge; /* IMPORT */
	uint64_t job; /* SUBMIT, chosen; JOBS_DONE; CTX_NEW: the last one given, of a context that was there before */
	uint64_t iova; /* SUBMIT */
	uint64_t len; /* SUBMIT */
	uint32_t n_ops; /* BIND */
	uint32_t opaque; /* CTX_NEW */
	struct record_op ops[];
};

#endif
