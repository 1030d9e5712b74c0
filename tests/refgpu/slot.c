/* SPDX-License-Identifier: MIT */
/*
 * The slot's thread, its states, and control.
 *
 * Control values are taken in the order in which they were written, one at a time, outside of any section: when a
 * PAUSE is acknowledged, the access in flight is over. A halt (reset, ENABLE = 0) is no control value: it drops all,
 * acknowledges nothing and leaves the mailbox as it is.
 */
#include "slot.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "device.h"

uint64_t slot_mark(const struct slot *s, size_t field)
{
	return s->dev->mailbox + offsetof(struct refgpu_mailbox, slot) + s->index * sizeof(struct refgpu_slot_mark) +
	       field;
}

void slot_progress(struct slot *s)
{
	irqs_fire(&s->dev->irqs, REFGPU_VECTOR_PROGRESS);
}

void slot_set_state(struct slot *s, enum refgpu_slot_state state)
{
	if (s->state == state)
		return;
	s->state = state;
	port_store32(&s->port, slot_mark(s, offsetof(struct refgpu_slot_mark, state)), state);
}

static void slot_forget_tables(struct slot *s)
{
	s->mmu.root = 0;
	s->mmu.asid = 0;
}

static void slot_drop_words(struct slot *s, uint64_t tail)
{
	slot_forget_tables(s);
	if (tail > s->done)
		s->done = tail;
	pthread_mutex_lock(&s->lock);
	s->finished = s->done;
	pthread_mutex_unlock(&s->lock);
	port_store64(&s->port, slot_mark(s, offsetof(struct refgpu_slot_mark, done)), s->done);
	slot_set_state(s, REFGPU_SLOT_IDLE);
}

/* Lets one control value take effect, and says so. */
static enum slot_verdict control_apply(struct slot *s, const struct slot_ctrl *c)
{
	bool held = s->state == REFGPU_SLOT_PAUSED || s->state == REFGPU_SLOT_STALLED;
	enum slot_verdict verdict = SLOT_GO;

	switch (c->value & 0xff) {
	case REFGPU_CTRL_PAUSE:
		if (s->state != REFGPU_SLOT_STALLED)
			slot_set_state(s, REFGPU_SLOT_PAUSED);
		break;
	case REFGPU_CTRL_RESUME:
		if (held)
			slot_set_state(s, s->in_job ? REFGPU_SLOT_RUNNING : REFGPU_SLOT_IDLE);
		break;
	case REFGPU_CTRL_TERMINATE:
		if (held && s->in_job) {
			slot_set_state(s, REFGPU_SLOT_RUNNING);
			verdict = SLOT_END;
		}
		break;
	case REFGPU_CTRL_STOP:
		slot_drop_words(s, c->tail);
		verdict = SLOT_DROP;
		break;
	}
	port_store64(&s->port, slot_mark(s, offsetof(struct refgpu_slot_mark, ctrl_ack)), c->value);
	slot_progress(s);
	return verdict;
}

/* With the lock held. */
static struct slot_ctrl control_take(struct slot *s)
{
	struct slot_ctrl c = s->ctrl[0];

	s->n_ctrl--;
	memmove(s->ctrl, s->ctrl + 1, s->n_ctrl * sizeof(s->ctrl[0]));
	atomic_store(&s->attention, s->n_ctrl || !s->enabled);
	return c;
}

/* With the lock held, which is given up for the time of the effect. */
static enum slot_verdict control_next(struct slot *s)
{
	struct slot_ctrl c = control_take(s);
	enum slot_verdict verdict;

	pthread_mutex_unlock(&s->lock);
	verdict = control_apply(s, &c);
	pthread_mutex_lock(&s->lock);
	return verdict;
}

static bool slot_is_held(const struct slot *s)
{
	return s->state == REFGPU_SLOT_PAUSED || s->state == REFGPU_SLOT_STALLED;
}

/* Obeys control until the word may go on; `wait_more`: it never may. */
static enum slot_verdict slot_obey(struct slot *s, bool wait_more)
{
	enum slot_verdict verdict = SLOT_GO;

	pthread_mutex_lock(&s->lock);
	while (verdict == SLOT_GO) {
		if (!s->enabled)
			verdict = SLOT_DROP;
		else if (s->n_ctrl)
			verdict = control_next(s);
		else if (wait_more || slot_is_held(s))
			pthread_cond_wait(&s->wake, &s->lock);
		else
			break;
	}
	pthread_mutex_unlock(&s->lock);
	return verdict;
}

enum slot_verdict slot_attend(struct slot *s)
{
	if (!atomic_load_explicit(&s->attention, memory_order_relaxed))
		return SLOT_GO;
	return slot_obey(s, false);
}

enum slot_verdict slot_hang(struct slot *s, bool all)
{
	if (all)
		return slot_obey(s, true);
	pthread_mutex_lock(&s->lock);
	while (s->enabled)
		pthread_cond_wait(&s->wake, &s->lock);
	pthread_mutex_unlock(&s->lock);
	return SLOT_DROP;
}

