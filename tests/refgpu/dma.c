/* SPDX-License-Identifier: MIT */
/*
 * The bus address map: sorted ranges, changed by publishing a new array.
 *
 * Regions never overlap and are 4 KiB aligned, so an aligned word never straddles two. What is no longer published is
 * freed or unmapped only after dma_quiesce.
 */
#include "dma.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "vfio_user_proto.h"
#include "status.h"

#define PAGE 4096u
#define YIELDS_BEFORE_NAP 64

int dma_init(struct dma *d, struct refgpu_status *status)
{
	struct dma_map *empty = calloc(1, sizeof(*empty));

	memset(d, 0, sizeof(*d));
	if (!empty)
		return -ENOMEM;
	atomic_init(&d->map, empty);
	d->status = status;
	return 0;
}

void dma_fini(struct dma *d)
{
	if (!atomic_load(&d->map))
		return;
	dma_remove_all(d);
	free(atomic_load(&d->map));
	atomic_store(&d->map, NULL);
}

static void port_wait(struct bus_port *port, void (*idle)(void *arg), void *arg)
{
	static const struct timespec nap = {.tv_nsec = 20000};
	uint64_t seen = atomic_load(&port->busy);
	unsigned int turns = 0;

	while ((seen & 1) && atomic_load(&port->busy) == seen) {
		if (turns++ < YIELDS_BEFORE_NAP)
			sched_yield();
		else if (idle)
			idle(arg);
		else
			nanosleep(&nap, NULL);
	}
}

void dma_quiesce(struct dma *d, void (*idle)(void *arg), void *arg)
{
	unsigned int i;

	for (i = 0; i < d->n_ports; i++)
		port_wait(d->ports[i], idle, arg);
}

static void retired_free(struct dma *d)
{
	if (!d->n_retired)
		return;
	dma_quiesce(d, d->idle, d->idle_arg);
	while (d->n_retired)
		free(d->retired[--d->n_retired]);
}

/* From here on nobody finds the old map; its memory waits in `retired`. */
static void map_publish(struct dma *d, struct dma_map *map)
{
	if (d->n_retired == DMA_MAX_RETIRED)
		retired_free(d);
	d->retired[d->n_retired++] = atomic_exchange(&d->map, map);
	status_set(&d->status->dma_maps, map->n);
}

/* The first region that ends at or after bus; n if there is none. */
static size_t map_seek(const struct dma_map *map, uint64_t bus)
{
	size_t lo = 0, hi = map->n, mid;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		if (map->region[mid].last < bus)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct dma_map *map_new(size_t n)
{
	struct dma_map *map = malloc(sizeof(*map) + n * sizeof(map->region[0]));

	if (map)
		map->n = n;
	return map;
}

static struct dma_map *map_with(const struct dma_map *old, size_t at, const struct dma_region *r)
{
	struct dma_map *map = map_new(old->n + 1);

	if (!map)
		return NULL;
	memcpy(map->region, old->region, at * sizeof(*r));
	map->region[at] = *r;
	memcpy(map->region + at + 1, old->region + at, (old->n - at) * sizeof(*r));
	return map;
}

static struct dma_map *map_without(const struct dma_map *old, size_t at, size_t n)
{
	struct dma_map *map = map_new(old->n - n);

	if (!map)
		return NULL;
	memcpy(map->region, old->region, at * sizeof(map->region[0]));
	memcpy(map->region + at, old->region + at + n, (old->n - at - n) * sizeof(map->region[0]));
	return map;
}

static int region_mmap(struct dma_region *r, uint64_t size, int fd, uint64_t offset)
{
	int prot = (r->rights & DMA_READ ? PROT_READ : 0) | (r->rights & DMA_WRITE ? PROT_READ | PROT_WRITE : 0);
	void *p;

	if (fd < 0)
		return 0;
	p = mmap(NULL, size, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
	if (p == MAP_FAILED)
		return -errno;
	r->host = p;
	return 0;
}

int dma_add(struct dma *d, uint64_t bus, uint64_t size, uint32_t rights, int fd, uint64_t offset)
{
	struct dma_region region = {.first = bus, .last = bus + size - 1, .rights = rights};
	const struct dma_map *old = atomic_load(&d->map);
	size_t at = map_seek(old, bus);
	struct dma_map *map;
	int r;

	if (!size || (bus | size | offset) % PAGE || region.last < bus || (rights & ~(DMA_READ | DMA_WRITE)))
		return -EINVAL;
	if (offset > INT64_MAX || size > (uint64_t)INT64_MAX - offset || (fd < 0 && offset))
		return -EINVAL;
	if (at < old->n && old->region[at].first <= region.last)
		return -EEXIST;
	if (old->n >= VFIO_USER_MAX_DMA_MAPS)
		return -ENOSPC;
	r = region_mmap(&region, size, fd, offset);
	if (r < 0)
		return r;
	map = map_with(old, at, &region);
	if (!map) {
		if (region.host)
			munmap(region.host, size);
		return -ENOMEM;
	}
	map_publish(d, map);
	status_add(&d->status->dma_bytes, size);
	return 0;
}

static void region_drop(struct dma *d, const struct dma_region *r)
{
	uint64_t size = r->last - r->first + 1;

	if (r->host)
		munmap(r->host, size);
	status_add(&d->status->dma_bytes, -size);
}

static int regions_remove(struct dma *d, size_t at, size_t n)
{
	struct dma_map *old = atomic_load(&d->map), *map;
	size_t i;

	if (!n)
		return 0;
	map = map_without(old, at, n);
	if (!map)
		return -ENOMEM;
	atomic_store(&d->map, map);
	status_set(&d->status->dma_maps, map->n);
	dma_quiesce(d, d->idle, d->idle_arg);
	for (i = at; i < at + n; i++)
		region_drop(d, &old->region[i]);
	free(old);
	retired_free(d);
	return 0;
}

int dma_remove(struct dma *d, uint64_t bus, uint64_t size)
{
	const struct dma_map *old = atomic_load(&d->map);
	uint64_t last = bus + size - 1;
	size_t at = map_seek(old, bus), end = at;

	if (!size || last < bus)
		return -EINVAL;
	while (end < old->n && old->region[end].first <= last)
		end++;
	if (end > at && (old->region[at].first < bus || old->region[end - 1].last > last))
		return -EINVAL;
	return regions_remove(d, at, end - at);
}

void dma_remove_all(struct dma *d)
{
	/* With no memory even for an empty map, the old one stays. */
	regions_remove(d, 0, atomic_load(&d->map)->n);
}

int bus_span(struct bus_port *port, uint64_t bus, uint64_t len, uint32_t rights, struct bus_span *ret)
{
	const struct dma_map *map = atomic_load(&port->dma->map);
	size_t at = map_seek(map, bus);
	const struct dma_region *r = &map->region[at];

	if (!len || at == map->n || r->first > bus || (r->rights & rights) != rights)
		return -EFAULT;
	ret->host = r->host ? r->host + (bus - r->first) : NULL;
	ret->bus = bus;
	ret->len = r->last - bus < len - 1 ? r->last - bus + 1 : len;
	return 0;
}
