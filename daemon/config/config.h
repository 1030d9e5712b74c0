/* SPDX-License-Identifier: MIT */
/*
 * The configuration file: JSON, read at the start, and again when somebody asks for it. docs/configuration.md lists the keys. Whatever is wrong with it
 * is said with the file, the key's path, what was found there and what is allowed; unknown keys are wrong, too.
 */
#ifndef CONFIG_CONFIG_H
#define CONFIG_CONFIG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/charge.h"
#include "service/service.h"

struct config {
	char *socket_path;
	mode_t socket_mode;
	char *bus; /* dbus.h */
	char *admin_group; /* "": none */
	char *log_level; /* as log_level_parse() */
	char **drivers; /* paths of shared objects */
	size_t n_drivers;
	struct service_config service; /* what it points to is owned here */
};

#define CONFIG_FILE_MAX (1u << 20) /* bytes of a configuration file */
#define CONFIG_ERROR_MAX 1024u

/* Also loads the drivers that the file names. 0 and *ret, or -errno and one line of text in error. */
int config_load(struct config **ret, const char *file, char error[CONFIG_ERROR_MAX]);
/* The same without the drivers. */
int config_read(struct config **ret, const char *file, char error[CONFIG_ERROR_MAX]);
/* What can change while the daemon runs is taken over from `now`, which is freed; of the rest a line says that it takes a
 * restart. */
void config_apply(struct config *c, struct config *now);
/* From memory; `file` is what errors call it. */
int config_parse(struct config **ret, const char *text, size_t len, const char *file, char error[CONFIG_ERROR_MAX]);
/* One device, called gpu0, instead of the configured ones. 0, or -errno with error and c as it was. */
int config_only_device(struct config *c, const char *spec, char error[CONFIG_ERROR_MAX]);
struct config *config_free(struct config *c); /* takes NULL, returns NULL */

#endif
