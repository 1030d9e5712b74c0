/* SPDX-License-Identifier: MIT */
/* How commands are written in the format of a driver: as much of it as "pasidctl selftest" needs. */
#ifndef PASIDCTL_SELFTEST_VERBS_H
#define PASIDCTL_SELFTEST_VERBS_H

#include <stddef.h>
#include <stdint.h>

#include <pasid/driver.h>

/* Of a device with memory inside that programs can name; `bytes` of it, from its beginning. */
struct local_verbs {
	size_t bytes;
	size_t (*keep)(void *cmd, uint64_t src, uint64_t len);
	size_t (*fetch)(void *cmd, uint64_t dst, uint64_t len);
};

/* Those of that driver: `loaded`, or, if that is NULL, one that comes with pasidd. NULL: nobody knows its commands. */
const struct pasid_driver_verbs *verbs_find(const struct pasid_driver *loaded, const char *engine);

/* NULL: programs cannot name such memory; there may be some all the same. */
const struct local_verbs *verbs_find_local(const char *engine);

#endif
