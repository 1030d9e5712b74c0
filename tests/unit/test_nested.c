/* SPDX-License-Identifier: MIT */
/*
 * Mode `nested` as a whole, on the rig of nested_rig.h: what a device in that mode is; contexts with the same addresses; what
 * the SMMU forgets, and when it does not; whose a fault is; what happens where the mode cannot be had; the device lost at any
 * point of it.
 */
#include "nested_rig.h"

#include <pasid/pasid.h>

#define AT 0x400000ull /* IOVA; at the beginning of a block */
#define COMMANDS 0x200000ull
#define NOWHERE 0x6000000ull /* nobody maps it */
#define BUFFER_BYTES (2 * AREA) /* commands in the first page, data in the second area */

static struct device *device(void)
{
	return &service->devices[0];
}

/* The loop turns, timers included. */
static void turn(void)
{
	event_base_loop(base, EVLOOP_ONCE);
	answers(UINT32_MAX);
}

/* ---- tenants ---- */

/* An app with one context and one buffer. */
struct tenant {
	struct app *app;
	uint32_t ctx, buf;
	int fd;
};

static struct pasid_wire_bind_op map_commands(const struct tenant *t)
{
	struct pasid_wire_bind_op op = wire_map(t->buf, 0, COMMANDS, PAGE);

	op.flags &= ~(uint32_t)PASID_MAP_WRITE;
	return op;
}

static void map_data(const struct tenant *t, uint64_t iova, uint64_t page, uint64_t pages)
{
	assert_int_equal(app_bind(t->app, t->ctx, wire_map(t->buf, AREA + page * PAGE, iova, pages * PAGE)), 0);
}

static void new_ctx(struct tenant *t)
{
	t->ctx = app_ctx(t->app);
	assert_int_equal(app_bind(t->app, t->ctx, map_commands(t)), 0);
}

static struct tenant begin(size_t i)
{
	struct tenant t = {.app = &apps[i]};

	app_begin(t.app);
	t.buf = app_import(t.app, BUFFER_BYTES, &t.fd);
	new_ctx(&t);
	return t;
}

/* So many pages of data at AT. */
static struct tenant begin_with(size_t i, uint64_t pages)
{
	struct tenant t = begin(i);

	map_data(&t, AT, 0, pages);
	return t;
}

static struct pasid_edu_cmd fill(uint64_t dst, uint64_t len, uint32_t value)
{
	return (struct pasid_edu_cmd){.op = PASID_EDU_FILL, .value = value, .dst = dst, .len = len};
}

static struct pasid_edu_cmd copy(uint64_t dst, uint64_t src, uint64_t len)
{
	return (struct pasid_edu_cmd){.op = PASID_EDU_COPY, .dst = dst, .src = src, .len = len};
}

static uint32_t submit(const struct tenant *t, const struct pasid_edu_cmd *cmd, size_t n)
{
	const struct pasid_wire_submit in = {.ctx = t->ctx, .iova = COMMANDS, .len = n * sizeof(*cmd)};

	assert_int_equal(pwrite(t->fd, cmd, n * sizeof(*cmd), 0), n * sizeof(*cmd));
	app_ask(t->app, PASID_OP_SUBMIT, &in, sizeof(in), -1);
	assert_false(t->app->pending);
	return t->app->reply.reason;
}

static uint32_t submit_one(const struct tenant *t, struct pasid_edu_cmd cmd)
{
	return submit(t, &cmd, 1);
}

static uint64_t last_job(const struct tenant *t)
{
	return ((struct pasid_submit_reply *)(void *)t->app->body)->job;
}

static bool is_done(const struct tenant *t, uint64_t job)
{
	return __atomic_load_n(&ctx_of(t->ctx)->line->done, __ATOMIC_ACQUIRE) >= job;
}

/* Nothing of it is possible, so that no interrupt comes, but a timer. */
static void run_nothing(const struct tenant *t, struct pasid_edu_cmd cmd)
{
	assert_int_equal(submit_one(t, cmd), 0);
	while (!is_done(t, last_job(t)))
		turn();
}

/* No timer helps: each transfer's interrupt comes. */
static void await_job(const struct tenant *t, uint64_t job)
{
	for (unsigned int i = 0; !is_done(t, job); i++) {
		assert_true(i < 1000);
		if (kernel.n_answers)
			deliver();
		pump();
	}
}

static void run(const struct tenant *t, struct pasid_edu_cmd cmd)
{
	assert_int_equal(submit_one(t, cmd), 0);
	await_job(t, last_job(t));
}

static uint32_t word_at(const struct tenant *t, uint64_t page)
{
	uint32_t v;

	assert_int_equal(pread(t->fd, &v, sizeof(v), (off_t)(AREA + page * PAGE)), sizeof(v));
	return v;
}

static uint32_t ask_unmap(const struct tenant *t, uint64_t iova, uint64_t len)
{
	const struct pasid_wire_bind_op op = wire_unmap(iova, len);

	app_ask_bind(t->app, t->ctx, &op, 1);
	return t->app->reply.reason;
}

static void free_ctx(const struct tenant *t)
{
	const struct pasid_ctx_query in = {.ctx = t->ctx};

	app_ask(t->app, PASID_OP_CTX_FREE, &in, sizeof(in), -1);
}

static void free_buf(const struct tenant *t)
{
	const struct pasid_buf_query in = {.buf = t->buf};

	assert_int_equal(app_call(t->app, PASID_OP_BUF_FREE, &in, sizeof(in), -1), 0);
}

static struct pasid_wire_ctx_info info(const struct tenant *t)
{
	const struct pasid_ctx_query in = {.ctx = t->ctx};

	assert_int_equal(app_call(t->app, PASID_OP_CTX_INFO, &in, sizeof(in), -1), 0);
	return *(struct pasid_wire_ctx_info *)(void *)t->app->body;
}

static bool is_lost(const struct tenant *t)
{
	return ctx_of(t->ctx)->books->lost;
}

static uint32_t asid_of(const struct tenant *t)
{
	return ctx_of(t->ctx)->books->asid;
}

/* Does the second stage have the data of it? */
static bool is_pinned(const struct tenant *t)
{
	struct context *books = ctx_of(t->ctx)->books;
	struct buffer_entry *e;

	TAILQ_FOREACH (e, &device()->books->buffers, in_device)
		if (e->client == books->client && stage2_find(e->buffer.bus))
			return true;
	return false;
}

static void start(void)
{
	nested_open();
	await_ready();
	assert_true(smmu.attached);
}

static void begin_test(void)
{
	nested_reset();
	start();
}

static void leave(struct tenant *t)
{
	close(t->fd);
}

/* ---- what it is ---- */

static struct pasid_wire_device_info device_info(struct app *a)
{
	const struct pasid_device_query in = {0};

