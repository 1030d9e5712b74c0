/* SPDX-License-Identifier: MIT */
/* The configuration: what each key does, and what is said about everything that is wrong. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pasid/pasid.h>
#include <pasid/protocol.h>

#include "base/util.h"
#include "config/config.h"

static char error[CONFIG_ERROR_MAX];

static struct config *parse(const char *text)
{
	struct config *c = NULL;

	if (config_parse(&c, text, strlen(text), "F", error) < 0)
		fail_msg("%s", error);
	assert_string_equal(error, "");
	return c;
}

#define TOP_KEYS "socket, devices, drivers, bus, admin_group, log_level, limits"

static void refused_bytes(const char *text, size_t len, const char *said)
{
	struct config *c = NULL;

	assert_true(config_parse(&c, text, len, "F", error) < 0);
	assert_null(c);
	assert_string_equal(error, said);
}

static void refused(const char *text, const char *said)
{
	refused_bytes(text, strlen(text), said);
}

/* ---- what is right ---- */

static void test_defaults(void **state)
{
	struct config *c = parse("{}");
	const struct limit_policy *l = &c->service.limits;

	assert_string_equal(c->socket_path, "/run/pasidd/socket");
	assert_int_equal(c->socket_mode, 0666);
	assert_int_equal(c->service.n_devices, 0);
	assert_int_equal(l->n_uids, 0);
	assert_int_equal(l->total_bytes, 64ull << 30);
	assert_int_equal(l->connection.v[PASID_RES_CONTEXTS], 256);
	assert_int_equal(l->connection.v[PASID_RES_HUGE], 0);
	assert_true(l->connection.v[PASID_RES_CONNECTIONS] == UINT64_MAX);
	assert_int_equal(l->uid.v[PASID_RES_CONNECTIONS], 128);
	for (uint32_t i = 0; i < PASID_RES_COUNT; i++) /* one connection alone cannot use up its uid's share */
		assert_true(i == PASID_RES_CONNECTIONS || l->connection.v[i] <= l->uid.v[i]);
	config_free(c);
	assert_null(config_free(NULL));
}

static void test_dbus(void **state)
{
	struct config *c = parse("{}");

	assert_string_equal(c->bus, "system");
	assert_string_equal(c->admin_group, "");
	assert_string_equal(c->log_level, "info");
	config_free(c);
	c = parse("{\"bus\": \"unix:path=/x\", \"admin_group\": \"gpu\", \"log_level\": \"debug\"}");
	assert_string_equal(c->bus, "unix:path=/x");
	assert_string_equal(c->admin_group, "gpu");
	assert_string_equal(c->log_level, "debug");
	config_free(c);
	refused("{\"bus\": \"tcp:host=x\"}",
		"F: bus: found \"tcp:host=x\"; allowed is \"system\", \"session\", \"none\", \"unix:path=...\" or "
		"\"unix:abstract=...\"");
	refused("{\"log_level\": \"loud\"}",
		"F: log_level: found \"loud\"; allowed is \"error\", \"warn\", \"info\" or \"debug\"");
}

/* What can change does, whatever else is in the file; the rest stays. */
static void test_apply(void **state)
{
	struct config *c = parse("{\"devices\": [{\"name\": \"a\", \"spec\": \"vfio-user:/a\"},"
				 " {\"name\": \"b\", \"spec\": \"vfio-user:/b\"}]}");
	struct config *now =
		parse("{\"devices\": [{\"name\": \"b\", \"spec\": \"vfio-user:/other\", \"job_limit_ms\": 77}],"
		      " \"socket\": {\"path\": \"/other\"}, \"admin_group\": \"gpu\", \"log_level\": \"warn\","
		      " \"limits\": {\"total_bytes\": 5, \"uids\": [{\"uid\": 7, \"limits\": {\"jobs\": 1}}]}}");
	const struct device_config *devices = c->service.devices;

	config_apply(c, now);
	config_free(now);
	assert_ptr_equal(c->service.devices, devices);
	assert_int_equal(c->service.n_devices, 2);
	assert_int_equal(devices[0].job_limit_ms, 2000);
	assert_int_equal(devices[1].job_limit_ms, 77);
	assert_string_equal(devices[1].spec, "vfio-user:/b");
	assert_string_equal(c->socket_path, "/run/pasidd/socket");
	assert_string_equal(c->admin_group, "gpu");
	assert_string_equal(c->log_level, "warn");
	assert_int_equal(c->service.limits.total_bytes, 5);
	assert_int_equal(c->service.limits.n_uids, 1);
	assert_int_equal(c->service.limits.uids[0].limits.v[PASID_RES_JOBS], 1);
	config_free(c);
}

