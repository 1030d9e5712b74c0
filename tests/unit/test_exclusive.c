/* SPDX-License-Identifier: MIT */
/*
 * Mode `exclusive` as a whole, on the rig of service_rig.h: the device is lost, apps end and the kernel refuses at any point
 * of making a context, of a bind list, of a switch. The device reaches what the context that it works for has mapped; others
 * go on; nothing is left over, which the rig and the sanitizers look for.
 */
#include "service_random.h"

#include "service/inspect.h"

/* ---- lost ---- */

/* A context is being made: so many steps are done, the next is on its way or, with no room, waits to be asked for. */
static void lost_while_made(unsigned int steps, bool no_room, bool fails, bool closes)
{
	struct app *a = &apps[0];

	service_begin(UINT64_MAX);
	app_begin(a);
	if (fails)
		kernel.fail_at = steps + 1;
	app_ask_ctx(a);
	if (no_room)
		kernel.room = 0;
	answers(steps);
	if (closes)
		app_end(a);
	/* As in life, where answers come and the device goes in one turn of the loop. */
	while (fails && kernel.n_answers)
		deliver();
	lose_device();
	assert_int_equal(kernel.n_answers, 0);
	kernel.room = MOST_ANSWERS;
	kernel.fail_at = 0;
	if (!closes) {
		assert_int_not_equal(app_wait(a), 0);
		await_ready();
		app_ctx(a);
	}
	service_end();
}

static void test_lost_while_made(void **state)
{
	for (unsigned int steps = 0; steps < 2; steps++)
		for (unsigned int how = 0; how < 8; how++)
			lost_while_made(steps, how & 1, how & 2, how & 4);
}

/* So many answers of a list have come, or of taking it back. */
static void lost_amid_a_list(unsigned int n, unsigned int fail_at, bool closes)
{
	struct pasid_wire_bind_op op[2];
	struct app *a = &apps[0];
	uint32_t ctx, buf;
	int fd;

	service_begin(UINT64_MAX);
	app_begin(a);
	buf = app_import(a, bytes, &fd);
	ctx = app_ctx(a);
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, bytes)), 0);
	op[0] = wire_unmap(AT + PAGE, bytes - PAGE);
	op[1] = wire_map(buf, 0, 2 * AT, bytes);
	kernel.asked = 0;
	kernel.fail_at = fail_at;
	app_ask_bind(a, ctx, op, 2);
	answers(n);
	if (closes)
		app_end(a);
	lose_device();
	kernel.fail_at = 0;
	if (!closes) {
		assert_int_equal(app_wait(a), PASID_WHY_CONTEXT_LOST);
		await_ready();
		ctx = app_ctx(a); /* buffers outlive a device */
		assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, bytes)), 0);
	}
	close(fd);
	service_end();
}

static void test_lost_amid_a_list(void **state)
{
	for (unsigned int n = 0; n < 8; n++)
		for (unsigned int fail_at = 0; fail_at < 8; fail_at += 3)
			lost_amid_a_list(n, fail_at, n & 1);
}

/* ---- ends ---- */

/* A list that has begun is carried to its end, or taken back, though its app is gone. */
static void test_closed_amid_a_list(void **state)
{
	for (unsigned int n = 0; n < 12; n++) {
		struct app *a = &apps[0];
		uint32_t ctx, buf;
		int fd;

		service_begin(UINT64_MAX);
		app_begin(a);
		buf = app_import(a, bytes, &fd);
		ctx = app_ctx(a);
		kernel.asked = 0;
		kernel.fail_at = n % 3 ? 0 : 3;
		const struct pasid_wire_bind_op op = wire_map(buf, 0, AT, bytes);
		app_ask_bind(a, ctx, &op, 1);
		answers(n / 2);
		app_end(a);
		answers(UINT32_MAX);
		assert_int_equal(service_lingering(service), 0);
		assert_int_equal(kernel.n_spaces, 0);
		close(fd);
		service_end();
	}
}

