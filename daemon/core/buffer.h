/* SPDX-License-Identifier: MIT */
/*
 * A buffer: memory of a client, imported for one device and mapped there once, at a bus address of our choosing. It
 * lives until the client has freed its id and the last mapping of it is gone; only then is it unmapped from the device.
 */
#ifndef CORE_BUFFER_H
#define CORE_BUFFER_H

#include <stdbool.h>
#include <stdint.h>

struct buffer {
	uint32_t id; /* of its connection */
	uint64_t size; /* bytes, a multiple of 4096 */
	uint64_t bus; /* address of its first byte in the device's bus address space */
	bool writable;
	bool named; /* the client still has its id */
	uint64_t uses; /* mappings of it, in any context of the client */
};

#endif
