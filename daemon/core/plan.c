/* SPDX-License-Identifier: MIT */
/*
 * Plans: a bind list judged and applied to the books of an address space, all or nothing.
 *
 * A mapping that was there before the plan is never changed by it, only taken out of the tree and kept on `taken`; one
 * that is cut is taken out whole, and what stays of it is new. So undo has no order: drop what is new, put back what
 * was taken. An operation makes at most two mappings and one step, which bounds a plan's memory by its operations, and
 * it takes its memory before it changes anything.
 */
#include "core/aspace.h"

#include <assert.h>
#include <stdlib.h>

#include "base/util.h"

#define HOLE_MAX 64u /* mappings of others to look past for the end of a hole */

struct plan {
	struct aspace *as;
	uint32_t owner;
	bool replaces;
	bool unmaps; /* torn is valid */
	struct range torn; /* spans all that was unmapped so far */
	int64_t peak; /* most mappings so far, less `count` */
	uint64_t count, cursor; /* of the address space, before the plan */
	struct itree_node *near; /* in the tree, just below where the next operation is likely to be; or NULL */
	struct mapping *taken; /* linked by node.left */
	uint32_t n_taken; /* looked at, to be taken */
	struct mapping **made; /* new mappings; NULL: gone again */
	size_t n_made, n_steps;
	struct aspace_step step[];
};

static_assert(2 * PASID_BIND_MAX <= UINT16_MAX, "mapping.made counts an operation's two new mappings");

static inline struct mapping *mapping_of(struct itree_node *n)
{
	return n ? container_of(n, struct mapping, node) : NULL;
}

/* itree_at_or_above(), faster for what lies just above p->near. */
static struct itree_node *seek(const struct plan *p, uint64_t addr)
{
	if (p->near && p->near->last < addr) {
		struct itree_node *n = itree_next(p->near);

		if (!n || n->last >= addr)
			return n;
	}
	return itree_at_or_above(&p->as->tree, addr);
}

/* Puts a mapping that has its range, buffer and offset into the books, before `next`, and remembers it as new. */
static void make(struct plan *p, struct mapping *m, struct itree_node *next)
{
	struct aspace *as = p->as;

	if (as->count == 0) {
		as->owner = p->owner;
		as->mixed = false;
	} else if (as->owner != p->owner) {
		as->mixed = true;
	}
	m->owner = p->owner;
	p->made[p->n_made++] = m;
	m->made = (uint16_t)p->n_made;
	m->buf->uses++;
	itree_insert_before(&as->tree, &m->node, next);
	as->count++;
	as->bytes += m->node.last - m->node.first + 1;
}

static void remove_from_books(struct aspace *as, struct mapping *m)
{
	itree_erase(&as->tree, &m->node);
	as->count--;
	as->bytes -= m->node.last - m->node.first + 1;
}

/* Takes a mapping out: for good if the plan made it, else until the plan's end. */
static void take(struct plan *p, struct mapping *m)
{
	remove_from_books(p->as, m);
	if (m->made) {
		p->made[m->made - 1] = NULL;
		m->buf->uses--;
		aspace_mapping_free(p->as, m);
	} else {
		m->node.left = p->taken ? &p->taken->node : NULL;
		p->taken = m;
	}
}

static void add_map_step(struct plan *p, struct range r, uint64_t bus, bool writable)
{
	struct aspace_step *s = p->n_steps ? &p->step[p->n_steps - 1] : NULL;

	if (s && s->kind == ASPACE_MAP && s->writable == writable && s->iova.last + 1 == r.first &&
	    s->bus + range_len(s->iova) == bus) {
		s->iova.last = r.last;
		return;
	}
	p->step[p->n_steps++] = (struct aspace_step){ASPACE_MAP, writable, r, bus};
}

static void add_unmap_step(struct plan *p, struct range r)
{
	struct aspace_step *s = p->n_steps ? &p->step[p->n_steps - 1] : NULL;

	if (s && s->kind == ASPACE_UNMAP && s->iova.last + 1 == r.first)
		s->iova.last = r.last;
	else
		p->step[p->n_steps++] = (struct aspace_step){ASPACE_UNMAP, false, r, 0};
	if (!p->unmaps)
		p->torn = r;
	if (r.first < p->torn.first)
		p->torn.first = r.first;
	if (r.last > p->torn.last)
		p->torn.last = r.last;
	p->unmaps = true;
}

/* Looks whether a range that is mapped was unmapped earlier: a walk over the steps, but only if the range lies amidst
 * what was unmapped, and only until the first hit of the plan. */
static void note_replaced(struct plan *p, struct range r)
{
	if (!p->unmaps || p->replaces || !range_overlaps(p->torn, r))
		return;
	for (size_t i = 0; i < p->n_steps && !p->replaces; i++)
		p->replaces = p->step[i].kind == ASPACE_UNMAP && range_overlaps(p->step[i].iova, r);
}

static int check_aligned(uint64_t v, struct refusal *why)
{
	return (v & (ASPACE_PAGE - 1)) == 0 ? 0 : refuse(why, PASID_WHY_UNALIGNED, v, ASPACE_PAGE);
}

