/* SPDX-License-Identifier: MIT */
/*
 * The kernel's VFIO as a transport: "vfio:BDF" takes iommufd where the kernel has it for the device, else type1;
 * "iommufd:BDF" and "type1:BDF" take that one.
 *
 * What may wait in the kernel (opening, pinning, reset, closing) is done on a thread of the device's own, in the order in
 * which it was asked for, but a reset goes first; the answers come from the loop. Register writes and interrupts never go
 * that way. Pinning has no deadline, for the kernel is no device that lies; a reset has one, which begins again if it
 * passes before the thread gets there.
 */
#include "transport/vfio_life.h"

#include <errno.h>
#include <fcntl.h>

#include "base/util.h"
#include "base/worker.h"

#define MAX_OUT 1024u /* requests without an answer; see transport.h */

enum what {
	REQUEST_OPEN,
	REQUEST_DMA_MAP,
	REQUEST_HOLD,
	REQUEST_RELEASE,
	REQUEST_MAP,
	REQUEST_UNMAP,
	REQUEST_SPACE_NEW,
	REQUEST_SPACE_FREE,
	REQUEST_ATTACH,
	REQUEST_ATTACH_PASID,
	REQUEST_DETACH_PASID,
	REQUEST_NEST,
	REQUEST_NEST_ATTACH,
	REQUEST_RESET,
};

struct request {
	struct work work;
	struct vfio *v;
	enum what what;
	struct transport_space *space; /* NULL: the device's own */
	struct transport_space **made; /* SPACE_NEW: where the answer goes */
	struct transport_memory *memory;
	struct transport_memory **held; /* HOLD: where the answer goes */
	struct transport_smmu smmu, *nested; /* NEST: where the answer goes */
	uint64_t entry[2]; /* NEST_ATTACH */
	uint64_t bus, len, off;
	uint32_t prot, pasid;
	int fd; /* DMA_MAP, HOLD: a duplicate */
	int result;
	transport_done done; /* NULL: OPEN, SPACE_FREE, RELEASE */
	void *arg;
};

static struct vfio *vfio_of(struct transport *t)
{
	return container_of(t, struct vfio, transport);
}

/* ---- on the thread ---- */

static void request_run(struct work *w)
{
	struct request *q = container_of(w, struct request, work);
	struct vfio *v = q->v;
	struct vfio_iommu *m = v->iommu;
	struct transport_space *space = q->space || !m ? q->space : m->own;

	switch (q->what) {
	case REQUEST_OPEN:
		q->result = vfio_life_open(v);
		break;
	case REQUEST_DMA_MAP:
		q->result = m->ops->map(m, q->bus, q->len, q->fd, q->off, q->prot);
		break;
	case REQUEST_HOLD:
		q->result = m->ops->hold(m, q->fd, q->len, q->prot, &q->memory);
		break;
	case REQUEST_RELEASE:
		m->ops->release(m, q->memory);
		break;
	case REQUEST_MAP:
		q->result = m->ops->map_held(m, space, q->bus, q->len, q->memory, q->off, q->prot);
		break;
	case REQUEST_UNMAP:
		q->result = m->ops->unmap(m, space, q->bus, q->len);
		break;
	case REQUEST_SPACE_NEW:
		q->result = m->ops->space_new(m, &q->space);
		break;
	case REQUEST_SPACE_FREE:
		m->ops->space_free(m, space);
		break;
	case REQUEST_ATTACH:
		q->result = m->ops->attach(m, v->device.fd, space);
		break;
	case REQUEST_ATTACH_PASID:
		q->result = m->ops->attach_pasid(m, v->device.fd, space, q->pasid);
		break;
	case REQUEST_DETACH_PASID:
		q->result = m->ops->detach_pasid(m, v->device.fd, q->pasid);
		break;
	case REQUEST_NEST:
		q->result = m->ops->nest(m, &v->at, v->device.fd, &q->smmu, &v->why_no_nest);
		break;
	case REQUEST_NEST_ATTACH:
		q->result = m->ops->nest_attach(m, v->device.fd, q->entry);
		break;
	case REQUEST_RESET:
		q->result = vfio_life_reset(v);
		break;
	}
}

static void request_drop(struct work *w)
{
	struct request *q = container_of(w, struct request, work);

	if (q->fd >= 0)
		close(q->fd); /* a memfd, of which the buffer has another: nothing is freed here */
	free(q);
}

