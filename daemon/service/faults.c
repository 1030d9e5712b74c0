/* SPDX-License-Identifier: MIT */
/*
 * Whose a fault is. It is charged to a context only if it can be nobody else's: what cannot be known is logged, and harms
 * nobody, or one client could have another blamed.
 *
 * A GPU's own MMU stalls the slot and names address space and job, so that it is enough to look whether that is what runs
 * there. An IOMMU that walks tables of ours names the device and the address, and its records come late: the context may
 * have been moved away by then. With a PASID in the record the context follows. Without, a driver that reads the commands
 * knows what the last jobs access (engine_ops.names). One whose accesses were all mapped for as long as it was on the slot
 * has not faulted. If there are others that make this very access, and they are one context's, it is that one. Of jobs that were
 * done before the last context came, when no record was left, there are hardly any to come: they count after all others.
 */
#include "service/persist.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"

#define LOOKS_A_JOB 512u /* at what it accesses and at mappings, when it is put on a slot or something is unmapped */
#define LOOKS_A_SWITCH 8u
#define FAULTS_A_LOOK 64u /* then the loop goes on, so that a device that floods starves nobody */

/* ctx NULL: nobody is charged; slot -1: nobody knows which. */
static void trace_fault(struct device *d, const struct ctx *ctx, int slot, const struct translator_fault *f)
{
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_FAULT,
						    .slot = (uint16_t)(slot + 1),
						    .ctx = ctx ? ctx->books->id : 0,
						    .job = f->job,
						    .a = f->addr,
						    .b = f->access,
						    .c = f->code});
}

void faults_charge(struct ctx *ctx, const struct translator_fault *f)
{
	struct mapping *near = aspace_nearest(ctx->books->aspace, ctx->books->id, f->addr);
	struct pasid_wire_fault w = {
		.job = f->job,
		.addr = f->addr,
		.access = f->access,
		.code = f->code,
		.near_first = near ? near->node.first : 0,
		.near_last = near ? near->node.last : 0,
	};

	trace_fault(ctx->dev, ctx, ctx->se ? sched_resident(ctx->dev->sched, ctx->se) : -1, f);
	ctx->dev->faults++;
	ctx->last_fault = *fault_log_add(&ctx->books->faults, &w, util_now_ns());
	persist_counts(ctx);
	event_fault(ctx);
	__atomic_add_fetch(&ctx->line->disrupted, 1, __ATOMIC_RELEASE);
}

static void log_stray(struct device *d, const struct translator_fault *f)
{
	trace_fault(d, NULL, f->slot < d->n_slots ? (int)f->slot : -1, f);
	d->strays++;
	tell_device(d);
	log_about(&(struct log_about){.device = d->config->name}, &d->stray, LOG_WARN,
		  "device %s: fault at %#" PRIx64 " on slot %u, asid %u, pasid %u, job %" PRIu64
		  " belongs to no running context; nobody is charged",
		  d->config->name, f->addr, f->slot, f->asid, f->pasid, f->job);
}

/* ---- a GPU's own MMU ---- */

/* Only where the slot waits is there something to end. */
static void route_stalled(struct device *d, const struct translator_fault *f)
{
	if (!run_is_on(d, f->slot, f->asid, f->job)) {
		log_stray(d, f);
		return;
	}
	faults_charge(d->runs[f->slot].ctx, f);
	run_end_job(d, f->slot);
}

/* ---- an IOMMU ---- */

static struct ctx *context_of(const struct device *d, uint32_t id, uint32_t pasid)
{
	struct context *books;

	TAILQ_FOREACH (books, &d->books->contexts, in_device)
		if (books->tag && (books->id == id || (pasid && books->pasid == pasid)))
			return books->tag;
	return NULL;
}

static void refuse_part(struct past_job *p, uint64_t first, uint64_t last, uint32_t access)
{
	struct engine_access *a = p->n_refused ? &p->refused[p->n_refused - 1] : NULL;

	p->around.first = first < p->around.first ? first : p->around.first;
	p->around.last = last > p->around.last ? last : p->around.last;
	if (a && a->access == access && first >= a->at.first && first <= a->at.last + 1) {
		a->at.last = last > a->at.last ? last : a->at.last;
		return;
	}
	if (p->n_refused == PAST_REFUSED) {
		p->vague = true;
		return;
	}
	p->refused[p->n_refused++] = (struct engine_access){{first, last}, access};
}

/* The parts of an access that are not mapped, or not for it. False: there are too many mappings to look at. */
static bool refuse_parts(struct past_job *p, const struct ctx *ctx, const struct engine_access *a, uint32_t *looks)
{
	uint64_t at = a->at.first;

	while (*looks) {
		struct itree_node *n = itree_at_or_above(&ctx->books->aspace->tree, at);
		const struct mapping *m = n ? container_of(n, const struct mapping, node) : NULL;
		uint64_t first = m && m->node.first <= a->at.last ? m->node.first : a->at.last + 1;
		uint64_t last;

		--*looks;
		if (first > at)
			refuse_part(p, at, first - 1, a->access);
		if (first > a->at.last)
			return true;
		first = first > at ? first : at;
		last = m->node.last < a->at.last ? m->node.last : a->at.last;
		if (m->owner != ctx->books->id || (a->access == 2 && !m->writable))
			refuse_part(p, first, last, a->access);
		if (last == a->at.last)
			return true;
		at = last + 1;
	}
	return false;
}

static void refuse_what_is_not_mapped(struct device *d, unsigned int slot, const struct ctx *ctx, struct past_job *p)
{
	uint32_t looks = LOOKS_A_JOB;
	struct engine_access a;

	for (uint32_t i = 0; d->eops->names(d->engine, slot, p->mark, i, &a); i++) {
		if (looks && !a.access) {
			looks--;
		} else if (!refuse_parts(p, ctx, &a, &looks)) {
			p->vague = true;
			return;
		}
	}
}

