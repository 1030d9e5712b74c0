/* SPDX-License-Identifier: MIT */
/* What pasidctl doctor says of machines that were recorded, of some that were changed by hand, and of hostile ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/util.h"
#include "doctor.h"
#include "machine_tree.h"

#define EDU_STOCK "sys/devices/pci0000:00/0000:00:01.0/"
#define GPU "sys/devices/pci0000:00/0000:00:02.0/"
#define OTHER "sys/devices/pci0000:00/0000:00:03.0"
#define NO_PASID "(read from sysfs, not through VFIO, which hides it)"

#define NESTED_REST                                                                                                \
	"; what else it takes pasidd sees when it opens the device: CONFIG_ARM_SMMU_V3_IOMMUFD, an SMMU with two " \
	"stages, 4 KiB pages and 40 address bits, a device with one stream id"
#define NESTED_TODO "in pasidd's configuration \"mode\": \"nested\", \"fallback\": \"exclusive\""

enum change { NONE, FILE_, LINK, DIRECTORY, NODE, REMOVE };

struct edit {
	enum change what;
	const char *path, *text;
};

struct expectation {
	const char *name, *machine, *bdf;
	int status;
	const char *verdict; /* the last line; NULL: there is none */
	const char *says[6]; /* whole lines */
	struct edit edits[20];
};

#define SLOT_OF_BUS "devices/pci0000:00/0000:00:1c.0/"
#define SLOT "sys/" SLOT_OF_BUS

#define SHARED_WITH(driver)                                                                                           \
	{FILE_, OTHER "/vendor", "0x8086\n"}, {FILE_, OTHER "/device", "0x10d3\n"},                                   \
		{FILE_, OTHER "/class", "0x020000\n"}, {LINK, OTHER "/driver", "../../../bus/pci/drivers/" driver},   \
		{LINK, OTHER "/iommu_group", "../../../kernel/iommu_groups/1"},                                       \
		{LINK, "sys/bus/pci/devices/0000:00:03.0", "../../../devices/pci0000:00/0000:00:03.0"},               \
	{                                                                                                             \
		LINK, "sys/kernel/iommu_groups/1/devices/0000:00:03.0", "../../../../devices/pci0000:00/0000:00:03.0" \
	}

/* Two functions of one slot behind a port. */
#define FUNCTION(f, group, driver)                                                                                \
	{FILE_, SLOT "0000:01:00." f "/vendor", "0x1234\n"}, {FILE_, SLOT "0000:01:00." f "/device", "0x11e8\n"}, \
		{FILE_, SLOT "0000:01:00." f "/class", "0x00ff00\n"},                                             \
		{LINK, SLOT "0000:01:00." f "/driver", "../../../bus/pci/drivers/" driver},                       \
		{LINK, SLOT "0000:01:00." f "/iommu_group", "../../../kernel/iommu_groups/" group},               \
	{                                                                                                         \
		LINK, "sys/bus/pci/devices/0000:01:00." f, "../../../" SLOT_OF_BUS "0000:01:00." f                \
	}
#define TWO_FUNCTIONS(group, driver)                                                                             \
	{                                                                                                        \
		{FILE_, SLOT "vendor", "0x1b36\n"}, FUNCTION("0", "1", "vfio-pci"), FUNCTION("1", group, driver) \
	}

