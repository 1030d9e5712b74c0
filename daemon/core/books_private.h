/* SPDX-License-Identifier: MIT */
/* What the files of the books share among themselves. */
#ifndef CORE_BOOKS_PRIVATE_H
#define CORE_BOOKS_PRIVATE_H

#include "core/books.h"

#define BOOKS_MAX_DEVICES 64u
#define BOOKS_MAX_CONTEXTS 65536u /* of a connection, whatever its limit is: its fence memory is made at once */
#define BOOKS_MAX_LINES (2 * BOOKS_MAX_CONTEXTS)

struct books {
	struct ledger *ledger;
	uint64_t
		max_lines; /* fence lines of a connection: twice as many as it may have contexts, for some are retired */
	struct device_books *devices[BOOKS_MAX_DEVICES];
	uint32_t n_devices;
	TAILQ_HEAD(, client) clients;
	struct idmap client_ids;
	struct idmap contexts; /* all, by id */
	uint32_t last_client, last_ctx;
	books_unused unused;
	void *arg;
	/* Scratch of books_bind(), so that a bind list costs no allocation. */
	struct aspace_op ops[PASID_BIND_MAX];
};

/* The id for a new object: the one that a record gives, or the next one; 0 if they are used up. It counts as given from
 * books_id_taken() on, so that a verb that fails afterwards has changed nothing. */
static inline uint32_t books_next_id(uint32_t last, uint32_t given)
{
	return given ? given : last == UINT32_MAX ? 0 : last + 1;
}

static inline void books_id_taken(uint32_t *last, uint32_t id)
{
	if (id > *last)
		*last = id;
}

void books_buffer_unused(void *arg, struct buffer *buf); /* arg: struct books */

#endif
