/* SPDX-License-Identifier: MIT */
/*
 * pasidctl bind and unbind, beside a kernel of the test's own that answers the writes to sysfs. Each step is made to
 * fail once: afterwards all is as before.
 */
#include <fcntl.h>
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"
#include "bind.h"
#include "machine_tree.h"
#include "persist.h"

#define DEV "sys/bus/pci/devices/"
#define EDU "0000:00:01.0"
#define CARD "0000:00:03.0"
#define RULES "etc/udev/rules.d"
#define RULE_EDU RULES "/20-pasidd-" EDU ".rules"
#define RULE_CARD RULES "/20-pasidd-" CARD ".rules"

struct kernel {
	struct machine m;
	unsigned int stores; /* so far */
	unsigned int fail_at, fail_from; /* of them; 0: none */
	const char *spoil; /* somebody puts a file of his own here while the last device is bound; NULL: nobody does */
	const char *native; /* the driver for whoever has no override; NULL: none */
	bool vfio_refuses; /* vfio-pci's probe fails, which drivers_probe does not say */
	struct said out, err;
};

static void driver_of(const struct machine *m, const char *bdf, char ret[64])
{
	machine_link(m, ret, 64, DEV "%s/driver", bdf);
}

static void override_of(const struct machine *m, const char *bdf, char ret[64])
{
	machine_read(m, ret, 64, DEV "%s/driver_override", bdf);
}

static int bind_to(const struct machine *m, const char *bdf, const char *driver)
{
	char path[128], target[128], now[64];

	driver_of(m, bdf, now);
	if (now[0] || !machine_has(m, "sys/bus/pci/drivers/%s", driver))
		return -ENODEV;
	snprintf(path, sizeof(path), DEV "%s/driver", bdf);
	snprintf(target, sizeof(target), "../../../bus/pci/drivers/%s", driver);
	tree_link(path, target);
	return 0;
}

static int probe(const struct kernel *k, const struct machine *m, const char *bdf)
{
	char now[64], override[64];

	driver_of(m, bdf, now);
	if (now[0])
		return 0;
	override_of(m, bdf, override);
	if (!strcmp(override, "(null)"))
		return k->native ? bind_to(m, bdf, k->native) : 0;
	if (k->vfio_refuses && !strcmp(override, "vfio-pci"))
		return 0;
	return bind_to(m, bdf, override);
}

static int bind_as_told(const struct machine *m, const char *bdf, const char *driver)
{
	char override[64];

	override_of(m, bdf, override);
	if (strcmp(override, "(null)") != 0 && strcmp(override, driver) != 0)
		return -ENODEV;
	return bind_to(m, bdf, driver);
}

static int kernel_store(void *arg, const struct machine *m, const char *path, const char *text)
{
	struct kernel *k = arg;
	char bdf[64], what[64], link[128];

	if (++k->stores == k->fail_at || (k->fail_from && k->stores >= k->fail_from))
		return -EIO;
	if (k->spoil)
		tree_file(k->spoil, "# mine\n");
	if (!strcmp(path, "sys/bus/pci/drivers_probe"))
		return probe(k, m, text);
	if (sscanf(path, "sys/bus/pci/drivers/%63[^/]/bind", what) == 1)
		return bind_as_told(m, text, what);
	assert_int_equal(sscanf(path, DEV "%63[^/]/%63s", bdf, what), 2);
	if (!strcmp(what, "driver_override")) {
		tree_file(path, strcmp(text, "\n") ? text : "(null)\n");
		return 0;
	}
	assert_string_equal(what, "driver/unbind");
	assert_string_equal(text, bdf);
	driver_of(m, bdf, what);
	if (!what[0])
		return -ENODEV;
	snprintf(link, sizeof(link), DEV "%s/driver", bdf);
	return unlink(tree_at(link)) < 0 ? -errno : 0;
}

