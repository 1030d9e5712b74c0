/* SPDX-License-Identifier: MIT */
/*
 * Table pages: making the pool, and the books of promises. Taking and giving back is in pool_impl.h.
 *
 * The memfd has its full size from the start and is sealed, so no holder of its fd can make our mapping fault; memory
 * is spent only on pages that were taken once.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "base/util.h"
#include "pgtable/pool_impl.h"

static int memfd_sized(uint64_t size)
{
	AUTO_CLOSE int fd = memfd_create("pasidd-tables", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0)
		return -errno;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	return util_take_fd(&fd);
}

int table_pool_new(struct table_pool **ret, uint64_t bus, uint32_t max_pages)
{
	uint64_t size = (uint64_t)max_pages * TABLE_PAGE;
	AUTO_FREE struct table_pool *p = calloc(1, sizeof(*p));
	AUTO_FREE struct table_meta *meta = calloc(max_pages, sizeof(*meta));
	AUTO_FREE struct table_bits *bits = calloc(max_pages, sizeof(*bits));
	AUTO_CLOSE int fd = -1;
	void *base;

	assert(max_pages > 0 && max_pages < TABLE_NONE);
	assert(bus % TABLE_PAGE == 0 && bus + size > bus && (bus + size - 1) >> 48 == 0);
	if (!p || !meta || !bits)
		return -ENOMEM;
	fd = memfd_sized(size);
	if (fd < 0)
		return fd;
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	*p = (struct table_pool){
		.base = base,
		.bus = bus,
		.meta = TAKE_PTR(meta),
		.bits = TAKE_PTR(bits),
		.max = max_pages,
		.free = TABLE_NONE,
		.fd = util_take_fd(&fd),
	};
	*ret = TAKE_PTR(p);
	return 0;
}

struct table_pool *table_pool_free(struct table_pool *p)
{
	if (!p)
		return NULL;
	assert(table_pool_used(p) == 0);
	munmap(p->base, (size_t)p->max * TABLE_PAGE);
	close(p->fd);
	free(p->bits);
	free(p->meta);
	free(p);
	return NULL;
}

int table_pool_fd(const struct table_pool *p)
{
	return p->fd;
}

uint64_t table_pool_bus(const struct table_pool *p)
{
	return p->bus;
}

uint32_t table_pool_max(const struct table_pool *p)
{
	return p->max;
}

uint32_t table_pool_extent(const struct table_pool *p)
{
	return p->extent;
}

void table_pool_extend(struct table_pool *p, uint32_t extent)
{
	assert(extent >= p->extent && extent <= p->max);
	p->extent = extent;
}

int table_pool_reserve(struct table_pool *p, uint32_t n)
{
	uint32_t have = table_pool_unpromised(p);

	if (n > have)
		return n - have <= p->max - p->extent ? -EAGAIN : -ENOSPC;
	p->promised += n;
	return 0;
}

void table_pool_unreserve(struct table_pool *p, uint32_t n)
{
	assert(n <= p->promised);
	p->promised -= n;
}

uint32_t table_pool_unpromised(const struct table_pool *p)
{
	return p->free_count + (p->extent - p->fresh) - p->promised;
}

uint32_t table_pool_used(const struct table_pool *p)
{
	return p->fresh - p->free_count;
}
