/* SPDX-License-Identifier: MIT */
/* ids against an array of states and a queue, with random operations; and each rule of the lifecycle by name. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/ids.h"
#include "random.h"

static struct rng rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

/* The model: what each number is, and when it was quarantined. */
#define MODEL_MAX 4096u

struct model {
	uint32_t last;
	enum id_state state[MODEL_MAX];
	uint64_t since[MODEL_MAX];
	uint64_t clock;
};

static uint32_t model_next(const struct model *m)
{
	uint32_t best = 0;

	for (uint32_t id = 1; id <= m->last; id++)
		if (m->state[id] == ID_FREE)
			return id;
	for (uint32_t id = 1; id <= m->last; id++)
		if (m->state[id] == ID_QUARANTINED && (!best || m->since[id] < m->since[best]))
			best = id;
	return best;
}

static void model_quarantine(struct model *m, uint32_t id)
{
	m->state[id] = ID_QUARANTINED;
	m->since[id] = ++m->clock;
}

/* Draining numbers are quarantined in the order in which they began to drain. */
static void model_drained_all(struct model *m)
{
	for (;;) {
		uint32_t best = 0;

		for (uint32_t id = 1; id <= m->last; id++)
			if (m->state[id] == ID_DRAINING && (!best || m->since[id] < m->since[best]))
				best = id;
		if (!best)
			return;
		model_quarantine(m, best);
	}
}

static void check_all(const struct ids *s, const struct model *m)
{
	uint32_t in_use = 0;

	for (uint32_t id = 1; id <= m->last; id++) {
		assert_int_equal(ids_state(s, id), m->state[id]);
		in_use += m->state[id] != ID_FREE && m->state[id] != ID_QUARANTINED;
	}
	assert_int_equal(ids_in_use(s), in_use);
}

static void step_reserve(struct ids *s, struct model *m)
{
	uint32_t want = model_next(m), got = 0;

	assert_int_equal(ids_reserve(s, &got), want ? 0 : -ENOSPC);
	assert_int_equal(got, want);
	if (want)
		m->state[want] = ID_RESERVED;
}

static void step_exact(struct ids *s, struct model *m, uint32_t id)
{
	bool can = m->state[id] == ID_FREE || m->state[id] == ID_QUARANTINED;

	assert_int_equal(ids_reserve_exact(s, id), can ? 0 : -EEXIST);
	if (can)
		m->state[id] = ID_RESERVED;
}

static void step_forward(struct ids *s, struct model *m, uint32_t id)
{
	if (m->state[id] == ID_DRAINING) {
		ids_drained(s, id);
		model_quarantine(m, id);
	} else if (m->state[id] == ID_RESERVED || m->state[id] == ID_INSTALLED) {
		if (rnd(2)) {
			ids_installed(s, id);
			m->state[id] = ID_INSTALLED;
		} else {
			bool installed = m->state[id] == ID_INSTALLED;

			assert_int_equal(ids_release(s, id), installed);
			m->state[id] = installed ? ID_DRAINING : ID_FREE;
			m->since[id] = ++m->clock;
		}
	}
}

static void run_random(unsigned int bits, unsigned int steps)
{
	struct model *m = calloc(1, sizeof(*m));
	struct ids *s = NULL;

	assert_non_null(m);
	m->last = (1u << bits) - 1;
	assert_int_equal(ids_new(&s, bits), 0);
	for (unsigned int i = 0; i < steps; i++) {
		uint32_t id = 1 + rnd(m->last);
		uint32_t what = rnd(100);
		/* phases in which the space fills, and others in which it empties */
		bool filling = (i / (m->last * 2)) % 2 == 0;

		if (what < (filling ? 60u : 15u)) {
			step_reserve(s, m);
		} else if (what < (filling ? 65u : 16u)) {
			step_exact(s, m, id);
		} else if (what == 99 && rnd(20) == 0) {
			ids_drained_all(s);
			model_drained_all(m);
		} else {
			step_forward(s, m, id);
		}
		if (bits < 8 || rnd(200) == 0)
			check_all(s, m);
	}
	check_all(s, m);
	assert_null(ids_free(s));
	free(m);
}

static void test_random_small(void **state)
{
	(void)state;
	for (unsigned int bits = 1; bits <= 6; bits++)
		run_random(bits, 20000);
}

static void test_random_chunks(void **state)
{
	(void)state;
	run_random(12, 40000);
}

static void test_arguments(void **state)
{
	struct ids *s = NULL;

	(void)state;
	assert_null(ids_free(NULL));
	assert_int_equal(ids_new(&s, 0), -EINVAL);
	assert_int_equal(ids_new(&s, 21), -EINVAL);
	assert_null(s);
	assert_int_equal(ids_new(&s, 16), 0);
	assert_int_equal(ids_reserve_exact(s, 0), -EINVAL);
	assert_int_equal(ids_reserve_exact(s, 65536), -EINVAL);
	assert_int_equal(ids_reserve_exact(s, UINT32_MAX), -EINVAL);
	assert_int_equal(ids_reserve_exact(s, 65535), 0);
	assert_int_equal(ids_state(s, 65535), ID_RESERVED);
	assert_int_equal(ids_state(s, 0), ID_FREE);
	assert_int_equal(ids_state(s, UINT32_MAX), ID_FREE);
	ids_free(s);
}

