/* SPDX-License-Identifier: MIT */
/* See footprint.h. */
#include "service/footprint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define BLOCK_SHIFT 21u
#define PLACE_SHIFT 30u
#define BLOCKS (1u << (PLACE_SHIFT - BLOCK_SHIFT)) /* of a place */
#define WORDS (BLOCKS / 64)
#define TABLES_ABOVE 2u /* for a place: of its GiB, and of the 512 GiB, which others may share */

struct place {
	struct itree_node node; /* its number, address >> PLACE_SHIFT */
	uint64_t ever[WORDS]; /* blocks, a bit each */
	uint64_t noted[WORDS]; /* new ones of the plan */
};

static struct place *place_of(struct itree_node *n)
{
	return container_of(n, struct place, node);
}

static struct place *place_find(const struct footprint *f, uint64_t number)
{
	struct itree_node *n = itree_at_or_above(&f->places, number);

	return n && n->first == number ? place_of(n) : NULL;
}

static struct place *place_new(struct footprint *f, uint64_t number)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->node.first = p->node.last = number;
	itree_insert(&f->places, &p->node);
	return p;
}

static void place_free(struct footprint *f, struct place *p)
{
	itree_erase(&f->places, &p->node);
	free(p);
}

void footprint_fini(struct footprint *f)
{
	struct itree_node *n;

	while ((n = itree_first(&f->places)))
		place_free(f, place_of(n));
}

/* Notes the blocks first to last of a place, and returns how many of them are new. */
static uint64_t note_blocks(struct place *p, uint32_t first, uint32_t last)
{
	uint64_t n = 0;

	for (uint32_t w = first / 64; w <= last / 64; w++) {
		uint64_t mask = UINT64_MAX;

		if (w == first / 64)
			mask &= UINT64_MAX << first % 64;
		if (w == last / 64)
			mask &= UINT64_MAX >> (63 - last % 64);
		mask &= ~(p->ever[w] | p->noted[w]);
		p->noted[w] |= mask;
		n += (uint64_t)__builtin_popcountll(mask);
	}
	return n;
}

static int note_mapping(struct footprint *f, const struct mapping *m, uint64_t *tables)
{
	uint64_t first = m->node.first >> PLACE_SHIFT, last = m->node.last >> PLACE_SHIFT;

	for (uint64_t number = first; number <= last; number++) {
		struct place *p = place_find(f, number);

		if (!p) {
			p = place_new(f, number);
			if (!p)
				return -ENOMEM;
			*tables += TABLES_ABOVE;
		}
		*tables += note_blocks(p, number == first ? (m->node.first >> BLOCK_SHIFT) % BLOCKS : 0,
				       number == last ? (m->node.last >> BLOCK_SHIFT) % BLOCKS : BLOCKS - 1);
	}
	return 0;
}

static void end_place(struct footprint *f, struct place *p, bool keep)
{
	uint64_t any = 0;

	for (uint32_t w = 0; w < WORDS; w++) {
		if (keep)
			p->ever[w] |= p->noted[w];
		p->noted[w] = 0;
		any |= p->ever[w];
	}
	if (!any)
		place_free(f, p);
}

int footprint_note(struct footprint *f, const struct plan *plan, uint64_t *tables)
{
	struct mapping *const *made;
	size_t n;
	int r = 0;

	*tables = 0;
	made = plan_made(plan, &n);
	/* What is the rest of a mapping lies where that was. */
	for (size_t i = 0; r == 0 && i < n; i++)
		if (made[i] && !made[i]->rest)
			r = note_mapping(f, made[i], tables);
	if (r < 0)
		footprint_end(f, plan, false);
	return r;
}

int footprint_adopt(struct footprint *f, const struct aspace *as, uint64_t *tables)
{
	struct itree_node *n, *next;

	*tables = 0;
	for (n = itree_first(&as->tree); n; n = itree_next(n))
		if (note_mapping(f, container_of(n, struct mapping, node), tables) < 0)
			return -ENOMEM;
	for (n = itree_first(&f->places); n; n = next) {
		next = itree_next(n);
		end_place(f, place_of(n), true);
	}
	return 0;
}

void footprint_end(struct footprint *f, const struct plan *plan, bool keep)
{
	struct mapping *const *made;
	size_t n;

	made = plan_made(plan, &n);
	for (size_t i = 0; i < n; i++) {
		if (!made[i] || made[i]->rest)
			continue;
		for (uint64_t at = made[i]->node.first >> PLACE_SHIFT; at <= made[i]->node.last >> PLACE_SHIFT; at++) {
			struct place *p = place_find(f, at);

			if (p)
				end_place(f, p, keep);
		}
	}
}
