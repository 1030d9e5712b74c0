/* SPDX-License-Identifier: MIT */
/* The list of drivers. */
#include "engine/engine.h"

#include "base/util.h"

static const struct engine_ops *const engines[] = {
	&engine_refgpu,
	&engine_edu,
};

const struct engine_ops *engine_find(const struct transport_ids *ids)
{
	for (size_t i = 0; i < ARRAY_SIZE(engines); i++)
		if (engines[i]->match(ids))
			return engines[i];
	return NULL;
}
