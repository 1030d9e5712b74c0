/* SPDX-License-Identifier: MIT */
/*
 * Changes of an address space whose tables the kernel keeps, as the books plan them, on the kernel of ktables_rig.h, beside
 * a naive model: an array of pages. After each change the kernel has what the books have and what the model has: all of it,
 * or what was there before; unless taking it back was made to fail, and only then, the space is given up.
 */
#include "ktables_rig.h"
#include "unit/random.h"

#define BASE 0x1025000ull /* amidst an area */
#define MODEL_PAGES 4096u /* from there on */
#define BUFFERS 4u
#define BUFFER_PAGES 2048u
#define MAX_OPS 12u
#define OWNER 1u

static struct buffer buffers[BUFFERS];
static struct aspace as;
static struct page model[MODEL_PAGES];

static struct transport_memory *buffer_memory(const struct buffer *b)
{
	static struct transport_memory memories[BUFFERS];

	return &memories[b - buffers];
}

static struct ktables *begin(void)
{
	const struct ktables_window none = {0, 0, -1};
	struct ktables *k;

	kernel_begin();
	memset(model, 0, sizeof(model));
	for (unsigned int i = 0; i < BUFFERS; i++)
		buffers[i] = (struct buffer){
			.id = i + 1,
			.size = BUFFER_PAGES * PAGE,
			.bus = (1ull << 44) + (uint64_t)i * BUFFER_PAGES * PAGE,
			.writable = true,
			.named = true,
		};
	aspace_init(&as, (struct range){BASE, (1ull << 46) - 1}, 0);
	assert_int_equal(ktables_new(&k, &kernel_transport, &none, 0, changed, NULL), 0);
	deliver();
	assert_int_equal(ktables_made(k), 1);
	kernel.asked = 0;
	return k;
}

static void end(struct ktables *k)
{
	kernel.room = MOST_OUT;
	kernel.busy = 0;
	assert_int_equal(ktables_end(&k), 0);
	assert_int_equal(kernel.n_spaces, 0);
	aspace_fini(&as);
}

/* ---- what there should be ---- */

static size_t page_of(uint64_t iova)
{
	return (iova - BASE) / PAGE;
}

static const struct page *kernels_page(size_t i)
{
	return &LIST_FIRST(&kernel.spaces)->page[BASE / PAGE + i];
}

static void model_op(const struct aspace_op *op)
{
	for (uint64_t i = 0; i < op->len; i += PAGE)
		model[page_of(op->iova + i)] =
			op->kind == ASPACE_MAP ? (struct page){1, buffer_memory(op->buf), op->off + i, op->writable}
					       : (struct page){0};
}

static void expect_page(size_t i, const struct page *p)
{
	const struct page *kernels = kernels_page(i);

	if (!!kernels->mapping != !!p->mapping || kernels->memory != p->memory || kernels->off != p->off ||
	    kernels->writable != p->writable)
		fail_msg("page %zu: the kernel has %p at %#lx, writable %d; not %p at %#lx, writable %d", i,
			 (const void *)kernels->memory, (unsigned long)kernels->off, kernels->writable,
			 (const void *)p->memory, (unsigned long)p->off, p->writable);
}

static void expect_model(void)
{
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		const struct mapping *m = aspace_find(&as, BASE + i * PAGE);
		struct page books = {0};

		if (m)
			books = (struct page){1, buffer_memory(m->buf), m->off + (BASE + i * PAGE - m->node.first),
					      m->writable};
		expect_page(i, &books);
		expect_page(i, &model[i]);
	}
}

/* ---- random changes ---- */

/* A list that the books accept: each operation maps free pages, or unmaps mapped ones, perhaps those of the one before. The
 * model follows. */
static size_t random_list(struct aspace_op *op)
{
	size_t n_ops = 1 + draw(MAX_OPS);

	for (size_t k = 0; k < n_ops; k++) {
		bool again = k && op[k - 1].kind == ASPACE_UNMAP && !draw(3);
		size_t first = again ? page_of(op[k - 1].iova) : draw(MODEL_PAGES), n = 1;
		bool map = !model[first].mapping;
		size_t most = 1 + draw(draw(2) ? 4 : 1500);

		while (n < most && first + n < MODEL_PAGES && !model[first + n].mapping == map)
			n++;
		op[k] = (struct aspace_op){
			.kind = map ? ASPACE_MAP : ASPACE_UNMAP,
			.fixed = true,
			.writable = draw(2),
			.buf = &buffers[draw(BUFFERS)],
			.off = draw(BUFFER_PAGES - (uint32_t)n + 1) * PAGE,
			.iova = BASE + first * PAGE,
			.len = n * PAGE,
		};
		model_op(&op[k]);
	}
	return n_ops;
}

