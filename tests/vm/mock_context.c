/* SPDX-License-Identifier: MIT */
/*
 * A context's address space in mode `pasid`, from its making to its end, on the kernel's mock devices. Each verb is failed
 * at each step of the kernel's: then the kernel has what it had before, and the books agree with it.
 */
#include "mock_rig.h"

#include "core/aspace.h"
#include "service/ktables.h"

#define OWNER 1u
#define PASID 77u
#define WINDOW (APERTURE.first)
#define SPAN PAGES /* pages that lists are about, half of them on each side of an area's end */
#define BASE ((64ull << 20) - SPAN / 2 * PAGE)
#define MAX_OPS 5u
#define ROUNDS 40u

/* ---- a transport without a thread: each request is carried out at once, and answered when its time comes ---- */

static struct {
	transport_done done;
	void *arg;
	int err;
} answers[64];
static size_t n_answers;

static int answer(transport_done done, void *arg, int err)
{
	assert_true(n_answers < ARRAY_SIZE(answers));
	answers[n_answers].done = done;
	answers[n_answers].arg = arg;
	answers[n_answers++].err = err;
	return 0;
}

static void deliver(void)
{
	for (size_t i = 0; i < n_answers; i++)
		answers[i].done(answers[i].arg, answers[i].err);
	n_answers = 0;
}

static int t_make(struct transport *t, struct transport_space **ret, transport_done done, void *arg)
{
	return answer(done, arg, ops->space_new(iommu, ret));
}

static int t_free(struct transport *t, struct transport_space *s)
{
	ops->space_free(iommu, s);
	return 0;
}

static int t_hold(struct transport *t, struct transport_memory **ret, int fd, uint64_t len, uint32_t prot,
		  transport_done done, void *arg)
{
	return answer(done, arg, ops->hold(iommu, fd, len, prot, ret));
}

static int t_release(struct transport *t, struct transport_memory *m)
{
	ops->release(iommu, m);
	return 0;
}

static int t_map(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len,
		 struct transport_memory *m, uint64_t off, uint32_t prot, transport_done done, void *arg)
{
	return answer(done, arg, ops->map_held(iommu, s, iova, len, m, off, prot));
}

static int t_unmap(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len, transport_done done,
		   void *arg)
{
	return answer(done, arg, ops->unmap(iommu, s, iova, len));
}

static int t_attach_pasid(struct transport *t, struct transport_space *s, uint32_t pasid, transport_done done,
			  void *arg)
{
	return answer(done, arg, ops->attach_pasid(iommu, device, s, pasid));
}

static int t_detach_pasid(struct transport *t, uint32_t pasid, transport_done done, void *arg)
{
	return answer(done, arg, ops->detach_pasid(iommu, device, pasid));
}

static const struct transport_space_ops spaces = {
	.make = t_make,
	.free = t_free,
	.hold = t_hold,
	.release = t_release,
	.map = t_map,
	.unmap = t_unmap,
	.attach_pasid = t_attach_pasid,
	.detach_pasid = t_detach_pasid,
};
static const struct transport_ops transport_ops = {.spaces = &spaces};
static struct transport transport = {.ops = &transport_ops};

/* ---- a context ---- */

static struct ktables *k;
static struct transport_memory *memory; /* the buffer's */
static struct buffer buf = {.size = PAGES * PAGE, .bus = 1ull << 40, .writable = true, .named = true};
static struct aspace as;
static int window_fd = -1;
static uint32_t ids;
static unsigned int fds;

static struct transport_memory *buffer_memory(const struct buffer *b)
{
	return memory;
}

static void changed(void *arg)
{
}

static int make(void)
{
	const struct ktables_window window = {WINDOW, PAGE, window_fd};
	int r = ktables_new(&k, &transport, &window, PASID, changed, NULL);

	if (r < 0)
		return r;
	while (!(r = ktables_made(k)))
		deliver();
	if (r > 0)
		return 0;
	assert_int_equal(ktables_leave(k), 0);
	assert_int_equal(ktables_end(&k), 0);
	return r;
}

static int leave(void)
{
	int r;

	while ((r = ktables_leave(k)) > 0)
		deliver();
	return r;
}

static void end(void)
{
	assert_true(is_attached(PASID, ktables_space(k)->hwpt));
	assert_int_equal(leave(), 0);
	assert_true(is_attached(PASID, 0));
	assert_int_equal(ktables_end(&k), 0);
}

static void expect_no_context(void)
{
	assert_true(is_attached(PASID, 0));
	assert_int_equal(next_id(), ids);
	assert_int_equal(open_fds(), fds);
}

static int set_up_context(void **state)
{
	if (set_up(state) < 0)
		return -1;
	aspace_init(&as, APERTURE, 0);
	window_fd = memfd_create("window", MFD_CLOEXEC);
	assert_int_equal(ftruncate(window_fd, PAGE), 0);
	assert_int_equal(ops->hold(iommu, memfd, PAGES * PAGE, TRANSPORT_READ | TRANSPORT_WRITE, &memory), 0);
	ids = next_id();
	fds = open_fds();
	return 0;
}

