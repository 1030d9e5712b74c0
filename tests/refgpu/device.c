/* SPDX-License-Identifier: MIT */
/*
 * Putting the device together, starting and stopping it.
 */
#include "device.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

static int device_init(struct device *d, unsigned int n_slots, const char *status_path)
{
	unsigned int i;
	int r;

	r = status_page_init(&d->status, status_path, n_slots);
	if (r < 0)
		return r;
	r = dma_init(&d->dma, d->status.page);
	if (r < 0)
		return r;
	pthread_mutex_init(&d->remote_atomics, NULL);
	irqs_init(&d->irqs);
	tlb_init(&d->tlb, d->status.page);
	faultq_init(&d->faultq, d->status.page, &d->irqs);
	pci_init(&d->pci, false);
	bus_port_init(&d->loop_port, &d->dma);
	d->regs.low_at = UINT32_MAX;
	r = invq_init(&d->invq, &d->dma, &d->tlb, &d->irqs, d->status.page);
	for (i = 0; i < n_slots && r == 0; i++)
		r = slot_init(&d->slots[i], d, i);
	return r;
}

int device_new(struct device **ret, unsigned int n_slots, const char *status_path)
{
	struct device *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	d->status.fd_ro = -1;
	d->n_slots = n_slots;
	d->slots = calloc(n_slots, sizeof(*d->slots));
	r = d->slots ? device_init(d, n_slots, status_path) : -ENOMEM;
	if (r < 0) {
		device_free(d);
		return r;
	}
	*ret = d;
	return 0;
}

void device_set_apart(struct device *d)
{
	d->apart = true;
	pci_init(&d->pci, true);
}

struct device *device_free(struct device *d)
{
	unsigned int i;

	if (!d)
		return NULL;
	if (d->dma.status) {
		if (d->invq.started)
			device_disable(d);
		for (i = 0; i < d->n_slots; i++)
			slot_fini(&d->slots[i]);
		invq_fini(&d->invq);
		faultq_fini(&d->faultq);
		tlb_fini(&d->tlb);
		irqs_fini(&d->irqs);
		pthread_mutex_destroy(&d->remote_atomics);
		dma_fini(&d->dma);
	}
	status_page_fini(&d->status);
	free(d->slots);
	free(d);
	return NULL;
}

static bool queue_ok(uint64_t base, uint32_t size, size_t entry)
{
	return size && size <= 4096 && (size & (size - 1)) == 0 && base % 8 == 0 && base + size * entry - 1 >= base;
}

static bool regs_ok(const struct device *d)
{
	const struct regs *r = &d->regs;
	unsigned int i;

	for (i = 0; i < d->n_slots; i++)
		if (r->slot[i].ring_size &&
		    !queue_ok(r->slot[i].ring, r->slot[i].ring_size, sizeof(struct refgpu_ring_word)))
			return false;
	return r->mailbox % PAGE == 0 && queue_ok(r->invq, r->invq_size, sizeof(struct refgpu_inv)) &&
	       queue_ok(r->faultq, r->faultq_size, sizeof(struct refgpu_fault));
}

struct zeroing {
	struct bus_port *port;
	uint64_t bus;
};

static int zero_mailbox(void *arg)
{
	const struct zeroing *z = arg;
	struct bus_span span;
	int r = bus_span(z->port, z->bus, sizeof(struct refgpu_mailbox), DMA_WRITE, &span);

	if (r < 0)
		return r;
	if (span.host)
		memset(span.host, 0, span.len);
	return 0;
}

/* A mailbox in memory that only the client can write stays as it is: the loop that asks it cannot wait for it. */
static int mailbox_zero(struct device *d)
{
	struct zeroing z = {.port = &d->loop_port, .bus = d->regs.mailbox};

	return bus_run(&d->loop_port, zero_mailbox, &z) < 0 ? -EINVAL : 0;
}

int device_enable(struct device *d)
{
	struct regs *r = &d->regs;
	unsigned int i;

	if (d->enabled)
		return 0;
	if (!regs_ok(d) || mailbox_zero(d) < 0)
		return -EINVAL;
	d->mailbox = r->mailbox;
	d->format = (enum refgpu_format)r->format;
	d->enabled = true;
	r->invq_tail = 0;
	r->faultq_head = 0;
	faultq_start(&d->faultq, d->mailbox, r->faultq, r->faultq_size);
	invq_start(&d->invq, d->mailbox, r->invq, r->invq_size);
	for (i = 0; i < d->n_slots; i++) {
		r->slot[i].tail = 0;
		slot_start(&d->slots[i], r->slot[i].ring, r->slot[i].ring_size);
	}
	return 0;
}

void device_disable(struct device *d)
{
	unsigned int i;

	for (i = 0; i < d->n_slots; i++)
		if (d->slots[i].started)
			slot_halt(&d->slots[i]);
	invq_halt(&d->invq);
	for (i = 0; i < d->n_slots; i++)
		if (d->slots[i].started)
			slot_park(&d->slots[i]);
	invq_park(&d->invq);
	d->enabled = false;
}

void device_reset(struct device *d)
{
	unsigned int i;

	device_disable(d);
	tlb_invalidate_all(&d->tlb);
	memset(&d->regs, 0, sizeof(d->regs));
	d->regs.low_at = UINT32_MAX;
	for (i = 0; i < d->n_slots; i++) {
		memset(d->slots[i].scratch, 0, sizeof(d->slots[i].scratch));
		memset(d->slots[i].bounce, 0, sizeof(d->slots[i].bounce));
		atomic_store(&d->slots[i].fault_mode, 0);
	}
}

void device_reset_counted(struct device *d)
{
	device_reset(d);
	status_add(&d->status.page->resets, 1);
}
