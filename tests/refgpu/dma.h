/* SPDX-License-Identifier: MIT */
/*
 * Bus address space: what the client mapped with DMA_MAP, and the ports through which threads touch it.
 *
 * The map is an immutable sorted array behind one pointer. Only the message loop changes it: it publishes a new array,
 * then waits until every port has left the section that it was in (dma_quiesce), then lets go of the old one. So
 * readers take no lock, and an unmap is answered only when no access to the range can still happen.
 *
 * A section is bus_run(): in it a thread may use bus_*() and pointers from bus_span(). The same sections tell the
 * invalidation queue when accesses under old translations are over. Memory that vanishes under a section (SIGBUS:
 * a truncated file, no huge page left) ends it with -EFAULT. Ranges without an fd are reached by messages to the
 * client (struct dma_remote).
 */
#ifndef REFGPU_DMA_H
#define REFGPU_DMA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/refgpu.h>

#define DMA_MAX_PORTS (REFGPU_MAX_SLOTS + 2)
#define DMA_MAX_RETIRED 16
#define DMA_READ 1u
#define DMA_WRITE 2u

struct dma_region {
	uint64_t first;
	uint64_t last;
	uint8_t *host; /* NULL: the client keeps the memory, ask by message */
	uint32_t rights; /* DMA_READ, DMA_WRITE */
};

struct dma_map {
	size_t n;
	struct dma_region region[];
};

struct bus_port {
	struct dma *dma;
	_Atomic uint64_t busy; /* odd inside a section */
	_Atomic bool abandon; /* a wait for the client's answer is to fail at once */
	_Atomic uintptr_t broke; /* where the last SIGBUS hit */
};

/* How to reach memory that came without an fd: 0 or -EFAULT, within a bounded time. len is at most DMA_REMOTE_MAX. */
#define DMA_REMOTE_MAX 65536u
struct dma_remote {
	int (*read)(void *arg, struct bus_port *port, uint64_t bus, void *buf, size_t len);
	int (*write)(void *arg, struct bus_port *port, uint64_t bus, const void *buf, size_t len);
	void *arg;
};

struct dma {
	struct dma_map *_Atomic map;
	struct dma_map *retired[DMA_MAX_RETIRED];
	unsigned int n_retired;
	struct bus_port *ports[DMA_MAX_PORTS];
	unsigned int n_ports;
	const struct dma_remote *remote; /* changes only while nobody can be in a section */
	struct refgpu_status *status;
	/* Called again and again while dma_quiesce waits: the message loop takes in the answers that others wait for. */
	void (*idle)(void *arg);
	void *idle_arg;
};

int dma_init(struct dma *d, struct refgpu_status *status);
void dma_fini(struct dma *d);

/* Maps; takes a copy of fd (-1: none), the caller keeps its own. -EINVAL, -EEXIST, -ENOSPC or mmap's error. */
int dma_add(struct dma *d, uint64_t bus, uint64_t size, uint32_t rights, int fd, uint64_t offset);
/*
 * Unmaps what lies in the range, which may be nothing; -EINVAL if its ends cut a mapping, and then nothing is unmapped.
 * Waits for the accesses in flight.
 */
int dma_remove(struct dma *d, uint64_t bus, uint64_t size);
void dma_remove_all(struct dma *d);

/* Returns when every section that was open at the call is closed. `idle` may be NULL. */
void dma_quiesce(struct dma *d, void (*idle)(void *arg), void *arg);

void bus_port_init(struct bus_port *port, struct dma *d);
/* Runs fn in a section; its result, or -EFAULT if memory vanished under it. fn must hold no lock while it touches. */
int bus_run(struct bus_port *port, int (*fn)(void *arg), void *arg);

/* ---- Only inside a section. All: 0 or -EFAULT. ---- */

struct bus_span {
	uint8_t *host; /* NULL: remote */
	uint64_t bus;
	uint64_t len;
};

/* The longest piece of bus..bus+len-1, from its start, that lies in one region with these rights. */
int bus_span(struct bus_port *port, uint64_t bus, uint64_t len, uint32_t rights, struct bus_span *ret);
int bus_read(struct bus_port *port, uint64_t bus, void *buf, uint64_t len);
int bus_write(struct bus_port *port, uint64_t bus, const void *buf, uint64_t len);
int bus_load64(struct bus_port *port, uint64_t bus, uint64_t *ret); /* bus is 8-aligned */
int bus_store64(struct bus_port *port, uint64_t bus, uint64_t val); /* release; bus is 8-aligned */
int bus_store32(struct bus_port *port, uint64_t bus, uint32_t val); /* release; bus is 4-aligned */

/* ---- The same as sections of their own. ---- */

int port_read(struct bus_port *port, uint64_t bus, void *buf, uint64_t len);
int port_write(struct bus_port *port, uint64_t bus, const void *buf, uint64_t len);
int port_store64(struct bus_port *port, uint64_t bus, uint64_t val);
int port_store32(struct bus_port *port, uint64_t bus, uint32_t val);

/* Installs the SIGBUS handler; once per process. */
int bus_catch_sigbus(void);

#endif