	assert_int_equal(app_call(a, PASID_OP_DEVICE_INFO, &in, sizeof(in), -1), 0);
	return *(struct pasid_wire_device_info *)(void *)a->body;
}

static void test_what_it_is(void **state)
{
	struct pasid_wire_device_info d;
	struct tenant t;

	begin_test();
	t = begin_with(0, 1);
	d = device_info(t.app);
	assert_int_equal(d.mode, PASID_MODE_NESTED);
	assert_int_equal(d.present, 1);
	assert_int_equal(d.slots, 1);
	assert_int_equal(d.page_sizes, 1ull << 12 | 1ull << 21 | 1ull << 30);
	assert_int_equal(d.features, PASID_FEATURE_PARTIAL_UNMAP | PASID_FEATURE_ATOMIC_REPLACE);
	assert_int_equal(d.iova_first, IOVA_FIRST);
	assert_int_equal(d.iova_last, MSI_FIRST - 1);
	run(&t, fill(AT, PAGE, 0xaabbccdd));
	assert_int_equal(word_at(&t, 0), 0xaabbccdd);
	assert_int_equal(info(&t).switches, 1);
	assert_int_equal(info(&t).faults, 0);
	leave(&t);
	nested_end();
}

/* The root; for the window's page and for interrupts two tables below it in common, and one for each. */
static void test_tables_are_charged(void **state)
{
	struct account *account;
	struct tenant t;

	begin_test();
	t.app = &apps[0];
	app_begin(t.app);
	account = service_client_account(t.app->client);
	t.ctx = app_ctx(t.app);
	assert_int_equal(info(&t).table_bytes, 5 * TABLE_PAGE);
	assert_true(account_used(account, PASID_RES_TABLES) >= 5);
	free_ctx(&t);
	assert_int_equal(app_wait(t.app), 0);
	assert_int_equal(account_used(account, PASID_RES_TABLES), 0);
	nested_end();
}

static void test_same_addresses(void **state)
{
	struct tenant t[3];

	begin_test();
	for (uint32_t i = 0; i < ARRAY_SIZE(t); i++)
		t[i] = begin_with(i, 3);
	for (uint32_t round = 0; round < 3; round++)
		for (uint32_t i = 0; i < ARRAY_SIZE(t); i++) {
			run(&t[i], fill(AT + round * PAGE, PAGE, 0x100 * i + round));
			run(&t[i], copy(AT + (round + 1) % 3 * PAGE, AT + round * PAGE, PAGE));
		}
	for (uint32_t i = 0; i < ARRAY_SIZE(t); i++) {
		for (uint32_t page = 0; page < 3; page++)
			assert_int_equal(word_at(&t[i], page), 0x100 * i + (page == 1 ? 1 : 2));
		assert_int_equal(info(&t[i]).faults, 0);
		assert_int_equal(info(&t[i]).switches, 3);
	}
	assert_true(smmu.msis > 0);
	assert_int_equal(smmu.lost_msis, 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(t); i++)
		leave(&t[i]);
	nested_end();
}

/* ---- what is not for clients ---- */

static void test_not_for_clients(void **state)
{
	const uint64_t forbidden[] = {WINDOW_IOVA, MSI_FIRST, DOORBELL & ~0xfffull, MSI_LAST - PAGE + 1, MSI_LAST + 1};
	struct tenant t;
	unsigned int msis;

	begin_test();
	t = begin_with(0, 1);
	run(&t, fill(AT, PAGE, 1));
	for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
		assert_int_equal(app_bind(t.app, t.ctx, wire_map(t.buf, 0, forbidden[i], PAGE)), PASID_WHY_APERTURE);
		assert_int_not_equal(app_bind(t.app, t.ctx, wire_unmap(forbidden[i], PAGE)), 0);
		smmu.n_lately = 0;
		msis = smmu.msis;
		run_nothing(&t, fill(forbidden[i], PAGE, 0xdead));
		run_nothing(&t, copy(AT, forbidden[i], PAGE));
		run_nothing(&t, copy(forbidden[i], AT, PAGE));
		run_nothing(&t, fill(forbidden[i] - 4, 8, 0xdead));
		assert_int_equal(smmu.n_lately, 0);
		assert_int_equal(smmu.msis, msis);
	}
	assert_int_equal(word_at(&t, 0), 1);
	leave(&t);
	nested_end();
}

/* Where the kernel has the interrupt controller is the kernel's choice. */
static void test_where_interrupts_go(void **state)
{
	static const struct {
		struct range msi, clients;
	} v[] = {
		{{0, 0}, {IOVA_FIRST, 0xfffffff}},
		{{0x8000000, 0x80fffff}, {IOVA_FIRST, 0x7ffffff}},
		{{0x100000, 0x1fffff}, {0x200000, 0xfffffff}},
		{{0xff00000, 0xfffffff}, {IOVA_FIRST, 0xfefffff}},
		{{0xff00000, 0x100fffff}, {IOVA_FIRST, 0xfefffff}},
		{{0x20000000, 0x200fffff}, {IOVA_FIRST, 0xfffffff}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		struct pasid_wire_device_info d;
		struct tenant t;

		nested_reset();
		smmu.says.msi = v[i].msi;
		smmu.doorbell = v[i].msi.first + 0x40;
		start();
		t = begin_with(0, 1);
		d = device_info(t.app);
		assert_int_equal(d.iova_first, v[i].clients.first);
		assert_int_equal(d.iova_last, v[i].clients.last);
		run(&t, fill(AT, PAGE, 7));
		assert_int_equal(word_at(&t, 0), 7);
		assert_int_equal(smmu.lost_msis, 0);
		leave(&t);
		nested_end();
	}
}

/* The bank's pattern is in the window and in the device; the thief reads what it has not mapped, and gets what is there. */
static void test_nothing_left(void **state)
{
	struct tenant bank, thief;

	begin_test();
	bank = begin_with(0, 1);
	thief = begin_with(1, 1);
	for (unsigned int i = 0; i < 3; i++) {
		run(&bank, fill(AT, PAGE, 0x5ec7e7));
		run(&thief, fill(AT, 4, 0x11));
		run(&bank, fill(AT, PAGE, 0x5ec7e7));
		run(&thief, copy(AT, NOWHERE, PAGE));
		assert_int_equal(word_at(&thief, 0), 0);
	}
	leave(&bank);
	leave(&thief);
	nested_end();
}

/* ---- unmapping ---- */

static bool remembers(uint32_t asid, uint64_t iova)
{
	return known_leaf(asid, iova);
}

static struct {
	uint32_t asid;
	struct range iova;
} unmapped; /* when the reply comes */

static void judge_unmapped(struct app *a)
{
	for (uint64_t at = unmapped.iova.first; at < unmapped.iova.last; at += PAGE)
		assert_false(remembers(unmapped.asid, at));
	a->replied = NULL;
}

static void ask_unmap_and_look(const struct tenant *t, uint64_t iova, uint64_t pages)
{
	unmapped.asid = asid_of(t);
	unmapped.iova = (struct range){iova, iova + pages * PAGE - 1};
	t->app->replied = judge_unmapped;
	ask_unmap(t, iova, pages * PAGE);
}

static void unmap_and_look(const struct tenant *t, uint64_t iova, uint64_t pages)
{
	uint32_t before = word_at(t, (iova - AT) / PAGE);

	run(t, copy(iova, iova + (pages - 1) * PAGE, 4));
	run(t, fill(iova, PAGE, before));
	assert_true(remembers(asid_of(t), iova));
	ask_unmap_and_look(t, iova, pages);
	assert_int_equal(app_wait(t->app), 0);
	run(t, fill(iova, pages * PAGE, ~before));
	assert_int_equal(word_at(t, (iova - AT) / PAGE), before);
	assert_true(info(t).faults > 0);
}

static void unmap_with(uint32_t idr3, uint32_t flags)
{
	static const uint64_t pages[] = {1, 2, 31, 32, 33, 48, 200};
	struct tenant t;

	for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
		nested_reset();
		smmu.says.idr[3] = idr3;
		smmu.says.flags = flags;
		smmu.bytes_a_record = PAGE;
		start();
		t = begin_with(0, 512); /* one block */
		unmap_and_look(&t, AT + 8 * PAGE, pages[i]);
		assert_true(is_pinned(&t));
		run(&t, fill(AT, PAGE, 3)); /* what is beside it is still there */
		run(&t, fill(AT + (8 + pages[i]) * PAGE, PAGE, 4));
		assert_int_equal(word_at(&t, 0), 3);
		assert_int_equal(word_at(&t, 8 + pages[i]), 4);
		leave(&t);
		nested_end();
	}
}

