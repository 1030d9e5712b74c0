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
#include "transport/vfio_request.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/util.h"

#define MAX_OUT 1024u /* requests without an answer; see transport.h */

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
		q->result = (q->clear ? m->ops->clear : m->ops->unmap)(m, space, q->bus, q->len);
		if (q->clear && q->result == -ENOENT)
			q->result = 0;
		break;
	case REQUEST_SPACE_NEW:
		q->result = m->ops->space_new(m, &q->space);
		break;
	case REQUEST_SPACE_ADOPT:
		q->result = m->ops->space_adopt(m, q->saved, q->len, &q->space);
		break;
	case REQUEST_ADOPTED:
		q->result = m->ops->adopted ? m->ops->adopted(m) : 0;
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
	if (q.made && q.result == 0)
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

/* A device that is still to be found. -EINVAL: of these arguments nothing can come. */
static int vfio_new(struct vfio **ret, const struct transport_ops *ops, struct event_base *base, uint32_t irqs,
		    uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	struct vfio *v;

	if (irqs > TRANSPORT_MAX_IRQS || deadline_ms == 0)
		return -EINVAL;
	v = vfio_life_new(ops, base, events, owner);
	if (!v)
		return -ENOMEM;
	v->want_irqs = irqs;
	v->deadline_ms = deadline_ms;
	*ret = v;
	return 0;
}

/* Begins to open what was found, or to take it over. */
static int vfio_begin(struct vfio *v)
{
	int r = vfio_life_listen(v);

	if (r == 0)
		r = worker_new(&v->worker, v->base);
	return r < 0 ? r : request_add(v, &(struct request){.what = REQUEST_OPEN, .fd = -1});
}

static int vfio_open(const struct transport_ops *ops, const struct vfio_iommu_ops *how, struct transport **ret,
		     struct event_base *base, const char *address, uint32_t irqs, uint32_t deadline_ms,
		     const struct transport_events *events, void *owner)
{
	__attribute__((cleanup(vfio_closep))) struct vfio *v = NULL;
	char bdf[PCI_BDF_SIZE];
	int r = pci_parse_bdf(address, bdf) ? vfio_new(&v, ops, base, irqs, deadline_ms, events, owner) : -EINVAL;

	if (r < 0)
		return r;
	r = vfio_life_find(v, bdf, how);
	if (r < 0)
		vfio_life_lose(v, r);
	else
		r = vfio_begin(v);
	if (r < 0 && !v->error)
		return r;
	*ret = &TAKE_PTR(v)->transport;
	return 0;
}

/* ---- what a predecessor left ---- */

static size_t vfio_save(const struct transport *t, void *buf)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);
	struct vfio_saved s = v->saved;

	/* Until it is taken over it is as it was. */
	if (v->opened && !v->iommu->ops->save(v->iommu, &s))
		return 0;
	memcpy(buf, &s, sizeof(s));
	return sizeof(s);
}

static size_t vfio_keep(const struct transport *t, int *fds)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);

	if (!v->opened) {
		memcpy(fds, v->kept, sizeof(v->kept));
		return v->n_left;
	}
	fds[0] = v->device.fd;
	return 1 + v->iommu->ops->keep(v->iommu, fds + 1);
}

