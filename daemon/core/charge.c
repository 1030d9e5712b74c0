/* SPDX-License-Identifier: MIT */
/*
 * Accounts: one per connection, one per uid, one total. What always holds: a uid's use of a resource is the sum over
 * its connections (PASID_RES_CONNECTIONS: their number), the total is the sum of PASID_RES_BYTES over all uids, and no
 * use is above its limit. A taking checks all three before it changes any.
 *
 * The account of a uid outlives its last connection for a while, or connecting again would refill its message rate.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "core/charge.h"

#define NS_PER_SEC UINT64_C(1000000000)
#define IDLE_UIDS_MAX 64u /* a bound for memory; someone who changes uid this often has root anyway */

/* Credit is in billionths of a message, so that a nanosecond earns exactly `rate` of them and nothing is rounded. */
struct bucket {
	uint64_t rate; /* messages a second; above NS_PER_SEC: no limit */
	uint64_t credit;
	uint64_t last_ns;
};

struct uid_account {
	uid_t uid;
	const struct limits *limits;
	uint64_t used[PASID_RES_COUNT];
	struct bucket bucket;
	TAILQ_ENTRY(uid_account) link; /* on ledger.busy, or on ledger.idle if it has no connection */
};

TAILQ_HEAD(uid_list, uid_account);

struct ledger {
	struct limit_policy policy;
	uint64_t total_bytes;
	struct uid_list busy;
	struct uid_list idle; /* oldest first */
	unsigned int n_idle;
	bool lenient; /* ledger_lenient() */
};

struct account {
	struct ledger *ledger;
	struct uid_account *uid;
	uint64_t used[PASID_RES_COUNT];
	struct bucket bucket;
};

static struct bucket bucket_full(uint64_t rate)
{
	return (struct bucket){.rate = rate, .credit = rate > NS_PER_SEC ? 0 : rate * NS_PER_SEC};
}

/* Earns what is due by now_ns; returns how long until a message may pass, 0 for at once. */
static uint64_t bucket_wait(struct bucket *b, uint64_t now_ns)
{
	uint64_t full, elapsed;

	if (b->rate > NS_PER_SEC)
		return 0;
	if (b->rate == 0)
		return NS_PER_SEC;

	full = b->rate * NS_PER_SEC; /* <= 10^18 */
	elapsed = now_ns > b->last_ns ? now_ns - b->last_ns : 0;
	if (elapsed >= NS_PER_SEC || elapsed * b->rate >= full - b->credit)
		b->credit = full;
	else
		b->credit += elapsed * b->rate;
	b->last_ns += elapsed;
	return b->credit >= NS_PER_SEC ? 0 : (NS_PER_SEC - b->credit + b->rate - 1) / b->rate;
}

static void bucket_pay(struct bucket *b)
{
	if (b->rate <= NS_PER_SEC)
		b->credit -= NS_PER_SEC;
}

static const struct limits *limits_of(const struct ledger *l, uid_t uid)
{
	for (uint32_t i = 0; i < l->policy.n_uids; i++)
		if (l->policy.uids[i].uid == uid)
			return &l->policy.uids[i].limits;
	return &l->policy.uid;
}

static struct uid_account *uid_find(struct uid_list *list, uid_t uid)
{
	struct uid_account *u;

	TAILQ_FOREACH (u, list, link)
		if (u->uid == uid)
			break;
	return u;
}

/* The account of a uid, on the list of busy ones; NULL: no memory. */
static struct uid_account *uid_get(struct ledger *l, uid_t uid)
{
	struct uid_account *u = uid_find(&l->busy, uid);

	if (u)
		return u;
	u = uid_find(&l->idle, uid);
	if (u) {
		TAILQ_REMOVE(&l->idle, u, link);
		l->n_idle--;
	} else {
		u = calloc(1, sizeof(*u));
		if (!u)
			return NULL;
		u->uid = uid;
		u->limits = limits_of(l, uid);
		u->bucket = bucket_full(u->limits->v[PASID_RES_RATE]);
	}
	TAILQ_INSERT_TAIL(&l->busy, u, link);
	return u;
}

/* Puts a uid without connections aside, and forgets the one that has been there longest if they are too many. */
static void uid_put(struct ledger *l, struct uid_account *u)
{
	if (u->used[PASID_RES_CONNECTIONS] > 0)
		return;
	TAILQ_REMOVE(&l->busy, u, link);
	TAILQ_INSERT_TAIL(&l->idle, u, link);
	if (++l->n_idle <= IDLE_UIDS_MAX)
		return;
	u = TAILQ_FIRST(&l->idle);
	TAILQ_REMOVE(&l->idle, u, link);
	l->n_idle--;
	free(u);
}

int ledger_new(struct ledger **ret, const struct limit_policy *policy)
{
	struct ledger *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	l->policy = *policy;
	TAILQ_INIT(&l->busy);
	TAILQ_INIT(&l->idle);
	*ret = l;
	return 0;
}

void ledger_lenient(struct ledger *l, bool lenient)
{
	l->lenient = lenient;
}

