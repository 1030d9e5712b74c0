/* SPDX-License-Identifier: MIT */
/* The list of drivers. */
#include "engine/engine.h"

#include "base/util.h"

static const struct driver built_in[] = {
	{.exports = &refgpu_driver},
	{.exports = &edu_driver},
};

const struct driver *engine_find(const struct drivers *loaded, const struct transport_ids *ids)
{
	for (size_t i = 0; loaded && i < loaded->n; i++)
		if (loaded->v[i].exports->engine->match(ids))
			return &loaded->v[i];
	for (size_t i = 0; i < ARRAY_SIZE(built_in); i++)
		if (built_in[i].exports->engine->match(ids))
			return &built_in[i];
	return NULL;
}

uint32_t engine_irqs(const struct drivers *loaded)
{
	uint32_t most = 0;

	for (size_t i = 0; i < loaded->n; i++)
		most = loaded->v[i].exports->engine->irqs > most ? loaded->v[i].exports->engine->irqs : most;
	for (size_t i = 0; i < ARRAY_SIZE(built_in); i++)
		most = built_in[i].exports->engine->irqs > most ? built_in[i].exports->engine->irqs : most;
	return most;
}
