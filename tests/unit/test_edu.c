/* SPDX-License-Identifier: MIT */
/*
 * The driver of the edu device, on a device of the test's own that does what QEMU's documentation says: registers, 4 KiB
 * of memory inside, one transfer at a time that ends when the test says so.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pasid/edu.h>

#include "base/util.h"
#include "engine/engine.h"

#define MEMORY (1u << 20) /* of the address space, from IOVA 0 */
#define IOVA_FIRST 0x10000u
#define WINDOW 0x1000u
#define DEVICE 0x40000u

static uint8_t memory[MEMORY];
static uint8_t inside[4096];
static _Alignas(8) uint8_t regs[0x1000];
static _Alignas(8) uint8_t keep[1u << 16]; /* what outlives a process */
static const struct engine_memory own = {.keep = keep};
static unsigned int transfers;
static unsigned int writes, die_at; /* to registers; 0: it lives */
static jmp_buf death;

static void moment(void)
{
	if (++writes == die_at)
		longjmp(death, 1);
}

static uint64_t reg64(unsigned int at)
{
	uint64_t v;

	memcpy(&v, regs + at, sizeof(v));
	return v;
}

static void region_write(struct engine_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	moment();
	assert_int_equal(region, 0);
	if (off == 0x98) {
		assert_true(value & 1);
		assert_false(reg64(0x98) & 1); /* one at a time */
	}
	memcpy(regs + off, &value, width);
	moment();
}

static int region_read(struct engine_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	assert_int_equal(region, 0);
	*value = 0;
	memcpy(value, regs + off, width);
	return 0;
}

static const struct engine_device_ops ops = {.region_write = region_write, .region_read = region_read};
static struct engine_device device = {.ops = &ops};

/* The transfer that was begun ends, and nobody hears of it. False: there is none. */
static bool transfer_over(void)
{
	uint64_t src = reg64(0x80), dst = reg64(0x88), len = reg64(0x90), cmd = reg64(0x98);
	uint32_t status = 0x100;

	if (!(cmd & 1))
		return false;
	transfers++;
	if (cmd & 2) {
		assert_true(src >= DEVICE && src + len <= DEVICE + sizeof(inside));
		assert_true(dst >= IOVA_FIRST && dst + len <= MEMORY);
		memcpy(memory + dst, inside + (src - DEVICE), len);
	} else {
		assert_true(dst >= DEVICE && dst + len <= DEVICE + sizeof(inside));
		assert_true(src == WINDOW || src >= IOVA_FIRST);
		assert_true(src + len <= MEMORY);
		memcpy(inside + (dst - DEVICE), memory + src, len);
	}
	cmd &= ~1ull;
	memcpy(regs + 0x98, &cmd, sizeof(cmd));
	memcpy(regs + 0x24, &status, sizeof(status));
	return true;
}

static bool transfer_ends(struct engine *e)
{
	if (!transfer_over())
		return false;
	e->ops->interrupt(e);
	return true;
}

static void run(struct engine *e)
{
	while (transfer_ends(e))
		;
}

static int setup(void **state)
{
	const struct engine_config config = {.iova = {IOVA_FIRST, MEMORY - 1}};
	uint32_t id = 0x010000ed;

	memset(regs, 0, sizeof(regs));
	memset(memory, 0, sizeof(memory));
	memset(inside, 0, sizeof(inside));
	memset(keep, 0, sizeof(keep));
	memcpy(regs, &id, sizeof(id));
	transfers = writes = die_at = 0;
	return edu_driver.engine->attach((struct engine **)state, &device, &own, &config);
}

static int teardown(void **state)
{
	*state = edu_driver.engine->detach(*state);
	return 0;
}

static uint64_t put(struct engine *e, const struct pasid_edu_cmd *cmds, size_t n)
{
	const struct engine_job job = {
		.len = n * sizeof(*cmds),
		.commands = cmds,
		.window = memory + WINDOW,
		.window_iova = WINDOW,
	};
	uint64_t mark;

	assert_int_equal(e->ops->submit(e, 0, &job, &mark), 0);
	return mark;
}

static struct engine_slot look(struct engine *e)
{
	struct engine_slot s;

