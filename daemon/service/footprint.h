/* SPDX-License-Identifier: MIT */
/*
 * What an address space has cost the kernel in page tables, where the kernel keeps them. It takes a table for each 2 MiB in
 * which something is mapped, one for each GiB with such tables and one for each 512 GiB, and keeps them until the address
 * space goes, whatever is unmapped (Linux drivers/iommu/generic_pt/iommu_pt.h: a table is freed only by an unmap that
 * covers it). So they are counted for each place that was ever mapped.
 */
#ifndef SERVICE_FOOTPRINT_H
#define SERVICE_FOOTPRINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/itree.h"
#include "core/aspace.h"

struct footprint { /* all zeros: none */
	struct itree places; /* a GiB each */
};

void footprint_fini(struct footprint *f);

/* How many tables the kernel may need beyond those it has, to map what is new in the plan. 0 or -ENOMEM, and nothing is
 * noted. Afterwards the caller says whether it comes to that (keep), or not. */
int footprint_note(struct footprint *f, const struct plan *plan, uint64_t *tables);
/* The same for an address space that is there already, as far as its books show it. 0 or -ENOMEM. */
int footprint_adopt(struct footprint *f, const struct aspace *as, uint64_t *tables);
void footprint_end(struct footprint *f, const struct plan *plan, bool keep);

#endif