static const struct expectation expectations[] = {
	{"stock",
	 "stock",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (type1); not pasid: this kernel has no iommufd; driver: edu",
	 {"ok    iommu: it is on: 1 unit, 3 groups",
	  "warn  scalable: dmar0 has scalable mode without PASIDs: no mode pasid behind it",
	  "ok    vfio: the driver vfio-pci is there",
	  "warn  iommufd: this kernel has none (CONFIG_IOMMUFD): only type1, no mode pasid",
	  "ok    group: 1 is viable: the device is alone in it",
	  "warn  reset: it cannot be reset: if it hangs, it is closed and tried again, and may stay lost until the "
	  "machine "
	  "is started again"}},
	{"iommufd, the GPU",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: the driver refgpu tags no access with its PASID, the "
	 "machine could (20 bits); driver: refgpu",
	 {"ok    scalable: dmar0 has it, with PASIDs, and the kernel was started with sm_on",
	  "ok    iommufd: /dev/iommu is there", "ok    driver: it is bound to vfio-pci", "ok    reset: it can be: flr",
	  "ok    pasid: it has PASIDs of 20 bits, with ATS, with PRI " NO_PASID}},
	{"iommufd, edu not bound",
	 "iommufd",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: driver: it is bound to no driver; type: pasidctl bind 0000:00:01.0; driver: edu",
	 {"bad   driver: it is bound to no driver; type: pasidctl bind 0000:00:01.0",
	  "warn  pasid: it has no PASID capability " NO_PASID}},
	{"no IOMMU",
	 "stock-iommu-off",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: iommu: it is off: the machine has Intel's VT-d, and the kernel was started with "
	 "intel_iommu=off; type: in /etc/default/grub add intel_iommu=on,sm_on to GRUB_CMDLINE_LINUX, then: "
	 "update-grub && "
	 "systemctl reboot; driver: edu",
	 {"bad   group: 0000:00:01.0 is in none: no IOMMU is in front of it"}},
	{"not told of the IOMMU",
	 "stock-iommu-off",
	 NULL,
	 1,
	 NULL,
	 {"bad   iommu: it is off: the machine has Intel's VT-d, and the kernel was started without intel_iommu=on; "
	  "type: in "
	  "/etc/default/grub add intel_iommu=on,sm_on to GRUB_CMDLINE_LINUX, then: update-grub && systemctl reboot"},
	 {{FILE_, "proc/cmdline", "quiet -- intel_iommu=on\n"}}},
	{"no IOMMU in the firmware",
	 "stock-iommu-off",
	 NULL,
	 1,
	 NULL,
	 {"bad   iommu: the firmware announces none; type: systemctl reboot --firmware-setup, switch on VT-d (Intel), "
	  "IOMMU "
	  "(AMD) or SMMU (Arm)"},
	 {{REMOVE, "sys/firmware", NULL}}},
	{"told, and nothing",
	 "stock-iommu-off",
	 NULL,
	 1,
	 NULL,
	 {"bad   iommu: it is off, though the kernel was started with intel_iommu=on; type: dmesg | grep -i -e DMAR -e "
	  "IOMMU"},
	 {{FILE_, "proc/cmdline", "intel_iommu=off intel_iommu=sm_on,on"}}},
	{"legacy IOMMU",
	 "stock-legacy-iommu",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: driver: it is bound to no driver; type: pasidctl bind 0000:00:01.0; driver: edu",
	 {"warn  scalable: dmar0 has no scalable mode: no mode pasid behind it"}},
	{"a group with a network card",
	 "stock",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: group: 1 is not viable: 1 of the other devices in it is used by the kernel; type: "
	 "pasidctl "
	 "bind 0000:00:01.0 0000:00:03.0; driver: edu",
	 {"bad   group: 1 has also 0000:00:03.0, bound to e1000e, which keeps the group from being given away"},
	 {SHARED_WITH("e1000e")}},
	{"a group with a port",
	 "stock",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (type1); not pasid: this kernel has no iommufd; driver: edu",
	 {"ok    group: 1 has also 0000:00:03.0, bound to pcieport",
	  "ok    group: 1 is viable: the others in it are in nobody's way"},
	 {SHARED_WITH("pcieport")}},
	{"a group with VFIO's own",
	 "stock",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (type1); not pasid: this kernel has no iommufd; driver: edu",
	 {"ok    group: 1 has also 0000:00:03.0, bound to mlx5_vfio_pci"},
	 {SHARED_WITH("mlx5_vfio_pci")}},
	{"denylisted",
	 "iommufd",
	 "0000:00:02.0",
	 1,
	 "cannot be shared as it is: denylist: vfio-pci refuses this device: it is not safe with untrusted users on "
	 "all systems; "
	 "type: modprobe -r vfio-pci && modprobe vfio-pci disable_denylist=1; driver: none, see docs/driver.md",
	 {"bad   driver: it is bound to idxd, not to vfio-pci; type: pasidctl bind 0000:00:02.0"},
	 {{FILE_, GPU "vendor", "0x8086\n"},
	  {FILE_, GPU "device", "0x0b25\n"},
	  {LINK, GPU "driver", "../../../bus/pci/drivers/idxd"}}},
	{"denylisted, taken",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: exclusive, pasid (iommufd); driver: none, see docs/driver.md",
	 {"warn  denylist: vfio-pci has it on its list of devices that are not safe with untrusted users, and was told "
	  "to take it "
	  "all the same"},
	 {{FILE_, GPU "vendor", "0x8086\n"},
	  {FILE_, GPU "device", "0x0cfe\n"},
	  {FILE_, "sys/module/vfio_pci/parameters/disable_denylist", "Y\n"}}},
	{"no scalable mode",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: scalable mode is off; driver: refgpu",
	 {"warn  scalable: the kernel was started with sm_off: no mode pasid behind dmar0; type: in /etc/default/grub "
	  "add "
	  "intel_iommu=on,sm_on to GRUB_CMDLINE_LINUX, then: update-grub && systemctl reboot"},
	 {{FILE_, "proc/cmdline", "intel_iommu=on,sm_off"}}},
	{"AMD",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: AMD's IOMMU attaches none of user space; driver: refgpu",
	 {NULL},
	 {{REMOVE, "sys/devices/virtual/iommu/dmar0/intel-iommu", NULL},
	  {DIRECTORY, "sys/devices/virtual/iommu/dmar0/amd-iommu", NULL}}},
	{"Linux 6.12",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: this kernel is older than 6.15; driver: refgpu",
	 {"warn  kernel: 6.12.0-1 attaches no PASIDs (6.15) and maps no files (6.13): no mode pasid"},
	 {{FILE_, "proc/sys/kernel/osrelease", "6.12.0-1\n"}}},
	{"no right to see PASIDs",
	 "iommufd",
	 "0000:00:02.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: only root can see whether the device has PASIDs; "
	 "driver: refgpu",
	 {"warn  pasid: only root may read all of its configuration space; type: sudo pasidctl doctor 0000:00:02.0"},
	 {{FILE_, GPU "config", "0123456789abcd\x80 123456789abcdef0123456789abcdef0123456789abcdef!"}}},
	{"a bridge",
	 "stock",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: device: 0000:00:01.0 (1234:11e8) is a bridge, which vfio-pci does not take; "
	 "driver: edu",
	 {NULL},
	 {{FILE_, EDU_STOCK "config", "0123456789abcd\x81 123456789abcdef0123456789abcdef0123456789abcdef!"}}},
	{"modules not loaded",
	 "stock",
	 NULL,
	 1,
	 NULL,
	 {"bad   vfio: the driver vfio-pci is not loaded; type: modprobe vfio-pci",
	  "bad   type1: there is no /dev/vfio/vfio; type: modprobe -a vfio_iommu_type1 vfio-pci",
	  "warn  iommufd: there is no /dev/iommu: only type1, no mode pasid; type: modprobe iommufd"},
	 {{REMOVE, "sys/bus/pci/drivers/vfio-pci", NULL},
	  {REMOVE, "dev", NULL},
	  {FILE_, "lib/modules/7.3.4+deb13-amd64/modules.dep",
	   "kernel/drivers/vfio/pci/vfio-pci.ko.xz: x\nkernel/drivers/iommu/iommufd/iommufd.ko.xz:\n"}}},
	{"VFIO without an IOMMU",
	 "stock",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: group: no IOMMU is in front of 0000:00:01.0: VFIO was told to do without one "
	 "(enable_unsafe_noiommu_mode); driver: edu",
	 {NULL},
	 {{FILE_, "sys/kernel/iommu_groups/1/name", "vfio-noiommu\n"}}},
	{"the group's file is missing",
	 "stock",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: type1: there is no /dev/vfio/1; driver: edu",
	 {NULL},
	 {{REMOVE, "dev/vfio/1", NULL}}},
	{"reset with its bus",
	 "stock",
	 "0000:01:00.0",
	 0,
	 NULL,
	 {"ok    reset: it can be, with all of its bus: 2 devices"},
	 TWO_FUNCTIONS("1", "vfio-pci")},
	{"reset with its bus, a neighbour not bound",
	 "stock",
	 "0000:01:00.0",
	 0,
	 NULL,
	 {"warn  reset: it cannot be reset without its bus, and 0000:01:00.1 there is not bound to vfio-pci; type: "
	  "pasidctl bind 0000:01:00.1"},
	 TWO_FUNCTIONS("1", "pci-stub")},
	{"reset with its bus, a neighbour in another group",
	 "stock",
	 "0000:01:00.0",
	 0,
	 NULL,
	 {"warn  reset: it cannot be reset without its bus, and 0000:01:00.1 there is in another group"},
	 TWO_FUNCTIONS("2", "vfio-pci")},
	{"huge pages",
	 "stock",
	 NULL,
	 0,
	 NULL,
	 {"ok    hugepages: 1024 MiB are set aside",
	  "0000:00:01.0 can be shared: exclusive (type1); not pasid: this kernel has no iommufd; driver: edu"},
	 {{FILE_, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"}}},
	{"huge memfds",
	 "stock",
	 NULL,
	 0,
	 NULL,
	 {"ok    hugepages: memfds get them (transparent_hugepage/shmem_enabled)"},
	 {{FILE_, "sys/kernel/mm/transparent_hugepage/shmem_enabled",
	   "always within_size [advise] never deny force\n"}}},
	{"Arm, the firmware does not say that devices are coherent",
	 "arm64",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive, maybe nested (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"ok    kernel: 7.3.4 is new enough for device files (6.6), mapping files (6.13), PASIDs, faults of mode "
	  "nested "
	  "(6.15)",
	  "ok    iommu: it is on: 1 unit, 2 groups",
	  "warn  nested: the firmware does not say that its accesses are coherent (CANWBS in IORT): mode nested only "
	  "if "
	  "its SMMU has S2FWB" NESTED_REST "; type: " NESTED_TODO}},
	{"Arm, it says so",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: nested, exclusive (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"ok    nested: the firmware says that its accesses are coherent (CANWBS in IORT)" NESTED_REST}},
	{"Arm, not bound yet",
	 "arm64-nested",
	 "0000:00:01.0",
	 1,
	 "cannot be shared as it is: driver: it is bound to no driver; type: pasidctl bind 0000:00:01.0; driver: edu",
	 {"ok    nested: the firmware says that its accesses are coherent (CANWBS in IORT)" NESTED_REST},
	 {{REMOVE, EDU_STOCK "driver", NULL}, {REMOVE, EDU_STOCK "vfio-dev", NULL}}},
	{"Arm, a device that is in no segment of the table",
	 "arm64-nested",
	 "0001:00:01.0",
	 0,
	 "can be shared: exclusive, maybe nested (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"warn  nested: the firmware's table IORT does not know its PCI segment, so that nothing says that its "
	  "accesses "
	  "are coherent (CANWBS): mode nested only if its SMMU has S2FWB" NESTED_REST "; type: " NESTED_TODO},
	 {{LINK, "sys/bus/pci/devices/0001:00:01.0", "../../../devices/pci0000:00/0000:00:01.0"}}},
	{"Arm, a device tree",
	 "arm64",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive, maybe nested (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"warn  nested: the firmware has no ACPI table IORT, the one place where Linux looks whether a device's "
	  "accesses "
	  "are coherent (CANWBS): mode nested only if its SMMU has S2FWB" NESTED_REST "; type: " NESTED_TODO},
	 {{REMOVE, "sys/firmware", NULL}}},
	{"Arm, a table that is none",
	 "arm64",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive, maybe nested (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"warn  nested: the firmware's table IORT is not understood; unless it says that accesses are coherent "
	  "(CANWBS): mode nested only if its SMMU has S2FWB" NESTED_REST "; type: " NESTED_TODO},
	 {{FILE_, "sys/firmware/acpi/tables/IORT", "IORT"}}},
	{"Arm, Linux 6.14",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (iommufd); not nested: this kernel is older than 6.15; not pasid: this kernel is "
	 "older "
	 "than 6.15; driver: edu",
	 {"warn  kernel: 6.14.1 attaches no PASIDs and passes no faults on (6.15): no mode nested or pasid",
	  "warn  nested: this kernel is older than 6.15: no mode nested"},
	 {{FILE_, "proc/sys/kernel/osrelease", "6.14.1\n"}}},
	{"Arm, Linux 6.1",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (type1); not nested: this kernel has no iommufd; not pasid: this kernel has no "
	 "iommufd; "
	 "driver: edu",
	 {"warn  kernel: 6.1.0 has no device files of VFIO (6.6): only type1, and no mode nested or pasid",
	  "warn  iommufd: this kernel has none (CONFIG_IOMMUFD): only type1, no mode nested or pasid",
	  "warn  nested: this kernel has no iommufd: no mode nested"},
	 {{FILE_, "proc/sys/kernel/osrelease", "6.1.0\n"},
	  {REMOVE, "dev/iommu", NULL},
	  {REMOVE, EDU_STOCK "vfio-dev", NULL}}},
	{"Arm, no device file",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (type1); not nested: the device has no file in /dev/vfio/devices; not pasid: the "
	 "device "
	 "has no file in /dev/vfio/devices; driver: edu",
	 {"warn  nested: the device has no file in /dev/vfio/devices: no mode nested"},
	 {{REMOVE, EDU_STOCK "vfio-dev", NULL}}},
	{"Arm, a device without a driver of pasidd's",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: nested, exclusive (iommufd); not pasid: the device has no PASID capability; driver: none, see "
	 "docs/driver.md",
	 {"ok    nested: the firmware says that its accesses are coherent (CANWBS in IORT)" NESTED_REST},
	 {{FILE_, EDU_STOCK "device", "0x1111\n"}}},
	{"Arm, a GPU with an MMU",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: gpu-mmu, global (iommufd); not pasid: the device has no PASID capability; driver: refgpu",
	 {NULL},
	 {{FILE_, EDU_STOCK "device", "0x9a51\n"}}},
	{"Arm, another kind of IOMMU",
	 "arm64-nested",
	 "0000:00:01.0",
	 0,
	 "can be shared: exclusive (iommufd); not pasid: the device has no PASID capability; driver: edu",
	 {"ok    kernel: 7.3.4 is new enough for device files (6.6), mapping files (6.13), PASIDs (6.15)"},
	 {{LINK, EDU_STOCK "iommu", "../../virtual/iommu/smmu.0"},
	  {REMOVE, "sys/class/iommu", NULL},
	  {DIRECTORY, "sys/class/iommu/smmu.0", NULL}}},
	{"Arm, all devices",
	 "arm64-nested",
	 NULL,
	 0,
	 "0000:00:01.0 can be shared: nested, exclusive (iommufd); not pasid: the device has no PASID capability; "
	 "driver: "
	 "edu",
	 {NULL}},
};

static void apply(const struct edit *e)
{
	switch (e->what) {
	case NONE:
		break;
	case FILE_:
		tree_file(e->path, e->text);
		break;
	case LINK:
		tree_link(e->path, e->text);
		break;
	case DIRECTORY:
		tree_directory(e->path);
		break;
	case NODE:
		tree_node(e->path, e->text);
		break;
	case REMOVE:
		tree_remove(e->path);
		break;
	}
}

/* Is this one of the text's lines, or, if `last`, its last one? */
static bool has_line(const char *text, const char *line, bool last)
{
	size_t n = strlen(line);

	for (const char *at = text; (at = strstr(at, line)); at++)
		if ((at == text || at[-1] == '\n') && at[n] == '\n' && (!last || !at[n + 1]))
			return true;
	return false;
}

static void expect(const struct expectation *e)
{
	struct said out, err;
	struct machine m;
	int status;

	tree_open(&m, e->machine);
	for (size_t i = 0; i < ARRAY_SIZE(e->edits); i++)
		apply(&e->edits[i]);
	said_open(&out);
	said_open(&err);
	status = doctor(&m, e->bdf, false, out.f, err.f);
	if (e->verdict && !has_line(said_text(&out), e->verdict, true))
		fail_msg("%s: the verdict is not \"%s\", but:\n%s", e->name, e->verdict, said_text(&out));
	for (size_t i = 0; i < ARRAY_SIZE(e->says) && e->says[i]; i++)
		if (!has_line(said_text(&out), e->says[i], false))
			fail_msg("%s: \"%s\" is not said, but:\n%s", e->name, e->says[i], said_text(&out));
	if (status != e->status)
		fail_msg("%s: status %d:\n%s", e->name, status, said_text(&out));
	assert_string_equal(said_text(&err), "");
	said_close(&out);
	said_close(&err);
	tree_close(&m);
}

static void test_machines(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(expectations); i++)
		expect(&expectations[i]);
}

static struct json_object *parse(const char *text)
{
	struct json_object *o = json_tokener_parse(text);

	assert_non_null(o);
	return o;
}

static const char *string_of(struct json_object *o, const char *key)
{
	return json_object_get_string(json_object_object_get(o, key));
}

static void test_json(void **state)
{
	struct json_object *all, *device;
	struct said out, err;
	struct machine m;

	tree_open(&m, "stock");
	said_open(&out);
	said_open(&err);
	assert_int_equal(doctor(&m, "0000:00:01.0", true, out.f, err.f), 0);
	all = parse(said_text(&out));
	assert_string_equal(string_of(all, "kernel"), "7.3.4+deb13-amd64");
	assert_true(json_object_array_length(json_object_object_get(all, "findings")) > 8);
	device = json_object_array_get_idx(json_object_object_get(all, "devices"), 0);
	assert_string_equal(string_of(device, "bdf"), "0000:00:01.0");
	assert_string_equal(string_of(device, "id"), "1234:11e8");
	assert_string_equal(string_of(device, "how"), "type1");
	assert_string_equal(string_of(device, "modes"), "exclusive");
	assert_null(string_of(device, "not_nested"));
	assert_string_equal(string_of(device, "driver"), "edu");
	assert_true(json_object_get_boolean(json_object_object_get(device, "shared")));
	json_object_put(all);
	said_close(&out);
	said_close(&err);
	tree_close(&m);
}

/* It cannot look: status 2, a sentence, nothing else. */
static void expect_blind(const struct edit *edits, size_t n, const char *bdf, const char *sentence)
{
	struct said out, err;
	struct machine m;

	tree_open(&m, "stock");
	for (size_t i = 0; i < n; i++)
		apply(&edits[i]);
	said_open(&out);
	said_open(&err);
	assert_int_equal(doctor(&m, bdf, false, out.f, err.f), 2);
	assert_string_equal(said_text(&out), "");
	assert_string_equal(said_text(&err), sentence);
	said_close(&out);
	said_close(&err);
	tree_close(&m);
}

#define BLIND(bdf, sentence, ...)                                             \
	do {                                                                  \
		const struct edit edits_[] = {__VA_ARGS__};                   \
		expect_blind(edits_, ARRAY_SIZE(edits_), bdf, sentence "\n"); \
	} while (0)

#define NOT_UNDERSTOOD "pasidctl: what sysfs says of 0000:00:01.0 is not understood: "

static void test_blind(void **state)
{
	BLIND("0000:00:09.0", "pasidctl: there is no PCI device 0000:00:09.0; type: ls /sys/bus/pci/devices", {NONE});
	BLIND(NULL, "pasidctl: there is no /sys/bus/pci: no PCI, or sysfs is not mounted", {REMOVE, "sys/bus", NULL});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument", {FILE_, EDU_STOCK "vendor", "0x12345\n"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument", {FILE_, EDU_STOCK "vendor", "-1\n"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument", {FILE_, EDU_STOCK "device", ""});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Argument list too long",
	      {FILE_, EDU_STOCK "device", "0x00000000000000000000000000000000000000000000000000000000000000011e8"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "No such file or directory", {REMOVE, EDU_STOCK "class", NULL});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument",
	      {LINK, EDU_STOCK "iommu_group", "../../groups/99999999999"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument", {LINK, EDU_STOCK "iommu_group", "../../groups/1x"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Argument list too long",
	      {LINK, EDU_STOCK "driver", "drivers/0123456789012345678901234567890123456789012345678901234567890123"});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Invalid argument", {REMOVE, EDU_STOCK "vendor", NULL},
	      {DIRECTORY, EDU_STOCK "vendor", NULL});
	BLIND("0000:00:01.0", NOT_UNDERSTOOD "Too many levels of symbolic links", {LINK, EDU_STOCK "vendor", "vendor"});
	BLIND("0000:00:01.0", "pasidctl: there is no PCI device 0000:00:01.0; type: ls /sys/bus/pci/devices",
	      {LINK, "sys/bus/pci/devices/0000:00:01.0", "0000:00:01.0"});
}

/* Names and texts that are none: it ends, prints nothing that moves a cursor, and gives no wrong "can be shared". */
static void test_hostile(void **state)
{
	static char long_line[40000];
	struct said out, err;
	struct machine m;

	tree_open(&m, "stock");
	memset(long_line, 'x', sizeof(long_line) - 1);
	tree_file("proc/cmdline", long_line);
	tree_file("proc/sys/kernel/osrelease", "../../../\033[2J");
	tree_file("sys/bus/pci/devices/0000:00:01.0/reset_method", "\033]0;flr\007\n");
	tree_file("sys/devices/virtual/iommu/dmar0/intel-iommu/ecap", "ffffffffffffffffffff");
	tree_file("sys/kernel/mm/hugepages/hugepages-99999999999999999999kB/nr_hugepages", "1");
	tree_file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "18446744073709551615");
	tree_link("sys/bus/pci/devices/0000:00:04.0", "0000:00:04.0");
	tree_link("sys/kernel/iommu_groups/1/devices/evil\033[2J", "nowhere");
	tree_link("sys/class/iommu/loop", "loop");
	said_open(&out);
	said_open(&err);
	assert_int_equal(doctor(&m, "0000:00:01.0", false, out.f, err.f), 0);
	for (const char *c = said_text(&out); *c; c++)
		assert_true(*c == '\n' || (*c >= ' ' && *c <= '~'));
	assert_int_equal(doctor(&m, NULL, true, out.f, err.f), 0);
	said_close(&out);
	said_close(&err);
	tree_close(&m);
}

