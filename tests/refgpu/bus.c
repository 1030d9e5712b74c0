/* SPDX-License-Identifier: MIT */
/*
 * Touching the bus: sections, single words, and memory that breaks while it is touched.
 *
 * SIGBUS is taken as what a bus error is to a real device. The handler runs on the thread that touched and jumps back
 * to its bus_run; a SIGBUS outside a section is a bug and ends the process as usual.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "dma.h"

static _Thread_local sigjmp_buf *section_exit;
static _Thread_local struct bus_port *section_port;

static void sigbus(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (section_exit) {
		atomic_store(&section_port->broke, (uintptr_t)info->si_addr);
		siglongjmp(*section_exit, 1);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

/* SA_NODEFER: the jump leaves the handler for good, so the signal must not stay blocked. */
int bus_catch_sigbus(void)
{
	struct sigaction sa = {.sa_sigaction = sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigemptyset(&sa.sa_mask);
	return sigaction(SIGBUS, &sa, NULL) < 0 ? -errno : 0;
}

void bus_port_init(struct bus_port *port, struct dma *d)
{
	memset(port, 0, sizeof(*port));
	port->dma = d;
	d->ports[d->n_ports++] = port;
}

int bus_run(struct bus_port *port, int (*fn)(void *arg), void *arg)
{
	sigjmp_buf here;
	int r;

	atomic_fetch_add(&port->busy, 1);
	atomic_store_explicit(&port->broke, 0, memory_order_relaxed);
	section_port = port;
	if (sigsetjmp(here, 0) == 0) {
		section_exit = &here;
		r = fn(arg);
	} else {
		r = -EFAULT;
	}
	section_exit = NULL;
	atomic_fetch_add(&port->busy, 1);
	return r;
}

static int remote_read(struct bus_port *port, uint64_t bus, void *buf, uint64_t len)
{
	const struct dma_remote *remote = port->dma->remote;

	return remote ? remote->read(remote->arg, port, bus, buf, len) : -EFAULT;
}

static int remote_write(struct bus_port *port, uint64_t bus, const void *buf, uint64_t len)
{
	const struct dma_remote *remote = port->dma->remote;

	return remote ? remote->write(remote->arg, port, bus, buf, len) : -EFAULT;
}

static uint64_t at_most(uint64_t len, uint64_t max)
{
	return len < max ? len : max;
}

int bus_read(struct bus_port *port, uint64_t bus, void *buf, uint64_t len)
{
	struct bus_span span;
	uint8_t *p = buf;
	int r;

	while (len) {
		r = bus_span(port, bus, at_most(len, DMA_REMOTE_MAX), DMA_READ, &span);
		if (r < 0)
			return r;
		if (span.host)
			memcpy(p, span.host, span.len);
		else
			r = remote_read(port, bus, p, span.len);
		if (r < 0)
			return r;
		p += span.len;
		bus += span.len;
		len -= span.len;
	}
	return 0;
}

int bus_write(struct bus_port *port, uint64_t bus, const void *buf, uint64_t len)
{
	const uint8_t *p = buf;
	struct bus_span span;
	int r;

	while (len) {
		r = bus_span(port, bus, at_most(len, DMA_REMOTE_MAX), DMA_WRITE, &span);
		if (r < 0)
			return r;
		if (span.host)
			memcpy(span.host, p, span.len);
		else
			r = remote_write(port, bus, p, span.len);
		if (r < 0)
			return r;
		p += span.len;
		bus += span.len;
		len -= span.len;
	}
	return 0;
}

int bus_load64(struct bus_port *port, uint64_t bus, uint64_t *ret)
{
	struct bus_span span;
	int r = bus_span(port, bus, 8, DMA_READ, &span);

	if (r < 0 || bus % 8)
		return -EFAULT;
	if (!span.host)
		return remote_read(port, bus, ret, 8);
	*ret = __atomic_load_n((const uint64_t *)(const void *)span.host, __ATOMIC_ACQUIRE);
	return 0;
}

int bus_store64(struct bus_port *port, uint64_t bus, uint64_t val)
{
	struct bus_span span;
	int r = bus_span(port, bus, 8, DMA_WRITE, &span);

	if (r < 0 || bus % 8)
		return -EFAULT;
	if (!span.host)
		return remote_write(port, bus, &val, 8);
	__atomic_store_n((uint64_t *)(void *)span.host, val, __ATOMIC_RELEASE);
	return 0;
}

int bus_store32(struct bus_port *port, uint64_t bus, uint32_t val)
{
	struct bus_span span;
	int r = bus_span(port, bus, 4, DMA_WRITE, &span);

	if (r < 0 || bus % 4)
		return -EFAULT;
	if (!span.host)
		return remote_write(port, bus, &val, 4);
	__atomic_store_n((uint32_t *)(void *)span.host, val, __ATOMIC_RELEASE);
	return 0;
}

struct transfer {
	struct bus_port *port;
	uint64_t bus;
	void *in;
	const void *out;
	uint64_t len;
};

static int transfer_read(void *arg)
{
	const struct transfer *t = arg;

	return bus_read(t->port, t->bus, t->in, t->len);
}

static int transfer_write(void *arg)
{
	const struct transfer *t = arg;

	return bus_write(t->port, t->bus, t->out, t->len);
}

static int transfer_store64(void *arg)
{
	const struct transfer *t = arg;

	return bus_store64(t->port, t->bus, t->len);
}

static int transfer_store32(void *arg)
{
	const struct transfer *t = arg;

	return bus_store32(t->port, t->bus, (uint32_t)t->len);
}

int port_read(struct bus_port *port, uint64_t bus, void *buf, uint64_t len)
{
	struct transfer t = {.port = port, .bus = bus, .in = buf, .len = len};

	return bus_run(port, transfer_read, &t);
}

int port_write(struct bus_port *port, uint64_t bus, const void *buf, uint64_t len)
{
	struct transfer t = {.port = port, .bus = bus, .out = buf, .len = len};

	return bus_run(port, transfer_write, &t);
}

int port_store64(struct bus_port *port, uint64_t bus, uint64_t val)
{
	struct transfer t = {.port = port, .bus = bus, .len = val};

	return bus_run(port, transfer_store64, &t);
}

int port_store32(struct bus_port *port, uint64_t bus, uint32_t val)
{
	struct transfer t = {.port = port, .bus = bus, .len = val};

	return bus_run(port, transfer_store32, &t);
}
