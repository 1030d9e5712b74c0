/* SPDX-License-Identifier: MIT */
/*
 * The naive model that io-pgtables are tested against: a window of IOVAs as a flat array, a word per 4 KiB page.
 * Nothing clever, so that it is right at sight; shared by the random tests and the fuzzer.
 */
#ifndef PGTABLE_MODEL_H
#define PGTABLE_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include <pasid/range.h>

#include "pgtable/pgtable.h"
#include "random.h"

#define MODEL_PAGE UINT64_C(4096)
#define MODEL_2M (UINT64_C(1) << 21)
#define MODEL_1G (UINT64_C(1) << 30)
#define MODEL_MAPPED 1u
#define MODEL_WRITABLE 2u

struct model {
	uint64_t first; /* IOVA of page[0] */
	uint64_t pages;
	uint64_t *page; /* bus address with MODEL_ flags, or 0 */
};

static inline struct range model_window(const struct model *m)
{
	return (struct range){m->first, m->first + m->pages * MODEL_PAGE - 1};
}

static inline uint64_t model_at(const struct model *m, uint64_t iova)
{
	return m->page[(iova - m->first) / MODEL_PAGE];
}

static inline bool model_free(const struct model *m, struct range r)
{
	for (uint64_t at = r.first; at < r.last; at += MODEL_PAGE) {
		if (model_at(m, at))
			return false;
	}
	return true;
}

static inline void model_map(struct model *m, struct range r, uint64_t bus, bool writable)
{
	for (uint64_t at = r.first; at < r.last; at += MODEL_PAGE, bus += MODEL_PAGE)
		m->page[(at - m->first) / MODEL_PAGE] = bus | MODEL_MAPPED | (writable ? MODEL_WRITABLE : 0);
}

/* Returns the bytes that were mapped. */
static inline uint64_t model_unmap(struct model *m, struct range r)
{
	uint64_t bytes = 0;

	for (uint64_t at = r.first; at < r.last; at += MODEL_PAGE) {
		if (model_at(m, at))
			bytes += MODEL_PAGE;
		m->page[(at - m->first) / MODEL_PAGE] = 0;
	}
	return bytes;
}

/* The largest block that a map of r to bus may use for the page at iova. */
static inline uint64_t model_block(struct range r, uint64_t bus, uint64_t iova)
{
	static const uint64_t sizes[] = {MODEL_1G, MODEL_2M};

	for (unsigned i = 0; i < 2; i++) {
		uint64_t first = iova & ~(sizes[i] - 1);

		if ((r.first - bus) % sizes[i] == 0 && first >= r.first && first + (sizes[i] - 1) <= r.last)
			return sizes[i];
	}
	return MODEL_PAGE;
}

/* Does what pgtable_walk() says about all of r, page by page, agree with the model? *bad: the first that does not. */
static inline bool model_agrees(const struct model *m, const struct pgtable *pt, struct range r, uint64_t *bad)
{
	struct pgtable_leaf leaf;

	for (uint64_t at = r.first; at < r.last;) {
		uint64_t end = at + MODEL_PAGE;
		bool mapped = pgtable_walk(pt, at, &leaf);

		*bad = at;
		if (mapped && !range_contains(leaf.iova, (struct range){at, at}))
			return false;
		if (mapped)
			end = leaf.iova.last < r.last ? leaf.iova.last + 1 : r.last + 1;
		for (; at < end; at += MODEL_PAGE) {
			uint64_t want = 0;

			*bad = at;
			if (mapped)
				want = (leaf.bus + (at - leaf.iova.first)) | MODEL_MAPPED |
				       (leaf.writable ? MODEL_WRITABLE : 0);
			if (model_at(m, at) != want)
				return false;
		}
	}
	return true;
}

/* ---- Random operations ----------------------------------------------------------------------------------------- */

static inline struct range model_pick(const struct model *m, struct rng *g)
{
	static const uint64_t grain[] = {MODEL_PAGE, MODEL_PAGE, MODEL_2M, MODEL_2M, MODEL_1G};
	struct range w = model_window(m);
	uint64_t len, first = w.first + rng_below(g, m->pages) * MODEL_PAGE;

	first &= ~(grain[rng_below(g, 5)] - 1);
	if (rng_below(g, 4) == 0)
		first += MODEL_PAGE * rng_below(g, 4) - 2 * MODEL_PAGE;
	if (first < w.first || first > w.last)
		first = w.first;
	switch (rng_below(g, 8)) {
	case 0:
	case 1:
		len = MODEL_PAGE;
		break;
	case 2:
		len = MODEL_PAGE * (1 + rng_below(g, 512));
		break;
	case 3:
	case 4:
		len = MODEL_2M * (1 + rng_below(g, 3));
		break;
	case 5:
		len = MODEL_PAGE * (1 + rng_below(g, 2000));
		break;
	case 6:
		len = MODEL_1G + MODEL_2M * rng_below(g, 2);
		break;
	default:
		len = MODEL_2M * (1 + rng_below(g, 600)) + MODEL_PAGE * rng_below(g, 3);
		break;
	}
	if (len - 1 > w.last - first)
		len = w.last - first + 1;
	return (struct range){first, first + len - 1};
}

/* A bus address for r below 2^47, often aligned as r is. */
static inline uint64_t model_pick_bus(struct rng *g, struct range r)
{
	static const uint64_t grain[] = {MODEL_PAGE, MODEL_2M, MODEL_2M, MODEL_1G, MODEL_1G};
	uint64_t a = grain[rng_below(g, 5)];
	uint64_t bus = rng_below(g, UINT64_C(1) << 35) * MODEL_PAGE;

	return (bus & ~(a - 1)) | (r.first & (a - 1));
}

#endif
