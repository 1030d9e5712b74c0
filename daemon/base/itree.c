/* SPDX-License-Identifier: MIT */
/*
 * An AVL tree of disjoint ranges with parent pointers. What always holds between calls: ranges rise from left to right,
 * the heights of two siblings differ by at most one, and every node's sub_* and height (`balance`) are those of the
 * subtree under it. Nodes are linked, never copied, so that a pointer to one stays good whatever happens to others.
 */
#include "base/itree.h"

#include <assert.h>
#include <stddef.h>

/* Gaps that are long enough but not once aligned, before find_gap asks for a length that fits anyhow. */
#define GAP_MISSES 64

struct summary {
	uint64_t first, last, gap;
	int height;
};

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t add_saturated(uint64_t a, uint64_t b)
{
	return a + b < a ? UINT64_MAX : a + b;
}

static inline int height(const struct itree_node *n)
{
	return n ? n->balance : 0;
}

/* Free bytes between two neighbours. */
static inline uint64_t between(uint64_t last, uint64_t first)
{
	return first - last - 1;
}

static inline struct summary summary_of(const struct itree_node *n)
{
	return (struct summary){n->sub_first, n->sub_last, n->sub_gap, n->balance};
}

/* Recomputes what n says of its subtree from its children. */
static inline void update(struct itree_node *n)
{
	const struct itree_node *l = n->left, *r = n->right;
	uint64_t first = n->first, last = n->last, gap = 0;
	int lh = 0, rh = 0;

	if (l) {
		first = l->sub_first;
		gap = max_u64(l->sub_gap, between(l->sub_last, n->first));
		lh = l->balance;
	}
	if (r) {
		last = r->sub_last;
		gap = max_u64(gap, max_u64(r->sub_gap, between(n->last, r->sub_first)));
		rh = r->balance;
	}
	n->sub_first = first;
	n->sub_last = last;
	n->sub_gap = gap;
	n->balance = 1 + (lh > rh ? lh : rh);
}

/* Puts `to` (may be NULL) where `from` hangs under `parent`. */
static void replace_child(struct itree *t, struct itree_node *parent, struct itree_node *from, struct itree_node *to)
{
	if (!parent)
		t->root = to;
	else if (parent->left == from)
		parent->left = to;
	else
		parent->right = to;
	if (to)
		to->parent = parent;
}

/* n's left child takes its place; returns it. */
static struct itree_node *rotate_right(struct itree *t, struct itree_node *n)
{
	struct itree_node *l = n->left;

	replace_child(t, n->parent, n, l);
	n->left = l->right;
	if (n->left)
		n->left->parent = n;
	l->right = n;
	n->parent = l;
	update(n);
	update(l);
	return l;
}

static struct itree_node *rotate_left(struct itree *t, struct itree_node *n)
{
	struct itree_node *r = n->right;

	replace_child(t, n->parent, n, r);
	n->right = r->left;
	if (n->right)
		n->right->parent = n;
	r->left = n;
	n->parent = r;
	update(n);
	update(r);
	return r;
}

/* Balances and updates one subtree whose children are in order; returns its root. */
static inline struct itree_node *settle(struct itree *t, struct itree_node *n)
{
	int tilt = height(n->left) - height(n->right);

	if (tilt > 1) {
		if (height(n->left->left) < height(n->left->right))
			rotate_left(t, n->left);
		return rotate_right(t, n);
	}
	if (tilt < -1) {
		if (height(n->right->right) < height(n->right->left))
			rotate_right(t, n->right);
		return rotate_left(t, n);
	}
	update(n);
	return n;
}

static inline bool same(const struct itree_node *n, const struct summary *old)
{
	return n->sub_first == old->first && n->sub_last == old->last && n->sub_gap == old->gap &&
	       n->balance == old->height;
}

/*
 * A cheaper way up from n, whose place in the tree had the summary *old: as long as its height is the same, its gap no
 * smaller and its inner edge where it was, the parent follows from its own old summary, without a look at the other
 * child. Returns where that ends, with *old its former summary; NULL when nothing changes any more.
 */
static struct itree_node *lift(struct itree_node *n, struct summary *old)
{
	struct itree_node *p;

	while ((p = n->parent) && n->balance == old->height && n->sub_gap >= old->gap) {
		struct summary was = summary_of(p);

		if (n == p->right) {
			if (n->sub_first != old->first)
				break;
			p->sub_last = n->sub_last;
		} else {
			if (n->sub_last != old->last)
				break;
			p->sub_first = n->sub_first;
		}
		p->sub_gap = max_u64(p->sub_gap, n->sub_gap);
		*old = was;
		n = p;
		if (same(n, old))
			return NULL;
	}
	return n;
}

/* Settles n and what is above it, as far up as anything changes. */
static void repair(struct itree *t, struct itree_node *n)
{
	while (n) {
		struct summary old = summary_of(n);

		n = settle(t, n);
		if (same(n, &old))
			return;
		n = lift(n, &old);
		if (!n)
			return;
		n = n->parent;
	}
}

static struct itree_node *leftmost(struct itree_node *n)
{
	while (n->left)
		n = n->left;
	return n;
}

static struct itree_node *rightmost(struct itree_node *n)
{
	while (n->right)
		n = n->right;
	return n;
}

void itree_insert_before(struct itree *t, struct itree_node *n, struct itree_node *next)
{
	struct itree_node *parent;

	assert(n->first <= n->last && (!next || n->last < next->first));
	n->left = NULL;
	n->right = NULL;
	if (next && !next->left) {
		parent = next;
		next->left = n;
	} else if (next || t->root) {
		parent = rightmost(next ? next->left : t->root);
		assert(parent->last < n->first);
		parent->right = n;
	} else {
		parent = NULL;
		t->root = n;
	}
	n->parent = parent;
	update(n);
	repair(t, parent);
}

