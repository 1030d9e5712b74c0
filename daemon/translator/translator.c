/* SPDX-License-Identifier: MIT */
/* The part of invalidation that is the same for every translator: fewer, larger requests. */
#include "translator/translator.h"

#include <errno.h>

/* Merges each range into the one before it where they touch; order is kept, so runs that were unmapped in order become
 * one. Returns how many are left. */
static size_t merge(struct range *r, size_t n)
{
	size_t out = 0;

	for (size_t i = 1; i < n; i++) {
		if (r[i].first == r[out].last + 1)
			r[out].last = r[i].last;
		else
			r[++out] = r[i];
	}
	return n ? out + 1 : 0;
}

int translator_invalidate(struct translator *t, uint32_t asid, struct range *r, size_t n, uint64_t *ticket)
{
	n = merge(r, n);
	if (n > t->ops->max_ranges)
		n = 0;
	return t->ops->invalidate(t, asid, r, n, ticket);
}