/* edu, bound to `driver` ("" for none) with this override; udev is there. */
static void kernel_open(struct kernel *k, const char *driver, const char *override)
{
	*k = (struct kernel){0};
	tree_open(&k->m, "stock");
	k->m.store = kernel_store;
	k->m.arg = k;
	tree_directory(RULES);
	tree_directory("sys/bus/pci/drivers/native");
	tree_remove(DEV EDU "/driver");
	if (driver[0])
		assert_int_equal(bind_to(&k->m, EDU, driver), 0);
	tree_file(DEV EDU "/driver_override", override);
	said_open(&k->out);
	said_open(&k->err);
}

/* A second device in edu's group. */
static void add_card(struct kernel *k, const char *driver)
{
	tree_file("sys/devices/pci0000:00/0000:00:03.0/vendor", "0x8086\n");
	tree_file("sys/devices/pci0000:00/0000:00:03.0/device", "0x10d3\n");
	tree_file("sys/devices/pci0000:00/0000:00:03.0/class", "0x020000\n");
	tree_file("sys/devices/pci0000:00/0000:00:03.0/driver_override", "(null)\n");
	tree_link("sys/devices/pci0000:00/0000:00:03.0/iommu_group", "../../../kernel/iommu_groups/1");
	tree_link(DEV CARD, "../../../devices/pci0000:00/0000:00:03.0");
	tree_link("sys/kernel/iommu_groups/1/devices/" CARD, "../../../../devices/pci0000:00/0000:00:03.0");
	if (driver)
		assert_int_equal(bind_to(&k->m, CARD, driver), 0);
}

static void kernel_close(struct kernel *k)
{
	said_close(&k->out);
	said_close(&k->err);
	tree_close(&k->m);
}

enum verb { BIND, PERSIST, UNBIND, DRY_BIND, DRY_UNBIND };

static int run(struct kernel *k, enum verb verb, const char *a, const char *b)
{
	const struct bind_options o = {
		.dry_run = verb >= DRY_BIND, .persist = verb == PERSIST, .out = k->out.f, .err = k->err.f};
	char bdfs[2][PCI_BDF_SIZE] = {""};

	strcpy(bdfs[0], a);
	strcpy(bdfs[1], b ? b : "");
	return (verb == UNBIND || verb == DRY_UNBIND ? unbind_devices : bind_devices)(&k->m, bdfs, b ? 2 : 1, &o);
}

static void expect_state(struct kernel *k, const char *bdf, const char *driver, const char *override)
{
	char text[64];

	driver_of(&k->m, bdf, text);
	assert_string_equal(text, driver);
	override_of(&k->m, bdf, text);
	assert_string_equal(text, override);
}

static void expect_said(struct said *s, const char *words)
{
	if (!strstr(said_text(s), words))
		fail_msg("\"%s\" is not in:\n%s", words, said_text(s));
}

static void test_bind_and_back(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	k.native = "native";
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	expect_state(&k, EDU, "vfio-pci", "vfio-pci");
	assert_string_equal(said_text(&k.out),
			    EDU " (1234:11e8), bound to native, goes to vfio-pci:\n"
				"  vfio-pci > /sys/bus/pci/devices/" EDU "/driver_override\n"
				"  " EDU " > /sys/bus/pci/drivers/native/unbind: native loses it\n"
				"  " EDU " > /sys/bus/pci/drivers_probe\n" EDU " is bound to vfio-pci\n");
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	expect_said(&k.out, EDU " (1234:11e8) is bound to vfio-pci already\n");
	assert_int_equal(k.stores, 3);
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_state(&k, EDU, "native", "(null)");
	expect_said(&k.out, EDU " is bound to native\n");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_said(&k.out, "nothing to do");
	assert_int_equal(k.stores, 6);
	assert_false(machine_has(&k.m, RULE_EDU));
	kernel_close(&k);
}

