/* SPDX-License-Identifier: MIT */
/*
 * From a 32-bit id to the object that has it. Open addressing with linear probing; ids are never 0. Removing shifts
 * later entries back, so there are no tombstones and a map that empties is as fast as a new one.
 */
#ifndef CORE_IDMAP_H
#define CORE_IDMAP_H

#include <stdint.h>

struct idmap {
	struct idmap_entry *entries;
	uint32_t mask; /* entries - 1, or 0 while there are none */
	uint32_t count;
};

/* 0, -ENOMEM. The id is not in the map (asserted). Zero-initialised is empty. */
int idmap_add(struct idmap *m, uint32_t id, void *object);
void *idmap_find(const struct idmap *m, uint32_t id); /* NULL: not there */
void idmap_remove(struct idmap *m, uint32_t id); /* it is there (asserted) */
void idmap_fini(struct idmap *m);

#endif
