/* SPDX-License-Identifier: MIT */
/* See path.h. */
#include "dbus/path.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static const char *const nodes[] = {
	[NODE_ROOT] = "/",
	[NODE_ORG] = "/org",
	[NODE_MANAGER] = "/org/pasidd",
	[NODE_DEVICES] = "/org/pasidd/device",
	[NODE_CONTEXTS] = "/org/pasidd/context",
};

const char *path_of_node(enum bus_node node)
{
	return nodes[node];
}

static bool is_plain(char c)
{
	return isascii((unsigned char)c) && isalnum((unsigned char)c);
}

void path_of_device(const char *name, char buf[BUS_PATH_MAX])
{
	size_t n = (size_t)snprintf(buf, BUS_PATH_MAX, "%s/", nodes[NODE_DEVICES]);

	for (; *name && n + 4 < BUS_PATH_MAX; name++)
		n += (size_t)snprintf(buf + n, BUS_PATH_MAX - n, is_plain(*name) ? "%c" : "_%02x",
				      (unsigned char)*name);
}

void path_of_context(uint32_t id, char buf[BUS_PATH_MAX])
{
	snprintf(buf, BUS_PATH_MAX, "%s/%" PRIu32, nodes[NODE_CONTEXTS], id);
}

/* There is one way to write each, so that an object has one path. */
static bool parse_device(const char *s, struct bus_path *ret)
{
	char again[BUS_PATH_MAX];
	size_t n = 0;
	const char *at = s;

	ret->node = NODE_DEVICE;
	for (; *at && n < sizeof(ret->device) - 1; n++) {
		unsigned int c;

		if (*at != '_') {
			ret->device[n] = *at++;
			continue;
		}
		if (!isxdigit((unsigned char)at[1]) || !isxdigit((unsigned char)at[2]) ||
		    sscanf(at + 1, "%2x", &c) != 1)
			return false;
		ret->device[n] = (char)c;
		at += 3;
	}
	ret->device[n] = '\0';
	path_of_device(ret->device, again);
	return n > 0 && !strcmp(again + strlen(nodes[NODE_DEVICES]) + 1, s);
}

static bool parse_context(const char *s, struct bus_path *ret)
{
	uint64_t id = 0;

	ret->node = NODE_CONTEXT;
	if (*s == '0')
		return false;
	for (; isdigit((unsigned char)*s) && id <= UINT32_MAX; s++)
		id = id * 10 + (uint64_t)(*s - '0');
	ret->id = (uint32_t)id;
	return !*s && id && id <= UINT32_MAX;
}

static const char *behind(const char *path, enum bus_node node)
{
	size_t n = strlen(nodes[node]);

	return !strncmp(path, nodes[node], n) && path[n] == '/' ? path + n + 1 : NULL;
}

bool path_parse(const char *path, struct bus_path *ret)
{
	const char *rest;

	*ret = (struct bus_path){0};
	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++)
		if (!strcmp(path, nodes[i])) {
			ret->node = (enum bus_node)i;
			return true;
		}
	rest = behind(path, NODE_DEVICES);
	if (rest)
		return parse_device(rest, ret);
	rest = behind(path, NODE_CONTEXTS);
	return rest && parse_context(rest, ret);
}

size_t path_type(const char *signature)
{
	size_t n = 0, depth = 0;

	while (signature[n] == 'a')
		n++;
	do {
		char c = signature[n];

		if (!c)
			return 0;
		depth += c == '(' || c == '{';
		depth -= c == ')' || c == '}';
		n++;
	} while (depth);
	return n;
}
