/* SPDX-License-Identifier: MIT */
/* An object's properties as JSON: what a call would get, read back from a message that is sent to nobody. */
#include "dbus/private.h"

#include <json-c/json.h>
#include <string.h>

static struct json_object *read_value(sd_bus_message *m);

static struct json_object *read_basic(sd_bus_message *m, char type)
{
	const char *s;
	uint64_t t;
	uint32_t u;
	int b;

	switch (type) {
	case 'b':
		return sd_bus_message_read_basic(m, type, &b) < 0 ? NULL : json_object_new_boolean(b);
	case 'u':
		return sd_bus_message_read_basic(m, type, &u) < 0 ? NULL : json_object_new_uint64(u);
	case 't':
		return sd_bus_message_read_basic(m, type, &t) < 0 ? NULL : json_object_new_uint64(t);
	default: /* s and o: no property has another type */
		return sd_bus_message_read_basic(m, type, &s) < 0 ? NULL : json_object_new_string(s);
	}
}

static struct json_object *read_list(sd_bus_message *m)
{
	struct json_object *list = json_object_new_array();

	while (list && sd_bus_message_at_end(m, 0) == 0) {
		struct json_object *v = read_value(m);

		if (!v || json_object_array_add(list, v) < 0) {
			json_object_put(v);
			json_object_put(list);
			return NULL;
		}
	}
	return list;
}

/* An array of entries whose keys are strings. */
static struct json_object *read_entries(sd_bus_message *m)
{
	struct json_object *o = json_object_new_object();
	const char *key;

	while (o && sd_bus_message_at_end(m, 0) == 0) {
		struct json_object *v = NULL;

		if (sd_bus_message_enter_container(m, 'e', NULL) > 0 && sd_bus_message_read_basic(m, 's', &key) > 0)
			v = read_value(m);
		if (!v || sd_bus_message_exit_container(m) < 0 || json_object_object_add(o, key, v) < 0) {
			json_object_put(o);
			return NULL;
		}
	}
	return o;
}

static struct json_object *read_value(sd_bus_message *m)
{
	struct json_object *v;
	const char *contents;
	char type;

	if (sd_bus_message_peek_type(m, &type, &contents) <= 0)
		return NULL;
	if (!contents)
		return read_basic(m, type);
	if (sd_bus_message_enter_container(m, type, contents) < 0)
		return NULL;
	if (type == 'v')
		v = read_value(m);
	else if (type == 'a' && contents[0] == '{')
		v = read_entries(m);
	else
		v = read_list(m);
	if (v && sd_bus_message_exit_container(m) < 0) {
		json_object_put(v);
		return NULL;
	}
	return v;
}

struct json_object *json_of_properties(const struct look *l)
{
	struct json_object *o = NULL;
	sd_bus_message *m = NULL;
	int r = sd_bus_message_new_signal(l->b->bus, &m, "/", BUS_NAME, "State");

	if (r >= 0)
		r = object_append_properties(*object_interfaces(l->at.node), l, m, 0, true);
	if (r >= 0)
		r = sd_bus_message_seal(m, 1, 0);
	if (r >= 0)
		r = sd_bus_message_rewind(m, 1);
	if (r >= 0)
		o = read_value(m);
	sd_bus_message_unref(m);
	return o;
}
