/* SPDX-License-Identifier: MIT */
/* Charges against plain sums, with random operations; the numbers of each refusal; the message rate as arithmetic. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/charge.h"
#include "random.h"

#define SEC UINT64_C(1000000000)

static struct rng rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

static struct limits all_limits(uint64_t v)
{
	struct limits l;

	for (unsigned int i = 0; i < PASID_RES_COUNT; i++)
		l.v[i] = v;
	return l;
}

static struct limit_policy no_limits(void)
{
	return (struct limit_policy){
		.connection = all_limits(UINT64_MAX), .uid = all_limits(UINT64_MAX), .total_bytes = UINT64_MAX};
}

static struct ledger *ledger_of(const struct limit_policy *p)
{
	struct ledger *l = NULL;

	assert_int_equal(ledger_new(&l, p), 0);
	return l;
}

static struct account *open_as(struct ledger *l, uid_t uid)
{
	struct refusal why = {0};
	struct account *a = NULL;

	assert_int_equal(account_open(l, uid, &a, &why), 0);
	assert_int_equal(why.reason, 0);
	return a;
}

static void expect_refused(struct charge *c, struct account *a, uint32_t res, uint64_t amount, uint32_t reason,
			   uint64_t used, uint64_t limit)
{
	struct refusal why = {.index = 42};
	struct charge before = *c;
	uint64_t mine = account_used(a, res), of_uid = account_uid_used(a, res);

	assert_int_equal(charge_take(c, a, res, amount, &why), -EDQUOT);
	assert_int_equal(why.reason, reason);
	assert_int_equal(why.n1, used);
	assert_int_equal(why.n2, limit);
	assert_int_equal(why.index, 42);
	assert_ptr_equal(c->account, before.account);
	assert_int_equal(c->amount, before.amount);
	assert_int_equal(account_used(a, res), mine);
	assert_int_equal(account_uid_used(a, res), of_uid);
}

static void take(struct charge *c, struct account *a, uint32_t res, uint64_t amount)
{
	struct refusal why = {0};

	assert_int_equal(charge_take(c, a, res, amount, &why), 0);
}

static void test_refusals(void **state)
{
	struct limits special = all_limits(50);
	struct uid_limits uids[] = {{8, all_limits(0)}, {7, special}};
	struct limit_policy p = {
		.connection = all_limits(100), .uid = all_limits(150), .uids = uids, .n_uids = 2, .total_bytes = 170};
	struct ledger *l = ledger_of(&p);
	struct account *a = open_as(l, 1), *b = open_as(l, 1), *c = open_as(l, 7), *d = NULL;
	struct charge x = {0}, y = {0}, z = {0};
	struct refusal why = {0};

	(void)state;
	take(&x, a, PASID_RES_BYTES, 60);
	expect_refused(&x, a, PASID_RES_BYTES, 41, PASID_WHY_QUOTA_CONNECTION + PASID_RES_BYTES, 60, 100);
	take(&x, a, PASID_RES_BYTES, 40);
	assert_int_equal(x.amount, 100);
	expect_refused(&y, b, PASID_RES_BYTES, 51, PASID_WHY_QUOTA_UID + PASID_RES_BYTES, 100, 150);
	expect_refused(&y, b, PASID_RES_BYTES, UINT64_MAX, PASID_WHY_QUOTA_CONNECTION + PASID_RES_BYTES, 0, 100);
	take(&y, b, PASID_RES_BYTES, 50);
	expect_refused(&z, c, PASID_RES_BYTES, 21, PASID_WHY_QUOTA_TOTAL, 150, 170);
	take(&z, c, PASID_RES_BYTES, 20);
	expect_refused(&z, c, PASID_RES_BYTES, 31, PASID_WHY_QUOTA_UID + PASID_RES_BYTES, 20, 50);
	assert_int_equal(ledger_total_bytes(l), 170);

	/* a uid with no room for a connection */
	assert_int_equal(account_open(l, 8, &d, &why), -EDQUOT);
	assert_null(d);
	assert_int_equal(why.reason, PASID_WHY_QUOTA_UID + PASID_RES_CONNECTIONS);
	assert_int_equal(why.n1, 0);
	assert_int_equal(why.n2, 0);
	assert_int_equal(account_uid_used(a, PASID_RES_CONNECTIONS), 2);
	assert_int_equal(account_used(a, PASID_RES_CONNECTIONS), 0);

	charge_return(&x, 30);
	assert_int_equal(x.amount, 70);
	assert_int_equal(account_used(a, PASID_RES_BYTES), 70);
	charge_return_all(&x);
	assert_null(x.account);
	charge_return_all(&x);
	charge_return_all(&y);
	charge_return(&z, 20);
	assert_null(z.account);
	assert_int_equal(ledger_total_bytes(l), 0);
	assert_null(account_close(a));
	assert_null(account_close(b));
	assert_null(account_close(c));
	assert_null(account_close(NULL));
	assert_null(ledger_free(l));
	assert_null(ledger_free(NULL));
}

