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

/* What we know about max_pages pages: mapped and not allocated, so that it costs nothing before it is used, and is gone
 * at once. The bits come first, which are larger and want to be aligned. */
static size_t known_bytes(uint32_t max_pages)
{
	return max_pages * (sizeof(struct table_bits) + sizeof(struct table_meta));
}

static void *known_new(uint32_t max_pages)
{
	void *p = mmap(NULL, known_bytes(max_pages), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int table_pool_new(struct table_pool **ret, uint64_t bus, uint32_t max_pages)
{
	uint64_t size = (uint64_t)max_pages * TABLE_PAGE;
	AUTO_FREE struct table_pool *p = calloc(1, sizeof(*p));
	AUTO_CLOSE int fd = -1, device_fd = -1;
	struct table_bits *bits;
	void *base;

	assert(max_pages > 0 && max_pages < TABLE_NONE);
	assert(bus % TABLE_PAGE == 0 && bus + size > bus && (bus + size - 1) >> 48 == 0);
	if (!p)
		return -ENOMEM;
	fd = memfd_sized(size);
	if (fd < 0)
		return fd;
	device_fd = util_open_readonly(fd);
	if (device_fd < 0)
		return device_fd;
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	bits = known_new(max_pages);
	if (!bits) {
		munmap(base, size);
		return -ENOMEM;
	}
	*p = (struct table_pool){
		.base = base,
		.bus = bus,
		.meta = (struct table_meta *)(bits + max_pages),
		.bits = bits,
		.max = max_pages,
		.free = TABLE_NONE,
		.fd = util_take_fd(&fd),
		.device_fd = util_take_fd(&device_fd),
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
	close(p->device_fd);
	close(p->fd);
	munmap(p->bits, known_bytes(p->max));
	free(p);
	return NULL;
}

int table_pool_fd(const struct table_pool *p)
{
	return p->fd;
}

int table_pool_device_fd(const struct table_pool *p)
{
	return p->device_fd;
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
