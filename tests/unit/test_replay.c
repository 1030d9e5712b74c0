/* SPDX-License-Identifier: MIT */
/*
 * Books rebuilt from records. Random verbs write a stream of records; fresh books are rebuilt from it, cut after any
 * record, and must show what the first ones showed there. A verb that is open at the cut is undone if it can be
 * (IMPORT, CTX_NEW) and else carried through.
 */
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

#include "unit/books_dump.h"
#include "unit/books_rig_check.h"

#define ROUNDS 12
#define STEPS 150
#define RECORDS 2048

/* A record as it stands in a journal, and what books show that were rebuilt up to it. */
struct entry {
	enum record_phase phase;
	struct record *rec;
	char *shows; /* NULL: other verbs are open, so that nothing can be said */
};

struct journal {
	struct entry entry[RECORDS];
	size_t n;
};

static size_t record_size(const struct record *rec)
{
	return sizeof(*rec) + rec->n_ops * sizeof(rec->ops[0]);
}

static struct record *record_copy(const struct record *rec)
{
	struct record *copy = malloc(record_size(rec));

	assert_non_null(copy);
	return memcpy(copy, rec, record_size(rec));
}

static bool undoable(const struct record *rec)
{
	return rec->kind == RECORD_IMPORT || rec->kind == RECORD_CTX_NEW;
}

/* Whether the record of entry i was still open after it, when `rec` ends one. */
static bool opened_by(const struct entry *e, const struct record *rec)
{
	return e->phase == RECORD_INTENT && e->rec->kind == rec->kind && e->rec->client == rec->client;
}

/* An intent says what its end makes of it: what the commit says if it rolls forward, else what the undo says. */
static void settle_intent(struct journal *j, const struct entry *end)
{
	struct entry *e = &j->entry[j->n - 2];

	if (j->n < 2 || e->shows || !opened_by(e, end->rec) || !end->shows)
		return;
	if (end->phase == RECORD_UNDO || !undoable(end->rec))
		e->shows = strdup(end->shows);
}

static void on_record(struct rig *g, enum record_phase phase, const struct record *rec, bool after)
{
	struct journal *j = g->arg;
	struct entry *e = &j->entry[j->n++];

	assert_true(j->n < RECORDS);
	e->phase = phase;
	e->rec = record_copy(rec);
	e->shows = after && !g->open_binds ? dump(g->books) : NULL;
	if (phase != RECORD_INTENT)
		settle_intent(j, e);
}

static void unused_waits(void *arg, struct buffer_entry *e)
{
	assert_true(!e->buffer.named && !e->buffer.uses);
}

static void apply(struct books *b, enum record_phase phase, const struct record *rec)
{
	struct record *copy = record_copy(rec);

	assert_int_equal(books_replay(b, phase, copy), 0);
	assert_memory_equal(copy, rec, record_size(rec)); /* everything was chosen */
	free(copy);
}

/* What a successor does about a verb that was open when its predecessor died. */
static void resolve(struct books *b, const struct journal *j, size_t cut)
{
	const struct entry *e = &j->entry[cut - 1];

	if (e->phase == RECORD_INTENT && undoable(e->rec))
		apply(b, RECORD_UNDO, e->rec);
}

static void empty(struct books *b)
{
	struct client *c;
	struct context *ctx;
	struct buffer_entry *e;

	while ((c = books_next_client(b, NULL))) {
		while ((ctx = TAILQ_FIRST(&c->contexts)))
			books_ctx_free(b, ctx);
		while ((e = TAILQ_FIRST(&c->all_buffers))) {
			struct record rec = {.kind = RECORD_BUF_FREE, .client = c->id, .buf = e->buffer.id};
			struct refusal why;

			if (e->buffer.named)
				assert_int_equal(books_buf_free(b, &rec, &why), 0);
			books_buf_gone(b, e);
		}
		books_client_close(b, c);
	}
	assert_int_equal(ledger_total_bytes(books_ledger(b)), 0);
}

