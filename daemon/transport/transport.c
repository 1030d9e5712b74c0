/* SPDX-License-Identifier: MIT */
/* The list of transports, and the one place that takes a device spec "scheme:address" apart. */
#include "transport/transport.h"

#include "base/util.h"

#include <string.h>

static const struct transport_ops *const transports[] = {
	&transport_vfio_user,
	&transport_vfio,
	&transport_iommufd,
	&transport_type1,
};

const struct transport_ops *transport_find(const char *spec, const char **address)
{
	const char *colon = strchr(spec, ':');

	if (!colon)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(transports); i++) {
		const char *scheme = transports[i]->scheme;
		size_t len = (size_t)(colon - spec);

		if (strlen(scheme) == len && memcmp(scheme, spec, len) == 0) {
			*address = colon + 1;
			return transports[i];
		}
	}
	return NULL;
}
