/* SPDX-License-Identifier: MIT */
/* See selftest_verbs.h. */
#include "selftest_verbs.h"

#include <string.h>

#include <pasid/refgpu.h>

#include "engine/engine.h"

static size_t put_refgpu(void *cmd, enum refgpu_op op, uint64_t dst, uint64_t src, uint64_t len)
{
	const struct refgpu_cmd c = {.op = op, .dst = dst, .src = src, .len = len};

	memcpy(cmd, &c, sizeof(c));
	return sizeof(c);
}

static size_t refgpu_keep(void *cmd, uint64_t src, uint64_t len)
{
	return put_refgpu(cmd, REFGPU_STORE, 0, src, len);
}

static size_t refgpu_fetch(void *cmd, uint64_t dst, uint64_t len)
{
	return put_refgpu(cmd, REFGPU_LOAD, dst, 0, len);
}

static const struct local_verbs refgpu_local = {REFGPU_SCRATCH_SIZE, refgpu_keep, refgpu_fetch};

const struct pasid_driver_verbs *verbs_find(const struct pasid_driver *loaded, const char *engine)
{
	const struct pasid_driver *d = loaded ? loaded : engine_named(engine);

	return d && !strcmp(d->engine->name, engine) ? d->verbs : NULL;
}

const struct local_verbs *verbs_find_local(const char *engine)
{
	return !strcmp(engine, refgpu_driver.engine->name) ? &refgpu_local : NULL;
}