static void put32(unsigned char *at, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		at[i] = (unsigned char)(v >> 8 * i);
}

static void test_config_space(void **state)
{
	static unsigned char bytes[4096];
	struct config_space c;

	config_space_parse(bytes, 0, &c);
	assert_int_equal(c.state, CONFIG_UNREADABLE);
	config_space_parse(bytes, 64, &c);
	assert_int_equal(c.state, CONFIG_NO_RIGHT);
	bytes[6] = 0x10;
	bytes[0x34] = 0x40;
	bytes[0x41] = 0x40; /* a circle */
	put32(bytes + 0x100, 0x1001001b); /* PASID, the next is itself */
	bytes[0x105] = 20;
	config_space_parse(bytes, sizeof(bytes), &c);
	assert_int_equal(c.state, CONFIG_READ);
	assert_true(c.pasid && c.width == 20 && !c.prefix && !c.ats);
	bytes[0x41] = 0xf0; /* Express so late that Device Capabilities 2 would lie outside */
	bytes[0xf0] = 0x10;
	put32(bytes + 0x100, 0xffc1000f); /* ATS, the next in the last bytes */
	put32(bytes + 0xffc, 0x0001001b);
	config_space_parse(bytes, sizeof(bytes), &c);
	assert_true(c.ats && !c.pasid && !c.prefix);
	config_space_parse(bytes, 256, &c);
	assert_true(c.state == CONFIG_NO_EXTENDED && !c.ats);
	for (unsigned int seed = 1; seed < 2000; seed++) {
		srand(seed);
		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (unsigned char)rand();
		config_space_parse(bytes, sizeof(bytes), &c);
	}
}