static void test_socket(void **state)
{
	struct config *c = parse("{\"socket\": {\"path\": \"/x/y\", \"mode\": \"0600\"}}");

	assert_string_equal(c->socket_path, "/x/y");
	assert_int_equal(c->socket_mode, 0600);
	config_free(c);
	c = parse(" {\"socket\":{\"mode\":\"0\"}}\n\n");
	assert_int_equal(c->socket_mode, 0);
	assert_string_equal(c->socket_path, "/run/pasidd/socket");
	config_free(c);
}

static void test_devices(void **state)
{
	struct config *c = parse("{\"devices\": [{\"name\": \"gpu_0\", \"spec\": \"vfio-user:/a\"}, {\"spec\": "
				 "\"vfio-user:/b\", \"name\": \"B\", \"mode\": \"global\", \"format\": \"x86-64\", "
				 "\"slots\": 64, \"burst\": 16, \"job_limit_ms\": 10, \"answer_ms\": 60000, "
				 "\"table_pages\": 64}]}");
	const struct device_config *d = c->service.devices;

	assert_int_equal(c->service.n_devices, 2);
	assert_string_equal(d[0].name, "gpu_0");
	assert_string_equal(d[0].spec, "vfio-user:/a");
	assert_string_equal(d[0].format, "vmsa64");
	assert_int_equal(d[0].mode, PASID_MODE_GPU_MMU);
	assert_int_equal(d[0].slots, 0);
	assert_int_equal(d[0].burst, 4);
	assert_int_equal(d[0].job_limit_ms, 2000);
	assert_int_equal(d[0].answer_ms, 1000);
	assert_int_equal(d[0].table_pages, 262144);
	assert_string_equal(d[1].name, "B");
	assert_string_equal(d[1].format, "x86-64");
	assert_int_equal(d[1].mode, PASID_MODE_GLOBAL);
	assert_int_equal(d[1].slots, 64);
	assert_int_equal(d[1].burst, 16);
	assert_int_equal(d[1].job_limit_ms, 10);
	assert_int_equal(d[1].answer_ms, 60000);
	assert_int_equal(d[1].table_pages, 64);
	config_free(c);
}

/* Looked at only when they are loaded: config_parse() opens nothing. */
static void test_drivers(void **state)
{
	struct config *c = parse("{\"drivers\": [\"/not/there.so\", \"/nor/there\"]}");

	assert_int_equal(c->n_drivers, 2);
	assert_string_equal(c->drivers[0], "/not/there.so");
	assert_string_equal(c->drivers[1], "/nor/there");
	assert_int_equal(c->service.drivers.n, 0);
	config_free(c);
}

static const char *const limit_names[PASID_RES_COUNT] = {
	[PASID_RES_CONTEXTS] = "contexts", [PASID_RES_BUFFERS] = "buffers", [PASID_RES_MAPPINGS] = "mappings",
	[PASID_RES_BYTES] = "bytes",       [PASID_RES_HUGE] = "huge",       [PASID_RES_TABLES] = "tables",
	[PASID_RES_JOBS] = "jobs",         [PASID_RES_RATE] = "rate",       [PASID_RES_CONNECTIONS] = "connections",
};

