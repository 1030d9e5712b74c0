/* SPDX-License-Identifier: MIT */
/*
 * The books when memory ends: every verb is refused at each of its allocations, one after the other, and leaves books
 * and record as they were each time; in the end the books are those that never met a refusal. What gives something
 * back needs no memory at all.
 *
 * Linked with --wrap for each function by which lib_core allocates.
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
#include "core/books.h"
#include "unit/books_dump.h"

#define PAGE ((uint64_t)ASPACE_PAGE)
#define CLIENTS 30u
#define CONTEXTS 30u /* on each device */
#define IDS_TAKEN 1010u /* before: ids come in chunks of 1,024, and contexts are to need a second one */
#define BUFFERS 60u
#define SPLITS 150u /* more than what a slab of mappings holds */
#define JOBS 70u
#define OPS_MAX 4u

/* ---- an allocator that fails when it is told to ---- */

static struct {
	bool armed;
	unsigned int asked; /* allocations since it was armed */
	unsigned int fail_at; /* this one fails; 0: all of them */
} memory;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
int __real_posix_memalign(void **ret, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
int __wrap_posix_memalign(void **ret, size_t alignment, size_t size);

static bool fails(void)
{
	return memory.armed && (++memory.asked == memory.fail_at || !memory.fail_at);
}

void *__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return fails() ? NULL : __real_calloc(n, size);
}

int __wrap_posix_memalign(void **ret, size_t alignment, size_t size)
{
	return fails() ? ENOMEM : __real_posix_memalign(ret, alignment, size);
}

static void arm(unsigned int fail_at)
{
	memory.armed = true;
	memory.asked = 0;
	memory.fail_at = fail_at;
}

/* ---- verbs, all called alike ---- */

union request {
	struct record rec;
	uint8_t bytes[sizeof(struct record) + OPS_MAX * sizeof(struct record_op)];
};

struct stage {
	struct books *books;
	struct device_books *dev[2];
	struct client *client;
	struct context *ctx;
	struct buffer_entry *buf;
	bool failing; /* refuse each verb at each allocation before it may succeed */
	unsigned int refusals;
	union request req;
};

static int client_open(struct stage *s, struct refusal *why)
{
	return books_client_open(s->books, &s->req.rec, why, &s->client);
}

static int ctx_new(struct stage *s, struct refusal *why)
{
	return books_ctx_new(s->books, &s->req.rec, why, &s->ctx);
}

static int import(struct stage *s, struct refusal *why)
{
	return books_import(s->books, &s->req.rec, why, &s->buf);
}

static int bind_list(struct stage *s, struct refusal *why)
{
	struct plan *plan;
	int r = books_bind(s->books, s->ctx, &s->req.rec, &plan, why);

	if (r == 0)
		books_bind_commit(s->books, s->ctx, &s->req.rec, plan);
	return r;
}

static int submit(struct stage *s, struct refusal *why)
{
	return books_submit(s->books, s->ctx, &s->req.rec, why);
}

static void expect_same(struct books *b, const char *before)
{
	char *after = dump(b);

	assert_string_equal(after, before);
	free(after);
}

/* The verb with s->req; in the end it succeeds. */
static void carry_out(struct stage *s, int (*verb)(struct stage *s, struct refusal *why))
{
	union request asked = s->req;
	char *before = s->failing ? dump(s->books) : NULL;
	struct refusal why = {0};

	for (unsigned int n = 1; s->failing; n++) {
		int r;

		arm(n);
		r = verb(s, &why);
		memory.armed = false;
		if (r == 0) {
			assert_true(memory.asked < n);
			free(before);
			return;
		}
		assert_int_equal(memory.asked, n);
		assert_int_equal(r, -EDQUOT);
		assert_int_equal(why.reason, PASID_WHY_QUOTA_MEMORY);
		assert_true(why.n1 == 0 && why.n2 == 0);
		assert_memory_equal(&s->req, &asked, sizeof(asked));
		expect_same(s->books, before);
		s->refusals++;
	}
	assert_int_equal(verb(s, &why), 0);
}

static struct record *request(struct stage *s, uint32_t kind)
{
	memset(&s->req, 0, sizeof(s->req));
	s->req.rec.kind = kind;
	s->req.rec.client = s->client ? s->client->id : 0;
	return &s->req.rec;
}

