/* SPDX-License-Identifier: MIT */
/*
 * What a page-table format is to pgtable.c, and the page table that both share. A format is one file that says how a
 * descriptor looks and includes walk_template.h, which writes the walks for it.
 */
#ifndef PGTABLE_FORMAT_H
#define PGTABLE_FORMAT_H

#include "pgtable/pgtable.h"
#include "pgtable/pool_impl.h"

/* Always: a table other than the root has live entries, or it is on the aside list and nothing points to it. */
struct pgtable {
	const struct pgtable_format *format;
	struct table_pool *pool;
	uint32_t root; /* a page of the pool, as `aside` and `near` */
	uint32_t pages; /* how many: the root, the tables below it, and those on the aside list */
	uint32_t
		aside; /* list of tables unlinked, but a device may still remember them; of all, while they are adopted */
	uint32_t near; /* the level-3 table that was used last, linked as long as near_span is set */
	uint64_t near_span; /* the IOVAs it is for, divided by 2 MiB; UINT64_MAX: none */
};

/* The contracts are those of pgtable.h. */
struct pgtable_format {
	const char *name;
	uint64_t page_sizes;
	uint64_t iova_last;
	int (*map)(struct pgtable *pt, struct range r, uint64_t bus, uint32_t prot, uint32_t *budget);
	uint64_t (*unmap)(struct pgtable *pt, struct range r, uint32_t *budget);
	bool (*walk)(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret);
	/* Claims the tables below the root (pgtable_claim), which is claimed, and counts entries. Whatever it returns, those
	 * claimed are on the aside list, and nothing was stored. */
	int (*adopt)(struct pgtable *pt, int (*leaf)(void *arg, const struct pgtable_leaf *l), void *arg);
	/* Unlinks the tables that are empty, and puts them aside. */
	void (*prune)(struct pgtable *pt);
	unsigned int (*levels)(const struct pgtable *pt, uint64_t iova, struct pgtable_level v[PGTABLE_LEVELS]);
	bool (*next)(const struct pgtable *pt, uint64_t iova, struct pgtable_leaf *ret);
	const char *(*attributes)(uint64_t entry); /* of a leaf: what it is beside an address and a right to write */
	/* Puts the tables below the root and the root itself aside. */
	void (*drop)(struct pgtable *pt);
};

/* A table of a predecessor's that something points to. 0, or -EBADMSG if it cannot be one. */
int pgtable_claim(struct pgtable *pt, uint64_t bus, uint32_t *ret);

/* The only way out of the tables, so that nothing remembers a table that is not linked. */
static inline void pgtable_put_aside(struct pgtable *pt, uint32_t page)
{
	if (pt->near == page)
		pt->near_span = UINT64_MAX;
	pt->pool->meta[page].next = pt->aside;
	pt->aside = page;
}

#endif