static void test_each_limit(void **state)
{
	struct config *none = parse("{}"), *c;
	char text[160];

	for (uint32_t i = 0; i < PASID_RES_COUNT; i++) {
		snprintf(text, sizeof(text),
			 "{\"limits\": {\"connection\": {\"%s\": 3}, \"uid\": {\"%s\": 9223372036854775807}}}",
			 limit_names[i], limit_names[i]);
		c = parse(text);
		for (uint32_t k = 0; k < PASID_RES_COUNT; k++) {
			const struct limit_policy *l = &c->service.limits, *d = &none->service.limits;

			assert_true(l->connection.v[k] == (k == i ? 3 : d->connection.v[k]));
			assert_true(l->uid.v[k] == (k == i ? INT64_MAX : d->uid.v[k]));
		}
		config_free(c);
	}
	config_free(none);
}

/* A listed uid has everybody's limits but for those named, wherever everybody's stand in the file. */
static void test_uids(void **state)
{
	static const char *const v[] = {
		"{\"limits\": {\"uid\": {\"jobs\": 5}, \"uids\": [{\"uid\": 7, \"limits\": {\"bytes\": 1}}, {\"uid\": "
		"3}]}}",
		"{\"limits\": {\"uids\": [{\"limits\": {\"bytes\": 1}, \"uid\": 7}, {\"uid\": 3}], \"uid\": {\"jobs\": "
		"5}}}",
		"{\"limits\": {\"uids\": [{\"uid\": 3}, {\"limits\": {\"bytes\": 1}, \"uid\": 7}], \"uid\": {\"jobs\": "
		"5}}}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		struct config *c = parse(v[i]);
		const struct limit_policy *l = &c->service.limits;

		assert_int_equal(l->n_uids, 2);
		for (uint32_t k = 0; k < 2; k++) {
			bool seven = l->uids[k].uid == 7;

			assert_true(seven || l->uids[k].uid == 3);
			assert_int_equal(l->uids[k].limits.v[PASID_RES_JOBS], 5);
			assert_int_equal(l->uids[k].limits.v[PASID_RES_BYTES], seven ? 1 : l->uid.v[PASID_RES_BYTES]);
		}
		config_free(c);
	}
}

/* As JSON readers do, the last one counts; nothing is lost on the way. */
static void test_key_twice(void **state)
{
	struct config *c = parse("{\"socket\": {\"path\": \"/a\", \"path\": \"/b\"}, \"devices\": [{\"name\": \"x\", "
				 "\"spec\": \"vfio-user:/a\"}], \"devices\": []}");

	assert_string_equal(c->socket_path, "/b");
	assert_int_equal(c->service.n_devices, 0);
	config_free(c);
}

static void test_only_device(void **state)
{
	struct config *c = parse("{\"socket\": {\"path\": \"/a\"}, \"devices\": [{\"name\": \"x\", \"spec\": "
				 "\"vfio-user:/a\"}]}");
	char big[200];

	assert_int_equal(config_only_device(c, "vfio-user:/z", error), 0);
	assert_int_equal(c->service.n_devices, 1);
	assert_string_equal(c->service.devices[0].name, "gpu0");
	assert_string_equal(c->service.devices[0].spec, "vfio-user:/z");
	assert_string_equal(c->socket_path, "/a");
	assert_true(config_only_device(c, "tcp:/z", error) < 0);
	assert_string_equal(
		error,
		"--device: devices[0].spec: found \"tcp:/z\"; allowed is \"vfio-user:/PATH\" or \"vfio:0000:01:00.0\" "
		"(also iommufd:, type1:)");
	assert_true(config_only_device(c, "vfio-user:/\", \"slots\": \"", error) < 0);
	memset(big, 'x', sizeof(big));
	big[sizeof(big) - 1] = 0;
	assert_true(config_only_device(c, big, error) < 0);
	assert_string_equal(c->service.devices[0].spec, "vfio-user:/z");
	config_free(c);
}

/* ---- what is wrong ---- */

#define LIMITS "contexts, buffers, mappings, bytes, huge, tables, jobs, rate, connections"
#define DEVICE_KEYS "name, spec, mode, fallback, format, slots, burst, job_limit_ms, answer_ms, table_pages"

