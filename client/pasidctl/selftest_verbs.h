/* SPDX-License-Identifier: MIT */
/* How commands are written in the format of a driver: as much of it as "pasidctl selftest" needs. */
#ifndef PASIDCTL_SELFTEST_VERBS_H
#define PASIDCTL_SELFTEST_VERBS_H

#include <stddef.h>
#include <stdint.h>

/*
 * Each writes one command to `cmd` (room: the device's submit_max) and returns its length in bytes. dst and src are IOVAs
 * of any alignment.
 */
struct pasid_driver_verbs {
	/* The bytes of `value`, lowest first, again and again. len and dst are multiples of 4. */
	size_t (*fill)(void *cmd, uint64_t dst, uint64_t len, uint32_t value);
	/* Any len but 0; the ranges do not overlap. */
	size_t (*copy)(void *cmd, uint64_t dst, uint64_t src, uint64_t len);
};

/* Of a device with memory inside that programs can name; `bytes` of it, from its beginning. */
struct local_verbs {
	size_t bytes;
	size_t (*keep)(void *cmd, uint64_t src, uint64_t len);
	size_t (*fetch)(void *cmd, uint64_t dst, uint64_t len);
};

/* NULL: nobody knows the commands of this driver. */
const struct pasid_driver_verbs *verbs_find(const char *engine);

/* NULL: programs cannot name such memory; there may be some all the same. */
const struct local_verbs *verbs_find_local(const char *engine);

#endif