	assert_int_equal(e->ops->look(e, 0, &s), 0);
	return s;
}

static void test_copy_and_fill(void **state)
{
	const struct pasid_edu_cmd cmds[] = {
		{.op = PASID_EDU_COPY, .dst = 0x30003, .src = 0x20001, .len = 10000},
		{.op = PASID_EDU_FILL, .value = 0x04030201, .dst = 0x40000, .len = 9001},
	};
	struct engine *e = *state;
	uint64_t mark;

	for (size_t i = 0; i < 10000; i++)
		memory[0x20001 + i] = (uint8_t)(i * 7);
	mark = put(e, cmds, 2);
	assert_int_equal(transfers, 0);
	assert_false(reg64(0x98) & 1); /* not before the kick */
	e->ops->kick(e, 0);
	assert_int_equal(look(e).begun, mark);
	assert_int_equal(look(e).done, mark - 1);
	run(e);
	assert_int_equal(look(e).done, mark);
	assert_memory_equal(memory + 0x30003, memory + 0x20001, 10000);
	assert_int_equal(memory[0x30002] | memory[0x30003 + 10000], 0);
	for (size_t i = 0; i < 9001; i++)
		assert_int_equal(memory[0x40000 + i], 1 + i % 4);
	assert_int_equal(memory[0x40000 + 9001], 0);
}

/* Nothing that the last owner left there can be had: it is overwritten before the next job's first command. */
static void test_scrub(void **state)
{
	const struct pasid_edu_cmd nothing = {.op = 0},
				   fill = {.op = PASID_EDU_FILL, .value = 1, .dst = 0x20000, .len = 16};
	static const uint8_t zeros[4096];
	struct engine *e = *state;

	memset(inside, 0xaa, sizeof(inside));
	memset(memory + WINDOW, 0xbb, 4096);
	assert_int_equal(e->ops->scrub(e, 0), 0);
	put(e, &nothing, 1);
	e->ops->kick(e, 0);
	run(e);
	assert_memory_equal(inside, zeros, sizeof(zeros));
	/* Once. */
	memset(inside, 0xaa, sizeof(inside));
	put(e, &fill, 1);
	e->ops->kick(e, 0);
	run(e);
	assert_int_equal(inside[4095], 0); /* of the pattern 1, 0, 0, 0 */
	assert_int_equal(inside[4092], 1);
}

static void test_hostile_commands(void **state)
{
	static const struct pasid_edu_cmd bad[] = {
		{.op = PASID_EDU_COPY, .dst = 0x20000, .src = WINDOW, .len = 64},
		{.op = PASID_EDU_COPY, .dst = WINDOW, .src = 0x20000, .len = 64},
		{.op = PASID_EDU_COPY, .dst = 0x20000, .src = DEVICE, .len = 1ull << 40},
		{.op = PASID_EDU_COPY, .dst = 0x20000, .src = UINT64_MAX - 3, .len = 64},
		{.op = PASID_EDU_FILL, .dst = 0xfee00000, .len = 4},
		{.op = PASID_EDU_FILL, .dst = MEMORY - 1, .len = 2},
		{.op = PASID_EDU_FILL, .dst = 0x20000, .len = 0},
		{.op = 3, .dst = 0x20000, .src = 0x30000, .len = 64},
		{.op = UINT32_MAX, .dst = 0x20000, .len = 64},
	};
	struct engine *e = *state;
	uint64_t mark = put(e, bad, ARRAY_SIZE(bad));

	e->ops->kick(e, 0);
	run(e);
	assert_int_equal(transfers, 0);
	assert_int_equal(look(e).done, mark);
	assert_int_equal(put(e, bad, 0), mark + 1); /* no command at all */
	e->ops->kick(e, 0);
	assert_int_equal(look(e).done, mark + 1);
}

