/* SPDX-License-Identifier: MIT */
/*
 * See ktables.h. A change is a walk over its pieces (areas.h): once to do it, and if that fails, twice more to take it back.
 * Of what was done only its number is remembered.
 */
#include "service/ktables.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"
#include "service/areas.h"

#define ATTACH_NS 1000000000ull
#define MAX_OUT 32u /* areas asked of the kernel at a time, 64 MiB: then others have their turn */
#define MAX_LOOKS 4096u /* pieces that were not concerned and are looked past in one go: below a millisecond */

enum phase {
	PHASE_IDLE,
	PHASE_DOING,
	PHASE_UNMAPPING, /* taking back: what was mapped goes */
	PHASE_REMAPPING, /* ... and what was unmapped comes again */
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
	uint64_t attach_until; /* it is tried */
	bool attached; /* under its PASID */
	bool detaching;
	int detach_error;
	/* The change. */
	enum phase phase;
	ktables_memory memory;
	struct area_walk walk;
	uint32_t out;
	uint64_t asked, answered; /* while DOING; pieces */
	uint64_t whole; /* of those answered, how many were done before the first that was not */
	uint64_t behind; /* bit n: piece whole + n was done */
	int error; /* of the first that failed */
	bool broken; /* taking back failed, too */
	/* Of a predecessor's. */
	bool adopted; /* its window is mapped */
	const struct aspace *restore; /* what the books show; NULL: nothing is made good */
	const struct range *ranges; /* that are left, n_ranges of them */
	size_t n_ranges;
	bool cleared; /* the first of them */
	uint64_t at; /* in it */
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
	/* While the device is being reset, which ends; there are other reasons, which do not. */
	if (err == -EBUSY && util_now_ns() < k->attach_until)
		attach(k);
	else
		made(k, err);
}

static void on_window(void *arg, int err)
{
	struct ktables *k = arg;

	k->attach_until = util_now_ns() + ATTACH_NS;
	if (err == 0 && k->pasid)
		attach(k);
	else
		made(k, err);
}

static void map_window(struct ktables *k)
{
	const struct ktables_window *w = &k->window;

	asked(k,
	      k->t->ops->spaces->map(k->t, k->space, w->iova, w->len, k->window_memory, 0,
				     TRANSPORT_READ | TRANSPORT_WRITE, on_window, k),
	      map_window);
}

