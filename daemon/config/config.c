/* SPDX-License-Identifier: MIT */
/* See config.h: the tables of its keys. */
#include "config/config.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include <pasid/pasid.h>
#include <pasid/protocol.h>

#include "base/log.h"
#include "base/util.h"
#include "config/keys.h"
#include "engine/load.h"
#include "transport/transport.h"

#define DEVICES_MAX 64u
#define DRIVERS_MAX 64u
#define UIDS_MAX 65536u
#define SPEC_MAX 120u

/* ---- kinds of values ---- */

/* D-Bus will want it as an element of an object path, so it is one already. Names of files that may be handed over are
 * taken. */
static int set_name(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	int r = key_string(p, v, to, key);
	const char *s = *(char **)to;

	if (r < 0)
		return r;
	if (s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] || transport_is_file(s))
		return place_wrong(p, v, "%s", key->allowed);
	return 0;
}

static int set_mode_bits(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	const char *s = key_text(v);
	unsigned long mode = strtoul(s, NULL, 8);

	if (!s[0] || s[strspn(s, "01234567")] || mode > 0777)
		return place_wrong(p, v, "%s", key->allowed);
	*(mode_t *)to = (mode_t)mode;
	return 0;
}

static const char *const mode_names[] = {
	[PASID_MODE_GPU_MMU] = "gpu-mmu", [PASID_MODE_GLOBAL] = "global", [PASID_MODE_EXCLUSIVE] = "exclusive",
	[PASID_MODE_PASID] = "pasid",     [PASID_MODE_NESTED] = "nested",
};

static int set_device_mode(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	const char *s = key_text(v);
	uint32_t i = PASID_MODE_GPU_MMU;

	while (i < ARRAY_SIZE(mode_names) && strcmp(s, mode_names[i]) != 0)
		i++;
	if (i == ARRAY_SIZE(mode_names))
		return place_wrong(p, v, "%s", key->allowed);
	*(uint32_t *)to = i;
	return 0;
}

static int set_fallback(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	if (strcmp(key_text(v), "exclusive") != 0)
		return place_wrong(p, v, "%s", key->allowed);
	*(uint32_t *)to = PASID_MODE_EXCLUSIVE;
	return 0;
}

static int set_format(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	int r = key_string(p, v, to, key);
	const char *s = *(char **)to;

	if (r == 0 && strcmp(s, "vmsa64") != 0 && strcmp(s, "x86-64") != 0)
		return place_wrong(p, v, "%s", key->allowed);
	return r;
}

static int set_spec(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	const struct transport_ops *ops;
	const char *address;
	int r = key_string(p, v, to, key);

	if (r < 0)
		return r;
	ops = transport_find(*(char **)to, &address);
	return ops && ops->address_ok(address) ? 0 : place_wrong(p, v, "%s", key->allowed);
}

/* ---- the tables ---- */

#define NUMBER_MAX ((uint64_t)INT64_MAX)
#define LIMIT(name, res)                                                            \
	{                                                                           \
		name, key_u64, offsetof(struct limits, v[res]), 0, NUMBER_MAX, NULL \
	}

static const struct key limit_keys[] = {
	LIMIT("contexts", PASID_RES_CONTEXTS),
	LIMIT("buffers", PASID_RES_BUFFERS),
	LIMIT("mappings", PASID_RES_MAPPINGS),
	LIMIT("bytes", PASID_RES_BYTES),
	LIMIT("huge", PASID_RES_HUGE),
	LIMIT("tables", PASID_RES_TABLES),
	LIMIT("jobs", PASID_RES_JOBS),
	LIMIT("rate", PASID_RES_RATE),
	LIMIT("connections", PASID_RES_CONNECTIONS),
	{0},
};

#define DEVICE(field) offsetof(struct device_config, field)

static const struct key device_keys[] = {
	{"name", set_name, DEVICE(name), 1, PASID_NAME_MAX - 1,
	 "1 to 31 letters, digits and underscores, not \"iommu\" or \"vfio\""},
	{"spec", set_spec, DEVICE(spec), 1, SPEC_MAX,
	 "\"vfio-user:/PATH\" or \"vfio:0000:01:00.0\" (also iommufd:, type1:)"},
	{"mode", set_device_mode, DEVICE(mode), 0, 0,
	 "\"gpu-mmu\", \"nested\", \"pasid\", \"exclusive\" or \"global\""},
	{"fallback", set_fallback, DEVICE(fallback), 0, 0, "\"exclusive\""},
	{"format", set_format, DEVICE(format), 1, 16, "\"vmsa64\" or \"x86-64\""},
	{"slots", key_u32, DEVICE(slots), 0, 64, NULL},
	{"burst", key_u32, DEVICE(burst), 1, 16, NULL},
	{"job_limit_ms", key_u32, DEVICE(job_limit_ms), 10, 3600000, NULL},
	{"answer_ms", key_u32, DEVICE(answer_ms), 10, 60000, NULL},
	{"table_pages", key_u32, DEVICE(table_pages), 64, 1u << 26, NULL},
	{0},
};

