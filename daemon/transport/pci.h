/* SPDX-License-Identifier: MIT */
/* Where a PCI device is on this machine: what sysfs says about the device of an address. */
#ifndef TRANSPORT_PCI_H
#define TRANSPORT_PCI_H

#include <stdbool.h>
#include <stddef.h>

#include <pasid/range.h>

#define PCI_BDF_SIZE 13u /* "0000:01:00.0" with its NUL */

struct pci_place {
	char bdf[PCI_BDF_SIZE]; /* domain:bus:device.function, as sysfs spells it */
	char driver[32]; /* that it is bound to; "": none */
	int group; /* IOMMU group; -1: none, there is no IOMMU in front of it */
	char cdev[16]; /* "vfio0", of /dev/vfio/devices; "": none */
};

/* "0000:01:00.0", or without the domain "01:00.0", in lower or upper case. False: it is no such address. */
bool pci_parse_bdf(const char *text, char bdf[PCI_BDF_SIZE]);

/* sysfs: "/sys" but in tests. 0, -ENODEV (there is no such device), or -errno. */
int pci_find(const char *sysfs, const char *bdf, struct pci_place *ret);
/* The addresses that the kernel keeps for the interrupt controller in front of an IOMMU group. 0, -ENOENT, or -errno. */
int pci_msi_window(const char *sysfs, int group, struct range *ret);

#endif
