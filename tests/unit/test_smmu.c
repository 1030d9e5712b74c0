/* SPDX-License-Identifier: MIT */
/* The translator of an SMMUv3 on a transport of the test's own, behind which is the model of smmu_model.h. */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <pasid/pasid.h>

#include "base/util.h"
#include "pgtable_model.h"
#include "smmu_model.h"
#include "translator/smmu.h"
#include "translator/translator.h"
#include "transport/transport.h"

#define BUS UINT64_C(0x40000000)
#define PAGES 96u /* that a context may map */
#define CONTEXTS 12u
#define PASIDS 24u
#define COMMANDS_MOST 32u /* for ranges; more, and it is all of the ASID */

static uint64_t seed;

/* ---- what there is ---- */

struct config {
	unsigned int bits; /* of substreams */
	bool two_levels, ranges, asid16, repeat;
	unsigned int out_bits;
};

/* A context, as the rest of the daemon has it. */
struct context {
	uint32_t pasid, asid;
	uint64_t root;
	uint64_t base; /* number of its first page */
	uint64_t to[PAGES]; /* its tables; 0: nothing */
	bool lives; /* its tables are there */
	bool held; /* an install may have worked, and no remove has said 0 since */
	bool sure; /* an install said 0, and nothing has happened since */
	bool dirty; /* something was unmapped, and that is not known to be forgotten */
};

struct rig {
	const struct config *config;
	struct smmu_model m;
	struct smmu_traits traits;
	struct cdtable table;
	struct transport transport;
	struct translator device;
	struct translator *t;
	struct rng rng;
	struct context ctx[CONTEXTS];
	uint32_t pasids[PASIDS];
	unsigned int n_pasids;

	/* Calls of invalidate. From fail_at (1: the first; 0: none) on fail_for of them fail. */
	unsigned int calls, fail_at, fail_for, failed;
	int error;
	enum { NONE_DONE, ALL_DONE, HALF_DONE } done; /* of commands that fail */

	/* What the device's own translator is told. */
	unsigned int told, told_slot;
	uint32_t told_pasid;
	int tells;
};

static struct rig *of_transport(struct transport *t)
{
	return container_of(t, struct rig, transport);
}

static bool tagged(const struct rig *g)
{
	return g->config->bits != 0;
}

static uint64_t fresh(const struct context *c, uint64_t page)
{
	return page - c->base < PAGES ? c->to[page - c->base] : 0;
}

static struct context *by_root(struct rig *g, uint64_t root)
{
	for (unsigned int i = 0; i < CONTEXTS; i++)
		if (g->ctx[i].lives && g->ctx[i].root == root)
			return &g->ctx[i];
	return NULL;
}

/* An access of the device: through the TLB, else a walk, which the TLB keeps if it finds something. */
static struct smmu_model_found device_access(struct rig *g, uint32_t pasid, uint64_t page, uint64_t *to)
{
	struct smmu_model_found f = smmu_model_look(&g->m, tagged(g), pasid);
	const struct smmu_model_entry *e;
	const struct context *c;

	*to = 0;
	if (f.answer != SMMU_MODEL_TRANSLATES)
		return f;
	e = smmu_model_tlb_find(&g->m, f.asid, page);
	if (e) {
		*to = e->to;
		return f;
	}
	c = by_root(g, f.root);
	assert_non_null(c); /* else it walks freed memory */
	*to = fresh(c, page);
	if (*to)
		smmu_model_tlb_add(&g->m, f.asid, page, *to);
	return f;
}

/* What a device may do at any time: read every descriptor, and access something. */
static void hostile_moment(struct rig *g)
{
	for (unsigned int i = 0; i < g->n_pasids; i++) {
		uint32_t pasid = g->pasids[i];
		struct smmu_model_found f = smmu_model_look(&g->m, tagged(g), pasid);
		const struct context *c;
		uint64_t to;

		smmu_model_watch(&g->m, tagged(g), tagged(g) ? pasid : 0);
		c = f.answer == SMMU_MODEL_TRANSLATES ? by_root(g, f.root) : NULL;
		if (c)
			device_access(g, pasid, c->base + rng_below(&g->rng, PAGES), &to);
	}
	if (g->m.wrong)
		fail_msg("%s", g->m.wrong);
}

static int invalidate(struct transport *t, const struct transport_smmu_command *v, uint32_t n)
{
	struct rig *g = of_transport(t);
	bool fails = ++g->calls >= g->fail_at && g->fail_at && g->calls - g->fail_at < g->fail_for;
	uint32_t carried = !fails || g->done == ALL_DONE ? n : g->done == HALF_DONE ? n / 2 : 0;
	bool really;

	assert_in_range(n, 1, 64);
	hostile_moment(g);
	really = smmu_model_counts(&g->m, v, carried);
	for (uint32_t i = 0; i < carried; i++) {
		if (smmu_model_command(&g->m, v[i].word, really) < 0)
			fail_msg("refused: %016" PRIx64 " %016" PRIx64, v[i].word[0], v[i].word[1]);
		hostile_moment(g);
	}
	g->failed += fails;
	return fails ? g->error : 0;
}

static int device_install(struct translator *t, unsigned int slot, const struct translator_space *s)
{
	struct rig *g = container_of(t, struct rig, device);

	g->told++;
	g->told_slot = slot;
	g->told_pasid = s->pasid;
	return g->tells;
}

static const struct transport_nested_ops nested_ops = {.invalidate = invalidate};
static const struct transport_ops transport_ops = {.nested = &nested_ops};
static const struct translator_ops device_ops = {.install = device_install};

static struct transport_smmu registers(const struct config *c)
{
	static const unsigned int sizes[] = {32, 36, 40, 42, 44, 48, 52, 56};
	struct transport_smmu r = {.flags = c->repeat ? TRANSPORT_SMMU_REPEAT : 0};

	r.idr[0] = 2u << 2 | (uint32_t)c->asid16 << 12 | (uint32_t)c->two_levels << 19 | 2u << 21 | 1u << 24;
	r.idr[1] = c->bits << 6;
	r.idr[3] = (uint32_t)c->ranges << 10;
	r.idr[5] = 1u << 4;
	while (sizes[r.idr[5] & 7] != c->out_bits)
		r.idr[5]++;
	return r;
}