static void on_held(void *arg, int err)
{
	struct ktables *k = arg;

	if (err == 0 && (!k->adopted || k->t->ops->spaces->are_lists(k->t)))
		map_window(k);
	else
		on_window(k, err);
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

static int begin(struct ktables **ret, struct ktables as, const void *saved, size_t size)
{
	const struct transport_space_ops *ops = as.t->ops->spaces;
	AUTO_FREE struct ktables *k = malloc(sizeof(*k));
	int r;

	if (!k)
		return -ENOMEM;
	*k = as;
	r = saved ? ops->adopt(k->t, &k->space, saved, size, on_made, k) : ops->make(k->t, &k->space, on_made, k);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(k);
	return 0;
}

int ktables_new(struct ktables **ret, struct transport *t, const struct ktables_window *window, uint32_t pasid,
		void (*changed)(void *arg), void *arg)
{
	return begin(ret, (struct ktables){.t = t, .window = *window, .pasid = pasid, .changed = changed, .arg = arg},
		     NULL, 0);
}

int ktables_adopt(struct ktables **ret, struct transport *t, const void *saved, size_t size,
		  const struct ktables_window *window, uint32_t pasid, void (*changed)(void *arg), void *arg)
{
	return begin(
		ret,
		(struct ktables){
			.t = t, .window = *window, .pasid = pasid, .changed = changed, .arg = arg, .adopted = true},
		saved, size);
}

size_t ktables_save(const struct ktables *k, void *buf)
{
	return k->t->ops->spaces->save(k->t, k->space, buf);
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

/* ---- carrying it out ---- */

void ktables_change(struct ktables *k, const struct aspace *as, const struct plan *plan, ktables_memory memory)
{
	k->phase = PHASE_DOING;
	k->memory = memory;
	areas_walk(&k->walk, as, plan);
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
static bool concerned(const struct ktables *k, const struct area_piece *p, uint64_t n)
{
	bool was_done = n < k->whole || k->behind >> (n - k->whole) & 1;

	return k->phase == PHASE_DOING || (was_done && p->map == (k->phase == PHASE_UNMAPPING));
}

static int ask_map(struct ktables *k, const struct area_piece *p, transport_done done)
{
	return k->t->ops->spaces->map(k->t, k->space, p->r.first, range_len(p->r), k->memory(p->m->buf),
				      p->m->off + (p->r.first - p->m->node.first),
				      TRANSPORT_READ | (p->m->writable ? TRANSPORT_WRITE : 0u), done, k);
}

static int ask(struct ktables *k, const struct area_piece *p)
{
	bool map = k->phase == PHASE_DOING ? p->map : k->phase == PHASE_REMAPPING;
	int r;

	if (map)
		r = ask_map(k, p, on_piece);
	else
		r = k->t->ops->spaces->unmap(k->t, k->space, p->r.first, range_len(p->r), on_piece, k);
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
	struct area_piece p;
	int r;

	for (unsigned int looks = 0; !failed(k) && k->out < MAX_OUT; looks++) {
		struct area_walk before = k->walk;

		if (looks == MAX_LOOKS) {
			k->changed(k->arg);
			return false;
		}
		if ((k->phase != PHASE_DOING && k->walk.n == k->asked) || !areas_next(&k->walk, &p))
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
		areas_walk(&k->walk, k->walk.as, k->walk.plan);
	}
	return 1;
}

/* ---- making good ---- */

void ktables_restore(struct ktables *k, const struct aspace *as, const struct range *r, size_t n, ktables_memory memory)
{
	k->restore = as;
	k->ranges = r;
	k->n_ranges = n;
	k->cleared = false;
	k->memory = memory;
	k->error = 0;
}

static void on_restored(void *arg, int err)
{
	struct ktables *k = arg;

	k->out--;
	if (err < 0 && !k->error)
		k->error = err;
	k->changed(k->arg);
}

/* Asks for the next step; 1: there is none. */
static int restore_step(struct ktables *k)
{
	const struct range *r = k->ranges;
	uint64_t at = k->at;
	struct area_piece p;
	int e;

	if (!k->n_ranges)
		return 1;
	if (!k->cleared) {
		e = k->t->ops->spaces->clear(k->t, k->space, r->first, range_len(*r), on_restored, k);
		k->cleared = e == 0;
		k->out += e == 0;
		k->at = r->first;
		return e;
	}
	if (!areas_in(k->restore, *r, &at, &p)) {
		k->ranges++;
		k->n_ranges--;
		k->cleared = false;
		return 0;
	}
	e = ask_map(k, &p, on_restored);
	k->out += e == 0;
	k->at = e == 0 ? at : k->at;
	return e;
}

int ktables_restore_go(struct ktables *k)
{
	int e = 0;

	while (k->restore && !k->error && k->out < MAX_OUT) {
		e = restore_step(k);
		if (e < 0 && e != -EBUSY)
			k->error = e;
		if (e)
			break;
	}
	if (k->out || (k->restore && !k->error && e != 1))
		return 1;
	k->restore = NULL;
	return k->error;
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

	if (r < 0 && r != -ENODEV)
		return r;
	(*k)->space = NULL;
	r = (*k)->window_memory ? ops->release((*k)->t, (*k)->window_memory) : 0;
	if (r < 0 && r != -ENODEV)
		return r;
	*k = ktables_free(*k);
	return 0;
}

struct ktables *ktables_free(struct ktables *k)
{
	free(k);
	return NULL;
}