static void test_no_driver(void **state)
{
	struct kernel k;

	kernel_open(&k, "", "(null)\n");
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	expect_state(&k, EDU, "vfio-pci", "vfio-pci");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_state(&k, EDU, "", "(null)");
	expect_said(&k.out, EDU " is bound to no driver: none of this kernel's");
	kernel_close(&k);
}

/* A device with its usual driver and an override left over: the override goes, the driver stays. */
static void test_override_left_over(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "vfio-pci\n");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_state(&k, EDU, "native", "(null)");
	assert_int_equal(k.stores, 2);
	kernel_close(&k);
}

static void test_dry(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "pci-stub\n");
	assert_int_equal(run(&k, DRY_BIND, EDU, NULL), 0);
	expect_said(&k.out, "driver_override, where pci-stub was\n");
	assert_int_equal(run(&k, DRY_UNBIND, EDU, NULL), 0);
	assert_int_equal(k.stores, 0);
	expect_state(&k, EDU, "native", "pci-stub");
	kernel_close(&k);
}

/* What it came to, and nothing else is printed. */
static void test_json(void **state)
{
	struct bind_options o = {.json = true, .persist = true, .dry_run = true};
	char bdfs[1][PCI_BDF_SIZE] = {EDU};
	struct json_object *all, *v;
	struct kernel k;

	for (int dry = 1; dry >= 0; dry--) {
		kernel_open(&k, "native", "(null)\n");
		o.out = k.out.f;
		o.err = k.err.f;
		o.dry_run = dry;
		assert_int_equal(bind_devices(&k.m, bdfs, 1, &o), 0);
		all = json_tokener_parse(said_text(&k.out));
		assert_int_equal(json_object_get_boolean(json_object_object_get(all, "dry_run")), dry);
		v = json_object_array_get_idx(json_object_object_get(all, "devices"), 0);
		assert_string_equal(json_object_get_string(json_object_object_get(v, "bdf")), EDU);
		assert_string_equal(json_object_get_string(json_object_object_get(v, "before")), "native");
		assert_string_equal(json_object_get_string(json_object_object_get(v, "now")),
				    dry ? "native" : "vfio-pci");
		assert_int_equal(json_object_get_boolean(json_object_object_get(v, "at_each_start")), !dry);
		json_object_put(all);
		kernel_close(&k);
	}
}

static void test_persist(void **state)
{
	static const char rule[] =
		"\nACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"" EDU "\", ATTR{vendor}==\"0x1234\", "
		"ATTR{device}==\"0x11e8\", ATTR{driver_override}=\"vfio-pci\", "
		"RUN{builtin}+=\"kmod load vfio-pci\", RUN+=\"";
	char text[1024];
	struct stat st;
	struct kernel k;
	size_t n;

	kernel_open(&k, "native", "(null)\n");
	k.native = "native";
	for (int i = 0; i < 2; i++) {
		assert_int_equal(run(&k, PERSIST, EDU, NULL), 0);
		assert_int_equal(machine_bytes(&k.m, text, sizeof(text) - 1, &n, RULE_EDU), 0);
		text[n] = '\0';
		assert_non_null(strstr(text, rule));
		assert_non_null(strstr(text, "/pasidctl bind " EDU "\"\n"));
		assert_int_equal(stat(tree_at(RULE_EDU), &st), 0);
		assert_int_equal(st.st_mode & 07777, 0644);
	}
	expect_said(&k.out, "/" RULE_EDU " does the same at each start\n");
	expect_said(&k.out, "/" RULE_EDU " is there, and is written anew\n");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_said(&k.out, "/" RULE_EDU " is removed\n");
	assert_false(machine_has(&k.m, RULE_EDU));
	assert_int_equal(rmdir(tree_at(RULES)), 0);
	kernel_close(&k);
}

