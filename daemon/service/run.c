/* SPDX-License-Identifier: MIT */
/*
 * What runs on a device's slots: jobs are put there when the scheduler says so, their marks are watched, jobs beyond
 * their limit are stopped. The device's words are checked by the engine; what they claim is believed only about the device
 * itself.
 */
#include "service/adopt.h"
#include "service/persist.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define NOWHERE_SURE "it is in nobody's address space for sure"

static void run_arm_tick(struct device *d);

uint64_t run_front_job(const struct device *d, unsigned int slot)
{
	const struct run *run = &d->runs[slot];

	return run->count ? run->jobs[run->head].number : 0;
}

/* The time that jobs of a context were on the slot is counted up to now. */
void run_count_time(struct run *run, uint64_t now)
{
	if (run->ctx && now > run->on_since)
		run->ctx->device_ns += now - run->on_since;
	run->on_since = now;
}

void run_jobs_changed(struct ctx *ctx)
{
	if (ctx->se)
		sched_set_jobs(ctx->dev->sched, ctx->se, (uint32_t)(ctx->books->submitted - ctx->put));
}

/* ---- putting jobs on slots ---- */

struct translator_space run_space(const struct ctx *ctx)
{
	return (struct translator_space){
		.pasid = ctx->books->pasid,
		.asid = ctx->books->asid,
		.root = ctx->pt ? pgtable_root(ctx->pt) : 0,
		.kernel = ctx->kt ? ktables_space(ctx->kt) : NULL,
	};
}

static int switch_to(struct device *d, unsigned int slot, struct ctx *ctx)
{
	const struct translator_space space = run_space(ctx);
	int r;

	/* What the last context's work left there. */
	if (d->nest.window.bytes)
		memset(d->nest.window.p, 0, d->nest.window.bytes);
	r = d->tr->ops->install(d->tr, slot, &space);

	d->runs[slot].installing = r > 0;
	/* What failed in the middle may be remembered all the same. */
	if (r >= 0 || r == -ECANCELED) {
		ids_installed(d->books->pasids, ctx->books->pasid);
		ids_installed(d->books->asids, ctx->books->asid);
	}
	if (r >= 0)
		r = d->eops->scrub(d->engine, slot);
	if (r < 0)
		return r;
	ctx->switches++;
	persist_counts(ctx);
	device_trace(d, (struct pasid_trace_record){
				.event = PASID_TRACE_SWITCH, .slot = (uint16_t)(slot + 1), .ctx = ctx->books->id});
	d->switches++;
	tell_changed(ctx, SERVICE_RUNS);
	tell_device(d);
	return 0;
}

/* The bytes of a submission, for a driver that reads them. False, and the first address that nothing is mapped at. */
static bool read_commands(struct ctx *ctx, const struct job *job, uint64_t *at)
{
	uint64_t done = 0;

	while (done < job->len) {
		const struct mapping *m = aspace_find(ctx->books->aspace, job->iova + done);
		const struct buffer_entry *e;
		uint64_t n;

		*at = job->iova + done;
		if (!m || m->owner != ctx->books->id)
			return false;
		e = container_of(m->buf, struct buffer_entry, buffer);
		n = m->node.last - *at + 1;
		if (n > job->len - done)
			n = job->len - done;
		/* A memfd that cannot shrink. */
		if (pread(((struct buf *)e->tag)->fd, ctx->dev->commands + done, n,
			  (off_t)(m->off + (*at - m->node.first))) != (ssize_t)n)
			return false;
		done += n;
	}
	return true;
}

void *run_window(const struct device *d, const struct ctx *ctx)
{
	return device_nested(d) ? d->nest.window.p : ctx->window.p;
}

/* What only a driver that reads the commands has to be given. A job whose commands are not there faults and is empty. */
static void prepare_job(struct ctx *ctx, const struct job *job, struct engine_job *ej)
{
	struct translator_fault f = {.access = 4, .code = PASID_FAULT_UNMAPPED, .job = job->number};

	ej->fence = 0;
	ej->commands = ctx->dev->commands;
	ej->window = run_window(ctx->dev, ctx);
	ej->window_iova = WINDOW_IOVA;
	if (read_commands(ctx, job, &f.addr))
		return;
	ej->len = 0;
	faults_charge(ctx, &f);
}

