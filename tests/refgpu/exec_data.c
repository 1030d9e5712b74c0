/* SPDX-License-Identifier: MIT */
/*
 * Moving bytes at the speed of memcpy, and words with real atomics.
 *
 * Each piece may be done again from its start when memory vanished in the middle of it, so it must not matter that a
 * part was done before. ADD32, where it would, works on pieces inside one page on both sides: such a piece fails at
 * its first access or not at all.
 */
#include "exec_data.h"

#include <errno.h>
#include <string.h>

#define PAGE 4096u

static void cut(uint64_t *len, uint64_t max)
{
	if (*len > max)
		*len = max;
}

/* The bytes of `value` repeated, beginning `pos` bytes into the pattern. */
static void fill(uint8_t *to, uint32_t value, uint64_t pos, uint64_t len)
{
	unsigned int turn = 8 * (pos % 4);
	uint64_t have = 4;

	if (turn)
		value = value >> turn | value << (32 - turn);
	if (value == (value & 0xff) * 0x01010101u) {
		memset(to, (int)(value & 0xff), len);
		return;
	}
	if (len < have) {
		memcpy(to, &value, len);
		return;
	}
	memcpy(to, &value, have);
	while (have < len && have < PAGE) {
		memcpy(to + have, to, have < len - have ? have : len - have);
		have *= 2;
	}
	for (; have < len; have += PAGE)
		memcpy(to + have, to, PAGE < len - have ? PAGE : len - have);
}

/* The source's bytes: where they are, or fetched. */
static int data_get(const struct data_ends *e, uint64_t len, const uint8_t **ret)
{
	*ret = e->src->host;
	if (*ret)
		return 0;
	*ret = e->bounce_src;
	return bus_read(e->port, e->src->bus, e->bounce_src, len);
}

static int move_copy(const struct data_ends *e, uint64_t *len, struct window **touching)
{
	const uint8_t *from;
	int r;

	if (!e->src->host || !e->dst->host)
		cut(len, DMA_REMOTE_MAX);
	*touching = e->src;
	r = data_get(e, *len, &from);
	if (r < 0)
		return r;
	*touching = e->dst;
	if (!e->dst->host)
		return bus_write(e->port, e->dst->bus, from, *len);
	memmove(e->dst->host, from, *len);
	return 0;
}

static int move_fill(const struct data_ends *e, uint32_t value, uint64_t pos, uint64_t *len)
{
	if (e->dst->host) {
		fill(e->dst->host, value, pos, *len);
		return 0;
	}
	cut(len, DMA_REMOTE_MAX);
	fill(e->bounce_dst, value, pos, *len);
	return bus_write(e->port, e->dst->bus, e->bounce_dst, *len);
}

static void add_words(uint8_t *to, const uint8_t *from, uint64_t len)
{
	uint32_t a, b;
	uint64_t i;

	for (i = 0; i < len; i += 4) {
		memcpy(&a, to + i, 4);
		memcpy(&b, from + i, 4);
		a += b;
		memcpy(to + i, &a, 4);
	}
}

static int move_add(const struct data_ends *e, uint64_t *len, struct window **touching)
{
	const uint8_t *from;
	int r;

	cut(len, PAGE - e->src->va % PAGE);
	cut(len, PAGE - e->dst->va % PAGE);
	*touching = e->src;
	r = data_get(e, *len, &from);
	if (r < 0)
		return r;
	*touching = e->dst;
	if (e->dst->host) {
		add_words(e->dst->host, from, *len);
		return 0;
	}
	r = bus_read(e->port, e->dst->bus, e->bounce_dst, *len);
	if (r < 0)
		return r;
	add_words(e->bounce_dst, from, *len);
	return bus_write(e->port, e->dst->bus, e->bounce_dst, *len);
}

static int move_atomic(const struct data_ends *e, uint64_t value)
{
	uint64_t word;
	int r;

	if (e->dst->host) {
		__atomic_fetch_add((uint64_t *)(void *)e->dst->host, value, __ATOMIC_SEQ_CST);
		return 0;
	}
	pthread_mutex_lock(e->lock);
	r = bus_read(e->port, e->dst->bus, &word, sizeof(word));
	word += value;
	if (r == 0)
		r = bus_write(e->port, e->dst->bus, &word, sizeof(word));
	pthread_mutex_unlock(e->lock);
	return r;
}

int data_move(const struct data_ends *e, const struct refgpu_cmd *cmd, uint64_t pos, uint64_t *len,
	      struct window **touching)
{
	*touching = e->dst;
	switch (cmd->op) {
	case REFGPU_FILL:
		return move_fill(e, cmd->value, pos, len);
	case REFGPU_ADD32:
		return move_add(e, len, touching);
	case REFGPU_ATOMIC:
		return move_atomic(e, cmd->value);
	case REFGPU_FENCE:
		return bus_store64(e->port, e->dst->bus, cmd->src);
	default:
		return move_copy(e, len, touching);
	}
}