/* All that can be said of an operation without looking at mappings. *r is its IOVA range unless we are to choose. */
static int check_op(const struct aspace *as, const struct aspace_op *op, struct range *r, struct refusal *why)
{
	bool map = op->kind == ASPACE_MAP, placed = !map || op->fixed;
	struct range part;
	int e = 0;

	if (op->len == 0)
		return refuse(why, PASID_WHY_EMPTY, 0, 0);
	if (placed)
		e = check_aligned(op->iova, why);
	if (!e && map)
		e = check_aligned(op->off, why);
	if (!e)
		e = check_aligned(op->len, why);
	if (e)
		return e;
	if (placed && !range_make(r, op->iova, op->len))
		return refuse(why, PASID_WHY_WRAPS, op->iova, op->len);
	if (map) {
		/* The end, one beyond the last byte, must be a number, too. */
		if (!range_make(&part, op->off, op->len) || part.last == UINT64_MAX)
			return refuse(why, PASID_WHY_WRAPS, op->off, op->len);
		if (part.last >= op->buf->size)
			return refuse(why, PASID_WHY_BUFFER_END, part.last + 1, op->buf->size);
		if (op->writable && !op->buf->writable)
			return refuse(why, PASID_WHY_READ_ONLY, 0, 0);
	}
	if (placed && !range_contains(as->aperture, *r))
		return refuse(why, PASID_WHY_APERTURE, as->aperture.first, as->aperture.last);
	return 0;
}

/* A free range for len bytes at a bus address: the best alignment first, from the cursor on first. */
static bool choose(struct aspace *as, uint64_t len, uint64_t bus, struct range *r)
{
	static const uint64_t sizes[] = {UINT64_C(1) << 30, UINT64_C(1) << 21, ASPACE_PAGE};
	struct itree_want w = {.within = as->aperture, .len = len, .guard = as->guard};
	uint64_t iova;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		w.align = sizes[i];
		if (w.align != ASPACE_PAGE && (len < w.align || (bus & (w.align - 1)) != 0))
			continue;
		w.from = as->cursor;
		if (!itree_find_room(&as->tree, &w, &iova)) {
			w.from = as->aperture.first;
			if (!itree_find_room(&as->tree, &w, &iova))
				continue;
		}
		*r = (struct range){iova, iova + (len - 1)};
		as->cursor = r->last < as->aperture.last ? r->last + 1 : as->aperture.first;
		return true;
	}
	return false;
}

static int plan_map(struct plan *p, struct aspace_op *op, struct range r, struct refusal *why)
{
	struct aspace *as = p->as;
	uint64_t bus = op->buf->bus + op->off;
	struct itree_node *next;
	struct mapping *m;

	if (!op->fixed) {
		if (!choose(as, op->len, bus, &r))
			return refuse(why, PASID_WHY_NO_ROOM, op->len, 0);
		op->iova = r.first;
	}
	next = seek(p, r.first);
	if (next && next->first <= r.last)
		return refuse(why, PASID_WHY_OVERLAP, next->first, next->last);
	m = aspace_mapping_new(as);
	if (!m)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	m->node.first = r.first;
	m->node.last = r.last;
	m->buf = op->buf;
	m->off = op->off;
	m->writable = op->writable;
	m->rest = false;
	make(p, m, next);
	p->near = &m->node;
	note_replaced(p, r);
	add_map_step(p, r, bus, op->writable);
	return 0;
}

/* The hole that begins at `first`, in which n (or NULL) is the lowest mapping that is somebody else's or lies above. */
static int refuse_hole(const struct plan *p, struct range r, struct itree_node *n, struct refusal *why)
{
	for (unsigned int i = 0; n && n->first <= r.last; n = itree_next(n), i++) {
		if (mapping_of(n)->owner == p->owner || (i == HOLE_MAX && n->first > r.first))
			return refuse(why, PASID_WHY_NOT_MAPPED, r.first, n->first - 1);
	}
	return refuse(why, PASID_WHY_NOT_MAPPED, r.first, r.last);
}

/* The mappings that cover r, all of them the owner's, as first and last, or the refusal that names the first hole. */
static int find_cover(struct plan *p, struct range r, struct mapping **first, struct mapping **last,
		      struct refusal *why)
{
	struct itree_node *n = seek(p, r.first);

	*first = mapping_of(n);
	*last = NULL;
	for (;; n = itree_next(n)) {
		if (++p->n_taken > ASPACE_TAKE_MAX)
			return refuse(why, PASID_WHY_UNMAPS_MANY, p->n_taken, ASPACE_TAKE_MAX);
		if (!n || n->first > r.first || mapping_of(n)->owner != p->owner)
			return refuse_hole(p, r, n, why);
		if (n->last >= r.last)
			break;
		r.first = n->last + 1;
	}
	*last = mapping_of(n);
	return 0;
}

/* Fills *ret with what stays of m in `part`. */
static int cut(struct plan *p, const struct mapping *m, struct range part, struct mapping **ret, struct refusal *why)
{
	struct mapping *c = aspace_mapping_new(p->as);

	if (!c)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	c->node.first = part.first;
	c->node.last = part.last;
	c->buf = m->buf;
	c->off = m->off + (part.first - m->node.first);
	c->writable = m->writable;
	c->rest = !m->made || m->rest;
	*ret = c;
	return 0;
}