static int put_job(struct device *d, unsigned int slot, struct ctx *ctx)
{
	struct run *run = &d->runs[slot];
	const struct job *job = books_job(ctx->books, ctx->put + 1);
	struct put_job *put = run_job(run, run->count);
	struct engine_job ej = {
		.iova = job->iova,
		.len = job->len,
		.number = job->number,
		.fence = ctx->fence_bus,
	};
	int r;

	if (run->count == RUN_JOBS || run->count == d->eops->ring_jobs)
		return -EAGAIN;
	if (d->eops->reads)
		prepare_job(ctx, job, &ej);
	r = d->eops->submit(d->engine, slot, &ej, &put->mark);
	if (r < 0)
		return r;
	put->number = job->number;
	persist_put(ctx, slot, put);
	faults_put(d, slot, ctx, put);
	run->ctx = ctx;
	if (!run->count++) {
		run->head_since = run->on_since = util_now_ns();
		trace_slot(d, slot, PASID_TRACE_RUN, 0);
		trace_slot(d, slot, PASID_TRACE_JOB, job->number);
	}
	ctx->put = job->number;
	return 0;
}

/* False: nobody's now; the translator says when. */
static bool take_turn(struct device *d, const struct sched_turn *turn)
{
	struct ctx *ctx = turn->tag;
	uint32_t begun = 0;
	int r = 0;

	if (turn->switched && device_nested(d)) {
		faults_settle(d, turn->slot);
		if (d->state != DEVICE_READY)
			return false;
	}
	/* An idle slot has done all its words, so that its ring has room, unless the device lies about it. */
	if (turn->switched)
		r = switch_to(d, turn->slot, ctx);
	if (r == -ECANCELED || (r == -EAGAIN && d->tr->ops->ready)) {
		/* Nobody is there, and nobody is believed to be. */
		sched_slot_service(d->sched, turn->slot, true);
		if (r == -ECANCELED)
			ctx_lose(ctx, PASID_LOST_DAEMON, 0);
		return r == -ECANCELED; /* then it is the next one's turn */
	}
	if (r < 0) {
		device_fail(d, r == -EIO ? NOWHERE_SURE : "an idle slot's ring is full");
		return false;
	}
	while (begun < turn->jobs && put_job(d, turn->slot, ctx) == 0)
		begun++;
	/* The scheduler would offer the same turn for ever. */
	if (!begun && !d->runs[turn->slot].count) {
		device_fail(d, "an idle slot's ring is full");
		return false;
	}
	if (!d->runs[turn->slot].installing)
		d->eops->kick(d->engine, turn->slot);
	run_jobs_changed(ctx);
	sched_begun(d->sched, turn->slot, begun);
	return true;
}

void run_installed(struct device *d)
{
	for (unsigned int s = 0; s < d->n_slots; s++) {
		struct run *run = &d->runs[s];
		struct translator_space space = {0};
		int r;

		if (!run->installing)
			continue;
		if (run->ctx)
			space = run_space(run->ctx);
		r = d->tr->ops->ready(d->tr, s, &space);
		if (r == 0)
			continue;
		if (r == -EIO) {
			device_fail(d, NOWHERE_SURE);
			return;
		}
		if (r < 0 && run->ctx && run->ctx->life == CTX_ALIVE)
			ctx_lose(run->ctx, PASID_LOST_DAEMON, 0);
		run->installing = false;
		if (r > 0 && run->ctx && !run->stopping) {
			run->head_since = util_now_ns();
			d->eops->kick(d->engine, s);
		}
	}
}

void run_schedule(struct device *d)
{
	struct sched_turn turn;

	if (d->state != DEVICE_READY)
		return;
	while (d->state == DEVICE_READY && sched_next(d->sched, &turn) && take_turn(d, &turn))
		;
	if (d->state == DEVICE_READY)
		run_arm_tick(d);
}

/* ---- watching them ---- */

void run_job_ended(struct ctx *ctx, uint64_t number)
{
	books_jobs_done(ctx->books, number);
	persist_jobs_done(ctx, number);
	tell_changed(ctx, SERVICE_JOBS | SERVICE_RUNS);
	fence_line_wake(ctx->line);
}

void run_slot_progress(struct device *d, unsigned int slot, const struct engine_slot *look)
{
	struct run *run = &d->runs[slot];
	struct ctx *ctx = run->ctx;
	uint64_t last = 0, first = run_front_job(d, slot);
	uint32_t before = run->count;

	while (run->count && look->done >= run_job(run, 0)->mark) {
		last = run_job(run, 0)->number;
		run->head = (run->head + 1) % RUN_JOBS;
		run->count--;
		run->head_since = 0;
	}
	if (!last)
		return;
	run_count_time(run, util_now_ns());
	if (d->eops->reads)
		__atomic_store_n(&ctx->line->done, last, __ATOMIC_RELEASE);
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_JOB_END,
						    .slot = (uint16_t)(slot + 1),
						    .ctx = ctx->books->id,
						    .job = last,
						    .a = first});
	run_job_ended(ctx, last);
	if (run->count) {
		run->head_since = run->on_since;
		trace_slot(d, slot, PASID_TRACE_JOB, run_front_job(d, slot));
		sched_ended(d->sched, slot, before - run->count);
	} else {
		trace_run_end(d, slot, PASID_TRACE_END_IDLE);
		run->ctx = NULL;
		sched_idle(d->sched, slot);
	}
}

