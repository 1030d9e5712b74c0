/* SPDX-License-Identifier: MIT */
/* Random numbers of tests: xorshift64*. $SEED repeats a run. */
#ifndef RANDOM_H
#define RANDOM_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/util.h"

struct rng {
	uint64_t s; /* not 0 */
};

static inline uint64_t rng_next(struct rng *g)
{
	g->s ^= g->s >> 12;
	g->s ^= g->s << 25;
	g->s ^= g->s >> 27;
	return g->s * UINT64_C(2685821657736338717);
}

static inline uint64_t rng_below(struct rng *g, uint64_t n)
{
	return (rng_next(g) >> 11) % n;
}

/* Said at once, for whoever looks at what is left of a run; also by what is forked later. */
static inline void rng_say(uint64_t seed)
{
	printf("SEED=%" PRIu64 "\n", seed);
	fflush(stdout);
}

/* What $SEED says, or one that differs from run to run; said. */
static inline uint64_t rng_seed(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : util_now_ns();

	if (!seed)
		seed = 1;
	rng_say(seed);
	return seed;
}

#endif
