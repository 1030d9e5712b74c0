/* SPDX-License-Identifier: MIT */
/*
 * The drivers there are. What a driver is stands in <pasid/driver.h>; one that is built in is a file here, and a line in
 * engine.c; others come from shared objects (load.h).
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include <pasid/driver.h>

struct driver {
	const struct pasid_driver *exports;
	/* Of a shared object; NULL: built in. */
	const char *path;
	void *handle;
	int fd;
};

/* Those of shared objects, in the order in which they are asked; all before the built-in ones. */
struct drivers {
	struct driver *v;
	size_t n;
};

/* The driver for a device, or NULL. loaded NULL: there are none but the built-in ones. */
const struct driver *engine_find(const struct drivers *loaded, const struct transport_ids *ids);
/* The most interrupt vectors that any driver asks for: whose a device is shows only when it is open. */
uint32_t engine_irqs(const struct drivers *loaded);

#define ENGINE_ERROR_MAX 192u

/* Are these ops whole, and their numbers sane? 0; or -EINVAL and a sentence that names the driver. */
int engine_check(const struct engine_ops *ops, char error[ENGINE_ERROR_MAX]);

extern const struct pasid_driver edu_driver;
extern const struct pasid_driver refgpu_driver;

#endif
