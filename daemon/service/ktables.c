/* SPDX-License-Identifier: MIT */
/*
 * See ktables.h. What the kernel has follows from the books: of each mapping, the part in each 2 MiB of addresses, an area.
 * So nothing is remembered of the areas themselves. A change is a walk over what its plan took out of the books and put
 * into them, the same walk each time: once to do it, and if that fails, twice more to take it back.
 */
#include "service/ktables.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"

#define AREA (2ull << 20)
#define MAX_OUT 32u /* areas asked of the kernel at a time, 64 MiB: then others have their turn */
#define MAX_LOOKS 4096u /* pieces that were not concerned and are looked past in one go: below a millisecond */

enum phase {
	PHASE_IDLE,
	PHASE_DOING,
	PHASE_UNMAPPING, /* taking back: what was mapped goes */
	PHASE_REMAPPING, /* ... and what was unmapped comes again */
};

struct piece { /* an area that is mapped, or unmapped */
	const struct mapping *m; /* that it is a part of */
	struct range r;
	bool map;
};

/* Where in a plan a change is. First what is gone, area by area: an area is unmapped if it changes, and the rests that lie
 * in it are mapped at once, since the client asked for nothing to happen to them. Then what is new. */
struct walk {
	const struct aspace *as;
	const struct plan *plan;
	const struct mapping *gone; /* NULL: the new ones' turn */
	struct range area; /* of `gone`, if open */
	bool open; /* the area is unmapped; its rests are next */
	size_t made; /* index of the new mapping */
	uint64_t at; /* IOVA; 0: where the new mapping begins */
	uint64_t n; /* pieces passed */
};

struct ktables {
	struct transport *t;
	struct transport_space *space;
	struct ktables_window window;
	struct transport_memory *window_memory;
	void (*changed)(void *arg);
	void *arg;
	int made; /* as ktables_made() */
	void (*again)(struct ktables *k); /* the step towards it that the transport had no room for */
	uint32_t pasid; /* 0: none */
	bool attached; /* under its PASID */
	bool detaching;
	int detach_error;
	/* The change. */
	enum phase phase;
	ktables_memory memory;
	struct walk walk;
	uint32_t out;
	uint64_t asked, answered; /* while DOING; pieces */
	uint64_t whole; /* of those answered, how many were done before the first that was not */
	uint64_t behind; /* bit n: piece whole + n was done */
	int error; /* of the first that failed */
	bool broken; /* taking back failed, too */
};

_Static_assert(MAX_OUT <= 64, "all that is out behind a failure has its bit");

/* ---- making it ---- */

static void made(struct ktables *k, int err)
{
	k->made = err < 0 ? err : 1;
	k->changed(k->arg);
}

static void asked(struct ktables *k, int r, void (*step)(struct ktables *k))
{
	if (r == -EBUSY)
		k->again = step;
	else if (r < 0)
		made(k, r);
}

static void on_attached(void *arg, int err);

static void attach(struct ktables *k)
{
	asked(k, k->t->ops->spaces->attach_pasid(k->t, k->space, k->pasid, on_attached, k), attach);
}

static void on_attached(void *arg, int err)
{
	struct ktables *k = arg;

	k->attached = err == 0;
	if (err == -EBUSY)
		attach(k); /* while the device is being reset, which ends */
	else
		made(k, err);
}

static void on_window(void *arg, int err)
{
	struct ktables *k = arg;

	if (err == 0 && k->pasid)
		attach(k);
	else
		made(k, err);
}

static void map_window(struct ktables *k)
{
	asked(k,
	      k->t->ops->spaces->map(k->t, k->space, k->window.iova, k->window.len, k->window_memory, 0,
				     TRANSPORT_READ | TRANSPORT_WRITE, on_window, k),
	      map_window);
}

static void on_held(void *arg, int err)
{
	struct ktables *k = arg;

	if (err == 0)
		map_window(k);
	else
		made(k, err);
}

