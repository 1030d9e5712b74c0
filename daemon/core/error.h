/* SPDX-License-Identifier: MIT */
/* Why a client's request cannot be done: what the reply carries. Filled where the refusal happens, sent untouched. */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include <stdint.h>

#include <pasid/protocol.h>

struct refusal {
	uint32_t reason; /* enum pasid_reason */
	uint32_t index; /* operation of a bind list */
	uint64_t n1, n2;
};

/* The -errno that belongs to a reason; the one place for that table. -EINVAL for an unknown reason. */
int refusal_code(uint32_t reason);

/* Fills *r and returns refusal_code(reason), so that a refusal is one line: return refuse(r, WHY, n1, n2). The index
 * stays as it is. */
int refuse(struct refusal *r, uint32_t reason, uint64_t n1, uint64_t n2);

#endif