/* As a program that attaches a device does it. `memory` is where descriptors are to be; NULL: anywhere. */
static void rig_init(struct rig *g, const struct config *c, void *memory)
{
	const struct transport_smmu r = registers(c);
	uint64_t entry[2];
	const char *why;

	memset(g, 0, sizeof(*g));
	g->config = c;
	g->rng.s = seed;
	g->transport.ops = &transport_ops;
	g->device.ops = &device_ops;
	assert_null(smmu_judge(&r, &g->traits));
	g->m.bytes = cdtable_bytes(c->bits, c->two_levels);
	g->m.memory = memory ? memory : aligned_alloc(4096, g->m.bytes);
	assert_non_null(g->m.memory);
	g->table = (struct cdtable){
		.p = (void *)g->m.memory,
		.bus = BUS,
		.bits = c->bits,
		.two_levels = g->traits.two_levels,
		.address_bits = g->traits.address_bits,
	};
	memset(g->table.p, 0, g->m.bytes);
	g->m.out_bits = c->out_bits;
	g->m.substream_bits = c->bits;
	g->m.asid16 = c->asid16;
	g->m.two_levels = c->two_levels;
	g->m.ranges = c->ranges;
	g->m.twice = c->repeat;
	g->m.bus = BUS;
	smmu_model_init(&g->m);
	cdtable_entry(&g->table, entry);
	why = smmu_model_take_entry(&g->m, entry);
	if (why)
		fail_msg("%s", why);
	assert_int_equal(smmu_model_cdmax(&g->m), c->bits);
	assert_int_equal(smmu_new(&g->t, &g->transport, &g->traits, &g->table, c->bits ? &g->device : NULL), 0);
	if (!c->bits)
		g->pasids[g->n_pasids++] = 0;
}

static void rig_fini(struct rig *g)
{
	g->t = smmu_free(g->t);
	free(g->table.p);
	smmu_model_fini(&g->m);
}

static void watch(struct rig *g, uint32_t pasid)
{
	if (!tagged(g))
		return;
	for (unsigned int i = 0; i < g->n_pasids; i++)
		if (g->pasids[i] == pasid)
			return;
	assert_true(g->n_pasids < PASIDS);
	g->pasids[g->n_pasids++] = pasid;
}

/* ---- contexts ---- */

static struct translator_space space_of(const struct context *c)
{
	return (struct translator_space){.pasid = c->pasid, .asid = c->asid, .root = c->root};
}

static struct context *context_begin(struct rig *g, unsigned int i, uint32_t pasid, uint32_t asid)
{
	struct context *c = &g->ctx[i];
	unsigned int out = g->config->out_bits > 48 ? 48 : g->config->out_bits;

	assert_false(c->lives);
	*c = (struct context){.pasid = pasid, .asid = asid, .lives = true};
	do
		c->root = rng_below(&g->rng, UINT64_C(1) << (out - 12)) * 4096;
	while (!c->root || by_root(g, c->root) != c);
	c->base = rng_below(&g->rng, 4) ? rng_below(&g->rng, 1u << 20) : (UINT64_C(1) << 36) - PAGES;
	for (unsigned int p = 0; p < PAGES; p++)
		c->to[p] = 1 + rng_below(&g->rng, UINT64_C(1) << 24);
	watch(g, pasid);
	return c;
}

static void context_end(struct context *c)
{
	assert_false(c->held);
	c->lives = false;
}

/* Who uses the descriptor that c uses. */
static bool share(const struct rig *g, const struct context *a, const struct context *b)
{
	return !tagged(g) || a->pasid == b->pasid;
}

static int install(struct rig *g, struct context *c)
{
	const struct translator_space space = space_of(c);
	unsigned int failed = g->failed;
	int r = 0;

	hostile_moment(g);
	/* It may be there as soon as that begins. */
	c->held = true;
	for (unsigned int i = 0; i < CONTEXTS; i++)
		if (&g->ctx[i] != c && share(g, &g->ctx[i], c))
			g->ctx[i].sure = false;
	r = g->t->ops->install(g->t, 0, &space);
	hostile_moment(g);
	assert_true(r == 0 || (r == -ECANCELED && g->failed > failed));
	c->sure = r == 0;
	return r;
}

static bool knows(struct rig *g, const struct context *c)
{
	uint64_t to;

	for (unsigned int i = 0; i < g->n_pasids; i++) {
		struct smmu_model_found f = device_access(g, g->pasids[i], c->base, &to);

		if (f.answer == SMMU_MODEL_TRANSLATES && f.root == c->root)
			return true;
	}
	return false;
}

static int take_out(struct rig *g, struct context *c)
{
	const struct translator_space space = space_of(c);
	unsigned int failed = g->failed;
	int r;

	hostile_moment(g);
	r = g->t->ops->remove(g->t, 0, &space);
	hostile_moment(g);
	c->sure = false;
	assert_true(r == 0 || (r == -EAGAIN && g->failed > failed));
	if (r == 0) {
		assert_false(knows(g, c));
		c->held = false;
	}
	return r;
}

/* What the TLB has under the ASID is what is mapped. */
static void check_tlb(struct rig *g, const struct context *c)
{
	const struct smmu_model_bucket *b = smmu_model_bucket(&g->m, c->asid);

	for (size_t i = 0; i < b->n; i++)
		if (b->v[i].asid == c->asid && (!c->lives || b->v[i].to != fresh(c, b->v[i].page)))
			fail_msg("page %" PRIx64 " of ASID %u is remembered", b->v[i].page, c->asid);
}

static int forget_all(struct rig *g, struct context *c)
{
	unsigned int failed = g->failed;
	uint64_t ticket = 0, done = 0;
	int r = translator_invalidate(g->t, c->asid, NULL, 0, &ticket);

	assert_true(r == 0 || (r == -EIO && g->failed > failed));
	if (r < 0)
		return r;
	assert_int_equal(g->t->ops->invalidated(g->t, &done), 0);
	assert_true(ticket && done >= ticket);
	c->dirty = false;
	check_tlb(g, c);
	return 0;
}

/* Its end, as often as that has to be tried; after that nothing of it is anywhere. */
static void leave(struct rig *g, struct context *c)
{
	unsigned int tries = 0;

	while (take_out(g, c) < 0)
		assert_true(++tries < 32);
	/* No access begins under its ASID any more; what had begun is forgotten with the rest. */
	while (forget_all(g, c) < 0)
		assert_true(++tries < 32);
	for (unsigned int p = 0; p < PAGES; p++)
		assert_null(smmu_model_tlb_find(&g->m, c->asid, c->base + p));
	context_end(c);
}

static void come(struct rig *g, struct context *c)
{
	unsigned int tries = 0;

	while (install(g, c) < 0)
		assert_true(++tries < 32);
}

/* ---- ranges ---- */

static struct range pages_range(uint64_t page, uint64_t n)
{
	return (struct range){page * 4096, (page + n) * 4096 - 1};
}

/* How many commands n pages take: five bits of the number each, if it knows ranges. */
static uint64_t commands_for(const struct rig *g, uint64_t n)
{
	uint64_t count = 0;

	if (!g->config->ranges)
		return n;
	for (; n; count++) {
		while (!(n & 1))
			n >>= 1;
		n >>= 5;
	}
	return count;
}

static uint64_t range_pages(struct range r)
{
	return range_len(r) / 4096;
}

