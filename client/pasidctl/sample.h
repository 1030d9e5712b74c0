/* SPDX-License-Identifier: MIT */
/* What changes between two looks at pasidd's contexts: rates, and each one's share of its device. */
#ifndef PASIDCTL_SAMPLE_H
#define PASIDCTL_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

struct json_object;

struct sample_context {
	uint64_t id;
	/* As counted since it was made. */
	uint64_t maps, switches, device_ns;
	/* Since the look before; 0 for one that is new. */
	double maps_s, switches_s, share; /* share: of all slots' time, 0 to 1 */
	struct json_object *properties; /* the list's */
};

struct sample {
	uint64_t at_ns;
	struct json_object *list; /* counted: this sample's */
	struct sample_context *v;
	size_t n;
};

/* list, as of bus_list() "Context", devices as of "Device"; `before` may be empty. Sorted by share, then id. -ENOMEM. */
int sample_take(struct sample *s, struct json_object *list, struct json_object *devices, uint64_t now,
		const struct sample *before);
void sample_fini(struct sample *s);

#endif
