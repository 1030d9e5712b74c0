/* SPDX-License-Identifier: MIT */
/* pasidctl maps, walk: one context's address space. */
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include <pasid/pasid.h>

#include "base/util.h"
#include "bus.h"
#include "doctor.h"
#include "options.h"
#include "table.h"

#define PATH_SIZE sizeof(BUS_CONTEXT "4294967295")

static void add_number(struct json_object *o, const char *name, uint64_t v)
{
	json_object_object_add(o, name, json_object_new_uint64(v));
}

static void add_flags(struct json_object *o, uint64_t flags)
{
	json_object_object_add(o, "read", json_object_new_boolean(flags & PASID_READ));
	json_object_object_add(o, "write", json_object_new_boolean(flags & PASID_WRITE));
}

/* -1: go on. */
static int take_context(const struct options *o, uint64_t *ctx, char path[PATH_SIZE])
{
	int r = take_number(o->words[0], "a context is a number", UINT32_MAX, ctx);

	snprintf(path, PATH_SIZE, BUS_CONTEXT "%" PRIu64, *ctx);
	return r;
}

/* ---- maps ---- */

static void print_mapping(struct json_object *m)
{
	uint64_t first = bus_number_at(m, 0), flags = bus_number_at(m, 2), bus = bus_number_at(m, 5);

	printf("%012" PRIx64 "-%012" PRIx64 " %c%c- %08" PRIx64 " buffer %" PRIu64, first, first + bus_number_at(m, 1),
	       flags & PASID_READ ? 'r' : '-', flags & PASID_WRITE ? 'w' : '-', bus_number_at(m, 4),
	       bus_number_at(m, 3));
	if (bus)
		printf(" bus %012" PRIx64, bus);
	putchar('\n');
}

static struct json_object *mapping_json(struct json_object *m)
{
	struct json_object *o = json_object_new_object();

	add_number(o, "iova", bus_number_at(m, 0));
	add_number(o, "length", bus_number_at(m, 1));
	add_flags(o, bus_number_at(m, 2));
	add_number(o, "buffer", bus_number_at(m, 3));
	add_number(o, "offset", bus_number_at(m, 4));
	add_number(o, "bus", bus_number_at(m, 5));
	return o;
}

/* Takes one answer. False: it was the last one; *next is where the next one begins. */
static bool take_mappings(struct json_object *answer, struct json_object *all, uint64_t *next)
{
	struct json_object *list = json_object_array_get_idx(answer, 1);
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

	for (size_t i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(list, i);
		uint64_t end = bus_number_at(m, 0) + bus_number_at(m, 1);

		/* Whatever comes, it goes on, so that it comes to an end. */
		if (end <= *next)
			return false;
		*next = end;
		if (all)
			json_object_array_add(all, mapping_json(m));
		else
			print_mapping(m);
	}
	return n && !bus_number_at(answer, 2);
}

int run_maps(struct options *o)
{
	AUTO_JSON struct json_object *out = NULL;
	struct json_object *all = NULL;
	AUTO_BUS struct bus bus = {0};
	uint64_t ctx, next = 0;
	char path[PATH_SIZE];
	bool more = true;
	int r;

	if (o->n_words != 1)
		return wrong("maps takes one context", NULL);
	r = take_context(o, &ctx, path);
	if (r >= 0)
		return r;
	if (bus_open(&bus, o->bus, o->command, stderr) < 0)
		return 1;
	if (o->json) {
		out = json_object_new_object();
		all = json_object_new_array();
		add_number(out, "context", ctx);
		json_object_object_add(out, "mappings", all);
	}
	while (more) {
		AUTO_JSON struct json_object *answer = NULL;

		r = bus_call(&bus, path, "Context", next ? "MappingsFrom" : "Mappings", next ? 1 : 0, &next, &answer);
		if (r < 0)
			return 1;
		more = take_mappings(answer, all, &next);
		if (o->json && !more)
			json_object_object_add(out, "source", json_object_new_string(bus_string_at(answer, 0)));
	}
	if (o->json)
		bus_print(out, stdout);
	return 0;
}

/* ---- walk ---- */

static const char *source_text(const char *source)
{
	return !strcmp(source, "table") ? "read from pasidd's tables just now"
					: "the kernel keeps the tables: what pasidd told it";
}

