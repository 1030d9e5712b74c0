/* SPDX-License-Identifier: MIT */
/*
 * Address spaces whose tables the kernel keeps, from their making to their end: each step of it fails, in its answer and in
 * its call, and is sent away. Whatever happens, the PASID is detached before the space goes, and nothing is left over.
 * Changes of them are in test_ktables_change.c.
 */
#include "ktables_rig.h"

#define PASID 77u
#define WINDOW 0x1000u

static const struct ktables_window none = {0, 0, -1};
static const struct ktables_window window = {WINDOW, PAGE, 99};

/* Delivers what comes, and looks as its owner does, until it is made or is not. */
static int await_made(struct ktables *k)
{
	int made;

	for (unsigned int i = 0; (made = ktables_made(k)) == 0; i++) {
		assert_true(i < 1000);
		if (kernel.n_answers)
			deliver();
	}
	assert_int_equal(kernel.n_answers, 0);
	return made;
}

/* 0, or why it could not be left. */
static int await_left(struct ktables *k)
{
	int r;

	for (unsigned int i = 0; (r = ktables_leave(k)) > 0; i++) {
		assert_true(i < 1000);
		if (kernel.n_answers)
			deliver();
	}
	return r;
}

static void end(struct ktables *k)
{
	for (unsigned int i = 0; ktables_end(&k) < 0; i++)
		assert_true(i < 1000);
	assert_null(k);
	assert_int_equal(kernel.n_spaces + kernel.n_memories, 0);
}

/* As the device's loss ends it: the transport forgets, and frees its spaces itself. */
static void drop(struct ktables *k)
{
	ktables_free(k);
	kernel_close();
}

static void test_pasid(void **state)
{
	struct ktables *k;

	kernel_begin();
	assert_int_equal(ktables_new(&k, &kernel_transport, &window, PASID, changed, NULL), 0);
	deliver(); /* made */
	assert_int_equal(ktables_made(k), 0);
	deliver(); /* its window is held */
	deliver(); /* ... and mapped */
	assert_int_equal(LIST_FIRST(&kernel.spaces)->page[WINDOW / PAGE].memory->number, 99);
	assert_int_equal(ktables_made(k), 0);
	deliver(); /* attached */
	assert_int_equal(ktables_made(k), 1);
	assert_int_equal(kernel.attached, PASID);
	assert_int_equal(ktables_leave(k), 1);
	assert_int_equal(ktables_leave(k), 1);
	assert_int_equal(kernel.n_answers, 1);
	deliver();
	assert_int_equal(ktables_leave(k), 0);
	assert_int_equal(kernel.attached, 0);
	end(k);
}

/* While the device is reset, it is asked again. */
static void test_busy_with_a_reset(void **state)
{
	struct ktables *k;

	kernel_begin();
	kernel.fail_at = 2;
	kernel.error = -EBUSY;
	assert_int_equal(ktables_new(&k, &kernel_transport, &none, PASID, changed, NULL), 0);
	assert_int_equal(await_made(k), 1);
	assert_int_equal(kernel.asked, 3);
	assert_int_equal(kernel.attached, PASID);
	assert_int_equal(await_left(k), 0);
	end(k);
}

/* ... but not for ever. */
static void test_busy_for_good(void **state)
{
	struct ktables *k;
	int made;

	kernel_begin();
	kernel.fail_at = 2;
	kernel.fail_again = 1;
	kernel.error = -EBUSY;
	assert_int_equal(ktables_new(&k, &kernel_transport, &none, PASID, changed, NULL), 0);
	while (!(made = ktables_made(k)))
		deliver();
	assert_int_equal(made, -EBUSY);
	kernel.fail_at = 0;
	assert_int_equal(await_left(k), 0);
	end(k);
}

/* Makes, holding and mapping the window, attaching and detaching, in this order. */
static void fail_at(unsigned int step, int error, bool in_call, unsigned int busy)
{
	struct ktables *k;
	int r;

	kernel_begin();
	kernel.fail_at = step;
	kernel.error = error;
	kernel.fail_in_call = in_call;
	kernel.busy = busy;
	do
		r = ktables_new(&k, &kernel_transport, &window, PASID, changed, NULL);
	while (r == -EBUSY);
	if (step == 1 && in_call) {
		assert_int_equal(r, error);
		assert_int_equal(kernel.n_spaces + kernel.n_memories, 0);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(await_made(k), step < 5 ? error : 1);
	assert_int_equal(kernel.attached, step < 5 ? 0 : PASID);
	if (step == 5) {
		assert_int_equal(await_left(k), error);
		if (!in_call)
			assert_int_equal(ktables_leave(k), error); /* and it stays so */
		drop(k); /* the device is given up */
		return;
	}
	assert_int_equal(await_left(k), 0); /* there is nothing to detach */
	end(k);
}

static void test_each_step_fails(void **state)
{
	static const int errors[] = {-ENOMEM, -ENOSPC, -EIO, -EINVAL};

	for (unsigned int step = 1; step <= 5; step++)
		for (size_t e = 0; e < ARRAY_SIZE(errors); e++)
			for (unsigned int how = 0; how < 4; how++)
				fail_at(step, errors[e], how & 1, how & 2 ? 2 : 0);
}

/* What the transport has no room for is asked again when its owner looks. */
static void test_no_room(void **state)
{
	struct ktables *k;

	kernel_begin();
	kernel.room = 0;
	assert_int_equal(ktables_new(&k, &kernel_transport, &window, PASID, changed, NULL), -EBUSY);
	kernel.room = 1;
	assert_int_equal(ktables_new(&k, &kernel_transport, &window, PASID, changed, NULL), 0);
	for (unsigned int step = 0; step < 3; step++) {
		kernel.room = 0;
		deliver();
		assert_int_equal(ktables_made(k), 0);
		assert_int_equal(kernel.n_answers, 0);
		kernel.room = 1;
		assert_int_equal(ktables_made(k), 0);
		assert_int_equal(kernel.n_answers, 1);
	}
	deliver();
	assert_int_equal(ktables_made(k), 1);
	assert_int_equal(kernel.attached, PASID);
	kernel.room = 0;
	assert_int_equal(ktables_leave(k), 1);
	kernel.room = 1;
	assert_int_equal(await_left(k), 0);
	kernel.room = 0;
	assert_int_equal(ktables_end(&k), -EBUSY);
	assert_non_null(k);
	kernel.room = 1;
	end(k);
}

/* Freed wherever it is, as when its device is lost. */
static void test_freed_on_the_way(void **state)
{
	for (unsigned int n = 0; n <= 4; n++) { /* answers */
		struct ktables *k;

		kernel_begin();
		assert_int_equal(ktables_new(&k, &kernel_transport, &window, PASID, changed, NULL), 0);
		for (unsigned int i = 0; i < n; i++)
			deliver();
		drop(k);
	}
	assert_null(ktables_free(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pasid),         cmocka_unit_test(test_busy_with_a_reset),
		cmocka_unit_test(test_busy_for_good), cmocka_unit_test(test_each_step_fails),
		cmocka_unit_test(test_no_room),       cmocka_unit_test(test_freed_on_the_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