/* A context is freed while the device is on its way into it: its address space goes when the device is out of it again. */
static void test_freed_while_it_moves_in(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .dst = AT, .len = PAGE};
	struct pasid_wire_submit job = {.iova = AT, .len = sizeof(cmd)};
	struct pasid_ctx_query query = {0};
	struct app *a = &apps[0];
	uint32_t buf;
	int fd;

	service_begin(UINT64_MAX);
	app_begin(a);
	buf = app_import(a, bytes, &fd);
	job.ctx = query.ctx = app_ctx(a);
	assert_int_equal(pwrite(fd, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(app_bind(a, job.ctx, wire_map(buf, 0, AT, PAGE)), 0);
	app_ask(a, PASID_OP_SUBMIT, &job, sizeof(job), -1);
	assert_false(a->pending);
	assert_int_equal(kernel.n_answers, 1); /* the move's */
	app_ask(a, PASID_OP_CTX_FREE, &query, sizeof(query), -1);
	for (unsigned int i = 0; i < 10; i++)
		room();
	assert_true(a->pending);
	assert_int_equal(kernel.n_spaces, 1);
	app_wait(a);
	assert_int_equal(kernel.n_spaces, 0);
	close(fd);
	service_end();
}

/* ---- what it costs ---- */

/* A table for each 2 MiB where something ever was, and two for each GiB with such: the kernel keeps them. */
static void test_tables_are_charged(void **state)
{
	struct account *account;
	struct app *a = &apps[0];
	uint32_t ctx, buf, why;
	int fd;

	service_begin(6);
	app_begin(a);
	account = service_client_account(a->client);
	buf = app_import(a, bytes, &fd);
	ctx = app_ctx(a);
	why = app_bind(a, ctx, wire_map(buf, 0, AT + AREA / 2, 4 * AREA)); /* in five of them */
	assert_int_equal(why, PASID_WHY_QUOTA_CONNECTION + PASID_RES_TABLES);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 0);
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT, 3 * AREA)), 0);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 5);
	assert_int_equal(app_bind(a, ctx, wire_unmap(AT, 3 * AREA)), 0);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 5);
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, AT + PAGE, 2 * AREA)), 0); /* where something was */
	assert_int_equal(account_used(account, PASID_RES_TABLES), 5);
	kernel.asked = 0;
	kernel.fail_at = 1;
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, 4 * AT, PAGE)), PASID_WHY_QUOTA_KERNEL);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 6); /* it may have been made */
	kernel.fail_at = 0;
	assert_int_equal(app_bind(a, ctx, wire_map(buf, 0, 4 * AT, PAGE)), 0);
	why = app_bind(a, ctx, wire_map(buf, 0, 8 * AT, PAGE));
	assert_int_equal(why, PASID_WHY_QUOTA_CONNECTION + PASID_RES_TABLES);
	app_call(a, PASID_OP_CTX_FREE, &(struct pasid_ctx_query){.ctx = ctx}, sizeof(struct pasid_ctx_query), -1);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 0);
	close(fd);
	service_end();
}

/* ---- drivers ---- */

/* Rings would be at addresses that clients map: the device would take theirs for its own. */
static void test_driver_with_rings(void **state)
{
	struct engine_ops ops = *edu_driver.engine;
	const struct pasid_driver exports = {PASID_DRIVER_ABI, &ops, NULL};
	struct driver driver = {.exports = &exports};

	ops.ro_bytes = ENGINE_PAGE;
	drivers = (struct drivers){&driver, 1};
	service_open(UINT64_MAX);
	for (unsigned int i = 0; i < 10; i++)
		answers(UINT32_MAX);
	assert_false(is_ready());
	assert_non_null(strstr(service->devices[0].gone_why, "ro_bytes"));
	service_end();
	drivers = (struct drivers){0};
}

/* ---- turns ---- */

static void ask_long_list(struct app *a, uint32_t ctx, uint32_t buf, bool map)
{
	struct pasid_wire_bind_op op[14];

	for (size_t i = 0; i < ARRAY_SIZE(op); i++)
		op[i] = map ? wire_map(buf, 0, AT + i * bytes, bytes) : wire_unmap(AT + i * bytes, bytes);
	app_ask_bind(a, ctx, op, ARRAY_SIZE(op));
}

/* Three apps with lists that never end fill all places that the transport has; the fourth imports a buffer. */
static void test_import_among_lists(void **state)
{
	const struct pasid_buf_import in = {0};
	struct app *last = &apps[APPS - 1];
	uint32_t ctx[APPS - 1], buf[APPS - 1];
	bool map[APPS - 1] = {0};
	int fd[APPS];

	service_begin(UINT64_MAX);
	app_begin(last);
	for (size_t i = 0; i < APPS - 1; i++) {
		app_begin(&apps[i]);
		buf[i] = app_import(&apps[i], bytes, &fd[i]);
		ctx[i] = app_ctx(&apps[i]);
	}
	fd[APPS - 1] = memfd_create("app", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd[APPS - 1], PAGE), 0);
	assert_int_equal(fcntl(fd[APPS - 1], F_ADD_SEALS, F_SEAL_SHRINK), 0);
	kernel.room = MOST_OUT + MOST_OUT / 2;
	for (unsigned int n = 0; n < 1000 && (n < 200 || last->pending); n++) {
		if (n == 100)
			app_ask(last, PASID_OP_BUF_IMPORT, &in, sizeof(in), fcntl(fd[APPS - 1], F_DUPFD_CLOEXEC, 0));
		for (size_t i = 0; i < APPS - 1; i++)
			if (!apps[i].pending)
				ask_long_list(&apps[i], ctx[i], buf[i], map[i] = !map[i]);
		answers(1);
	}
	assert_false(last->pending);
	assert_int_equal(last->reply.reason, 0);
	for (size_t i = 0; i < APPS; i++)
		close(fd[i]);
	service_end();
}

