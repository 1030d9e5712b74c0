/* SPDX-License-Identifier: MIT */
/*
 * Address spaces whose tables the kernel keeps, against a kernel of the test's own that has an array of pages and refuses
 * what it is told to refuse: random changes, each of them failed at each of its steps first. After a failure everything
 * is as before; after a success it is what a naive model says; and no mapping crosses 2 MiB.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "service/ktables.h"

#define PAGE 4096u
#define PAGES 2048u /* of the address space */
#define AREA_PAGES 512u
#define BUFFERS 4u
#define BUFFER_PAGES 1024u
#define BASE 0x10000000ull
#define BUS 0x100000000000ull
#define MAX_STEPS 6u

struct entry { /* a page */
	uint32_t mapping; /* number of the kernel's mapping that it is in; 0: none */
	int fd;
	uint64_t off;
	bool writable;
};

/* ---- the kernel ---- */

struct answer {
	transport_done done;
	void *arg;
	int err;
};

static struct kernel {
	struct entry page[PAGES];
	uint32_t last;
	struct answer answers[4096];
	size_t n_answers;
	unsigned int asked; /* since the change began */
	unsigned int fail_at; /* that request fails; 0: none */
	bool fail_after; /* and all behind it */
	unsigned int room; /* -EBUSY beyond that many answers that wait */
	bool refused; /* something failed */
	unsigned int changes; /* changed() was called */
} kernel;

static int answer(transport_done done, void *arg, int err)
{
	if (kernel.n_answers == kernel.room)
		return -EBUSY;
	kernel.answers[kernel.n_answers++] = (struct answer){done, arg, err};
	return 0;
}

static bool fails(void)
{
	kernel.asked++;
	if (!kernel.fail_at || kernel.asked < kernel.fail_at || (kernel.asked > kernel.fail_at && !kernel.fail_after))
		return false;
	kernel.refused = true;
	return true;
}

static int make(struct transport *t, struct transport_space **ret, transport_done done, void *arg)
{
	*ret = (struct transport_space *)&kernel;
	return answer(done, arg, 0);
}

static uint32_t attached_pasid;

static int space_free(struct transport *t, struct transport_space *s)
{
	assert_int_equal(attached_pasid, 0); /* memory goes last */
	memset(kernel.page, 0, sizeof(kernel.page));
	return 0;
}

/* What a kernel refuses by itself. It only comes to that behind a request that failed: others were on their way by then. */
static bool cannot(bool here)
{
	assert_true(!here || kernel.refused);
	return here;
}

static bool any_mapped(size_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (kernel.page[first + i].mapping)
			return true;
	return false;
}

static bool is_one_mapping(size_t first, size_t n)
{
	uint32_t m = kernel.page[first].mapping;

	for (size_t i = 0; i < n; i++)
		if (!m || kernel.page[first + i].mapping != m)
			return false;
	return (first == 0 || kernel.page[first - 1].mapping != m) &&
	       (first + n == PAGES || kernel.page[first + n].mapping != m);
}

static int map(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len, int fd, uint64_t off,
	       uint32_t prot, transport_done done, void *arg)
{
	size_t first = (iova - BASE) / PAGE, n = len / PAGE;
	bool fail;

	if (kernel.n_answers == kernel.room)
		return -EBUSY;
	fail = fails();
	assert_true(n > 0 && first + n <= PAGES);
	assert_int_equal(first / AREA_PAGES, (first + n - 1) / AREA_PAGES);
	fail |= cannot(any_mapped(first, n));
	kernel.last++;
	for (size_t i = 0; i < n && !fail; i++)
		kernel.page[first + i] = (struct entry){kernel.last, fd, off + i * PAGE, (prot & TRANSPORT_WRITE) != 0};
	return answer(done, arg, fail ? -ENOMEM : 0);
}

static int unmap(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len, transport_done done,
		 void *arg)
{
	size_t first = (iova - BASE) / PAGE, n = len / PAGE;
	bool fail;

	if (kernel.n_answers == kernel.room)
		return -EBUSY;
	fail = fails();
	fail |= cannot(!is_one_mapping(first, n));
	for (size_t i = 0; i < n && !fail; i++)
		kernel.page[first + i] = (struct entry){0};
	return answer(done, arg, fail ? -EIO : 0);
}

static int attach_error;

static int attach_pasid(struct transport *t, struct transport_space *s, uint32_t pasid, transport_done done, void *arg)
{
	if (!attach_error)
		attached_pasid = pasid;
	return answer(done, arg, attach_error);
}

static int detach_pasid(struct transport *t, uint32_t pasid, transport_done done, void *arg)
{
	assert_int_equal(pasid, attached_pasid);
	attached_pasid = 0;
	return answer(done, arg, 0);
}

