/* SPDX-License-Identifier: MIT */
/* Paths of objects and addresses of buses: what is understood, that there is one way to write each, and what is not. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "dbus/path.h"
#include "dbus/wire.h"

static void test_nodes(void **state)
{
	struct bus_path p;

	for (enum bus_node n = NODE_ROOT; n <= NODE_CONTEXTS; n++) {
		assert_true(path_parse(path_of_node(n), &p));
		assert_int_equal(p.node, n);
	}
}

static void test_contexts(void **state)
{
	static const uint32_t ids[] = {1, 9, 10, 4294967295u};
	static const char *const bad[] = {"0", "01", "+1", "-1", " 1", "1 ", "4294967296", "18446744073709551617",
					  "",  "x",  "1x"};
	char path[BUS_PATH_MAX];
	struct bus_path p;

	for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
		path_of_context(ids[i], path);
		assert_true(path_parse(path, &p));
		assert_int_equal(p.node, NODE_CONTEXT);
		assert_int_equal(p.id, ids[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(path, sizeof(path), "/org/pasidd/context/%s", bad[i]);
		assert_false(path_parse(path, &p));
	}
}

static void test_devices(void **state)
{
	static const char *const names[] = {
		"gpu0", "_", "a_b", "___", "A9z", "a123456789012345678901234567890", "_______________________________"};
	static const char *const bad[] = {"",        "_",   "_5",  "_5F", "_67", "a_",
					  "_61",     "_00", "a/b", "a-b", "_ 5", "a1234567890123456789012345678901",
					  "_5f_5f_5"};
	char path[BUS_PATH_MAX];
	struct bus_path p;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		path_of_device(names[i], path);
		assert_int_equal(strspn(path + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/"),
				 strlen(path + 1));
		assert_true(path_parse(path, &p));
		assert_int_equal(p.node, NODE_DEVICE);
		assert_string_equal(p.device, names[i]);
	}
	path_of_device("gpu_0", path);
	assert_string_equal(path, "/org/pasidd/device/gpu_5f0");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		snprintf(path, sizeof(path), "/org/pasidd/device/%s", bad[i]);
		assert_false(path_parse(path, &p));
	}
}

static void test_no_paths(void **state)
{
	static const char *const bad[] = {"",
					  "/org/",
					  "/org/pasid",
					  "/org/pasiddx",
					  "/org/pasidd/",
					  "/org/pasidd/contexts",
					  "/org/pasidd/context/1/2",
					  "org/pasidd"};
	struct bus_path p;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(path_parse(bad[i], &p));
}

static void test_types(void **state)
{
	assert_int_equal(path_type(""), 0);
	assert_int_equal(path_type("st"), 1);
	assert_int_equal(path_type("a{sv}u"), 5);
	assert_int_equal(path_type("a(ttuutt)b"), 9);
	assert_int_equal(path_type("a{oa{sa{sv}}}"), 13);
	assert_int_equal(path_type("aas"), 3);
	assert_int_equal(path_type("(a(uu)t)s"), 8);
}

static void address(const char *where, const char *path)
{
	struct sockaddr_un addr;
	socklen_t len;

	assert_int_equal(wire_address(where, &addr, &len), 0);
	assert_int_equal(addr.sun_family, AF_UNIX);
	if (path[0] == '@') {
		assert_int_equal(len, offsetof(struct sockaddr_un, sun_path) + strlen(path));
		assert_int_equal(addr.sun_path[0], 0);
		assert_memory_equal(addr.sun_path + 1, path + 1, strlen(path) - 1);
	} else {
		assert_int_equal(len, offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
		assert_string_equal(addr.sun_path, path);
	}
}

static void no_address(const char *where, int error)
{
	struct sockaddr_un addr;
	socklen_t len;

	assert_int_equal(wire_address(where, &addr, &len), error);
}

static void test_addresses(void **state)
{
	char lengthy[160] = "unix:path=/";

	address("unix:path=/run/bus", "/run/bus");
	address("unix:path=/run/b%20us,guid=1234", "/run/b us");
	address("unix:guid=1234,path=/run/bus;unix:path=/other", "/run/bus");
	address("unix:abstract=/tmp/x%2f1", "@/tmp/x/1");
	no_address("", -EINVAL);
	no_address("system ", -EINVAL);
	no_address("tcp:host=localhost,port=1", -EINVAL);
	no_address("unix:", -EINVAL);
	no_address("unix:path=", -EINVAL);
	no_address("unix:tmpdir=/tmp", -EINVAL);
	no_address("unix:guid=1;path=/run/bus", -EINVAL);
	no_address("unix:path=/run/%zz", -EINVAL);
	memset(lengthy + strlen(lengthy), 'x', 120);
	no_address(lengthy, -ENAMETOOLONG);
}

static void test_names_of_buses(void **state)
{
	unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
	address("system", "/run/dbus/system_bus_socket");
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/other", 1);
	address("system", "/other");
	unsetenv("DBUS_SESSION_BUS_ADDRESS");
	unsetenv("XDG_RUNTIME_DIR");
	no_address("session", -ENOENT);
	setenv("XDG_RUNTIME_DIR", "/run/user/5", 1);
	address("session", "/run/user/5/bus");
	setenv("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=y", 1);
	address("session", "@y");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nodes),          cmocka_unit_test(test_contexts),
		cmocka_unit_test(test_devices),        cmocka_unit_test(test_no_paths),
		cmocka_unit_test(test_types),          cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_names_of_buses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
