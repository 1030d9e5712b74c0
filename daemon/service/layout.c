/* SPDX-License-Identifier: MIT */
/* See layout.h. */
#include "service/layout.h"

#include <errno.h>
#include <stdbool.h>

#include <pasid/driver.h>

#define MOST_BITS 47u /* more than any table format reaches would be of no use */
#define LEAST_BITS 36u /* 64 GiB, of which seven eighths are for buffers */
#define ENGINE_FIRST 0x100000ull
#define NEST_BYTES (16ull << 20)
#define NEST_FIRST (2 * NEST_BYTES) /* behind the engine's, at a multiple of its size */

/* Bits of the largest power of two that ends at or below the last usable address. */
static unsigned int address_bits(const struct bus_layout *l)
{
	uint64_t last = l->n_usable ? l->usable[l->n_usable - 1].last : 0;
	unsigned int bits = 0;

	while (bits < MOST_BITS && last >= (1ull << (bits + 1)) - 1)
		bits++;
	return bits;
}

bool layout_usable(const struct bus_layout *l, struct range r)
{
	for (size_t i = 0; i < l->n_usable; i++)
		if (range_contains(l->usable[i], r))
			return true;
	return false;
}

static struct range power_range(unsigned int from_bit, unsigned int to_bit)
{
	return (struct range){1ull << from_bit, (1ull << to_bit) - 1};
}

int layout_make(struct bus_layout *l)
{
	unsigned int bits = address_bits(l);

	if (bits < LEAST_BITS)
		return -ERANGE;
	l->engine = (struct range){ENGINE_FIRST, ENGINE_FIRST + ENGINE_MAX_MEMORY - 1};
	l->nest = (struct range){NEST_FIRST, NEST_FIRST + NEST_BYTES - 1};
	l->tables = power_range(bits - 9, bits - 8);
	l->fences = power_range(bits - 8, bits - 7);
	l->buffers = power_range(bits - 3, bits);
	return layout_usable(l, l->engine) && layout_usable(l, l->tables) ? 0 : -ERANGE;
}

void layout_clip(struct bus_layout *l, unsigned int bits)
{
	uint64_t last = (1ull << bits) - 1;

	while (l->n_usable && l->usable[l->n_usable - 1].first > last)
		l->n_usable--;
	if (l->n_usable && l->usable[l->n_usable - 1].last > last)
		l->usable[l->n_usable - 1].last = last;
}

void layout_holes(const struct bus_layout *l, struct range within, void (*fn)(void *arg, struct range hole), void *arg)
{
	uint64_t at = within.first;

	for (size_t i = 0; i < l->n_usable && at <= within.last; i++) {
		if (l->usable[i].last < at)
			continue;
		if (l->usable[i].first > within.last)
			break;
		if (l->usable[i].first > at)
			fn(arg, (struct range){at, l->usable[i].first - 1});
		if (l->usable[i].last >= within.last)
			return;
		at = l->usable[i].last + 1;
	}
	if (at <= within.last)
		fn(arg, (struct range){at, within.last});
}