static void test_unmap(void **state)
{
	unmap_with(1 << 10, 0);
	unmap_with(0, 0);
	unmap_with(1 << 10, TRANSPORT_SMMU_REPEAT);
	unmap_with(0, TRANSPORT_SMMU_REPEAT);
}

/* Its last mapping goes, and with it the memory: not before. The rig looks, too. */
static void test_unpinned_last(void **state)
{
	struct tenant t;
	uint32_t asid;

	begin_test();
	t = begin_with(0, 4);
	run(&t, fill(AT, 4 * PAGE, 9));
	asid = asid_of(&t);
	free_buf(&t);
	assert_true(is_pinned(&t));
	ask_unmap(&t, COMMANDS, PAGE);
	assert_true(is_pinned(&t));
	ask_unmap(&t, AT, 4 * PAGE);
	assert_int_equal(app_wait(t.app), 0);
	assert_false(remembers(asid, AT));
	answers(UINT32_MAX);
	assert_false(is_pinned(&t));
	assert_int_equal(stage2.n, OWN_MAPS);
	leave(&t);
	nested_end();
}

/* Mapped again in the same list: work sees the old page or the new one. */
static void test_replace(void **state)
{
	struct pasid_wire_bind_op op[2];
	struct tenant t;

	begin_test();
	t = begin_with(0, 512);
	run(&t, fill(AT, 4 * PAGE, 1));
	smmu.slow = true;
	assert_int_equal(submit_one(&t, fill(AT + PAGE, PAGE, 2)), 0);
	assert_true(smmu.in_transfer);
	op[0] = wire_unmap(AT + PAGE, PAGE);
	op[1] = wire_map(t.buf, AREA + 100 * PAGE, AT + PAGE, PAGE);
	app_ask_bind(t.app, t.ctx, op, 2);
	pump();
	assert_true(t.app->pending); /* until the device is still */
	while (smmu.in_transfer) {
		transfer_done();
		pump();
	}
	assert_int_equal(app_wait(t.app), 0);
	smmu.slow = false;
	pump();
	run(&t, fill(AT + PAGE, PAGE, 3));
	assert_int_equal(word_at(&t, 100), 3);
	assert_int_not_equal(word_at(&t, 1), 3);
	assert_int_equal(info(&t).faults, 0);
	leave(&t);
	nested_end();
}

/* ---- invalidations that fail ---- */

/* The buffer has no name any more, so that it goes when the SMMU has forgotten the one page of it. */
static struct tenant begin_to_unmap(size_t i)
{
	struct tenant t = begin_with(i, 1);

	run(&t, fill(AT, PAGE, 1));
	return t;
}

static void await_lost(const struct tenant *t, uint32_t why)
{
	for (unsigned int i = 0; !t->app->heard.n_lost; i++) {
		assert_true(i < 1000);
		turn();
	}
	assert_int_equal(t->app->heard.lost.ctx, t->ctx);
	assert_int_equal(t->app->heard.lost.why, why);
}

/* Once is made good by the next try; from twice on the context is lost, and nothing else. */
static void unmap_fails(uint32_t times, uint64_t only, bool late)
{
	bool lost = times > 1 && !only;
	struct tenant t, other;

	begin_test();
	other = begin_with(1, 1);
	t = begin_to_unmap(0);
	free_buf(&t);
	assert_int_equal(app_bind(t.app, t.ctx, wire_unmap(COMMANDS, PAGE)), 0);
	smmu.fail_times = times;
	smmu.fail_late = late;
	smmu.only = only;
	ask_unmap_and_look(&t, AT, 1);
	for (unsigned int i = 0; t.app->pending; i++) {
		assert_true(i < 1000);
		assert_true(is_pinned(&t));
		turn();
	}
	assert_int_equal(smmu.fail_times, 0);
	assert_int_equal(is_lost(&t), lost);
	if (lost)
		await_lost(&t, PASID_LOST_DAEMON);
	assert_int_equal(t.app->heard.n_lost, lost);
	answers(UINT32_MAX);
	assert_false(is_pinned(&t));
	run(&other, fill(AT, PAGE, 2));
	assert_int_equal(word_at(&other, 0), 2);
	assert_int_equal(other.app->heard.n_lost, 0);
	leave(&t);
	leave(&other);
	nested_end();
}

static void test_unmap_fails(void **state)
{
	for (uint32_t times = 1; times < 5; times++)
		for (unsigned int how = 0; how < 2; how++)
			unmap_fails(times, 0, how);
	unmap_fails(1, CMD_TLBI_NH_VA, false);
}

