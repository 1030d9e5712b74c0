/* SPDX-License-Identifier: MIT */
/* pasidctl devices, contexts, stats: what pasidd has, as tables. */
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include "base/util.h"
#include "bus.h"
#include "options.h"
#include "table.h"

static enum colour device_colour(const char *state)
{
	return !strcmp(state, "ready") ? COLOUR_NONE : !strcmp(state, "gone") ? COLOUR_RED : COLOUR_YELLOW;
}

static void print_devices(struct json_object *list)
{
	static const char *const columns[] = {"DEVICE",    "MODE",    "STATE",   ">SLOTS", ">CONTEXTS",
					      ">SWITCHES", ">FAULTS", ">RESETS", "DRIVER", "TRANSPORT"};
	AUTO_TABLE struct table t = TABLE(columns);

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *d = json_object_array_get_idx(list, i);
		const char *mode = bus_string(d, "Mode"), *asked = bus_string(d, "ConfiguredMode");
		const char *state = bus_string(d, "State"), *reason = bus_string(d, "Reason");

		table_row(&t, device_colour(state));
		table_cell(&t, 0, "%s", bus_string(d, "Name"));
		table_cell(&t, 1, strcmp(mode, asked) && *mode ? "%s, not %s" : "%s", *mode ? mode : asked, asked);
		table_cell(&t, 2, *reason ? "%s: %s" : "%s", state, reason);
		table_cell(&t, 3, "%" PRIu64, bus_number(d, "SlotCount"));
		table_cell(&t, 4, "%" PRIu64, bus_number(d, "Contexts"));
		table_cell(&t, 5, "%" PRIu64, bus_number(d, "Switches"));
		table_cell(&t, 6, "%" PRIu64, bus_number(d, "Faults"));
		table_cell(&t, 7, "%" PRIu64, bus_number(d, "Resets"));
		table_cell(&t, 8, "%s", bus_string(d, "Driver"));
		table_cell(&t, 9, "%s", bus_string(d, "Transport"));
	}
	table_print(&t, stdout, table_coloured(stdout), 0, 0);
}

static void print_contexts(struct json_object *list)
{
	static const char *const columns[] = {">CTX",  "DEVICE",     "STATE",      ">PID",    ">UID", ">MAPPED",
					      ">MAPS", ">SUBMITTED", ">COMPLETED", ">FAULTS", "UNIT"};
	AUTO_TABLE struct table t = TABLE(columns);
	char bytes[16], name[64];

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *c = json_object_array_get_idx(list, i);
		const char *state = bus_string(c, "State"), *why = bus_string(c, "LostReason");

		table_row(&t, !strcmp(state, "lost") ? COLOUR_RED : COLOUR_NONE);
		table_cell(&t, 0, "%" PRIu64, bus_number(c, "Id"));
		table_cell(&t, 1, "%s", bus_device_name(bus_string(c, "Device"), name));
		table_cell(&t, 2, *why ? "%s: %s" : "%s", state, why);
		table_cell(&t, 3, "%" PRIu64, bus_number(c, "OwnerPid"));
		table_cell(&t, 4, "%" PRIu64, bus_number(c, "OwnerUid"));
		table_cell(&t, 5, "%s", table_bytes(bus_number(c, "Bytes"), bytes));
		table_cell(&t, 6, "%" PRIu64, bus_number(c, "Mapped"));
		table_cell(&t, 7, "%" PRIu64, bus_number(c, "Submitted"));
		table_cell(&t, 8, "%" PRIu64, bus_number(c, "Completed"));
		table_cell(&t, 9, "%" PRIu64, bus_number(c, "Faults"));
		table_cell(&t, 10, "%s", bus_string(c, "OwnerUnit"));
	}
	table_print(&t, stdout, table_coloured(stdout), 0, 0);
}

