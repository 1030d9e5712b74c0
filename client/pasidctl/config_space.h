/* SPDX-License-Identifier: MIT */
/*
 * What a device's configuration space says about PASIDs. It is read from the device's file "config" in sysfs, which the
 * kernel shows as it is; what VFIO shows of it to a program hides PASID. Only root may read more than 64 bytes.
 */
#ifndef PASIDCTL_CONFIG_SPACE_H
#define PASIDCTL_CONFIG_SPACE_H

#include <stdbool.h>
#include <stddef.h>

#include "device.h"

enum config_state {
	CONFIG_READ,
	CONFIG_NO_RIGHT, /* 64 bytes and no more */
	CONFIG_NO_EXTENDED, /* 256: a conventional PCI device, or a bridge on the way is */
	CONFIG_UNREADABLE,
};

struct config_space {
	enum config_state state;
	bool pasid, ats, pri;
	bool prefix; /* End-End TLP Prefix Supported, without which Linux switches no PASID on */
	unsigned int width; /* of PASIDs, in bits */
};

void config_space_read(const struct machine *m, const struct device *d, struct config_space *ret);

/* The same of n bytes. */
void config_space_parse(const unsigned char *bytes, size_t n, struct config_space *ret);

#endif
