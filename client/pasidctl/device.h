/* SPDX-License-Identifier: MIT */
/* A PCI device as sysfs shows it, its IOMMU group, and what pasidd and the kernel's vfio-pci think of its kind. */
#ifndef PASIDCTL_DEVICE_H
#define PASIDCTL_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"
#include "transport/pci.h"

struct device {
	char bdf[PCI_BDF_SIZE];
	uint16_t vendor, device;
	uint32_t class;
	char driver[MACHINE_NAME_MAX]; /* that it is bound to; "": none */
	char override[MACHINE_NAME_MAX]; /* the only driver that may have it; "": any */
	int group; /* -1: there is no IOMMU in front of it */
	char unit[MACHINE_NAME_MAX]; /* the IOMMU in front of it, in /sys/class/iommu; "": not said */
	char cdev[MACHINE_NAME_MAX]; /* "vfio0", of /dev/vfio/devices; "": none */
	bool bridge;
};

/* 0, -ENODEV (there is no such device), -errno (what is there is not understood). */
int device_find(const struct machine *m, const char *bdf, struct device *ret);

/* Is it bound to vfio-pci, the plain one? */
bool device_has_vfio(const struct device *d);

/* One of those that vfio-pci refuses (drivers/vfio/pci/vfio_pci.c, vfio_pci_dev_in_denylist). */
bool device_denylisted(const struct device *d);
#define DEVICE_DENYLIST_TODO "modprobe -r vfio-pci && modprobe vfio-pci disable_denylist=1"

struct engine_ops;

/* The driver that pasidd brings for this kind of device, or NULL; others may be loaded (docs/driver.md). */
const struct engine_ops *device_engine(const struct device *d);

/* The other devices on its bus, by address. -ENOENT: the bus hangs off no bridge, and cannot be reset. */
int device_neighbours(const struct machine *m, const struct device *d, struct names *ret);

/* A device that shares its group with ours: both are given away or neither. */
struct member {
	char name[MACHINE_NAME_MAX];
	char driver[MACHINE_NAME_MAX];
	bool hinders; /* its driver uses it on its own account */
};

struct group {
	struct member *v;
	size_t n;
	size_t hindering;
};

/* Is the group one that VFIO made up because it was told to do without an IOMMU? Then the device reaches all memory. */
bool group_is_made_up(const struct machine *m, int group);

/* The others in the group. */
int group_read(const struct machine *m, const struct device *of, struct group *ret);
void group_fini(struct group *g);
#define AUTO_GROUP __attribute__((cleanup(group_fini)))

#endif