/* Which way the device is open does not depend on what this machine would choose now. */
static int vfio_adopt(const struct transport_ops *ops, struct transport **ret, struct event_base *base,
		      const char *address, uint32_t irqs, uint32_t deadline_ms, const void *saved, size_t size,
		      const int *fds, size_t n, const struct transport_events *events, void *owner)
{
	__attribute__((cleanup(vfio_closep))) struct vfio *v = NULL;
	char bdf[PCI_BDF_SIZE];
	struct vfio_saved s;
	int r;

	if (size != sizeof(s) || n < 2 || n > TRANSPORT_KEEP_MAX)
		return -EBADMSG;
	memcpy(&s, saved, sizeof(s));
	if (s.form != VFIO_SAVED_FORM || s.type1 > 1)
		return -EBADMSG;
	r = pci_parse_bdf(address, bdf) ? vfio_new(&v, ops, base, irqs, deadline_ms, events, owner) : -EINVAL;
	if (r < 0)
		return r;
	v->saved = s;
	v->how = s.type1 ? &vfio_iommu_type1 : &vfio_iommu_iommufd;
	memcpy(v->left, fds, n * sizeof(*fds));
	memcpy(v->kept, fds, n * sizeof(*fds));
	v->n_left = (uint32_t)n;
	r = pci_find("/sys", bdf, &v->at);
	if (r < 0)
		vfio_life_lose(v, vfio_fail(&v->why, r, "there is no PCI device %s", bdf));
	else
		r = vfio_begin(v);
	if (r < 0 && !v->error) {
		v->n_left = 0; /* still the caller's */
		return r;
	}
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

static int adopt_auto(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		      uint32_t deadline_ms, const void *saved, size_t size, const int *fds, size_t n,
		      const struct transport_events *events, void *owner)
{
	return vfio_adopt(&transport_vfio, ret, base, address, irqs, deadline_ms, saved, size, fds, n, events, owner);
}

static int open_type1(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		      uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	return vfio_open(&transport_type1, &vfio_iommu_type1, ret, base, address, irqs, deadline_ms, events, owner);
}

static int adopt_type1(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		       uint32_t deadline_ms, const void *saved, size_t size, const int *fds, size_t n,
		       const struct transport_events *events, void *owner)
{
	return vfio_adopt(&transport_type1, ret, base, address, irqs, deadline_ms, saved, size, fds, n, events, owner);
}

static int open_iommufd(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
			uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	return vfio_open(&transport_iommufd, &vfio_iommu_iommufd, ret, base, address, irqs, deadline_ms, events, owner);
}

static int adopt_iommufd(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
			 uint32_t deadline_ms, const void *saved, size_t size, const int *fds, size_t n,
			 const struct transport_events *events, void *owner)
{
	return vfio_adopt(&transport_iommufd, ret, base, address, irqs, deadline_ms, saved, size, fds, n, events,
			  owner);
}

int vfio_request_ask(struct transport *t, const struct request *from)
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

bool vfio_map_is_possible(uint64_t iova, uint64_t len, uint64_t off, uint32_t prot)
{
	return range_is_pages(iova, len) && range_is_pages(off, len) && off + len <= INT64_MAX && prot &&
	       !(prot & ~(uint32_t)(TRANSPORT_READ | TRANSPORT_WRITE));
}

/* A request with a duplicate of the fd. */
int vfio_request_ask_fd(struct transport *t, struct request *q, int fd)
{
	AUTO_CLOSE int dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	int r;

	if (dup < 0)
		return -errno;
	q->fd = dup;
	r = vfio_request_ask(t, q);
	if (r == 0)
		util_take_fd(&dup);
	return r;
}

static int vfio_dma_map(struct transport *t, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot,
			transport_done done, void *arg)
{
	struct request q = {
		.what = REQUEST_DMA_MAP, .bus = bus, .len = len, .off = off, .prot = prot, .done = done, .arg = arg};

	return vfio_map_is_possible(bus, len, off, prot) && done ? vfio_request_ask_fd(t, &q, fd) : -EINVAL;
}

int vfio_request_unmap(struct transport *t, struct transport_space *space, uint64_t bus, uint64_t len, bool clear,
		       transport_done done, void *arg)
{
	if (!range_is_pages(bus, len) || !done)
		return -EINVAL;
	return vfio_request_ask(t, &(struct request){.what = REQUEST_UNMAP,
						     .space = space,
						     .bus = bus,
						     .len = len,
						     .clear = clear,
						     .fd = -1,
						     .done = done,
						     .arg = arg});
}

static int vfio_dma_unmap(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	return vfio_request_unmap(t, NULL, bus, len, false, done, arg);
}

static int vfio_dma_clear(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	return vfio_request_unmap(t, NULL, bus, len, true, done, arg);
}

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
	r = vfio_request_ask(t, &(struct request){.what = REQUEST_RESET, .fd = -1, .done = done, .arg = arg});
	if (r < 0)
		vfio_life_reset_over(vfio_of(t), 0);
	return r;
}

#define VFIO_OPS                                                                                                     \
	.address_ok = vfio_address_ok, .save = vfio_save, .keep = vfio_keep, .close = vfio_close,                    \
	.forget = vfio_forget, .ids = vfio_ids, .usable = vfio_usable, .dma_map = vfio_dma_map,                      \
	.dma_unmap = vfio_dma_unmap, .dma_clear = vfio_dma_clear, .region_write = vfio_region_write,                 \
	.region_read = vfio_region_read, .region_map = vfio_region_map, .reset = vfio_reset, .spaces = &vfio_spaces, \
	.nested = &vfio_nested

const struct transport_ops transport_vfio = {.scheme = "vfio", .open = open_auto, .adopt = adopt_auto, VFIO_OPS};
const struct transport_ops transport_type1 = {.scheme = "type1", .open = open_type1, .adopt = adopt_type1, VFIO_OPS};
const struct transport_ops transport_iommufd = {
	.scheme = "iommufd", .open = open_iommufd, .adopt = adopt_iommufd, VFIO_OPS};
