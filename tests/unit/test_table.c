/* SPDX-License-Identifier: MIT */
/* What pasidctl prints of numbers and names: columns, cut lines, colours; bytes; names in paths; and rates of two looks. */
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "bus.h"
#include "sample.h"
#include "table.h"

static const char *const columns[] = {"NAME", ">SIZE", "STATE"};

static void fill(struct table *t)
{
	table_row(t, COLOUR_NONE);
	table_cell(t, 0, "a");
	table_cell(t, 1, "%d", 12345);
	table_row(t, COLOUR_RED);
	table_cell(t, 0, "long name");
	table_cell(t, 1, "7");
	table_cell(t, 2, "gone");
}

static void expect(const char *text, bool coloured, size_t rows, size_t width)
{
	AUTO_TABLE struct table t = TABLE(columns);
	AUTO_FREE char *got = NULL;
	size_t size;
	FILE *f = open_memstream(&got, &size);

	fill(&t);
	table_print(&t, f, coloured, rows, width);
	fclose(f);
	assert_string_equal(got, text);
}

static void test_columns(void **state)
{
	expect("NAME        SIZE  STATE\n"
	       "a          12345\n"
	       "long name      7  gone\n",
	       false, 0, 0);
	expect("NAME        SIZE  STATE\n"
	       "a          12345\n",
	       false, 1, 0);
	expect("NAME        SI\n"
	       "a          123\n"
	       "long name\n",
	       false, 0, 14);
	expect("NAM\na\nlon\n", false, 0, 3);
	expect("\033[1mNAME        SIZE  STATE\033[0m\n"
	       "a          12345\n"
	       "\033[31mlong name      7  gone\033[0m\n",
	       true, 0, 0);
}

static void test_bytes(void **state)
{
	char to[16];

	assert_string_equal(table_bytes(0, to), "0 B");
	assert_string_equal(table_bytes(1023, to), "1023 B");
	assert_string_equal(table_bytes(4096, to), "4.0 KiB");
	assert_string_equal(table_bytes(1536u << 10, to), "1.5 MiB");
	assert_string_equal(table_bytes(200ull << 30, to), "200 GiB");
	assert_string_equal(table_bytes(UINT64_MAX, to), "16.0 EiB");
}

static void test_names(void **state)
{
	char to[64], path[256] = "/org/pasidd/device/";

	assert_string_equal(bus_device_name("/org/pasidd/device/gpu0", to), "gpu0");
	assert_string_equal(bus_device_name("/org/pasidd/device/gpu_5f0", to), "gpu_0");
	assert_string_equal(bus_device_name("a_", to), "a_");
	assert_string_equal(bus_device_name("a_5", to), "a_5");
	assert_string_equal(bus_device_name("_zz", to), "_zz");
	assert_string_equal(bus_device_name("", to), "");
	memset(path + strlen(path), 'x', 200);
	assert_int_equal(strlen(bus_device_name(path, to)), 63);
}

/* ---- samples ---- */

static struct json_object *list(const char *text)
{
	struct json_object *o = json_tokener_parse(text);

	assert_non_null(o);
	return o;
}

static void test_rates(void **state)
{
	AUTO_JSON struct json_object *devices = list("[{\"Name\": \"gpu_0\", \"SlotCount\": 4}, {\"Name\": \"b\"}]");
	AUTO_JSON struct json_object *first = list(
		"[{\"Id\": 1, \"Device\": \"/d/gpu_5f0\", \"Maps\": 10, \"Switches\": 5, \"DeviceTime\": 1000000000},"
		" {\"Id\": 2, \"Device\": \"/d/b\", \"Maps\": 7, \"DeviceTime\": 0}]");
	AUTO_JSON struct json_object *second = list(
		"[{\"Id\": 1, \"Device\": \"/d/gpu_5f0\", \"Maps\": 30, \"Switches\": 5, \"DeviceTime\": 3000000000},"
		" {\"Id\": 2, \"Device\": \"/d/b\", \"Maps\": 3, \"DeviceTime\": 9000000000},"
		" {\"Id\": 3, \"Device\": \"/d/b\", \"Maps\": 900, \"DeviceTime\": 9000000000}]");
	struct sample none = {0}, before, now;

	assert_int_equal(sample_take(&before, first, devices, 1000000000, &none), 0);
	assert_int_equal(before.n, 2);
	assert_true(before.v[0].share == 0 && before.v[0].maps_s == 0);
	assert_int_equal(sample_take(&now, second, devices, 3000000000, &before), 0);
	assert_int_equal(now.n, 3);
	/* The busiest first; a share is never more than all of it, and who is new has none. */
	assert_int_equal(now.v[0].id, 2);
	assert_true(now.v[0].share == 1 && now.v[0].maps_s == 0);
	assert_int_equal(now.v[1].id, 1);
	assert_true(now.v[1].share == 0.25 && now.v[1].maps_s == 10 && now.v[1].switches_s == 0);
	assert_int_equal(now.v[2].id, 3);
	assert_true(now.v[2].share == 0 && now.v[2].maps_s == 0);
	sample_fini(&before);
	sample_fini(&now);
}

/* What is not what it should be is nothing. */
static void test_other_types(void **state)
{
	AUTO_JSON struct json_object *o =
		list("{\"s\": \"x\", \"n\": 18446744073709551615, \"a\": [1, \"y\"], \"b\": true}");
	struct json_object *a;

	assert_true(json_object_object_get_ex(o, "a", &a));
	assert_string_equal(bus_string(o, "s"), "x");
	assert_string_equal(bus_string(o, "n"), "");
	assert_string_equal(bus_string(o, "none"), "");
	assert_string_equal(bus_string(a, "s"), "");
	assert_true(bus_number(o, "n") == UINT64_MAX);
	assert_int_equal(bus_number(o, "b"), 1);
	assert_int_equal(bus_number(o, "s"), 0);
	assert_int_equal(bus_number(NULL, "s"), 0);
	assert_int_equal(bus_number_at(a, 0), 1);
	assert_string_equal(bus_string_at(a, 1), "y");
	assert_int_equal(bus_number_at(a, 2), 0);
	assert_int_equal(bus_number_at(o, 0), 0);
	assert_string_equal(bus_string_at(NULL, 0), "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_columns), cmocka_unit_test(test_bytes),       cmocka_unit_test(test_names),
		cmocka_unit_test(test_rates),   cmocka_unit_test(test_other_types),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
