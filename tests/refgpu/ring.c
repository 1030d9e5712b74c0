/* SPDX-License-Identifier: MIT */
/*
 * Ring words: what the driver tells a slot to do.
 *
 * A word is copied once and then judged. One that cannot be read or makes no sense is reported and ends like a job
 * that faulted (its fence is written, if it has one), so that the ring never blocks on the driver's own mistake.
 */
#include <stddef.h>
#include <string.h>

#include "device.h"
#include "slot.h"
#include "status.h"

#define ADDRESS_BITS 48

static void count(uint64_t *counter)
{
	status_add(counter, 1);
}

static enum slot_verdict word_fence(struct slot *s, const struct refgpu_ring_word *w)
{
	if (w->fence && port_store64(&s->port, w->fence, w->job) < 0)
		return slot_word_fault(s, REFGPU_FAULT_BUS, w->fence, REFGPU_WRITE);
	return SLOT_END;
}

static enum slot_verdict word_run(struct slot *s, const struct refgpu_ring_word *w)
{
	enum slot_verdict verdict;

	s->job = w->job;
	s->in_job = true;
	if (w->len % REFGPU_CMD_SIZE || w->addr + w->len < w->addr)
		verdict = slot_word_fault(s, REFGPU_FAULT_COMMAND, w->addr, REFGPU_FETCH);
	else
		verdict = exec_run(s, w->addr, w->len);
	s->in_job = false;
	if (verdict == SLOT_DROP || word_fence(s, w) == SLOT_DROP)
		return SLOT_DROP;
	count(&s->dev->status.page->jobs);
	return SLOT_END;
}

static enum slot_verdict word_set_ttbr(struct slot *s, const struct refgpu_ring_word *w)
{
	if (w->asid >= TLB_ASIDS || w->addr % 4096 || w->addr >> ADDRESS_BITS)
		return slot_word_fault(s, REFGPU_FAULT_COMMAND, w->addr, REFGPU_FETCH);
	if (s->mmu.root != w->addr || s->mmu.asid != w->asid) {
		count(&s->dev->status.page->switches);
		count(&s->dev->status.page->slot_switches[s->index]);
	}
	s->mmu.root = w->addr;
	s->mmu.asid = (uint16_t)w->asid;
	return SLOT_GO;
}

static enum slot_verdict word_dispatch(struct slot *s, const struct refgpu_ring_word *w)
{
	s->job = 0;
	switch (w->op) {
	case REFGPU_RING_RUN:
		return word_run(s, w);
	case REFGPU_RING_SET_TTBR:
		return word_set_ttbr(s, w);
	case REFGPU_RING_SCRUB:
		memset(s->scratch, 0, sizeof(s->scratch));
		count(&s->dev->status.page->scrubs);
		return SLOT_GO;
	default:
		return slot_word_fault(s, REFGPU_FAULT_COMMAND, w->addr, REFGPU_FETCH);
	}
}

/* done, then the state if there is nothing more, then one interrupt for both. */
static void word_finish(struct slot *s)
{
	bool more;

	s->done++;
	pthread_mutex_lock(&s->lock);
	s->finished = s->done;
	more = s->done < s->tail;
	pthread_mutex_unlock(&s->lock);
	port_store64(&s->port, slot_mark(s, offsetof(struct refgpu_slot_mark, done)), s->done);
	if (!more)
		slot_set_state(s, REFGPU_SLOT_IDLE);
	slot_progress(s);
}

static uint64_t word_address(struct slot *s)
{
	uint64_t at;

	pthread_mutex_lock(&s->lock);
	at = s->ring + (s->done & (s->ring_size - 1)) * sizeof(struct refgpu_ring_word);
	pthread_mutex_unlock(&s->lock);
	return at;
}

void ring_run(struct slot *s)
{
	struct refgpu_ring_word w;
	enum slot_verdict verdict;
	uint64_t at = word_address(s);

	port_store64(&s->port, slot_mark(s, offsetof(struct refgpu_slot_mark, begun)), s->done + 1);
	slot_set_state(s, REFGPU_SLOT_RUNNING);
	slot_progress(s);
	if (port_read(&s->port, at, &w, sizeof(w)) < 0)
		verdict = slot_word_fault(s, REFGPU_FAULT_BUS, at, REFGPU_READ);
	else
		verdict = word_dispatch(s, &w);
	if (verdict != SLOT_DROP)
		word_finish(s);
}