static void test_unknown_keys(void **state)
{
	refused("{\"x\": 1}", "F: found an unknown key \"x\"; allowed is " TOP_KEYS);
	refused("{\"\": 1}", "F: found an unknown key \"\"; allowed is " TOP_KEYS);
	refused("{\"a\\nb\": 1}", "F: found an unknown key \"a\\nb\"; allowed is " TOP_KEYS);
	refused("{\"Socket\": {}}", "F: found an unknown key \"Socket\"; allowed is " TOP_KEYS);
	refused("{\"socket\": {\"x\": 1}}", "F: socket: found an unknown key \"x\"; allowed is path, mode");
	refused("{\"devices\": [{\"x\": 1}]}", "F: devices[0]: found an unknown key \"x\"; allowed is " DEVICE_KEYS);
	refused("{\"limits\": {\"x\": 1}}",
		"F: limits: found an unknown key \"x\"; allowed is total_bytes, connection, uid, uids");
	refused("{\"limits\": {\"uid\": {\"x\": 1}}}", "F: limits.uid: found an unknown key \"x\"; allowed is " LIMITS);
	refused("{\"limits\": {\"connection\": {\"x\": 1}}}",
		"F: limits.connection: found an unknown key \"x\"; allowed is " LIMITS);
	refused("{\"limits\": {\"uids\": [{\"uid\": 1}, {\"x\": 1}]}}",
		"F: limits.uids[1]: found an unknown key \"x\"; allowed is uid, limits");
	refused("{\"limits\": {\"uids\": [{\"uid\": 1, \"limits\": {\"x\": 1}}]}}",
		"F: limits.uids[0].limits: found an unknown key \"x\"; allowed is " LIMITS);
}

static void test_wrong_types(void **state)
{
	refused("null", "F: found null; allowed is an object");
	refused("5", "F: found 5; allowed is an object");
	refused("[]", "F: found []; allowed is an object");
	refused("\"a/b\"", "F: found \"a/b\"; allowed is an object");
	refused("{\"socket\": 1}", "F: socket: found 1; allowed is an object");
	refused("{\"socket\": null}", "F: socket: found null; allowed is an object");
	refused("{\"devices\": {}}", "F: devices: found {}; allowed is an array of at most 64 objects");
	refused("{\"devices\": [[]]}", "F: devices[0]: found []; allowed is an object");
	refused("{\"devices\": [null]}", "F: devices[0]: found null; allowed is an object");
	refused("{\"drivers\": \"/x.so\"}", "F: drivers: found \"/x.so\"; allowed is an array of at most 64 paths");
	refused("{\"limits\": []}", "F: limits: found []; allowed is an object");
	refused("{\"limits\": {\"uid\": 7}}", "F: limits.uid: found 7; allowed is an object");
	refused("{\"limits\": {\"uids\": {}}}",
		"F: limits.uids: found {}; allowed is an array of at most 65536 objects");
	refused("{\"limits\": {\"uids\": [1]}}", "F: limits.uids[0]: found 1; allowed is an object");
	refused("{\"limits\": {\"uids\": [{\"uid\": 1, \"limits\": 5}]}}",
		"F: limits.uids[0].limits: found 5; allowed is an object");
}

static void number(const char *where, const char *before, const char *after, const char *found, const char *range)
{
	char text[400], said[400];

	snprintf(text, sizeof(text), "%s%s%s", before, found, after);
	snprintf(said, sizeof(said), "F: %s: found %s; allowed is a whole number from %s", where, found, range);
	refused(text, said);
}