static void hold_window(struct ktables *k)
{
	asked(k,
	      k->t->ops->spaces->hold(k->t, &k->window_memory, k->window.fd, k->window.len,
				      TRANSPORT_READ | TRANSPORT_WRITE, on_held, k),
	      hold_window);
}

static void on_made(void *arg, int err)
{
	struct ktables *k = arg;

	if (err == 0 && k->window.len)
		hold_window(k);
	else
		on_window(k, err);
}

int ktables_new(struct ktables **ret, struct transport *t, const struct ktables_window *window, uint32_t pasid,
		void (*changed)(void *arg), void *arg)
{
	AUTO_FREE struct ktables *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return -ENOMEM;
	*k = (struct ktables){.t = t, .window = *window, .pasid = pasid, .changed = changed, .arg = arg};
	r = t->ops->spaces->make(t, &k->space, on_made, k);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(k);
	return 0;
}

int ktables_made(struct ktables *k)
{
	void (*again)(struct ktables * k) = k->again;

	k->again = NULL;
	if (again)
		again(k);
	return k->made;
}

struct transport_space *ktables_space(const struct ktables *k)
{
	return k->space;
}

/* ---- the pieces of a change ---- */

static uint64_t count_areas(const struct mapping *m)
{
	return m->node.last / AREA - m->node.first / AREA + 1;
}

int64_t ktables_growth(const struct plan *plan)
{
	struct mapping *const *made;
	int64_t growth = 0;
	size_t n;

	for (const struct mapping *m = NULL; (m = plan_gone(plan, m));)
		growth -= (int64_t)count_areas(m);
	made = plan_made(plan, &n);
	for (size_t i = 0; i < n; i++)
		growth += made[i] ? (int64_t)count_areas(made[i]) : 0;
	return growth;
}

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

static void walk_on(struct walk *w, const struct mapping *gone)
{
	w->gone = gone;
	w->at = gone ? gone->node.first : 0;
}

static void walk_begin(struct walk *w, const struct aspace *as, const struct plan *plan)
{
	*w = (struct walk){.as = as, .plan = plan};
	walk_on(w, plan_gone(plan, NULL));
}

/* Goes on behind `last`, with which an area of what is gone ends. */
static void walk_past(struct walk *w, uint64_t last)
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
static bool walk_past_kept(struct walk *w)
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

static bool next_gone(struct walk *w, struct piece *p)
{
	const struct mapping *rest;

	while (w->gone) {
		if (!w->open) {
			w->area = area_at(w->gone, w->at);
			if (walk_past_kept(w))
				continue;
			w->open = true;
			w->at = w->area.first;
			*p = (struct piece){w->gone, w->area, false};
			return true;
		}
		rest = rest_in(w->as, (struct range){w->at, w->area.last});
		if (!rest) {
			walk_past(w, w->area.last);
			continue;
		}
		*p = (struct piece){rest, area_at(rest, w->area.first), true};
		if (p->r.last == w->area.last)
			walk_past(w, w->area.last);
		else
			w->at = p->r.last + 1;
		return true;
	}
	return false;
}

static bool next_made(struct walk *w, struct piece *p)
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

static bool next_piece(struct walk *w, struct piece *p)
{
	bool any = next_gone(w, p) || next_made(w, p);

	w->n += any;
	return any;
}

/* ---- carrying it out ---- */

void ktables_change(struct ktables *k, const struct aspace *as, const struct plan *plan, ktables_memory memory)
{
	k->phase = PHASE_DOING;
	k->memory = memory;
	walk_begin(&k->walk, as, plan);
	k->asked = k->answered = k->whole = k->behind = 0;
	k->error = 0;
	k->broken = false;
}

/* Answers come in the order in which was asked. */
static void on_piece(void *arg, int err)
{
	struct ktables *k = arg;

	k->out--;
	if (k->phase != PHASE_DOING) {
		k->broken |= err < 0;
	} else {
		if (err == 0 && k->whole == k->answered)
			k->whole++;
		else if (err == 0)
			k->behind |= 1ull << (k->answered - k->whole);
		else if (!k->error)
			k->error = err;
		k->answered++;
	}
	k->changed(k->arg);
}

