/* SPDX-License-Identifier: MIT */
/*
 * What the service says of itself in a trace, on the rig of service_rig.h: contexts, lists, runs, jobs and faults, in the order in
 * which they happen, to each reader what is so when it comes; and nothing when nobody reads.
 */
#include "service_rig.h"

#include "trace_ring.h"

#define AT 0x400000ull /* IOVA; amidst nothing */

static const uint64_t bytes = 16 * PAGE;

static struct trace_ring ring;

static void watch(void)
{
	const char *why;
	int fd = service_trace_open(service);

	assert_true(fd >= 0);
	assert_int_equal(trace_ring_open(&ring, fd, &why), 0);
}

static void unwatch(void)
{
	trace_ring_close(&ring);
	service_trace_close(service);
}

/* The next event is this one, of this context. */
static struct pasid_trace_record next(enum pasid_trace_event event, uint32_t ctx)
{
	struct pasid_trace_record r;

	assert_int_equal(trace_ring_next(&ring, &r), 1);
	assert_int_equal(r.event, event);
	assert_int_equal(r.ctx, ctx);
	assert_int_equal(r.device, 0);
	return r;
}

static void nothing_more(void)
{
	struct pasid_trace_record r;

	assert_int_equal(trace_ring_next(&ring, &r), 0);
	assert_int_equal(ring.lost, 0);
}

/* A context with a page of commands at AT and a page of data behind it. */
static uint32_t prepare(struct app *a, uint64_t dst, int *fd)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .dst = dst, .len = PAGE};
	uint32_t buf, ctx;

	app_begin(a);
	buf = app_import(a, bytes, fd);
	ctx = app_ctx(a);
	assert_int_equal(pwrite(*fd, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, 2 * PAGE)), 0);
	return ctx;
}

static void submit(struct app *a, uint32_t ctx, uint64_t iova)
{
	const struct pasid_wire_submit job = {.ctx = ctx, .iova = iova, .len = sizeof(struct pasid_edu_cmd)};

	assert_int_equal(app_call(a, PASID_OP_SUBMIT, &job, sizeof(job), -1), 0);
	answers(UINT32_MAX);
}

static void expect_job(uint32_t ctx, uint64_t job, bool switched)
{
	struct pasid_trace_record r;

	if (switched)
		assert_int_equal(next(PASID_TRACE_SWITCH, ctx).slot, 1);
	assert_int_equal(next(PASID_TRACE_RUN, ctx).slot, 1);
	assert_int_equal(next(PASID_TRACE_JOB, ctx).job, job);
	r = next(PASID_TRACE_JOB_END, ctx);
	assert_int_equal(r.a, job);
	assert_int_equal(r.job, job);
	r = next(PASID_TRACE_RUN_END, ctx);
	assert_int_equal(r.a, PASID_TRACE_END_IDLE);
	assert_int_equal(r.job, 0);
}

static void test_all_of_a_life(void **state)
{
	struct pasid_ctx_query query = {0};
	struct pasid_trace_record r;
	struct app *a = &apps[0];
	int fd;

	service_begin(UINT64_MAX);
	watch();
	assert_int_equal(next(PASID_TRACE_DEVICE_READY, 0).known, 1);
	query.ctx = prepare(a, AT + PAGE, &fd);
	r = next(PASID_TRACE_CTX, query.ctx);
	assert_int_equal(r.a, 1);
	assert_int_equal(r.b, 1000);
	next(PASID_TRACE_BIND, query.ctx);
	r = next(PASID_TRACE_MAP, query.ctx);
	assert_int_equal(r.a, AT);
	assert_int_equal(r.b, AT + 2 * PAGE - 1);
	next(PASID_TRACE_BIND_END, query.ctx);
	nothing_more();
	submit(a, query.ctx, AT);
	expect_job(query.ctx, 1, true);
	submit(a, query.ctx, AT);
	expect_job(query.ctx, 2, false);
	assert_int_equal(app_bind(a, query.ctx, wire_unmap(AT, 2 * PAGE)), 0);
	next(PASID_TRACE_BIND, query.ctx);
	assert_int_equal(next(PASID_TRACE_UNMAP, query.ctx).a, AT);
	next(PASID_TRACE_BIND_END, query.ctx);
	/* Commands that are not there: a fault, and the job is over. */
	submit(a, query.ctx, AT);
	r = next(PASID_TRACE_FAULT, query.ctx);
	assert_int_equal(r.a, AT);
	assert_int_equal(r.job, 3);
	assert_int_equal(r.slot, 1);
	event_base_loop(base, EVLOOP_ONCE); /* no interrupt tells of a job that does nothing */
	expect_job(query.ctx, 3, false);
	assert_int_equal(app_call(a, PASID_OP_CTX_FREE, &query, sizeof(query), -1), 0);
	next(PASID_TRACE_CTX_GONE, query.ctx);
	nothing_more();
	unwatch();
	close(fd);
	service_end();
}

/* Who comes late is told what is so, also to those who know. */
static void test_what_is_known(void **state)
{
	uint32_t ctx[2];
	int fd[2];

	service_begin(UINT64_MAX);
	for (size_t i = 0; i < 2; i++) {
		ctx[i] = prepare(&apps[i], AT + PAGE, &fd[i]);
		submit(&apps[i], ctx[i], AT);
	}
	assert_false(trace_on(&service->trace));
	watch();
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(next(PASID_TRACE_CTX, ctx[i]).known, 1);
	next(PASID_TRACE_DEVICE_READY, 0);
	assert_int_equal(next(PASID_TRACE_SWITCH, ctx[1]).known, 1);
	nothing_more();
	submit(&apps[0], ctx[0], AT);
	expect_job(ctx[0], 2, true);
	lose_device();
	next(PASID_TRACE_DEVICE_GONE, 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(next(PASID_TRACE_CTX_LOST, ctx[i]).a, PASID_LOST_DEVICE);
	nothing_more();
	unwatch();
	assert_false(trace_on(&service->trace));
	for (size_t i = 0; i < 2; i++)
		close(fd[i]);
	service_end();
}

/* The kernel refuses: the list begins and ends, and nothing is mapped. */
static void test_taken_back(void **state)
{
	struct app *a = &apps[0];
	uint32_t ctx, buf;
	int fd;

	service_begin(UINT64_MAX);
	app_begin(a);
	buf = app_import(a, bytes, &fd);
	ctx = app_ctx(a);
	watch();
	next(PASID_TRACE_CTX, ctx);
	next(PASID_TRACE_DEVICE_READY, 0);
	kernel.asked = 0;
	kernel.fail_at = 1;
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, bytes)), PASID_WHY_QUOTA_KERNEL);
	kernel.fail_at = 0;
	next(PASID_TRACE_BIND, ctx);
	next(PASID_TRACE_BIND_END, ctx);
	nothing_more();
	unwatch();
	close(fd);
	service_end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_of_a_life),
		cmocka_unit_test(test_what_is_known),
		cmocka_unit_test(test_taken_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
