/* SPDX-License-Identifier: MIT */
/*
 * A device's life behind the kernel's VFIO: found, opened, listened to, lost, closed. Knows nothing of the requests that are
 * made in between (vfio.c), of which a reset alone has a deadline.
 *
 * All of it is called on the loop, but for what is said to be the thread's.
 */
#ifndef TRANSPORT_VFIO_LIFE_H
#define TRANSPORT_VFIO_LIFE_H

#include <event2/event_struct.h>

#include "transport/vfio_priv.h"

struct event_base;
struct worker;

enum { /* up to TRANSPORT_MAX_IRQS: the vectors */
       VFIO_LINE_REQUEST = TRANSPORT_MAX_IRQS,
       VFIO_LINE_ERROR,
       VFIO_LINES,
};

struct vfio_line { /* an eventfd that the kernel signals */
	struct vfio *v;
	uint32_t vector; /* or a VFIO_LINE_* */
	int fd;
	struct event ev;
};

struct vfio {
	struct transport transport;
	const struct transport_events *events;
	void *owner;
	struct event_base *base;
	struct worker *worker;
	const struct vfio_iommu_ops *how;
	struct pci_place at;
	uint32_t want_irqs, deadline_ms;
	struct vfio_line lines[VFIO_LINES];
	struct event ev_reset; /* the deadline */
	struct event ev_lost; /* tells the owner from the loop */
	struct event ev_again; /* ... of an interrupt that nobody could look at */
	struct event ev_iommu; /* the IOMMU has records of faults */
	bool listens_iommu;
	bool resetting; /* the thread has begun to; both sides ask, atomically */
	uint32_t n_out; /* requests */
	bool crowded; /* somebody was refused */
	bool opened, forgotten;
	int error; /* lost */
	/* Of a predecessor, n_left 0: there is none. The thread takes over what is in `left`; the others stay as they were. */
	struct vfio_saved saved;
	int left[TRANSPORT_KEEP_MAX], kept[TRANSPORT_KEEP_MAX];
	uint32_t n_left;
	/* The thread's alone until it has opened the device; from then on each call says who makes it. */
	struct vfio_iommu *iommu;
	struct vfio_device device;
	struct vfio_why why;
	struct vfio_why why_no_reset, why_no_nest; /* the thread's until its answer is there */
};

struct vfio *vfio_life_new(const struct transport_ops *ops, struct event_base *base,
			   const struct transport_events *events, void *owner);
/* What can be said without opening it. `how` NULL: whichever is there. 0, or -errno and v->why. */
int vfio_life_find(struct vfio *v, const char *bdf, const struct vfio_iommu_ops *how);
/* Makes and listens to the eventfds for its interrupts and notices. */
int vfio_life_listen(struct vfio *v);
/* On the thread: opens the device, or takes it over; its result is for vfio_life_opened(). */
int vfio_life_open(struct vfio *v);
void vfio_life_opened(struct vfio *v, int result);
/* 0; -ENOTCONN: not yet; -ENODEV: not any more. */
int vfio_life_check(const struct vfio *v);

/* A reset is about to be asked for; the thread does it; it is over, or was not asked for. A device that cannot be reset is
 * lost. */
void vfio_life_reset_ahead(struct vfio *v);
int vfio_life_reset(struct vfio *v); /* on the thread */
void vfio_life_reset_over(struct vfio *v, int result);

/* Its first stage is ours: listens to what the IOMMU says of it. */
int vfio_life_nested(struct vfio *v);

/* The first reason counts. The owner hears of it from the loop. */
void vfio_life_lose(struct vfio *v, int error);
/* Nothing is listened to any more; the owner hears nothing. */
void vfio_life_forget(struct vfio *v);
/* Nothing of it is in the loop any more. */
void vfio_life_leave(struct vfio *v);
/* The end, on the thread if there is one; takes a struct vfio. */
void vfio_life_end(void *arg);

#endif
