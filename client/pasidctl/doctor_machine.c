/* SPDX-License-Identifier: MIT */
/* See doctor.h: what concerns all devices of a machine. */
#include "doctor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define GRUB(words) "in /etc/default/grub add " words " to GRUB_CMDLINE_LINUX, then: update-grub && systemctl reboot"

/* Those of pasidd that a kernel without iommufd, or an older one, cannot have here. */
static const char *newer_modes(const struct platform *p)
{
	return platform_smmu3(p) ? "nested or pasid" : "pasid";
}

static void check_kernel(const struct platform *p, struct report *r)
{
	const char *faults = platform_smmu3(p) ? ", faults of mode nested" : "";

	if (!p->kernel)
		report_add(r, LEVEL_WARN, "kernel", "uname -r", "its version is not understood: \"%s\"", p->release);
	else if (p->kernel < KERNEL_CDEV)
		report_add(r, LEVEL_WARN, "kernel", NULL,
			   "%s has no device files of VFIO (6.6): only type1, and no mode %s", p->release,
			   newer_modes(p));
	else if (p->kernel < KERNEL_PASID)
		report_add(r, LEVEL_WARN, "kernel", NULL, "%s attaches no PASIDs%s (6.15)%s: no mode %s", p->release,
			   *faults ? " and passes no faults on" : "",
			   p->kernel < KERNEL_MAP_FILE ? " and maps no files (6.13)" : "", newer_modes(p));
	else
		report_add(r, LEVEL_OK, "kernel", NULL,
			   "%s is new enough for device files (6.6), mapping files (6.13), PASIDs%s (6.15)", p->release,
			   faults);
}

/* Why are there no groups? */
static void no_iommu(const struct platform *p, struct report *r)
{
	if (p->any == SETTING_OFF)
		report_add(r, LEVEL_BAD, "iommu",
			   "in /etc/default/grub take iommu=off away, then: update-grub && systemctl reboot",
			   "it is off: the kernel was started with iommu=off");
	else if (p->dmar && p->intel == SETTING_ON)
		report_add(r, LEVEL_BAD, "iommu", "dmesg | grep -i -e DMAR -e IOMMU",
			   "it is off, though the kernel was started with intel_iommu=on");
	else if (p->dmar)
		report_add(r, LEVEL_BAD, "iommu", GRUB("intel_iommu=on,sm_on"),
			   "it is off: the machine has Intel's VT-d, and the kernel was started %s",
			   p->intel == SETTING_OFF ? "with intel_iommu=off" : "without intel_iommu=on");
	else if (p->ivrs && p->amd == SETTING_OFF)
		report_add(r, LEVEL_BAD, "iommu",
			   "in /etc/default/grub take amd_iommu=off away, then: update-grub && systemctl reboot",
			   "it is off: the machine has AMD's IOMMU, and the kernel was started with amd_iommu=off");
	else if (p->ivrs || p->iort)
		report_add(r, LEVEL_BAD, "iommu", "dmesg | grep -i -e AMD-Vi -e SMMU -e IOMMU",
			   "it is off, though the firmware announces one");
	else
		report_add(r, LEVEL_BAD, "iommu",
			   "systemctl reboot --firmware-setup, switch on VT-d (Intel), IOMMU (AMD) or SMMU (Arm)",
			   "the firmware announces none");
}

static void check_iommu(const struct platform *p, struct report *r)
{
	if (p->n_groups == 0)
		no_iommu(p, r);
	else
		report_add(r, LEVEL_OK, "iommu", NULL, "it is on: %zu unit%s, %zu group%s", p->n_units,
			   p->n_units == 1 ? "" : "s", p->n_groups, p->n_groups == 1 ? "" : "s");
}

/* Whether the mode is on shows only on the command line: kernels differ in what they do without being told. */
static void check_scalable_unit(const struct platform *p, const struct unit *u, struct report *r)
{
	if (!u->scalable)
		report_add(r, LEVEL_WARN, "scalable", NULL, "%s has no scalable mode: no mode pasid behind it",
			   u->name);
	else if (p->scalable == SETTING_OFF)
		report_add(r, LEVEL_WARN, "scalable", GRUB("intel_iommu=on,sm_on"),
			   "the kernel was started with sm_off: no mode pasid behind %s", u->name);
	else if (!u->pasid)
		report_add(r, LEVEL_WARN, "scalable", NULL,
			   "%s has scalable mode without PASIDs: no mode pasid behind it", u->name);
	else if (p->scalable == SETTING_NONE)
		report_add(r, LEVEL_WARN, "scalable", GRUB("intel_iommu=on,sm_on"),
			   "%s has it, the kernel was not told sm_on: mode pasid only if that is its default", u->name);
	else
		report_add(r, LEVEL_OK, "scalable", NULL,
			   "%s has it, with PASIDs, and the kernel was started with sm_on", u->name);
}

