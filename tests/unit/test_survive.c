/* SPDX-License-Identifier: MIT */
/*
 * A service that is killed at every moment of a client's life, in the modes in which an IOMMU keeps contexts apart: the client
 * sees its replies, its jobs are done once and right, and at the end nothing is left over. survive_rig.h says which moments
 * there are.
 */
#include "survive_rig.h"

#include "service/persist.h"

#define AT 0x800000ull
#define BYTES (3 * AREA)

struct plot { /* what an app has got to */
	unsigned int step;
	bool asked; /* it is under way, or its reply has come */
	uint32_t ctx, other, third, buf;
	int fd;
	uint64_t job;
};

#define STEPS 23u

static struct plot plot;
static unsigned int dying; /* at this moment */
static bool lists; /* as kernel.lists */

static uint8_t byte_at(uint64_t off)
{
	uint8_t v;

	assert_int_equal(pread(plot.fd, &v, 1, (off_t)off), 1);
	return v;
}

static void put_commands(uint64_t off, uint64_t value, uint64_t dst)
{
	const struct pasid_edu_cmd cmds[] = {
		{.op = PASID_EDU_FILL, .value = (uint32_t)value, .dst = dst, .len = 3 * PAGE},
		{.op = PASID_EDU_COPY, .src = dst, .dst = dst + 4 * PAGE, .len = 2 * PAGE},
	};

	assert_int_equal(pwrite(plot.fd, cmds, sizeof(cmds), (off_t)off), sizeof(cmds));
}

static void ask_submit(struct app *a, uint32_t ctx, uint64_t iova)
{
	const struct pasid_wire_submit in = {.ctx = ctx, .iova = iova, .len = 2 * PASID_EDU_CMD_SIZE};

	app_ask(a, PASID_OP_SUBMIT, &in, sizeof(in), -1);
}

static void ask_bind(struct app *a, uint32_t ctx, struct pasid_wire_bind_op op)
{
	app_ask_bind(a, ctx, &op, 1);
}

static uint64_t done_of(uint32_t ctx)
{
	return __atomic_load_n(&ctx_of(ctx)->line->done, __ATOMIC_ACQUIRE);
}

static void await_job(uint32_t ctx, uint64_t n)
{
	for (unsigned int i = 0; done_of(ctx) < n; i++) {
		if (i == 10000)
			fail_msg("death %u, step %u: job %llu of context %u is not done", dying, plot.step,
				 (unsigned long long)n, ctx);
		if (i > 1000) /* a hint was lost with the process */
			event_base_loop(base, EVLOOP_ONCE);
		answers(1);
	}
}

static void ask_import(struct app *a)
{
	const struct pasid_buf_import in = {0};

	app_ask(a, PASID_OP_BUF_IMPORT, &in, sizeof(in), fcntl(plot.fd, F_DUPFD_CLOEXEC, 0));
}

/* What has to have happened; a successor sees to it once more. */
static void before_step(void)
{
	if (plot.step == 10) { /* the device is reset, with nothing on it */
		await_job(plot.other, 1);
		service_reset_device(service, 0);
	}
	if (plot.step == 13)
		await_job(plot.other, 2);
	if (plot.step == STEPS - 2) /* the device is on its way to the third when that one ends */
		pump();
}