void itree_insert(struct itree *t, struct itree_node *n)
{
	itree_insert_before(t, n, itree_at_or_above(t, n->first));
}

void itree_erase(struct itree *t, struct itree_node *n)
{
	struct itree_node *s, *from;

	if (!n->left || !n->right) {
		replace_child(t, n->parent, n, n->left ? n->left : n->right);
		repair(t, n->parent);
		return;
	}
	/* The next node has no left child: it leaves its place and takes that of n. Each subtree in between began with
	 * it, so each changes, and the repair gets as far as its new place. */
	s = leftmost(n->right);
	from = s->parent == n ? s : s->parent;
	if (from != s) {
		replace_child(t, s->parent, s, s->right);
		s->right = n->right;
		s->right->parent = s;
	}
	s->left = n->left;
	s->left->parent = s;
	replace_child(t, n->parent, n, s);
	s->sub_first = n->sub_first;
	s->sub_last = n->sub_last;
	s->sub_gap = n->sub_gap;
	s->balance = n->balance;
	repair(t, from);
}

void itree_resize(struct itree *t, struct itree_node *n, uint64_t first, uint64_t last)
{
	assert(first >= n->first && first <= last && last <= n->last);
	n->first = first;
	n->last = last;
	repair(t, n);
}

struct itree_node *itree_at_or_above(const struct itree *t, uint64_t addr)
{
	struct itree_node *n = t->root, *best = NULL;

	if (!n || n->sub_last < addr)
		return NULL;
	while (n) {
		if (n->last >= addr) {
			best = n;
			n = n->left;
		} else {
			n = n->right;
		}
	}
	return best;
}

struct itree_node *itree_below(const struct itree *t, uint64_t addr)
{
	struct itree_node *n = t->root, *best = NULL;

	while (n) {
		if (n->last < addr) {
			best = n;
			n = n->right;
		} else {
			n = n->left;
		}
	}
	return best;
}

struct itree_node *itree_first(const struct itree *t)
{
	return t->root ? leftmost(t->root) : NULL;
}

struct itree_node *itree_next(const struct itree_node *n)
{
	if (n->right)
		return leftmost(n->right);
	while (n->parent && n == n->parent->right)
		n = n->parent;
	return n->parent;
}

struct itree_node *itree_prev(const struct itree_node *n)
{
	if (n->left)
		return rightmost(n->left);
	while (n->parent && n == n->parent->left)
		n = n->parent;
	return n->parent;
}

/* The lowest node in n's subtree after which `want` bytes are free; the caller knows that there is one. */
static struct itree_node *gap_inside(struct itree_node *n, uint64_t want)
{
	for (;;) {
		if (n->left && n->left->sub_gap >= want) {
			n = n->left;
			continue;
		}
		if (n->left && between(n->left->sub_last, n->first) >= want)
			return rightmost(n->left);
		if (between(n->last, n->right->sub_first) >= want)
			return n;
		n = n->right;
	}
}

/* The lowest node, n or above it, between which and the next node `want` bytes are free. NULL if there is none. */
static struct itree_node *gap_after(struct itree_node *n, uint64_t want)
{
	for (;;) {
		struct itree_node *p;

		if (n->right) {
			if (between(n->last, n->right->sub_first) >= want)
				return n;
			if (n->right->sub_gap >= want)
				return gap_inside(n->right, want);
		}
		while ((p = n->parent) && n == p->right)
			n = p;
		if (!p)
			return NULL;
		if (between(n->sub_last, p->first) >= want)
			return rightmost(n);
		n = p;
	}
}

/* True, and the address, if what is asked for fits between two neighbours (NULL: nothing on that side). */
static bool fits(const struct itree_want *w, const struct itree_node *prev, const struct itree_node *next,
		 uint64_t *addr)
{
	uint64_t lo = max_u64(w->within.first, w->from), hi = w->within.last, a;

	if (prev) {
		if (w->guard >= UINT64_MAX - prev->last)
			return false;
		lo = max_u64(lo, prev->last + 1 + w->guard);
	}
	if (next) {
		if (next->first <= w->guard)
			return false;
		hi = min_u64(hi, next->first - 1 - w->guard);
	}
	a = (lo + (w->align - 1)) & ~(w->align - 1);
	if (a < lo || a > hi || hi - a < w->len - 1)
		return false;
	*addr = a;
	return true;
}

bool itree_find_room(const struct itree *t, const struct itree_want *w, uint64_t *addr)
{
	uint64_t want = add_saturated(w->len, add_saturated(w->guard, w->guard));
	struct itree_node *prev, *next;
	unsigned int misses = 0;

	assert(w->len > 0 && w->align && !(w->align & (w->align - 1)) && w->from >= w->within.first);
	next = itree_at_or_above(t, w->from);
	if (!next)
		return fits(w, t->root ? rightmost(t->root) : NULL, NULL, addr);
	if (fits(w, itree_prev(next), next, addr))
		return true;
	while ((prev = gap_after(next, want))) {
		if (prev->last >= w->within.last)
			return false;
		next = itree_next(prev);
		if (fits(w, prev, next, addr))
			return true;
		if (++misses == GAP_MISSES)
			want = add_saturated(want, w->align - 1);
	}
	return fits(w, rightmost(t->root), NULL, addr);
}

bool itree_find_gap(const struct itree *t, struct range within, uint64_t from, uint64_t len, uint64_t align,
		    uint64_t *addr)
{
	const struct itree_want w = {.within = within, .from = from, .len = len, .align = align};

	return itree_find_room(t, &w, addr);
}
