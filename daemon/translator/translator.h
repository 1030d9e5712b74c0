/* SPDX-License-Identifier: MIT */
/*
 * A translator (<pasid/driver.h>) is told which address space runs where. It may be the GPU's own MMU (its driver offers
 * it), context descriptors of an SMMU, or the kernel's attach of a PASID or a domain. Nothing here waits.
 */
#ifndef TRANSLATOR_TRANSLATOR_H
#define TRANSLATOR_TRANSLATOR_H

#include <stddef.h>
#include <stdint.h>

#include <pasid/driver.h>

/* As ops->invalidate, for any number of ranges in ascending or any order: neighbours are merged, and where too many are
 * left the whole ASID is invalidated instead. r is scratch afterwards. */
int translator_invalidate(struct translator *t, uint32_t asid, struct range *r, size_t n, uint64_t *ticket);

#endif
