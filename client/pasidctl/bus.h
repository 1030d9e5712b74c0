/* SPDX-License-Identifier: MIT */
/*
 * pasidd over D-Bus (docs/dbus.md): calls, one after the other, whose answers are JSON, and sentences for whoever reads why one
 * failed. Whatever comes over the bus is somebody else's: it is looked at by type and name, and what is missing is zero or "".
 */
#ifndef PASIDCTL_BUS_H
#define PASIDCTL_BUS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct json_object;
struct sd_bus;

struct bus {
	struct sd_bus *b;
	const char *which; /* "system", "session" or an address */
	const char *command; /* as it was typed, to be typed again */
	FILE *err;
	char owner[64]; /* who answered bus_alive() first */
	bool not_mapped; /* the last call failed because nothing is mapped there, of which nothing is printed */
};

#define BUS_MANAGER "/org/pasidd"
#define BUS_CONTEXT BUS_MANAGER "/context/"

/* Connects. -errno: a sentence was printed. */
int bus_open(struct bus *bus, const char *which, const char *command, FILE *err);
void bus_close(struct bus *bus);
#define AUTO_BUS __attribute__((cleanup(bus_close)))

/* Calls a method of org.pasidd.INTERFACE1 with numbers (t). 0 and the answer's values as an array, the caller's; -errno: a sentence
 * was printed. */
int bus_call(struct bus *bus, const char *path, const char *interface, const char *method, size_t n,
	     const uint64_t *args, struct json_object **ret);
/* All properties of an object that org.pasidd.INTERFACE1 has, as an object. */
int bus_properties(struct bus *bus, const char *path, const char *interface, struct json_object **ret);
/* All devices, or contexts: an array of objects with their properties, by name or number. */
int bus_list(struct bus *bus, const char *interface, struct json_object **ret);
/* OpenTrace: an fd, the caller's. */
int bus_open_trace(struct bus *bus);
/* Is the pasidd that was asked first still there? 0; -errno: a sentence was printed. */
int bus_alive(struct bus *bus);

/* Of something that json-c counts. */
void bus_put(struct json_object **o);
#define AUTO_JSON __attribute__((cleanup(bus_put)))
void bus_print(struct json_object *o, FILE *f);

/* Of an object: a number, or 0; a string, or "", printable. */
uint64_t bus_number(struct json_object *o, const char *name);
const char *bus_string(struct json_object *o, const char *name);
/* The name in a device's path. */
const char *bus_device_name(const char *path, char to[64]);
/* Of an array. */
uint64_t bus_number_at(struct json_object *a, size_t i);
const char *bus_string_at(struct json_object *a, size_t i);

#endif
