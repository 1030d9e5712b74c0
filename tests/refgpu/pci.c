/* SPDX-License-Identifier: MIT */
/*
 * The bytes of configuration space. Registers that the device itself would act on are few: BARs only remember, the
 * command register too, MSI-X is armed by message; Device Control's bit 15 resets. PASID, ATS and PRI can be enabled
 * and then do nothing: vfio-user carries no PASIDs, and whoever connects translates (or not) before it asks.
 *
 * Source: PCI Local Bus 3.0, 6.1 and 6.8.2; PCI Express Base 7.5.3, 7.8.9 (PASID), 10.5.1 (ATS), 10.5.2 (PRI), 7.7.11 (ACS).
 */
#include "pci.h"

#include <string.h>

#include <linux/pci_regs.h>

#include <pasid/refgpu.h>

#define CAP_EXPRESS 0x40u
#define CAP_MSIX 0x80u
#define EXPRESS_CAP_VERSION 2u
#define LINK_X1_2_5GT 0x11u
#define EXT_PASID 0x100u
#define EXT_ATS 0x110u
#define EXT_PRI 0x120u
#define EXT_ACS 0x130u
#define EXT_VERSION 1u
#define PASID_WIDTH 20u
#define PRI_REQUESTS 64u

static void put16(struct pci *p, uint32_t at, uint32_t val, uint32_t writable)
{
	p->value[at] = (uint8_t)val;
	p->value[at + 1] = (uint8_t)(val >> 8);
	p->writable[at] = (uint8_t)writable;
	p->writable[at + 1] = (uint8_t)(writable >> 8);
}

static void put32(struct pci *p, uint32_t at, uint32_t val, uint32_t writable)
{
	put16(p, at, val, writable);
	put16(p, at + 2, val >> 16, writable >> 16);
}

static void put_bar64(struct pci *p, uint32_t bar, uint32_t size)
{
	put32(p, PCI_BASE_ADDRESS_0 + 4 * bar, PCI_BASE_ADDRESS_MEM_TYPE_64, ~(size - 1));
	put32(p, PCI_BASE_ADDRESS_0 + 4 * (bar + 1), 0, UINT32_MAX);
}

static void put_express(struct pci *p)
{
	put16(p, CAP_EXPRESS, PCI_CAP_ID_EXP | CAP_MSIX << 8, 0);
	put16(p, CAP_EXPRESS + PCI_EXP_FLAGS, EXPRESS_CAP_VERSION | PCI_EXP_TYPE_ENDPOINT << 4, 0);
	put32(p, CAP_EXPRESS + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR, 0);
	put16(p, CAP_EXPRESS + PCI_EXP_DEVCTL, 0, 0x7fff);
	put32(p, CAP_EXPRESS + PCI_EXP_LNKCAP, LINK_X1_2_5GT, 0);
	put16(p, CAP_EXPRESS + PCI_EXP_LNKSTA, LINK_X1_2_5GT, 0);
	/* The prefixes of a transaction are where a PASID travels. */
	put32(p, CAP_EXPRESS + PCI_EXP_DEVCAP2, PCI_EXP_DEVCAP2_EE_PREFIX, 0);
	put16(p, CAP_EXPRESS + PCI_EXP_LNKCTL2, 1, 0);
}

static void put_msix(struct pci *p)
{
	put16(p, CAP_MSIX, PCI_CAP_ID_MSIX, 0);
	put16(p, CAP_MSIX + PCI_MSIX_FLAGS, REFGPU_VECTORS - 1, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
	put32(p, CAP_MSIX + PCI_MSIX_TABLE, REFGPU_MSIX_TABLE | REFGPU_BAR_REGS, 0);
	put32(p, CAP_MSIX + PCI_MSIX_PBA, REFGPU_MSIX_PBA | REFGPU_BAR_REGS, 0);
}

static void put_ext(struct pci *p, uint32_t at, uint32_t id, uint32_t next)
{
	put32(p, at, id | EXT_VERSION << 16 | next << 20, 0);
}

static void put_pasid(struct pci *p, uint32_t next)
{
	put_ext(p, EXT_PASID, PCI_EXT_CAP_ID_PASID, EXT_ATS);
	put16(p, EXT_PASID + PCI_PASID_CAP, PASID_WIDTH << 8, 0);
	put16(p, EXT_PASID + PCI_PASID_CTRL, 0, PCI_PASID_CTRL_ENABLE);
	put_ext(p, EXT_ATS, PCI_EXT_CAP_ID_ATS, EXT_PRI);
	put16(p, EXT_ATS + PCI_ATS_CAP, PCI_ATS_CAP_PAGE_ALIGNED, 0);
	put16(p, EXT_ATS + PCI_ATS_CTRL, 0, PCI_ATS_CTRL_ENABLE | PCI_ATS_CTRL_STU(UINT32_MAX));
	put_ext(p, EXT_PRI, PCI_EXT_CAP_ID_PRI, next);
	put16(p, EXT_PRI + PCI_PRI_CTRL, 0, PCI_PRI_CTRL_ENABLE);
	put16(p, EXT_PRI + PCI_PRI_STATUS, PCI_PRI_STATUS_STOPPED, 0);
	put32(p, EXT_PRI + PCI_PRI_MAX_REQ, PRI_REQUESTS, 0);
	put32(p, EXT_PRI + PCI_PRI_ALLOC_REQ, 0, UINT32_MAX);
}

void pci_init(struct pci *p, bool apart)
{
	memset(p, 0, sizeof(*p));
	put16(p, PCI_VENDOR_ID, REFGPU_PCI_VENDOR, 0);
	put16(p, PCI_DEVICE_ID, REFGPU_PCI_DEVICE, 0);
	put16(p, PCI_COMMAND, 0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
	put16(p, PCI_STATUS, PCI_STATUS_CAP_LIST, 0);
	put32(p, PCI_CLASS_REVISION, REFGPU_PCI_CLASS << 8 | REFGPU_VERSION, 0);
	put16(p, PCI_CACHE_LINE_SIZE, 0, 0xff);
	put_bar64(p, REFGPU_BAR_REGS, REFGPU_BAR_REGS_SIZE);
	put_bar64(p, REFGPU_BAR_STATUS, REFGPU_BAR_STATUS_SIZE);
	put16(p, PCI_SUBSYSTEM_VENDOR_ID, REFGPU_PCI_VENDOR, 0);
	put16(p, PCI_SUBSYSTEM_ID, REFGPU_PCI_DEVICE, 0);
	put16(p, PCI_CAPABILITY_LIST, CAP_EXPRESS, 0);
	put16(p, PCI_INTERRUPT_LINE, 0, 0xff);
	put_express(p);
	put_msix(p);
	put_pasid(p, apart ? EXT_ACS : 0);
	if (apart)
		put_ext(p, EXT_ACS, PCI_EXT_CAP_ID_ACS, 0); /* without controls: it cannot do otherwise */
}

void pci_read(const struct pci *p, uint32_t offset, void *buf, uint32_t len)
{
	memcpy(buf, p->value + offset, len);
}

bool pci_write(struct pci *p, uint32_t offset, const void *buf, uint32_t len)
{
	const uint8_t *from = buf;
	bool reset = false;
	uint32_t i, at;

	for (i = 0; i < len; i++) {
		at = offset + i;
		if (at == CAP_EXPRESS + PCI_EXP_DEVCTL + 1 && (from[i] & PCI_EXP_DEVCTL_BCR_FLR >> 8))
			reset = true;
		p->value[at] = (uint8_t)((p->value[at] & ~p->writable[at]) | (from[i] & p->writable[at]));
	}
	return reset;
}
