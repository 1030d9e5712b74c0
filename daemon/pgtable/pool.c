/* SPDX-License-Identifier: MIT */
/*
 * Table pages: making the pool, and the books of promises. Taking and giving back is in pool_impl.h.
 *
 * The memfd has its full size from the start and is sealed, so no holder of its fd can make our mapping fault; memory
 * is spent only on pages that were taken once.
 */
#include <errno.h>
#include <sys/mman.h>

#include "base/util.h"
#include "pgtable/pool_impl.h"

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

static uint64_t pool_bytes(uint32_t max_pages)
{
	return (uint64_t)max_pages * TABLE_PAGE;
}

/* Could there be such a pool? */
static bool place_ok(uint64_t bus, uint32_t max_pages)
{
	uint64_t size = pool_bytes(max_pages);

	return max_pages > 0 && max_pages < TABLE_NONE && bus % TABLE_PAGE == 0 && bus + size > bus &&
	       (bus + size - 1) >> 48 == 0;
}

static void pool_freep(struct table_pool **p)
{
	table_pool_free(*p);
}

#define AUTO_POOL __attribute__((cleanup(pool_freep)))

/* All but the memory. */
static struct table_pool *pool_make(uint64_t bus, uint32_t max_pages)
{
	AUTO_FREE struct table_pool *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	*p = (struct table_pool){.bus = bus, .max = max_pages, .free = TABLE_NONE};
	p->bits = known_new(max_pages);
	if (!p->bits)
		return NULL;
	p->meta = (struct table_meta *)(p->bits + max_pages);
	return TAKE_PTR(p);
}

int table_pool_new(struct table_pool **ret, uint64_t bus, uint32_t max_pages)
{
	AUTO_POOL struct table_pool *p = NULL;
	int r;

	assert(place_ok(bus, max_pages));
	p = pool_make(bus, max_pages);
	if (!p)
		return -ENOMEM;
	r = shm_init(&p->mem, "pasidd-tables", pool_bytes(max_pages));
	if (r < 0)
		return r;
	p->base = p->mem.p;
	*ret = TAKE_PTR(p);
	return 0;
}

int table_pool_adopt(struct table_pool **ret, uint64_t bus, uint32_t max_pages, uint32_t extent, int fd, int ro_fd)
{
	AUTO_POOL struct table_pool *p = NULL;
	int r;

	if (!place_ok(bus, max_pages) || extent > max_pages)
		return -EBADMSG;
	p = pool_make(bus, max_pages);
	if (!p)
		return -ENOMEM;
	r = shm_adopt(&p->mem, pool_bytes(max_pages), fd, ro_fd);
	if (r < 0)
		return r;
	p->base = p->mem.p;
	p->adopted = true;
	p->extent = p->fresh = p->unknown = extent;
	for (uint32_t page = 0; page < extent; page++)
		p->meta[page].live = TABLE_UNKNOWN;
	*ret = TAKE_PTR(p);
	return 0;
}

/* A page whose entries nobody has counted, as if all of them were left in it. */
static void put_uncounted(struct table_pool *p, uint32_t page)
{
	p->meta[page].live = TABLE_ENTRIES;
	table_put(p, page);
}

void table_pool_adopted(struct table_pool *p)
{
	/* The last one that is put is the first one to be taken. */
	for (uint32_t page = p->extent; page-- > 0;) {
		if (p->meta[page].live == TABLE_UNKNOWN)
			put_uncounted(p, page);
	}
	p->unknown = 0;
}

struct table_pool *table_pool_free(struct table_pool *p)
{
	if (!p)
		return NULL;
	assert(table_pool_used(p) == 0);
	shm_fini(&p->mem);
	munmap(p->bits, known_bytes(p->max));
	free(p);
	return NULL;
}

int table_pool_fd(const struct table_pool *p)
{
	return p->mem.fd;
}

int table_pool_device_fd(const struct table_pool *p)
{
	return p->mem.ro_fd;
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
	uint32_t page = extent;

	assert(extent >= p->extent && extent <= p->max);
	if (p->adopted) {
		p->fresh = extent;
		while (page-- > p->extent)
			put_uncounted(p, page);
	}
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
	return p->fresh - p->free_count - p->unknown;
}