/* What was named is what was asked for, no page more, in no more commands than it takes. Ranges do not overlap. */
static void check_named(const struct rig *g, uint32_t asid, const struct range *r, size_t n)
{
	uint64_t asked = 0, named = 0, commands = 0;

	for (size_t i = 0; i < n; i++) {
		asked += range_pages(r[i]);
		commands += commands_for(g, range_pages(r[i]));
	}
	if (!n || commands > COMMANDS_MOST) {
		assert_int_equal(g->m.n_named, 1);
		assert_true(g->m.named[0].whole);
		assert_int_equal(g->m.named[0].asid, asid);
		return;
	}
	assert_int_equal(g->m.n_named, commands);
	for (size_t i = 0; i < g->m.n_named; i++) {
		const struct smmu_model_named *a = &g->m.named[i];
		bool inside = false;

		assert_int_equal(a->asid, asid);
		assert_false(a->whole || a->leaf); /* tables may have gone, too */
		for (size_t k = 0; k < n; k++)
			inside |= range_contains(r[k], pages_range(a->page, a->pages));
		assert_true(inside);
		for (size_t k = 0; k < i; k++)
			assert_false(range_overlaps(pages_range(a->page, a->pages),
						    pages_range(g->m.named[k].page, g->m.named[k].pages)));
		named += a->pages;
	}
	assert_int_equal(named, asked);
}

static int forget_ranges(struct rig *g, uint32_t asid, const struct range *r, size_t n)
{
	unsigned int failed = g->failed;
	uint64_t ticket = 0, done = 0;
	int ret;

	g->m.n_named = 0;
	ret = g->t->ops->invalidate(g->t, asid, r, n, &ticket);
	assert_true(ret == 0 || (ret == -EIO && g->failed > failed));
	if (ret < 0)
		return ret;
	assert_int_equal(g->t->ops->invalidated(g->t, &done), 0);
	assert_true(ticket && done >= ticket);
	check_named(g, asid, r, n);
	return 0;
}

/* n runs of its pages, of any length, do not overlap. */
static size_t pick_runs(struct rig *g, const struct context *c, struct range *r, size_t most)
{
	size_t n = 0;

	for (uint64_t p = rng_below(&g->rng, PAGES); p < PAGES && n < most;) {
		uint64_t len = 1 + rng_below(&g->rng, rng_below(&g->rng, 3) ? 4 : 64);

		if (len > PAGES - p)
			len = PAGES - p;
		r[n++] = pages_range(c->base + p, len);
		p += len + 1 + rng_below(&g->rng, 4);
	}
	return n;
}

static int unmap(struct rig *g, struct context *c)
{
	struct range r[24];
	size_t n = pick_runs(g, c, r, ARRAY_SIZE(r));
	int ret;

	for (size_t i = 0; i < n; i++)
		for (uint64_t p = r[i].first / 4096; p <= r[i].last / 4096; p++)
			c->to[p - c->base] = 0;
	ret = forget_ranges(g, c->asid, r, n);
	if (ret < 0)
		c->dirty = true;
	else if (!c->dirty)
		check_tlb(g, c);
	return ret;
}

/* Nothing is to be forgotten for that: it remembers nothing that is not there. */
static void map(struct rig *g, struct context *c)
{
	if (c->dirty)
		return;
	for (unsigned int i = 0; i < 8; i++) {
		uint64_t p = rng_below(&g->rng, PAGES);

		if (!c->to[p])
			c->to[p] = 1 + rng_below(&g->rng, UINT64_C(1) << 24);
	}
}

/* ---- what the device finds ---- */

static const struct context *sure_of(const struct rig *g, uint32_t pasid)
{
	for (unsigned int i = 0; i < CONTEXTS; i++)
		if (g->ctx[i].lives && g->ctx[i].sure && (!tagged(g) || g->ctx[i].pasid == pasid))
			return &g->ctx[i];
	return NULL;
}

/* Under each PASID: who is installed, and of it what a fresh walk finds. Where something failed: somebody who has not been
 * told that he is gone, or nobody; never half of one. */
static void check_device(struct rig *g)
{
	for (unsigned int i = 0; i < g->n_pasids; i++) {
		const struct context *want = sure_of(g, g->pasids[i]), *c;
		struct smmu_model_found f = smmu_model_look(&g->m, tagged(g), g->pasids[i]);
		uint64_t to, page;

		if (want)
			assert_int_equal(f.answer, SMMU_MODEL_TRANSLATES);
		if (f.answer != SMMU_MODEL_TRANSLATES)
			continue;
		c = want ? want : by_root(g, f.root);
		assert_non_null(c);
		assert_true(c->held && f.root == c->root && f.asid == c->asid);
		assert_true(!tagged(g) || c->pasid == g->pasids[i]);
		for (unsigned int k = 0; k < 8 && !c->dirty; k++) {
			page = c->base + rng_below(&g->rng, PAGES + 2) - 1;
			device_access(g, g->pasids[i], page, &to);
			assert_int_equal(to, fresh(c, page));
		}
	}
	if (g->m.wrong)
		fail_msg("%s", g->m.wrong);
}

static void check_nobody(struct rig *g)
{
	for (unsigned int i = 0; i < g->n_pasids; i++)
		assert_int_not_equal(smmu_model_look(&g->m, tagged(g), g->pasids[i]).answer, SMMU_MODEL_TRANSLATES);
}

/* ---- configurations ---- */

static const struct config configs[] = {
	{.bits = 0, .asid16 = true, .ranges = true, .out_bits = 48},
	{.bits = 0, .asid16 = false, .ranges = false, .out_bits = 40},
	{.bits = 0, .asid16 = true, .ranges = true, .repeat = true, .out_bits = 44},
	{.bits = 1, .asid16 = true, .ranges = true, .two_levels = true, .out_bits = 42},
	{.bits = 6, .asid16 = false, .ranges = true, .two_levels = true, .out_bits = 48},
	{.bits = 6, .asid16 = true, .ranges = false, .out_bits = 52},
	{.bits = 7, .asid16 = true, .ranges = true, .two_levels = true, .out_bits = 56},
	{.bits = 7, .asid16 = false, .ranges = true, .out_bits = 44},
	{.bits = 7, .asid16 = true, .ranges = true, .two_levels = true, .repeat = true, .out_bits = 48},
	{.bits = 16, .asid16 = true, .ranges = true, .two_levels = true, .out_bits = 48},
	{.bits = 16, .asid16 = true, .ranges = false, .out_bits = 48},
};

static uint32_t last_pasid(const struct rig *g)
{
	return tagged(g) ? (1u << g->config->bits) - 1 : 9;
}

static uint32_t last_asid(const struct rig *g)
{
	return g->config->asid16 ? 65535 : 255;
}

/* So many contexts of different PASIDs as there are, three at most. */
static unsigned int some_contexts(struct rig *g)
{
	const uint32_t pasids[] = {last_pasid(g), 1, 2};
	const uint32_t asids[] = {last_asid(g), 1, 77};
	unsigned int n = 0;

	for (; n < 3 && (n == 0 || pasids[n] < last_pasid(g)); n++)
		context_begin(g, n, pasids[n], asids[n]);
	return n;
}