static void slot_report(struct slot *s, const struct refgpu_fault *f, bool stalled)
{
	struct refgpu_fault fault = *f;

	fault.slot = s->index;
	fault.asid = s->mmu.asid;
	fault.job = s->job;
	fault.stalled = stalled;
	faultq_put(&s->dev->faultq, &s->port, &fault);
}

enum slot_verdict slot_fault(struct slot *s, const struct refgpu_fault *f)
{
	enum slot_verdict verdict;

	/* What was to be obeyed before the access comes first; after a reset there is nothing to report. */
	verdict = slot_attend(s);
	if (verdict != SLOT_GO)
		return verdict;
	if (atomic_load(&s->fault_mode) != 1) {
		slot_report(s, f, false);
		return SLOT_END;
	}
	slot_set_state(s, REFGPU_SLOT_STALLED);
	slot_report(s, f, true);
	slot_progress(s);
	return slot_obey(s, false);
}

enum slot_verdict slot_word_fault(struct slot *s, uint32_t code, uint64_t addr, uint32_t access)
{
	struct refgpu_fault f = {.code = code, .addr = addr, .access = access};

	if (atomic_load(&s->port.abandon))
		return SLOT_DROP;
	slot_report(s, &f, false);
	return SLOT_END;
}

/* With the lock held. */
static void slot_rest(struct slot *s)
{
	slot_forget_tables(s);
	s->tail = 0; /* a ring may be set again */
	s->n_ctrl = 0;
	s->done = 0;
	s->finished = 0;
	s->state = REFGPU_SLOT_IDLE;
	s->parked = true;
	pthread_cond_broadcast(&s->parked_now);
}

static void *slot_main(void *arg)
{
	struct slot *s = arg;

	pthread_mutex_lock(&s->lock);
	while (!s->quit) {
		if (!s->enabled && !s->parked) {
			slot_rest(s);
		} else if (s->enabled && s->n_ctrl) {
			control_next(s);
		} else if (s->enabled && s->state != REFGPU_SLOT_PAUSED && s->done < s->tail) {
			pthread_mutex_unlock(&s->lock);
			ring_run(s);
			pthread_mutex_lock(&s->lock);
		} else {
			pthread_cond_wait(&s->wake, &s->lock);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int slot_init(struct slot *s, struct device *dev, uint32_t index)
{
	int r;

	s->dev = dev;
	s->index = index;
	bus_port_init(&s->port, &dev->dma);
	s->mmu = (struct mmu_context){.tlb = &dev->tlb, .port = &s->port, .status = dev->status.page};
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->wake, NULL);
	pthread_cond_init(&s->parked_now, NULL);
	r = pthread_create(&s->thread, NULL, slot_main, s);
	s->started = r == 0;
	return -r;
}

void slot_fini(struct slot *s)
{
	if (!s->started)
		return;
	pthread_mutex_lock(&s->lock);
	s->quit = true;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->parked_now);
	pthread_cond_destroy(&s->wake);
	pthread_mutex_destroy(&s->lock);
}

void slot_start(struct slot *s, uint64_t ring, uint32_t ring_size)
{
	pthread_mutex_lock(&s->lock);
	s->ring = ring;
	s->ring_size = ring_size;
	s->tail = 0;
	s->n_ctrl = 0;
	s->mmu.format = s->dev->format;
	s->parked = false;
	s->enabled = true;
	atomic_store(&s->attention, false);
	atomic_store(&s->port.abandon, false);
	pthread_mutex_unlock(&s->lock);
}

void slot_halt(struct slot *s)
{
	pthread_mutex_lock(&s->lock);
	s->enabled = false;
	atomic_store(&s->attention, true);
	atomic_store(&s->port.abandon, true);
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->lock);
}

void slot_park(struct slot *s)
{
	pthread_mutex_lock(&s->lock);
	while (!s->parked)
		pthread_cond_wait(&s->parked_now, &s->lock);
	pthread_mutex_unlock(&s->lock);
}

int slot_doorbell(struct slot *s, uint64_t tail)
{
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (!s->enabled || !s->ring_size || (tail > s->tail && tail - s->finished > s->ring_size)) {
		r = -EINVAL;
	} else if (tail > s->tail) {
		s->tail = tail;
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

int slot_set_ring(struct slot *s, uint64_t ring, uint32_t ring_size)
{
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (s->tail) {
		r = -EBUSY;
	} else {
		s->ring = ring;
		s->ring_size = ring_size;
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

int slot_control(struct slot *s, uint64_t value)
{
	unsigned int at;

	if ((value & 0xff) < REFGPU_CTRL_PAUSE || (value & 0xff) > REFGPU_CTRL_STOP)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	if (s->enabled) {
		at = s->n_ctrl < SLOT_MAX_CTRL ? s->n_ctrl++ : SLOT_MAX_CTRL - 1;
		s->ctrl[at] = (struct slot_ctrl){.value = value, .tail = s->tail};
		atomic_store(&s->attention, true);
		pthread_cond_signal(&s->wake);
	}
	pthread_mutex_unlock(&s->lock);
	return 0;
}