static void begin_step(struct app *a)
{
	const struct pasid_ctx_query first = {.ctx = plot.ctx}, third = {.ctx = plot.third};
	struct pasid_wire_bind_op two[2];

	plot.asked = true; /* from the first moment on */
	switch (plot.step) {
	case 0:
		ask_import(a);
		return;
	case 1:
	case 2:
		app_ask_ctx(a);
		return;
	case 3:
		ask_bind(a, plot.ctx, wire_map(plot.buf, 0, AT, BYTES));
		return;
	case 4:
		ask_bind(a, plot.other, wire_map(plot.buf, 0, AT, 2 * AREA));
		return;
	case 5:
		ask_submit(a, plot.ctx, AT);
		return;
	case 6:
		ask_submit(a, plot.other, AT + PAGE);
		return;
	case 7: /* a hole, while the first one works */
		ask_bind(a, plot.ctx, wire_unmap(AT + AREA + AREA / 2, PAGE));
		return;
	case 8:
		two[0] = wire_unmap(AT + AREA / 2, AREA / 2);
		two[1] = wire_map(plot.buf, 2 * AREA, AT + AREA / 2, AREA / 4);
		app_ask_bind(a, plot.ctx, two, 2);
		return;
	case 9:
		ask_submit(a, plot.ctx, AT);
		return;
	case 10:
		app_ask(a, PASID_OP_CTX_FREE, &first, sizeof(first), -1);
		return;
	case 11:
		ask_bind(a, plot.other, wire_map(plot.buf, 2 * AREA, AT + 2 * AREA, AREA / 2));
		return;
	case 12:
	case STEPS - 1:
		ask_submit(a, plot.other, AT + PAGE);
		return;
	case 13:
		app_ask_ctx(a);
		return;
	case 14:
		ask_bind(a, plot.third, wire_map(plot.buf, 0, AT, 2 * AREA));
		return;
	case STEPS - 2:
		app_ask(a, PASID_OP_CTX_FREE, &third, sizeof(third), -1);
		return;
	default: /* more than it is let do in a row */
		ask_submit(a, plot.third, AT + PAGE);
		return;
	}
}

static void end_step(struct app *a)
{
	if (a->reply.reason)
		fail_msg("death %u, step %u: refused with %u", dying, plot.step, a->reply.reason);
	if (plot.step == 0)
		plot.buf = ((struct pasid_buf_import_reply *)(void *)a->body)->buf;
	if (plot.step == 1)
		plot.ctx = ((struct pasid_ctx_new_reply *)(void *)a->body)->ctx;
	if (plot.step == 2)
		plot.other = ((struct pasid_ctx_new_reply *)(void *)a->body)->ctx;
	if (plot.step == 13)
		plot.third = ((struct pasid_ctx_new_reply *)(void *)a->body)->ctx;
	plot.asked = false;
	plot.step++;
}

/* What the kernel maps of a context is what its books say. */
static void expect_mapped(uint32_t id)
{
	struct ctx *ctx = ctx_of(id);
	struct transport_space *s;

	if (!ctx || !ctx->kt || !ktables_space(ctx->kt))
		return;
	s = ktables_space(ctx->kt);
	for (uint64_t at = IOVA_FIRST; at < 6 * AREA + AT; at += PAGE) {
		const struct mapping *m = aspace_find(ctx->books->aspace, at);
		const struct page *p = &s->page[at / PAGE];

		assert_int_equal(p->mapping != 0, m != NULL);
		if (m)
			assert_int_equal(p->off, m->off + (at - m->node.first));
	}
}

static void live(struct app *a)
{
	while (plot.step < STEPS) {
		if (!plot.asked) {
			before_step();
			begin_step(a);
		}
		while (life.snapshots && a->pending) {
			snapshot();
			answers(1);
		}
		app_wait(a);
		if (plot.step == 8 || plot.step == 9)
			await_job(plot.ctx, plot.step - 7);
		end_step(a);
		if (plot.step > 3)
			expect_mapped(plot.ctx);
		if (plot.step > 4)
			expect_mapped(plot.other);
	}
	await_job(plot.other, 3);
	assert_int_equal(a->heard.n_faults, 0);
	assert_int_equal(a->heard.n_lost, 0);
}

static void expect_worked(void)
{
	for (uint64_t i = 0; i < 3 * PAGE; i += 97) {
		assert_int_equal(byte_at(0x10000 + i), 0x11);
		assert_int_equal(byte_at(0x20000 + i), 0x22);
	}
	for (uint64_t i = 0; i < 2 * PAGE; i += 97) {
		assert_int_equal(byte_at(0x10000 + 4 * PAGE + i), 0x11);
		assert_int_equal(byte_at(0x20000 + 4 * PAGE + i), 0x22);
	}
}

/* Everything, with a death at that moment, and at the `again`-th of its successor's, and of that one's, and so on, as often as
 * `deaths` says. How many moments there were. */
