/* SPDX-License-Identifier: MIT */
/* Object paths: which object one names, and the other way round. What signatures consist of. */
#ifndef DBUS_PATH_H
#define DBUS_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/protocol.h>

enum bus_node {
	NODE_ROOT, /* the way to what is ours */
	NODE_ORG,
	NODE_MANAGER,
	NODE_DEVICES,
	NODE_CONTEXTS,
	NODE_DEVICE,
	NODE_CONTEXT,
};

struct bus_path {
	enum bus_node node;
	uint32_t id; /* of a context */
	char device[PASID_NAME_MAX]; /* its name */
};

#define BUS_PATH_MAX 128u

/* False: it cannot be one of ours. */
bool path_parse(const char *path, struct bus_path *ret);
void path_of_device(const char *name, char buf[BUS_PATH_MAX]);
void path_of_context(uint32_t id, char buf[BUS_PATH_MAX]);
const char *path_of_node(enum bus_node node); /* of those that there is one of */

/* Bytes of the first complete type of a signature; 0: there is none. */
size_t path_type(const char *signature);

#endif
