/* SPDX-License-Identifier: MIT */
/*
 * What a device behind an SMMU that walks our tables (mode `nested`) has beside what all have: a second stage, which is the
 * device's bus addresses; context descriptors in it; and in every address space, outside of what clients may map, what the
 * device itself needs: the driver's window, and where its message-signalled interrupts are written.
 *
 * One window serves all contexts. It is at the same address in all of them, and is cleared when another one is installed.
 */
#include "service/adopt.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

/* ---- its mode is settled ---- */

static void go_on(struct device *d, const char *why)
{
	if (d->adoption)
		adopt_prepared(d, why);
	else
		setup_begin(d, why);
}

static void settle(struct device *d, const char *why)
{
	/* Once it was used in one mode it stays there: what clients have is where it was then. */
	if (why && d->config->fallback && !d->layout.n_usable && !d->adoption) {
		d->mode = d->config->fallback;
		log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_WARN,
			  "device %s: mode \"nested\" cannot be had: %s; it is used in mode \"exclusive\"",
			  d->config->name, why);
		why = NULL;
	}
	go_on(d, why);
}

static void on_prepared(void *arg, int err)
{
	struct device *d = arg;

	if (err == -ENODEV)
		return; /* gone: lost follows */
	if (err == 0)
		settle(d, smmu_judge(&d->nest.smmu, &d->nest.traits));
	else if (err == -EOPNOTSUPP)
		settle(d, d->tops->nested->why(d->t));
	else
		go_on(d, d->tops->nested->why(d->t)[0] ? d->tops->nested->why(d->t) : strerror(-err));
}

void nest_prepare(struct device *d)
{
	int r;

	if (!d->tops->nested) {
		settle(d, "mode \"nested\" takes an IOMMU that the kernel drives (vfio:)");
		return;
	}
	r = d->tops->nested->prepare(d->t, &d->nest.smmu, on_prepared, d);
	if (r < 0)
		on_prepared(d, r);
}

/* ---- memory ---- */

/* Of PASIDs that the device's accesses carry; 0: they carry none, and there is one descriptor. */
static unsigned int substream_bits(const struct device *d)
{
	unsigned int bits = d->eops->tags_pasid ? d->tops->spaces->pasid_bits(d->t) : 0;

	return bits < d->nest.traits.substream_bits ? bits : d->nest.traits.substream_bits;
}

uint64_t nest_descriptor_bytes(const struct device *d)
{
	return cdtable_bytes(substream_bits(d), d->nest.traits.two_levels);
}

int nest_make_memory(struct device *d)
{
	struct nest *n = &d->nest;
	int r = shm_init(&n->descriptors, "pasidd-descriptors", nest_descriptor_bytes(d));

	if (r == 0 && d->eops->window_bytes)
		r = shm_init(&n->window, "pasidd-window", d->eops->window_bytes);
	if (r == 0)
		nest_lay_table(d);
	return r;
}

void nest_lay_table(struct device *d)
{
	struct nest *n = &d->nest;
	unsigned int bits = substream_bits(d);

	n->asked = n->attached = false;
	n->window_bus = d->layout.nest.first + n->descriptors.bytes;
	n->table = (struct cdtable){
		.p = n->descriptors.p,
		.bus = d->layout.nest.first,
		.bits = bits,
		.two_levels = n->traits.two_levels,
		.address_bits = n->traits.address_bits,
	};
	if (bits) {
		d->books->traits.pasid_bits = bits;
		ids_limit(d->books->pasids, bits);
	}
	d->books->traits.asid_bits = n->traits.asid_bits;
	ids_limit(d->books->asids, n->traits.asid_bits);
}

int nest_map_memory(struct device *d)
{
	struct nest *n = &d->nest;
	int r = setup_map(d, n->table.bus, n->descriptors.bytes, n->descriptors.ro_fd, 0, TRANSPORT_READ);

	if (r == 0 && n->window.bytes)
		r = setup_map(d, n->window_bus, n->window.bytes, n->window.fd, 0, TRANSPORT_READ | TRANSPORT_WRITE);
	return r;
}

void nest_drop_memory(struct device *d)
{
	shm_fini(&d->nest.descriptors);
	shm_fini(&d->nest.window);
}

static void on_attached(void *arg, int err)
{
	struct device *d = arg;
	char why[96];

	if (err == -ENODEV || d->state != DEVICE_SETUP)
		return;
	d->nest.attached = err == 0;
	if (err == 0) {
		device_poke(d);
		return;
	}
	snprintf(why, sizeof(why), "the kernel does not take our context descriptors: %s", strerror(-err));
	device_fail(d, why);
}

