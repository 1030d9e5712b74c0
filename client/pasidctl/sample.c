/* SPDX-License-Identifier: MIT */
/* See sample.h. */
#include "sample.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "bus.h"

void sample_fini(struct sample *s)
{
	json_object_put(s->list);
	free(s->v);
	*s = (struct sample){0};
}

static const struct sample_context *context_of(const struct sample *s, uint64_t id)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].id == id)
			return &s->v[i];
	return NULL;
}

/* How many contexts its device runs at a time; 1 if it is not there. */
static uint64_t slots_of(struct json_object *devices, const char *path)
{
	char name[64];

	bus_device_name(path, name);
	for (size_t i = 0; i < json_object_array_length(devices); i++) {
		struct json_object *d = json_object_array_get_idx(devices, i);
		uint64_t n = bus_number(d, "SlotCount");

		if (!strcmp(bus_string(d, "Name"), name) && n)
			return n;
	}
	return 1;
}

/* A second; counts that went back are another context's. */
static double rate(uint64_t now, uint64_t before, double seconds)
{
	return now > before && seconds > 0 ? (double)(now - before) / seconds : 0;
}

static int by_share(const void *a, const void *b)
{
	const struct sample_context *x = a, *y = b;

	if (x->share != y->share)
		return x->share > y->share ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

int sample_take(struct sample *s, struct json_object *list, struct json_object *devices, uint64_t now,
		const struct sample *before)
{
	double seconds = (double)(now - before->at_ns) / 1e9;
	size_t n = json_object_array_length(list);

	*s = (struct sample){.at_ns = now, .n = n, .v = calloc(n + 1, sizeof(*s->v))};
	if (!s->v)
		return -ENOMEM;
	s->list = json_object_get(list);
	for (size_t i = 0; i < n; i++) {
		struct json_object *o = json_object_array_get_idx(list, i);
		struct sample_context *c = &s->v[i];
		const struct sample_context *old = context_of(before, bus_number(o, "Id"));

		*c = (struct sample_context){
			.id = bus_number(o, "Id"),
			.maps = bus_number(o, "Maps"),
			.switches = bus_number(o, "Switches"),
			.device_ns = bus_number(o, "DeviceTime"),
			.properties = o,
		};
		if (!old)
			continue;
		c->maps_s = rate(c->maps, old->maps, seconds);
		c->switches_s = rate(c->switches, old->switches, seconds);
		c->share = rate(c->device_ns, old->device_ns, seconds) / 1e9 /
			   (double)slots_of(devices, bus_string(o, "Device"));
		c->share = c->share > 1 ? 1 : c->share;
	}
	qsort(s->v, n, sizeof(*s->v), by_share);
	return 0;
}