/* ---- the table ---- */

static void test_sizes(void **state)
{
	assert_int_equal(cdtable_bytes(0, false), 4096);
	assert_int_equal(cdtable_bytes(0, true), 4096);
	assert_int_equal(cdtable_bytes(1, true), 4096);
	assert_int_equal(cdtable_bytes(6, false), 4096);
	assert_int_equal(cdtable_bytes(6, true), 4096);
	assert_int_equal(cdtable_bytes(7, false), 2 * 4096);
	assert_int_equal(cdtable_bytes(7, true), 3 * 4096);
	assert_int_equal(cdtable_bytes(15, true), (1 + 512) * 4096);
	assert_int_equal(cdtable_bytes(16, false), 1024 * 4096);
	assert_int_equal(cdtable_bytes(16, true), (2 + 1024) * 4096);
}

/* Where the table's size wants its address aligned, that is looked at by the model. */
static void test_every_number_of_bits(void **state)
{
	for (unsigned int bits = 0; bits <= 16; bits++) {
		for (unsigned int two = 0; two < 2; two++) {
			const struct config c = {.bits = bits, .two_levels = two, .asid16 = true, .out_bits = 48};
			struct rig g;
			unsigned int n;

			rig_init(&g, &c, NULL);
			assert_int_equal(smmu_model_has_leaves(&g.m), two && bits > 6);
			n = some_contexts(&g);
			for (unsigned int i = 0; i < n; i++)
				assert_int_equal(install(&g, &g.ctx[i]), 0);
			check_device(&g);
			for (unsigned int i = 0; i < n; i++)
				leave(&g, &g.ctx[i]);
			check_nobody(&g);
			rig_fini(&g);
		}
	}
}

/* Whoever comes without a substream where there are some, or with one where there are none or beyond the last. */
static void test_strangers(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		struct rig g;

		rig_init(&g, &configs[k], NULL);
		come(&g, context_begin(&g, 0, 1, 1));
		if (tagged(&g)) {
			assert_int_equal(smmu_model_look(&g.m, false, 0).answer, SMMU_MODEL_STREAM_DISABLED);
			assert_int_equal(smmu_model_look(&g.m, true, 0).answer, SMMU_MODEL_BAD_CD);
		} else {
			assert_int_equal(smmu_model_look(&g.m, true, 1).answer, SMMU_MODEL_BAD_SUBSTREAM);
		}
		assert_int_equal(smmu_model_look(&g.m, true, 1u << g.config->bits).answer, SMMU_MODEL_BAD_SUBSTREAM);
		rig_fini(&g);
	}
}

/* ---- coming and going ---- */

static void test_installs_and_switches(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		unsigned int times = configs[k].repeat ? 2 : 1, n;
		struct rig g;

		rig_init(&g, &configs[k], NULL);
		n = some_contexts(&g);
		assert_int_equal(g.calls, 0);
		for (unsigned int round = 0; round < 4; round++) {
			for (unsigned int i = 0; i < n; i++) {
				unsigned int before = g.calls;

				assert_int_equal(install(&g, &g.ctx[i]), 0);
				check_device(&g);
				/* To forget who was there, what was half there, and that nobody was. A PASID stays. */
				assert_int_equal(g.calls - before, !round && (!i || tagged(&g)) ? 2 * times
								   : tagged(&g)                 ? 0
												: 3 * times);
			}
		}
		/* Who is not there goes without a word. */
		if (!tagged(&g)) {
			unsigned int before = g.calls;

			assert_int_equal(take_out(&g, &g.ctx[0]), 0);
			assert_int_equal(g.calls, before);
			check_device(&g);
		}
		for (unsigned int i = 0; i < n; i++) {
			leave(&g, &g.ctx[i]);
			check_device(&g);
		}
		check_nobody(&g);
		rig_fini(&g);
	}
}

/* Somebody else comes under a PASID, or an ASID, or with a root, that was another's. */
static void test_numbers_are_used_again(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		struct rig g;

		rig_init(&g, &configs[k], NULL);
		for (unsigned int round = 0; round < 4; round++) {
			struct context *c = context_begin(&g, 0, 1, 5);

			come(&g, c);
			for (unsigned int p = 0; p < PAGES; p++) {
				uint64_t to;

				device_access(&g, 1, c->base + p, &to);
				assert_int_equal(to, fresh(c, c->base + p));
			}
			check_device(&g);
			leave(&g, c);
			check_nobody(&g);
		}
		rig_fini(&g);
	}
}

static void test_others_stay(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		/* Of the first leaf, of the one behind it and of the last one, which may be the same. */
		const uint32_t pasids[] = {1, 2, 3, 62, 63, 64, 65, 125, 126, (1u << configs[k].bits) - 1};
		unsigned int n = ARRAY_SIZE(pasids);
		struct rig g;

		if (configs[k].bits < 7)
			continue;
		rig_init(&g, &configs[k], NULL);
		for (unsigned int i = 0; i < n; i++)
			come(&g, context_begin(&g, i, pasids[i], 100 + i));
		for (unsigned int round = 0; round < 50; round++) {
			unsigned int i = (unsigned int)rng_below(&g.rng, n);

			if (g.ctx[i].lives)
				leave(&g, &g.ctx[i]);
			else
				come(&g, context_begin(&g, i, pasids[i], 100 + i));
			check_device(&g);
		}
		rig_fini(&g);
	}
}

/* The device's own translator is told whose PASID is on a slot, also when the descriptor is there already. */
static void test_device_is_told(void **state)
{
	const struct config c = {.bits = 7, .two_levels = true, .asid16 = true, .out_bits = 48};
	struct translator_space space;
	struct rig g;

	rig_init(&g, &c, NULL);
	space = space_of(context_begin(&g, 0, 100, 5));
	assert_int_equal(g.t->ops->install(g.t, 3, &space), 0);
	assert_true(g.told == 1 && g.told_slot == 3 && g.told_pasid == 100);
	assert_int_equal(g.t->ops->install(g.t, 2, &space), 0);
	assert_true(g.told == 2 && g.told_slot == 2);
	g.tells = -EAGAIN;
	assert_int_equal(g.t->ops->install(g.t, 1, &space), -EAGAIN);
	assert_int_equal(g.told, 3);
	assert_int_equal(g.calls, 2);

	/* Nobody is told of a descriptor that is not there. */
	space = space_of(context_begin(&g, 1, 101, 6));
	g.fail_at = g.calls + 1;
	g.fail_for = 1;
	g.error = -EIO;
	assert_int_equal(g.t->ops->install(g.t, 1, &space), -ECANCELED);
	assert_int_equal(g.told, 3);
	rig_fini(&g);
}

/* ---- the order of stores ---- */

struct seen {
	struct smmu_model m;
	uint64_t old_root, new_root;
	unsigned int changes;
	const char *wrong;
};

