/* SPDX-License-Identifier: MIT */
/* Page tables and their pools, for the tests that take them over. cmocka.h comes first. */
#ifndef PGTABLE_ADOPT_RIG_H
#define PGTABLE_ADOPT_RIG_H

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "pgtable/format.h"
#include "pgtable_model.h"

#define POOL_BUS UINT64_C(0x7f0000000000)
#define K512G (UINT64_C(1) << 39)
#define AT(first, len)                     \
	{                                  \
		(first), (first) + (len)-1 \
	}

static inline int no_leaf(void *arg, const struct pgtable_leaf *l)
{
	return 0;
}

static inline struct table_pool *pool_new(uint32_t max, uint32_t extent)
{
	struct table_pool *p;

	assert_int_equal(table_pool_new(&p, POOL_BUS, max), 0);
	table_pool_extend(p, extent);
	return p;
}

/* A second pool over the memory of the first one, as a process has it that was handed the two fds. */
static inline struct table_pool *pool_again(const struct table_pool *p)
{
	int fd = dup(table_pool_fd(p)), ro_fd = dup(table_pool_device_fd(p));
	struct table_pool *ret;

	assert_true(fd >= 0 && ro_fd >= 0);
	assert_int_equal(table_pool_adopt(&ret, table_pool_bus(p), table_pool_max(p), table_pool_extent(p), fd, ro_fd),
			 0);
	assert_int_equal(table_pool_used(ret), 0);
	assert_int_equal(table_pool_reserve(ret, 1), table_pool_extent(p) < table_pool_max(p) ? -EAGAIN : -ENOSPC);
	return ret;
}

static inline void make(struct pgtable *pt, struct range r, uint64_t bus, bool writable)
{
	uint32_t budget = pgtable_map_need(r, bus);

	assert_int_equal(table_pool_reserve(pt->pool, budget), 0);
	assert_int_equal(pgtable_map(pt, r, bus, writable ? PGTABLE_WRITABLE : 0, &budget), 0);
	table_pool_unreserve(pt->pool, budget);
}

static inline uint64_t take_away(struct pgtable *pt, struct range r)
{
	uint32_t budget = pgtable_unmap_need(r);
	uint64_t bytes;

	assert_int_equal(table_pool_reserve(pt->pool, budget), 0);
	bytes = pgtable_unmap(pt, r, &budget);
	table_pool_unreserve(pt->pool, budget);
	return bytes;
}

/* Two ends of the same: nothing is left, and every page can be had. */
static inline void pool_end(struct table_pool *p)
{
	assert_int_equal(table_pool_used(p), 0);
	assert_int_equal(table_pool_unpromised(p), table_pool_extent(p));
	table_pool_free(p);
}

/* Counts bytes, and that they come in order. */
struct count {
	uint64_t bytes, next;
};

static inline int count_leaf(void *arg, const struct pgtable_leaf *l)
{
	struct count *c = arg;

	assert_true(l->iova.first >= c->next && (l->entry & 1));
	c->next = l->iova.last + 1;
	c->bytes += range_len(l->iova);
	return 0;
}

/* The memory as somebody else would find it, in a pool of its own. */
static inline struct table_pool *pool_copy(const struct table_pool *p)
{
	struct table_pool *copy = pool_new(table_pool_max(p), table_pool_extent(p)), *ret;

	memcpy(copy->base, p->base, p->extent * (size_t)TABLE_PAGE);
	ret = pool_again(copy);
	table_pool_free(copy);
	return ret;
}

#endif
