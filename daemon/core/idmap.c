/* SPDX-License-Identifier: MIT */
/* See idmap.h. At most three quarters of the entries are in use, so a probe always ends at a free one. */
#include "core/idmap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct idmap_entry {
	uint32_t id; /* 0: free */
	void *object;
};

static uint32_t home_of(const struct idmap *m, uint32_t id)
{
	return (id * 2654435761u) & m->mask;
}

static struct idmap_entry *slot_of(const struct idmap *m, uint32_t id)
{
	uint32_t i = home_of(m, id);

	while (m->entries[i].id && m->entries[i].id != id)
		i = (i + 1) & m->mask;
	return &m->entries[i];
}

static int grow(struct idmap *m)
{
	struct idmap old = *m;
	uint32_t size = m->mask ? 2 * (m->mask + 1) : 16;
	struct idmap_entry *entries = calloc(size, sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	m->entries = entries;
	m->mask = size - 1;
	for (uint32_t i = 0; old.entries && i <= old.mask; i++)
		if (old.entries[i].id)
			*slot_of(m, old.entries[i].id) = old.entries[i];
	free(old.entries);
	return 0;
}

int idmap_add(struct idmap *m, uint32_t id, void *object)
{
	struct idmap_entry *e;
	int r;

	assert(id);
	if (!m->entries || 4 * (m->count + 1) > 3 * (m->mask + 1)) {
		r = grow(m);
		if (r < 0)
			return r;
	}
	e = slot_of(m, id);
	assert(!e->id);
	e->id = id;
	e->object = object;
	m->count++;
	return 0;
}

void *idmap_find(const struct idmap *m, uint32_t id)
{
	return m->entries && id ? slot_of(m, id)->object : NULL;
}

void idmap_remove(struct idmap *m, uint32_t id)
{
	uint32_t hole, i;

	assert(m->entries && slot_of(m, id)->id == id);
	hole = (uint32_t)(slot_of(m, id) - m->entries);
	for (i = (hole + 1) & m->mask; m->entries[i].id; i = (i + 1) & m->mask) {
		uint32_t home = home_of(m, m->entries[i].id);

		/* An entry may move back into the hole unless its home lies between the hole and itself. */
		if (((i - home) & m->mask) >= ((i - hole) & m->mask)) {
			m->entries[hole] = m->entries[i];
			hole = i;
		}
	}
	m->entries[hole] = (struct idmap_entry){0};
	m->count--;
}

void idmap_fini(struct idmap *m)
{
	free(m->entries);
	*m = (struct idmap){0};
}