/* Its TLB is stuck, the descriptors are not: what was unmapped stays mapped below, while others work. */
static void test_others_go_on(void **state)
{
	struct tenant t, other;

	begin_test();
	other = begin_with(1, 1);
	t = begin_to_unmap(0);
	free_buf(&t);
	smmu.fail_times = FOR_EVER;
	ask_unmap(&t, AT, PAGE);
	assert_true(t.app->pending);
	assert_true(is_lost(&t));
	smmu.only = CMD_TLBI_NH_ASID;
	for (uint32_t i = 0; i < 5; i++) {
		turn();
		run(&other, fill(AT, PAGE, i));
		assert_int_equal(word_at(&other, 0), i);
		assert_true(is_pinned(&t));
		assert_true(t.app->pending);
		assert_true(remembers(asid_of(&t), AT));
		assert_int_equal(t.app->heard.n_lost, 0);
	}
	smmu.fail_times = 0;
	await_lost(&t, PASID_LOST_DAEMON);
	assert_int_equal(app_wait(t.app), 0);
	assert_false(remembers(asid_of(&t), AT));
	answers(UINT32_MAX);
	assert_false(is_pinned(&t));
	assert_int_equal(other.app->heard.n_lost, 0);
	leave(&t);
	leave(&other);
	nested_end();
}

/* Longer than a device may take for an answer: what it does is not known any more. */
static void test_given_up(void **state)
{
	struct tenant t, other;

	nested_reset();
	device_config.answer_ms = 100;
	start();
	other = begin_with(1, 1);
	t = begin_to_unmap(0);
	smmu.fail_times = FOR_EVER;
	ask_unmap(&t, AT, PAGE);
	for (unsigned int i = 0; is_ready(); i++) {
		assert_true(i < 1000);
		assert_true(is_pinned(&t));
		turn();
	}
	assert_non_null(strstr(device()->gone_why, "does not forget"));
	smmu.fail_times = 0;
	assert_false(t.app->pending);
	await_ready();
	assert_int_equal(t.app->heard.n_lost, 1);
	assert_int_equal(other.app->heard.n_lost, 1);
	assert_int_equal(other.app->heard.lost.why, PASID_LOST_DEVICE);
	new_ctx(&t);
	map_data(&t, AT, 0, 1);
	run(&t, fill(AT, PAGE, 0x77));
	assert_int_equal(word_at(&t, 0), 0x77);
	leave(&t);
	leave(&other);
	nested_end();
}

/* That it does what others ask for does not help: what the one has unmapped can be reached still. */
static void test_given_up_among_others(void **state)
{
	struct tenant t, other;

	nested_reset();
	device_config.answer_ms = 100;
	start();
	other = begin_to_unmap(1);
	t = begin_to_unmap(0);
	smmu.fail_times = FOR_EVER;
	ask_unmap(&t, AT, PAGE);
	smmu.only = CMD_TLBI_NH_ASID;
	for (unsigned int i = 0; is_ready(); i++) {
		assert_true(i < 50000); /* each takes no time */
		assert_true(t.app->pending);
		app_bind(other.app, other.ctx, wire_unmap(AT, PAGE));
		app_bind(other.app, other.ctx, wire_map(other.buf, AREA, AT, PAGE));
		turn();
	}
	assert_non_null(strstr(device()->gone_why, "does not forget"));
	leave(&t);
	leave(&other);
	nested_end();
}

/* ---- switches that fail ---- */

/* One works, two wait. The first of them cannot be installed. */
static void install_fails(uint32_t after, uint32_t times, bool late)
{
	struct tenant t[3];

	begin_test();
	for (uint32_t i = 0; i < 3; i++)
		t[i] = begin_with(i, 1);
	smmu.slow = true;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(submit_one(&t[i], fill(AT, PAGE, 0x10 + i)), 0);
	smmu.slow = false;
	smmu.fail_after = after;
	smmu.fail_times = times;
	smmu.fail_late = late;
	transfer_done();
	await_job(&t[2], 1);
	assert_int_equal(word_at(&t[0], 0), 0x10);
	assert_int_equal(word_at(&t[1], 0), 0);
	assert_int_equal(word_at(&t[2], 0), 0x12);
	assert_false(is_lost(&t[0]));
	assert_true(is_lost(&t[1]));
	assert_false(is_lost(&t[2]));
	run(&t[0], copy(AT, NOWHERE, PAGE));
	assert_int_equal(word_at(&t[0], 0), 0);
	assert_int_equal(t[1].app->heard.n_lost, 1);
	assert_int_equal(t[1].app->heard.lost.why, PASID_LOST_DAEMON);
	for (uint32_t i = 0; i < 3; i++)
		leave(&t[i]);
	nested_end();
}

static void test_install_fails(void **state)
{
	for (uint32_t after = 0; after < 2; after++)
		for (uint32_t times = 1; times < 3; times++)
			for (unsigned int late = 0; late < 2; late++)
				install_fails(after, times, late);
}

/* ---- ends ---- */

/* The device accesses something that nobody asked it for. */
static uint32_t rogue(uint64_t iova)
{
	unsigned int attribute;
	uint64_t bus;

	return translate(iova, true, &bus, &attribute);
}

static void ends_amid(uint32_t fail_times)
{
	struct tenant bank, next;
	uint64_t tables;
	uint32_t asid;

	begin_test();
	bank = begin_with(0, 4);
	run(&bank, fill(AT, 4 * PAGE, 1));
	tables = pgtable_pages(ctx_of(bank.ctx)->pt);
	asid = asid_of(&bank);
	smmu.fail_times = fail_times;
	free_ctx(&bank);
	while (bank.app->pending) {
		assert_true(table_pool_used(device()->pool) > 0);
		turn();
	}
	assert_int_equal(table_pool_used(device()->pool), 0);
	assert_int_equal(rogue(AT), C_BAD_CD);
	assert_null(known_entry(asid, 0, AT));
	next = begin(1);
	assert_true(pgtable_root(ctx_of(next.ctx)->pt) < table_pool_bus(device()->pool) + tables * TABLE_PAGE);
	map_data(&next, AT + PAGE, 0, 1);
	assert_int_equal(rogue(AT + PAGE), C_BAD_CD);
	run(&next, fill(AT + PAGE, PAGE, 2));
	assert_int_equal(word_at(&bank, 0), 1);
	assert_int_equal(word_at(&next, 0), 2);
	assert_int_equal(rogue(AT), F_TRANSLATION);
	leave(&bank);
	leave(&next);
	nested_end();
}

static void test_context_ends(void **state)
{
	for (uint32_t fail_times = 0; fail_times < 4; fail_times++)
		ends_amid(fail_times);
}

