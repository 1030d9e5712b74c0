/* SPDX-License-Identifier: MIT */
/*
 * What is on a device's slots when somebody has forgotten it: the daemon, which was killed, or the device, at a reset and at its
 * end. What was done is done, what had begun ended or goes on, the rest waits again; nothing runs twice.
 */
#include <errno.h>

#include "base/util.h"
#include "service/adopt.h"
#include "service/persist.h"

#define ADOPT_LOOK_US 5000 /* how often, while a device is taken over; its interrupts are looked at, too */

/* ---- what was on slots before this process ---- */

/* Jobs that the device was not told of are on no slot. */
static void take_back(struct device *d, struct run *run, uint64_t told)
{
	struct ctx *ctx = run->ctx;
	uint32_t before = run->count;

	while (run->count && run_job(run, run->count - 1)->mark > told)
		run->count--;
	if (run->count == before)
		return;
	ctx->put = run_job(run, run->count)->number - 1;
	persist_unput(ctx);
}

static bool is_going(const struct ctx *ctx)
{
	return ctx->life != CTX_ALIVE || ctx->lost_why;
}

int run_adopt(struct device *d)
{
	struct engine_slot look;
	struct context *b;

	for (unsigned int s = 0; s < d->n_slots && d->adoption->reset != RESET_SORTED; s++) {
		struct run *run = &d->runs[s];

		if (d->eops->look(d->engine, s, &look) < 0)
			return -EPROTO;
		if (run->count)
			take_back(d, run, look.told);
		if (!run->count || run->ctx->life != CTX_ALIVE) {
			*run = (struct run){0};
			continue;
		}
		run->head_since = util_now_ns();
		sched_adopt(d->sched, s, run->ctx->se, run->count);
	}
	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		if (!is_going(b->tag))
			run_jobs_changed(b->tag);
	return 0;
}

/* Whatever the last control was, this one holds. Contexts that are going have their own. */
void run_go_on(struct device *d)
{
	for (unsigned int s = 0; s < d->n_slots; s++) {
		struct run *run = &d->runs[s];

		run->held_by = NULL;
		run->owes_terminate = false;
		if (!run->stopping)
			run_control(d, s, ENGINE_RESUME);
	}
	faults_look(d);
	if (d->state == DEVICE_READY)
		run_progress(d);
}

void run_watch(struct device *d)
{
	static const struct timeval soon = {0, ADOPT_LOOK_US};

	if (!evtimer_pending(d->tick, NULL))
		evtimer_add(d->tick, &soon);
}

/* ---- after a reset, and after the end ---- */

/* Jobs that were done are done; the one that had begun ended unfinished; the rest goes back to wait. */
static void sort_out(struct device *d, unsigned int slot)
{
	struct run *run = &d->runs[slot];
	struct ctx *ctx = run->ctx;
	struct engine_slot look;

	if (d->eops->look(d->engine, slot, &look) < 0) {
		device_fail(d, "a slot's marks make no sense");
		return;
	}
	if (!run->count || ctx->life != CTX_ALIVE)
		return;
	run_slot_progress(d, slot, &look);
	if (run->count) {
		struct put_job *first = run_job(run, 0);

		ctx->put = first->number - 1;
		if (look.begun >= first->mark) {
			ctx->put = first->number;
			event_reset(ctx, first->number);
			__atomic_store_n(&ctx->line->done, first->number, __ATOMIC_RELEASE);
			run_job_ended(ctx, first->number);
		}
		persist_unput(ctx);
		run_jobs_changed(ctx);
	}
}

/* Whoever was being stopped is stopped. Its slot is anybody's from now on. */
static void forget_stopping(struct device *d)
{
	struct context *books;

	TAILQ_FOREACH (books, &d->books->contexts, in_device) {
		struct ctx *ctx = books->tag;

		if (ctx)
			ctx->slot = -1;
	}
}

static bool was_sorted_out(const struct device *d)
{
	return d->adoption && d->adoption->reset == RESET_SORTED;
}

void run_after_reset(struct device *d)
{
	/* Once that is written down, marks may be those of before or of after the restart. */
	for (unsigned int s = 0; s < d->n_slots && d->state == DEVICE_RESETTING && !was_sorted_out(d); s++)
		sort_out(d, s);
	if (d->state != DEVICE_RESETTING)
		return;
	persist_reset(d, RESET_SORTED);
	for (unsigned int s = 0; s < d->n_slots; s++) {
		trace_run_end(d, s, PASID_TRACE_END_RESET);
		run_count_time(&d->runs[s], util_now_ns());
		d->runs[s] = (struct run){0};
	}
	faults_forget(d);
	forget_stopping(d);
	sched_reset(d->sched);
	d->eops->restart(d->engine);
	persist_reset(d, RESET_OVER);
	run_invalidated(d);
}

void run_forget(struct device *d)
{
	for (unsigned int s = 0; s < ARRAY_SIZE(d->runs); s++) {
		trace_run_end(d, s, PASID_TRACE_END_GONE);
		/* The process may only have been stopped, and end that job later. */
		if (d->runs[s].ctx)
			d->runs[s].ctx->books->line_retired = true;
		d->runs[s] = (struct run){0};
	}
	d->past = faults_end(d->past);
	d->refused_since = 0;
	if (d->sched)
		sched_reset(d->sched); /* nothing runs any more, so that contexts may go */
	evtimer_del(d->tick);
}