static unsigned int life_with_deaths(unsigned int first, unsigned int again, unsigned int deaths, bool slow)
{
	static unsigned int moments, left;
	static int lowest;
	struct app *a = &apps[0];

	lowest = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
	close(lowest);
	store_begin();
	life.moments = life.die_at = 0;
	if (device_ops == &edu_ops)
		service_open(UINT64_MAX);
	else
		nested_open();
	kernel.life = 1;
	kernel.lists = lists;
	edu.slow = slow;
	await_ready();
	memset(&plot, 0, sizeof(plot));
	plot.fd = life.fd = memfd_create("app", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(plot.fd, BYTES), 0);
	assert_int_equal(fcntl(plot.fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	put_commands(0, 0x11111111, AT + 0x10000);
	put_commands(PAGE, 0x22222222, AT + 0x20000);
	app_begin(a);
	life.moments = 0;
	life.die_at = first;
	kernel.moment = moment;
	left = deaths;
	if (setjmp(life.at))
		successor(--left ? again : 0);
	live(a);
	moments = life.moments;
	life.die_at = 0;
	expect_worked();
	close(plot.fd);
	app_end(a);
	answers(UINT32_MAX);
	while (is_ready() && service_lingering(service)) {
		event_base_loop(base, EVLOOP_ONCE);
		answers(UINT32_MAX);
	}
	assert_true(is_ready());
	kernel.moment = NULL;
	service_end();
	store_end();
	close_range((unsigned int)lowest, UINT32_MAX, 0); /* what the dead had */
	return moments;
}

static void every_death(void)
{
	unsigned int n = life_with_deaths(0, 0, 0, true);

	assert_true(n > 100);
	for (unsigned int at = 1; at <= n; at++)
		life_with_deaths(dying = at, 0, 1, at % 2);
	for (unsigned int at = 1; at <= n; at += 3)
		life_with_deaths(dying = at, 1 + at % 40, 4, at % 2);
	life.no_snapshots = true;
	for (unsigned int at = 1; at <= n; at += 5)
		life_with_deaths(dying = at, 10 + at % 60, 4, at % 2);
	life.no_snapshots = false;
	life.snapshots = true;
	n = life_with_deaths(0, 0, 0, true);
	for (unsigned int at = 1; at <= n; at += 7)
		life_with_deaths(dying = at, 10 + at % 200, 3, at % 2);
	life.snapshots = false;
}

static void test_exclusive(void **state)
{
	device_ops = &edu_ops;
	device_config.mode = PASID_MODE_EXCLUSIVE;
	every_death();
}

/* With one container for all contexts. */
static void test_lists(void **state)
{
	lists = true;
	test_exclusive(state);
	lists = false;
}

static void test_nested(void **state)
{
	nested_reset();
	device_ops = &nested_ops;
	every_death();
}

/* A device that cannot be taken over: what was there is lost, and its client is told so, keeps its buffer, and goes on. */
static void lost_with_the_daemon(bool snapshots)
{
	const struct pasid_ctx_query query = {.ctx = 1};
	struct app *a = &apps[0];
	uint32_t buf, ctx;
	int fd;

	life.no_snapshots = !snapshots;
	device_ops = &edu_ops;
	device_config.mode = PASID_MODE_EXCLUSIVE;
	store_begin();
	service_open(UINT64_MAX);
	kernel.life = 1;
	edu.ends = true;
	await_ready();
	app_begin(a);
	buf = app_import(a, BYTES, &fd);
	ctx = app_ctx(a);
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, AREA)), 0);
	for (unsigned int n = 0; n < 3; n++) {
		kernel_close(); /* the device goes with its process */
		memset(edu.regs + REG_DMA_CMD, 0, 8);
		successor(0);
		assert_non_null(a->client);
		await_ready();
		assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT + AREA, PAGE)), PASID_WHY_CONTEXT_LOST);
	}
	assert_int_equal(app_call(a, PASID_OP_CTX_FREE, &query, sizeof(query), -1), 0);
	ctx = app_ctx(a);
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, AREA)), 0);
	close(fd);
	service_end();
	store_end();
	life.no_snapshots = false;
}

static void test_lost_with_the_daemon(void **state)
{
	lost_with_the_daemon(true);
	lost_with_the_daemon(false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lost_with_the_daemon),
		cmocka_unit_test(test_exclusive),
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_nested),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