/* After RESUME or TERMINATE it may run; one that runs on after PAUSE or STOP has said that it obeyed and did not. */
static bool must_be_still(const struct run *run)
{
	return run->stopping || run->held_by;
}

void run_progress(struct device *d)
{
	struct engine_slot look;

	for (unsigned int s = 0; s < d->n_slots; s++) {
		if (!d->runs[s].count && !d->runs[s].asked_at)
			continue;
		if (d->eops->look(d->engine, s, &look) < 0) {
			device_fail(d, "a slot's marks make no sense");
			return;
		}
		if (look.settled && (look.still || !must_be_still(&d->runs[s])))
			d->runs[s].asked_at = 0;
		/* What a slot drops because it is told to stop is not done; its context looks after that. */
		if (d->runs[s].ctx && d->runs[s].ctx->life != CTX_ALIVE)
			continue;
		run_slot_progress(d, s, &look);
	}
}

/* ---- controls and deadlines ---- */

int run_invalidate(struct device *d, uint32_t asid, struct range *r, size_t n, uint64_t *ticket)
{
	int ret = translator_invalidate(d->tr, asid, r, n, ticket);
	uint64_t done;

	if (ret == -EIO)
		run_refused(d, asid);
	if (ret < 0)
		return ret;
	if (d->refused_asid == asid)
		d->refused_since = 0;
	if (d->ticket_asked <= d->ticket_done)
		d->ticket_since = util_now_ns();
	d->ticket_asked = *ticket;
	/* Some answer at once. One that makes no sense is looked at again, when that can be dealt with. */
	if (d->tr->ops->invalidated(d->tr, &done) == 0 && done >= *ticket)
		d->ticket_done = done;
	run_arm_tick(d);
	return 0;
}

void run_refused(struct device *d, uint32_t asid)
{
	if (!d->refused_since) {
		d->refused_since = util_now_ns();
		d->refused_asid = asid;
	}
	run_arm_tick(d);
}

void run_invalidated(struct device *d)
{
	uint64_t before = d->ticket_done;

	if (!d->tr->ops->invalidated)
		return;
	if (d->tr->ops->invalidated(d->tr, &d->ticket_done) < 0)
		device_fail(d, "its invalidation mark makes no sense");
	else if (d->ticket_done != before)
		d->ticket_since = util_now_ns();
}

void run_hold(struct device *d, struct ctx *by, bool global)
{
	for (unsigned int s = 0; s < d->n_slots; s++) {
		/* One that is stopping is still soon by itself, and has nothing left to hold. */
		if (!d->runs[s].count || d->runs[s].stopping || !(global || d->runs[s].ctx == by))
			continue;
		d->runs[s].held_by = by;
		run_control(d, s, ENGINE_PAUSE);
	}
}

bool run_held_still(struct device *d, const struct ctx *by)
{
	bool global = d->books->traits.global;

	for (unsigned int s = 0; s < d->n_slots; s++)
		if ((d->runs[s].held_by == by || (global && d->runs[s].stopping)) && !run_settled(d, s))
			return false;
	return true;
}

void run_release(struct device *d, const struct ctx *by)
{
	for (unsigned int s = 0; s < d->n_slots; s++) {
		struct run *run = &d->runs[s];

		if (run->held_by != by)
			continue;
		run_control(d, s, run->owes_terminate ? ENGINE_TERMINATE : ENGINE_RESUME);
		run->held_by = NULL;
		run->owes_terminate = false;
	}
}

/* Jobs of a slot whose address space never came: its device is not told of them, and after a stop nobody could say so. */
static void take_back_untold(struct device *d, unsigned int slot)
{
	struct run *run = &d->runs[slot];

	if (!run->installing || !run->count)
		return;
	run->ctx->put = run_front_job(d, slot) - 1;
	run->count = 0;
	persist_unput(run->ctx);
}

void run_stop(struct device *d, unsigned int slot)
{
	take_back_untold(d, slot);
	sched_slot_service(d->sched, slot, false);
	d->runs[slot].held_by = NULL;
	d->runs[slot].owes_terminate = false;
	d->runs[slot].stopping = true;
	run_control(d, slot, ENGINE_STOP);
}