/* What a device would read between any two instructions: nobody, the old one or the new one, and all of it. */
static void look_at_memory(struct seen *s, const uint64_t *cd, uint64_t last[8])
{
	bool valid = smmu_bits(cd[0], 31, 31);

	if (memcmp(last, cd, 64) == 0)
		return;
	s->changes++;
	if (valid && smmu_model_judge_cd(&s->m, cd))
		s->wrong = smmu_model_judge_cd(&s->m, cd);
	if (valid && (smmu_bits(cd[0], 63, 48) == 5 ? s->old_root : s->new_root) != smmu_model_root(cd))
		s->wrong = "the ASID of one with the tables of another";
	/* No word but the first changes from one valid descriptor to another one. */
	if (valid && smmu_bits(last[0], 31, 31))
		s->wrong = "it was changed while it was valid";
	memcpy(last, cd, 64);
}

static int nothing_said(struct transport *t, const struct transport_smmu_command *v, uint32_t n)
{
	return 0;
}

/* In a process of its own, which is stopped after each instruction. */
static void install_stepwise(struct rig *g, const struct translator_space *space, struct seen *s)
{
	const uint64_t *cd = g->table.p;
	bool crashed = false;
	uint64_t last[8];
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(77);
		raise(SIGSTOP);
		_exit(g->t->ops->install(g->t, 0, space) ? 1 : 0);
	}
	memcpy(last, cd, sizeof(last));
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		crashed = WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP;
		look_at_memory(s, cd, last);
		if (crashed || ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) < 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
	}
	assert_false(crashed);
	if (WIFSIGNALED(status) || WEXITSTATUS(status) == 77) {
		printf("# skipped: this process may not trace its child\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_order_of_stores(void **state)
{
	static const struct transport_nested_ops silent = {.invalidate = nothing_said};
	static const struct transport_ops ops = {.nested = &silent};
	const struct translator_space one = {.pasid = 1, .asid = 5, .root = 0x123456000};
	const struct translator_space two = {.pasid = 1, .asid = 6, .root = 0x789abc000};
	void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct seen s = {.old_root = one.root, .new_root = two.root};
	struct rig g;

	assert_true(memory != MAP_FAILED);
	rig_init(&g, &configs[0], memory);
	g.transport.ops = &ops;
	s.m.out_bits = 48;
	s.m.asid16 = true;
	install_stepwise(&g, &one, &s);
	assert_true(cdtable_has(&g.table, 0, one.asid));
	install_stepwise(&g, &two, &s);
	assert_true(cdtable_has(&g.table, 0, two.asid));
	if (s.wrong)
		fail_msg("%s", s.wrong);
	/* Root, attributes, valid; not valid, root, valid. */
	assert_int_equal(s.changes, 6);
	g.t = smmu_free(g.t);
	smmu_model_fini(&g.m);
	munmap(memory, 4096);
}

/* ---- failures ---- */

static void scenario(struct rig *g, unsigned int n)
{
	for (unsigned int round = 0; round < 2; round++) {
		for (unsigned int i = 0; i < n; i++) {
			come(g, &g->ctx[i]);
			check_device(g);
			while (unmap(g, &g->ctx[i]) < 0)
				check_device(g);
			while (g->ctx[i].dirty && forget_all(g, &g->ctx[i]) < 0)
				check_device(g);
			map(g, &g->ctx[i]);
			check_device(g);
		}
	}
	/* Whether it can be put back where it was taken away. */
	(void)take_out(g, &g->ctx[0]);
	check_device(g);
	come(g, &g->ctx[0]);
	check_device(g);
	for (unsigned int i = 0; i < n; i++) {
		leave(g, &g->ctx[i]);
		check_device(g);
	}
	check_nobody(g);
}

/* Returns whether it came so far that one failed. */
static bool fail_one(const struct config *c, unsigned int at, unsigned int n_fail, unsigned int done)
{
	static const int errors[] = {-EIO, -EBUSY, -ENOMEM};
	unsigned int failed;
	struct rig g;

	rig_init(&g, c, NULL);
	g.fail_at = at;
	g.fail_for = n_fail;
	g.error = errors[at % 3];
	g.done = done;
	scenario(&g, some_contexts(&g));
	failed = g.failed;
	rig_fini(&g);
	return failed;
}

static void test_each_command_fails_once(void **state)
{
	static const unsigned int lengths[] = {1, 2, 3, 7};

	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		if (configs[k].bits == 16)
			continue; /* as with 7, and large */
		for (size_t i = 0; i < ARRAY_SIZE(lengths); i++)
			for (unsigned int done = NONE_DONE; done <= HALF_DONE; done++) {
				unsigned int at = 1;

				while (fail_one(&configs[k], at, lengths[i], done))
					at++;
				assert_true(at > 6);
			}
	}
}

/* A switch that fails leaves nobody there, not who was there before. */
static void test_nobody_after_a_failure(void **state)
{
	for (unsigned int nth = 1; nth <= 2; nth++) {
		struct context *one, *two;
		struct rig g;

		rig_init(&g, &configs[0], NULL);
		one = context_begin(&g, 0, 1, 1);
		two = context_begin(&g, 1, 2, 2);
		come(&g, one);
		g.fail_at = g.calls + nth;
		g.fail_for = 2;
		g.error = -EIO;
		g.done = ALL_DONE;
		assert_int_equal(install(&g, two), -ECANCELED);
		assert_false(cdtable_valid(&g.table, 0));
		check_nobody(&g);
		/* It was carried out; the daemon cannot know. */
		g.fail_at = g.calls + 1;
		g.fail_for = 2;
		assert_int_equal(take_out(&g, one), -EAGAIN);
		assert_int_equal(take_out(&g, one), -EAGAIN);
		assert_int_equal(take_out(&g, one), 0);
		assert_int_equal(take_out(&g, two), 0);
		assert_int_equal(install(&g, two), 0);
		check_device(&g);
		rig_fini(&g);
	}
}

/* One whose descriptor stays is no worse off when the SMMU does not forget another's. */
static void test_a_failure_is_of_its_own(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++) {
		struct context *one, *two;
		unsigned int before;
		struct rig g;

		if (configs[k].bits < 2)
			continue;
		rig_init(&g, &configs[k], NULL);
		one = context_begin(&g, 0, 1, 1);
		two = context_begin(&g, 1, 2, 2);
		come(&g, one);
		come(&g, two);
		g.fail_at = g.calls + 1;
		g.fail_for = 1000;
		g.error = -EBUSY;
		assert_int_equal(take_out(&g, one), -EAGAIN);
		before = g.calls;
		assert_int_equal(install(&g, two), 0);
		assert_int_equal(g.calls, before);
		check_device(&g);
		g.fail_at = 0;
		leave(&g, one);
		check_device(&g);
		rig_fini(&g);
	}
}