static void print_walk(struct json_object *walk, struct json_object *to)
{
	static const char *const columns[] = {">LEVEL", ">INDEX", ">AT", ">ENTRY", "WHAT IT SAYS"};
	struct json_object *levels = json_object_array_get_idx(walk, 1);
	size_t n = json_object_is_type(levels, json_type_array) ? json_object_array_length(levels) : 0;
	AUTO_TABLE struct table t = TABLE(columns);

	for (size_t i = 0; i < n; i++) {
		struct json_object *l = json_object_array_get_idx(levels, i);

		table_row(&t, COLOUR_NONE);
		table_cell(&t, 0, "%" PRIu64, bus_number_at(l, 0));
		table_cell(&t, 1, "%" PRIu64, bus_number_at(l, 1));
		table_cell(&t, 2, "%012" PRIx64, bus_number_at(l, 2));
		table_cell(&t, 3, "%016" PRIx64, bus_number_at(l, 3));
		table_cell(&t, 4, "%s", bus_string_at(l, 4));
	}
	if (n)
		table_print(&t, stdout, table_coloured(stdout), 0, 0);
	if (to) {
		printf("mapped: %s, buffer %" PRIu64 " at offset %#" PRIx64,
		       bus_number_at(to, 2) & PASID_WRITE ? "read and write" : "read", bus_number_at(to, 3),
		       bus_number_at(to, 4));
		if (bus_number_at(to, 1))
			printf(", bus address %#" PRIx64, bus_number_at(to, 1));
		putchar('\n');
	} else {
		printf("not mapped\n");
	}
	printf("(%s)\n", source_text(bus_string_at(walk, 0)));
}

static struct json_object *walk_json(uint64_t ctx, uint64_t iova, struct json_object *walk, struct json_object *to)
{
	struct json_object *o = json_object_new_object(), *levels = json_object_new_array(), *t = NULL;
	struct json_object *list = json_object_array_get_idx(walk, 1);
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;

	add_number(o, "context", ctx);
	add_number(o, "iova", iova);
	json_object_object_add(o, "source", json_object_new_string(bus_string_at(walk, 0)));
	for (size_t i = 0; i < n; i++) {
		struct json_object *from = json_object_array_get_idx(list, i), *l = json_object_new_object();

		add_number(l, "level", bus_number_at(from, 0));
		add_number(l, "index", bus_number_at(from, 1));
		add_number(l, "at", bus_number_at(from, 2));
		add_number(l, "entry", bus_number_at(from, 3));
		json_object_object_add(l, "says", json_object_new_string(bus_string_at(from, 4)));
		json_object_array_add(levels, l);
	}
	json_object_object_add(o, "levels", levels);
	if (to) {
		t = json_object_new_object();
		add_number(t, "bus", bus_number_at(to, 1));
		add_flags(t, bus_number_at(to, 2));
		add_number(t, "buffer", bus_number_at(to, 3));
		add_number(t, "offset", bus_number_at(to, 4));
	}
	json_object_object_add(o, "mapped", t);
	return o;
}

/* Where it leads; *to stays NULL if nothing is mapped there. */
static int translate(struct bus *bus, const char *path, uint64_t iova, struct json_object **to)
{
	int r;

	r = bus_call(bus, path, "Context", "Translate", 1, &iova, to);
	return r < 0 && bus->not_mapped ? 0 : r;
}

int run_walk(struct options *o)
{
	AUTO_JSON struct json_object *walk = NULL, *to = NULL, *out = NULL;
	AUTO_BUS struct bus bus = {0};
	char path[PATH_SIZE];
	uint64_t ctx, iova;
	int r;

	if (o->n_words != 2)
		return wrong("walk takes a context and an address", NULL);
	r = take_context(o, &ctx, path);
	if (r < 0)
		r = take_number(o->words[1], "an address is a number such as 0x10000", UINT64_MAX, &iova);
	if (r >= 0)
		return r;
	if (bus_open(&bus, o->bus, o->command, stderr) < 0 ||
	    bus_call(&bus, path, "Context", "Walk", 1, &iova, &walk) < 0 || translate(&bus, path, iova, &to) < 0)
		return 1;
	if (!o->json) {
		print_walk(walk, to);
		return 0;
	}
	out = walk_json(ctx, iova, walk, to);
	bus_print(out, stdout);
	return 0;
}
