/* SPDX-License-Identifier: MIT */
/*
 * A balanced tree of disjoint ranges, keyed by their last byte, that also knows the largest gap in each subtree, so that
 * a free range is found in O(log n) however full the space is. Intrusive: inserting and erasing cannot fail.
 */
#ifndef BASE_ITREE_H
#define BASE_ITREE_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/range.h>

struct itree_node {
	struct itree_node *left, *right, *parent;
	uint64_t first, last; /* inclusive; the owner sets them before insertion and may shrink them with
				       * itree_resize() */
	uint64_t sub_first, sub_last; /* of the subtree: lowest first, highest last */
	uint64_t sub_gap; /* largest number of free bytes between neighbours inside the subtree */
	int balance; /* private to the balancing scheme: the subtree's height */
};

struct itree {
	struct itree_node *root;
};

/* The range must not overlap any in the tree (an invariant of ours: asserted). */
void itree_insert(struct itree *t, struct itree_node *n);
/* The same without the search: next is what itree_at_or_above(t, n->first) gives (NULL: n becomes the highest). */
void itree_insert_before(struct itree *t, struct itree_node *n, struct itree_node *next);
void itree_erase(struct itree *t, struct itree_node *n);
/* Shrinks a node in place; the new range lies within the old one. */
void itree_resize(struct itree *t, struct itree_node *n, uint64_t first, uint64_t last);

/* The lowest node whose last byte is >= addr: the one that contains addr or the next above. NULL if none. */
struct itree_node *itree_at_or_above(const struct itree *t, uint64_t addr);
/* The highest node whose last byte is < addr. NULL if none. */
struct itree_node *itree_below(const struct itree *t, uint64_t addr);
struct itree_node *itree_first(const struct itree *t);
struct itree_node *itree_next(const struct itree_node *n);
struct itree_node *itree_prev(const struct itree_node *n);

/*
 * Finds len free bytes in `within`, aligned to `align` (a power of two), at or above `from` (within.first <= from), the
 * lowest such. O(log n) except for gaps that are long enough but not once aligned, of which at most a bounded number
 * (64) is looked at before the search asks for len + align - 1 bytes instead, which always fit. False if there is none
 * (after 64 such gaps: none that is that long).
 */
bool itree_find_gap(const struct itree *t, struct range within, uint64_t from, uint64_t len, uint64_t align,
		    uint64_t *addr);

struct itree_want {
	struct range within;
	uint64_t from, len, align; /* as above */
	uint64_t guard; /* bytes to leave free on both sides, as far as `within` reaches */
};

/* The same with a guard: the neighbours on both sides are at least `guard` bytes away. */
bool itree_find_room(const struct itree *t, const struct itree_want *w, uint64_t *addr);

#endif