/* A transfer cannot be stopped: STOP is obeyed when it is over, and nothing behind it runs. */
static void test_stop(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64};
	struct engine *e = *state;
	uint64_t mark = 0;

	for (int i = 0; i < 4; i++)
		mark = put(e, &cmd, 1);
	assert_int_equal(e->ops->submit(e, 0, &(struct engine_job){.commands = &cmd}, &mark), -EAGAIN);
	e->ops->kick(e, 0);
	e->ops->control(e, 0, ENGINE_STOP);
	assert_false(look(e).settled);
	assert_false(look(e).still);
	assert_true(transfer_ends(e));
	assert_true(look(e).settled && look(e).still);
	assert_int_equal(look(e).done, mark);
	assert_false(transfer_ends(e));
	assert_int_equal(memory[0x20000], 0);
	/* It works afterwards. */
	put(e, &cmd, 1);
	e->ops->kick(e, 0);
	run(e);
	assert_int_equal(memory[0x20000 + 63], 0x55);
}

static void test_pause(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64};
	struct engine *e = *state;
	uint64_t mark = put(e, &cmd, 1);

	e->ops->kick(e, 0);
	e->ops->control(e, 0, ENGINE_PAUSE);
	assert_false(look(e).settled);
	assert_true(transfer_ends(e));
	assert_true(look(e).settled && look(e).still);
	assert_false(transfer_ends(e));
	e->ops->control(e, 0, ENGINE_RESUME);
	run(e);
	assert_int_equal(look(e).done, mark);
	assert_int_equal(memory[0x20000], 0x55);
}

/* What a test program is told to submit does what it says. */
static void test_verbs(void **state)
{
	struct pasid_edu_cmd cmds[2];
	struct engine *e = *state;

	assert_int_equal(edu_driver.verbs->fill(&cmds[0], 0x20000, 5000, 0x11223344), sizeof(cmds[0]));
	assert_int_equal(edu_driver.verbs->copy(&cmds[1], 0x30000, 0x20000, 5000), sizeof(cmds[1]));
	put(e, cmds, 2);
	e->ops->kick(e, 0);
	run(e);
	assert_memory_equal(memory + 0x30000, memory + 0x20000, 5000);
	assert_int_equal(memory[0x30000], 0x44);
	assert_int_equal(memory[0x30000 + 4999], 0x11);
	assert_int_equal(memory[0x30000 + 5000], 0);
}

static void test_another_device(void **state)
{
	const struct engine_config config = {.iova = {IOVA_FIRST, MEMORY - 1}};
	struct engine *e;

	regs[0] = 0xee;
	assert_int_equal(edu_driver.engine->attach(&e, &device, &own, &config), -ENODEV);
}

/* A transfer of whoever had the device before: registers written now would be lost. */
static void test_a_transfer_from_before(void **state)
{
	const struct engine_config config = {.iova = {IOVA_FIRST, MEMORY - 1}};
	uint32_t id = 0x010000ed;
	struct engine *e = NULL;

	memset(regs, 0, sizeof(regs));
	memcpy(regs, &id, sizeof(id));
	regs[0x98] = 1;
	assert_int_equal(edu_driver.engine->attach(&e, &device, &own, &config), -EBUSY);
	assert_null(e);
}

/* ---- successors ---- */

static void take_over(void **state)
{
	void *const windows[] = {memory + WINDOW};
	const struct engine_config config = {.iova = {IOVA_FIRST, MEMORY - 1}, .windows = windows};
	struct engine *e;

	assert_int_equal(edu_driver.engine->adopt(&e, &device, &own, &config), 0);
	edu_driver.engine->detach(*state); /* which touches nothing */
	*state = e;
	e->ops->control(e, 0, ENGINE_RESUME);
}

/* A job that was put and not told of is forgotten; its mark is given out again. */
static void test_successor_knows_what_was_told(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64};
	uint64_t told = put(*state, &cmd, 1), untold;

	((struct engine *)*state)->ops->kick(*state, 0);
	untold = put(*state, &cmd, 1);
	take_over(state);
	assert_int_equal(look(*state).told, told);
	run(*state);
	assert_int_equal(look(*state).done, told);
	assert_int_equal(put(*state, &cmd, 1), untold);
}

