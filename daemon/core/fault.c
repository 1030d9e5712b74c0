/* SPDX-License-Identifier: MIT */
/*
 * Two rings in one plain struct, empty when zeroed: faults that wait to be sent, and ranges that were removed lately.
 * Both drop their oldest when full; every fault that came is either waiting, taken, or counted as dropped.
 */
#include <stdbool.h>
#include <stddef.h>

#include "core/fault.h"

#define NEAR_BYTES 65536u /* a removed range this close is still worth naming: an overrun of a surface */

/* Adjacent or overlapping: together they are one range. */
static bool touches(struct range a, struct range b)
{
	return range_overlaps(a, b) || (b.first > 0 && a.last == b.first - 1) || (a.first > 0 && b.last == a.first - 1);
}

/* Bytes from addr to the range; 0 inside it. */
static uint64_t distance(struct range r, uint64_t addr)
{
	if (addr < r.first)
		return r.first - addr;
	return addr > r.last ? addr - r.last : 0;
}

/* The i-th newest removed range, from 0. */
static struct fault_gone *gone_at(struct fault_log *l, uint32_t i)
{
	return &l->gone[(l->gone_next + FAULT_GONE_MAX - 1 - i) % FAULT_GONE_MAX];
}

void fault_log_gone(struct fault_log *l, struct range r, uint64_t at_ns)
{
	struct fault_gone *newest = gone_at(l, 0);

	if (l->gone_count > 0 && newest->at_ns == at_ns && touches(newest->r, r)) {
		if (r.first < newest->r.first)
			newest->r.first = r.first;
		if (r.last > newest->r.last)
			newest->r.last = r.last;
		return;
	}
	l->gone[l->gone_next] = (struct fault_gone){.r = r, .at_ns = at_ns};
	l->gone_next = (l->gone_next + 1) % FAULT_GONE_MAX;
	if (l->gone_count < FAULT_GONE_MAX)
		l->gone_count++;
}

static const struct fault_gone *gone_around(struct fault_log *l, uint64_t addr)
{
	const struct fault_gone *near = NULL;

	for (uint32_t i = 0; i < l->gone_count; i++) {
		const struct fault_gone *g = gone_at(l, i);
		uint64_t d = distance(g->r, addr);

		if (d == 0)
			return g;
		if (d <= NEAR_BYTES && !near)
			near = g;
	}
	return near;
}

const struct pasid_wire_fault *fault_log_add(struct fault_log *l, const struct pasid_wire_fault *f, uint64_t now_ns)
{
	const struct fault_gone *g = gone_around(l, f->addr);
	struct pasid_wire_fault *to;

	if (l->count == PASID_FAULTS_MAX) {
		l->head = (l->head + 1) % PASID_FAULTS_MAX;
		l->count--;
		l->dropped++;
	}
	to = &l->fault[(l->head + l->count) % PASID_FAULTS_MAX];
	l->count++;
	l->total++;

	*to = *f;
	to->gone_first = g ? g->r.first : 0;
	to->gone_last = g ? g->r.last : 0;
	to->gone_age_ns = g && now_ns > g->at_ns ? now_ns - g->at_ns : 0;
	return to;
}

uint32_t fault_log_take(struct fault_log *l, struct pasid_wire_fault *v, uint64_t *dropped)
{
	uint32_t n = l->count;

	for (uint32_t i = 0; i < n; i++)
		v[i] = l->fault[(l->head + i) % PASID_FAULTS_MAX];
	*dropped = l->dropped;
	l->head = 0;
	l->count = 0;
	l->dropped = 0;
	return n;
}
