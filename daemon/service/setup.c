/* SPDX-License-Identifier: MIT */
/*
 * What happens between the moment that a device can be reached and the one that it is ready: its driver is found, its
 * addresses are laid out, it is given memory, clients' memory from before, and its driver starts it.
 */
#include "service/adopt.h"
#include "service/inspect.h"
#include "service/persist.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "translator/domain.h"

/* ---- memory of our own ---- */

void setup_drop_memory(struct device *d)
{
	d->pool = table_pool_free(d->pool);
	shm_fini(&d->rings);
	shm_fini(&d->marks);
	shm_fini(&d->keep);
	nest_drop_memory(d);
	free(d->commands);
	d->commands = NULL;
}

/* A driver's is the driver's. */
void setup_drop_translator(struct device *d)
{
	if (device_exclusive(d))
		domain_free(d->tr);
	else if (device_nested(d))
		smmu_free(d->tr);
	d->tr = NULL;
}

static uint32_t table_pages(const struct device *d)
{
	uint64_t room = range_len(d->layout.tables) / TABLE_PAGE;

	return d->config->table_pages < room ? d->config->table_pages : (uint32_t)room;
}

static int device_make_memory(struct device *d)
{
	int r = d->eops->ro_bytes ? shm_init(&d->rings, "pasidd-rings", d->eops->ro_bytes) : 0;

	if (r == 0 && d->eops->rw_bytes)
		r = shm_init(&d->marks, "pasidd-marks", d->eops->rw_bytes);
	if (r == 0 && d->eops->keep_bytes)
		r = shm_init(&d->keep, "pasidd-keep", d->eops->keep_bytes);
	if (r == 0 && d->eops->reads) {
		d->commands = malloc(d->eops->submit_max);
		r = d->commands ? 0 : -ENOMEM;
	}
	if (r == 0 && !device_kernel_tables(d))
		r = table_pool_new(&d->pool, d->layout.tables.first, table_pages(d));
	if (r == 0 && device_nested(d))
		r = nest_make_memory(d);
	return r;
}

static void on_setup_answer(void *arg, int err);

int setup_map(struct device *d, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot)
{
	int r = d->tops->dma_map(d->t, bus, len, fd, off, prot, on_setup_answer, d);

	if (r == 0)
		d->setup_left++;
	return r;
}

static uint32_t first_chunk(const struct device *d)
{
	return TABLE_CHUNK < table_pages(d) ? TABLE_CHUNK : table_pages(d);
}

static int setup_memory(struct device *d)
{
	int r = device_make_memory(d);

	if (r == 0 && d->rings.bytes)
		r = setup_map(d, d->layout.engine.first, d->rings.bytes, d->rings.ro_fd, 0, TRANSPORT_READ);
	if (r == 0 && d->marks.bytes)
		r = setup_map(d, d->layout.engine.first + d->rings.bytes, d->marks.bytes, d->marks.fd, 0,
			      TRANSPORT_READ | TRANSPORT_WRITE);
	if (r == 0 && d->pool)
		r = setup_map(d, d->layout.tables.first, (uint64_t)first_chunk(d) * TABLE_PAGE,
			      table_pool_device_fd(d->pool), 0, TRANSPORT_READ);
	if (r == 0 && device_nested(d))
		r = nest_map_memory(d);
	return r;
}

/* What clients still have from before: their buffers and fences, at the same bus addresses. As many at a time as the
 * transport takes (-EBUSY); looked at again after each answer. 0 when all is answered, 1 while something is out. */
