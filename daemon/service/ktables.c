/* SPDX-License-Identifier: MIT */
/* See ktables.h. The areas in the tree are what the kernel has, or will have when the change that is under way is done. */
#include "service/ktables.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"

#define AREA (2ull << 20)
#define MAX_OUT 64u /* asked of the kernel at a time */

struct area {
	struct itree_node node; /* IOVA */
	struct transport_memory *memory; /* the buffer's, which lives as long as it is mapped */
	uint64_t off;
	bool writable;
};

struct op {
	struct ktables *k;
	bool map; /* otherwise unmap */
	bool applied; /* the kernel has done it, and it was not taken back */
	struct area *area;
};

enum phase { PHASE_IDLE, PHASE_DOING, PHASE_UNDOING };

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
	struct itree areas;
	/* The change. */
	enum phase phase;
	struct op *ops;
	size_t n_ops, room;
	size_t next; /* DOING: the next to ask for; UNDOING: those below are still to be taken back */
	uint32_t out;
	int error; /* of the first that failed */
	bool broken; /* taking back failed, too */
};

static struct area *area_of(struct itree_node *n)
{
	return n ? container_of(n, struct area, node) : NULL;
}

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
	const struct ktables_window *w = &k->window;

	asked(k,
	      k->t->ops->spaces->map(k->t, k->space, w->iova, w->len, k->window_memory, 0,
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

/* ---- planning a change ---- */

static int add_op(struct ktables *k, bool map, struct area *a)
{
	size_t room = k->room ? 2 * k->room : 64;
	struct op *ops = k->ops;

	if (k->n_ops == k->room) {
		ops = realloc(ops, room * sizeof(*ops));
		if (!ops)
			return -ENOMEM;
		k->ops = ops;
		k->room = room;
	}
	k->ops[k->n_ops++] = (struct op){.k = k, .map = map, .area = a};
	return 0;
}

static int plan_map(struct ktables *k, struct range r, const struct ktables_memory *m, bool writable)
{
	struct area *a = calloc(1, sizeof(*a));

	if (!a || add_op(k, true, a) < 0) {
		free(a);
		return -ENOMEM;
	}
	a->node.first = r.first;
	a->node.last = r.last;
	a->memory = m->memory;
	a->off = m->off;
	a->writable = writable;
	itree_insert(&k->areas, &a->node);
	return 0;
}

/* A part of an area that is unmapped is mapped again. */
static int plan_rest(struct ktables *k, const struct area *a, uint64_t first, uint64_t last)
{
	const struct ktables_memory m = {.memory = a->memory, .off = a->off + (first - a->node.first)};

	return plan_map(k, (struct range){first, last}, &m, a->writable);
}

static int plan_unmap(struct ktables *k, struct range r)
{
	struct area *a;
	int ret = 0;

	while (ret == 0 && (a = area_of(itree_at_or_above(&k->areas, r.first))) && a->node.first <= r.last) {
		ret = add_op(k, false, a);
		if (ret < 0)
			break;
		itree_erase(&k->areas, &a->node);
		if (a->node.first < r.first)
			ret = plan_rest(k, a, a->node.first, r.first - 1);
		if (ret == 0 && a->node.last > r.last)
			ret = plan_rest(k, a, r.last + 1, a->node.last);
	}
	return ret;
}

static int plan_step_map(struct ktables *k, const struct aspace_step *step, ktables_find find, void *arg)
{
	struct range r = step->iova;
	int ret = 0;

	for (uint64_t at = r.first, last; ret == 0; at = last + 1) {
		struct ktables_memory m = find(arg, step->bus + (at - r.first));

		last = at | (AREA - 1);
		if (last > r.last)
			last = r.last;
		if (last - at >= m.len)
			last = at + (m.len - 1);
		ret = plan_map(k, (struct range){at, last}, &m, step->writable);
		if (last == r.last)
			break;
	}
	return ret;
}

/* Puts the tree back as it was before the op. */
static void unplan(struct ktables *k, struct op *op)
{
	if (op->map)
		itree_erase(&k->areas, &op->area->node);
	else
		itree_insert(&k->areas, &op->area->node);
}

/* Forgets the ops; areas that are not in the tree any more go with them. */
static void forget(struct ktables *k, bool done)
{
	for (size_t i = 0; i < k->n_ops; i++)
		if (k->ops[i].map != done)
			free(k->ops[i].area);
	free(k->ops);
	k->ops = NULL;
	k->n_ops = k->room = k->next = 0;
	k->phase = PHASE_IDLE;
}

int ktables_change(struct ktables *k, const struct aspace_step *step, size_t n, ktables_find find, void *arg)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = step[i].kind == ASPACE_MAP ? plan_step_map(k, &step[i], find, arg) : plan_unmap(k, step[i].iova);
	if (r < 0) {
		for (size_t i = k->n_ops; i > 0; i--)
			unplan(k, &k->ops[i - 1]);
		forget(k, false);
		return r;
	}
	k->phase = PHASE_DOING;
	k->error = 0;
	k->broken = false;
	return 0;
}

/* ---- carrying it out ---- */

static void on_op(void *arg, int err)
{
	struct op *op = arg;
	struct ktables *k = op->k;

	k->out--;
	if (err == 0)
		op->applied = k->phase == PHASE_DOING;
	else if (k->phase == PHASE_UNDOING)
		k->broken = true;
	else if (!k->error)
		k->error = err;
	k->changed(k->arg);
}

static int ask(struct ktables *k, struct op *op, bool map)
{
	const struct transport_space_ops *ops = k->t->ops->spaces;
	const struct area *a = op->area;
	uint64_t len = a->node.last - a->node.first + 1;
	int r;

	if (map)
		r = ops->map(k->t, k->space, a->node.first, len, a->memory, a->off,
			     TRANSPORT_READ | (a->writable ? TRANSPORT_WRITE : 0u), on_op, op);
	else
		r = ops->unmap(k->t, k->space, a->node.first, len, on_op, op);
	k->out += r == 0;
	return r;
}

static void do_some(struct ktables *k)
{
	while (!k->error && k->next < k->n_ops && k->out < MAX_OUT) {
		struct op *op = &k->ops[k->next];
		int r = ask(k, op, op->map);

		if (r == -EBUSY)
			return;
		if (r < 0)
			k->error = r;
		else
			k->next++;
	}
}

static void undo_some(struct ktables *k)
{
	while (k->next > 0 && k->out < MAX_OUT) {
		struct op *op = &k->ops[k->next - 1];
		int r = op->applied ? ask(k, op, !op->map) : 0;

		if (r == -EBUSY)
			return;
		k->broken |= r < 0;
		unplan(k, op);
		k->next--;
	}
}

int ktables_go(struct ktables *k)
{
	if (k->phase == PHASE_DOING) {
		do_some(k);
		if (!k->error && k->next == k->n_ops && !k->out) {
			forget(k, true);
			return 0;
		}
		if (k->error && !k->out) {
			k->phase = PHASE_UNDOING;
			k->next = k->n_ops;
		}
	}
	if (k->phase == PHASE_UNDOING) {
		undo_some(k);
		if (!k->next && !k->out) {
			forget(k, false);
			return k->broken ? -ENOTRECOVERABLE : k->error;
		}
	}
	return 1;
}

/* ---- its end ---- */

static void free_areas(struct ktables *k)
{
	struct itree_node *n;

	while ((n = itree_first(&k->areas))) {
		itree_erase(&k->areas, n);
		free(area_of(n));
	}
}

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
	if (!k)
		return NULL;
	if (k->phase != PHASE_IDLE) {
		for (size_t i = k->phase == PHASE_DOING ? k->n_ops : k->next; i > 0; i--)
			unplan(k, &k->ops[i - 1]);
		forget(k, false);
	}
	free_areas(k);
	free(k);
	return NULL;
}