/* The first of several contexts is nobody's any more. */
static bool is_right(void *arg, uint32_t substream, uint32_t asid, uint64_t ttbr0)
{
	const struct rig *g = arg;

	for (size_t i = tagged(g) ? 1 : 0; i < ARRAY_SIZE(g->ctx); i++) {
		const struct context *c = &g->ctx[i];

		if (c->lives && c->asid == asid && c->root == ttbr0 && (!tagged(g) || c->pasid == substream))
			return true;
	}
	return false;
}

/* One that took a descriptor away died before it said so: the next one has the SMMU forget it, and those that are not right, and
 * leaves the others. */
static void test_successor(void **state)
{
	for (size_t k = 0; k < 2 * ARRAY_SIZE(configs); k++) {
		struct context *last;
		unsigned int n;
		struct rig g;

		rig_init(&g, &configs[k / 2], NULL);
		n = some_contexts(&g);
		for (unsigned int i = 0; i < n; i++)
			come(&g, &g.ctx[i]);
		last = &g.ctx[n - 1];
		cdtable_clear(&g.table, tagged(&g) ? last->pasid : 0);
		hostile_moment(&g);
		assert_true(knows(&g, last));
		g.t = smmu_free(g.t);
		assert_int_equal(smmu_new(&g.t, &g.transport, &g.traits, &g.table, tagged(&g) ? &g.device : NULL), 0);
		g.fail_at = k % 2 ? g.calls + 1 : 0;
		g.fail_for = 1;
		g.error = -EBUSY;
		if (k % 2)
			assert_int_equal(smmu_adopted(g.t, is_right, &g), -EIO);
		assert_int_equal(smmu_adopted(g.t, is_right, &g), 0);
		assert_false(knows(&g, last));
		last->sure = last->held = false;
		if (tagged(&g))
			g.ctx[0].sure = g.ctx[0].held = false;
		assert_true(!tagged(&g) || !knows(&g, &g.ctx[0]));
		check_device(&g);
		come(&g, last);
		check_device(&g);
		for (unsigned int i = 0; i < n; i++)
			leave(&g, &g.ctx[i]);
		check_nobody(&g);
		rig_fini(&g);
	}
}

/* ---- invalidation ---- */

static void test_ranges(void **state)
{
	static const uint64_t lengths[] = {1,   2,    3,    4,    31,     32,      33,      63,
					   64,  65,   1023, 1024, 1025,   262144,  262145,  0x12345678,
					   511, 1055, 2047, 4096, 0xffff, 0xfffff, 0x6a5a5, UINT64_C(0xfffffffff)};
	const struct range all[] = {{0, (UINT64_C(1) << 48) - 1}};
	const struct range half[] = {{0, (UINT64_C(1) << 47) - 1}};
	struct rig g;

	for (unsigned int with = 0; with < 2; with++) {
		const struct config c = {.ranges = with, .asid16 = true, .out_bits = 48};

		rig_init(&g, &c, NULL);
		for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
			const uint64_t at[] = {0, 1, 7, 512, (UINT64_C(1) << 36) - lengths[i]};

			for (size_t j = 0; j < ARRAY_SIZE(at); j++) {
				struct range r = pages_range(at[j], lengths[i]);

				if (r.last >> 48)
					continue;
				assert_int_equal(forget_ranges(&g, 0xabcd, &r, 1), 0);
			}
		}
		rig_fini(&g);
	}
	/* SCALE has five bits: as far as they go, and no further. */
	rig_init(&g, &configs[0], NULL);
	g.m.n_named = 0;
	assert_int_equal(forget_ranges(&g, 1, all, 1), 0);
	assert_int_equal(forget_ranges(&g, 1, half, 1), 0);
	rig_fini(&g);
}

/* Up to 32 commands are one call; with one more it is the whole ASID. */
static void test_many_ranges(void **state)
{
	const struct config c = {.asid16 = true, .out_bits = 48},
			    with = {.asid16 = true, .ranges = true, .out_bits = 48};
	struct range r[40];
	struct rig g;

	for (size_t i = 0; i < ARRAY_SIZE(r); i++)
		r[i] = pages_range(2 * i, 1);
	rig_init(&g, &c, NULL);
	for (size_t n = 0; n <= 32; n++) {
		assert_int_equal(forget_ranges(&g, 3, r, n), 0);
		assert_int_equal(g.calls, n + 1);
	}
	assert_int_equal(g.t->ops->max_ranges, 32);
	r[31] = pages_range(62, 2);
	assert_int_equal(forget_ranges(&g, 3, r, 32), 0);
	assert_true(g.m.named[0].whole);
	assert_int_equal(forget_ranges(&g, 3, (struct range[]){pages_range(7, 32)}, 1), 0);
	assert_false(g.m.named[0].whole);
	assert_int_equal(forget_ranges(&g, 3, (struct range[]){pages_range(7, 33)}, 1), 0);
	assert_true(g.m.named[0].whole);
	rig_fini(&g);

	/* Two pages are one command, 33 are two. */
	rig_init(&g, &with, NULL);
	assert_int_equal(forget_ranges(&g, 3, r, 32), 0);
	assert_int_equal(g.m.n_named, 32);
	r[31] = pages_range(62, 33);
	assert_int_equal(forget_ranges(&g, 3, r, 32), 0);
	assert_true(g.m.named[0].whole);
	assert_int_equal(forget_ranges(&g, 3, &r[1], 31), 0);
	assert_int_equal(g.m.n_named, 32);
	rig_fini(&g);
}

/* Neighbours are one. */
static void test_merged_ranges(void **state)
{
	struct range r[64];
	uint64_t ticket;
	struct rig g;

	for (size_t i = 0; i < ARRAY_SIZE(r); i++)
		r[i] = pages_range(100 + i, 1);
	rig_init(&g, &configs[0], NULL);
	assert_int_equal(translator_invalidate(g.t, 3, r, ARRAY_SIZE(r), &ticket), 0);
	check_named(&g, 3, (struct range[]){pages_range(100, 64)}, 1);
	assert_int_equal(g.m.n_named, 1);
	rig_fini(&g);
}

static void test_tickets(void **state)
{
	struct range r = pages_range(1, 1);
	uint64_t ticket = 0, last = 0, done = 99;
	struct rig g;

	rig_init(&g, &configs[0], NULL);
	assert_int_equal(g.t->ops->invalidated(g.t, &done), 0);
	assert_int_equal(done, 0);
	for (unsigned int i = 0; i < 8; i++) {
		g.fail_at = g.calls + 1;
		g.fail_for = i & 1;
		g.error = -EBUSY;
		assert_int_equal(g.t->ops->invalidate(g.t, 3, &r, 1, &ticket), i & 1 ? -EIO : 0);
		assert_true(i & 1 ? ticket == last : ticket > last);
		last = ticket;
		assert_int_equal(g.t->ops->invalidated(g.t, &done), 0);
		assert_int_equal(done, last);
	}
	rig_fini(&g);
}

/* ---- all of it ---- */

