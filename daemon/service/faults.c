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
#include "service/private.h"

#include <inttypes.h>

#include "base/util.h"

#define LOOKS_A_JOB 256u /* at mappings, when it is put on a slot */
#define LOOKS_A_SWITCH 8u
#define FAULTS_A_LOOK 64u /* then the loop goes on, so that a device that floods starves nobody */

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

	fault_log_add(&ctx->books->faults, &w, util_now_ns());
	event_fault(ctx);
	__atomic_add_fetch(&ctx->line->disrupted, 1, __ATOMIC_RELEASE);
}

static void log_stray(struct device *d, const struct translator_fault *f)
{
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

/* Is all of an access mapped, so that it cannot fault? Looks at a few mappings, and takes what is behind them for refused. */
static bool granted(const struct ctx *ctx, const struct engine_access *a, uint32_t *looks)
{
	uint64_t at = a->at.first;

	while (*looks) {
		const struct mapping *m = aspace_find(ctx->books->aspace, at);

		--*looks;
		if (!m || m->owner != ctx->books->id || (a->access == 2 && !m->writable))
			return false;
		if (m->node.last >= a->at.last)
			return true;
		at = m->node.last + 1;
	}
	return false;
}

static void refuse_part(struct past_job *p, struct range r)
{
	p->refused.first = r.first < p->refused.first ? r.first : p->refused.first;
	p->refused.last = r.last > p->refused.last ? r.last : p->refused.last;
}

static struct past_job *past_of(struct device *d, unsigned int slot, uint64_t mark)
{
	return &d->past[slot].put[mark % ENGINE_REMEMBERED];
}

void faults_put(struct device *d, unsigned int slot, const struct ctx *ctx, const struct put_job *put)
{
	struct past_job *p = past_of(d, slot, put->mark);
	uint32_t looks = LOOKS_A_JOB;
	struct engine_access a;

	*p = (struct past_job){put->mark, put->number, ctx->books->id, {UINT64_MAX, 0}};
	d->past[slot].last = put->mark;
	if (!device_nested(d) || !d->eops->names)
		return;
	for (uint32_t i = 0; d->eops->names(d->engine, slot, put->mark, i, &a); i++)
		if (a.access && !granted(ctx, &a, &looks))
			refuse_part(p, a.at);
}

void faults_unmapped(const struct ctx *ctx, struct range r)
{
	struct device *d = ctx->dev;

	for (unsigned int s = 0; device_nested(d) && s < d->n_slots; s++) {
		struct run *run = &d->runs[s];

		for (uint32_t i = 0; run->ctx == ctx && i < run->count; i++)
			refuse_part(past_of(d, s, run->jobs[(run->head + i) % RUN_JOBS].mark), r);
	}
}

static bool makes_access(const struct device *d, const struct past_job *p, const struct translator_fault *f)
{
	struct engine_access a;

	for (uint32_t i = 0; d->eops->names(d->engine, f->slot, p->mark, i, &a); i++)
		if (a.access == f->access && f->addr >= a.at.first && f->addr <= a.at.last)
			return true;
	return false;
}

/* The newest of the last jobs that may have made that access and been refused, of those above a mark or up to it; *several:
 * they are more than one context's. */
static const struct past_job *suspect(const struct device *d, const struct translator_fault *f, bool settled,
				      bool *several)
{
	const struct past *past = &d->past[f->slot];
	const struct past_job *found = NULL;

	for (uint32_t i = 0; i < ENGINE_REMEMBERED; i++) {
		const struct past_job *p = &past->put[i];

		if (!p->mark || (p->mark <= past->settled) != settled || f->addr < p->refused.first ||
		    f->addr > p->refused.last || !makes_access(d, p, f))
			continue;
		*several |= found && found->ctx != p->ctx;
		if (!found || p->mark > found->mark)
			found = p;
	}
	return found;
}

/* Those that were settled count only if there are no others. */
static const struct past_job *guilty(const struct device *d, const struct translator_fault *f)
{
	bool several = false;
	const struct past_job *p = suspect(d, f, false, &several);

	if (!p)
		p = suspect(d, f, true, &several);
	return several ? NULL : p;
}

/* Of one transfer there are many records. */
static bool told(const struct ctx *ctx, const struct translator_fault *f)
{
	return f->job && ctx->told.job == f->job && ctx->told.access == f->access && ctx->told.code == f->code &&
	       ctx->told.addr / 4096 == f->addr / 4096;
}

static struct ctx *whose(struct device *d, struct translator_fault *f)
{
	const struct past_job *p;

	if (f->code == PASID_FAULT_OTHER)
		return NULL;
	if (f->pasid)
		return context_of(d, 0, f->pasid);
	p = d->eops->names ? guilty(d, f) : NULL;
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
	ctx->told = *f;
	faults_charge(ctx, f);
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
	if (d->state == DEVICE_READY && !d->faults_left)
		d->past[slot].settled = d->past[slot].last;
}