static void check_scalable(const struct platform *p, struct report *r)
{
	for (size_t i = 0; i < p->n_units; i++)
		if (p->units[i].kind == UNIT_INTEL)
			check_scalable_unit(p, &p->units[i], r);
}

static void check_driver(const struct machine *m, const struct platform *p, struct report *r)
{
	if (p->vfio_pci)
		report_add(r, LEVEL_OK, "vfio", NULL, "the driver vfio-pci is there");
	else if (platform_module(m, p, "vfio-pci"))
		report_add(r, LEVEL_BAD, "vfio", "modprobe vfio-pci", "the driver vfio-pci is not loaded");
	else
		report_add(r, LEVEL_BAD, "vfio", "modprobe vfio-pci",
			   "there is no driver vfio-pci: load it, or take a kernel with CONFIG_VFIO_PCI");
}

static void check_type1(const struct platform *p, struct report *r)
{
	if (p->container && p->type1)
		report_add(r, LEVEL_OK, "type1", NULL, "/dev/vfio/vfio is there");
	else if (p->container)
		report_add(r, p->iommufd ? LEVEL_WARN : LEVEL_BAD, "type1", "modprobe vfio_iommu_type1",
			   "/dev/vfio/vfio is there, and vfio_iommu_type1 is not loaded");
	else
		report_add(r, p->iommufd ? LEVEL_WARN : LEVEL_BAD, "type1", "modprobe -a vfio_iommu_type1 vfio-pci",
			   "there is no /dev/vfio/vfio");
}

static void check_iommufd(const struct machine *m, const struct platform *p, struct report *r)
{
	if (p->iommufd)
		report_add(r, LEVEL_OK, "iommufd", NULL, "/dev/iommu is there");
	else if (platform_module(m, p, "iommufd"))
		report_add(r, LEVEL_WARN, "iommufd", "modprobe iommufd",
			   "there is no /dev/iommu: only type1, no mode %s", newer_modes(p));
	else
		report_add(r, LEVEL_WARN, "iommufd", NULL,
			   "this kernel has none (CONFIG_IOMMUFD): only type1, no mode %s", newer_modes(p));
}

/* Pages of one size that are set aside, in bytes. */
static uint64_t reserved(const struct machine *m, const char *directory)
{
	uint64_t kib, n;
	char text[32], *end;

	if (sscanf(directory, "hugepages-%" SCNu64 "kB", &kib) != 1 || kib > UINT32_MAX ||
	    machine_read(m, text, sizeof(text), "sys/kernel/mm/hugepages/%s/nr_hugepages", directory) < 0)
		return 0;
	n = strtoull(text, &end, 10);
	return *end || n > UINT64_MAX / 1024 / (kib ? kib : 1) ? 0 : n * kib * 1024;
}

/* "always within_size [never]": shared memory, which buffers are, has them if the word in brackets is none of two. */
static bool shm_has_huge(const struct machine *m)
{
	char text[128];

	return machine_read(m, text, sizeof(text), "sys/kernel/mm/transparent_hugepage/shmem_enabled") == 0 &&
	       strchr(text, '[') && !strstr(text, "[never]") && !strstr(text, "[deny]");
}

static void check_huge(const struct machine *m, struct report *r)
{
	AUTO_NAMES struct names names = {0};
	uint64_t bytes = 0;

	machine_list(m, &names, "sys/kernel/mm/hugepages");
	for (size_t i = 0; i < names.n; i++)
		bytes += reserved(m, names.v[i]);
	if (bytes)
		report_add(r, LEVEL_OK, "hugepages", NULL, "%" PRIu64 " MiB are set aside", bytes >> 20);
	else if (shm_has_huge(m))
		report_add(r, LEVEL_OK, "hugepages", NULL, "memfds get them (transparent_hugepage/shmem_enabled)");
	else
		report_add(r, LEVEL_WARN, "hugepages", "sysctl vm.nr_hugepages=512",
			   "there are none: buffers are mapped by 4 KiB, which is slower");
}

void doctor_machine(const struct machine *m, const struct platform *p, struct report *r)
{
	check_kernel(p, r);
	check_iommu(p, r);
	check_scalable(p, r);
	check_driver(m, p, r);
	check_type1(p, r);
	check_iommufd(m, p, r);
	check_huge(m, r);
}
