/* SPDX-License-Identifier: MIT */
/*
 * The calls: a list under the connection's lock, found again by message id and command.
 *
 * The caller's buffer is private memory, never something mapped, so that copying under the lock cannot fault.
 */
#include "remote.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define ANSWER_TIMEOUT_MS 2000
#define LOOK_EVERY_MS 10

struct remote_call {
	struct remote_call *next;
	uint16_t id;
	uint16_t command;
	struct vfio_user_dma_access what;
	void *buf; /* DMA_READ: where the data goes */
	bool done;
	int result;
};

static void call_add(struct conn *c, struct remote_call *call)
{
	pthread_mutex_lock(&c->lock);
	call->id = c->next_id++;
	call->next = c->calls;
	c->calls = call;
	pthread_mutex_unlock(&c->lock);
}

/* With the lock held. */
static void call_remove(struct conn *c, struct remote_call *call)
{
	struct remote_call **p = &c->calls;

	while (*p != call)
		p = &(*p)->next;
	*p = call->next;
}

static void deadline_in(struct timespec *t, long ms)
{
	clock_gettime(CLOCK_MONOTONIC, t);
	t->tv_nsec += ms * 1000000;
	if (t->tv_nsec >= 1000000000) {
		t->tv_sec++;
		t->tv_nsec -= 1000000000;
	}
}

static int call_wait(struct conn *c, struct bus_port *port, struct remote_call *call)
{
	struct timespec until;
	int turns = ANSWER_TIMEOUT_MS / LOOK_EVERY_MS;

	pthread_mutex_lock(&c->lock);
	while (!call->done && turns > 0 && !atomic_load(&c->dead) && !atomic_load(&port->abandon)) {
		deadline_in(&until, LOOK_EVERY_MS);
		if (pthread_cond_timedwait(&c->answered, &c->lock, &until) == ETIMEDOUT)
			turns--;
	}
	call_remove(c, call);
	pthread_mutex_unlock(&c->lock);
	return call->done ? call->result : -EFAULT;
}

static int call_make(struct conn *c, struct bus_port *port, struct remote_call *call, const void *data)
{
	size_t size = data ? call->what.count : 0;
	struct vfio_user_header hdr = {.command = call->command};

	call_add(c, call);
	hdr.id = call->id;
	hdr.size = (uint32_t)(sizeof(hdr) + sizeof(call->what) + size);
	if (conn_send(c, &hdr, &call->what, sizeof(call->what), data, size, -1) < 0) {
		call->done = true;
		call->result = -EFAULT;
	}
	return call_wait(c, port, call);
}

static size_t at_most(size_t len, size_t max)
{
	return len < max ? len : max;
}

static int remote_read(void *arg, struct bus_port *port, uint64_t bus, void *buf, size_t len)
{
	struct conn *c = arg;
	uint8_t *to = buf;
	size_t n;
	int r = 0;

	for (; len && r == 0; len -= n, bus += n, to += n) {
		struct remote_call call = {.command = VFIO_USER_DMA_READ, .buf = to};

		n = at_most(len, atomic_load(&c->max_xfer));
		call.what = (struct vfio_user_dma_access){.address = bus, .count = n};
		r = call_make(c, port, &call, NULL);
	}
	return r;
}

static int remote_write(void *arg, struct bus_port *port, uint64_t bus, const void *buf, size_t len)
{
	const uint8_t *from = buf;
	struct conn *c = arg;
	size_t n;
	int r = 0;

	for (; len && r == 0; len -= n, bus += n, from += n) {
		struct remote_call call = {.command = VFIO_USER_DMA_WRITE};

		n = at_most(len, atomic_load(&c->max_xfer));
		call.what = (struct vfio_user_dma_access){.address = bus, .count = n};
		r = call_make(c, port, &call, from);
	}
	return r;
}

void remote_init(struct dma_remote *r, struct conn *c)
{
	*r = (struct dma_remote){.read = remote_read, .write = remote_write, .arg = c};
}

static int answer_judge(const struct remote_call *call, const struct message *m)
{
	struct vfio_user_dma_access what = {0};
	size_t head = m->size < sizeof(what) ? m->size : sizeof(what);

	if (m->hdr.flags & VFIO_USER_ERROR)
		return -EFAULT;
	memcpy(&what, m->payload, head);
	if (what.address != call->what.address || (uint32_t)what.count != call->what.count)
		return -EFAULT;
	if (call->buf)
		return m->size == sizeof(what) + call->what.count ? 0 : -EFAULT;
	return m->size >= VFIO_USER_DMA_WRITE_REPLY_MIN && m->size <= sizeof(what) ? 0 : -EFAULT;
}

int remote_answer(struct conn *c, const struct message *m)
{
	struct remote_call *call;
	int r = -ENOENT;

	pthread_mutex_lock(&c->lock);
	for (call = c->calls; call; call = call->next)
		if (call->id == m->hdr.id && call->command == m->hdr.command && !call->done)
			break;
	if (call) {
		r = call->result = answer_judge(call, m);
		if (r == 0 && call->buf)
			memcpy(call->buf, m->payload + sizeof(call->what), call->what.count);
		call->done = true;
		pthread_cond_broadcast(&c->answered);
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}
