/* SPDX-License-Identifier: MIT */
/* PCI addresses, and devices in a sysfs tree of the test's own. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "transport/pci.h"

static char top[] = "/tmp/pasidd-sysfs-XXXXXX";
static char path[256];

static const char *at(const char *tail)
{
	snprintf(path, sizeof(path), "%s/%s", top, tail);
	return path;
}

static void directory(const char *tail)
{
	assert_int_equal(mkdir(at(tail), 0700), 0);
}

static void test_addresses(void **state)
{
	static const struct {
		const char *text, *bdf;
	} right[] = {{"0000:01:00.0", "0000:01:00.0"}, {"01:00.7", "0000:01:00.7"}, {"10af:FF:1F.3", "10af:ff:1f.3"}};
	static const char *const wrong[] = {
		"",           "0",           "0000:01:00",  "0000:01:00.8",  "0000:01:00.0 ",
		" 01:00.0",   "0000:1:00.0", "000001:00.0", "0000:01:00.00", "0000-01-00.0",
		"../01:00.0", "g000:01:00.0"};
	char bdf[PCI_BDF_SIZE];

	for (size_t i = 0; i < ARRAY_SIZE(right); i++) {
		assert_true(pci_parse_bdf(right[i].text, bdf));
		assert_string_equal(bdf, right[i].bdf);
	}
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_false(pci_parse_bdf(wrong[i], bdf));
}

static void test_places(void **state)
{
	struct pci_place p;

	assert_int_equal(pci_find(top, "0000:01:00.0", &p), 0);
	assert_string_equal(p.bdf, "0000:01:00.0");
	assert_string_equal(p.driver, "vfio-pci");
	assert_string_equal(p.cdev, "vfio12");
	assert_int_equal(p.group, 26);

	assert_int_equal(pci_find(top, "0000:02:00.0", &p), 0);
	assert_string_equal(p.driver, "");
	assert_string_equal(p.cdev, "");
	assert_int_equal(p.group, -1);

	assert_int_equal(pci_find(top, "0000:03:00.0", &p), -ENODEV);
}

static int setup(void **state)
{
	if (!mkdtemp(top))
		return -1;
	directory("bus");
	directory("bus/pci");
	directory("bus/pci/devices");
	directory("bus/pci/devices/0000:01:00.0");
	directory("bus/pci/devices/0000:01:00.0/vfio-dev");
	directory("bus/pci/devices/0000:01:00.0/vfio-dev/vfio12");
	directory("bus/pci/devices/0000:01:00.0/vfio-dev/vfio12/dev"); /* a file on a machine */
	directory("bus/pci/devices/0000:02:00.0");
	directory("bus/pci/devices/0000:02:00.0/vfio-dev");
	directory("bus/pci/devices/0000:02:00.0/vfio-dev/vfio13"); /* without a device file */
	if (symlink("../../../drivers/vfio-pci", at("bus/pci/devices/0000:01:00.0/driver")) < 0)
		return -1;
	return symlink("../../../../kernel/iommu_groups/26", at("bus/pci/devices/0000:01:00.0/iommu_group"));
}

static int teardown(void **state)
{
	unlink(at("bus/pci/devices/0000:01:00.0/driver"));
	unlink(at("bus/pci/devices/0000:01:00.0/iommu_group"));
	rmdir(at("bus/pci/devices/0000:02:00.0/vfio-dev/vfio13"));
	rmdir(at("bus/pci/devices/0000:02:00.0/vfio-dev"));
	rmdir(at("bus/pci/devices/0000:01:00.0/vfio-dev/vfio12/dev"));
	rmdir(at("bus/pci/devices/0000:01:00.0/vfio-dev/vfio12"));
	rmdir(at("bus/pci/devices/0000:01:00.0/vfio-dev"));
	rmdir(at("bus/pci/devices/0000:01:00.0"));
	rmdir(at("bus/pci/devices/0000:02:00.0"));
	rmdir(at("bus/pci/devices"));
	rmdir(at("bus/pci"));
	rmdir(at("bus"));
	return rmdir(top);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_places),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