static int setup_clients(struct device *d)
{
	struct buffer_entry *e;
	struct client *c = NULL;
	struct fence_map *m;
	int r = 0, out = 0;

	TAILQ_FOREACH (e, &d->books->buffers, in_device) {
		struct buf *b = e->tag;

		if (r == 0 && b->state == BUF_UNMAPPED)
			r = buf_map_again(b);
		out |= b->state == BUF_UNMAPPED || b->state == BUF_MAPPING;
	}
	while ((c = books_next_client(d->svc->books, c)))
		LIST_FOREACH (m, &((struct service_client *)c->tag)->fence_maps, link) {
			if (m->dev == d && r == 0 && m->state == BUF_UNMAPPED)
				r = fence_map_again(m);
			out |= m->dev == d && (m->state == BUF_UNMAPPED || m->state == BUF_MAPPING);
		}
	return r == 0 || r == -EBUSY ? out : r;
}

static void changed(void *arg)
{
	device_poke(arg);
}

static void handle_write(struct engine_device *handle, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	struct device *d = container_of(handle, struct device, handle);

	/* A failed write means that the transport has lost the device, and says so by itself. */
	(void)d->tops->region_write(d->t, region, off, width, value);
}

static int handle_read(struct engine_device *handle, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	struct device *d = container_of(handle, struct device, handle);

	return d->tops->region_read(d->t, region, off, width, value);
}

static volatile void *handle_map(struct engine_device *handle, uint32_t region, uint64_t off, uint64_t len)
{
	struct device *d = container_of(handle, struct device, handle);

	return d->tops->region_map(d->t, region, off, len);
}

static const struct engine_device_ops handle_ops = {
	.region_write = handle_write,
	.region_read = handle_read,
	.region_map = handle_map,
};

/* The driver's translator, if it has all that page tables of ours take; else NULL. */
struct translator *setup_whole_translator(struct device *d)
{
	struct translator *t = d->eops->translator(d->engine);
	const struct translator_ops *ops = t ? t->ops : NULL;

	if (!ops || !ops->install || !ops->invalidate || !ops->invalidated || !ops->next_fault || !ops->max_ranges)
		return NULL;
	return t;
}

/* How many slots its driver says that the device has: as many as it was told to use, at most. 0, or -EPROTO. */
static int take_slots(struct device *d, unsigned int most)
{
	unsigned int n = d->eops->slots(d->engine);

	if (n < 1 || n > (most ? most : ENGINE_MAX_SLOTS))
		return -EPROTO;
	d->n_slots = n;
	return 0;
}

static bool one_space(const struct device *d)
{
	return device_exclusive(d) || (device_nested(d) && (!d->nest.table.bits || d->nest.window.bytes));
}

int setup_start_engine(struct device *d,
		       int (*start)(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
				    const struct engine_config *c),
		       unsigned int slots)
{
	void *windows[ENGINE_MAX_SLOTS];
	struct engine_memory mem = {
		.ro = d->rings.p,
		.ro_bus = d->layout.engine.first,
		.rw = d->marks.p,
		.rw_bus = d->layout.engine.first + d->rings.bytes,
		.keep = d->keep.p,
	};
	struct engine_config config = {
		.slots = slots,
		.format = device_kernel_tables(d) || device_nested(d) ? NULL : d->config->format,
		.iova = d->books->traits.iova,
		.windows = windows,
	};
	int r;

	for (unsigned int s = 0; s < ARRAY_SIZE(windows); s++)
		windows[s] = d->runs[s].ctx ? run_window(d, d->runs[s].ctx) : NULL;
	d->handle.ops = &handle_ops;
	r = start(&d->engine, &d->handle, &mem, &config);
	return r < 0 ? r : take_slots(d, config.slots);
}

static int setup_engine(struct device *d)
{
	/* The IOMMU has the device in one address space at a time. */
	int r = setup_start_engine(d, d->eops->attach, one_space(d) ? 1 : d->config->slots);

	if (r < 0)
		return r;
	if (device_exclusive(d))
		r = domain_new(&d->tr, d->t, changed, d);
	else if (device_nested(d))
		r = nest_translator(d);
	else
		r = (d->tr = setup_whole_translator(d)) ? 0 : -EPROTO;
	if (r == 0)
		r = faults_begin(d);
	if (r == 0)
		r = sched_new(&d->sched, d->n_slots, d->config->burst);
	if (r == 0 && d->books->traits.global)
		r = pgtable_new(&d->shared_pt, d->format, d->pool);
	return r;
}