static int run_list(struct options *o, const char *interface, void (*print)(struct json_object *list))
{
	AUTO_JSON struct json_object *list = NULL;
	AUTO_BUS struct bus bus = {0};

	if (o->n_words)
		return wrong("that is one word too many", o->words[0]);
	if (bus_open(&bus, o->bus, o->command, stderr) < 0 || bus_list(&bus, interface, &list) < 0)
		return 1;
	if (o->json)
		bus_print(list, stdout);
	else
		print(list);
	return 0;
}

int run_devices(struct options *o)
{
	return run_list(o, "Device", print_devices);
}

int run_contexts(struct options *o)
{
	return run_list(o, "Context", print_contexts);
}

/* ---- in sum ---- */

static void print_limits(struct json_object *manager)
{
	static const char *const columns[] = {"LIMIT", ">CONNECTION", ">USER"};
	struct json_object *connection, *user;
	AUTO_TABLE struct table t = TABLE(columns);

	if (!json_object_object_get_ex(manager, "ConnectionLimits", &connection) ||
	    !json_object_object_get_ex(manager, "UserLimits", &user) || !json_object_is_type(user, json_type_object))
		return;
	json_object_object_foreach (user, name, limit) {
		struct json_object *own = NULL;

		table_row(&t, COLOUR_NONE);
		table_cell(&t, 0, "%s", name);
		if (json_object_is_type(connection, json_type_object) &&
		    json_object_object_get_ex(connection, name, &own))
			table_cell(&t, 1, "%" PRIu64, json_object_get_uint64(own));
		table_cell(&t, 2, "%" PRIu64, json_object_get_uint64(limit));
	}
	table_print(&t, stdout, table_coloured(stdout), 0, 0);
}

static uint64_t sum(struct json_object *list, const char *name)
{
	uint64_t n = 0;

	for (size_t i = 0; i < json_object_array_length(list); i++)
		n += bus_number(json_object_array_get_idx(list, i), name);
	return n;
}

static void print_stats(struct json_object *manager, struct json_object *devices)
{
	char used[16], limit[16];

	printf("pasidd %s, protocol %" PRIu64 "\n", bus_string(manager, "Version"),
	       bus_number(manager, "ProtocolVersion"));
	printf("devices:     %zu\n", json_object_array_length(devices));
	printf("connections: %" PRIu64 "\n", bus_number(manager, "Connections"));
	printf("contexts:    %" PRIu64 "\n", bus_number(manager, "Contexts"));
	printf("memory:      %s of %s\n", table_bytes(bus_number(manager, "TotalBytes"), used),
	       table_bytes(bus_number(manager, "TotalBytesLimit"), limit));
	printf("table pages: %" PRIu64 " of %" PRIu64 "\n", sum(devices, "TablePages"),
	       sum(devices, "TablePagesLimit"));
	printf("switches:    %" PRIu64 "\n", sum(devices, "Switches"));
	printf("faults:      %" PRIu64 ", and %" PRIu64 " that are nobody's\n", sum(devices, "Faults"),
	       sum(devices, "StrayFaults"));
	printf("resets:      %" PRIu64 "\n", sum(devices, "Resets"));
	printf("signals that nobody took: %" PRIu64 "\n\n", bus_number(manager, "SignalsDropped"));
	print_limits(manager);
}

int run_stats(struct options *o)
{
	AUTO_JSON struct json_object *manager = NULL, *devices = NULL, *all = NULL;
	AUTO_BUS struct bus bus = {0};

	if (o->n_words)
		return wrong("that is one word too many", o->words[0]);
	if (bus_open(&bus, o->bus, o->command, stderr) < 0 ||
	    bus_properties(&bus, BUS_MANAGER, "Manager", &manager) < 0 || bus_list(&bus, "Device", &devices) < 0)
		return 1;
	if (!o->json) {
		print_stats(manager, devices);
		return 0;
	}
	all = json_object_new_object();
	json_object_object_add(all, "manager", json_object_get(manager));
	json_object_object_add(all, "devices", json_object_get(devices));
	bus_print(all, stdout);
	return 0;
}