/* ---- a story with all of them ---- */

static void unused(void *arg, struct buffer_entry *e)
{
}

static void begin(struct stage *s, bool failing)
{
	static const struct limit_policy policy = {
		.connection.v = {[PASID_RES_CONTEXTS] = 2000,
				 [PASID_RES_BUFFERS] = 100,
				 [PASID_RES_MAPPINGS] = 10000,
				 [PASID_RES_BYTES] = UINT64_MAX,
				 [PASID_RES_HUGE] = UINT64_MAX,
				 [PASID_RES_JOBS] = 1000},
		.uid.v = {[PASID_RES_CONTEXTS] = 2000,
			  [PASID_RES_BUFFERS] = 100,
			  [PASID_RES_MAPPINGS] = 10000,
			  [PASID_RES_BYTES] = UINT64_MAX,
			  [PASID_RES_HUGE] = UINT64_MAX,
			  [PASID_RES_JOBS] = 1000,
			  [PASID_RES_CONNECTIONS] = 2},
		.total_bytes = UINT64_MAX,
	};
	struct device_traits t = {
		.name = "private",
		.pasid_bits = 16,
		.asid_bits = 16,
		.iova = {0x10000, 0xffffffffffff},
		.cmd_align = 64,
		.submit_max = 4096,
	};

	*s = (struct stage){.failing = failing};
	assert_int_equal(books_new(&s->books, &policy, unused, s), 0);
	assert_int_equal(books_add_device(s->books, &t, &s->dev[0]), 0);
	t.name = "shared";
	t.global = true;
	assert_int_equal(books_add_device(s->books, &t, &s->dev[1]), 0);
	for (int i = 0; i < 2; i++)
		books_set_window(s->dev[i], (struct range){0x100000000000, 0x1fffffffffff});
}

static void open_clients(struct stage *s)
{
	for (uint32_t i = 0; i < CLIENTS; i++) {
		struct record *rec = request(s, RECORD_CLIENT_OPEN);

		rec->client = 0;
		rec->uid = 1000 + i / 2;
		rec->pid = 77;
		carry_out(s, client_open);
	}
}

/* Users that are refused and never come again: nothing may be left of them for the end to trip over. */
static void refuse_strangers(struct stage *s)
{
	unsigned int n = 1;

	do {
		struct record *rec = request(s, RECORD_CLIENT_OPEN);
		struct refusal why = {0};
		struct client *c;

		rec->client = 0;
		rec->uid = 5000 + n;
		arm(n++);
		if (books_client_open(s->books, rec, &why, &c) == 0) {
			assert_true(memory.asked < memory.fail_at);
			books_client_close(s->books, c);
			n = 0;
		}
		memory.armed = false;
	} while (n);
}

static void make_contexts(struct stage *s, uint32_t device)
{
	for (uint32_t i = 0; i < IDS_TAKEN; i++) {
		uint32_t id;

		assert_int_equal(ids_reserve(s->dev[device]->pasids, &id), 0);
		assert_int_equal(ids_reserve(s->dev[device]->asids, &id), 0);
	}
	for (uint32_t i = 0; i < CONTEXTS; i++) {
		request(s, RECORD_CTX_NEW)->device = device;
		carry_out(s, ctx_new);
	}
}

static void import_buffers(struct stage *s, uint32_t device)
{
	for (uint32_t i = 0; i < BUFFERS / 2; i++) {
		struct record *rec = request(s, RECORD_IMPORT);

		rec->device = device;
		rec->size = (i + 4) * PAGE;
		rec->writable = i % 2;
		rec->huge = i % 3 == 0;
		carry_out(s, import);
	}
}

static struct record_op map_op(const struct stage *s, uint64_t pages)
{
	return (struct record_op){
		.kind = PASID_BIND_MAP, .flags = PASID_MAP_READ, .buf = s->buf->buffer.id, .len = pages * PAGE};
}

static struct record_op unmap_op(uint64_t iova)
{
	return (struct record_op){.kind = PASID_BIND_UNMAP, .iova = iova, .len = PAGE};
}