static const char *why_not_started(int r)
{
	if (r == -EOPNOTSUPP)
		return "it does not know the configured table format";
	return r == -EPROTO ? "its driver says that it has no slots, too many, or a translator that is not whole"
			    : "it cannot be started";
}

static void device_ready(struct device *d)
{
	int r;

	if (d->pool)
		table_pool_extend(d->pool, first_chunk(d));
	r = setup_engine(d);
	if (r < 0) {
		device_fail(d, why_not_started(r));
		return;
	}
	d->state = DEVICE_READY;
	device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_DEVICE_READY, .a = d->n_slots});
	tell_device(d);
	d->ticket_asked = d->ticket_done = 0;
	d->backoff_ms = BACKOFF_FIRST_MS;
	d->gone_why[0] = '\0';
	persist_device(d);
	log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_INFO,
		  "device %s: ready at %s, engine %s (%s), %u slots, tables %s, mode %s", d->config->name,
		  d->config->spec, d->eops->name, d->driver->path ? d->driver->path : "built in", d->n_slots,
		  device_kernel_tables(d) ? "the kernel's" : d->config->format, inspect_mode_name(d->mode));
	event_device_back(d);
	device_poke(d);
}

void setup_go_on(struct device *d)
{
	int r;

	if (d->setup_left)
		return;
	/* Before there is anything of clients in the second stage: a device that still works for somebody before would reach it
	 * there. All descriptors are invalid yet. */
	if (device_nested(d) && !d->nest.attached) {
		if (nest_attach(d) < 0)
			device_fail(d, "it cannot be asked to use our context descriptors");
		return;
	}
	r = setup_clients(d);
	if (r < 0)
		device_fail(d, "what clients have there cannot be mapped again");
	else if (r == 0)
		device_ready(d);
}

static void on_setup_answer(void *arg, int err)
{
	struct device *d = arg;

	if (err == -ENODEV)
		return; /* gone: lost follows */
	if (err < 0)
		d->setup_failed = true;
	if (--d->setup_left || d->state != DEVICE_SETUP)
		return;
	if (d->setup_failed)
		device_fail(d, "it refuses a DMA mapping of the daemon's own memory");
	else
		device_poke(d);
}

void setup_add_hole(void *arg, struct range hole)
{
	struct device *d = arg;

	if (books_add_hole(d->books, hole) < 0)
		d->setup_failed = true;
}

/* Where things go. Buffers keep their addresses from one opening to the next, so this may not change. */
static bool lay_out(struct device *d)
{
	struct bus_layout l = {.n_usable = LAYOUT_MAX_RANGES};

	if (d->tops->usable(d->t, l.usable, &l.n_usable) < 0)
		return false;
	if (device_nested(d))
		layout_clip(&l, d->nest.traits.address_bits);
	if (d->layout.n_usable)
		return l.n_usable == d->layout.n_usable &&
		       !memcmp(l.usable, d->layout.usable, l.n_usable * sizeof(l.usable[0]));
	if (layout_make(&l) < 0 || (device_nested(d) && !layout_usable(&l, l.nest)))
		return false;
	d->layout = l;
	books_set_window(d->books, l.buffers);
	layout_holes(&l, (struct range){l.fences.first, l.buffers.last}, setup_add_hole, d);
	return !d->setup_failed;
}

/* What clients may map, where the kernel keeps the tables: the range that a context's addresses begin in, as far as the
 * device's own addresses reach. */
static bool choose_iova(struct device *d)
{
	uint64_t most = d->eops->iova_bits ? (1ull << d->eops->iova_bits) - 1 : UINT64_MAX;

	for (size_t i = 0; i < d->layout.n_usable; i++) {
		struct range r = d->layout.usable[i];

		if (r.first > WINDOW_IOVA || r.last < 2 * IOVA_FIRST)
			continue;
		d->books->traits.iova = (struct range){IOVA_FIRST, r.last < most ? r.last : most};
		return true;
	}
	return false;
}