static void test_numbers(void **state)
{
	static const struct {
		const char *where, *before, *after, *range, *below, *above;
	} v[] = {
#define DEV "{\"devices\": [{\"name\": \"x\", \"spec\": \"vfio-user:/x\", "
		{"devices[0].slots", DEV "\"slots\": ", "}]}", "0 to 64", "-1", "65"},
		{"devices[0].burst", DEV "\"burst\": ", "}]}", "1 to 16", "0", "17"},
		{"devices[0].job_limit_ms", DEV "\"job_limit_ms\": ", "}]}", "10 to 3600000", "9", "3600001"},
		{"devices[0].answer_ms", DEV "\"answer_ms\": ", "}]}", "10 to 60000", "9", "60001"},
		{"devices[0].table_pages", DEV "\"table_pages\": ", "}]}", "64 to 67108864", "63", "67108865"},
		{"limits.total_bytes", "{\"limits\": {\"total_bytes\": ", "}}", "0 to 9223372036854775807", "-1",
		 "9223372036854775808"},
		{"limits.uid.jobs", "{\"limits\": {\"uid\": {\"jobs\": ", "}}}", "0 to 9223372036854775807", "-5",
		 "18446744073709551614"},
		{"limits.uids[0].uid", "{\"limits\": {\"uids\": [{\"uid\": ", "}]}}", "0 to 4294967294", "-1",
		 "4294967295"},
	};
	static const char *const never[] = {"1.5",  "12.0", "1e3", "\"20\"", "true",
					    "null", "[20]", "{}",  "\"\"",   "-9223372036854775808"};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		number(v[i].where, v[i].before, v[i].after, v[i].below, v[i].range);
		number(v[i].where, v[i].before, v[i].after, v[i].above, v[i].range);
		for (size_t k = 0; k < ARRAY_SIZE(never); k++)
			number(v[i].where, v[i].before, v[i].after, never[k], v[i].range);
	}
}

/* Of numbers beyond 64 bits the parser keeps only that they are. */
static void test_huge_number(void **state)
{
	refused("{\"limits\": {\"total_bytes\": 99999999999999999999999999999999999999}}",
		"F: limits.total_bytes: found a number of 18446744073709551615 or more; allowed is a whole number from "
		"0 to "
		"9223372036854775807");
}

static void string(const char *where, const char *before, const char *after, const char *found, const char *allowed)
{
	char text[600], said[CONFIG_ERROR_MAX];

	snprintf(text, sizeof(text), "%s%s%s", before, found, after);
	snprintf(said, sizeof(said), "F: %s: found %.79s; allowed is %s", where, found, allowed);
	refused(text, said);
}

static void test_strings(void **state)
{
	static const struct {
		const char *where, *before, *after, *allowed, *wrong[9];
	} v[] = {
		{"socket.path",
		 "{\"socket\": {\"path\": ",
		 "}}",
		 "a path of at most 107 bytes",
		 {"\"\"", "1", "null", "[]", "\"a\\u0000b\""}},
		{"socket.mode",
		 "{\"socket\": {\"mode\": ",
		 "}}",
		 "an octal mode in a string, as \"0660\"",
		 {"\"\"", "438", "\"8\"", "\"1000\"", "\"-1\"", "\"+7\"", "\" 7\"", "\"7\\u0000\"",
		  "\"777777777777777777777777\""}},
		{"devices[0].name",
		 "{\"devices\": [{\"name\": ",
		 "}]}",
		 "1 to 31 letters, digits and underscores, not \"iommu\" or \"vfio\"",
		 {"\"\"", "7", "\"iommu\"", "\"vfio\"", "\"a-b\"", "\"a b\"", "\"ä\"", "\"a/b\"",
		  "\"abcdefghijklmnopqrstuvwxyz012345\""}},
		{"devices[0].spec",
		 "{\"devices\": [{\"spec\": ",
		 "}]}",
		 "\"vfio-user:/PATH\" or \"vfio:0000:01:00.0\" (also iommufd:, type1:)",
		 {"\"\"", "0", "\"vfio-user:/\"", "\"vfio-user:x/y\"", "\"vfio:0000:01:00\"", "\"vfio:/dev/vfio/7\"",
		  "\"type1\"", "null"}},
		{"drivers[0]",
		 "{\"drivers\": [",
		 "]}",
		 "an absolute path of at most 255 bytes",
		 {"\"\"", "1", "null", "[]", "\"x.so\"", "\"./x.so\"", "\"/x\\ny\"", "\"/a\\u0000b\""}},
		{"devices[0].mode",
		 "{\"devices\": [{\"mode\": ",
		 "}]}",
		 "\"gpu-mmu\", \"nested\", \"pasid\", \"exclusive\" or \"global\"",
		 {"\"\"", "1", "\"Global\"", "\"nestde\"", "\"global\\u0000\"", "null"}},
		{"devices[0].fallback",
		 "{\"devices\": [{\"fallback\": ",
		 "}]}",
		 "\"exclusive\"",
		 {"\"\"", "1", "\"nested\"", "\"pasid\"", "\"exclusive\\u0000\"", "null"}},
		{"devices[0].format",
		 "{\"devices\": [{\"format\": ",
		 "}]}",
		 "\"vmsa64\" or \"x86-64\"",
		 {"\"\"", "64", "\"x86_64\"", "\"vmsa64\\u0000\"", "null"}},
	};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		for (size_t k = 0; k < ARRAY_SIZE(v[i].wrong) && v[i].wrong[k]; k++)
			string(v[i].where, v[i].before, v[i].after, v[i].wrong[k], v[i].allowed);
}