/* It is ended amid a transfer; others wait, and its memory stays until the device is still. */
static void test_ends_amid_work(void **state)
{
	struct tenant t, other;

	begin_test();
	t = begin_with(0, 1);
	other = begin_with(1, 1);
	run(&t, fill(AT, PAGE, 1));
	smmu.slow = true;
	assert_int_equal(submit_one(&t, fill(AT, PAGE, 2)), 0);
	assert_int_equal(submit_one(&other, fill(AT, PAGE, 3)), 0);
	app_end(t.app);
	pump();
	assert_int_equal(service_lingering(service), 1);
	assert_int_not_equal(rogue(AT), C_BAD_CD);
	smmu.slow = false;
	transfer_done();
	await_job(&other, 1);
	assert_int_equal(word_at(&other, 0), 3);
	answers(UINT32_MAX);
	assert_int_equal(service_lingering(service), 0);
	leave(&t);
	leave(&other);
	nested_end();
}

/* ---- faults ---- */

static void expect_fault(const struct tenant *t, uint64_t n, uint64_t job, uint64_t addr, uint32_t access,
			 uint32_t code)
{
	const struct heard_fault *h = &t->app->heard.faults[n];

	assert_true(t->app->heard.n_faults > n);
	assert_int_equal(h->ctx, t->ctx);
	assert_int_equal(h->fault.job, job);
	assert_int_equal(h->fault.addr, addr);
	assert_int_equal(h->fault.access, access);
	assert_int_equal(h->fault.code, code);
}

static void let_records_come(void)
{
	smmu.late = false;
	while (smmu.count)
		pump();
}

static void test_faults(void **state)
{
	struct tenant t;

	begin_test();
	t = begin_with(0, 2);
	run(&t, copy(AT, NOWHERE + 8, 16));
	expect_fault(&t, 0, 1, NOWHERE + 8, 1, PASID_FAULT_UNMAPPED);
	run(&t, fill(NOWHERE + 64, 3 * PAGE, 1));
	let_records_come();
	expect_fault(&t, 1, 2, NOWHERE + 64, 2, PASID_FAULT_UNMAPPED);
	expect_fault(&t, 2, 2, NOWHERE + PAGE, 2, PASID_FAULT_UNMAPPED);
	expect_fault(&t, 3, 2, NOWHERE + 2 * PAGE, 2, PASID_FAULT_UNMAPPED);
	expect_fault(&t, 4, 2, NOWHERE + 3 * PAGE, 2, PASID_FAULT_UNMAPPED);
	run(&t, fill(COMMANDS, PAGE, 1));
	let_records_come();
	expect_fault(&t, 5, 3, COMMANDS, 2, PASID_FAULT_PERMISSION);
	let_records_come();
	run(&t, fill(AT, PAGE, 1));
	assert_int_equal(t.app->heard.n_faults, 6);
	assert_int_equal(info(&t).faults, 6);
	assert_int_equal(ctx_of(t.ctx)->line->disrupted, 6);
	leave(&t);
	nested_end();
}

/* Its pieces cross pages, and what it reads and what it writes fault in turn. */
static void test_fault_once_a_page(void **state)
{
	struct tenant t;

	begin_test();
	t = begin(0);
	run(&t, copy(NOWHERE + 0x10010, NOWHERE + 0x20, 3 * PAGE));
	let_records_come();
	assert_int_equal(t.app->heard.n_faults, 4 + 4);
	run(&t, copy(NOWHERE + 0x10010, NOWHERE + 0x20, 3 * PAGE)); /* another job */
	let_records_come();
	assert_int_equal(t.app->heard.n_faults, 2 * (4 + 4));
	leave(&t);
	nested_end();
}

static void test_fault_comes_late(void **state)
{
	struct tenant bank, thief;

	begin_test();
	bank = begin_with(0, 2);
	thief = begin_with(1, 1);
	smmu.late = true;
	run(&thief, fill(AT, PAGE, 1));
	run(&thief, copy(AT, NOWHERE, PAGE));
	for (unsigned int i = 0; i < 6; i++)
		run(&bank, fill(AT, PAGE, i));
	let_records_come();
	expect_fault(&thief, 0, 2, NOWHERE, 1, PASID_FAULT_UNMAPPED);
	assert_int_equal(thief.app->heard.n_faults, 1);
	assert_int_equal(info(&thief).faults, 1);
	assert_int_equal(bank.app->heard.n_faults, 0);
	leave(&bank);
	leave(&thief);
	nested_end();
}

/* What the thief may do between its fault and the record, and what the bank does meanwhile. */
enum meanwhile {
	BANK_USED_IT = 1, /* mapped, and not any more when the record comes */
	BANK_HAS_IT = 2, /* mapped still, and read-only */
	THIEF_MAPS_IT = 4,
	THIEF_IS_GONE = 8,
};

static void bank_maps(const struct tenant *bank)
{
	struct pasid_wire_bind_op op = wire_map(bank->buf, AREA, NOWHERE, PAGE);

	assert_int_equal(app_bind(bank->app, bank->ctx, op), 0);
	run(bank, fill(NOWHERE, PAGE, 1));
}

static void frame(unsigned int meanwhile)
{
	struct tenant bank, thief;

	begin_test();
	bank = begin(0);
	thief = begin_with(1, 1);
	smmu.late = true;
	if (meanwhile & (BANK_USED_IT | BANK_HAS_IT))
		bank_maps(&bank);
	run(&thief, copy(AT, NOWHERE, PAGE));
	run(&thief, fill(NOWHERE, PAGE, 0xbad));
	if (meanwhile & BANK_USED_IT)
		assert_int_equal(app_bind(bank.app, bank.ctx, wire_unmap(NOWHERE, PAGE)), 0);
	if (meanwhile & THIEF_MAPS_IT)
		map_data(&thief, NOWHERE, 1, 1);
	if (meanwhile & THIEF_IS_GONE)
		app_end(thief.app);
	answers(UINT32_MAX);
	run(&bank, fill(COMMANDS + PAGE, 4, 1)); /* its own, and its own fault */
	let_records_come();
	assert_int_equal(bank.app->heard.n_faults, 1);
	expect_fault(&bank, 0, last_job(&bank), COMMANDS + PAGE, 2, PASID_FAULT_UNMAPPED);
	if (thief.app->client)
		assert_int_equal(thief.app->heard.n_faults, 2);
	leave(&bank);
	leave(&thief);
	nested_end();
}

static void test_no_frame(void **state)
{
	for (unsigned int meanwhile = 0; meanwhile < 16; meanwhile++)
		if ((meanwhile & 3) < 3 && (meanwhile & 12) < 12)
			frame(meanwhile);
}