/* A link is somebody else's, also if it leads to a rule of ours. */
static void test_rule_is_link(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	assert_int_equal(run(&k, PERSIST, EDU, NULL), 0);
	assert_int_equal(renameat(k.m.root, RULE_EDU, k.m.root, "etc/rule"), 0);
	tree_link(RULE_EDU, "../../rule");
	assert_int_equal(run(&k, PERSIST, EDU, NULL), 1);
	expect_said(&k.err, "pasidctl: /" RULE_EDU " is not pasidctl's; move it away\n");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	assert_true(machine_has(&k.m, RULE_EDU));
	kernel_close(&k);
}

/* Nothing is done, status 1, and these words are said. */
static void expect_refusal(struct kernel *k, enum verb verb, const char *words)
{
	unsigned int stores = k->stores;

	assert_int_equal(run(k, verb, EDU, NULL), 1);
	expect_said(&k->err, words);
	assert_int_equal(k->stores, stores);
	assert_string_equal(said_text(&k->out), "");
}

#define REFUSAL(verb, words, change)                       \
	do {                                               \
		struct kernel k;                           \
		kernel_open(&k, "native", "(null)\n");     \
		change;                                    \
		expect_refusal(&k, verb, words);           \
		expect_state(&k, EDU, "native", "(null)"); \
		kernel_close(&k);                          \
	} while (0)

static void test_refusals(void **state)
{
	REFUSAL(BIND, "vfio-pci is not there; type: modprobe vfio-pci\n", tree_remove("sys/bus/pci/drivers/vfio-pci"));
	REFUSAL(DRY_BIND, "behind no IOMMU", unlink(tree_at(DEV EDU "/iommu_group")));
	REFUSAL(BIND, "behind no IOMMU", tree_file("sys/kernel/iommu_groups/1/name", "vfio-noiommu\n"));
	REFUSAL(PERSIST, "there is no /etc/udev/rules.d: --persist needs udev\n", tree_remove("etc"));
	REFUSAL(PERSIST, "is not pasidctl's", tree_file(RULE_EDU, "# mine\n"));
	REFUSAL(PERSIST, "is not pasidctl's", tree_file(RULE_EDU, ""));
	REFUSAL(PERSIST, "is not pasidctl's", tree_file(RULE_EDU, "# Written by pasidctl"));
	REFUSAL(PERSIST, "is not pasidctl's", tree_directory(RULE_EDU));
	REFUSAL(PERSIST, "is not pasidctl's", tree_link(RULE_EDU, "/etc/passwd"));
	REFUSAL(BIND, "type: modprobe -r vfio-pci && modprobe vfio-pci disable_denylist=1\n",
		tree_file(DEV EDU "/vendor", "0x8086\n");
		tree_file(DEV EDU "/device", "0x0cfe\n"));
	REFUSAL(BIND, "is a bridge",
		tree_file(DEV EDU "/config", "0123456789abcd\x81 123456789abcdef0123456789abcdef0123456789abcdef!"));
}

static void test_no_override(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	unlink(tree_at(DEV EDU "/driver_override"));
	expect_refusal(&k, BIND, "needs Linux 3.16 or newer\n");
	kernel_close(&k);
}

static void test_not_there(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	assert_int_equal(run(&k, BIND, "0000:00:09.0", NULL), 2);
	assert_int_equal(run(&k, UNBIND, EDU, "0000:00:09.0"), 2);
	expect_said(&k.err, "pasidctl: there is no PCI device 0000:00:09.0; type: ls /sys/bus/pci/devices\n");
	tree_file(DEV EDU "/vendor", "hello");
	assert_int_equal(run(&k, BIND, EDU, NULL), 2);
	expect_said(&k.err, "is not understood");
	assert_int_equal(k.stores, 0);
	kernel_close(&k);
}

static void test_group(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "native");
	expect_refusal(&k, BIND, "pasidctl: " CARD " is in the same group (1) as " EDU ", and native has it\n");
	expect_said(&k.err, "type: pasidctl bind " EDU " " CARD "\n");
	assert_int_equal(run(&k, PERSIST, EDU, CARD), 0);
	expect_state(&k, EDU, "vfio-pci", "vfio-pci");
	expect_state(&k, CARD, "vfio-pci", "vfio-pci");
	assert_true(machine_has(&k.m, RULE_EDU) && machine_has(&k.m, RULE_CARD));
	k.native = "native";
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	expect_state(&k, CARD, "vfio-pci", "vfio-pci");
	kernel_close(&k);
}