/* ---- answers ---- */

static void request_done(struct work *w)
{
	struct request q = *container_of(w, struct request, work);
	struct vfio *v = q.v;

	request_drop(w);
	v->n_out--;
	if (q.what == REQUEST_RESET)
		vfio_life_reset_over(v, q.result);
	if (v->forgotten)
		return;
	if (q.what == REQUEST_SPACE_NEW && q.result == 0)
		*q.made = q.space;
	if (q.what == REQUEST_HOLD && q.result == 0)
		*q.held = q.memory;
	if (q.what == REQUEST_NEST && q.result == 0) {
		*q.nested = q.smmu;
		q.result = vfio_life_nested(v);
	}
	if (q.what == REQUEST_OPEN)
		vfio_life_opened(v, q.result);
	else if (q.done)
		q.done(q.arg, v->error ? -ENODEV : q.result == -ENODEV ? -EIO : q.result);
	if (v->crowded && !v->forgotten) {
		v->crowded = false;
		v->events->room(v->owner);
	}
}

/* Of a reset and of a move there is one at a time: they always have their place, and do not wait for memory of others. */
static bool goes_first(const struct request *q)
{
	return q->what == REQUEST_RESET || q->what == REQUEST_ATTACH;
}

/* Lists of mappings, which take what they can get, leave some for what comes one by one. */
static uint32_t places(const struct request *q)
{
	if (goes_first(q))
		return UINT32_MAX;
	return q->space && (q->what == REQUEST_MAP || q->what == REQUEST_UNMAP) ? MAX_OUT / 4 * 3 : MAX_OUT;
}

static int request_add(struct vfio *v, const struct request *from)
{
	struct request *q;

	if (v->n_out >= places(from)) {
		v->crowded = true;
		return -EBUSY;
	}
	q = malloc(sizeof(*q));
	if (!q)
		return -ENOMEM;
	*q = *from;
	q->v = v;
	q->work.run = request_run;
	q->work.done = request_done;
	v->n_out++;
	(goes_first(q) ? worker_add_first : worker_add)(v->worker, &q->work);
	return 0;
}

/* ---- the transport's operations ---- */

static void vfio_forget(struct transport *t)
{
	vfio_life_forget(vfio_of(t));
}

static struct transport *vfio_close(struct transport *t)
{
	struct vfio *v;

	if (!t)
		return NULL;
	v = vfio_of(t);
	vfio_life_leave(v);
	if (v->worker)
		worker_leave(v->worker, request_drop, vfio_life_end, v);
	else
		vfio_life_end(v);
	return NULL;
}

static void vfio_closep(struct vfio **v)
{
	if (*v)
		vfio_close(&(*v)->transport);
}

static int vfio_open(const struct transport_ops *ops, const struct vfio_iommu_ops *how, struct transport **ret,
		     struct event_base *base, const char *address, uint32_t irqs, uint32_t deadline_ms,
		     const struct transport_events *events, void *owner)
{
	__attribute__((cleanup(vfio_closep))) struct vfio *v = NULL;
	char bdf[PCI_BDF_SIZE];
	int r;

	if (irqs > TRANSPORT_MAX_IRQS || deadline_ms == 0 || !pci_parse_bdf(address, bdf))
		return -EINVAL;
	v = vfio_life_new(ops, base, events, owner);
	if (!v)
		return -ENOMEM;
	v->want_irqs = irqs;
	v->deadline_ms = deadline_ms;
	r = vfio_life_find(v, bdf, how);
	if (r < 0) {
		vfio_life_lose(v, r);
		*ret = &TAKE_PTR(v)->transport;
		return 0;
	}
	r = vfio_life_listen(v);
	if (r == 0)
		r = worker_new(&v->worker, base);
	if (r == 0)
		r = request_add(v, &(struct request){.what = REQUEST_OPEN, .fd = -1});
	if (r < 0)
		return r;
	*ret = &TAKE_PTR(v)->transport;
	return 0;
}

static bool vfio_address_ok(const char *address)
{
	char bdf[PCI_BDF_SIZE];

	return pci_parse_bdf(address, bdf);
}

static int open_auto(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		     uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	return vfio_open(&transport_vfio, NULL, ret, base, address, irqs, deadline_ms, events, owner);
}

static int open_type1(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		      uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	return vfio_open(&transport_type1, &vfio_iommu_type1, ret, base, address, irqs, deadline_ms, events, owner);
}