static const struct transport_space_ops spaces = {
	.make = make,
	.free = space_free,
	.map = map,
	.unmap = unmap,
	.attach_pasid = attach_pasid,
	.detach_pasid = detach_pasid,
};
static const struct transport_ops ops = {.spaces = &spaces};
static struct transport transport = {.ops = &ops};

static void changed(void *arg)
{
	kernel.changes++;
}

static void deliver(void)
{
	struct answer a = kernel.answers[0];

	memmove(kernel.answers, kernel.answers + 1, --kernel.n_answers * sizeof(a));
	a.done(a.arg, a.err);
}

/* ---- the model ---- */

static struct entry model[PAGES];

static struct ktables_memory find(void *arg, uint64_t bus)
{
	uint64_t off = bus - BUS, size = BUFFER_PAGES * PAGE;

	return (struct ktables_memory){100 + (int)(off / size), off % size, size - off % size};
}

static void model_step(struct entry *m, const struct aspace_step *s)
{
	for (uint64_t at = s->iova.first; at < s->iova.last; at += PAGE) {
		struct ktables_memory where = {0};

		if (s->kind == ASPACE_MAP)
			where = find(NULL, s->bus + (at - s->iova.first));
		m[(at - BASE) / PAGE] =
			s->kind == ASPACE_MAP ? (struct entry){1, where.fd, where.off, s->writable} : (struct entry){0};
	}
}

static void expect_model(void)
{
	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(kernel.page[i].mapping != 0, model[i].mapping);
		assert_int_equal(kernel.page[i].fd, model[i].fd);
		assert_int_equal(kernel.page[i].off, model[i].off);
		assert_int_equal(kernel.page[i].writable, model[i].writable);
	}
}

static uint32_t draw(uint32_t n)
{
	return (uint32_t)random() % n;
}

/* A step that the books could ask for in this state: a map of free pages, an unmap of mapped ones. */
static bool random_step(const struct entry *m, struct aspace_step *s)
{
	size_t first = draw(PAGES), n = 1;
	bool is_map = !m[first].mapping;
	size_t most = 1 + draw(draw(2) ? 4 : 900);

	while (n < most && first + n < PAGES && !m[first + n].mapping == is_map)
		n++;
	*s = (struct aspace_step){
		.kind = is_map ? ASPACE_MAP : ASPACE_UNMAP,
		.writable = is_map && draw(2),
		.iova = {BASE + first * PAGE, BASE + (first + n) * PAGE - 1},
	};
	if (is_map)
		s->bus = BUS + (uint64_t)draw(BUFFERS * BUFFER_PAGES - (uint32_t)n + 1) * PAGE;
	return true;
}

/* Carries a change out, with answers that come late or at once. */
static int carry_out(struct ktables *k)
{
	int r;

	while ((r = ktables_go(k)) > 0) {
		size_t n = kernel.n_answers ? 1 + draw((uint32_t)kernel.n_answers) : 0;

		assert_true(n > 0 || !kernel.room);
		kernel.changes = 0;
		if (!n)
			kernel.room = 1; /* what others had asked for is answered */
		while (n--)
			deliver();
	}
	assert_int_equal(kernel.n_answers, 0);
	return r;
}

static struct ktables *begin(void)
{
	const struct ktables_window none = {0, 0, -1};
	struct ktables *k;

	memset(&kernel, 0, sizeof(kernel));
	memset(model, 0, sizeof(model));
	kernel.room = 4096;
	assert_int_equal(ktables_new(&k, &transport, &none, 0, changed, NULL), 0);
	assert_int_equal(ktables_made(k), 0);
	deliver();
	assert_int_equal(ktables_made(k), 1);
	return k;
}

static void test_random_changes(void **state)
{
	unsigned int seed =
		getenv("SEED") ? (unsigned int)strtoul(getenv("SEED"), NULL, 0) : (unsigned int)util_now_ns();
	struct ktables *k = begin();
	unsigned int taken_back = 0, total = 0;

	print_message("# seed %u\n", seed);
	srandom(seed);
	for (int round = 0; round < 300; round++) {
		struct entry after[PAGES];
		struct aspace_step step[MAX_STEPS];
		size_t n = 1 + draw(MAX_STEPS);

		memcpy(after, model, sizeof(after));
		for (size_t i = 0; i < n; i++) {
			random_step(after, &step[i]);
			model_step(after, &step[i]);
		}
		kernel.room = draw(3) ? 4096 : draw(3);
		for (kernel.fail_at = 1;; kernel.fail_at += 1 + draw(3)) {
			int r;

			kernel.asked = 0;
			kernel.refused = false;
			assert_int_equal(ktables_change(k, step, n, find, NULL), 0);
			r = carry_out(k);
			total++;
			if (!kernel.refused) {
				assert_int_equal(r, 0);
				break;
			}
			assert_true(r == -ENOMEM || r == -EIO);
			expect_model();
			taken_back++;
		}
		memcpy(model, after, sizeof(model));
		expect_model();
	}
	print_message("# %u changes, %u of them taken back\n", total, taken_back);
	assert_true(taken_back > 300);
	assert_int_equal(ktables_end(&k), 0);
	assert_null(k);
}