/* At the machine's start each rule binds its device; that the other one is not bound yet must not keep it from that. */
static void test_group_at_start(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "native");
	assert_int_equal(run(&k, PERSIST, EDU, CARD), 0);
	tree_link(DEV EDU "/driver", "../../../bus/pci/drivers/native");
	tree_link(DEV CARD "/driver", "../../../bus/pci/drivers/native");
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	assert_int_equal(run(&k, BIND, CARD, NULL), 0);
	kernel_close(&k);
}

/* Others without a driver, or with one that does not mind. */
static void test_group_harmless(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, NULL);
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	kernel_close(&k);
	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "pcieport");
	assert_int_equal(run(&k, BIND, EDU, NULL), 0);
	kernel_close(&k);
}

static void test_in_use(void **state)
{
	struct kernel k;

	kernel_open(&k, "vfio-pci", "vfio-pci\n");
	tree_file("proc/312/comm", "pasidd\n");
	tree_link("proc/312/fd/7", "/dev/vfio/1");
	tree_link("proc/311/fd/7", "/dev/vfio/12");
	tree_link("proc/self/fd/7", "/dev/vfio/1");
	expect_refusal(&k, UNBIND, "pasidctl: " EDU " is in use by process 312 (pasidd); end that first\n");
	expect_state(&k, EDU, "vfio-pci", "vfio-pci");
	tree_file(DEV EDU "/vfio-dev/vfio0/dev", "251:0\n");
	tree_link("proc/312/fd/7", "/dev/vfio/devices/vfio0");
	expect_refusal(&k, UNBIND, "process 312");
	tree_remove("proc/312");
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 0);
	kernel_close(&k);
}

static void test_vfio_refuses(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	k.vfio_refuses = true;
	assert_int_equal(run(&k, BIND, EDU, NULL), 1);
	expect_said(&k.err, "vfio-pci did not take it; type: dmesg | tail\n");
	expect_said(&k.err, EDU " is as it was, bound to native\n");
	expect_state(&k, EDU, "native", "(null)");
	kernel_close(&k);
}

/* It was told to take all of the kind. */
static void test_vfio_insists(void **state)
{
	struct kernel k;

	kernel_open(&k, "vfio-pci", "(null)\n");
	k.native = "vfio-pci";
	assert_int_equal(run(&k, UNBIND, EDU, NULL), 1);
	expect_said(&k.err, "type: echo 1234 11e8 > /sys/bus/pci/drivers/vfio-pci/remove_id\n");
	expect_state(&k, EDU, "vfio-pci", "(null)");
	kernel_close(&k);
}

/* The directory of rules cannot be written, because it is none: the devices go back. */
static void test_rule_fails(void **state)
{
	struct kernel k;
	int fd;

	kernel_open(&k, "native", "(null)\n");
	assert_int_equal(rmdir(tree_at(RULES)), 0);
	fd = open(tree_at(RULES), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(run(&k, PERSIST, EDU, NULL), 1);
	expect_said(&k.err, "changing the rule for udev failed: Not a directory\n");
	expect_state(&k, EDU, "native", "(null)");
	assert_int_equal(unlink(tree_at(RULES)), 0);
	assert_int_equal(mkdir(tree_at(RULES), 0755), 0);
	assert_false(machine_has(&k.m, RULE_EDU));
	kernel_close(&k);
}

/* ---- each step fails once ---- */

static void check_bind_failed(struct kernel *k)
{
	expect_state(k, EDU, "native", "(null)");
	expect_state(k, CARD, "", "pci-stub");
	assert_false(machine_has(&k->m, RULE_EDU));
	assert_false(machine_has(&k->m, RULE_CARD));
	expect_said(&k->err, "failed: Input/output error\n");
	expect_said(&k->err, "is as it was");
}

/* The n-th write fails. False: there are not so many. */
static bool bind_fails_at(unsigned int n)
{
	struct kernel k;
	bool failed;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, NULL);
	tree_file(DEV CARD "/driver_override", "pci-stub\n");
	k.fail_at = n;
	failed = run(&k, PERSIST, EDU, CARD) != 0;
	if (failed)
		check_bind_failed(&k);
	kernel_close(&k);
	return failed;
}