static int missing(struct place *p, const char *key)
{
	snprintf(p->error, CONFIG_ERROR_MAX, "%s: %s: found no \"%s\"; it is required", p->file, p->path, key);
	return -EINVAL;
}

/* A key that has no meaning in the device's mode. */
static int wrong_with_mode(struct place *p, const struct device_config *d, const char *key, const char *allowed)
{
	snprintf(p->error, CONFIG_ERROR_MAX, "%s: %s.%s: found with mode \"%s\"; allowed is %s", p->file, p->path, key,
		 mode_names[d->mode], allowed);
	return -EINVAL;
}

static int check_device(struct place *p, const struct service_config *s, const struct device_config *d)
{
	if (!d->name)
		return missing(p, "name");
	if (!d->spec)
		return missing(p, "spec");
	if (d->fallback && d->mode != PASID_MODE_NESTED)
		return wrong_with_mode(p, d, "fallback", "it with mode \"nested\"");
	if (d->mode == PASID_MODE_NESTED && strcmp(d->format, "vmsa64") != 0)
		return wrong_with_mode(p, d, "format", "\"vmsa64\"");
	for (size_t i = 0; i < s->n_devices; i++)
		if (!strcmp(s->devices[i].name, d->name)) {
			snprintf(p->error, CONFIG_ERROR_MAX,
				 "%s: %s.name: found \"%s\" a second time; allowed is a name of its own", p->file,
				 p->path, d->name);
			return -EINVAL;
		}
	return 0;
}

static void free_device(struct device_config *d)
{
	free((char *)(uintptr_t)d->name);
	free((char *)(uintptr_t)d->spec);
	free((char *)(uintptr_t)d->format);
}

static int set_devices(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	struct service_config *s = to;
	struct device_config *devices;
	size_t n;
	int r;

	if (!json_object_is_type(v, json_type_array) || json_object_array_length(v) > DEVICES_MAX)
		return place_wrong(p, v, "an array of at most %u objects", DEVICES_MAX);
	n = json_object_array_length(v);
	devices = calloc(n + 1, sizeof(*devices));
	if (!devices)
		return -ENOMEM;
	s->devices = devices;
	for (size_t i = 0; i < n; i++) {
		size_t len = place_enter_index(p, i);
		struct device_config *d = &devices[i];

		*d = (struct device_config){.mode = PASID_MODE_GPU_MMU,
					    .burst = 4,
					    .job_limit_ms = 2000,
					    .answer_ms = 1000,
					    .table_pages = 262144};
		d->format = strdup("vmsa64");
		r = d->format ? keys_take(p, json_object_array_get_idx(v, i), device_keys, d) : -ENOMEM;
		if (r == 0)
			r = check_device(p, s, d);
		s->n_devices = i + 1;
		if (r < 0)
			return r;
		place_leave(p, len);
	}
	return 0;
}

/* Printable, as it stands in errors of one line. */
static bool is_driver_path(const char *s)
{
	if (s[0] != '/')
		return false;
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			return false;
	return true;
}

static bool stands_before(char *const *paths, size_t at)
{
	for (size_t i = 0; i < at; i++)
		if (!strcmp(paths[i], paths[at]))
			return true;
	return false;
}

static int set_drivers(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	static const struct key path = {
		.min = 2, .max = DRIVER_PATH_MAX, .allowed = "an absolute path of at most 255 bytes"};
	struct config *c = to;

	if (!json_object_is_type(v, json_type_array) || json_object_array_length(v) > DRIVERS_MAX)
		return place_wrong(p, v, "an array of at most %u paths", DRIVERS_MAX);
	c->drivers = calloc(json_object_array_length(v) + 1, sizeof(*c->drivers));
	if (!c->drivers)
		return -ENOMEM;
	for (size_t i = 0; i < json_object_array_length(v); i++) {
		size_t len = place_enter_index(p, i);
		int r = key_string(p, json_object_array_get_idx(v, i), &c->drivers[i], &path);

		c->n_drivers = i + 1;
		if (r < 0)
			return r;
		if (!is_driver_path(c->drivers[i]))
			return place_wrong(p, json_object_array_get_idx(v, i), "%s", path.allowed);
		if (stands_before(c->drivers, i))
			return place_wrong(p, json_object_array_get_idx(v, i), "each path once");
		place_leave(p, len);
	}
	return 0;
}

static int set_limits_object(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	return keys_take(p, v, limit_keys, to);
}

