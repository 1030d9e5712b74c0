/* SPDX-License-Identifier: MIT */
/*
 * Mode `nested`, everything at once: apps come, map, work, end and go, records of faults come late, commands of the SMMU fail,
 * the kernel refuses memory, the device is lost. The rig looks at every access; what the tables say is what the apps know; no
 * app finds anything of another in its memory, or is charged with a fault that is not its own.
 */
#include "nested_rig.h"
#include "service_random.h"

#define LATE_TRANSFERS 20u /* of ten jobs at most: with those that wait behind them, fewer than the daemon remembers */

static uint64_t bus_of(size_t i, uint64_t at)
{
	struct refusal why;
	const struct buffer_entry *e = books_buffer(apps[i].client->books, known[i].buf[at / bytes], &why);

	return e->buffer.bus + at % bytes;
}

/* Nothing is under way: the tables of each context say what its app knows. */
static void expect_known(size_t i)
{
	struct ctx *ctx = known[i].ctx ? ctx_of(known[i].ctx) : NULL;
	struct pgtable_leaf leaf;

	if (!apps[i].client || !ctx || ctx->books->lost || known[i].asked)
		return;
	for (size_t n = 0; n < SPAN_PAGES; n++) {
		uint64_t iova = AT + n * PAGE;
		bool mapped = pgtable_walk(ctx->pt, iova, &leaf);

		assert_int_equal(mapped, known[i].at[n] != 0);
		if (mapped)
			assert_int_equal(leaf.bus + (iova - leaf.iova.first), bus_of(i, known[i].at[n] - 1));
	}
}

static void random_smmu(void)
{
	static const uint64_t only[] = {0, CMD_CFGI_CD, CMD_CFGI_CD_ALL, CMD_TLBI_NH_ASID, CMD_TLBI_NH_VA};

	smmu.only = only[draw(ARRAY_SIZE(only))];
	smmu.fail_after = draw(4);
	smmu.fail_times = draw(3) ? 0 : 1 + draw(4);
	smmu.fail_late = draw(2);
	smmu.slow = draw(2);
	smmu.bytes_a_record = 16u << draw(9);
	kernel.busy = draw(3) ? 0 : 2 + draw(5);
	kernel.room = draw(3) ? MOST_ANSWERS : 1 + draw(40);
}

/* Records wait for a while, but not for longer than the daemon remembers who did what. */
static void random_lateness(void)
{
	static unsigned int since;

	if (!smmu.late)
		since = smmu.transfers;
	smmu.late = smmu.transfers - since < LATE_TRANSFERS && draw(8);
}

static void random_device(void)
{
	random_lateness();
	if (smmu.in_transfer && edu.open && draw(2))
		transfer_done();
	if (!draw(20))
		random_smmu();
	if (!draw(200) && is_ready()) {
		lose_device();
		/* Or it would not be ready for a long time. */
		smmu.fail_times = kernel.busy = 0;
		kernel.room = MOST_ANSWERS;
		await_ready();
	}
}

static void settle(void)
{
	kernel.fail_at = kernel.busy = 0;
	kernel.room = MOST_ANSWERS;
	smmu.fail_times = 0;
	smmu.slow = smmu.late = false;
	if (smmu.in_transfer)
		transfer_done();
	for (size_t i = 0; i < APPS; i++)
		for (answers(UINT32_MAX); apps[i].client && apps[i].pending; answers(UINT32_MAX))
			event_base_loop(base, EVLOOP_ONCE);
	for (size_t i = 0; i < APPS; i++) {
		if (apps[i].client && known[i].asked)
			learn(i);
		answers(UINT32_MAX);
		expect_known(i);
	}
}

static void everything(uint32_t idr3, uint32_t flags)
{
	nested_reset();
	smmu.says.idr[3] = idr3;
	smmu.says.flags = flags;
	device_config.table_pages = 2048;
	nested_open();
	await_ready();
	for (unsigned int round = 0; round < 3000; round++) {
		random_request(draw(APPS));
		answers(draw(12));
		random_device();
		if (!draw(30))
			settle();
	}
	settle();
	for (size_t i = 0; i < APPS; i++)
		if (apps[i].client)
			go(i);
	print_message("# contexts made %u, freed %u; lists %u, jobs %u; lost %u, faults %u; device opened %u times\n",
		      n_done[CTX], n_done[FREE], n_done[LIST], n_done[JOB], n_lost, smmu.n_faulted, edu.opened);
	assert_true(n_done[LIST] > 100 && n_done[JOB] > 100 && n_lost > 5 && smmu.n_faulted > 100 && edu.opened > 2);
	assert_int_equal(smmu.lost_msis, 0);
	nested_end();
}

static void test_everything_at_once(void **state)
{
	seed_random();
	everything(1 << 10, 0);
	everything(0, TRANSPORT_SMMU_REPEAT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