/* Without limits the counters' own end is one. */
static void test_no_wrap(void **state)
{
	struct limit_policy p = no_limits();
	struct ledger *l = ledger_of(&p);
	struct account *a = open_as(l, 1), *b = open_as(l, 1), *c = open_as(l, 2);
	struct charge x = {0}, y = {0}, z = {0};

	(void)state;
	take(&x, a, PASID_RES_BYTES, UINT64_MAX - 5);
	expect_refused(&x, a, PASID_RES_BYTES, 6, PASID_WHY_QUOTA_CONNECTION + PASID_RES_BYTES, UINT64_MAX - 5,
		       UINT64_MAX);
	expect_refused(&y, b, PASID_RES_BYTES, 6, PASID_WHY_QUOTA_UID + PASID_RES_BYTES, UINT64_MAX - 5, UINT64_MAX);
	expect_refused(&z, c, PASID_RES_BYTES, 6, PASID_WHY_QUOTA_TOTAL, UINT64_MAX - 5, UINT64_MAX);
	take(&z, c, PASID_RES_BYTES, 5);
	take(&z, c, PASID_RES_BYTES, 0);
	take(&y, b, PASID_RES_BYTES, 0);
	assert_null(y.account);
	charge_return(&y, 0);
	charge_return_all(&x);
	charge_return_all(&z);
	account_close(a);
	account_close(b);
	account_close(c);
	ledger_free(l);
}

#define UIDS 5
#define ACCOUNTS 12
#define CHARGES 200

static const uint32_t charged[] = {PASID_RES_CONTEXTS, PASID_RES_BUFFERS, PASID_RES_MAPPINGS, PASID_RES_BYTES,
				   PASID_RES_HUGE,     PASID_RES_TABLES,  PASID_RES_JOBS};

struct world {
	struct limit_policy policy;
	struct uid_limits uids[2];
	struct ledger *ledger;
	struct account *account[ACCOUNTS];
	uid_t uid[ACCOUNTS];
	struct charge charge[CHARGES];
	int of[CHARGES]; /* which account the charge is of, as the model knows it */
	uint32_t res[CHARGES];
	uint64_t amount[CHARGES];
};

static uint64_t model_used(const struct world *w, int account, uint32_t res)
{
	uint64_t n = 0;

	for (int i = 0; i < CHARGES; i++)
		if (w->of[i] == account && w->res[i] == res)
			n += w->amount[i];
	return n;
}

static uint64_t model_uid_used(const struct world *w, uid_t uid, uint32_t res)
{
	uint64_t n = 0;

	for (int i = 0; i < ACCOUNTS; i++)
		if (w->account[i] && w->uid[i] == uid)
			n += res == PASID_RES_CONNECTIONS ? 1 : model_used(w, i, res);
	return n;
}

static uint64_t model_limit(const struct world *w, uid_t uid, uint32_t res)
{
	for (unsigned int i = 0; i < w->policy.n_uids; i++)
		if (w->uids[i].uid == uid)
			return w->uids[i].limits.v[res];
	return w->policy.uid.v[res];
}

static uint64_t model_total(const struct world *w)
{
	uint64_t n = 0;

	for (int i = 0; i < ACCOUNTS; i++)
		n += model_used(w, i, PASID_RES_BYTES);
	return n;
}

static void step_open_close(struct world *w, int i)
{
	struct refusal why = {0};

	if (w->account[i]) {
		for (int k = 0; k < CHARGES; k++) {
			if (w->of[k] != i)
				continue;
			charge_return_all(&w->charge[k]);
			w->of[k] = -1;
			w->amount[k] = 0;
		}
		w->account[i] = account_close(w->account[i]);
		return;
	}
	w->uid[i] = rnd(UIDS);
	if (model_uid_used(w, w->uid[i], PASID_RES_CONNECTIONS) < model_limit(w, w->uid[i], PASID_RES_CONNECTIONS)) {
		w->account[i] = open_as(w->ledger, w->uid[i]);
		return;
	}
	assert_int_equal(account_open(w->ledger, w->uid[i], &w->account[i], &why), -EDQUOT);
	assert_int_equal(why.reason, PASID_WHY_QUOTA_UID + PASID_RES_CONNECTIONS);
	assert_null(w->account[i]);
}

