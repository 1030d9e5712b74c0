/* SPDX-License-Identifier: MIT */
/* The list of drivers: who is asked first, and what is wrong with a driver's ops. What is wrong with a file that should be
 * one: tests/system/test_drivers.py. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <pasid/refgpu.h>

#include "base/util.h"
#include "engine/engine.h"

static const struct transport_ids refgpu = {.vendor = REFGPU_PCI_VENDOR, .device = REFGPU_PCI_DEVICE},
				  edu = {.vendor = 0x1234, .device = 0x11e8},
				  nobody = {.vendor = 0x1234, .device = 0x0001};

static bool match_edu(const struct transport_ids *ids)
{
	return ids->device == edu.device;
}

static void test_find(void **state)
{
	struct engine_ops ops = {.name = "other", .match = match_edu, .irqs = 9};
	const struct pasid_driver other = {.abi = PASID_DRIVER_ABI, .engine = &ops};
	struct driver v[2] = {{.exports = &other}, {.exports = &refgpu_driver}};
	const struct drivers none = {0}, loaded = {v, 1}, both = {v, 2};

	assert_ptr_equal(engine_find(&none, &refgpu)->exports, &refgpu_driver);
	assert_ptr_equal(engine_find(NULL, &edu)->exports, &edu_driver);
	assert_null(engine_find(&none, &nobody));
	assert_int_equal(engine_irqs(&none), REFGPU_VECTORS);
	/* What was configured goes before what is built in. */
	assert_ptr_equal(engine_find(&loaded, &edu), &v[0]);
	assert_ptr_equal(engine_find(&loaded, &refgpu)->exports, &refgpu_driver);
	assert_ptr_equal(engine_find(&both, &refgpu), &v[1]);
	assert_null(engine_find(&both, &nobody));
	assert_int_equal(engine_irqs(&loaded), 9);
}

/* ---- what is wrong with ops ---- */

static char error[ENGINE_ERROR_MAX];

static struct engine_ops good(void)
{
	error[0] = 0;
	return *refgpu_driver.engine;
}

static void refused(const struct engine_ops *ops, const char *said)
{
	assert_int_equal(engine_check(ops, error), -EINVAL);
	assert_string_equal(error, said);
}

static void test_built_in(void **state)
{
	assert_int_equal(engine_check(refgpu_driver.engine, error), 0);
	assert_int_equal(engine_check(edu_driver.engine, error), 0);
}

static void test_name(void **state)
{
	static const char *const names[] = {NULL, "", "a b", "a\n", "\xc3\xa4", "abcdefghijklmnopqrstuvwxyz012345"};
	struct engine_ops ops = good();

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		ops.name = names[i];
		refused(&ops, "its driver has no name; allowed is one of 1 to 31 letters, digits, '_' and '-'");
	}
	ops.name = "abcdefghijklmnopqrstuvwxyz_-345";
	assert_int_equal(engine_check(&ops, error), 0);
}