static uint32_t free_pasid(struct rig *g)
{
	for (unsigned int tries = 0; tries < 200; tries++) {
		uint32_t pasid = g->pasids[rng_below(&g->rng, g->n_pasids)];
		bool taken = false;

		for (unsigned int i = 0; i < CONTEXTS; i++)
			taken |= g->ctx[i].lives && g->ctx[i].pasid == pasid;
		if (!taken)
			return pasid;
	}
	return 0;
}

static uint32_t free_asid(struct rig *g)
{
	for (;;) {
		uint32_t asid = 1 + (uint32_t)rng_below(&g->rng, rng_below(&g->rng, 2) ? 16 : last_asid(g));
		bool taken = false;

		for (unsigned int i = 0; i < CONTEXTS; i++)
			taken |= g->ctx[i].lives && g->ctx[i].asid == asid;
		if (!taken)
			return asid;
	}
}

static void random_begin(struct rig *g, unsigned int i)
{
	/* Without substreams a PASID is a name and nothing else. */
	uint32_t pasid = tagged(g) ? free_pasid(g) : i + 1;

	if (pasid)
		context_begin(g, i, pasid, free_asid(g));
}

static void random_step(struct rig *g)
{
	unsigned int i = (unsigned int)rng_below(&g->rng, CONTEXTS);
	struct context *c = &g->ctx[i];

	if (rng_below(&g->rng, 12) == 0) {
		g->fail_at = g->calls + 1 + (unsigned int)rng_below(&g->rng, 3);
		g->fail_for = 1 + (unsigned int)rng_below(&g->rng, 4);
		g->error = rng_below(&g->rng, 2) ? -EIO : -EBUSY;
		g->done = (int)rng_below(&g->rng, 3);
	}
	if (!c->lives) {
		random_begin(g, i);
		return;
	}
	switch (rng_below(&g->rng, 8)) {
	case 0:
		leave(g, c);
		break;
	case 1:
		(void)take_out(g, c);
		break;
	case 2:
		(void)unmap(g, c);
		break;
	case 3:
		if (c->dirty)
			(void)forget_all(g, c);
		else
			map(g, c);
		break;
	default:
		(void)install(g, c);
		break;
	}
}

static void random_on(const struct config *c, unsigned int steps)
{
	struct rig g;

	rig_init(&g, c, NULL);
	for (unsigned int i = 0; tagged(&g) && i < PASIDS; i++) {
		uint32_t near = 1 + (uint32_t)rng_below(&g.rng, last_pasid(&g) < 70 ? last_pasid(&g) : 70);
		uint32_t any = 1 + (uint32_t)rng_below(&g.rng, last_pasid(&g));

		watch(&g, rng_below(&g.rng, 2) ? near : any);
	}
	for (unsigned int i = 0; i < steps; i++) {
		random_step(&g);
		hostile_moment(&g);
		check_device(&g);
		for (unsigned int k = 0; k < CONTEXTS && i % 16 == 0; k++)
			if (g.ctx[k].lives && !g.ctx[k].dirty)
				check_tlb(&g, &g.ctx[k]);
	}
	for (unsigned int i = 0; i < CONTEXTS; i++)
		if (g.ctx[i].lives)
			leave(&g, &g.ctx[i]);
	check_nobody(&g);
	rig_fini(&g);
}

static void test_random(void **state)
{
	for (size_t k = 0; k < ARRAY_SIZE(configs); k++)
		random_on(&configs[k], configs[k].bits == 16 ? 400 : 1500);
}

/* ---- records of faults ---- */

static struct {
	struct transport_smmu_event v[64];
	int n;
	uint64_t lost;
	unsigned int reads;
} queue;

static int events(struct transport *t, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	int n = queue.n;

	queue.reads++;
	*lost += queue.lost;
	queue.lost = 0;
	queue.n = 0;
	if (n <= 0)
		return n;
	assert_true((uint32_t)n <= max);
	memcpy(v, queue.v, (size_t)n * sizeof(*v));
	return n;
}

static const struct transport_nested_ops event_ops = {.events = events};
static const struct transport_ops event_transport_ops = {.nested = &event_ops};
static struct transport event_transport = {.ops = &event_transport_ops};

static struct translator *event_translator(void)
{
	static uint64_t memory[512];
	const struct cdtable table = {.p = memory, .bus = BUS, .address_bits = 48};
	const struct smmu_traits traits = {.asid_bits = 16, .address_bits = 48};
	struct translator *t;

	memset(&queue, 0, sizeof(queue));
	assert_int_equal(smmu_new(&t, &event_transport, &traits, &table, NULL), 0);
	return t;
}

#define WITH_SUBSTREAM(n) (UINT64_C(1) << 11 | (uint64_t)(n) << 12)
#define PRIVILEGED (UINT64_C(1) << 33)
#define FETCH (UINT64_C(1) << 34)
#define READ (UINT64_C(1) << 35)
#define CLASS_INPUT (UINT64_C(2) << 40)

static void record(uint64_t first, uint64_t second, uint64_t address)
{
	const struct transport_smmu_event e = {
		{first | UINT64_C(1) << 32, second, address, 0x5555555555}}; /* stream 1; where the walk was */

	queue.v[queue.n++] = e;
}

static void test_records(void **state)
{
	static const struct {
		uint64_t first, second, address;
		struct translator_fault want;
	} cases[] = {
		{0x10,
		 READ | CLASS_INPUT,
		 0x123456789a,
		 {.addr = 0x123456789a, .access = 1, .code = PASID_FAULT_UNMAPPED}},
		{0x10, 0, 0x1000, {.addr = 0x1000, .access = 2, .code = PASID_FAULT_UNMAPPED}},
		{0x10, FETCH | READ, 0x1000, {.addr = 0x1000, .access = 4, .code = PASID_FAULT_UNMAPPED}},
		{0x10,
		 READ | PRIVILEGED,
		 0xffff800000000000,
		 {.addr = 0xffff800000000000, .access = 1, .code = PASID_FAULT_UNMAPPED}},
		{0x10 | WITH_SUBSTREAM(0xfffff),
		 READ,
		 0x2000,
		 {.pasid = 0xfffff, .addr = 0x2000, .access = 1, .code = PASID_FAULT_UNMAPPED}},
		{0x10 | WITH_SUBSTREAM(1), 0, 0, {.pasid = 1, .access = 2, .code = PASID_FAULT_UNMAPPED}},
		{0x10 | UINT64_C(7) << 12,
		 0,
		 0,
		 {.access = 2, .code = PASID_FAULT_UNMAPPED}}, /* no SSV: it means nothing */
		{0x11, READ, 0x3000, {.addr = 0x3000, .access = 1, .code = PASID_FAULT_ADDRESS}},
		{0x12, READ, 0x3000, {.access = 1, .code = PASID_FAULT_OTHER}},
		{0x13, 0, 0x4000, {.addr = 0x4000, .access = 2, .code = PASID_FAULT_PERMISSION}},
		{0x13 | WITH_SUBSTREAM(9),
		 FETCH | READ,
		 0x4000,
		 {.pasid = 9, .addr = 0x4000, .access = 4, .code = PASID_FAULT_PERMISSION}},
		/* They have no address, whatever stands there. */
		{0x06, READ, 0x7777, {.access = 1, .code = PASID_FAULT_OTHER}}, /* F_STREAM_DISABLED */
		{0x08 | WITH_SUBSTREAM(3), READ, 0x7777, {.pasid = 3, .access = 1, .code = PASID_FAULT_OTHER}},
		{0x0a | WITH_SUBSTREAM(4), READ, 0x7777, {.pasid = 4, .access = 1, .code = PASID_FAULT_OTHER}},
		{0x04, READ, 0x7777, {.access = 1, .code = PASID_FAULT_OTHER}},
		{0x0b, READ, 0x7777, {.access = 1, .code = PASID_FAULT_OTHER}},
		{0xff, READ, 0x7777, {.access = 1, .code = PASID_FAULT_OTHER}},
	};
	struct translator *t = event_translator();
	struct translator_fault f;
	uint64_t lost = 0;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		record(cases[i].first, cases[i].second, cases[i].address);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		memset(&f, 0xff, sizeof(f));
		assert_int_equal(t->ops->next_fault(t, &f, &lost), 1);
		assert_int_equal(f.pasid, cases[i].want.pasid);
		assert_int_equal(f.addr, cases[i].want.addr);
		assert_int_equal(f.access, cases[i].want.access);
		assert_int_equal(f.code, cases[i].want.code);
		assert_int_equal(f.job, 0);
		assert_false(f.stalled);
	}
	assert_int_equal(t->ops->next_fault(t, &f, &lost), 0);
	assert_int_equal(queue.reads, 2);
	assert_int_equal(lost, 0);
	smmu_free(t);
}

