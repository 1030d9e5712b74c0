/* SPDX-License-Identifier: MIT */
/*
 * The invalidation thread: takes what is queued, lets the TLB forget it, waits once for all, and says so.
 */
#include "invq.h"
#include "status.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static void count_malformed(struct invq *q)
{
	status_add(&q->status->malformed, 1);
}

static void entry_apply(struct invq *q, const struct refgpu_inv *e)
{
	if (e->op == REFGPU_INV_RANGE && e->asid < TLB_ASIDS && e->first <= e->last)
		tlb_invalidate_range(q->tlb, (uint16_t)e->asid, e->first, e->last);
	else if (e->op == REFGPU_INV_ASID && e->asid < TLB_ASIDS)
		tlb_invalidate_asid(q->tlb, (uint16_t)e->asid);
	else
		tlb_invalidate_all(q->tlb);
	if (e->op < REFGPU_INV_RANGE || e->op > REFGPU_INV_ALL)
		count_malformed(q);
	status_add(&q->status->invalidations, 1);
}

static void entries_run(struct invq *q, uint64_t head, uint64_t tail)
{
	struct refgpu_inv e;

	for (; head != tail; head++) {
		if (port_read(&q->port, q->base + (head & (q->size - 1)) * sizeof(e), &e, sizeof(e)) < 0)
			e = (struct refgpu_inv){.op = 0};
		entry_apply(q, &e);
	}
	dma_quiesce(q->port.dma, NULL, NULL);
}

/* With the lock held; lets go of it for the work. A halt in between keeps the head where it was. */
static void invq_turn(struct invq *q)
{
	uint64_t head = q->head, tail = q->tail, mailbox = q->mailbox;

	pthread_mutex_unlock(&q->lock);
	entries_run(q, head, tail);
	pthread_mutex_lock(&q->lock);
	if (!q->enabled)
		return;
	q->head = tail;
	pthread_mutex_unlock(&q->lock);
	port_store64(&q->port, mailbox + offsetof(struct refgpu_mailbox, invq_head), tail);
	irqs_fire(q->irqs, REFGPU_VECTOR_INVALIDATE);
	pthread_mutex_lock(&q->lock);
}

static void *invq_main(void *arg)
{
	struct invq *q = arg;

	pthread_mutex_lock(&q->lock);
	while (!q->quit) {
		if (q->enabled && q->head != q->tail) {
			invq_turn(q);
			continue;
		}
		if (!q->enabled && !q->parked) {
			q->parked = true;
			pthread_cond_broadcast(&q->parked_now);
		}
		pthread_cond_wait(&q->wake, &q->lock);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

int invq_init(struct invq *q, struct dma *dma, struct tlb *tlb, struct irqs *irqs, struct refgpu_status *status)
{
	int r;

	memset(q, 0, sizeof(*q));
	bus_port_init(&q->port, dma);
	q->tlb = tlb;
	q->irqs = irqs;
	q->status = status;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->wake, NULL);
	pthread_cond_init(&q->parked_now, NULL);
	r = pthread_create(&q->thread, NULL, invq_main, q);
	q->started = r == 0;
	return -r;
}

void invq_fini(struct invq *q)
{
	if (q->started) {
		pthread_mutex_lock(&q->lock);
		q->quit = true;
		pthread_cond_signal(&q->wake);
		pthread_mutex_unlock(&q->lock);
		pthread_join(q->thread, NULL);
	}
	pthread_cond_destroy(&q->parked_now);
	pthread_cond_destroy(&q->wake);
	pthread_mutex_destroy(&q->lock);
}

void invq_start(struct invq *q, uint64_t mailbox, uint64_t base, uint32_t size)
{
	pthread_mutex_lock(&q->lock);
	q->mailbox = mailbox;
	q->base = base;
	q->size = size;
	q->head = 0;
	q->tail = 0;
	q->parked = false;
	q->enabled = true;
	atomic_store(&q->port.abandon, false);
	pthread_cond_signal(&q->wake);
	pthread_mutex_unlock(&q->lock);
}

void invq_halt(struct invq *q)
{
	pthread_mutex_lock(&q->lock);
	q->enabled = false;
	atomic_store(&q->port.abandon, true);
	pthread_cond_signal(&q->wake);
	pthread_mutex_unlock(&q->lock);
}

void invq_park(struct invq *q)
{
	pthread_mutex_lock(&q->lock);
	while (!q->parked)
		pthread_cond_wait(&q->parked_now, &q->lock);
	pthread_mutex_unlock(&q->lock);
}

int invq_doorbell(struct invq *q, uint64_t tail)
{
	int r = 0;

	pthread_mutex_lock(&q->lock);
	if (!q->enabled || (tail > q->tail && tail - q->head > q->size)) {
		r = -EINVAL;
	} else if (tail > q->tail) {
		q->tail = tail;
		pthread_cond_signal(&q->wake);
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}