struct ledger *ledger_free(struct ledger *l)
{
	if (!l)
		return NULL;
	assert(TAILQ_EMPTY(&l->busy));
	assert(l->total_bytes == 0);
	for (;;) {
		struct uid_account *u = TAILQ_FIRST(&l->idle);

		if (!u)
			break;
		TAILQ_REMOVE(&l->idle, u, link);
		free(u);
	}
	free(l);
	return NULL;
}

/* Whether amount more fits. A limit of UINT64_MAX is none, and still the end of what can be counted. */
static bool fits(const struct ledger *l, uint64_t used, uint64_t amount, uint64_t limit)
{
	if (l->lenient)
		limit = UINT64_MAX;
	return used <= limit && amount <= limit - used;
}

int account_open(struct ledger *l, uid_t uid, struct account **ret, struct refusal *why)
{
	struct uid_account *u = uid_get(l, uid);
	struct account *a;
	uint64_t used, limit;

	if (!u)
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	used = u->used[PASID_RES_CONNECTIONS];
	limit = u->limits->v[PASID_RES_CONNECTIONS];
	if (!fits(l, used, 1, limit)) {
		uid_put(l, u);
		return refuse(why, PASID_WHY_QUOTA_UID + PASID_RES_CONNECTIONS, used, limit);
	}
	a = calloc(1, sizeof(*a));
	if (!a) {
		uid_put(l, u);
		return refuse(why, PASID_WHY_QUOTA_MEMORY, 0, 0);
	}
	a->ledger = l;
	a->uid = u;
	a->bucket = bucket_full(l->policy.connection.v[PASID_RES_RATE]);
	u->used[PASID_RES_CONNECTIONS]++;
	*ret = a;
	return 0;
}

struct account *account_close(struct account *a)
{
	if (!a)
		return NULL;
	for (unsigned int i = 0; i < PASID_RES_COUNT; i++)
		assert(a->used[i] == 0);
	a->uid->used[PASID_RES_CONNECTIONS]--;
	uid_put(a->ledger, a->uid);
	free(a);
	return NULL;
}

int charge_take(struct charge *c, struct account *a, uint32_t resource, uint64_t amount, struct refusal *why)
{
	const struct limits *connection = &a->ledger->policy.connection;
	struct uid_account *u = a->uid;
	uint64_t total = resource == PASID_RES_BYTES ? amount : 0;

	assert(resource < PASID_RES_COUNT && resource != PASID_RES_RATE && resource != PASID_RES_CONNECTIONS);
	assert(!c->account || (c->account == a && c->resource == resource));

	if (!fits(a->ledger, a->used[resource], amount, connection->v[resource]))
		return refuse(why, PASID_WHY_QUOTA_CONNECTION + resource, a->used[resource], connection->v[resource]);
	if (!fits(a->ledger, u->used[resource], amount, u->limits->v[resource]))
		return refuse(why, PASID_WHY_QUOTA_UID + resource, u->used[resource], u->limits->v[resource]);
	if (total > 0 && !fits(a->ledger, a->ledger->total_bytes, total, a->ledger->policy.total_bytes))
		return refuse(why, PASID_WHY_QUOTA_TOTAL, a->ledger->total_bytes, a->ledger->policy.total_bytes);
	if (amount == 0)
		return 0;

	a->used[resource] += amount;
	u->used[resource] += amount;
	a->ledger->total_bytes += total;
	*c = (struct charge){.account = a, .resource = resource, .amount = c->account ? c->amount + amount : amount};
	return 0;
}

void charge_return(struct charge *c, uint64_t amount)
{
	struct account *a = c->account;

	if (amount == 0)
		return;
	assert(a && amount <= c->amount);
	a->used[c->resource] -= amount;
	a->uid->used[c->resource] -= amount;
	if (c->resource == PASID_RES_BYTES)
		a->ledger->total_bytes -= amount;
	c->amount -= amount;
	if (c->amount == 0)
		*c = (struct charge){0};
}

void charge_return_all(struct charge *c)
{
	if (c->account)
		charge_return(c, c->amount);
}

uint64_t account_used(const struct account *a, uint32_t resource)
{
	assert(resource < PASID_RES_COUNT);
	return a->used[resource];
}

uint64_t account_uid_used(const struct account *a, uint32_t resource)
{
	assert(resource < PASID_RES_COUNT);
	return a->uid->used[resource];
}

uint64_t ledger_total_bytes(const struct ledger *l)
{
	return l->total_bytes;
}

uint64_t account_rate(struct account *a, uint64_t now_ns)
{
	uint64_t mine = bucket_wait(&a->bucket, now_ns);
	uint64_t of_uid = bucket_wait(&a->uid->bucket, now_ns);

	if (mine > 0 || of_uid > 0)
		return mine > of_uid ? mine : of_uid;
	bucket_pay(&a->bucket);
	bucket_pay(&a->uid->bucket);
	return 0;
}

static void set_limits(struct ledger *l, struct uid_list *list)
{
	struct uid_account *u;

	TAILQ_FOREACH (u, list, link) {
		u->limits = limits_of(l, u->uid);
		if (u->bucket.rate != u->limits->v[PASID_RES_RATE])
			u->bucket = bucket_full(u->limits->v[PASID_RES_RATE]);
	}
}

void ledger_set_policy(struct ledger *l, const struct limit_policy *policy)
{
	l->policy = *policy;
	set_limits(l, &l->busy);
	set_limits(l, &l->idle);
}
