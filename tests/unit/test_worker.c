/* SPDX-License-Identifier: MIT */
/* The worker: order, answers from the loop, and leaving while it is busy. */
#include <event2/event.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/util.h"
#include "base/worker.h"

struct piece {
	struct work work;
	int number;
	pthread_t ran_on;
};

static int order[1024];
static int n_done;
static struct event_base *base;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER; /* while held, pieces wait inside run() */
static atomic_int n_begun, n_dropped;
static pthread_mutex_t ended_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended_cond = PTHREAD_COND_INITIALIZER;
static bool ended;
static struct worker *leaving;

static void run(struct work *w)
{
	struct piece *p = container_of(w, struct piece, work);

	atomic_fetch_add(&n_begun, 1);
	pthread_mutex_lock(&gate);
	p->ran_on = pthread_self();
	pthread_mutex_unlock(&gate);
}

static void drop(struct work *w)
{
	atomic_fetch_add(&n_dropped, 1);
	free(container_of(w, struct piece, work));
}

static void last(void *arg)
{
	pthread_mutex_lock(&ended_lock);
	*(bool *)arg = true;
	pthread_cond_signal(&ended_cond);
	pthread_mutex_unlock(&ended_lock);
}

static void await_end(void)
{
	pthread_mutex_lock(&ended_lock);
	while (!ended)
		pthread_cond_wait(&ended_cond, &ended_lock);
	pthread_mutex_unlock(&ended_lock);
}

static void done(struct work *w)
{
	struct piece *p = container_of(w, struct piece, work);

	assert_false(pthread_equal(p->ran_on, pthread_self()));
	order[n_done++] = p->number;
	free(p);
	if (n_done == 1000)
		event_base_loopbreak(base);
}

static void done_and_leave(struct work *w)
{
	free(container_of(w, struct piece, work));
	leaving = worker_leave(leaving, drop, last, &ended);
	event_base_loopbreak(base);
}

static struct work *piece(int number, void (*answer)(struct work *w))
{
	struct piece *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->number = number;
	p->work.run = run;
	p->work.done = answer;
	return &p->work;
}

static void add(struct worker *w, int number, void (*answer)(struct work *w))
{
	worker_add(w, piece(number, answer));
}

static int setup(void **state)
{
	n_done = 0;
	atomic_store(&n_begun, 0);
	atomic_store(&n_dropped, 0);
	ended = false;
	base = event_base_new();
	return base ? 0 : -1;
}

static int teardown(void **state)
{
	event_base_free(base);
	return 0;
}

static void test_order(void **state)
{
	struct worker *w;

	assert_int_equal(worker_new(&w, base), 0);
	for (int i = 0; i < 1000; i++)
		add(w, i, done);
	event_base_dispatch(base);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(order[i], i);
	assert_null(worker_leave(w, drop, last, &ended));
	await_end();
	assert_int_equal(atomic_load(&n_dropped), 0);
}

/* Before what waits, not before what runs. */
static void test_first(void **state)
{
	static const int want[] = {0, 3, 1, 2};
	struct worker *w;

	assert_int_equal(worker_new(&w, base), 0);
	pthread_mutex_lock(&gate);
	add(w, 0, done);
	while (!atomic_load(&n_begun))
		sched_yield();
	add(w, 1, done);
	add(w, 2, done);
	worker_add_first(w, piece(3, done));
	pthread_mutex_unlock(&gate);
	while (n_done < 4)
		event_base_loop(base, EVLOOP_ONCE);
	assert_memory_equal(order, want, sizeof(want));
	assert_null(worker_leave(w, drop, last, &ended));
	await_end();
}

/* Whoever leaves does not wait for what runs; it and what waits is dropped, and the last thing comes last. */
static void test_leave_while_busy(void **state)
{
	struct worker *w;

	assert_int_equal(worker_new(&w, base), 0);
	pthread_mutex_lock(&gate);
	for (int i = 0; i < 5; i++)
		add(w, i, done);
	while (!atomic_load(&n_begun))
		sched_yield();
	worker_leave(w, drop, last, &ended);
	assert_int_equal(atomic_load(&n_dropped), 4);
	pthread_mutex_lock(&ended_lock);
	assert_false(ended);
	pthread_mutex_unlock(&ended_lock);
	pthread_mutex_unlock(&gate);
	await_end();
	assert_int_equal(atomic_load(&n_dropped), 5);
	assert_int_equal(n_done, 0);
}

static void test_leave_from_an_answer(void **state)
{
	assert_int_equal(worker_new(&leaving, base), 0);
	add(leaving, 0, done_and_leave);
	for (int i = 1; i < 6; i++)
		add(leaving, i, done);
	while (atomic_load(&n_begun) < 6) /* the first answers wait for the loop together */
		sched_yield();
	event_base_dispatch(base);
	await_end();
	assert_int_equal(atomic_load(&n_dropped), 5);
	assert_int_equal(n_done, 0);
	assert_null(worker_leave(NULL, drop, last, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_first, setup, teardown),
		cmocka_unit_test_setup_teardown(test_leave_while_busy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_leave_from_an_answer, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