static void test_queue_of_records(void **state)
{
	struct translator *t = event_translator();
	struct translator_fault f;
	uint64_t lost = 10;

	/* As many as there is room for, and then some. */
	for (unsigned int round = 0; round < 3; round++) {
		for (uint64_t i = 0; i < 64; i++)
			record(0x10, READ, i * 4096);
		queue.lost = round;
		for (uint64_t i = 0; i < 64; i++) {
			assert_int_equal(t->ops->next_fault(t, &f, &lost), 1);
			assert_int_equal(f.addr, i * 4096);
		}
	}
	assert_int_equal(lost, 13);
	assert_int_equal(queue.reads, 3);
	/* Some are lost, and none is there. */
	queue.lost = 4;
	assert_int_equal(t->ops->next_fault(t, &f, &lost), 0);
	assert_int_equal(lost, 17);
	queue.n = -EIO;
	assert_int_equal(t->ops->next_fault(t, &f, &lost), -EPROTO);
	record(0x13, READ, 0x1000);
	assert_int_equal(t->ops->next_fault(t, &f, &lost), 1);
	assert_int_equal(f.code, PASID_FAULT_PERMISSION);
	assert_int_equal(t->ops->next_fault(t, &f, &lost), 0);
	assert_int_equal(lost, 17);
	smmu_free(t);
}

/* ---- what an SMMU can do ---- */

static const struct config able = {.bits = 16, .two_levels = true, .ranges = true, .asid16 = true, .out_bits = 48};

static void refuses(uint32_t idr0, uint32_t idr5, const char *part)
{
	struct transport_smmu r = registers(&able);
	struct smmu_traits traits;
	const char *why;

	assert_null(smmu_judge(&r, &traits));
	if (idr0)
		r.idr[0] = idr0;
	if (idr5)
		r.idr[5] = idr5;
	why = smmu_judge(&r, &traits);
	assert_non_null(why);
	if (!strstr(why, part))
		fail_msg("\"%s\" where it is about %s", why, part);
}

static void test_what_is_missing(void **state)
{
	uint32_t idr0 = registers(&able).idr[0];

	refuses(idr0 & ~(3u << 2), 0, "SMMU_IDR0.TTF");
	refuses((idr0 & ~(3u << 2)) | 1u << 2, 0, "SMMU_IDR0.TTF");
	refuses(idr0 | 3u << 21, 0, "SMMU_IDR0.TTENDIAN");
	refuses((idr0 & ~(3u << 24)) | 2u << 24, 0, "SMMU_IDR0.STALL_MODEL");
	refuses(0, 5 | 1u << 5 | 1u << 6, "SMMU_IDR5.GRAN4K");
	refuses(0, 0 | 1u << 4, "SMMU_IDR5.OAS");
	refuses(0, 1 | 1u << 4, "SMMU_IDR5.OAS");
}

static void test_what_is_there(void **state)
{
	static const unsigned int sizes[8] = {0, 0, 40, 42, 44, 48, 48, 48};
	struct transport_smmu r = registers(&able);
	struct smmu_traits traits;

	for (uint32_t i = 2; i < 8; i++) {
		r.idr[5] = i | 1u << 4;
		assert_null(smmu_judge(&r, &traits));
		assert_int_equal(traits.address_bits, sizes[i]);
	}
	assert_true(traits.two_levels && traits.ranges && !traits.repeat);
	assert_int_equal(traits.asid_bits, 16);
	assert_int_equal(traits.substream_bits, 16);
	r.idr[1] = 20u << 6; /* more than there are ASIDs */
	assert_null(smmu_judge(&r, &traits));
	assert_int_equal(traits.substream_bits, 16);
	r.idr[1] = 5u << 6 | ~(31u << 6); /* what is beside it */
	assert_null(smmu_judge(&r, &traits));
	assert_int_equal(traits.substream_bits, 5);
	r.idr[0] |= 1u << 2; /* 32-bit tables, too */
	r.idr[0] &= ~(3u << 21 | 3u << 24 | 1u << 12 | 1u << 19); /* either endianness, either end of a fault */
	r.idr[3] = ~(1u << 10);
	r.flags = TRANSPORT_SMMU_REPEAT;
	assert_null(smmu_judge(&r, &traits));
	assert_int_equal(traits.asid_bits, 8);
	assert_true(!traits.two_levels && !traits.ranges && traits.repeat);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_every_number_of_bits),
		cmocka_unit_test(test_strangers),
		cmocka_unit_test(test_installs_and_switches),
		cmocka_unit_test(test_numbers_are_used_again),
		cmocka_unit_test(test_others_stay),
		cmocka_unit_test(test_device_is_told),
		cmocka_unit_test(test_order_of_stores),
		cmocka_unit_test(test_each_command_fails_once),
		cmocka_unit_test(test_nobody_after_a_failure),
		cmocka_unit_test(test_a_failure_is_of_its_own),
		cmocka_unit_test(test_successor),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_many_ranges),
		cmocka_unit_test(test_merged_ranges),
		cmocka_unit_test(test_tickets),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_queue_of_records),
		cmocka_unit_test(test_what_is_missing),
		cmocka_unit_test(test_what_is_there),
	};

	seed = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