static int open_iommufd(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
			uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	return vfio_open(&transport_iommufd, &vfio_iommu_iommufd, ret, base, address, irqs, deadline_ms, events, owner);
}

static int request_ask(struct transport *t, const struct request *from)
{
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : request_add(vfio_of(t), from);
}

static void vfio_ids(const struct transport *t, struct transport_ids *ret)
{
	*ret = container_of(t, const struct vfio, transport)->device.ids;
}

static int vfio_usable(struct transport *t, struct range *v, size_t *n)
{
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : vfio_of(t)->iommu->ops->ranges(vfio_of(t)->iommu, v, n);
}

static bool range_is_pages(uint64_t first, uint64_t len)
{
	struct range r;

	return range_make(&r, first, len) && range_aligned(r, 4096);
}

static bool map_is_possible(uint64_t iova, uint64_t len, uint64_t off, uint32_t prot)
{
	return range_is_pages(iova, len) && range_is_pages(off, len) && off + len <= INT64_MAX && prot &&
	       !(prot & ~(uint32_t)(TRANSPORT_READ | TRANSPORT_WRITE));
}

/* A request with a duplicate of the fd. */
static int request_ask_fd(struct transport *t, struct request *q, int fd)
{
	AUTO_CLOSE int dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	int r;

	if (dup < 0)
		return -errno;
	q->fd = dup;
	r = request_ask(t, q);
	if (r == 0)
		util_take_fd(&dup);
	return r;
}

static int vfio_dma_map(struct transport *t, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot,
			transport_done done, void *arg)
{
	struct request q = {
		.what = REQUEST_DMA_MAP, .bus = bus, .len = len, .off = off, .prot = prot, .done = done, .arg = arg};

	return map_is_possible(bus, len, off, prot) && done ? request_ask_fd(t, &q, fd) : -EINVAL;
}

static int vfio_hold(struct transport *t, struct transport_memory **ret, int fd, uint64_t len, uint32_t prot,
		     transport_done done, void *arg)
{
	struct request q = {.what = REQUEST_HOLD, .held = ret, .len = len, .prot = prot, .done = done, .arg = arg};

	return map_is_possible(0, len, 0, prot) && done ? request_ask_fd(t, &q, fd) : -EINVAL;
}

static int vfio_release(struct transport *t, struct transport_memory *m)
{
	return request_ask(t, &(struct request){.what = REQUEST_RELEASE, .memory = m, .fd = -1});
}

static int vfio_space_map(struct transport *t, struct transport_space *space, uint64_t iova, uint64_t len,
			  struct transport_memory *m, uint64_t off, uint32_t prot, transport_done done, void *arg)
{
	if (!map_is_possible(iova, len, off, prot) || !done)
		return -EINVAL;
	return request_ask(t, &(struct request){.what = REQUEST_MAP,
						.space = space,
						.bus = iova,
						.len = len,
						.memory = m,
						.off = off,
						.prot = prot,
						.fd = -1,
						.done = done,
						.arg = arg});
}

static int vfio_space_unmap(struct transport *t, struct transport_space *space, uint64_t bus, uint64_t len,
			    transport_done done, void *arg)
{
	if (!range_is_pages(bus, len) || !done)
		return -EINVAL;
	return request_ask(t, &(struct request){.what = REQUEST_UNMAP,
						.space = space,
						.bus = bus,
						.len = len,
						.fd = -1,
						.done = done,
						.arg = arg});
}

static int vfio_dma_unmap(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	return vfio_space_unmap(t, NULL, bus, len, done, arg);
}

static int vfio_space_new(struct transport *t, struct transport_space **ret, transport_done done, void *arg)
{
	return request_ask(
		t, &(struct request){.what = REQUEST_SPACE_NEW, .made = ret, .fd = -1, .done = done, .arg = arg});
}

static int vfio_space_free(struct transport *t, struct transport_space *space)
{
	return request_ask(t, &(struct request){.what = REQUEST_SPACE_FREE, .space = space, .fd = -1});
}

static int vfio_attach(struct transport *t, struct transport_space *space, transport_done done, void *arg)
{
	return request_ask(
		t, &(struct request){.what = REQUEST_ATTACH, .space = space, .fd = -1, .done = done, .arg = arg});
}

static unsigned int vfio_pasid_bits(const struct transport *t)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);

	return v->opened ? v->iommu->pasid_bits : 0;
}