/* A failure that cannot be undone says so. */
static void test_not_recoverable(void **state)
{
	struct aspace_step step[2] = {
		{.kind = ASPACE_MAP, .iova = {BASE, BASE + PAGE - 1}, .bus = BUS},
		{.kind = ASPACE_MAP, .iova = {BASE + 8 * PAGE, BASE + 9 * PAGE - 1}, .bus = BUS},
	};
	struct ktables *k = begin();

	kernel.fail_at = 2;
	kernel.fail_after = true;
	assert_int_equal(ktables_change(k, step, 2, find, NULL), 0);
	assert_int_equal(carry_out(k), -ENOTRECOVERABLE);
	assert_int_equal(ktables_end(&k), 0);
}

/* Freed in the middle, as when its device is lost. */
static void test_freed_in_the_middle(void **state)
{
	struct aspace_step step = {.kind = ASPACE_MAP, .iova = {BASE, BASE + 1500 * PAGE - 1}, .bus = BUS};
	struct ktables *k = begin();

	assert_int_equal(ktables_change(k, &step, 1, find, NULL), 0);
	assert_int_equal(ktables_go(k), 1);
	ktables_free(k);

	k = begin();
	kernel.fail_at = 2;
	assert_int_equal(ktables_change(k, &step, 1, find, NULL), 0);
	assert_int_equal(ktables_go(k), 1);
	while (kernel.n_answers)
		deliver();
	assert_int_equal(ktables_go(k), 1);
	assert_true(kernel.n_answers > 0); /* being taken back */
	ktables_free(k);
	assert_null(ktables_free(NULL));
}

/* Attached before anyone is told that it is there, detached before it goes; while the device is reset, asked again. */
static void test_pasid(void **state)
{
	const struct ktables_window none = {0, 0, -1};
	struct ktables *k;

	memset(&kernel, 0, sizeof(kernel));
	kernel.room = 4096;
	attach_error = -EBUSY;
	assert_int_equal(ktables_new(&k, &transport, &none, 77, changed, NULL), 0);
	deliver(); /* made */
	assert_int_equal(ktables_made(k), 0);
	deliver(); /* not attached: busy */
	assert_int_equal(ktables_made(k), 0);
	attach_error = 0;
	deliver(); /* busy once more, and asked again */
	deliver();
	assert_int_equal(ktables_made(k), 1);
	assert_int_equal(attached_pasid, 77);
	assert_int_equal(ktables_leave(k), 1);
	assert_int_equal(ktables_leave(k), 1);
	assert_int_equal(kernel.n_answers, 1);
	deliver();
	assert_int_equal(ktables_leave(k), 0);
	assert_int_equal(attached_pasid, 0);
	assert_int_equal(ktables_end(&k), 0);

	attach_error = -ENOSPC;
	assert_int_equal(ktables_new(&k, &transport, &none, 78, changed, NULL), 0);
	deliver();
	deliver();
	assert_int_equal(ktables_made(k), -ENOSPC);
	assert_int_equal(ktables_leave(k), 0); /* there is nothing to detach */
	assert_int_equal(ktables_end(&k), 0);
	attach_error = 0;
}

/* What the transport has no room for is asked again when its owner looks. */
static void test_no_room(void **state)
{
	const struct ktables_window window = {BASE, PAGE, 99};
	struct ktables *k;

	memset(&kernel, 0, sizeof(kernel));
	assert_int_equal(ktables_new(&k, &transport, &window, 79, changed, NULL), -EBUSY);
	kernel.room = 1;
	assert_int_equal(ktables_new(&k, &transport, &window, 79, changed, NULL), 0);
	for (unsigned int step = 0; step < 2; step++) {
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
	assert_int_equal(attached_pasid, 79);
	assert_int_equal(kernel.page[0].fd, 99);
	assert_int_equal(ktables_leave(k), 1);
	deliver();
	assert_int_equal(ktables_leave(k), 0);
	assert_int_equal(ktables_end(&k), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pasid),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_random_changes),
		cmocka_unit_test(test_not_recoverable),
		cmocka_unit_test(test_freed_in_the_middle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