static void step_take(struct world *w, int i, int k)
{
	uint32_t res = w->of[k] >= 0 ? w->res[k] : charged[rnd(sizeof(charged) / sizeof(charged[0]))];
	uint64_t n = rnd(40), used, limit;
	uint32_t reason = 0;

	if (w->of[k] >= 0)
		i = w->of[k];
	if (!w->account[i])
		return;
	if ((used = model_used(w, i, res)) + n > (limit = w->policy.connection.v[res]))
		reason = PASID_WHY_QUOTA_CONNECTION + res;
	else if ((used = model_uid_used(w, w->uid[i], res)) + n > (limit = model_limit(w, w->uid[i], res)))
		reason = PASID_WHY_QUOTA_UID + res;
	else if (res == PASID_RES_BYTES && (used = model_total(w)) + n > (limit = w->policy.total_bytes))
		reason = PASID_WHY_QUOTA_TOTAL;
	if (reason) {
		expect_refused(&w->charge[k], w->account[i], res, n, reason, used, limit);
		return;
	}
	take(&w->charge[k], w->account[i], res, n);
	if (n == 0)
		return;
	w->of[k] = i;
	w->res[k] = res;
	w->amount[k] += n;
}

static void step_return(struct world *w, int k)
{
	uint64_t n;

	if (w->of[k] < 0)
		return;
	n = 1 + rnd((uint32_t)w->amount[k]);
	charge_return(&w->charge[k], n);
	w->amount[k] -= n;
	if (w->amount[k] == 0)
		w->of[k] = -1;
	assert_int_equal(w->charge[k].amount, w->amount[k]);
	assert_int_equal(w->charge[k].account != NULL, w->amount[k] != 0);
}

static void check_world(const struct world *w)
{
	for (int i = 0; i < ACCOUNTS; i++) {
		for (uint32_t res = 0; w->account[i] && res < PASID_RES_COUNT; res++) {
			assert_int_equal(account_used(w->account[i], res), model_used(w, i, res));
			assert_int_equal(account_uid_used(w->account[i], res), model_uid_used(w, w->uid[i], res));
		}
	}
	assert_int_equal(ledger_total_bytes(w->ledger), model_total(w));
}

static void test_random(void **state)
{
	static struct world w;

	(void)state;
	w.policy = (struct limit_policy){
		.connection = all_limits(150), .uid = all_limits(250), .uids = w.uids, .n_uids = 2, .total_bytes = 400};
	w.policy.uid.v[PASID_RES_CONNECTIONS] = 3;
	w.uids[0] = (struct uid_limits){4, all_limits(1)};
	w.uids[1] = (struct uid_limits){2, all_limits(UINT64_MAX)};
	w.ledger = ledger_of(&w.policy);
	for (int k = 0; k < CHARGES; k++)
		w.of[k] = -1;
	for (int n = 0; n < 60000; n++) {
		uint32_t what = rnd(100);
		int i = (int)rnd(ACCOUNTS), k = (int)rnd(CHARGES);

		if (what < 2)
			step_open_close(&w, i);
		else if (what < 55)
			step_take(&w, i, k);
		else
			step_return(&w, k);
		if (n % 50 == 0)
			check_world(&w);
	}
	for (int i = 0; i < ACCOUNTS; i++)
		if (w.account[i])
			step_open_close(&w, i);
	assert_int_equal(ledger_total_bytes(w.ledger), 0);
	ledger_free(w.ledger);
}

static void test_rate(void **state)
{
	struct limit_policy p = no_limits();
	struct ledger *l;
	struct account *a, *b;
	uint64_t t = 77 * SEC;

	(void)state;
	p.connection.v[PASID_RES_RATE] = 3;
	p.uid.v[PASID_RES_RATE] = 4;
	l = ledger_of(&p);
	a = open_as(l, 1);
	b = open_as(l, 1);
	for (int i = 0; i < 3; i++)
		assert_int_equal(account_rate(a, t), 0);
	assert_int_equal(account_rate(a, t), 333333334); /* a third of a second, rounded up */
	assert_int_equal(account_rate(a, t + 333333333), 1);
	assert_int_equal(account_rate(b, t + 333333333), 0);
	assert_int_equal(account_rate(b, t + 333333333), 0); /* the uid had 4, and one and a third since */
	assert_int_equal(account_rate(b, t + 333333333), 166666667);
	assert_int_equal(account_rate(a, t + 333333334), 166666666); /* has credit itself, but the uid has none */
	assert_int_equal(account_rate(a, t + 500000000), 0);

	/* however long it was quiet: a second's worth, and no more */
	t += 1000000 * SEC;
	for (int i = 0; i < 3; i++)
		assert_int_equal(account_rate(a, t), 0);
	assert_int_not_equal(account_rate(a, t), 0);
	account_close(a);
	account_close(b);

	/* connecting again: a new connection's burst, but the uid's goes on */
	a = open_as(l, 1);
	assert_int_equal(account_rate(a, t), 0);
	assert_int_equal(account_rate(a, t), 250000000);
	account_close(a);
	ledger_free(l);
}

