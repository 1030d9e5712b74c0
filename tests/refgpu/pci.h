/* SPDX-License-Identifier: MIT */
/*
 * PCI configuration space: a header, PCI Express and MSI-X capabilities, and behind them what a kernel looks for before
 * it attaches PASIDs.
 */
#ifndef REFGPU_PCI_H
#define REFGPU_PCI_H

#include <stdbool.h>
#include <stdint.h>

#define PCI_CONFIG_SIZE 4096u

struct pci {
	uint8_t value[PCI_CONFIG_SIZE];
	uint8_t writable[PCI_CONFIG_SIZE]; /* the bits that the client may change */
};

/* apart: it says that it keeps the functions of its slot apart (ACS), so that each has an IOMMU group of its own. */
void pci_init(struct pci *p, bool apart);
/* offset + len lies in the configuration space. */
void pci_read(const struct pci *p, uint32_t offset, void *buf, uint32_t len);
/* Returns true if the write asked for a function-level reset. */
bool pci_write(struct pci *p, uint32_t offset, const void *buf, uint32_t len);

#endif