static int vfio_attach_pasid(struct transport *t, struct transport_space *space, uint32_t pasid, transport_done done,
			     void *arg)
{
	return request_ask(t, &(struct request){.what = REQUEST_ATTACH_PASID,
						.space = space,
						.pasid = pasid,
						.fd = -1,
						.done = done,
						.arg = arg});
}

static int vfio_detach_pasid(struct transport *t, uint32_t pasid, transport_done done, void *arg)
{
	return request_ask(
		t, &(struct request){.what = REQUEST_DETACH_PASID, .pasid = pasid, .fd = -1, .done = done, .arg = arg});
}

static const struct transport_space_ops vfio_spaces = {
	.make = vfio_space_new,
	.free = vfio_space_free,
	.hold = vfio_hold,
	.release = vfio_release,
	.map = vfio_space_map,
	.unmap = vfio_space_unmap,
	.attach = vfio_attach,
	.pasid_bits = vfio_pasid_bits,
	.attach_pasid = vfio_attach_pasid,
	.detach_pasid = vfio_detach_pasid,
};

static int vfio_nest(struct transport *t, struct transport_smmu *ret, transport_done done, void *arg)
{
	struct vfio *v = vfio_of(t);

	if (v->opened && !v->iommu->ops->nest)
		return vfio_fail(&v->why_no_nest, -EOPNOTSUPP, "%s knows no second stage; it takes iommufd",
				 v->iommu->ops->name);
	return request_ask(t,
			   &(struct request){.what = REQUEST_NEST, .nested = ret, .fd = -1, .done = done, .arg = arg});
}

static const char *vfio_why_no_nest(const struct transport *t)
{
	return container_of(t, const struct vfio, transport)->why_no_nest.text;
}

static int vfio_nest_attach(struct transport *t, const uint64_t entry[2], transport_done done, void *arg)
{
	return request_ask(t, &(struct request){.what = REQUEST_NEST_ATTACH,
						.entry = {entry[0], entry[1]},
						.fd = -1,
						.done = done,
						.arg = arg});
}

static int vfio_invalidate(struct transport *t, const struct transport_smmu_command *v, uint32_t n)
{
	struct vfio_iommu *m = vfio_of(t)->iommu;
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : m->ops->invalidate(m, v, n);
}

static int vfio_events(struct transport *t, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	struct vfio_iommu *m = vfio_of(t)->iommu;
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : m->ops->events(m, v, max, lost);
}

static const struct transport_nested_ops vfio_nested = {
	.prepare = vfio_nest,
	.why = vfio_why_no_nest,
	.attach = vfio_nest_attach,
	.invalidate = vfio_invalidate,
	.events = vfio_events,
};

static int vfio_region_write(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : vfio_device_write(&vfio_of(t)->device, region, off, width, value);
}

static int vfio_region_read(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : vfio_device_read(&vfio_of(t)->device, region, off, width, value);
}

static volatile void *vfio_region_map(struct transport *t, uint32_t region, uint64_t off, uint64_t len)
{
	if (vfio_life_check(vfio_of(t)) < 0)
		return NULL;
	return vfio_device_map(&vfio_of(t)->device, region, off, len);
}

static int vfio_reset(struct transport *t, transport_done done, void *arg)
{
	int r;

	if (!done)
		return -EINVAL;
	vfio_life_reset_ahead(vfio_of(t)); /* before the thread hears of it */
	r = request_ask(t, &(struct request){.what = REQUEST_RESET, .fd = -1, .done = done, .arg = arg});
	if (r < 0)
		vfio_life_reset_over(vfio_of(t), 0);
	return r;
}

#define VFIO_OPS                                                                                           \
	.address_ok = vfio_address_ok, .close = vfio_close, .forget = vfio_forget, .ids = vfio_ids,        \
	.usable = vfio_usable, .dma_map = vfio_dma_map, .dma_unmap = vfio_dma_unmap,                       \
	.region_write = vfio_region_write, .region_read = vfio_region_read, .region_map = vfio_region_map, \
	.reset = vfio_reset, .spaces = &vfio_spaces, .nested = &vfio_nested

const struct transport_ops transport_vfio = {.scheme = "vfio", .open = open_auto, VFIO_OPS};
const struct transport_ops transport_type1 = {.scheme = "type1", .open = open_type1, VFIO_OPS};
const struct transport_ops transport_iommufd = {.scheme = "iommufd", .open = open_iommufd, VFIO_OPS};
