/* SPDX-License-Identifier: MIT */
/*
 * Whose a fault is. It is charged to a context only if it can be nobody else's: what cannot be known is logged, and harms
 * nobody, or one client could have another blamed.
 *
 * A GPU's own MMU stalls the slot and names address space and job, so that it is enough to look whether that is what runs
 * there. An IOMMU that walks tables of ours names the device and the address, and its records come late: the context may
 * have been moved away by then. With a PASID in the record the context follows. Without, what the last jobs on the slot
 * have to do with that address tells (engine_ops.touches): if those of one context do, and its tables refuse the access, it
 * is that one.
 */
#include "service/private.h"

#include <inttypes.h>

#include "base/util.h"

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

/* Would its tables refuse it? If not it was somebody else, or it is too late to know. */
static bool refuses(const struct ctx *ctx, const struct translator_fault *f)
{
	struct pgtable_leaf leaf;

	return ctx->pt &&
	       (!pgtable_walk(ctx->pt, f->addr, &leaf) || f->access == 4 || (f->access == 2 && !leaf.writable));
}

/* The newest of the last jobs that may have made that access; NULL: none, or those of several contexts. */
static const struct past_job *suspect(const struct device *d, const struct translator_fault *f)
{
	const struct past_job *found = NULL;

	for (uint32_t i = 0; i < ENGINE_REMEMBERED; i++) {
		const struct past_job *p = &d->past[f->slot].put[i];

		if (!p->mark || !d->eops->touches(d->engine, f->slot, p->mark, f->addr))
			continue;
		if (found && found->ctx != p->ctx)
			return NULL;
		if (!found || p->mark > found->mark)
			found = p;
	}
	return found;
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
	struct ctx *ctx;

	if (f->code == PASID_FAULT_OTHER)
		return NULL;
	if (f->pasid)
		return context_of(d, 0, f->pasid);
	p = d->eops->touches ? suspect(d, f) : NULL;
	if (!p)
		return NULL;
	f->job = p->number;
	ctx = context_of(d, p->ctx, 0);
	return ctx && refuses(ctx, f) ? ctx : NULL;
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
	if (r < 0)
		device_fail(d, "its fault queue makes no sense");
}