static void test_releases(void **state)
{
	assert_int_equal(platform_parse_release("6.15"), KERNEL_PASID);
	assert_int_equal(platform_parse_release("7.3.4+deb13-amd64"), KERNEL(7, 3));
	assert_int_equal(platform_parse_release("6.1-rc2"), KERNEL(6, 1));
	assert_int_equal(platform_parse_release(""), 0);
	assert_int_equal(platform_parse_release("6"), 0);
	assert_int_equal(platform_parse_release("six.1"), 0);
	assert_int_equal(platform_parse_release("99999999999999999999.1"), 0);
}

static void check_cmdline(const char *text, enum setting intel, enum setting scalable, enum setting any)
{
	struct platform p = {0};
	char copy[128];

	snprintf(copy, sizeof(copy), "%s", text);
	platform_parse_cmdline(&p, copy);
	assert_int_equal(p.intel, intel);
	assert_int_equal(p.scalable, scalable);
	assert_int_equal(p.any, any);
}

static void test_cmdlines(void **state)
{
	check_cmdline("", SETTING_NONE, SETTING_NONE, SETTING_NONE);
	check_cmdline("intel_iommu", SETTING_NONE, SETTING_NONE, SETTING_NONE);
	check_cmdline("ro intel_iommu=on,sm_on quiet", SETTING_ON, SETTING_ON, SETTING_NONE);
	check_cmdline("intel_iommu=on intel_iommu=off iommu=pt", SETTING_OFF, SETTING_NONE, SETTING_NONE);
	check_cmdline("xintel_iommu=on iommu=off,x", SETTING_NONE, SETTING_NONE, SETTING_OFF);
	check_cmdline("a -- intel_iommu=on", SETTING_NONE, SETTING_NONE, SETTING_NONE);
	check_cmdline("intel_iommu=,,,sm_off,,", SETTING_NONE, SETTING_OFF, SETTING_NONE);
}

/* A word across the pieces that a long file is read in. */
static void test_mentions(void **state)
{
	static char text[10000];
	struct machine m;

	tree_open(&m, NULL);
	for (size_t at = 4080; at < 4110; at++) {
		memset(text, '-', sizeof(text) - 1);
		memcpy(text + at, "/vfio-pci.ko", 12);
		tree_file("f", text);
		assert_true(machine_mentions(&m, "/vfio-pci.ko", "f"));
		assert_false(machine_mentions(&m, "/vfio-pci.ko:", "f"));
	}
	assert_false(machine_mentions(&m, "x", "none"));
	tree_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_machines), cmocka_unit_test(test_json),         cmocka_unit_test(test_blind),
		cmocka_unit_test(test_hostile),  cmocka_unit_test(test_config_space), cmocka_unit_test(test_releases),
		cmocka_unit_test(test_cmdlines), cmocka_unit_test(test_mentions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
