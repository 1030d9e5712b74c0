/* SPDX-License-Identifier: MIT */
/* See vfio_life.h. */
#include "transport/vfio_life.h"

#include <errno.h>
#include <event2/event.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/util.h"

#define RESET_MS 5000u /* at least: a function-level reset alone waits 100 ms, and other kinds take seconds */

/* ---- lost ---- */

static void silence(struct vfio *v)
{
	for (uint32_t i = 0; i < VFIO_LINES; i++)
		if (v->lines[i].fd >= 0)
			event_del(&v->lines[i].ev);
	event_del(&v->ev_reset);
	event_del(&v->ev_again);
	if (v->listens_iommu)
		event_del(&v->ev_iommu);
}

void vfio_life_lose(struct vfio *v, int error)
{
	if (v->error)
		return;
	v->error = error;
	silence(v);
	event_active(&v->ev_lost, EV_TIMEOUT, 0);
}

/* Requests that are out are answered by the thread as it gets there; their owner asked to hear -ENODEV first. */
static void on_lost(evutil_socket_t fd, short what, void *arg)
{
	struct vfio *v = arg;

	if (!v->forgotten)
		v->events->lost(v->owner, v->error, v->why.text);
}

void vfio_life_forget(struct vfio *v)
{
	v->forgotten = true;
	if (!v->error)
		v->error = -ENODEV;
	silence(v);
}

/* ---- reset ---- */

static void await_reset(struct vfio *v)
{
	uint32_t ms = v->deadline_ms < RESET_MS ? RESET_MS : v->deadline_ms;
	struct timeval limit = {ms / 1000, ms % 1000 * 1000};

	evtimer_add(&v->ev_reset, &limit);
}

static void on_reset_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct vfio *v = arg;

	/* The thread may be pinning somebody's memory still: the device's time runs from when it was told. */
	if (__atomic_load_n(&v->resetting, __ATOMIC_ACQUIRE))
		vfio_life_lose(v, vfio_fail(&v->why, -ETIMEDOUT, "its reset is not done in time"));
	else
		await_reset(v);
}

void vfio_life_reset_ahead(struct vfio *v)
{
	__atomic_store_n(&v->resetting, false, __ATOMIC_RELEASE);
	await_reset(v);
}

int vfio_life_reset(struct vfio *v)
{
	int group = v->iommu->ops->group ? v->iommu->ops->group(v->iommu) : -1;

	__atomic_store_n(&v->resetting, true, __ATOMIC_RELEASE);
	return vfio_device_reset(&v->device, &v->at, group, &v->why_no_reset);
}

void vfio_life_reset_over(struct vfio *v, int result)
{
	event_del(&v->ev_reset);
	if (result == 0 || v->error)
		return;
	v->why = v->why_no_reset;
	vfio_life_lose(v, result);
}

/* ---- interrupts ---- */

static const struct timeval soon = {.tv_usec = 10000};

/* The kernel has masked an INTx. It stays so until somebody has acknowledged it at the device: unmasked before that, it
 * would come again at once. */
static void tell(struct vfio *v, uint32_t vector)
{
	bool looked = v->opened && v->events->irq(v->owner, vector);

	if (v->error || v->forgotten)
		return;
	if (looked)
		vfio_device_unmask(&v->device);
	else
		evtimer_add(&v->ev_again, &soon);
}

/* Records that nobody could look at are there still, and the queue would be told of again at once. */
static void on_again(evutil_socket_t fd, short what, void *arg)
{
	struct vfio *v = arg;

	if (v->listens_iommu)
		event_add(&v->ev_iommu, NULL);
	tell(v, 0); /* an INTx; of others a look too many is made */
}

static void on_line(evutil_socket_t fd, short what, void *arg)
{
	struct vfio_line *l = arg;
	struct vfio *v = l->v;
	uint64_t count;

	if (read(l->fd, &count, sizeof(count)) != sizeof(count) || v->error)
		return;
	if (l->vector < TRANSPORT_MAX_IRQS) {
		tell(v, l->vector);
		return;
	}
	if (!v->opened)
		return;
	if (l->vector == VFIO_LINE_REQUEST) {
		vfio_life_lose(v, vfio_fail(&v->why, -ENODEV, "the kernel asks for %s back", v->at.bdf));
		return;
	}
	if (l->vector == VFIO_LINE_ERROR) {
		vfio_life_lose(v,
			       vfio_fail(&v->why, -EIO, "%s reports an error that it cannot recover from", v->at.bdf));
	}
}

/* ---- faults ---- */

static void on_iommu(evutil_socket_t fd, short what, void *arg)
{
	struct vfio *v = arg;
	bool looked = v->events->irq(v->owner, TRANSPORT_IRQ_IOMMU);

	if (v->error || v->forgotten)
		return;
	if (looked)
		event_add(&v->ev_iommu, NULL);
	else
		evtimer_add(&v->ev_again, &soon);
}

