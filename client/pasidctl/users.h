/* SPDX-License-Identifier: MIT */
/* Who has a device open: the kernel takes a device away from VFIO only once all have closed it, and waits for that. */
#ifndef PASIDCTL_USERS_H
#define PASIDCTL_USERS_H

#include <stdbool.h>

#include "device.h"

struct user {
	char pid[16];
	char name[MACHINE_NAME_MAX];
};

/* One of them, as far as /proc shows: false if there is none, or if we may not see it. */
bool users_find(const struct machine *m, const struct device *d, struct user *ret);

#endif
