/* SPDX-License-Identifier: MIT */
/*
 * Writing fault records: record first, then the tail, then the interrupt.
 *
 * Two locks: `put_lock` orders the writers and may be held while a client's memory answers slowly; `lock` guards the
 * numbers and is what the message loop takes, so that it never waits for memory.
 */
#include "faultq.h"
#include "status.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

void faultq_init(struct faultq *q, struct refgpu_status *status, struct irqs *irqs)
{
	memset(q, 0, sizeof(*q));
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->put_lock, NULL);
	q->status = status;
	q->irqs = irqs;
}

void faultq_fini(struct faultq *q)
{
	pthread_mutex_destroy(&q->put_lock);
	pthread_mutex_destroy(&q->lock);
}

void faultq_start(struct faultq *q, uint64_t mailbox, uint64_t base, uint32_t size)
{
	pthread_mutex_lock(&q->lock);
	q->mailbox = mailbox;
	q->base = base;
	q->size = size;
	q->head = 0;
	q->tail = 0;
	q->lost = 0;
	pthread_mutex_unlock(&q->lock);
}

int faultq_set_head(struct faultq *q, uint64_t head)
{
	int r = 0;

	pthread_mutex_lock(&q->lock);
	if (head < q->head || head > q->tail)
		r = -EINVAL;
	else
		q->head = head;
	pthread_mutex_unlock(&q->lock);
	return r;
}

static int faultq_room(struct faultq *q, uint64_t *at)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = q->tail - q->head < q->size;
	if (r)
		*at = q->base + (q->tail & (q->size - 1)) * sizeof(struct refgpu_fault);
	pthread_mutex_unlock(&q->lock);
	return r;
}

static void faultq_commit(struct faultq *q, struct bus_port *port)
{
	uint64_t tail;

	pthread_mutex_lock(&q->lock);
	tail = ++q->tail;
	pthread_mutex_unlock(&q->lock);
	port_store64(port, q->mailbox + offsetof(struct refgpu_mailbox, faultq_tail), tail);
}

void faultq_put(struct faultq *q, struct bus_port *port, const struct refgpu_fault *f)
{
	uint64_t at;

	status_add(&q->status->faults, 1);
	pthread_mutex_lock(&q->put_lock);
	if (faultq_room(q, &at) && port_write(port, at, f, sizeof(*f)) == 0)
		faultq_commit(q, port);
	else
		port_store64(port, q->mailbox + offsetof(struct refgpu_mailbox, faultq_lost), ++q->lost);
	pthread_mutex_unlock(&q->put_lock);
	irqs_fire(q->irqs, REFGPU_VECTOR_FAULT);
}
