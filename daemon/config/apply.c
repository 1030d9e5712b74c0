/* SPDX-License-Identifier: MIT */
/*
 * A configuration that is read while the daemon runs. Limits, the log level, the group of administrators and how long jobs
 * may run change at once; everything else stays, and a line says so.
 */
#include "config/config.h"

#include <string.h>

#include "base/log.h"

#define SWAP(a, b)                      \
	do {                            \
		__typeof__(a) t_ = (a); \
		(a) = (b);              \
		(b) = t_;               \
	} while (0)

static void stays(const char *what)
{
	log_warn("configuration: %s has changed; that takes a restart of pasidd, and is left as it was", what);
}

static const struct device_config *find(const struct config *c, const char *name)
{
	for (size_t i = 0; i < c->service.n_devices; i++)
		if (!strcmp(c->service.devices[i].name, name))
			return &c->service.devices[i];
	return NULL;
}

static bool same_device(const struct device_config *a, const struct device_config *b)
{
	return !strcmp(a->spec, b->spec) && !strcmp(a->format, b->format) && a->mode == b->mode &&
	       a->fallback == b->fallback && a->slots == b->slots && a->burst == b->burst &&
	       a->answer_ms == b->answer_ms && a->table_pages == b->table_pages;
}

static void apply_devices(struct config *c, const struct config *now)
{
	struct device_config *devices = (struct device_config *)(uintptr_t)c->service.devices;
	bool same = c->service.n_devices == now->service.n_devices;

	for (size_t i = 0; i < c->service.n_devices; i++) {
		const struct device_config *d = find(now, devices[i].name);

		if (d)
			devices[i].job_limit_ms = d->job_limit_ms;
		same = same && d && same_device(&devices[i], d) &&
		       !strcmp(now->service.devices[i].name, devices[i].name);
	}
	if (!same)
		stays("what is said of devices beside job_limit_ms");
}

static bool same_drivers(const struct config *a, const struct config *b)
{
	if (a->n_drivers != b->n_drivers)
		return false;
	for (size_t i = 0; i < a->n_drivers; i++)
		if (strcmp(a->drivers[i], b->drivers[i]) != 0)
			return false;
	return true;
}

void config_apply(struct config *c, struct config *now)
{
	if (strcmp(c->socket_path, now->socket_path) != 0 || c->socket_mode != now->socket_mode)
		stays("socket");
	if (strcmp(c->bus, now->bus) != 0)
		stays("bus");
	if (!same_drivers(c, now))
		stays("drivers");
	apply_devices(c, now);
	SWAP(c->service.limits, now->service.limits);
	SWAP(c->admin_group, now->admin_group);
	SWAP(c->log_level, now->log_level);
}
