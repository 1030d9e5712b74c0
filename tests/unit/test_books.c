/* SPDX-License-Identifier: MIT */
/* The books against a model, with random verbs: private and `global` contexts, and limits that are hit all the time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "unit/random.h"

#define check(c) assert_true(c)

static struct rng rng;

static uint32_t draw(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

#include "unit/books_rig_check.h"

#define ROUNDS 60
#define STEPS 400

static void test_random(void **state)
{
	uint64_t seed = rng_seed();

	for (int i = 0; i < ROUNDS; i++) {
		struct rig g;

		rng.s = (seed + (uint64_t)i) | UINT64_C(1) << 40;
		rng_say(seed + (uint64_t)i);
		rig_init(&g);
		for (int k = 0; k < STEPS; k++)
			rig_step(&g);
		rig_end(&g);
	}
}

static void test_devices(void **state)
{
	struct device_traits t = {.name = "x", .pasid_bits = 4, .asid_bits = 4};
	struct limit_policy policy = {0};
	struct device_books *d, *first;
	struct books *b;

	assert_int_equal(books_new(&b, &policy, NULL, NULL), 0);
	assert_null(books_device(b, ""));
	assert_null(books_device_at(b, 0));
	assert_int_equal(books_add_device(b, &t, &first), 0);
	t.name = "y";
	for (int i = 1; i < 64; i++)
		assert_int_equal(books_add_device(b, &t, &d), 0);
	assert_int_equal(books_add_device(b, &t, &d), -ENOSPC);
	assert_int_equal(books_n_devices(b), 64);
	assert_ptr_equal(books_device(b, ""), first);
	assert_ptr_equal(books_device(b, "x"), first);
	assert_ptr_equal(books_device(b, "y"), books_device_at(b, 1));
	assert_null(books_device(b, "z"));
	assert_null(books_free(b));
	assert_null(books_free(NULL));
}

/* Books with one device, and a client of it. */
struct small {
	struct books *b;
	struct device_books *d;
	struct client *c;
};

static void small_init(struct small *s, const struct device_traits *t)
{
	struct limit_policy policy = {.connection.v = {9}, .uid.v = {9, [PASID_RES_CONNECTIONS] = 1}};
	struct record open = {.kind = RECORD_CLIENT_OPEN};
	struct refusal why = {0};

	assert_int_equal(books_new(&s->b, &policy, NULL, NULL), 0);
	assert_int_equal(books_add_device(s->b, t, &s->d), 0);
	assert_int_equal(books_client_open(s->b, &open, &why, &s->c), 0);
}

static int small_ctx_new(struct small *s, struct refusal *why, struct context **ret)
{
	struct record rec = {.kind = RECORD_CTX_NEW, .client = s->c->id};

	return books_ctx_new(s->b, &rec, why, ret);
}

static void small_fini(struct small *s)
{
	struct context *ctx, *next;

	TAILQ_FOREACH_SAFE (ctx, &s->c->contexts, in_client, next)
		books_ctx_free(s->b, ctx);
	books_client_close(s->b, s->c);
	books_free(s->b);
}

/* A device whose numbers are used up says how many of which kind there are. */
static void test_ids_exhausted(void **state)
{
	static const struct {
		bool global;
		unsigned int pasid_bits, asid_bits;
		uint64_t room;
	} v[] = {{false, 3, 2, 3}, {false, 2, 3, 3}, {true, 2, 1, 3}};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		struct device_traits t = {.name = "x",
					  .global = v[i].global,
					  .pasid_bits = v[i].pasid_bits,
					  .asid_bits = v[i].asid_bits,
					  .iova = {0, 0xfff}};
		struct refusal why = {0};
		struct context *ctx;
		struct small s;

		small_init(&s, &t);
		for (uint64_t k = 0; k < v[i].room; k++)
			assert_int_equal(small_ctx_new(&s, &why, &ctx), 0);
		assert_int_equal(small_ctx_new(&s, &why, &ctx), -EDQUOT);
		assert_int_equal(why.reason, PASID_WHY_QUOTA_IDS);
		assert_int_equal(why.n1, v[i].room);
		assert_int_equal(why.n2, v[i].room);
		small_fini(&s);
	}
}

/* A PASID or ASID that the device was told of comes back only after all that it never heard of. */
static void test_ids_come_back_last(void **state)
{
	static const struct {
		bool pasid, asid; /* told */
		uint32_t next_pasid, next_asid;
	} v[] = {{false, false, 1, 1}, {true, false, 2, 1}, {false, true, 1, 2}, {true, true, 2, 2}};
	static const struct device_traits t = {.name = "x", .pasid_bits = 2, .asid_bits = 2, .iova = {0, 0xfff}};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		struct refusal why = {0};
		struct context *ctx;
		struct small s;

		small_init(&s, &t);
		assert_int_equal(small_ctx_new(&s, &why, &ctx), 0);
		if (v[i].pasid)
			ids_installed(s.d->pasids, ctx->pasid);
		if (v[i].asid)
			ids_installed(s.d->asids, ctx->asid);
		books_ctx_free(s.b, ctx);
		assert_int_equal(small_ctx_new(&s, &why, &ctx), 0);
		assert_int_equal(ctx->pasid, v[i].next_pasid);
		assert_int_equal(ctx->asid, v[i].next_asid);
		small_fini(&s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_devices),
		cmocka_unit_test(test_ids_exhausted),
		cmocka_unit_test(test_ids_come_back_last),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