/* Carries a change out, with answers that come late or at once. */
static int carry_out(struct ktables *k)
{
	unsigned int idle = 0;
	int r;

	while ((r = ktables_go(k)) > 0) {
		size_t n = kernel.n_answers ? 1 + draw((uint32_t)kernel.n_answers) : 0;

		assert_true(kernel.n_answers <= MOST_OUT);
		kernel.changes = 0;
		if (!n)
			kernel.room = 1 + draw(MOST_OUT); /* what others had asked for is answered */
		while (n--)
			deliver();
		idle = kernel.changes ? 0 : idle + 1;
		assert_true(idle < 1000);
	}
	assert_int_equal(kernel.n_answers, 0);
	return r;
}

static void random_trouble(void)
{
	static const int errors[] = {-ENOMEM, -ENOSPC, -EIO, -EPERM};

	kernel.asked = kernel.n_failed = kernel.n_undo_failed = 0;
	kernel.told = 0;
	kernel.room = draw(3) ? MOST_OUT : draw(3);
	kernel.busy = draw(3) ? 0 : 2 + draw(5);
	kernel.fail_at = draw(3) ? 1 + draw(draw(2) ? 10 : 100) : 0;
	kernel.fail_again = draw(4) ? 0 : 1 + draw(20);
	kernel.error = errors[draw(ARRAY_SIZE(errors))];
	kernel.fail_in_call = draw(2);
}

/* A change begins and comes to an end. Returns how. */
static int random_change(struct ktables *k)
{
	struct page before[MODEL_PAGES];
	struct aspace_op op[MAX_OPS];
	struct refusal why;
	struct plan *plan;
	size_t n;
	int r;

	memcpy(before, model, sizeof(before));
	n = random_list(op);
	random_trouble();
	assert_int_equal(aspace_plan(&as, OWNER, op, n, &plan, &why), 0);
	ktables_change(k, &as, plan, buffer_memory);
	r = carry_out(k);
	if (r == 0) {
		assert_int_equal(kernel.n_failed, 0);
		plan_commit(plan, NULL, NULL);
		expect_model();
		return 0;
	}
	assert_true(kernel.n_failed > 0);
	plan_undo(plan);
	memcpy(model, before, sizeof(model));
	if (kernel.n_undo_failed) {
		assert_int_equal(r, -ENOTRECOVERABLE);
		return r;
	}
	assert_int_equal(r, kernel.told);
	expect_model();
	return r;
}

static void test_random_changes(void **state)
{
	unsigned int done = 0, taken_back = 0, given_up = 0;
	struct ktables *k = begin();

	srandom((unsigned int)rng_seed());
	for (int round = 0; round < 4000; round++) {
		int r = random_change(k);

		done += r == 0;
		taken_back += r < 0 && r != -ENOTRECOVERABLE;
		if (r != -ENOTRECOVERABLE)
			continue;
		given_up++;
		end(k);
		k = begin();
	}
	print_message("# %u changes done, %u taken back, %u given up\n", done, taken_back, given_up);
	assert_true(done > 500 && taken_back > 500 && given_up > 50);
	end(k);
}

/* ---- chosen ones ---- */

/* One list, and how it ends. */
static int change(struct ktables *k, const struct aspace_op *list, size_t n)
{
	struct aspace_op op[MAX_OPS];
	struct refusal why;
	struct plan *plan;
	int r;

	memcpy(op, list, n * sizeof(op[0]));
	kernel.asked = kernel.n_failed = kernel.n_undo_failed = 0;
	kernel.told = 0;
	kernel.maps = kernel.unmaps = 0;
	assert_int_equal(aspace_plan(&as, OWNER, op, n, &plan, &why), 0);
	ktables_change(k, &as, plan, buffer_memory);
	r = carry_out(k);
	if (r == 0)
		plan_commit(plan, NULL, NULL);
	else
		plan_undo(plan);
	return r;
}

static struct aspace_op map_op(uint64_t iova, uint64_t len)
{
	return (struct aspace_op){ASPACE_MAP, true, true, &buffers[0], 0, iova, len};
}