/* A whole 20-bit space: every number once, then none, then the quarantined ones in their order. */
static void test_whole_space(void **state)
{
	const uint32_t last = (1u << 20) - 1;
	struct ids *s = NULL;
	uint32_t id = 0;

	(void)state;
	assert_int_equal(ids_new(&s, 20), 0);
	for (uint32_t i = 1; i <= last; i++) {
		assert_int_equal(ids_reserve(s, &id), 0);
		assert_int_equal(id, i);
		ids_installed(s, id);
	}
	assert_int_equal(ids_in_use(s), last);
	assert_int_equal(ids_reserve(s, &id), -ENOSPC);

	for (uint32_t i = last; i >= 1; i--) {
		assert_true(ids_release(s, i));
		ids_drained(s, i);
	}
	assert_int_equal(ids_in_use(s), 0);
	for (uint32_t i = last; i >= 1; i--) {
		assert_int_equal(ids_reserve(s, &id), 0);
		assert_int_equal(id, i);
	}
	ids_free(s);
}

/* Fewer numbers than there are: those that may be given out go round, and those beyond come back when they may. */
static void test_limit(void **state)
{
	struct ids *s;
	uint32_t id;

	assert_int_equal(ids_new(&s, 12), 0);
	for (uint32_t i = 1; i <= 10; i++) {
		assert_int_equal(ids_reserve(s, &id), 0);
		ids_installed(s, id);
	}
	ids_limit(s, 3);
	assert_int_equal(ids_reserve(s, &id), -ENOSPC);
	ids_release(s, 9);
	ids_drained(s, 9);
	assert_int_equal(ids_reserve(s, &id), -ENOSPC);
	for (uint32_t i = 1; i <= 7; i++) {
		ids_release(s, i);
		ids_drained(s, i);
	}
	for (uint32_t i = 0; i < 20; i++) {
		assert_int_equal(ids_reserve(s, &id), 0);
		assert_int_equal(id, i % 7 + 1);
		ids_installed(s, id);
		ids_release(s, id);
		ids_drained(s, id);
	}
	ids_limit(s, 20);
	assert_int_equal(ids_reserve(s, &id), 0);
	assert_int_equal(id, 11);
	ids_free(s);
}

/* What the hardware may remember is not given out: not while draining, and not before the numbers nobody has had. */
static void test_lifecycle(void **state)
{
	struct ids *s = NULL;
	uint32_t a, b, c;

	(void)state;
	assert_int_equal(ids_new(&s, 2), 0);
	assert_int_equal(ids_reserve(s, &a), 0);
	assert_false(ids_release(s, a)); /* never installed: at once free, and the lowest */
	assert_int_equal(ids_state(s, a), ID_FREE);
	assert_int_equal(ids_reserve(s, &b), 0);
	assert_int_equal(b, a);
	ids_installed(s, a);
	ids_installed(s, a);
	assert_true(ids_release(s, a));
	assert_int_equal(ids_state(s, a), ID_DRAINING);
	assert_int_equal(ids_in_use(s), 1);
	assert_int_equal(ids_reserve_exact(s, a), -EEXIST);
	assert_int_equal(ids_reserve(s, &b), 0);
	assert_int_equal(ids_reserve(s, &c), 0);
	assert_int_not_equal(b, a);
	assert_int_not_equal(c, a);
	assert_int_equal(ids_reserve(s, &c), -ENOSPC); /* a still drains */
	ids_drained_all(s);
	assert_int_equal(ids_state(s, a), ID_QUARANTINED);
	assert_int_equal(ids_in_use(s), 2);
	assert_int_equal(ids_reserve(s, &c), 0);
	assert_int_equal(c, a);
	ids_free(s);
}

/* Whether the step ends in an assert; in a child, with its last words thrown away. */
static bool aborts(void (*step)(struct ids *s, uint32_t id), struct ids *s, uint32_t id)
{
	pid_t pid = fork();
	int status = 0;

	assert_true(pid >= 0);
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		step(s, id);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void release(struct ids *s, uint32_t id)
{
	ids_release(s, id);
}

/* Each step from each state: what is not in the picture is our own bug. */
static void test_broken_lifecycle(void **state)
{
	/* 1 is reserved, 2 installed, 3 draining, 4 quarantined, 5 free */
	static const bool may_install[] = {true, true, false, false, false};
	static const bool may_release[] = {true, true, false, false, false};
	static const bool may_drain[] = {false, false, true, false, false};
	struct ids *s = NULL;
	uint32_t id;

	(void)state;
	assert_int_equal(ids_new(&s, 8), 0);
	for (uint32_t i = 1; i <= 4; i++) {
		assert_int_equal(ids_reserve(s, &id), 0);
		assert_int_equal(id, i);
		if (i >= 2)
			ids_installed(s, i);
		if (i >= 3)
			ids_release(s, i);
	}
	ids_drained(s, 4);
	for (uint32_t i = 1; i <= 5; i++) {
		assert_int_equal(aborts(ids_installed, s, i), !may_install[i - 1]);
		assert_int_equal(aborts(release, s, i), !may_release[i - 1]);
		assert_int_equal(aborts(ids_drained, s, i), !may_drain[i - 1]);
	}
	ids_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_lifecycle),
		cmocka_unit_test(test_broken_lifecycle),
		cmocka_unit_test(test_whole_space),
		cmocka_unit_test(test_random_small),
		cmocka_unit_test(test_random_chunks),
		cmocka_unit_test(test_limit),
	};

	rng.s = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
