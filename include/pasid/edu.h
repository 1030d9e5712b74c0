/* SPDX-License-Identifier: MIT */
/*
 * Commands for QEMU's "edu" device under pasidd: what a program puts into memory and submits. The device has one DMA
 * channel and no command processor, so the driver in pasidd reads the commands and drives the channel; each touches memory
 * through the program's own address space. A job is a run of commands, one after the other.
 *
 * The device tells nobody of an access that its IOMMU refused: such a job completes, what it read is undefined (it is
 * never somebody else's), and what it wrote is written nowhere.
 */
#ifndef PASID_EDU_H
#define PASID_EDU_H

#include <stdint.h>

#define PASID_EDU_CMD_SIZE 32u

enum pasid_edu_op {
	PASID_EDU_FILL = 1, /* dst..dst+len-1 becomes `value`, again and again, beginning with its lowest byte */
	PASID_EDU_COPY = 2, /* from src to dst, in pieces of at most 4096 bytes; they may not overlap */
};

struct pasid_edu_cmd {
	uint32_t op; /* enum pasid_edu_op */
	uint32_t value; /* FILL */
	uint64_t dst; /* IOVA */
	uint64_t src; /* COPY */
	uint64_t len; /* bytes */
};

#endif
