/* SPDX-License-Identifier: MIT */
/* See selftest_verbs.h: the drivers that come with pasidd. */
#include "selftest_verbs.h"

#include <string.h>

#include <pasid/edu.h>
#include <pasid/refgpu.h>

#include "base/util.h"

static size_t put(void *cmd, const void *bytes, size_t len)
{
	memcpy(cmd, bytes, len);
	return len;
}

static size_t put_refgpu(void *cmd, enum refgpu_op op, uint64_t dst, uint64_t src, uint64_t len, uint32_t value)
{
	const struct refgpu_cmd c = {.op = op, .value = value, .dst = dst, .src = src, .len = len};

	return put(cmd, &c, sizeof(c));
}

static size_t refgpu_fill(void *cmd, uint64_t dst, uint64_t len, uint32_t value)
{
	return put_refgpu(cmd, REFGPU_FILL, dst, 0, len, value);
}

static size_t refgpu_copy(void *cmd, uint64_t dst, uint64_t src, uint64_t len)
{
	return put_refgpu(cmd, REFGPU_COPY, dst, src, len, 0);
}

static size_t refgpu_keep(void *cmd, uint64_t src, uint64_t len)
{
	return put_refgpu(cmd, REFGPU_STORE, 0, src, len, 0);
}

static size_t refgpu_fetch(void *cmd, uint64_t dst, uint64_t len)
{
	return put_refgpu(cmd, REFGPU_LOAD, dst, 0, len, 0);
}

static size_t edu_fill(void *cmd, uint64_t dst, uint64_t len, uint32_t value)
{
	const struct pasid_edu_cmd c = {.op = PASID_EDU_FILL, .value = value, .dst = dst, .len = len};

	return put(cmd, &c, sizeof(c));
}

static size_t edu_copy(void *cmd, uint64_t dst, uint64_t src, uint64_t len)
{
	const struct pasid_edu_cmd c = {.op = PASID_EDU_COPY, .dst = dst, .src = src, .len = len};

	return put(cmd, &c, sizeof(c));
}

static const struct pasid_driver_verbs refgpu_verbs = {refgpu_fill, refgpu_copy};
static const struct pasid_driver_verbs edu_verbs = {edu_fill, edu_copy};
static const struct local_verbs refgpu_local = {REFGPU_SCRATCH_SIZE, refgpu_keep, refgpu_fetch};

static const struct {
	const char *engine;
	const struct pasid_driver_verbs *verbs;
	const struct local_verbs *local;
} drivers[] = {
	{"refgpu", &refgpu_verbs, &refgpu_local},
	{"edu", &edu_verbs, NULL},
};

const struct pasid_driver_verbs *verbs_find(const char *engine)
{
	for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
		if (!strcmp(drivers[i].engine, engine))
			return drivers[i].verbs;
	return NULL;
}

const struct local_verbs *verbs_find_local(const char *engine)
{
	for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
		if (!strcmp(drivers[i].engine, engine))
			return drivers[i].local;
	return NULL;
}
