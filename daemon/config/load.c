/* SPDX-License-Identifier: MIT */
/* The configuration's file, and the drivers that it names. */
#include "config/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/load.h"

static int load_drivers(struct config *c, const char *file, char error[CONFIG_ERROR_MAX])
{
	struct drivers *d = &c->service.drivers;
	char why[DRIVER_ERROR_MAX];
	int r;

	d->v = calloc(c->n_drivers + 1, sizeof(*d->v));
	if (!d->v) {
		snprintf(error, CONFIG_ERROR_MAX, "%s: no memory", file);
		return -ENOMEM;
	}
	for (; d->n < c->n_drivers; d->n++) {
		r = driver_load(&d->v[d->n], c->drivers[d->n], why);
		if (r < 0) {
			snprintf(error, CONFIG_ERROR_MAX, "%s: drivers[%zu]: %s", file, d->n, why);
			return r;
		}
	}
	return 0;
}

int config_read(struct config **ret, const char *file, char error[CONFIG_ERROR_MAX])
{
	AUTO_CLOSE int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	AUTO_FREE char *text = malloc(CONFIG_FILE_MAX + 1);
	size_t len = 0;
	ssize_t n = 1;
	int r;

	if (fd < 0 || !text) {
		r = fd < 0 ? -errno : -ENOMEM;
		snprintf(error, CONFIG_ERROR_MAX, "%s: cannot be opened: %s", file, strerror(-r));
		return r;
	}
	while (n > 0 && len <= CONFIG_FILE_MAX) {
		n = read(fd, text + len, CONFIG_FILE_MAX + 1 - len);
		if (n < 0) {
			r = -errno;
			snprintf(error, CONFIG_ERROR_MAX, "%s: cannot be read: %s", file, strerror(-r));
			return r;
		}
		len += (size_t)n;
	}
	return config_parse(ret, text, len, file, error);
}

int config_load(struct config **ret, const char *file, char error[CONFIG_ERROR_MAX])
{
	struct config *c;
	int r = config_read(&c, file, error);

	if (r < 0)
		return r;
	r = load_drivers(c, file, error);
	if (r < 0)
		c = config_free(c);
	*ret = c;
	return r;
}
