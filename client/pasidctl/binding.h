/* SPDX-License-Identifier: MIT */
/* One device that changes its driver: steps, and the way back to what was before. */
#ifndef PASIDCTL_BINDING_H
#define PASIDCTL_BINDING_H

#include <stdio.h>

#include "device.h"
#include "persist.h"

struct binding {
	struct device before;
	enum persist persisted; /* before */
	const char *failed; /* the step that failed */
};

int binding_init(struct binding *b, const struct machine *m, const char *bdf);

/* Sets the override ("" for none), takes the device from its driver if that is not `to`, and lets the kernel choose.
 * 0 or -errno, then b->failed is said. */
int binding_move(struct binding *b, const struct machine *m, const char *override);

/* Makes everything as it was. 0, or -errno of the first step that failed; the others are tried all the same. */
int binding_restore(const struct binding *b, const struct machine *m);

/* Its driver now; "": none. */
void binding_driver(const struct machine *m, const char *bdf, char ret[MACHINE_NAME_MAX]);

#endif
