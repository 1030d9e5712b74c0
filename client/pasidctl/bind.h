/* SPDX-License-Identifier: MIT */
/*
 * "pasidctl bind" and "unbind": devices go to vfio-pci and back, all that are named or none. What is going to be done
 * is said first; if a step fails, what was done before is undone, and that is said, too.
 */
#ifndef PASIDCTL_BIND_H
#define PASIDCTL_BIND_H

#include <stdbool.h>
#include <stdio.h>

#include "device.h"

#define BIND_MAX 32u /* devices in one command; a group of more has a bridge in it that does not isolate */

struct bind_options {
	bool dry_run; /* only say it */
	bool persist; /* bind: also after a reboot */
	bool json; /* what it came to, for programs, instead of what is done */
	FILE *out, *err;
};

/* n at least 1, addresses as of pci_parse_bdf. Exit status 0; 1: refused, or it failed; 2: there is no such device. */
int bind_devices(const struct machine *m, char (*bdfs)[PCI_BDF_SIZE], size_t n, const struct bind_options *o);
int unbind_devices(const struct machine *m, char (*bdfs)[PCI_BDF_SIZE], size_t n, const struct bind_options *o);

#endif
