/* SPDX-License-Identifier: MIT */
/* The translator that moves a device between the kernel's address spaces, on a transport of the test's own. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"
#include "translator/domain.h"
#include "transport/transport.h"

static char one_space, two_space, three_space;
#define ONE ((struct transport_space *)&one_space)
#define TWO ((struct transport_space *)&two_space)
#define THREE ((struct transport_space *)&three_space)

static struct {
	struct transport_space *asked[8];
	unsigned int n_asked;
	transport_done done;
	void *arg;
	int refuse; /* attach() answers that at once */
	unsigned int changes;
} fake;

static int attach(struct transport *t, struct transport_space *s, transport_done done, void *arg)
{
	if (fake.refuse)
		return fake.refuse;
	assert_true(fake.n_asked < ARRAY_SIZE(fake.asked));
	assert_null(fake.done); /* one at a time */
	fake.asked[fake.n_asked++] = s;
	fake.done = done;
	fake.arg = arg;
	return 0;
}

static void answer(int err)
{
	transport_done done = fake.done;

	fake.done = NULL;
	done(fake.arg, err);
}

static const struct transport_space_ops spaces = {.attach = attach};
static const struct transport_ops ops = {.spaces = &spaces};
static struct transport transport = {.ops = &ops};

static void changed(void *arg)
{
	fake.changes++;
}

static int setup(void **state)
{
	fake.n_asked = fake.changes = 0;
	fake.refuse = 0;
	fake.done = NULL;
	return domain_new((struct translator **)state, &transport, changed, NULL);
}

static int teardown(void **state)
{
	*state = domain_free(*state);
	return 0;
}

static int install(struct translator *t, struct transport_space *s)
{
	return t->ops->install(t, 0, &(struct translator_space){.kernel = s});
}

static int take_out(struct translator *t, struct transport_space *s)
{
	return t->ops->remove(t, 0, &(struct translator_space){.kernel = s});
}

static int ready(struct translator *t, struct transport_space *s)
{
	return t->ops->ready(t, 0, &(struct translator_space){.kernel = s});
}

static void test_moves(void **state)
{
	struct translator *t = *state;

	assert_int_equal(install(t, ONE), 1);
	assert_int_equal(ready(t, ONE), 0);
	answer(0);
	assert_int_equal(fake.changes, 1);
	assert_int_equal(ready(t, ONE), 1);
	assert_int_equal(install(t, ONE), 0); /* it is there */
	assert_int_equal(install(t, TWO), 1);
	assert_int_equal(install(t, ONE), -EAGAIN);
	answer(0);
	assert_int_equal(take_out(t, ONE), 0); /* it is not there */
	assert_int_equal(take_out(t, TWO), 1);
	assert_int_equal(take_out(t, TWO), -EAGAIN);
	answer(0);
	assert_int_equal(take_out(t, TWO), 0);
	assert_int_equal(fake.n_asked, 3);
	assert_true(fake.asked[0] == ONE && fake.asked[1] == TWO && !fake.asked[2]);
}

/* The device is in nobody's then: whoever was there before has to be installed anew. */
static void test_a_move_that_fails(void **state)
{
	struct translator *t = *state;

	assert_int_equal(install(t, ONE), 1);
	answer(0);
	assert_int_equal(install(t, TWO), 1);
	answer(-ENOMEM);
	assert_int_equal(ready(t, TWO), -ECANCELED);
	assert_int_equal(ready(t, TWO), -ECANCELED);
	assert_int_equal(take_out(t, TWO), 0);
	assert_int_equal(take_out(t, ONE), 0);
	assert_int_equal(install(t, ONE), 1);
	answer(0);
	assert_int_equal(ready(t, ONE), 1);
}

/* A third context that goes, or that was going, changes nothing about what the one that was to come is told. */
static void test_failures_are_told_to_whom_they_hit(void **state)
{
	struct translator *t = *state;

	assert_int_equal(install(t, ONE), 1);
	answer(0);
	assert_int_equal(install(t, TWO), 1);
	assert_int_equal(take_out(t, THREE), -EAGAIN);
	answer(-EPERM);
	assert_int_equal(take_out(t, THREE), 0);
	assert_int_equal(ready(t, TWO), -ECANCELED);

	/* Nor does one that comes. */
	assert_int_equal(install(t, TWO), 1);
	answer(-EPERM);
	assert_int_equal(install(t, ONE), 1);
	assert_int_equal(ready(t, TWO), 0);
	answer(0);
	assert_int_equal(ready(t, TWO), -ECANCELED);
	assert_int_equal(ready(t, ONE), 1);
}

static void test_nowhere(void **state)
{
	struct translator *t = *state;

	assert_int_equal(install(t, ONE), 1);
	answer(-EIO);
	assert_int_equal(ready(t, ONE), -EIO);
	assert_int_equal(ready(t, ONE), -EIO);
	assert_int_equal(install(t, ONE), -EIO);
	assert_int_equal(take_out(t, TWO), -EIO);
}

static void test_busy(void **state)
{
	struct translator *t = *state;

	fake.refuse = -EBUSY;
	assert_int_equal(install(t, ONE), -EAGAIN);
	fake.refuse = -ENODEV;
	assert_int_equal(install(t, ONE), -ENODEV);
	fake.refuse = 0;
	assert_int_equal(take_out(t, ONE), 0);
	assert_int_equal(install(t, ONE), 1);
	answer(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_moves, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_move_that_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failures_are_told_to_whom_they_hit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nowhere, setup, teardown),
		cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
