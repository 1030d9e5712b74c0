/* SPDX-License-Identifier: MIT */
/* See areas.h. */
#include "service/areas.h"

#include "base/util.h"

#define AREA (2ull << 20)

/* The area of m that contains `at`. */
static struct range area_at(const struct mapping *m, uint64_t at)
{
	struct range r = {at & ~(AREA - 1), at | (AREA - 1)};

	if (r.first < m->node.first)
		r.first = m->node.first;
	if (r.last > m->node.last)
		r.last = m->node.last;
	return r;
}

static void walk_on(struct area_walk *w, const struct mapping *gone)
{
	w->gone = gone;
	w->at = gone ? gone->node.first : 0;
}

void areas_walk(struct area_walk *w, const struct aspace *as, const struct plan *plan)
{
	*w = (struct area_walk){.as = as, .plan = plan};
	walk_on(w, plan_gone(plan, NULL));
}

/* Goes on behind `last`, with which an area of what is gone ends. */
static void walk_past(struct area_walk *w, uint64_t last)
{
	w->open = false;
	if (last == w->gone->node.last)
		walk_on(w, plan_gone(w->plan, w->gone));
	else
		w->at = last + 1;
}

/* The lowest mapping in r that is a rest; what else is there is new, for all that was there before is gone. */
static const struct mapping *rest_in(const struct aspace *as, struct range r)
{
	struct itree_node *n = itree_at_or_above(&as->tree, r.first);

	while (n && n->first <= r.last && !container_of(n, struct mapping, node)->rest)
		n = itree_next(n);
	return n && n->first <= r.last ? container_of(n, struct mapping, node) : NULL;
}

/* Walks past the areas from w->area on that a rest covers, so that nothing happens to them. False: there are none. */
static bool walk_past_kept(struct area_walk *w)
{
	const struct mapping *rest = rest_in(w->as, w->area);
	uint64_t last;

	if (!rest || rest->node.first > w->area.first || rest->node.last < w->area.last)
		return false;
	last = rest->node.last;
	if (last != w->gone->node.last)
		last = ((last + 1) & ~(AREA - 1)) - 1; /* the area that it ends in is cut */
	walk_past(w, last);
	return true;
}

static bool next_gone(struct area_walk *w, struct area_piece *p)
{
	const struct mapping *rest;

	while (w->gone) {
		if (!w->open) {
			w->area = area_at(w->gone, w->at);
			if (walk_past_kept(w))
				continue;
			w->open = true;
			w->at = w->area.first;
			*p = (struct area_piece){w->gone, w->area, false};
			return true;
		}
		rest = rest_in(w->as, (struct range){w->at, w->area.last});
		if (!rest) {
			walk_past(w, w->area.last);
			continue;
		}
		*p = (struct area_piece){rest, area_at(rest, w->area.first), true};
		if (p->r.last == w->area.last)
			walk_past(w, w->area.last);
		else
			w->at = p->r.last + 1;
		return true;
	}
	return false;
}

static bool next_made(struct area_walk *w, struct area_piece *p)
{
	struct mapping *const *made;
	size_t n;

	made = plan_made(w->plan, &n);
	while (w->made < n && (!made[w->made] || made[w->made]->rest))
		w->made++;
	if (w->made == n)
		return false;
	p->m = made[w->made];
	p->map = true;
	p->r = area_at(p->m, w->at ? w->at : p->m->node.first);
	w->at = p->r.last == p->m->node.last ? 0 : p->r.last + 1;
	w->made += !w->at;
	return true;
}

bool areas_next(struct area_walk *w, struct area_piece *p)
{
	bool any = next_gone(w, p) || next_made(w, p);

	w->n += any;
	return any;
}

static const struct mapping *mapping_from(const struct aspace *as, uint64_t at)
{
	struct itree_node *n = itree_at_or_above(&as->tree, at);

	return n ? container_of(n, struct mapping, node) : NULL;
}

struct range areas_around(const struct aspace *as, struct range r)
{
	const struct mapping *first = mapping_from(as, r.first), *last = mapping_from(as, r.last);

	if (first && first->node.first < r.first)
		r.first = area_at(first, r.first).first;
	if (last && last->node.first <= r.last)
		r.last = area_at(last, r.last).last;
	return r;
}

bool areas_in(const struct aspace *as, struct range r, uint64_t *at, struct area_piece *p)
{
	const struct mapping *m = *at < r.first || *at > r.last ? NULL : mapping_from(as, *at);

	if (!m || m->node.first > r.last)
		return false;
	*p = (struct area_piece){m, area_at(m, *at > m->node.first ? *at : m->node.first), true};
	*at = p->r.last + 1; /* 0 behind the last address of all */
	return true;
}