static void test_rate_ends(void **state)
{
	struct limit_policy p = no_limits();
	struct ledger *l;
	struct account *a;

	(void)state;
	l = ledger_of(&p);
	a = open_as(l, 1);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(account_rate(a, 0), 0);
	account_close(a);
	ledger_free(l);

	p.connection.v[PASID_RES_RATE] = 0;
	l = ledger_of(&p);
	a = open_as(l, 1);
	assert_int_equal(account_rate(a, 5 * SEC), SEC);
	assert_int_equal(account_rate(a, 500 * SEC), SEC);
	account_close(a);
	ledger_free(l);

	p.connection.v[PASID_RES_RATE] = SEC; /* the highest limit: no overflow near the end of time either */
	l = ledger_of(&p);
	a = open_as(l, 1);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(account_rate(a, UINT64_MAX - 1), 0);
	assert_int_equal(account_rate(a, UINT64_MAX), 0);
	account_close(a);
	ledger_free(l);
}

/* Any pattern of asking: since the start never more than a burst and what the time earned; waiting as told helps. */
static void test_rate_random(void **state)
{
	(void)state;
	for (int round = 0; round < 200; round++) {
		uint64_t rate = 1 + rnd(rnd(2) ? 10 : 100000), start = rnd(1000000), t = start, passed = 0;
		struct limit_policy p = no_limits();
		struct ledger *l;
		struct account *a;

		p.connection.v[PASID_RES_RATE] = rate;
		p.uid.v[PASID_RES_RATE] = rate + rnd(3);
		l = ledger_of(&p);
		a = open_as(l, 1);
		for (int i = 0; i < 2000; i++) {
			uint64_t wait = account_rate(a, t);

			passed += wait == 0;
			assert_true(passed <= rate + (t - start) * rate / SEC);
			if (wait && rnd(2)) {
				assert_int_not_equal(account_rate(a, t + wait - 1), 0);
				t += wait;
				assert_int_equal(account_rate(a, t), 0);
				passed++;
			} else if (rnd(4) == 0) {
				t += rnd((uint32_t)(2 * SEC / rate) + 2);
			}
		}
		account_close(a);
		ledger_free(l);
	}
}

/* Uids without a connection are remembered for a while, not for ever: this many leave nothing behind. */
static void test_many_uids(void **state)
{
	struct limit_policy p = no_limits();
	struct ledger *l = ledger_of(&p);

	(void)state;
	for (uid_t uid = 0; uid < 1000; uid++)
		account_close(open_as(l, uid % 300));
	ledger_free(l);
}

/* Other limits hold at once for whoever is there and whoever comes; what is held beyond them stays. */
static void test_other_limits(void **state)
{
	const struct uid_limits special = {.uid = 7, .limits = all_limits(3)};
	struct limit_policy p = no_limits();
	struct ledger *l = ledger_of(&p);
	struct account *a = open_as(l, 7), *b = open_as(l, 8);
	struct charge ca = {0}, cb = {0};

	take(&ca, a, PASID_RES_BUFFERS, 5);
	take(&cb, b, PASID_RES_BUFFERS, 5);
	p.uids = &special;
	p.n_uids = 1;
	p.connection.v[PASID_RES_BUFFERS] = 6;
	ledger_set_policy(l, &p);
	expect_refused(&ca, a, PASID_RES_BUFFERS, 1, PASID_WHY_QUOTA_UID + PASID_RES_BUFFERS, 5, 3);
	take(&cb, b, PASID_RES_BUFFERS, 1);
	expect_refused(&cb, b, PASID_RES_BUFFERS, 1, PASID_WHY_QUOTA_CONNECTION + PASID_RES_BUFFERS, 6, 6);
	charge_return(&ca, 3);
	take(&ca, a, PASID_RES_BUFFERS, 1);
	expect_refused(&ca, a, PASID_RES_BUFFERS, 1, PASID_WHY_QUOTA_UID + PASID_RES_BUFFERS, 3, 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(account_rate(a, SEC), 0);
	assert_true(account_rate(a, SEC) > 0);
	charge_return_all(&ca);
	charge_return_all(&cb);
	account_close(a);
	account_close(b);
	ledger_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refusals),  cmocka_unit_test(test_no_wrap),
		cmocka_unit_test(test_random),    cmocka_unit_test(test_rate),
		cmocka_unit_test(test_rate_ends), cmocka_unit_test(test_rate_random),
		cmocka_unit_test(test_many_uids), cmocka_unit_test(test_other_limits),
	};

	rng.s = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