static struct aspace_op unmap_op(uint64_t iova, uint64_t len)
{
	return (struct aspace_op){.kind = ASPACE_UNMAP, .iova = iova, .len = len};
}

#define TIB (1ull << 40)

/* Large ones: as many requests as it takes, no more than 64 MiB of them at a time (the rig looks), and of what is cut only
 * the areas that are. */
static void test_large(void **state)
{
	struct ktables *k = begin();
	struct aspace_op op[2];

	kernel.counts = true;
	buffers[0].size = TIB;
	op[0] = map_op(TIB, TIB);
	assert_int_equal(change(k, op, 1), 0);
	assert_int_equal(kernel.maps, TIB / AREA);
	/* A hole amidst an area, and one that is exactly an area. */
	op[0] = unmap_op(TIB + 5 * AREA + PAGE, PAGE);
	op[1] = unmap_op(TIB + TIB / 2, AREA);
	assert_int_equal(change(k, op, 2), 0);
	assert_int_equal(kernel.unmaps, 2);
	assert_int_equal(kernel.maps, 2);
	/* Up to the middle of one. */
	op[0] = unmap_op(TIB + TIB / 2 + AREA, TIB / 4 + AREA / 2);
	assert_int_equal(change(k, op, 1), 0);
	assert_int_equal(kernel.unmaps, TIB / 4 / AREA + 1);
	assert_int_equal(kernel.maps, 1);
	end(k);
}

/* Late failures of large ones are taken back, too, in slices: the loop goes on. */
static void test_large_taken_back(void **state)
{
	struct ktables *k = begin();
	struct aspace_op op[2] = {map_op(TIB, TIB / 4), map_op(2 * TIB, TIB / 4)};
	const uint64_t half = TIB / 4 / AREA;

	kernel.counts = true;
	buffers[0].size = TIB;
	assert_int_equal(change(k, op, 1), 0);
	op[0] = unmap_op(TIB, TIB / 4);
	kernel.fail_at = (unsigned int)(half + half / 2);
	assert_int_equal(change(k, op, 2), -ENOMEM);
	assert_int_equal(as.count, 1);
	assert_true(kernel.n_failed == 1 && kernel.n_undo_failed == 0);
	/* What was unmapped is mapped again, what was mapped is unmapped; a few were behind the failure. */
	assert_in_range(kernel.maps, half + half / 2, half + half / 2 + MOST_OUT);
	assert_in_range(kernel.unmaps, half + half / 2 - 1, half + half / 2 + MOST_OUT);
	end(k);
}

/* What a list maps and unmaps again never comes to the kernel. */
static void test_nothing(void **state)
{
	struct ktables *k = begin();
	struct aspace_op op[2] = {map_op(BASE, 8 * PAGE), unmap_op(BASE, 8 * PAGE)};

	assert_int_equal(change(k, op, 2), 0);
	assert_int_equal(kernel.asked, 0);
	end(k);
}

/* A failure that cannot be undone says so. */
static void test_not_recoverable(void **state)
{
	struct ktables *k = begin();
	struct aspace_op op[2] = {map_op(BASE, PAGE), map_op(BASE + 8 * PAGE, PAGE)};

	kernel.fail_at = 2;
	kernel.fail_again = 1;
	assert_int_equal(change(k, op, 2), -ENOTRECOVERABLE);
	end(k);
}

/* Freed in the middle, as when its device is lost: the plan may be gone by then. */
static void test_freed_in_the_middle(void **state)
{
	for (unsigned int fail = 0; fail <= 2; fail += 2) {
		struct ktables *k = begin();
		struct aspace_op op = map_op(BASE, BUFFER_PAGES * PAGE);
		struct refusal why;
		struct plan *plan;

		kernel.fail_at = fail;
		assert_int_equal(aspace_plan(&as, OWNER, &op, 1, &plan, &why), 0);
		ktables_change(k, &as, plan, buffer_memory);
		assert_int_equal(ktables_go(k), 1);
		while (fail && kernel.n_answers)
			deliver();
		assert_int_equal(ktables_go(k), 1);
		assert_true(kernel.n_answers > 0); /* if it fails: being taken back */
		plan_undo(plan);
		ktables_free(k);
		kernel_close();
		aspace_fini(&as);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_changes),   cmocka_unit_test(test_large),
		cmocka_unit_test(test_large_taken_back), cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_not_recoverable),  cmocka_unit_test(test_freed_in_the_middle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