static const struct key uid_keys[] = {
	{"uid", key_u32, offsetof(struct uid_limits, uid), 0, UINT32_MAX - 1, NULL},
	{"limits", set_limits_object, offsetof(struct uid_limits, limits), 0, 0, NULL},
	{0},
};

static int by_uid(const void *a, const void *b)
{
	uid_t x = ((const struct uid_limits *)a)->uid, y = ((const struct uid_limits *)b)->uid;

	return x < y ? -1 : x > y;
}

static int check_uids(struct place *p, struct uid_limits *uids, size_t n)
{
	qsort(uids, n, sizeof(*uids), by_uid);
	for (size_t i = 1; i < n; i++)
		if (uids[i].uid == uids[i - 1].uid) {
			snprintf(p->error, CONFIG_ERROR_MAX,
				 "%s: %s: found uid %u more than once; allowed is one entry each", p->file, p->path,
				 (unsigned int)uids[i].uid);
			return -EINVAL;
		}
	return 0;
}

/* A listed uid has the limits of every uid but for those that its entry names, wherever in the file "uid" stands. */
static int parse_uids(struct place *p, struct json_object *v, struct limit_policy *policy)
{
	struct uid_limits *uids;
	size_t n;
	int r;

	if (!json_object_is_type(v, json_type_array) || json_object_array_length(v) > UIDS_MAX)
		return place_wrong(p, v, "an array of at most %u objects", UIDS_MAX);
	n = json_object_array_length(v);
	uids = calloc(n + 1, sizeof(*uids));
	if (!uids)
		return -ENOMEM;
	policy->uids = uids;
	policy->n_uids = (uint32_t)n;
	for (size_t i = 0; i < n; i++) {
		size_t len = place_enter_index(p, i);
		struct json_object *o = json_object_array_get_idx(v, i);

		uids[i].limits = policy->uid;
		r = keys_take(p, o, uid_keys, &uids[i]);
		if (r == 0 && !json_object_object_get_ex(o, "uid", NULL))
			r = missing(p, "uid");
		if (r < 0)
			return r;
		place_leave(p, len);
	}
	return check_uids(p, uids, n);
}

static int set_nothing(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	return 0; /* "uids": read last, by set_limits() */
}

static const struct key policy_keys[] = {
	{"total_bytes", key_u64, offsetof(struct limit_policy, total_bytes), 0, NUMBER_MAX, NULL},
	{"connection", set_limits_object, offsetof(struct limit_policy, connection), 0, 0, NULL},
	{"uid", set_limits_object, offsetof(struct limit_policy, uid), 0, 0, NULL},
	{"uids", set_nothing, 0, 0, 0, NULL},
	{0},
};

static int set_limits(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	struct limit_policy *policy = to;
	struct json_object *uids;
	size_t len;
	int r = keys_take(p, v, policy_keys, policy);

	if (r < 0 || !json_object_object_get_ex(v, "uids", &uids))
		return r;
	len = place_enter(p, "uids");
	r = parse_uids(p, uids, policy);
	if (r == 0)
		place_leave(p, len);
	return r;
}

static const struct key socket_keys[] = {
	{"path", key_string, offsetof(struct config, socket_path), 1, sizeof(((struct sockaddr_un *)0)->sun_path) - 1,
	 "a path of at most 107 bytes"},
	{"mode", set_mode_bits, offsetof(struct config, socket_mode), 0, 0, "an octal mode in a string, as \"0660\""},
	{0},
};

#define BUS_MAX 1024u
#define GROUP_MAX 255u

/* What more an address may be, whoever connects to it knows. */
static int set_bus(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	int r = key_string(p, v, to, key);
	const char *s = *(char **)to;

	if (r == 0 && strcmp(s, "system") != 0 && strcmp(s, "session") != 0 && strcmp(s, "none") != 0 &&
	    strncmp(s, "unix:", 5) != 0)
		return place_wrong(p, v, "%s", key->allowed);
	return r;
}

static int set_log_level(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	enum log_level level;
	int r = key_string(p, v, to, key);

	if (r == 0 && log_level_parse(*(char **)to, &level) < 0)
		return place_wrong(p, v, "%s", key->allowed);
	return r;
}

static int set_socket(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	return keys_take(p, v, socket_keys, to);
}

static const struct key top_keys[] = {
	{"socket", set_socket, 0, 0, 0, NULL},
	{"devices", set_devices, offsetof(struct config, service), 0, 0, NULL},
	{"drivers", set_drivers, 0, 0, 0, NULL},
	{"bus", set_bus, offsetof(struct config, bus), 1, BUS_MAX,
	 "\"system\", \"session\", \"none\", \"unix:path=...\" or \"unix:abstract=...\""},
	{"admin_group", key_string, offsetof(struct config, admin_group), 0, GROUP_MAX, "the name of a group"},
	{"log_level", set_log_level, offsetof(struct config, log_level), 1, 16,
	 "\"error\", \"warn\", \"info\" or \"debug\""},
	{"limits", set_limits, offsetof(struct config, service.limits), 0, 0, NULL},
	{0},
};

