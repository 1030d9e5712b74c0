/* SPDX-License-Identifier: MIT */
/*
 * PCI configuration space: a header, PCI Express and MSI-X capabilities, and nothing behind them.
 */
#ifndef REFGPU_PCI_H
#define REFGPU_PCI_H

#include <stdbool.h>
#include <stdint.h>

#define PCI_CONFIG_SIZE 4096u
#define PCI_HEADER_SIZE 256u

struct pci {
	uint8_t value[PCI_CONFIG_SIZE];
	uint8_t writable[PCI_HEADER_SIZE]; /* the bits that the client may change */
};

void pci_init(struct pci *p);
/* offset + len lies in the configuration space. */
void pci_read(const struct pci *p, uint32_t offset, void *buf, uint32_t len);
/* Returns true if the write asked for a function-level reset. */
bool pci_write(struct pci *p, uint32_t offset, const void *buf, uint32_t len);

#endif
