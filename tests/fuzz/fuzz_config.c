/* SPDX-License-Identifier: MIT */
/* Bytes as a configuration file. What is refused is explained in one line; what is accepted keeps its bounds. */
#include <stdlib.h>
#include <string.h>

#include <pasid/protocol.h>

#include "config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
	if (!ok)
		abort();
}

static void check_device(const struct device_config *d)
{
	check(d->name && d->spec && d->format);
	check(d->name[0] && strlen(d->name) < PASID_NAME_MAX && !strncmp(d->spec, "vfio-user:/", 11));
	check(d->slots <= 64 && d->burst >= 1 && d->burst <= 16);
	check(d->job_limit_ms >= 10 && d->answer_ms >= 10 && d->table_pages >= 64);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char error[CONFIG_ERROR_MAX] = "?";
	struct config *c = NULL;
	int r = config_parse(&c, (const char *)data, size, "F", error);

	if (r < 0) {
		check(!c && error[0] == 'F' && error[1] == ':' && !strchr(error, '\n'));
		return 0;
	}
	check(c && !error[0] && c->socket_path[0] && strlen(c->socket_path) < 108 && c->socket_mode <= 0777);
	for (size_t i = 0; i < c->service.n_devices; i++)
		check_device(&c->service.devices[i]);
	for (size_t i = 0; i < c->n_drivers; i++)
		check(c->drivers[i][0] == '/' && strlen(c->drivers[i]) < 256);
	for (uint32_t i = 1; i < c->service.limits.n_uids; i++)
		check(c->service.limits.uids[i - 1].uid < c->service.limits.uids[i].uid);
	config_free(c);
	return 0;
}
