/* SPDX-License-Identifier: MIT */
/*
 * Table pages: 4 KiB each, from one memfd that the device can read, contiguous in bus addresses. The pool has room for
 * max_pages; the device sees the first `extent` of them, which whoever owns the pool enlarges after it has mapped more
 * of the memfd for the device. Pages are promised first (table_pool_reserve) and taken later, which then cannot fail.
 * A page is zero when it is taken.
 *
 * The memfd outlives its process, and with it what the tables in it say. A successor makes a pool over it, has page tables
 * find their pages in it again (pgtable_adopt), and declares the rest free.
 */
#ifndef PGTABLE_POOL_H
#define PGTABLE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define TABLE_PAGE 4096u

struct table_pool;

/* Reserves address space and a sparse memfd for max_pages; nothing is usable before table_pool_extend(). `bus` is the
 * bus address of the first page. 0, -ENOMEM, -EMFILE... */
int table_pool_new(struct table_pool **ret, uint64_t bus, uint32_t max_pages);
/* The same over the two fds of a predecessor's pool, of which the device sees `extent` pages; both are taken if it returns 0.
 * All of them are out of reach before table_pool_adopted(). -EBADMSG: the fds are not a pool's, or the numbers cannot be
 * right. */
int table_pool_adopt(struct table_pool **ret, uint64_t bus, uint32_t max_pages, uint32_t extent, int fd, int ro_fd);
/* All page tables have been adopted: pages that are in none are free from now on. The predecessor may have had such a page
 * in a table, so the device has forgotten all that it knew by then. */
void table_pool_adopted(struct table_pool *p);
/* Takes NULL, returns NULL. All page tables in it are gone by then. */
struct table_pool *table_pool_free(struct table_pool *p);

int table_pool_fd(const struct table_pool *p); /* stays the pool's */
int table_pool_device_fd(const struct table_pool *p); /* the same, read-only: a device may not write its tables */
uint64_t table_pool_bus(const struct table_pool *p);
uint32_t table_pool_max(const struct table_pool *p); /* pages */
uint32_t table_pool_extent(const struct table_pool *p); /* pages that the device sees */
void table_pool_extend(struct table_pool *p, uint32_t extent);

/* Promises n pages. 0; -EAGAIN if the extent is too small but max_pages is not; -ENOSPC if max_pages is too small. */
int table_pool_reserve(struct table_pool *p, uint32_t n);
void table_pool_unreserve(struct table_pool *p, uint32_t n);
uint32_t table_pool_unpromised(const struct table_pool *p); /* pages free in the extent and promised to nobody */
uint32_t table_pool_used(const struct table_pool *p); /* pages in tables */

#endif
