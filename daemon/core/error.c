/* SPDX-License-Identifier: MIT */
/* The table from reasons to codes. Every reason of the protocol has exactly one code. */
#include "core/error.h"

#include <errno.h>

/* Each limited resource has a reason of its own, counted up from a base. */
static int quota_code(uint32_t reason)
{
	if (reason >= PASID_WHY_QUOTA_UID && reason < PASID_WHY_QUOTA_UID + PASID_RES_COUNT)
		return -EDQUOT;
	if (reason >= PASID_WHY_QUOTA_CONNECTION && reason < PASID_WHY_QUOTA_CONNECTION + PASID_RES_COUNT)
		return -EDQUOT;
	return -EINVAL;
}

int refusal_code(uint32_t reason)
{
	switch (reason) {
	case PASID_WHY_NONE:
		return 0;
	case PASID_WHY_UNALIGNED:
	case PASID_WHY_EMPTY:
	case PASID_WHY_WRAPS:
	case PASID_WHY_FLAGS:
	case PASID_WHY_RESERVED:
	case PASID_WHY_BODY_SIZE:
	case PASID_WHY_OPCODE:
	case PASID_WHY_FD_COUNT:
	case PASID_WHY_BIND_OP:
	case PASID_WHY_NO_HELLO:
	case PASID_WHY_TOO_MANY:
	case PASID_WHY_UNMAPS_MANY:
		return -EINVAL;
	case PASID_WHY_NO_CONTEXT:
	case PASID_WHY_NO_BUFFER:
	case PASID_WHY_NO_DEVICE:
	case PASID_WHY_NOT_MAPPED:
		return -ENOENT;
	case PASID_WHY_OVERLAP:
		return -EEXIST;
	case PASID_WHY_APERTURE:
	case PASID_WHY_BUFFER_END:
	case PASID_WHY_NO_ROOM:
	case PASID_WHY_COMMANDS:
		return -ERANGE;
	case PASID_WHY_READ_ONLY:
		return -EACCES;
	case PASID_WHY_UNSEALED:
		return -EPERM;
	case PASID_WHY_NOT_MEMFD:
	case PASID_WHY_VERSION:
	case PASID_WHY_OTHER_DEVICE:
	case PASID_WHY_NO_PASID:
		return -EOPNOTSUPP;
	case PASID_WHY_CONTEXT_LOST:
		return -EIO;
	case PASID_WHY_DEVICE_GONE:
		return -ENODEV;
	case PASID_WHY_TIMEOUT:
		return -ETIMEDOUT;
	case PASID_WHY_QUOTA_TOTAL:
	case PASID_WHY_QUOTA_IDS:
	case PASID_WHY_QUOTA_TABLES:
	case PASID_WHY_QUOTA_MEMORY:
	case PASID_WHY_QUOTA_KERNEL:
	case PASID_WHY_QUOTA_STORE:
		return -EDQUOT;
	default:
		return quota_code(reason);
	}
}

int refuse(struct refusal *r, uint32_t reason, uint64_t n1, uint64_t n2)
{
	r->reason = reason;
	r->n1 = n1;
	r->n2 = n2;
	return refusal_code(reason);
}