static bool unbind_fails_at(unsigned int n)
{
	struct kernel k;
	bool failed;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "native");
	assert_int_equal(run(&k, PERSIST, EDU, CARD), 0);
	k.native = "native";
	k.fail_at = k.stores + n;
	failed = run(&k, UNBIND, EDU, CARD) != 0;
	if (failed) {
		expect_state(&k, EDU, "vfio-pci", "vfio-pci");
		expect_state(&k, CARD, "vfio-pci", "vfio-pci");
		assert_true(machine_has(&k.m, RULE_EDU) && machine_has(&k.m, RULE_CARD));
	}
	kernel_close(&k);
	return failed;
}

static void test_steps_fail(void **state)
{
	unsigned int n = 1;

	while (bind_fails_at(n))
		n++;
	assert_int_equal(n, 6); /* five steps: the card has no driver to be taken from */
	for (n = 1; unbind_fails_at(n);)
		n++;
	assert_int_equal(n, 7);
}

/* The second rule cannot be written, or removed: the first is as it was, too. */
static void test_second_rule_fails(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "native");
	k.spoil = RULE_CARD;
	assert_int_equal(run(&k, PERSIST, EDU, CARD), 1);
	expect_said(&k.err, CARD ": changing the rule for udev failed: File exists\n");
	expect_state(&k, EDU, "native", "(null)");
	expect_state(&k, CARD, "native", "(null)");
	assert_false(machine_has(&k.m, RULE_EDU));
	kernel_close(&k);

	kernel_open(&k, "native", "(null)\n");
	add_card(&k, "native");
	assert_int_equal(run(&k, PERSIST, EDU, CARD), 0);
	k.spoil = RULE_CARD;
	assert_int_equal(run(&k, UNBIND, EDU, CARD), 1);
	expect_state(&k, EDU, "vfio-pci", "vfio-pci");
	assert_int_equal(persist_look(&k.m, EDU), PERSIST_OURS);
	kernel_close(&k);
}

/* The way back fails as well: that is said, with the device's name. */
static void test_no_way_back(void **state)
{
	struct kernel k;

	kernel_open(&k, "native", "(null)\n");
	k.fail_from = 3;
	assert_int_equal(run(&k, BIND, EDU, NULL), 1);
	expect_said(&k.err, EDU ": letting the kernel choose its driver failed: Input/output error\n");
	expect_said(&k.err,
		    EDU " could not be given back to native: Input/output error; type: pasidctl unbind " EDU "\n");
	kernel_close(&k);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bind_and_back),
		cmocka_unit_test(test_no_driver),
		cmocka_unit_test(test_override_left_over),
		cmocka_unit_test(test_dry),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_persist),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_no_override),
		cmocka_unit_test(test_not_there),
		cmocka_unit_test(test_group),
		cmocka_unit_test(test_group_at_start),
		cmocka_unit_test(test_group_harmless),
		cmocka_unit_test(test_in_use),
		cmocka_unit_test(test_vfio_refuses),
		cmocka_unit_test(test_vfio_insists),
		cmocka_unit_test(test_rule_fails),
		cmocka_unit_test(test_steps_fail),
		cmocka_unit_test(test_rule_is_link),
		cmocka_unit_test(test_second_rule_fails),
		cmocka_unit_test(test_no_way_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