static void test_long_path(void **state)
{
	char path[110], text[160];
	struct config *c;

	for (int len = 107; len <= 108; len++) {
		memset(path, 'p', sizeof(path));
		path[len] = 0;
		snprintf(text, sizeof(text), "{\"socket\": {\"path\": \"%s\"}}", path);
		if (len == 107) {
			c = parse(text);
			assert_string_equal(c->socket_path, path);
			config_free(c);
		} else {
			assert_true(config_parse(&c, text, strlen(text), "F", error) < 0);
			assert_non_null(strstr(error, "allowed is a path of at most 107 bytes"));
		}
	}
}

static void test_missing_and_twice(void **state)
{
	refused("{\"devices\": [{}]}", "F: devices[0]: found no \"name\"; it is required");
	refused("{\"devices\": [{\"spec\": \"vfio-user:/x\"}]}", "F: devices[0]: found no \"name\"; it is required");
	refused("{\"devices\": [{\"name\": \"x\"}]}", "F: devices[0]: found no \"spec\"; it is required");
	refused("{\"devices\": [{\"name\": \"x\", \"spec\": \"vfio-user:/x\"}, {\"name\": \"x\", \"spec\": "
		"\"vfio-user:/y\"}]}",
		"F: devices[1].name: found \"x\" a second time; allowed is a name of its own");
	refused("{\"devices\": [{\"name\": \"x\", \"spec\": \"vfio:00:01.0\", \"fallback\": \"exclusive\"}]}",
		"F: devices[0].fallback: found with mode \"gpu-mmu\"; allowed is it with mode \"nested\"");
	refused("{\"devices\": [{\"name\": \"x\", \"spec\": \"vfio:00:01.0\", \"mode\": \"nested\", \"format\": "
		"\"x86-64\"}]}",
		"F: devices[0].format: found with mode \"nested\"; allowed is \"vmsa64\"");
	refused("{\"drivers\": [\"/x.so\", \"/y.so\", \"/x.so\"]}",
		"F: drivers[2]: found \"/x.so\"; allowed is each path once");
	refused("{\"limits\": {\"uids\": [{\"limits\": {}}]}}", "F: limits.uids[0]: found no \"uid\"; it is required");
	refused("{\"limits\": {\"uids\": [{\"uid\": 5}, {\"uid\": 4}, {\"uid\": 5}]}}",
		"F: limits.uids: found uid 5 more than once; allowed is one entry each");
}

static void test_too_many_devices(void **state)
{
	char text[8192] = "{\"devices\": [";
	size_t len = strlen(text);

	for (int i = 0; i < 65; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len,
					"%s{\"name\": \"d%d\", \"spec\": \"vfio-user:/x\"}", i ? ", " : "", i);
	snprintf(text + len, sizeof(text) - len, "]}");
	assert_null(strstr(text, "d65"));
	{
		struct config *c;

		assert_true(config_parse(&c, text, strlen(text), "F", error) < 0);
		assert_non_null(strstr(error, "; allowed is an array of at most 64 objects"));
		assert_non_null(strstr(error, "F: devices: found [{\"name\":\"d0\","));
	}
}