/* Why the device cannot be had in the configured mode; NULL: it can. */
static const char *wrong_mode(const struct device *d)
{
	if (d->mode == PASID_MODE_PASID)
		return !d->eops->translator ? "its driver knows no mode \"pasid\""
		       : d->tops->spaces && d->tops->spaces->pasid_bits(d->t)
			       ? NULL
			       : "mode \"pasid\" takes iommufd, Linux 6.15, and PASIDs of both the device and the "
				 "IOMMU";
	if (!device_exclusive(d) && !device_nested(d))
		return d->eops->translator ? NULL : "it has no MMU: configure mode \"nested\" or \"exclusive\"";
	if (!d->tops->spaces)
		return "mode \"exclusive\" takes an IOMMU that the kernel drives (vfio:)";
	if (!d->eops->reads)
		return "its driver knows no mode \"nested\" or \"exclusive\": configure \"gpu-mmu\"";
	/* They are in the device's own address space, at addresses that clients map in theirs. */
	return d->eops->ro_bytes || d->eops->rw_bytes
		       ? "its driver has ro_bytes or rw_bytes: in its mode what the device "
			 "needs is in window_bytes"
		       : NULL;
}

void setup_take_traits(struct device *d)
{
	struct device_traits *traits = &d->books->traits;

	traits->cmd_align = d->eops->cmd_align;
	traits->submit_max = d->eops->submit_max;
	if (!d->eops->translator)
		return;
	traits->asid_bits = d->eops->asid_bits;
	ids_limit(d->books->asids, traits->asid_bits);
}

void setup_limit_pasids(struct device *d)
{
	unsigned int bits = d->tops->spaces->pasid_bits(d->t);

	d->books->traits.pasid_bits = bits < PASID_BITS_MAX ? bits : PASID_BITS_MAX;
	ids_limit(d->books->pasids, d->books->traits.pasid_bits);
}

void setup_opened(void *owner)
{
	struct device *d = owner;
	struct transport_ids ids;

	d->tops->ids(d->t, &ids);
	d->driver = engine_find(&d->svc->config->drivers, &ids);
	if (!d->driver) {
		log_about(&(struct log_about){.device = d->config->name}, &d->came_and_went, LOG_WARN,
			  "device %s: no driver for PCI %04x:%04x at %s; see docs/driver.md for those there are",
			  d->config->name, ids.vendor, ids.device, d->config->spec);
		device_fail(d, "no driver");
		return;
	}
	d->eops = d->driver->exports->engine;
	if (d->adoption) {
		adopt_opened(d);
		return;
	}
	if (device_nested(d))
		nest_prepare(d);
	else
		setup_begin(d, NULL);
}

/* What clients may map. */
static bool choose_client_iova(struct device *d)
{
	if (device_nested(d))
		return nest_choose_iova(d);
	return !device_kernel_tables(d) || choose_iova(d);
}

void setup_begin(struct device *d, const char *why)
{
	if (!why)
		why = wrong_mode(d);
	if (why) {
		device_fail(d, why);
		return;
	}
	setup_take_traits(d);
	if (d->mode == PASID_MODE_PASID)
		setup_limit_pasids(d);
	d->state = DEVICE_SETUP;
	tell_device(d);
	d->setup_left = 0;
	d->setup_failed = false;
	if (!lay_out(d)) {
		device_fail(d, "the addresses that its DMA can use are too few, or not those from before");
		return;
	}
	if (!choose_client_iova(d)) {
		device_fail(d, "its IOMMU leaves no addresses to clients");
		return;
	}
	if (setup_memory(d) < 0)
		device_fail(d, "its memory cannot be set up");
	else if (!d->setup_left)
		device_poke(d); /* nothing is waited for */
}