/* Returns 1 if there was something to compare. */
static int rebuild(const struct rig *g, const struct journal *j, size_t cut)
{
	struct device_books *dev[RIG_DEVICES];
	const char *expect = cut ? j->entry[cut - 1].shows : NULL;
	struct books *b;
	char *shows;

	assert_int_equal(books_new(&b, &g->policy, unused_waits, NULL), 0);
	rig_devices(b, dev);
	for (size_t i = 0; i < cut; i++)
		apply(b, j->entry[i].phase, j->entry[i].rec);
	if (cut)
		resolve(b, j, cut);
	shows = dump(b);
	if (expect)
		assert_string_equal(shows, expect);
	free(shows);
	empty(b);
	books_free(b);
	return expect != NULL;
}

static void journal_clear(struct journal *j)
{
	for (size_t i = 0; i < j->n; i++) {
		free(j->entry[i].rec);
		free(j->entry[i].shows);
	}
	memset(j, 0, sizeof(*j));
}

static void test_cut_anywhere(void **state)
{
	static struct journal j;
	uint64_t seed = rng_seed();

	for (int i = 0; i < ROUNDS; i++) {
		size_t compared = 0;
		struct rig g;

		rng.s = (seed + (uint64_t)i) | UINT64_C(1) << 40;
		rng_say(seed + (uint64_t)i);
		rig_init(&g);
		g.record = on_record;
		g.arg = &j;
		for (int k = 0; k < STEPS; k++)
			rig_step(&g);
		rig_end(&g);
		for (size_t cut = 0; cut <= j.n; cut++)
			compared += (size_t)rebuild(&g, &j, cut);
		assert_true(compared > j.n / 4);
		journal_clear(&j);
	}
}

/* ---- records that cannot be ---- */

struct bench {
	struct books *b;
	struct limit_policy policy;
	struct device_books *dev[RIG_DEVICES];
};

static struct record op(uint32_t kind, uint32_t client)
{
	return (struct record){.kind = kind, .client = client};
}

static void replay(struct bench *s, enum record_phase phase, struct record rec, int expect)
{
	char *before = dump(s->b), *after;

	assert_int_equal(books_replay(s->b, phase, &rec), expect);
	after = dump(s->b);
	if (expect < 0)
		assert_string_equal(after, before);
	free(before);
	free(after);
}

static struct record import_of(uint32_t client, uint32_t buf, uint64_t bus, uint64_t size)
{
	struct record r = op(RECORD_IMPORT, client);

	r.buf = buf;
	r.bus = bus;
	r.size = size;
	return r;
}

static struct record context_of(uint32_t client, uint32_t ctx, uint32_t pasid, uint32_t asid, uint32_t line)
{
	struct record r = op(RECORD_CTX_NEW, client);

	r.ctx = ctx;
	r.pasid = pasid;
	r.asid = asid;
	r.line = line;
	return r;
}

static void refuse_imports(struct bench *s)
{
	struct record r = import_of(1, 3, RIG_BUS, PAGE);

	replay(s, RECORD_INTENT, r, 0);
	replay(s, RECORD_INTENT, r, -EEXIST);
	r.buf = 4; /* the same bus address */
	replay(s, RECORD_INTENT, r, -EEXIST);
	r.device = 2;
	replay(s, RECORD_INTENT, r, -EINVAL);
	replay(s, RECORD_INTENT, import_of(1, 4, RIG_BUS - PAGE, 2 * PAGE), -EEXIST);
	replay(s, RECORD_INTENT, import_of(1, 4, -PAGE, 2 * PAGE), -EEXIST);
	replay(s, RECORD_INTENT, import_of(1, 0, RIG_BUS + PAGE, PAGE), -EINVAL);
	replay(s, RECORD_INTENT, import_of(1, 4, 0, PAGE), -EINVAL);
	replay(s, RECORD_INTENT, import_of(2, 4, RIG_BUS + PAGE, PAGE), -ENOENT);
	r = op(RECORD_BUF_GONE, 1);
	r.buf = 3; /* it is named */
	replay(s, RECORD_INTENT, r, -ENOENT);
	replay(s, RECORD_INTENT, op(RECORD_CLIENT_CLOSE, 1), -EBUSY);
}

