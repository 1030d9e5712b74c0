/* SPDX-License-Identifier: MIT */
/* What a machine's kernel, firmware and IOMMUs offer for giving devices to user space. */
#ifndef PASIDCTL_PLATFORM_H
#define PASIDCTL_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"

#define KERNEL(major, minor) ((unsigned int)(major) << 16 | (minor))
#define KERNEL_CDEV KERNEL(6, 6) /* /dev/vfio/devices */
#define KERNEL_MAP_FILE KERNEL(6, 13) /* IOMMU_IOAS_MAP_FILE */
#define KERNEL_PASID KERNEL(6, 15) /* VFIO_DEVICE_ATTACH_PASID */
#define KERNEL_NESTED KERNEL(6, 15) /* IOMMU_VEVENTQ_ALLOC, which passes faults on */

enum setting {
	SETTING_NONE, /* the command line does not say */
	SETTING_ON,
	SETTING_OFF,
};

enum unit_kind {
	UNIT_INTEL,
	UNIT_AMD,
	UNIT_SMMU3, /* Arm's */
	UNIT_OTHER,
};

struct unit { /* an IOMMU */
	char name[MACHINE_NAME_MAX];
	enum unit_kind kind;
	bool scalable, pasid; /* Intel: can it do scalable mode, and PASIDs in it? */
};

struct platform {
	char release[MACHINE_NAME_MAX]; /* "": not said */
	unsigned int kernel; /* KERNEL(); 0: not understood */
	enum setting intel, scalable, amd, any; /* intel_iommu=, its sm_on, amd_iommu=, iommu= */
	bool dmar, ivrs, iort; /* the firmware's tables of Intel's, AMD's and Arm's IOMMUs */
	size_t n_groups;
	struct unit *units;
	size_t n_units;
	bool vfio_pci; /* the driver */
	bool type1; /* that, of the container */
	bool container; /* /dev/vfio/vfio */
	bool iommufd; /* /dev/iommu */
	bool denylist_off;
};

/* 0 or -ENOMEM: what cannot be read is not there. */
int platform_read(const struct machine *m, struct platform *ret);
void platform_fini(struct platform *p);
#define AUTO_PLATFORM __attribute__((cleanup(platform_fini)))

/* NULL: there is none of this name. */
const struct unit *platform_unit(const struct platform *p, const char *name);

/* Is there an Arm SMMUv3? */
bool platform_smmu3(const struct platform *p);

/* Is there such a module for the running kernel, built in or to be loaded? As in "vfio-pci". */
bool platform_module(const struct machine *m, const struct platform *p, const char *name);

void platform_parse_cmdline(struct platform *p, char *cmdline);
unsigned int platform_parse_release(const char *release);

#endif
