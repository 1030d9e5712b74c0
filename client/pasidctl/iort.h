/* SPDX-License-Identifier: MIT */
/*
 * What the firmware of an Arm machine says of the devices behind a PCI root complex, in its ACPI table IORT: whether their
 * accesses are coherent with the processors' caches whatever a page table asks for (CANWBS). Linux lets user space have the
 * first stage of an SMMU only then, or where the SMMU itself sees to it (S2FWB), which no table says.
 */
#ifndef PASIDCTL_IORT_H
#define PASIDCTL_IORT_H

#include <stddef.h>
#include <stdint.h>

#include "machine.h"

enum iort {
	IORT_NONE, /* there is no such table */
	IORT_NO_RIGHT, /* only root may read it */
	IORT_UNREADABLE, /* or what it says cannot be */
	IORT_NO_ROOT, /* it has no root complex of that segment */
	IORT_NOT_COHERENT, /* it does not say that they are */
	IORT_COHERENT,
};

/* segment: of PCI, the domain in a device's address. */
enum iort iort_read(const struct machine *m, uint32_t segment);

/* The same of a table of n bytes. */
enum iort iort_parse(const unsigned char *bytes, size_t n, uint32_t segment);

#endif