/* ---- everything at once ---- */

/* Nothing is under way: what the kernel has of each context is what its app knows. */
static void expect_known(size_t i)
{
	struct ctx *ctx = known[i].ctx ? ctx_of(known[i].ctx) : NULL;
	struct transport_space *s;
	struct refusal why;

	if (!apps[i].client || !ctx || ctx->books->lost || known[i].asked)
		return;
	s = ktables_space(ctx->kt);
	for (size_t n = 0; n < SPAN_PAGES; n++) {
		const struct page *p = &s->page[AT / PAGE + n];
		uint64_t at = known[i].at[n] - 1;
		const struct buffer_entry *e;

		assert_int_equal(p->mapping != 0, known[i].at[n] != 0);
		if (!p->mapping)
			continue;
		e = books_buffer(apps[i].client->books, known[i].buf[at / bytes], &why);
		assert_ptr_equal(p->memory, ((struct buf *)e->tag)->memory);
		assert_int_equal(p->off, at % bytes);
	}
}

static void random_kernel(void)
{
	static const int errors[] = {-ENOMEM, -ENOSPC, -EPERM};

	kernel.busy = draw(3) ? 0 : 2 + draw(5);
	kernel.room = draw(3) ? MOST_ANSWERS : 1 + draw(40);
	kernel.asked = 0;
	kernel.fail_at = draw(3) ? 0 : 1 + draw(30);
	kernel.fail_again = draw(3) ? 0 : 1 + draw(30);
	kernel.error = errors[draw(ARRAY_SIZE(errors))];
	kernel.fail_in_call = draw(2);
}

static void test_everything_at_once(void **state)
{
	seed_random();
	service_begin(UINT64_MAX);
	for (unsigned int round = 0; round < 3000; round++) {
		random_request(draw(APPS));
		answers(draw(12));
		if (!draw(20))
			random_kernel();
		if (!draw(200) && is_ready()) {
			lose_device();
			kernel.fail_at = 0; /* or it would not be ready for a long time */
			await_ready();
		}
		if (draw(30))
			continue;
		kernel.fail_at = kernel.busy = 0;
		kernel.room = MOST_ANSWERS;
		answers(UINT32_MAX);
		for (size_t i = 0; i < APPS; i++) {
			if (apps[i].client && known[i].asked && !apps[i].pending)
				learn(i);
			answers(UINT32_MAX);
			expect_known(i);
		}
	}
	kernel.fail_at = 0;
	for (size_t i = 0; i < APPS; i++)
		if (apps[i].client)
			go(i);
	print_message("# contexts made %u, freed %u; lists %u, jobs %u; refused %u, lost %u; device opened %u times\n",
		      n_done[CTX], n_done[FREE], n_done[LIST], n_done[JOB], n_refused, n_lost, edu.opened);
	assert_true(n_done[LIST] > 100 && n_done[JOB] > 100 && n_refused > 3 && n_lost > 5 && edu.opened > 2);
	service_end();
}

/* ---- looking on ---- */

static struct {
	uint32_t made, changes, faults, lost, gone, devices;
} seen;

static void seen_made(void *arg, uint32_t ctx)
{
	struct inspect_context v;

	assert_true(inspect_context(service, ctx, &v));
	seen.made++;
}

static void seen_changed(void *arg, uint32_t ctx, uint32_t what)
{
	struct inspect_context v;

	assert_true(inspect_context(service, ctx, &v));
	seen.changes |= what;
}

static void seen_fault(void *arg, uint32_t ctx, const struct pasid_wire_fault *f)
{
	seen.faults++;
}

static void seen_lost(void *arg, uint32_t ctx)
{
	struct inspect_context v;

	assert_true(inspect_context(service, ctx, &v) && v.at_rest);
	seen.lost++;
}

static void seen_gone(void *arg, uint32_t ctx)
{
	seen.gone++;
}

static void seen_device(void *arg, uint32_t device)
{
	seen.devices++;
}

static const struct service_observer observer = {
	.context_made = seen_made,
	.context_changed = seen_changed,
	.context_fault = seen_fault,
	.context_lost = seen_lost,
	.context_gone = seen_gone,
	.device_changed = seen_device,
};

static int take_mapping(void *arg, const struct inspect_mapping *m)
{
	struct inspect_mapping *to = arg;

	*to = *m;
	return 0;
}

static int take_leaf(void *arg, const struct inspect_leaf *l)
{
	struct inspect_leaf *to = arg;

	*to = *l;
	return 0;
}