/* It dies before or after the n-th write to a register, and so does its successor; a transfer that runs goes on. */
static bool work_with_deaths(void **state, unsigned int n)
{
	static const uint8_t nothing[4096];
	const struct pasid_edu_cmd one[] = {
		{.op = PASID_EDU_FILL, .value = 0x04030201, .dst = 0x40000, .len = 9001},
		{.op = PASID_EDU_COPY, .dst = 0x30003, .src = 0x40000, .len = 8193},
	};
	const struct pasid_edu_cmd two = {.op = PASID_EDU_COPY, .dst = 0x50000, .src = 0x30003, .len = 8193};
	static uint64_t mark;
	static unsigned int deaths;

	setup(state);
	memset(inside, 0xaa, sizeof(inside));
	((struct engine *)*state)->ops->scrub(*state, 0);
	put(*state, one, 2);
	mark = put(*state, &two, 1);
	deaths = writes = 0;
	die_at = n;
	if (setjmp(death)) {
		writes = 0;
		die_at = ++deaths == 1 ? 2 : 0;
		if (n % 3 == 0)
			transfer_over();
		take_over(state);
	}
	if (look(*state).told < mark)
		((struct engine *)*state)->ops->kick(*state, 0);
	run(*state);
	if (look(*state).done < mark)
		fail_msg("death %u: done %llu of %llu", n, (unsigned long long)look(*state).done,
			 (unsigned long long)mark);
	for (size_t i = 0; i < 8193; i++)
		assert_int_equal(memory[0x50000 + i], 1 + i % 4);
	assert_memory_equal(memory + 0x50000 + 8193, nothing, 64);
	assert_memory_equal(memory + 0x40000 + 9001, nothing, 64);
	die_at = 0;
	teardown(state);
	return deaths > 0;
}

static void test_successor_goes_on(void **state)
{
	unsigned int n = 0;

	while (work_with_deaths(state, ++n))
		;
	assert_true(n > 100);
}

/* It was dropping jobs. */
static void test_successor_of_one_that_stopped(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64};
	uint64_t mark = put(*state, &cmd, 1), *kept = (uint64_t *)(void *)keep;

	((struct engine *)*state)->ops->kick(*state, 0);
	assert_true(transfer_ends(*state));
	assert_int_equal(kept[0], mark); /* told */
	kept[1] = mark + 1; /* done: another one that was never told of is dropped, too */
	take_over(state);
	run(*state);
	assert_int_equal(look(*state).done, mark + 1);
	assert_int_equal(look(*state).told, mark + 1);
}

/* It died when one job was done, and before it noted where the next one begins. */
static void test_successor_between_two_jobs(void **state)
{
	const struct pasid_edu_cmd one = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64},
				   two = {.op = PASID_EDU_FILL, .value = 0x66666666, .dst = 0x30000, .len = 64};
	uint64_t mark, last, *kept = (uint64_t *)(void *)keep;

	put(*state, &one, 1);
	mark = put(*state, &two, 1);
	((struct engine *)*state)->ops->kick(*state, 0);
	assert_true(transfer_ends(*state));
	last = kept[2];
	assert_true(transfer_ends(*state));
	assert_int_equal(look(*state).done, mark - 1);
	assert_true(kept[2] != last);
	kept[2] = last;
	memset(regs + 0x98, 0, 8); /* nor was its first transfer begun */
	take_over(state);
	run(*state);
	assert_int_equal(look(*state).done, mark);
	assert_int_equal(memory[0x30000], 0x66);
}

static void test_no_window(void **state)
{
	const struct pasid_edu_cmd cmd = {.op = PASID_EDU_FILL, .value = 0x55555555, .dst = 0x20000, .len = 64};
	const struct engine_config config = {.iova = {IOVA_FIRST, MEMORY - 1}};
	struct engine *e = NULL;

	put(*state, &cmd, 1);
	((struct engine *)*state)->ops->kick(*state, 0);
	assert_int_equal(edu_driver.engine->adopt(&e, &device, &own, &config), -ENODEV);
	assert_null(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_copy_and_fill, setup, teardown),
		cmocka_unit_test_setup_teardown(test_scrub, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_commands, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pause, setup, teardown),
		cmocka_unit_test_setup_teardown(test_verbs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_successor_knows_what_was_told, setup, teardown),
		cmocka_unit_test_setup_teardown(test_successor_of_one_that_stopped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_successor_between_two_jobs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_window, setup, teardown),
		cmocka_unit_test(test_successor_goes_on),
		cmocka_unit_test(test_another_device),
		cmocka_unit_test(test_a_transfer_from_before),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