int nest_attach(struct device *d)
{
	uint64_t entry[2];
	int r;

	/* Whoever wakes the device meanwhile has it asked once more. */
	if (d->nest.asked)
		return 0;
	cdtable_entry(&d->nest.table, entry);
	r = d->tops->nested->attach(d->t, entry, on_attached, d);
	d->nest.asked = r == 0;
	return r;
}

int nest_translator(struct device *d)
{
	struct translator *device = d->nest.table.bits ? setup_whole_translator(d) : NULL;

	if (d->nest.table.bits && !device)
		return -EPROTO;
	return smmu_new(&d->tr, d->t, &d->nest.traits, &d->nest.table, device);
}

/* ---- address spaces ---- */

/* What clients may map: all that the tables and the device reach, but not where interrupts are written; the larger part. */
bool nest_choose_iova(struct device *d)
{
	const struct range msi = d->nest.smmu.msi;
	uint64_t last = pgtable_format_iova_last(d->format);
	struct range r;

	if (d->eops->iova_bits && (1ull << d->eops->iova_bits) - 1 < last)
		last = (1ull << d->eops->iova_bits) - 1;
	r = (struct range){IOVA_FIRST, last};
	if (msi.last && (!range_aligned(msi, TABLE_PAGE) || msi.last > pgtable_format_iova_last(d->format) ||
			 msi.first < IOVA_FIRST))
		return false;
	if (msi.last && msi.first <= last) {
		uint64_t below = msi.first > r.first ? msi.first - r.first : 0;
		uint64_t above = msi.last < last ? last - msi.last : 0;

		r = above > below ? (struct range){msi.last + 1, last} : (struct range){r.first, msi.first - 1};
		if (!above && !below)
			return false;
	}
	d->books->traits.iova = r;
	return true;
}

static struct range window_range(const struct device *d)
{
	return (struct range){WINDOW_IOVA, WINDOW_IOVA + d->nest.window.bytes - 1};
}

uint32_t nest_tables(const struct device *d)
{
	uint32_t n = 0;

	if (d->nest.window.bytes)
		n += pgtable_map_need(window_range(d), d->nest.window_bus);
	if (d->nest.smmu.msi.last)
		n += pgtable_map_need(d->nest.smmu.msi, d->nest.smmu.msi.first);
	return n;
}

/* The second stage has interrupt controllers in that range alone. No stage of the kernel's or ours lets devices only write
 * there; a read gives what the controller answers, and clients can name none. */
int nest_fill(struct device *d, struct pgtable *pt)
{
	const struct range msi = d->nest.smmu.msi;
	uint32_t budget = nest_tables(d);
	int r = table_pool_reserve(d->pool, budget);

	if (r < 0)
		return r;
	if (d->nest.window.bytes)
		r = pgtable_map(pt, window_range(d), d->nest.window_bus, PGTABLE_WRITABLE, &budget);
	if (r == 0 && msi.last)
		r = pgtable_map(pt, msi, msi.first, PGTABLE_WRITABLE | PGTABLE_DEVICE, &budget);
	table_pool_unreserve(d->pool, budget);
	return r;
}

/* ---- taking it over ---- */

uint64_t nest_bytes(const struct device *d)
{
	const struct range msi = d->nest.smmu.msi;

	return d->nest.window.bytes + (msi.last ? range_len(msi) : 0);
}

bool nest_maps(const struct device *d, const struct pgtable_leaf *l)
{
	const struct range msi = d->nest.smmu.msi;

	if (d->nest.window.bytes && range_contains(window_range(d), l->iova))
		return l->writable && l->bus == d->nest.window_bus + (l->iova.first - WINDOW_IOVA);
	return msi.last && range_contains(msi, l->iova) && l->bus == l->iova.first;
}

/* Without substreams there is a descriptor of what runs; what is idle is installed when its turn comes. */
static bool is_right(void *arg, uint32_t substream, uint32_t asid, uint64_t ttbr0)
{
	const struct device *d = arg;
	struct context *b;

	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		const struct ctx *ctx = b->tag;

		if (ctx->pt && b->asid == asid && pgtable_root(ctx->pt) == ttbr0)
			return d->nest.table.bits ? b->pasid == substream : d->runs[0].ctx == ctx;
	}
	return false;
}

int nest_adopted(struct device *d)
{
	const struct ctx *ctx = d->runs[0].ctx;
	struct translator_space space;

	if (smmu_adopted(d->tr, is_right, d) < 0)
		return -EAGAIN;
	if (d->nest.table.bits || !ctx || cdtable_has(&d->nest.table, 0, ctx->books->asid))
		return 0;
	space = run_space(ctx);
	return d->tr->ops->install(d->tr, 0, &space) < 0 ? -EAGAIN : 0;
}