/* ---- as a whole ---- */

static int set_defaults(struct config *c)
{
	static const struct limits connection = {{
		[PASID_RES_CONTEXTS] = 256,
		[PASID_RES_BUFFERS] = 4096,
		[PASID_RES_MAPPINGS] = 1u << 20,
		[PASID_RES_BYTES] = 8ull << 30,
		[PASID_RES_HUGE] = 0,
		[PASID_RES_TABLES] = 32768,
		[PASID_RES_JOBS] = 1024,
		[PASID_RES_RATE] = 500000,
		[PASID_RES_CONNECTIONS] = UINT64_MAX,
	}};
	static const struct limits uid = {{
		[PASID_RES_CONTEXTS] = 1024,
		[PASID_RES_BUFFERS] = 16384,
		[PASID_RES_MAPPINGS] = 2u << 20,
		[PASID_RES_BYTES] = 16ull << 30,
		[PASID_RES_HUGE] = 0,
		[PASID_RES_TABLES] = 65536,
		[PASID_RES_JOBS] = 4096,
		[PASID_RES_RATE] = 1000000,
		[PASID_RES_CONNECTIONS] = 128,
	}};

	c->service.limits.connection = connection;
	c->service.limits.uid = uid;
	c->service.limits.total_bytes = 64ull << 30;
	c->socket_mode = 0666;
	c->socket_path = strdup("/run/pasidd/socket");
	c->bus = strdup("system");
	c->admin_group = strdup("");
	c->log_level = strdup("info");
	return c->socket_path && c->bus && c->admin_group && c->log_level ? 0 : -ENOMEM;
}

static int too_long(const char *file, char error[CONFIG_ERROR_MAX])
{
	snprintf(error, CONFIG_ERROR_MAX, "%s: found more than %u bytes; allowed is at most that", file,
		 CONFIG_FILE_MAX);
	return -EFBIG;
}

int config_parse(struct config **ret, const char *text, size_t len, const char *file, char error[CONFIG_ERROR_MAX])
{
	struct place p = {.file = file, .error = error};
	AUTO_FREE char *copy = malloc(len + 1);
	struct config *c = calloc(1, sizeof(*c));
	struct json_object *o = NULL;
	int r = -ENOMEM;

	if (len > CONFIG_FILE_MAX) {
		free(c);
		return too_long(file, error);
	}
	snprintf(error, CONFIG_ERROR_MAX, "%s: no memory", file);
	if (c && copy) {
		memcpy(copy, text, len);
		copy[len] = 0;
		r = set_defaults(c);
	}
	if (r == 0)
		r = keys_read(copy, len, &p, &o);
	if (r == 0)
		r = keys_take(&p, o, top_keys, c);
	json_object_put(o);
	if (r < 0) {
		config_free(c);
		return r;
	}
	error[0] = 0;
	*ret = c;
	return 0;
}

int config_only_device(struct config *c, const char *spec, char error[CONFIG_ERROR_MAX])
{
	struct config *one;
	char text[256];
	size_t n = c->service.n_devices;
	const struct device_config *devices = c->service.devices;
	int r;

	if (strlen(spec) > SPEC_MAX || strpbrk(spec, "\"\\")) {
		snprintf(error, CONFIG_ERROR_MAX, "--device: found a spec that is too long, or has quotes in it");
		return -EINVAL;
	}
	snprintf(text, sizeof(text), "{\"devices\": [{\"name\": \"gpu0\", \"spec\": \"%s\"}]}", spec);
	r = config_parse(&one, text, strlen(text), "--device", error);
	if (r < 0)
		return r;
	c->service.devices = one->service.devices;
	c->service.n_devices = one->service.n_devices;
	one->service.devices = devices;
	one->service.n_devices = n;
	config_free(one);
	return 0;
}

struct config *config_free(struct config *c)
{
	if (!c)
		return NULL;
	for (size_t i = 0; i < c->service.n_devices; i++)
		free_device((struct device_config *)(uintptr_t)&c->service.devices[i]);
	free((struct device_config *)(uintptr_t)c->service.devices);
	for (size_t i = 0; i < c->service.drivers.n; i++)
		driver_unload(&c->service.drivers.v[i]);
	free(c->service.drivers.v);
	for (size_t i = 0; i < c->n_drivers; i++)
		free(c->drivers[i]);
	free(c->drivers);
	free((struct uid_limits *)(uintptr_t)c->service.limits.uids);
	free(c->socket_path);
	free(c->bus);
	free(c->admin_group);
	free(c->log_level);
	free(c);
	return NULL;
}