/* Records that nobody's job explains, or that say nothing of an address: what the bank did or has, it is not blamed. */
static void test_strays(void **state)
{
	struct tenant bank;

	begin_test();
	bank = begin_with(0, 2);
	run(&bank, fill(AT, PAGE, 1));
	run(&bank, copy(AT, COMMANDS, PAGE));
	add_record(F_TRANSLATION, AT, true);
	add_record(F_TRANSLATION, AT, false);
	add_record(F_PERMISSION, AT + 8, true);
	add_record(F_TRANSLATION, COMMANDS, false);
	add_record(F_TRANSLATION, NOWHERE, true); /* no job named it */
	add_record(F_TRANSLATION, WINDOW_IOVA, false);
	add_record(F_PERMISSION, DOORBELL, true);
	add_record(C_BAD_CD, 0, true);
	for (uint32_t code = 0; code < 256; code++)
		if (code != F_PERMISSION)
			add_record(code, AT, code & 1);
	let_records_come();
	assert_int_equal(bank.app->heard.n_faults, 0);
	assert_int_equal(info(&bank).faults, 0);
	assert_int_equal(bank.app->heard.n_lost, 0);
	run(&bank, fill(AT, PAGE, 2));
	assert_int_equal(word_at(&bank, 0), 2);
	leave(&bank);
	nested_end();
}

/* A job that accesses more than is looked at may have made any access: then nobody can be sure of who else did. */
static void test_too_much_to_look_at(void **state)
{
	struct tenant bank, thief;

	begin_test();
	bank = begin(0);
	thief = begin(1);
	for (uint64_t i = 0; i < 600; i++)
		assert_int_equal(app_bind(bank.app, bank.ctx, wire_map(bank.buf, 0, AT + i * PAGE, PAGE)), 0);
	smmu.late = true;
	for (uint32_t many = 0; many < 2; many++) {
		run(&thief, fill(NOWHERE, PAGE, 1));
		smmu.count = 0;
		run(&bank, fill(AT, (many ? 600 : 1) * PAGE, 2));
		add_record(F_TRANSLATION, NOWHERE, true);
		let_records_come();
		smmu.late = true;
		assert_int_equal(thief.app->heard.n_faults, 1); /* of the first round */
		assert_int_equal(bank.app->heard.n_faults, 0);
	}
	leave(&bank);
	leave(&thief);
	nested_end();
}

/* Twelve thousand records of three pages, of which a few are looked at in one go. */
static void test_flood(void **state)
{
	struct tenant bank, thief;
	size_t before;

	begin_test();
	bank = begin_with(0, 1);
	thief = begin(1);
	smmu.bytes_a_record = 1;
	smmu.late = true;
	run(&thief, fill(NOWHERE, 3 * PAGE, 1));
	assert_int_equal(smmu.count, 3 * PAGE);
	smmu.late = false;
	before = smmu.count;
	edu.events->irq(edu.owner, TRANSPORT_IRQ_IOMMU);
	assert_true(smmu.count < before && before - smmu.count <= 2 * TRANSPORT_SMMU_EVENTS);
	for (uint32_t i = 1; i < 4; i++) {
		run(&bank, fill(AT, PAGE, i));
		assert_int_equal(word_at(&bank, 0), i);
	}
	let_records_come();
	assert_int_equal(thief.app->heard.n_faults, 3);
	assert_int_equal(info(&thief).faults, 3);
	assert_int_equal(bank.app->heard.n_faults, 0);
	leave(&bank);
	leave(&thief);
	nested_end();
}

/* What the daemon logs meanwhile goes into a file. */
static int log_begin(int *was)
{
	int fd = memfd_create("log", MFD_CLOEXEC);

	assert_true(fd >= 0);
	fflush(stderr);
	*was = dup(STDERR_FILENO);
	assert_true(*was >= 0 && dup2(fd, STDERR_FILENO) >= 0);
	log_set_level(LOG_WARN);
	return fd;
}

static void log_end(int fd, int was, char *text, size_t size)
{
	ssize_t n = pread(fd, text, size - 1, 0);

	log_set_level(LOG_ERROR - 1);
	dup2(was, STDERR_FILENO);
	close(was);
	close(fd);
	assert_true(n >= 0);
	text[n] = '\0';
}

static void test_lost_records(void **state)
{
	char text[4096];
	struct tenant t;
	int fd, was;

	begin_test();
	t = begin_with(0, 1);
	fd = log_begin(&was);
	smmu.lost = 12345;
	pump();
	log_end(fd, was, text, sizeof(text));
	assert_non_null(strstr(text, "12345 faults lost"));
	run(&t, fill(AT, PAGE, 1));
	leave(&t);
	nested_end();
}

/* The kernel's file cannot be read: what the device does is not known any more. */
static void test_records_make_no_sense(void **state)
{
	struct tenant t;

	begin_test();
	t = begin_with(0, 1);
	smmu.nonsense = true;
	edu.events->irq(edu.owner, TRANSPORT_IRQ_IOMMU);
	assert_false(is_ready());
	smmu.nonsense = false;
	await_ready();
	assert_int_equal(t.app->heard.n_lost, 1);
	leave(&t);
	nested_end();
}

/* ---- where it cannot be had ---- */

/* Opened so often, and not ready. */
static void open_in_vain(unsigned int times)
{
	nested_open();
	while (edu.opened < times)
		turn();
	answers(UINT32_MAX);
	assert_false(is_ready());
	assert_int_equal(stage2.n, 0);
}

static void work_in(uint32_t mode)
{
	struct pasid_wire_device_info d;
	struct tenant t[2];

	await_ready();
	for (uint32_t i = 0; i < 2; i++)
		t[i] = begin_with(i, 1);
	d = device_info(t[0].app);
	assert_int_equal(d.mode, mode);
	assert_int_equal(smmu.attached, mode == PASID_MODE_NESTED);
	for (uint32_t i = 0; i < 4; i++)
		run(&t[i % 2], fill(AT, PAGE, i));
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(word_at(&t[i], 0), 2 + i);
		leave(&t[i]);
	}
	apps_end();
}

static void refused(int error, bool in_call)
{
	nested_reset();
	smmu.why = "it has no first stage for us";
	smmu.prepare_error = in_call ? 0 : error;
	smmu.refuses = in_call ? error : 0;
	open_in_vain(3);
	assert_string_equal(device()->gone_why, smmu.why);
	assert_int_equal(device()->mode, PASID_MODE_NESTED);
	assert_int_equal(smmu.n_prepared, edu.opened);
	smmu.prepare_error = smmu.refuses = 0;
	work_in(PASID_MODE_NESTED);
	nested_end();
}

static void falls_back(bool in_call)
{
	nested_reset();
	device_config.fallback = PASID_MODE_EXCLUSIVE;
	smmu.prepare_error = in_call ? 0 : -EOPNOTSUPP;
	smmu.refuses = in_call ? -EOPNOTSUPP : 0;
	nested_open();
	work_in(PASID_MODE_EXCLUSIVE);
	lose_device();
	work_in(PASID_MODE_EXCLUSIVE);
	assert_int_equal(smmu.n_prepared, 1);
	nested_end();
}

