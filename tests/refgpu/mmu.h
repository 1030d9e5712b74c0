/* SPDX-License-Identifier: MIT */
/*
 * The device's MMU: one translation, through the TLB, with the walk that the TLB saved made anyway and compared.
 *
 * What the TLB says is always what is used, as hardware would. The fresh walk only counts: a hit that it would not
 * give is a stale hit, and so is a walk that began at a remembered table which is no longer there. Only where it
 * finds a page of another size is the access stopped: a real TLB may hold both by then (REFGPU_FAULT_TLB_CONFLICT).
 */
#ifndef REFGPU_MMU_H
#define REFGPU_MMU_H

#include <stdint.h>

#include "dma.h"
#include "tlb.h"

/* Whose translation: what SET_TTBR installed, and how to get at the tables. */
struct mmu_context {
	struct tlb *tlb;
	struct bus_port *port;
	struct refgpu_status *status;
	enum refgpu_format format;
	uint64_t root; /* 0: none */
	uint16_t asid;
};

struct mmu_page {
	uint64_t bus; /* of va */
	uint64_t left; /* bytes from va to the end of the page or block */
	uint32_t level;
};

/* Inside a section only. Returns 0 or a fault code; ret->level is filled in either case. */
int mmu_translate(const struct mmu_context *m, uint64_t va, uint32_t access, struct mmu_page *ret);

#endif