static void refuse_contexts(struct bench *s)
{
	struct record r = context_of(1, 5, 1, 1, 1);

	replay(s, RECORD_INTENT, r, 0);
	replay(s, RECORD_INTENT, r, -EEXIST);
	replay(s, RECORD_INTENT, context_of(1, 6, 1, 2, 2), -EDQUOT);
	replay(s, RECORD_INTENT, context_of(1, 6, 2, 1, 2), -EDQUOT);
	replay(s, RECORD_INTENT, context_of(1, 6, 2, 2, 1), -EDQUOT);
	replay(s, RECORD_INTENT, context_of(1, 6, 2, 2, 999), -EDQUOT);
	replay(s, RECORD_INTENT, context_of(1, 6, 99, 2, 2), -EDQUOT);
	replay(s, RECORD_INTENT, context_of(1, 0, 2, 2, 2), -EINVAL);
	replay(s, RECORD_INTENT, context_of(1, 6, 0, 2, 2), -EINVAL);
	replay(s, RECORD_INTENT, context_of(1, 6, 2, 0, 2), -EINVAL);
	replay(s, RECORD_INTENT, context_of(1, 6, 2, 2, 0), -EINVAL);
	r = context_of(1, 6, 2, 2, 2);
	r.device = 1; /* whose only ASID is 1 */
	replay(s, RECORD_INTENT, r, -EINVAL);
	r.device = 2;
	replay(s, RECORD_INTENT, r, -EINVAL);
}

static void refuse_work(struct bench *s)
{
	struct record r = op(RECORD_SUBMIT, 1);

	r.ctx = 5;
	r.iova = RIG_IOVA;
	r.len = 8;
	r.job = 2;
	replay(s, RECORD_INTENT, r, -EINVAL);
	r.job = 1;
	replay(s, RECORD_INTENT, r, 0);
	replay(s, RECORD_INTENT, r, -EINVAL);
	r.kind = RECORD_JOBS_DONE;
	r.job = 2;
	replay(s, RECORD_INTENT, r, -EINVAL);
	r.kind = RECORD_BIND;
	r.n_ops = PASID_BIND_MAX + 1;
	replay(s, RECORD_INTENT, r, -EINVAL);
	r.ctx = 6;
	for (uint32_t kind = RECORD_BIND; kind <= RECORD_CTX_LOST; kind++) {
		r.kind = kind;
		replay(s, RECORD_INTENT, r, -ENOENT);
	}
	r.ctx = 5; /* not of client 7, who is not there either */
	r.client = 7;
	r.kind = RECORD_CTX_FREE;
	replay(s, RECORD_INTENT, r, -ENOENT);
}

static void test_refused(void **state)
{
	struct bench s = {0};
	struct record r = op(RECORD_CLIENT_OPEN, 1);

	rig_policy(&s.policy);
	assert_int_equal(books_new(&s.b, &s.policy, unused_waits, NULL), 0);
	rig_devices(s.b, s.dev);
	replay(&s, RECORD_INTENT, op(RECORD_CLIENT_OPEN, 0), -EINVAL);
	replay(&s, RECORD_INTENT, r, 0);
	replay(&s, RECORD_INTENT, r, -EEXIST);
	for (uint32_t kind = 0; kind <= RECORD_BUF_GONE + 1; kind++)
		if (kind != RECORD_CLIENT_OPEN)
			replay(&s, RECORD_INTENT, op(kind, 9), -ENOENT);
	refuse_imports(&s);
	refuse_contexts(&s);
	refuse_work(&s);
	r = context_of(1, 5, 0, 0, 0);
	r.kind = 77;
	replay(&s, RECORD_INTENT, r, -EINVAL);
	replay(&s, RECORD_UNDO, r, -EINVAL);
	replay(&s, RECORD_UNDO, op(RECORD_CTX_NEW, 1), -ENOENT);
	replay(&s, RECORD_UNDO, op(RECORD_IMPORT, 9), -ENOENT);
	replay(&s, (enum record_phase)3, r, -EINVAL);
	empty(s.b);
	books_free(s.b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_anywhere),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