/* ---- what is no JSON ---- */

/* What follows the place is json-c's to say, and says something else in each version. */
static void not_json(const char *text, size_t len, const char *said)
{
	struct config *c = NULL;

	assert_int_equal(config_parse(&c, text, len, "F", error), -EINVAL);
	assert_true(strlen(error) >= strlen(said));
	error[strlen(said)] = 0;
	assert_string_equal(error, said);
}

static void test_not_json(void **state)
{
	not_json("", 0, "F: not JSON at byte 0 of 0: ");
	not_json(" ", 1, "F: not JSON at byte 1 of 1: ");
	not_json("{", 1, "F: not JSON at byte 1 of 1: ");
	not_json("{} x", 4, "F: not JSON at byte 3 of 4: ");
	not_json("{}\0", 3, "F: not JSON at byte 2 of 3: a NUL byte");
	not_json("{}\0{}", 5, "F: not JSON at byte 2 of 5: a NUL byte");
	not_json("\0", 1, "F: not JSON at byte 0 of 1: a NUL byte");
	not_json("{,}", 3, "F: not JSON at byte 1 of 3: ");
	not_json("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 30, "F: not JSON at byte 16 of 30: ");
	not_json("{\"socket\": {\"path\": \"\377\"}}", 26, "F: not JSON at byte 2");
}

static void test_size(void **state)
{
	char *text = malloc(CONFIG_FILE_MAX + 2);
	struct config *c = NULL;

	assert_non_null(text);
	memset(text, ' ', CONFIG_FILE_MAX + 2);
	memcpy(text, "{}", 2);
	assert_int_equal(config_parse(&c, text, CONFIG_FILE_MAX, "F", error), 0);
	config_free(c);
	assert_int_equal(config_parse(&c, text, CONFIG_FILE_MAX + 1, "F", error), -EFBIG);
	assert_string_equal(error, "F: found more than 1048576 bytes; allowed is at most that");
	free(text);
}

/* ---- files ---- */

static void test_load(void **state)
{
	char path[] = "/tmp/test_config.XXXXXX";
	int fd = mkstemp(path);
	struct config *c = NULL;
	char said[256];

	assert_true(fd >= 0);
	assert_int_equal(write(fd, "{\"socket\": {\"path\": \"/s\"}}", 26), 26);
	assert_int_equal(config_load(&c, path, error), 0);
	assert_string_equal(c->socket_path, "/s");
	config_free(c);
	assert_int_equal(ftruncate(fd, CONFIG_FILE_MAX + 1), 0);
	assert_int_equal(config_load(&c, path, error), -EFBIG);
	close(fd);
	unlink(path);
	assert_int_equal(config_load(&c, path, error), -ENOENT);
	snprintf(said, sizeof(said), "%s: cannot be opened: No such file or directory", path);
	assert_string_equal(error, said);
	assert_int_equal(config_load(&c, "/", error), -EISDIR);
	assert_string_equal(error, "/: cannot be read: Is a directory");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_socket),
		cmocka_unit_test(test_dbus),
		cmocka_unit_test(test_apply),
		cmocka_unit_test(test_devices),
		cmocka_unit_test(test_drivers),
		cmocka_unit_test(test_each_limit),
		cmocka_unit_test(test_uids),
		cmocka_unit_test(test_key_twice),
		cmocka_unit_test(test_only_device),
		cmocka_unit_test(test_unknown_keys),
		cmocka_unit_test(test_wrong_types),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_huge_number),
		cmocka_unit_test(test_strings),
		cmocka_unit_test(test_long_path),
		cmocka_unit_test(test_missing_and_twice),
		cmocka_unit_test(test_too_many_devices),
		cmocka_unit_test(test_not_json),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_load),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