/* Where the kernel keeps the tables, what is shown is the record. */
static void expect_record(uint32_t ctx, uint32_t buf)
{
	struct inspect_level v[INSPECT_LEVELS];
	struct inspect_mapping m;
	struct inspect_leaf leaf;

	assert_false(inspect_own_tables(service, ctx));
	assert_int_equal(inspect_mappings(service, ctx, 0, 1, take_mapping, &m), 1);
	assert_int_equal(m.iova, AT);
	assert_int_equal(m.len, bytes);
	assert_int_equal(m.buf, buf);
	assert_int_equal(m.bus, 0);
	assert_int_equal(inspect_mappings(service, ctx, AT + bytes, 10, take_mapping, &m), 0);
	assert_int_equal(m.iova, 4 * AT);
	assert_int_equal(m.off, PAGE);
	assert_int_equal(inspect_translate(service, ctx, 4 * AT + 5, &m), 0);
	assert_int_equal(m.off, PAGE + 5);
	assert_int_equal(m.bus, 0);
	assert_int_equal(inspect_translate(service, ctx, AT - 1, &m), -ENXIO);
	assert_int_equal(inspect_walk(service, ctx, AT, true, v), 1);
	assert_non_null(strstr(v[0].says, "0x400000-"));
	assert_int_equal(inspect_walk(service, ctx, AT - 1, true, v), 1);
	assert_string_equal(v[0].says, "nothing");
	assert_int_equal(inspect_leaves(service, ctx, AT + bytes, 10, true, take_leaf, &leaf), 0);
	assert_int_equal(leaf.iova, 4 * AT);
	assert_int_equal(inspect_mappings(service, ctx + 1, 0, 1, take_mapping, &m), -ENOENT);
}

static void test_looked_at(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .dst = AT, .len = PAGE};
	struct pasid_wire_submit job = {.iova = AT, .len = sizeof(cmd)};
	struct inspect_context v;
	struct inspect_device d;
	struct app *a = &apps[0];
	uint32_t buf;
	int fd;

	memset(&seen, 0, sizeof(seen));
	service_begin(UINT64_MAX);
	service_observe(service, &observer, NULL);
	app_begin(a);
	buf = app_import(a, bytes, &fd);
	job.ctx = app_ctx(a);
	assert_int_equal(pwrite(fd, &cmd, sizeof(cmd), 0), sizeof(cmd));
	assert_int_equal(app_bind(a, job.ctx, wire_map(buf, 0, AT, bytes)), 0);
	assert_int_equal(app_bind(a, job.ctx, wire_map(buf, PAGE, 4 * AT, PAGE)), 0);
	expect_record(job.ctx, buf);
	assert_int_equal(app_call(a, PASID_OP_SUBMIT, &job, sizeof(job), -1), 0);
	answers(UINT32_MAX);
	assert_true(inspect_context(service, job.ctx, &v));
	assert_int_equal(v.mapped, 2);
	assert_int_equal(v.bytes, bytes + PAGE);
	assert_int_equal(v.submitted, 1);
	assert_int_equal(v.completed, 1);
	assert_int_equal(v.switches, 1);
	assert_true(v.device_time > 0);
	assert_int_equal(seen.made, 1);
	assert_int_equal(seen.changes, SERVICE_MEMORY | SERVICE_JOBS | SERVICE_RUNS);
	assert_true(inspect_device(service, 0, &d));
	assert_int_equal(d.switches, 1);
	assert_string_equal(d.mode, "exclusive");
	assert_string_equal(d.table_format, "");
	assert_false(inspect_device(service, 1, &d));

	service_close_context(service, job.ctx);
	answers(UINT32_MAX);
	service_close_context(service, job.ctx); /* once more is nothing, as is one that never was */
	service_close_context(service, job.ctx + 1);
	assert_int_equal(seen.lost, 1);
	assert_true(seen.changes & SERVICE_STATE);
	assert_true(inspect_context(service, job.ctx, &v));
	assert_string_equal(v.state, "lost");
	assert_string_equal(v.lost_reason, "closed");
	assert_int_equal(seen.gone, 0);
	app_end(a);
	answers(UINT32_MAX);
	assert_int_equal(seen.gone, 1);
	assert_int_equal(seen.faults, 0);
	assert_true(seen.devices > 0);
	service_observe(service, NULL, NULL);
	close(fd);
	service_end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lost_while_made),    cmocka_unit_test(test_lost_amid_a_list),
		cmocka_unit_test(test_closed_amid_a_list), cmocka_unit_test(test_freed_while_it_moves_in),
		cmocka_unit_test(test_tables_are_charged), cmocka_unit_test(test_driver_with_rings),
		cmocka_unit_test(test_import_among_lists), cmocka_unit_test(test_everything_at_once),
		cmocka_unit_test(test_looked_at),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