static int tear_down_rest(void **state)
{
	close(window_fd);
	aspace_fini(&as);
	return tear_down(state);
}

static int tear_down_context(void **state)
{
	expect_no_context();
	expect_pins(0, PAGES, 0);
	ops->release(iommu, memory);
	return tear_down_rest(state);
}

static void test_making(void **state)
{
	assert_true(fail_everywhere("make a context", make, end, expect_no_context) > 20);
}

/* ---- lists ---- */

static struct {
	unsigned int page[SPAN]; /* of the buffer, from 1; 0: not mapped */
} model, before;

static struct aspace_op list[MAX_OPS];
static size_t n_ops;

static uint32_t draw(uint32_t n)
{
	return (uint32_t)random() % n;
}

static void expect_model(void)
{
	const struct transport_space *s = ktables_space(k);
	unsigned int uses[PAGES] = {0};

	for (unsigned int at = 0; at < SPAN; at++) {
		const struct mapping *m = aspace_find(&as, BASE + at * PAGE);
		unsigned int page = model.page[at];

		assert_int_equal(m != NULL, page != 0);
		if (page) {
			assert_true(is_mapped(s, BASE + at * PAGE, buffer + (page - 1) * PAGE));
			uses[page - 1] = 1;
		}
		for (unsigned int i = 0; !page && i < PAGES; i++)
			assert_false(is_mapped(s, BASE + at * PAGE, buffer + i * PAGE));
	}
	for (unsigned int i = 0; i < PAGES; i++)
		expect_pins(i, 1, uses[i]);
}

/* Each operation maps free pages or unmaps mapped ones; the model follows. */
static void random_list(void)
{
	n_ops = 1 + draw(MAX_OPS);
	for (size_t i = 0; i < n_ops; i++) {
		unsigned int first = draw(SPAN), n = 1, most = 1 + draw(SPAN), from;
		bool map = !model.page[first];

		while (n < most && first + n < SPAN && !model.page[first + n] == map)
			n++;
		from = draw(PAGES - n + 1);
		list[i] = (struct aspace_op){
			.kind = map ? ASPACE_MAP : ASPACE_UNMAP,
			.fixed = true,
			.writable = true,
			.buf = &buf,
			.off = from * PAGE,
			.iova = BASE + first * PAGE,
			.len = n * PAGE,
		};
		for (unsigned int j = 0; j < n; j++)
			model.page[first + j] = map ? from + j + 1 : 0;
	}
}

/* 0: done, in the books, too. */
static int bind(void)
{
	struct refusal why;
	struct plan *plan;
	int r;

	assert_int_equal(aspace_plan(&as, OWNER, list, n_ops, &plan, &why), 0);
	ktables_change(k, &as, plan, buffer_memory);
	while ((r = ktables_go(k)) > 0)
		deliver();
	if (r < 0)
		plan_undo(plan);
	else
		plan_commit(plan, NULL, NULL);
	return r;
}

/* Tries the list with one failure after another. Returns how often it was taken back. */
static unsigned int fail_list(void)
{
	unsigned int taken_back = 0;
	int r;

	for (unsigned int nth = 1;; nth++) {
		failure.left = nth;
		failure.happened = false;
		before = model;
		random_list();
		r = bind();
		failure.left = 0;
		if (r < 0) {
			assert_true(failure.happened);
			taken_back++;
			model = before;
		}
		expect_model();
		assert_true(is_attached(PASID, ktables_space(k)->hwpt));
		if (!failure.happened)
			return taken_back;
	}
}

static void test_lists(void **state)
{
	unsigned int seed = getenv("SEED") ? (unsigned int)strtoul(getenv("SEED"), NULL, 0) : (unsigned int)time(NULL);
	unsigned int taken_back = 0;

	print_message("# SEED=%u\n", seed);
	srandom(seed);
	assert_int_equal(make(), 0);
	for (unsigned int round = 0; round < ROUNDS; round++)
		taken_back += fail_list();
	print_message("# %u rounds, %u lists taken back\n", ROUNDS, taken_back);
	assert_true(taken_back > 5 * ROUNDS);
	end();
	aspace_drop_owner(&as, OWNER, NULL, NULL, NULL);
}

/* ---- its end ---- */

/* A PASID that cannot be taken away costs the device, with which everything goes. */
static void test_not_left(void **state)
{
	struct transport_space *s;
	int r;

	assert_int_equal(make(), 0);
	s = ktables_space(k);
	failure.left = 1;
	r = leave();
	failure.left = 0;
	assert_true(r < 0);
	assert_true(is_attached(PASID, s->hwpt));
	assert_int_equal(leave(), r);
	k = ktables_free(k);
	assert_int_equal(ops->detach_pasid(iommu, device, PASID), 0); /* VFIO does that when it is closed */
	ops->space_free(iommu, s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_making, set_up_context, tear_down_context),
		cmocka_unit_test_setup_teardown(test_lists, set_up_context, tear_down_context),
		cmocka_unit_test_setup_teardown(test_not_left, set_up_context, tear_down_rest),
	};

	set_up_failures();
	return cmocka_run_group_tests_name("mock_context", tests, NULL, NULL);
}