/* Does this phase do something about the piece, of which n come before? */
static bool concerned(const struct ktables *k, const struct piece *p, uint64_t n)
{
	bool was_done = n < k->whole || k->behind >> (n - k->whole) & 1;

	return k->phase == PHASE_DOING || (was_done && p->map == (k->phase == PHASE_UNMAPPING));
}

static int ask(struct ktables *k, const struct piece *p)
{
	const struct transport_space_ops *ops = k->t->ops->spaces;
	bool map = k->phase == PHASE_DOING ? p->map : k->phase == PHASE_REMAPPING;
	uint64_t first = p->r.first, len = range_len(p->r);
	int r;

	if (map)
		r = ops->map(k->t, k->space, first, len, k->memory(p->m->buf), p->m->off + (first - p->m->node.first),
			     TRANSPORT_READ | (p->m->writable ? TRANSPORT_WRITE : 0u), on_piece, k);
	else
		r = ops->unmap(k->t, k->space, first, len, on_piece, k);
	k->out += r == 0;
	return r;
}

static bool failed(const struct ktables *k)
{
	return k->phase == PHASE_DOING ? k->error < 0 : k->broken;
}

/* Asks for as much as may be out, up to the first failure. True: there is no more to ask for in this phase. */
static bool ask_some(struct ktables *k)
{
	struct piece p;
	int r;

	for (unsigned int looks = 0; !failed(k) && k->out < MAX_OUT; looks++) {
		struct walk before = k->walk;

		if (looks == MAX_LOOKS) {
			k->changed(k->arg);
			return false;
		}
		if ((k->phase != PHASE_DOING && k->walk.n == k->asked) || !next_piece(&k->walk, &p))
			return true;
		if (!concerned(k, &p, before.n))
			continue;
		r = ask(k, &p);
		if (r < 0)
			k->walk = before;
		if (r == -EBUSY)
			return false;
		if (r < 0 && k->phase == PHASE_DOING)
			k->error = r;
		k->broken |= r < 0 && k->phase != PHASE_DOING;
	}
	return failed(k);
}

int ktables_go(struct ktables *k)
{
	while (ask_some(k)) {
		if (k->out)
			return 1;
		if (k->phase == PHASE_REMAPPING || k->broken || (k->phase == PHASE_DOING && !k->error)) {
			k->phase = PHASE_IDLE;
			return k->broken ? -ENOTRECOVERABLE : k->error;
		}
		if (k->phase == PHASE_DOING)
			k->asked = k->walk.n;
		k->phase++;
		walk_begin(&k->walk, k->walk.as, k->walk.plan);
	}
	return 1;
}

/* ---- its end ---- */

static void on_detached(void *arg, int err)
{
	struct ktables *k = arg;

	k->detaching = false;
	k->attached = err < 0;
	k->detach_error = err;
	k->changed(k->arg);
}

int ktables_leave(struct ktables *k)
{
	int r;

	if (k->detaching)
		return 1;
	if (!k->attached || k->detach_error)
		return k->detach_error;
	r = k->t->ops->spaces->detach_pasid(k->t, k->pasid, on_detached, k);
	if (r < 0)
		return r == -EBUSY ? 1 : r;
	k->detaching = true;
	return 1;
}

int ktables_end(struct ktables **k)
{
	const struct transport_space_ops *ops = (*k)->t->ops->spaces;
	int r = (*k)->space ? ops->free((*k)->t, (*k)->space) : 0;

	if (r == -EBUSY)
		return r;
	(*k)->space = NULL;
	r = (*k)->window_memory ? ops->release((*k)->t, (*k)->window_memory) : 0;
	if (r == -EBUSY)
		return r;
	*k = ktables_free(*k);
	return 0;
}

struct ktables *ktables_free(struct ktables *k)
{
	free(k);
	return NULL;
}
