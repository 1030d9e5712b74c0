/* SPDX-License-Identifier: MIT */
/* Whether a driver keeps what <pasid/driver.h> asks of its ops: mistakes that show before any device is touched. */
#include "engine/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define NAME_BYTES "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

static bool has_name(const struct engine_ops *ops)
{
	size_t len = ops->name ? strnlen(ops->name, ENGINE_NAME_MAX + 1) : 0;

	return len > 0 && len <= ENGINE_NAME_MAX && strspn(ops->name, NAME_BYTES) == len;
}

/* What the daemon calls without asking first. */
static const char *missing_call(const struct engine_ops *ops)
{
	const struct {
		const char *name;
		bool there;
	} calls[] = {
		{"match", ops->match},     {"attach", ops->attach}, {"restart", ops->restart}, {"detach", ops->detach},
		{"slots", ops->slots},     {"submit", ops->submit}, {"scrub", ops->scrub},     {"kick", ops->kick},
		{"control", ops->control}, {"look", ops->look},
	};

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (!calls[i].there)
			return calls[i].name;
	return NULL;
}

struct bound {
	const char *name;
	uint64_t value, min, max;
	uint64_t unit; /* a multiple of this: 1 or ENGINE_PAGE */
};

static bool within(const struct bound *b)
{
	return b->value >= b->min && b->value <= b->max && b->value % b->unit == 0;
}

static int check_bounds(const struct bound *v, size_t n, const char *driver, char error[ENGINE_ERROR_MAX])
{
	for (size_t i = 0; i < n; i++) {
		if (within(&v[i]))
			continue;
		snprintf(error, ENGINE_ERROR_MAX,
			 "its driver %s has %s %" PRIu64 "; allowed is %" PRIu64 " to %" PRIu64 "%s", driver, v[i].name,
			 v[i].value, v[i].min, v[i].max, v[i].unit > 1 ? ", in multiples of 4096" : "");
		return -EINVAL;
	}
	return 0;
}

static int check_numbers(const struct engine_ops *ops, char error[ENGINE_ERROR_MAX])
{
	uint64_t submit = ops->reads ? ENGINE_MAX_SUBMIT_READ : ENGINE_MAX_SUBMIT;
	uint64_t ro = ops->ro_bytes < ENGINE_MAX_MEMORY ? ops->ro_bytes : ENGINE_MAX_MEMORY;
	const struct bound v[] = {
		{"irqs", ops->irqs, 0, ENGINE_MAX_IRQS, 1},
		{"ring_jobs", ops->ring_jobs, 1, UINT32_MAX, 1},
		{"cmd_align", ops->cmd_align, 1, ENGINE_PAGE, 1},
		{"submit_max", ops->submit_max, ops->cmd_align, submit, 1},
		{"ro_bytes", ops->ro_bytes, 0, ENGINE_MAX_MEMORY, ENGINE_PAGE},
		{"rw_bytes", ops->rw_bytes, 0, ENGINE_MAX_MEMORY - ro, ENGINE_PAGE},
		{"keep_bytes", ops->keep_bytes, 0, ENGINE_MAX_MEMORY, ENGINE_PAGE},
		{"window_bytes", ops->window_bytes, 0, ENGINE_MAX_WINDOW, ENGINE_PAGE},
		{"iova_bits", ops->iova_bits ? ops->iova_bits : 63, ENGINE_MIN_IOVA_BITS, 63, 1},
		{"asid_bits", ops->translator ? ops->asid_bits : 1, 1, ENGINE_MAX_ASID_BITS, 1},
	};

	return check_bounds(v, ARRAY_SIZE(v), ops->name, error);
}

int engine_check(const struct engine_ops *ops, char error[ENGINE_ERROR_MAX])
{
	const char *missing;
	const char *wrong = NULL;

	if (!has_name(ops)) {
		snprintf(error, ENGINE_ERROR_MAX,
			 "its driver has no name; allowed is one of 1 to %u letters, digits, '_' and '-'",
			 ENGINE_NAME_MAX);
		return -EINVAL;
	}
	missing = missing_call(ops);
	if (missing) {
		snprintf(error, ENGINE_ERROR_MAX, "its driver %s has no %s(); it is required", ops->name, missing);
		return -EINVAL;
	}
	if (ops->cmd_align & (ops->cmd_align - 1))
		wrong = "a cmd_align that is no power of two";
	else if (ops->tags_pasid && !ops->translator)
		wrong = "tags_pasid and no translator() that is told the PASID";
	if (!wrong)
		return check_numbers(ops, error);
	snprintf(error, ENGINE_ERROR_MAX, "its driver %s has %s", ops->name, wrong);
	return -EINVAL;
}
