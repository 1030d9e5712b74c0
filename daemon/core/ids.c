/* SPDX-License-Identifier: MIT */
/*
 * A number space in chunks of 1024, made when a number of theirs is first taken. What always holds: a number's bit in
 * its chunk's bitmap is set exactly if it is free; a chunk's bit in the space is set exactly if a number of it is free
 * (a chunk not made yet is all free); draining and quarantined numbers are on the list of that name, oldest first, and
 * no others are on a list. All that makes the lowest free and the longest quarantined number a few bit scans away.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/ids.h"

#define BITS_MAX 20u
#define WORD_BITS 64u
#define CHUNK_IDS 1024u
#define CHUNK_WORDS (CHUNK_IDS / WORD_BITS)
#define CHUNKS_MAX ((1u << BITS_MAX) / CHUNK_IDS)
#define SPACE_WORDS (CHUNKS_MAX / WORD_BITS)

struct link {
	uint32_t prev, next; /* 0: none, as 0 is no id */
};

struct chunk {
	uint64_t free[CHUNK_WORDS];
	struct link link[CHUNK_IDS];
	uint8_t state[CHUNK_IDS]; /* enum id_state */
};

struct list {
	uint32_t first, last;
};

struct ids {
	uint32_t last; /* the highest number */
	uint32_t most; /* the highest that is given out */
	uint32_t in_use;
	struct list draining;
	struct list quarantined;
	uint64_t free[SPACE_WORDS]; /* a bit per chunk */
	struct chunk *chunk[CHUNKS_MAX];
};

/* The lowest bit set in n words, or -1. */
static int lowest_bit(const uint64_t *words, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		if (words[i])
			return (int)(i * WORD_BITS) + __builtin_ctzll(words[i]);
	return -1;
}

static void set_bit(uint64_t *words, uint32_t bit)
{
	words[bit / WORD_BITS] |= UINT64_C(1) << (bit % WORD_BITS);
}

static void clear_bit(uint64_t *words, uint32_t bit)
{
	words[bit / WORD_BITS] &= ~(UINT64_C(1) << (bit % WORD_BITS));
}

static struct link *link_of(struct ids *s, uint32_t id)
{
	return &s->chunk[id / CHUNK_IDS]->link[id % CHUNK_IDS];
}

static void list_append(struct ids *s, struct list *l, uint32_t id)
{
	*link_of(s, id) = (struct link){.prev = l->last};
	if (l->last)
		link_of(s, l->last)->next = id;
	else
		l->first = id;
	l->last = id;
}

static void list_remove(struct ids *s, struct list *l, uint32_t id)
{
	struct link at = *link_of(s, id);

	if (at.prev)
		link_of(s, at.prev)->next = at.next;
	else
		l->first = at.next;
	if (at.next)
		link_of(s, at.next)->prev = at.prev;
	else
		l->last = at.prev;
}

/* The one place where a number changes its state, and with it the bitmap or list that it is in. */
static void move(struct ids *s, uint32_t id, enum id_state to)
{
	struct chunk *c = s->chunk[id / CHUNK_IDS];
	uint32_t at = id % CHUNK_IDS;

	switch ((enum id_state)c->state[at]) {
	case ID_FREE:
		clear_bit(c->free, at);
		if (lowest_bit(c->free, CHUNK_WORDS) < 0)
			clear_bit(s->free, id / CHUNK_IDS);
		s->in_use++;
		break;
	case ID_DRAINING:
		list_remove(s, &s->draining, id);
		break;
	case ID_QUARANTINED:
		list_remove(s, &s->quarantined, id);
		s->in_use++;
		break;
	case ID_RESERVED:
	case ID_INSTALLED:
		break;
	}

	switch (to) {
	case ID_FREE:
		set_bit(c->free, at);
		set_bit(s->free, id / CHUNK_IDS);
		s->in_use--;
		break;
	case ID_DRAINING:
		list_append(s, &s->draining, id);
		break;
	case ID_QUARANTINED:
		list_append(s, &s->quarantined, id);
		s->in_use--;
		break;
	case ID_RESERVED:
	case ID_INSTALLED:
		break;
	}
	c->state[at] = (uint8_t)to;
}