static void test_refused(void **state)
{
	for (unsigned int in_call = 0; in_call < 2; in_call++) {
		refused(-EOPNOTSUPP, in_call);
		falls_back(in_call);
	}
}

/* It may be had the next time. */
static void test_prepare_fails(void **state)
{
	static const int errors[] = {-EBUSY, -ENOMEM, -EINVAL, -EMFILE};

	for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
		for (unsigned int in_call = 0; in_call < 2; in_call++) {
			refused(errors[i], in_call);
			nested_reset();
			device_config.fallback = PASID_MODE_EXCLUSIVE;
			smmu.prepare_error = in_call ? 0 : errors[i];
			smmu.refuses = in_call ? errors[i] : 0;
			open_in_vain(2);
			assert_int_equal(device()->mode, PASID_MODE_NESTED);
			smmu.prepare_error = smmu.refuses = 0;
			work_in(PASID_MODE_NESTED);
			nested_end();
		}
}

static void test_unfit(void **state)
{
	static const struct {
		unsigned int idr;
		uint32_t clear, set;
		const char *why;
	} v[] = {
		{0, 2 << 2, 0, "TTF"},
		{0, 0, 3 << 21, "TTENDIAN"},
		{0, 0, 2 << 24, "STALL_MODEL"},
		{5, 1 << 4, 0, "GRAN4K"},
		{5, 7, 1, "OAS"}, /* 36 bits */
		{5, 7, 0, "OAS"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		for (unsigned int fallback = 0; fallback < 2; fallback++) {
			nested_reset();
			smmu.says.idr[v[i].idr] &= ~v[i].clear;
			smmu.says.idr[v[i].idr] |= v[i].set;
			device_config.fallback = fallback ? PASID_MODE_EXCLUSIVE : 0;
			if (fallback) {
				nested_open();
				work_in(PASID_MODE_EXCLUSIVE);
			} else {
				open_in_vain(2);
				assert_non_null(strstr(device()->gone_why, v[i].why));
			}
			nested_end();
		}
}

/* With 8 bits of ASIDs, and with every size that will do. */
static void test_fit(void **state)
{
	for (uint32_t oas = 2; oas < 7; oas++) {
		nested_reset();
		smmu.says.idr[0] &= ~(1u << 12);
		smmu.says.idr[5] = oas > 5 ? 5 : oas;
		smmu.says.idr[5] |= 1 << 4;
		nested_open();
		work_in(PASID_MODE_NESTED);
		nested_end();
	}
}

/* The SMMU compares eight bits of them: it takes one that it has forgotten rather than a ninth bit. */
static void test_few_asids(void **state)
{
	struct tenant t;

	nested_reset();
	smmu.says.idr[0] &= ~(1u << 12);
	start();
	t = begin_with(0, 1);
	for (uint32_t i = 0; i < 300; i++) {
		run(&t, fill(AT, PAGE, i));
		assert_int_equal(word_at(&t, 0), i);
		free_ctx(&t);
		assert_int_equal(app_wait(t.app), 0);
		new_ctx(&t);
		map_data(&t, AT, 0, 1);
	}
	leave(&t);
	nested_end();
}

#define STEPS 5u /* until it is ready: prepared, three maps, attached */

static void test_setup_fails(void **state)
{
	for (unsigned int step = 2; step <= STEPS; step++)
		for (unsigned int in_call = 0; in_call < 2; in_call++) {
			nested_reset();
			nested_open();
			kernel.fail_at = step;
			kernel.fail_in_call = in_call;
			while (!device()->gone_why[0])
				answers(1);
			assert_false(is_ready());
			answers(UINT32_MAX);
			assert_int_equal(device()->mode, PASID_MODE_NESTED);
			assert_int_equal(stage2.n, 0);
			work_in(PASID_MODE_NESTED);
			assert_int_equal(edu.opened, 2);
			nested_end();
		}
}

static void test_lost_while_set_up(void **state)
{
	for (unsigned int step = 0; step <= STEPS; step++) {
		nested_reset();
		nested_open();
		answers(step);
		lose_device();
		assert_int_equal(kernel.n_answers, 0);
		answers(UINT32_MAX);
		work_in(PASID_MODE_NESTED);
		assert_int_equal(edu.opened, 2);
		nested_end();
	}
}

/* While clients have something there, which is mapped again; after so many answers of that it is lost once more. */
static void lost_again(unsigned int step)
{
	struct tenant t[3];

	begin_test();
	for (uint32_t i = 0; i < 3; i++) {
		t[i] = begin_with(i, 1);
		run(&t[i], fill(AT, PAGE, i));
	}
	lose_device();
	while (edu.opened < 2)
		event_base_loop(base, EVLOOP_ONCE), pump();
	answers(step);
	if (!is_ready())
		assert_int_equal(app_call(t[0].app, PASID_OP_CTX_NEW, &(struct pasid_ctx_new){0},
					  sizeof(struct pasid_ctx_new), -1),
				 PASID_WHY_DEVICE_GONE);
	lose_device();
	await_ready();
	for (uint32_t i = 0; i < 3; i++) {
		assert_true(t[i].app->heard.n_lost > 0);
		new_ctx(&t[i]);
		map_data(&t[i], AT, 0, 1);
		run(&t[i], copy(AT + 8, AT, 4));
		assert_int_equal(word_at(&t[i], 0), i);
		leave(&t[i]);
	}
	nested_end();
}

static void test_second_opening(void **state)
{
	for (unsigned int step = 0; step < STEPS + 4; step++)
		lost_again(step);
}

/* Clients let go of what they lost while the kernel takes the descriptors, which it is asked to once. */
static void test_attached_once(void **state)
{
	struct tenant t;

	begin_test();
	t = begin_with(0, 1);
	lose_device();
	while (smmu.n_attached < 2) {
		if (kernel.n_answers)
			answers(1);
		else
			event_base_loop(base, EVLOOP_ONCE), pump();
	}
	assert_false(is_ready());
	room();
	free_ctx(&t);
	pump();
	free_buf(&t);
	await_ready();
	assert_int_equal(edu.opened, 2);
	leave(&t);
	nested_end();
}

/* Work, changes and ends are under way, and cannot end. */
static void lost_amid(unsigned int how)
{
	struct tenant t[3];

	begin_test();
	for (uint32_t i = 0; i < 3; i++) {
		t[i] = begin_with(i, 1);
		run(&t[i], fill(AT, PAGE, i));
	}
	free_buf(&t[0]);
	smmu.slow = how & 1;
	smmu.fail_times = how & 2 ? FOR_EVER : 0;
	submit_one(&t[2], fill(AT, PAGE, 4));
	ask_unmap(&t[0], AT, PAGE);
	free_ctx(&t[1]);
	if (how & 4)
		app_end(t[0].app);
	lose_device();
	smmu.slow = false;
	smmu.fail_times = 0;
	await_ready();
	for (uint32_t i = 0; i < 2; i++)
		assert_false(t[i].app->pending && t[i].app->client);
	assert_int_equal(t[2].app->heard.n_lost, 1);
	new_ctx(&t[2]);
	map_data(&t[2], AT, 0, 1);
	run(&t[2], fill(AT, PAGE, 5));
	for (uint32_t i = 0; i < 3; i++)
		leave(&t[i]);
	nested_end();
}

static void test_lost_amid(void **state)
{
	for (unsigned int how = 0; how < 8; how++)
		lost_amid(how);
}

/* The device is given up in the middle of what a bind asks of it: whoever made it is answered all the same. */
static void test_lost_by_asking(void **state)
{
	unsigned int opened;
	struct tenant t;

	begin_test();
	t = begin_with(0, 1);
	run(&t, fill(AT, PAGE, 1));
	smmu.late = smmu.nonsense = true;
	smmu.fail_times = FOR_EVER;
	opened = edu.opened;
	ask_unmap(&t, AT, PAGE);
	app_wait(t.app);
	assert_int_equal(edu.opened, opened); /* and not when the device is back */
	assert_false(is_ready());
	smmu.late = smmu.nonsense = false;
	smmu.fail_times = 0;
	await_ready();
	assert_int_equal(t.app->heard.n_lost, 1);
	new_ctx(&t);
	map_data(&t, AT, 0, 1);
	run(&t, fill(AT, PAGE, 5));
	leave(&t);
	nested_end();
}

/* Once it was had, another mode will not do: what clients have lies where it was. It is tried until it can be had again. */
static void test_no_fallback_later(void **state)
{
	unsigned int opened;
	struct tenant t;

	nested_reset();
	device_config.fallback = PASID_MODE_EXCLUSIVE;
	start();
	t = begin_with(0, 1);
	run(&t, fill(AT, PAGE, 1));
	smmu.prepare_error = -EOPNOTSUPP;
	lose_device();
	for (opened = edu.opened; edu.opened < opened + 3; answers(UINT32_MAX))
		event_base_loop(base, EVLOOP_ONCE);
	assert_false(is_ready());
	assert_int_equal(device_info(t.app).mode, PASID_MODE_NESTED);
	smmu.prepare_error = 0;
	await_ready();
	new_ctx(&t);
	map_data(&t, AT, 0, 1);
	run(&t, copy(AT + 8, AT, 4));
	run(&t, fill(AT, 4, 2));
	assert_int_equal(word_at(&t, 0), 2);
	leave(&t);
	nested_end();
}

/* ---- bus addresses ---- */

static int huge_file(uint64_t len)
{
	int fd = memfd_create("app", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return fd;
}

static uint32_t import(struct app *a, uint64_t len)
{
	const struct pasid_buf_import in = {0};

	return app_call(a, PASID_OP_BUF_IMPORT, &in, sizeof(in), huge_file(len));
}

/* The kernel has more addresses than the SMMU puts out. Seven eighths of what it does are for buffers. */
static void test_output_size(void **state)
{
	const uint64_t most = 1ull << 40;
	struct account *account;
	struct tenant t;

	nested_reset();
	bus_usable.last = (1ull << 48) - 1;
	smmu.says.idr[5] = 2 | 1 << 4;
	start();
	t = begin_with(0, 1);
	account = service_client_account(t.app->client);
	assert_int_equal(import(t.app, most), PASID_WHY_NO_ROOM);
	assert_int_equal(import(t.app, most / 2), 0);
	assert_int_equal(import(t.app, most / 4), 0);
	assert_int_equal(stage2.n, OWN_MAPS + 3);
	for (unsigned int i = 0; i < 3; i++) {
		assert_int_equal(import(t.app, most / 4), PASID_WHY_NO_ROOM);
		assert_int_equal(stage2.n, OWN_MAPS + 3);
		assert_int_equal(account_used(account, PASID_RES_BUFFERS), 3);
		assert_int_equal(account_used(account, PASID_RES_BYTES), most / 2 + most / 4 + BUFFER_BYTES);
	}
	run(&t, fill(AT, PAGE, 1));
	assert_int_equal(word_at(&t, 0), 1);
	lose_device();
	await_ready();
	assert_int_equal(stage2.n, OWN_MAPS + 3);
	leave(&t);
	nested_end();
}

/* The kernel has no room below for it. */
static void test_import_refused(void **state)
{
	struct tenant t;

	for (unsigned int in_call = 0; in_call < 2; in_call++) {
		begin_test();
		t = begin_with(0, 1);
		kernel.fail_in_call = in_call;
		kernel.error = -ENOMEM;
		kernel.fail_at = kernel.asked + 1;
		assert_int_equal(import(t.app, PAGE), in_call ? PASID_WHY_QUOTA_MEMORY : PASID_WHY_QUOTA_KERNEL);
		assert_int_equal(stage2.n, OWN_MAPS + 1);
		assert_int_equal(import(t.app, PAGE), 0);
		leave(&t);
		nested_end();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_it_is),
		cmocka_unit_test(test_tables_are_charged),
		cmocka_unit_test(test_same_addresses),
		cmocka_unit_test(test_not_for_clients),
		cmocka_unit_test(test_where_interrupts_go),
		cmocka_unit_test(test_nothing_left),
		cmocka_unit_test(test_unmap),
		cmocka_unit_test(test_unpinned_last),
		cmocka_unit_test(test_replace),
		cmocka_unit_test(test_unmap_fails),
		cmocka_unit_test(test_others_go_on),
		cmocka_unit_test(test_given_up),
		cmocka_unit_test(test_given_up_among_others),
		cmocka_unit_test(test_install_fails),
		cmocka_unit_test(test_context_ends),
		cmocka_unit_test(test_ends_amid_work),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_fault_once_a_page),
		cmocka_unit_test(test_fault_comes_late),
		cmocka_unit_test(test_no_frame),
		cmocka_unit_test(test_strays),
		cmocka_unit_test(test_too_much_to_look_at),
		cmocka_unit_test(test_flood),
		cmocka_unit_test(test_lost_records),
		cmocka_unit_test(test_records_make_no_sense),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_prepare_fails),
		cmocka_unit_test(test_unfit),
		cmocka_unit_test(test_fit),
		cmocka_unit_test(test_few_asids),
		cmocka_unit_test(test_setup_fails),
		cmocka_unit_test(test_lost_while_set_up),
		cmocka_unit_test(test_second_opening),
		cmocka_unit_test(test_attached_once),
		cmocka_unit_test(test_lost_amid),
		cmocka_unit_test(test_lost_by_asking),
		cmocka_unit_test(test_no_fallback_later),
		cmocka_unit_test(test_output_size),
		cmocka_unit_test(test_import_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