bool run_is_on(const struct device *d, unsigned int slot, uint32_t asid, uint64_t job)
{
	const struct run *run = &d->runs[slot];

	if (!run->ctx || run->stopping || run->ctx->books->asid != asid)
		return false;
	for (uint32_t i = 0; i < run->count; i++)
		if (run_job(run, i)->number == job)
			return true;
	return false;
}

void run_end_job(struct device *d, unsigned int slot)
{
	struct run *run = &d->runs[slot];

	if (run->held_by)
		run->owes_terminate = true;
	else
		run_control(d, slot, ENGINE_TERMINATE);
}

void run_stopped(struct device *d, unsigned int slot)
{
	trace_run_end(d, slot, PASID_TRACE_END_STOPPED);
	run_count_time(&d->runs[slot], util_now_ns());
	d->runs[slot] = (struct run){0};
	persist_stopped(d, slot);
	sched_slot_service(d->sched, slot, true);
}

void run_control(struct device *d, unsigned int slot, enum engine_control what)
{
	d->eops->control(d->engine, slot, what);
	d->runs[slot].asked_at = util_now_ns();
	run_arm_tick(d);
}

bool run_settled(struct device *d, unsigned int slot)
{
	struct engine_slot look;

	return d->eops->look(d->engine, slot, &look) == 0 && look.settled && look.still;
}

static void run_arm_tick(struct device *d)
{
	uint32_t ms = d->config->job_limit_ms < d->config->answer_ms ? d->config->job_limit_ms : d->config->answer_ms;
	struct timeval tv;
	bool any = d->ticket_asked > d->ticket_done || d->refused_since;

	if (evtimer_pending(d->tick, NULL))
		return;
	for (unsigned int s = 0; s < d->n_slots && !any; s++)
		any = d->runs[s].count || d->runs[s].asked_at;
	if (!any)
		return;
	ms = ms / 8 < 5 ? 5 : ms / 8 > 250 ? 250 : ms / 8;
	tv = (struct timeval){ms / 1000, (ms % 1000) * 1000};
	evtimer_add(d->tick, &tv);
}

static void slot_hung(struct device *d, unsigned int slot)
{
	struct run *run = &d->runs[slot];
	struct ctx *ctx = run->ctx;

	log_about(
		&(struct log_about){d->config->name, ctx->books->id, ctx->books->client->pid, ctx->books->client->uid},
		&d->hung, LOG_WARN,
		"device %s: job %" PRIu64 " of context %u (pid %d, uid %u) ran beyond %u ms on slot %u; it is stopped",
		d->config->name, run_job(run, 0)->number, ctx->books->id, ctx->books->client->pid,
		ctx->books->client->uid, d->config->job_limit_ms, slot);
	ctx_lose(ctx, PASID_LOST_HANG, run_job(run, 0)->number);
}

/* Whoever runs there is guilty, whether a limit or a change of its own tables asked for the control: a job that could
 * have the device reset and go on would do it again. */
static void slot_disobeys(struct device *d, unsigned int slot)
{
	struct run *run = &d->runs[slot];

	if (run->count && run->ctx->life == CTX_ALIVE)
		ctx_lose(run->ctx, PASID_LOST_HANG, run_job(run, 0)->number);
	device_reset(d, "a slot does not obey");
}

void run_tick(struct device *d)
{
	uint64_t now = util_now_ns();

	if (d->adoption) {
		adopt_go_on(d);
		if (d->adoption)
			run_watch(d);
		return;
	}
	if (d->state != DEVICE_READY)
		return;
	faults_look(d);
	if (d->state == DEVICE_READY)
		run_progress(d);
	if (d->state == DEVICE_READY)
		run_invalidated(d);
	if (d->state == DEVICE_READY && d->ticket_asked > d->ticket_done && now > d->ticket_since &&
	    now - d->ticket_since > d->config->answer_ms * 1000000ull)
		device_reset(d, "it does not finish an invalidation");
	if (d->state == DEVICE_READY && d->refused_since && now > d->refused_since &&
	    now - d->refused_since > d->config->answer_ms * 1000000ull)
		device_fail(d, "its IOMMU does not forget what it was told to");
	for (unsigned int s = 0; s < d->n_slots && d->state == DEVICE_READY; s++) {
		struct run *run = &d->runs[s];

		if (run->asked_at && now > run->asked_at && now - run->asked_at > d->config->answer_ms * 1000000ull)
			slot_disobeys(d, s);
		else if (run->count && !run->installing && run->ctx->life == CTX_ALIVE && now > run->head_since &&
			 now - run->head_since > d->config->job_limit_ms * 1000000ull)
			slot_hung(d, s);
	}
	if (d->state != DEVICE_READY)
		return;
	device_poke(d);
	run_arm_tick(d);
}