#define WITHOUT(call)                                                                      \
	do {                                                                               \
		struct engine_ops without = good();                                        \
                                                                                           \
		without.call = NULL;                                                       \
		refused(&without, "its driver refgpu has no " #call "(); it is required"); \
	} while (0)

static void test_calls(void **state)
{
	struct engine_ops ops = good();

	WITHOUT(match);
	WITHOUT(attach);
	WITHOUT(restart);
	WITHOUT(detach);
	WITHOUT(slots);
	WITHOUT(submit);
	WITHOUT(scrub);
	WITHOUT(kick);
	WITHOUT(control);
	WITHOUT(look);
	ops.interrupt = NULL;
	ops.translator = NULL;
	assert_int_equal(engine_check(&ops, error), 0);
}

#define WITH(field, number, allowed)                                                                 \
	do {                                                                                         \
		struct engine_ops with = good();                                                     \
                                                                                                     \
		with.field = (number);                                                               \
		refused(&with, "its driver refgpu has " #field " " #number "; allowed is " allowed); \
	} while (0)

static void test_numbers(void **state)
{
	WITH(irqs, 65, "0 to 64");
	WITH(ring_jobs, 0, "1 to 4294967295");
	WITH(cmd_align, 0, "1 to 4096");
	WITH(cmd_align, 8192, "1 to 4096");
	WITH(submit_max, 63, "64 to 1073741824");
	WITH(submit_max, 1073741825, "64 to 1073741824");
	WITH(ro_bytes, 4097, "0 to 16777216, in multiples of 4096");
	WITH(keep_bytes, 4097, "0 to 16777216, in multiples of 4096");
	WITH(ro_bytes, 16781312, "0 to 16777216, in multiples of 4096");
	WITH(window_bytes, 100, "0 to 61440, in multiples of 4096");
	WITH(window_bytes, 65536, "0 to 61440, in multiples of 4096");
	WITH(iova_bits, 19, "20 to 63");
	WITH(iova_bits, 64, "20 to 63");
	WITH(asid_bits, 0, "1 to 16");
	WITH(asid_bits, 17, "1 to 16");
}

static void test_numbers_together(void **state)
{
	struct engine_ops ops = good();

	ops.cmd_align = 48;
	refused(&ops, "its driver refgpu has a cmd_align that is no power of two");
	ops = good();
	ops.ro_bytes = ENGINE_MAX_MEMORY - ENGINE_PAGE;
	ops.rw_bytes = 2 * ENGINE_PAGE;
	refused(&ops, "its driver refgpu has rw_bytes 8192; allowed is 0 to 4096, in multiples of 4096");
	ops.rw_bytes = ENGINE_PAGE;
	assert_int_equal(engine_check(&ops, error), 0);
	ops = good();
	ops.reads = true;
	ops.submit_max = 2u << 20;
	refused(&ops, "its driver refgpu has submit_max 2097152; allowed is 64 to 1048576");
	ops = good();
	ops.translator = NULL;
	ops.asid_bits = 0;
	assert_int_equal(engine_check(&ops, error), 0);
	ops.tags_pasid = true;
	refused(&ops, "its driver refgpu has tags_pasid and no translator() that is told the PASID");
}

static void test_refgpu_verbs(void **state)
{
	struct refgpu_cmd c;

	assert_int_equal(refgpu_driver.verbs->fill(&c, 0x1000, 64, 7), sizeof(c));
	assert_true(c.op == REFGPU_FILL && c.value == 7 && c.dst == 0x1000 && c.len == 64);
	assert_int_equal(refgpu_driver.verbs->copy(&c, 0x1000, 0x2000, 64), sizeof(c));
	assert_true(c.op == REFGPU_COPY && c.dst == 0x1000 && c.src == 0x2000 && c.len == 64);
}

/* A change of any of these is another PASID_DRIVER_ABI. */
static void test_abi(void **state)
{
	assert_int_equal(PASID_DRIVER_ABI, 3);
	if (sizeof(void *) != 8)
		return;
	assert_int_equal(sizeof(struct engine_ops), 200);
	assert_int_equal(offsetof(struct engine_ops, match), 88);
	assert_int_equal(sizeof(struct translator_ops), 56);
	assert_int_equal(sizeof(struct engine_device_ops), 24);
	assert_int_equal(sizeof(struct engine_memory), 40);
	assert_int_equal(sizeof(struct engine_config), 40);
	assert_int_equal(sizeof(struct engine_job), 56);
	assert_int_equal(sizeof(struct engine_slot), 32);
	assert_int_equal(sizeof(struct translator_space), 24);
	assert_int_equal(sizeof(struct translator_fault), 48);
	assert_int_equal(sizeof(struct transport_ids), 8);
	assert_int_equal(sizeof(struct pasid_driver_verbs), 16);
	assert_int_equal(sizeof(struct pasid_driver), 24);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_find),         cmocka_unit_test(test_built_in),
		cmocka_unit_test(test_name),         cmocka_unit_test(test_calls),
		cmocka_unit_test(test_numbers),      cmocka_unit_test(test_numbers_together),
		cmocka_unit_test(test_refgpu_verbs), cmocka_unit_test(test_abi),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