static int plan_unmap(struct plan *p, struct range r, struct refusal *why)
{
	struct mapping *first, *last, *m, *next, *head = NULL, *tail = NULL;
	bool done = false;
	int e;

	e = find_cover(p, r, &first, &last, why);
	if (e)
		return e;
	if (first->node.first < r.first) {
		e = cut(p, first, (struct range){first->node.first, r.first - 1}, &head, why);
		if (e)
			return e;
	}
	if (last->node.last > r.last) {
		e = cut(p, last, (struct range){r.last + 1, last->node.last}, &tail, why);
		if (e) {
			if (head)
				aspace_mapping_free(p->as, head);
			return e;
		}
	}
	p->near = itree_prev(&first->node);
	for (m = first; !done; m = next) {
		done = m == last;
		next = mapping_of(itree_next(&m->node));
		take(p, m);
	}
	if (tail) {
		make(p, tail, next ? &next->node : NULL);
		next = tail;
	}
	if (head)
		make(p, head, next ? &next->node : NULL);
	add_unmap_step(p, r);
	return 0;
}

static struct plan *plan_new(struct aspace *as, uint32_t owner, size_t n)
{
	struct plan *p = malloc(sizeof(*p) + n * (sizeof(p->step[0]) + 2 * sizeof(p->made[0])));

	if (!p)
		return NULL;
	*p = (struct plan){.as = as, .owner = owner, .count = as->count, .cursor = as->cursor};
	p->made = (struct mapping **)(void *)&p->step[n];
	as->plan = p;
	return p;
}

static void plan_free(struct plan *p)
{
	p->as->plan = NULL;
	free(p);
}

int aspace_plan(struct aspace *as, uint32_t owner, struct aspace_op *ops, size_t n, struct plan **ret,
		struct refusal *why)
{
	struct plan *p;

	assert(!as->plan);
	why->index = 0;
	if (n > PASID_BIND_MAX)
		return refuse(why, PASID_WHY_TOO_MANY, n, PASID_BIND_MAX);
	if (n == 0)
		return refuse(why, PASID_WHY_EMPTY, 0, 0);
	p = plan_new(as, owner, n);
	if (!p)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	for (size_t i = 0; i < n; i++) {
		struct range r = {0};
		int e = check_op(as, &ops[i], &r, why);

		if (!e)
			e = ops[i].kind == ASPACE_MAP ? plan_map(p, &ops[i], r, why) : plan_unmap(p, r, why);
		if (e) {
			why->index = (uint32_t)i;
			plan_undo(p);
			return e;
		}
		if ((int64_t)(as->count - p->count) > p->peak)
			p->peak = (int64_t)(as->count - p->count);
	}
	*ret = p;
	return 0;
}

const struct aspace_step *plan_steps(const struct plan *p, size_t *n)
{
	*n = p->n_steps;
	return p->step;
}

const struct mapping *plan_gone(const struct plan *p, const struct mapping *m)
{
	return m ? mapping_of(m->node.left) : p->taken;
}

struct mapping *const *plan_made(const struct plan *p, size_t *n)
{
	*n = p->n_made;
	return p->made;
}

void aspace_each_before(const struct aspace *as, void (*each)(void *arg, const struct mapping *m), void *arg)
{
	for (struct itree_node *n = itree_first(&as->tree); n; n = itree_next(n))
		if (!mapping_of(n)->made)
			each(arg, mapping_of(n));
	for (const struct mapping *m = as->plan ? as->plan->taken : NULL; m; m = plan_gone(as->plan, m))
		each(arg, m);
}

int64_t plan_mappings(const struct plan *p, int64_t *peak)
{
	*peak = p->peak;
	return (int64_t)(p->as->count - p->count);
}

bool plan_replaces(const struct plan *p)
{
	return p->replaces;
}

void plan_commit(struct plan *p, void (*unused)(void *arg, struct buffer *buf), void *arg)
{
	struct mapping *m = p->taken, *next;
	struct aspace *as = p->as;

	for (size_t i = 0; i < p->n_made; i++)
		if (p->made[i])
			p->made[i]->made = 0;
	plan_free(p);
	for (; m; m = next) {
		struct buffer *buf = m->buf;

		next = mapping_of(m->node.left);
		aspace_mapping_free(as, m);
		if (--buf->uses == 0 && unused)
			unused(arg, buf);
	}
}

void plan_undo(struct plan *p)
{
	struct mapping *m, *next;
	struct aspace *as;

	if (!p)
		return;
	as = p->as;
	for (size_t i = 0; i < p->n_made; i++)
		if (p->made[i])
			take(p, p->made[i]);
	for (m = p->taken; m; m = next) {
		next = mapping_of(m->node.left);
		itree_insert(&as->tree, &m->node);
		as->count++;
		as->bytes += m->node.last - m->node.first + 1;
	}
	as->cursor = p->cursor;
	plan_free(p);
}