/* Mappings whose middle goes: each costs one mapping more, so that slabs fill up in every way. */
static void split_mappings(struct stage *s)
{
	for (uint32_t i = 0; i < SPLITS; i++) {
		struct record *rec = request(s, RECORD_BIND);
		uint64_t iova;

		rec->n_ops = 1 + i % 2;
		rec->ops[0] = map_op(s, 3);
		rec->ops[1] = map_op(s, 1);
		carry_out(s, bind_list);
		iova = rec->ops[0].iova;
		rec = request(s, RECORD_BIND);
		rec->n_ops = 1;
		rec->ops[0] = unmap_op(iova + PAGE);
		carry_out(s, bind_list);
		if (i % 7)
			continue;
		rec = request(s, RECORD_BIND);
		rec->n_ops = 4;
		rec->ops[0] = map_op(s, 4);
		rec->ops[1] = unmap_op(iova);
		rec->ops[2] = map_op(s, 1);
		rec->ops[2].flags |= PASID_MAP_FIXED;
		rec->ops[2].iova = iova;
		rec->ops[3] = map_op(s, 2);
		carry_out(s, bind_list);
	}
}

static void submit_jobs(struct stage *s)
{
	for (uint32_t i = 0; i < JOBS; i++) {
		struct record *rec = request(s, RECORD_SUBMIT);

		rec->iova = 0x10000;
		rec->len = 64;
		carry_out(s, submit);
	}
}

/* Everything goes, without a byte of memory to be had. */
static void end(struct stage *s)
{
	struct client *c;

	arm(0);
	while ((c = books_next_client(s->books, NULL))) {
		struct context *ctx, *next;
		struct buffer_entry *e;

		TAILQ_FOREACH_SAFE (ctx, &c->contexts, in_client, next) {
			books_jobs_done(ctx, ctx->submitted / 2);
			books_ctx_lost(s->books, ctx);
			while (books_ctx_clear_some(s->books, ctx, NULL, NULL))
				;
			books_ctx_free(s->books, ctx);
		}
		while ((e = TAILQ_FIRST(&c->all_buffers))) {
			struct record rec = {.kind = RECORD_BUF_FREE, .client = c->id, .buf = e->buffer.id};
			struct refusal why = {0};

			assert_int_equal(books_buf_free(s->books, &rec, &why), 0);
			books_buf_gone(s->books, e);
		}
		books_client_close(s->books, c);
	}
	s->books = books_free(s->books);
	memory.armed = false;
	assert_int_equal(memory.asked, 0);
}

/* Tells the story up to its end; the dump of what it has led to. */
static char *tell(bool failing, unsigned int *refusals)
{
	struct stage s;
	char *text;

	begin(&s, failing);
	open_clients(&s);
	for (uint32_t device = 0; device < 2; device++) {
		make_contexts(&s, device);
		import_buffers(&s, device);
		split_mappings(&s);
		submit_jobs(&s);
	}
	*refusals = s.refusals;
	text = dump(s.books);
	refuse_strangers(&s);
	end(&s);
	return text;
}

static void test_verbs(void **state)
{
	unsigned int none, refusals;
	char *smooth = tell(false, &none);
	char *rough = tell(true, &refusals);

	assert_string_equal(rough, smooth);
	assert_int_equal(none, 0);
	print_message("%u refusals\n", refusals);
	assert_true(refusals > 3 * CLIENTS + 2 * CONTEXTS + BUFFERS + 4 * SPLITS);
	free(smooth);
	free(rough);
}

/* ---- before there is any client ---- */

static void test_setting_up(void **state)
{
	static const struct limit_policy policy = {0};
	struct device_traits t = {.name = "x", .pasid_bits = 8, .asid_bits = 8, .global = true};
	struct device_books *d = NULL;
	struct books *b = NULL;
	unsigned int n;
	int r;

	for (n = 1, r = -1; r < 0; n++) {
		arm(n);
		r = books_new(&b, &policy, unused, NULL);
		memory.armed = false;
		assert_int_equal(r, memory.asked < n ? 0 : -ENOMEM);
	}
	assert_true(n > 3);
	for (n = 1, r = -1; r < 0; n++) {
		arm(n);
		r = books_add_device(b, &t, &d);
		memory.armed = false;
		assert_int_equal(r, memory.asked < n ? 0 : -ENOMEM);
		assert_int_equal(books_n_devices(b), r == 0);
	}
	assert_true(n > 4);
	arm(0);
	books_free(b);
	memory.armed = false;
	assert_int_equal(memory.asked, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verbs),
		cmocka_unit_test(test_setting_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