int vfio_life_nested(struct vfio *v)
{
	event_assign(&v->ev_iommu, v->base, v->iommu->ops->events_fd(v->iommu), EV_READ, on_iommu, v);
	v->listens_iommu = event_add(&v->ev_iommu, NULL) == 0;
	return v->listens_iommu ? 0 : -ENOMEM;
}

/* ---- lines ---- */

static int line_open(struct vfio *v, uint32_t vector)
{
	struct vfio_line *l = &v->lines[vector];

	l->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (l->fd < 0)
		return -errno;
	l->v = v;
	l->vector = vector;
	event_assign(&l->ev, v->base, l->fd, EV_READ | EV_PERSIST, on_line, l);
	return event_add(&l->ev, NULL) < 0 ? -ENOMEM : 0;
}

int vfio_life_listen(struct vfio *v)
{
	int r = line_open(v, VFIO_LINE_REQUEST);

	if (r == 0)
		r = line_open(v, VFIO_LINE_ERROR);
	for (uint32_t i = 0; r == 0 && i < v->want_irqs; i++)
		r = line_open(v, i);
	return r;
}

/* ---- opening ---- */

struct vfio *vfio_life_new(const struct transport_ops *ops, struct event_base *base,
			   const struct transport_events *events, void *owner)
{
	struct vfio *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->transport.ops = ops;
	v->base = base;
	v->events = events;
	v->owner = owner;
	vfio_device_init(&v->device, -1);
	for (uint32_t i = 0; i < VFIO_LINES; i++)
		v->lines[i].fd = -1;
	event_assign(&v->ev_reset, base, -1, 0, on_reset_deadline, v);
	event_assign(&v->ev_again, base, -1, 0, on_again, v);
	event_assign(&v->ev_lost, base, -1, 0, on_lost, v);
	return v;
}

int vfio_life_find(struct vfio *v, const char *bdf, const struct vfio_iommu_ops *how)
{
	int r = pci_find("/sys", bdf, &v->at);

	if (r < 0)
		return vfio_fail(&v->why, r, "there is no PCI device %s", bdf);
	if (strcmp(v->at.driver, "vfio-pci") != 0)
		return vfio_fail(&v->why, -EBUSY, "%s is bound to %s, not to vfio-pci; see docs/vfio.md", v->at.bdf,
				 v->at.driver[0] ? v->at.driver : "no driver");
	if (v->at.group < 0)
		return vfio_fail(&v->why, -EOPNOTSUPP,
				 "%s is behind no IOMMU; switch it on in the firmware and on the kernel's command line",
				 v->at.bdf);
	if (how && !how->there(&v->at))
		return vfio_fail(&v->why, -EOPNOTSUPP, "this kernel has no %s for %s", how->name, v->at.bdf);
	v->how = how ? how : vfio_iommu_iommufd.there(&v->at) ? &vfio_iommu_iommufd : &vfio_iommu_type1;
	return 0;
}

int vfio_life_open(struct vfio *v)
{
	int fds[TRANSPORT_MAX_IRQS], fd = -1;
	int r = v->n_left ? v->how->adopt(&v->iommu, &v->at, &v->saved, v->left, v->n_left, &fd, &v->why)
			  : v->how->open(&v->iommu, &v->at, &fd, &v->why);

	if (r < 0)
		return r;
	vfio_device_init(&v->device, fd);
	r = vfio_device_start(&v->device, &v->why);
	for (uint32_t i = 0; i < v->want_irqs; i++)
		fds[i] = v->lines[i].fd;
	if (r == 0)
		r = vfio_device_arm(&v->device, fds, v->want_irqs, &v->why);
	if (r == 0)
		r = vfio_device_arm_notices(&v->device, v->lines[VFIO_LINE_REQUEST].fd, v->lines[VFIO_LINE_ERROR].fd,
					    &v->why);
	return r;
}

void vfio_life_opened(struct vfio *v, int result)
{
	if (result < 0) {
		vfio_life_lose(v, result);
		return;
	}
	v->opened = true;
	v->events->opened(v->owner);
	/* An INTx of which a predecessor was told is masked still. */
	if (v->n_left && !v->error && !v->forgotten)
		vfio_device_unmask(&v->device);
}

int vfio_life_check(const struct vfio *v)
{
	if (v->error)
		return -ENODEV;
	return v->opened ? 0 : -ENOTCONN;
}

/* ---- the end ---- */

void vfio_life_leave(struct vfio *v)
{
	silence(v);
	event_del(&v->ev_lost);
}

/* The device first: its mappings go when nothing is attached any more. */
void vfio_life_end(void *arg)
{
	struct vfio *v = arg;

	vfio_device_fini(&v->device);
	for (uint32_t i = 0; i < v->n_left; i++)
		if (v->left[i] >= 0)
			close(v->left[i]);
	if (v->iommu)
		v->iommu->ops->close(v->iommu);
	for (uint32_t i = 0; i < VFIO_LINES; i++)
		if (v->lines[i].fd >= 0)
			close(v->lines[i].fd);
	free(v);
}