static int chunk_make(struct ids *s, uint32_t n)
{
	struct chunk *c;

	if (s->chunk[n])
		return 0;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	for (uint32_t at = 0; at < CHUNK_IDS; at++) {
		uint32_t id = n * CHUNK_IDS + at;

		if (id != 0 && id <= s->last)
			set_bit(c->free, at);
	}
	s->chunk[n] = c;
	return 0;
}

int ids_new(struct ids **ret, unsigned int bits)
{
	struct ids *s;

	if (bits < 1 || bits > BITS_MAX)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->last = s->most = (1u << bits) - 1;
	for (uint32_t n = 0; n <= s->last / CHUNK_IDS; n++)
		set_bit(s->free, n);
	*ret = s;
	return 0;
}

struct ids *ids_free(struct ids *s)
{
	if (!s)
		return NULL;
	for (unsigned int n = 0; n < CHUNKS_MAX; n++)
		free(s->chunk[n]);
	free(s);
	return NULL;
}

void ids_limit(struct ids *s, unsigned int bits)
{
	assert(bits >= 1 && bits <= BITS_MAX);
	s->most = (1u << bits) - 1 < s->last ? (1u << bits) - 1 : s->last;
}

int ids_reserve(struct ids *s, uint32_t *ret)
{
	int n = lowest_bit(s->free, SPACE_WORDS);
	uint32_t id = 0;

	if (n >= 0) {
		int r = chunk_make(s, (uint32_t)n);

		if (r < 0)
			return r;
		id = (uint32_t)n * CHUNK_IDS + (uint32_t)lowest_bit(s->chunk[n]->free, CHUNK_WORDS);
	}
	if (id == 0 || id > s->most)
		id = s->quarantined.first;
	/* Numbers beyond the most are there only if that was lowered. */
	while (id > s->most)
		id = link_of(s, id)->next;
	if (id == 0)
		return -ENOSPC;
	move(s, id, ID_RESERVED);
	*ret = id;
	return 0;
}

int ids_reserve_exact(struct ids *s, uint32_t id)
{
	enum id_state state;
	int r;

	if (id == 0 || id > s->last)
		return -EINVAL;
	state = ids_state(s, id);
	if (state != ID_FREE && state != ID_QUARANTINED)
		return -EEXIST;
	r = chunk_make(s, id / CHUNK_IDS);
	if (r < 0)
		return r;
	move(s, id, ID_RESERVED);
	return 0;
}

void ids_installed(struct ids *s, uint32_t id)
{
	enum id_state state = ids_state(s, id);

	assert(state == ID_RESERVED || state == ID_INSTALLED);
	if (state == ID_RESERVED)
		move(s, id, ID_INSTALLED);
}

bool ids_release(struct ids *s, uint32_t id)
{
	enum id_state state = ids_state(s, id);

	assert(state == ID_RESERVED || state == ID_INSTALLED);
	move(s, id, state == ID_RESERVED ? ID_FREE : ID_DRAINING);
	return state == ID_INSTALLED;
}

void ids_drained(struct ids *s, uint32_t id)
{
	assert(ids_state(s, id) == ID_DRAINING);
	move(s, id, ID_QUARANTINED);
}

void ids_drained_all(struct ids *s)
{
	while (s->draining.first)
		move(s, s->draining.first, ID_QUARANTINED);
}

enum id_state ids_state(const struct ids *s, uint32_t id)
{
	if (id > s->last || !s->chunk[id / CHUNK_IDS])
		return ID_FREE;
	return (enum id_state)s->chunk[id / CHUNK_IDS]->state[id % CHUNK_IDS];
}

uint32_t ids_in_use(const struct ids *s)
{
	return s->in_use;
}