static struct past_job *past_of(struct device *d, unsigned int slot, uint64_t mark)
{
	return &d->past[slot].put[mark % PAST_JOBS];
}

void faults_put(struct device *d, unsigned int slot, const struct ctx *ctx, const struct put_job *put)
{
	struct past_job *p;

	if (!d->past)
		return;
	p = past_of(d, slot, put->mark);
	p->mark = put->mark;
	p->number = put->number;
	p->ctx = ctx->books->id;
	p->around = (struct range){UINT64_MAX, 0};
	p->n_refused = 0;
	p->vague = false;
	d->past[slot].last = put->mark;
	refuse_what_is_not_mapped(d, slot, ctx, p);
}

void faults_unmapped(const struct ctx *ctx)
{
	struct device *d = ctx->dev;

	if (!d->past)
		return;
	for (unsigned int s = 0; s < d->n_slots; s++) {
		struct run *run = &d->runs[s];

		for (uint32_t i = 0; run->ctx == ctx && i < run->count; i++)
			refuse_what_is_not_mapped(d, s, ctx, past_of(d, s, run_job(run, i)->mark));
	}
}

static bool is_refused(const struct past_job *p, const struct translator_fault *f)
{
	if (f->addr < p->around.first || f->addr > p->around.last)
		return false;
	for (uint32_t i = 0; i < p->n_refused; i++)
		if (p->refused[i].access == f->access && f->addr >= p->refused[i].at.first &&
		    f->addr <= p->refused[i].at.last)
			return true;
	return false;
}

/* The newest of the last jobs that may have been refused that access, of those that are settled or of the others; *unsure: they
 * are more than one context's, or there may be more. */
static const struct past_job *suspect(const struct device *d, const struct translator_fault *f, bool settled,
				      bool *unsure)
{
	const struct past *past = &d->past[f->slot];
	const struct past_job *found = NULL;

	for (uint32_t i = 0; i < PAST_JOBS; i++) {
		const struct past_job *p = &past->put[i];

		if (!p->mark || (p->mark <= past->settled) != settled)
			continue;
		*unsure |= p->vague;
		if (!is_refused(p, f))
			continue;
		*unsure |= found && found->ctx != p->ctx;
		if (!found || p->mark > found->mark)
			found = p;
	}
	return found;
}

/* Those that were settled count only if there are no others. */
static const struct past_job *guilty(const struct device *d, const struct translator_fault *f)
{
	bool unsure = false;
	const struct past_job *p = suspect(d, f, false, &unsure);

	if (!p)
		p = suspect(d, f, true, &unsure);
	return unsure ? NULL : p;
}

/* Of one transfer there are many records. */
static bool told(const struct ctx *ctx, const struct translator_fault *f)
{
	for (size_t i = 0; f->job && i < ARRAY_SIZE(ctx->told); i++) {
		const struct translator_fault *t = &ctx->told[i];

		if (t->job == f->job && t->access == f->access && t->code == f->code &&
		    t->addr / 4096 == f->addr / 4096)
			return true;
	}
	return false;
}

static struct ctx *whose(struct device *d, struct translator_fault *f)
{
	const struct past_job *p;

	if (f->code == PASID_FAULT_OTHER)
		return NULL;
	if (f->pasid)
		return context_of(d, 0, f->pasid);
	p = d->past ? guilty(d, f) : NULL;
	if (!p)
		return NULL;
	f->job = p->number;
	return context_of(d, p->ctx, 0);
}

static void route_late(struct device *d, struct translator_fault *f)
{
	struct ctx *ctx = whose(d, f);

	if (!ctx) {
		log_stray(d, f);
		return;
	}
	if (told(ctx, f))
		return;
	ctx->told[ctx->n_told++ % ARRAY_SIZE(ctx->told)] = *f;
	faults_charge(ctx, f);
}

int faults_begin(struct device *d)
{
	if (!device_nested(d) || !d->eops->names)
		return 0;
	d->past = calloc(d->n_slots, sizeof(*d->past));
	return d->past ? 0 : -ENOMEM;
}

void faults_forget(struct device *d)
{
	if (d->past)
		memset(d->past, 0, d->n_slots * sizeof(*d->past));
}

struct past *faults_end(struct past *past)
{
	free(past);
	return NULL;
}

/* ---- both ---- */

void faults_look(struct device *d)
{
	struct translator_fault f;
	uint64_t lost = 0;
	int r = 0;

	if (!d->tr->ops->next_fault)
		return;
	for (uint32_t i = 0; i < FAULTS_A_LOOK; i++) {
		r = d->tr->ops->next_fault(d->tr, &f, &lost);
		d->faults_left = r > 0;
		if (r <= 0)
			break;
		if (f.stalled)
			route_stalled(d, &f);
		else if (device_nested(d))
			route_late(d, &f);
		else
			log_stray(d, &f);
	}
	if (lost)
		log_about(&(struct log_about){.device = d->config->name}, &d->stray, LOG_WARN,
			  "device %s: %" PRIu64 " faults lost, its queue was full", d->config->name, lost);
	if (d->faults_left)
		device_poke(d);
	if (r < 0)
		device_fail(d, "its fault queue makes no sense");
}

void faults_settle(struct device *d, unsigned int slot)
{
	uint32_t looks = 0;

	do
		faults_look(d);
	while (d->state == DEVICE_READY && d->faults_left && ++looks < LOOKS_A_SWITCH);
	if (d->state == DEVICE_READY && !d->faults_left && d->past)
		d->past[slot].settled = d->past[slot].last;
}
