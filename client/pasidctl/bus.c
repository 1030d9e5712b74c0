/* SPDX-License-Identifier: MIT */
/* See bus.h. */
#include "bus.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "base/util.h"

#define NAME "org.pasidd"
#define ANSWER_US 25000000ull

void bus_put(struct json_object **o)
{
	json_object_put(*o);
}

void bus_print(struct json_object *o, FILE *f)
{
	fprintf(f, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
}

#define AUTO_MESSAGE __attribute__((cleanup(sd_bus_message_unrefp)))
#define AUTO_ERROR __attribute__((cleanup(sd_bus_error_free)))

/* ---- messages as JSON ---- */

static int value(sd_bus_message *m, struct json_object **ret);

/* Nothing of others may move a terminal's cursor. */
static struct json_object *text(const char *s)
{
	struct json_object *o = json_object_new_string(s);

	for (char *c = o ? (char *)(uintptr_t)json_object_get_string(o) : NULL; c && *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return o;
}

static int basic(sd_bus_message *m, char type, struct json_object **ret)
{
	union {
		uint8_t y;
		int16_t n;
		uint16_t q;
		int32_t i;
		uint32_t u;
		int64_t x;
		uint64_t t;
		int b;
		double d;
		const char *s;
	} v = {0};
	int r = sd_bus_message_read_basic(m, type, &v);

	if (r <= 0)
		return r;
	switch (type) {
	case 'y':
		*ret = json_object_new_uint64(v.y);
		break;
	case 'b':
		*ret = json_object_new_boolean(v.b);
		break;
	case 'n':
		*ret = json_object_new_int64(v.n);
		break;
	case 'q':
		*ret = json_object_new_uint64(v.q);
		break;
	case 'i':
		*ret = json_object_new_int64(v.i);
		break;
	case 'u':
		*ret = json_object_new_uint64(v.u);
		break;
	case 'x':
		*ret = json_object_new_int64(v.x);
		break;
	case 't':
		*ret = json_object_new_uint64(v.t);
		break;
	case 'd':
		*ret = json_object_new_double(v.d);
		break;
	case 'h': /* stays the message's */
		*ret = NULL;
		return 1;
	default:
		*ret = text(v.s);
	}
	return *ret ? 1 : -ENOMEM;
}

static int sequence(sd_bus_message *m, struct json_object **ret)
{
	AUTO_JSON struct json_object *a = json_object_new_array();
	int r;

	for (;;) {
		struct json_object *v;

		r = a ? value(m, &v) : -ENOMEM;
		if (r <= 0)
			break;
		json_object_array_add(a, v);
	}
	if (r == 0)
		*ret = TAKE_PTR(a);
	return r;
}

static int dictionary(sd_bus_message *m, const char *entry, struct json_object **ret)
{
	AUTO_JSON struct json_object *o = json_object_new_object();
	char inside[256];
	int r;

	if (strlen(entry) >= sizeof(inside))
		return -E2BIG;
	snprintf(inside, sizeof(inside), "%.*s", (int)strlen(entry) - 2, entry + 1);
	while ((r = o ? sd_bus_message_enter_container(m, 'e', inside) : -ENOMEM) > 0) {
		AUTO_JSON struct json_object *key = NULL;
		struct json_object *v = NULL;

		r = value(m, &key);
		if (r > 0)
			r = value(m, &v);
		if (r > 0)
			json_object_object_add(o, json_object_get_string(key), v);
		if (r > 0)
			r = sd_bus_message_exit_container(m);
		if (r < 0)
			return r;
	}
	if (r == 0)
		*ret = TAKE_PTR(o);
	return r;
}

/* 1 and the next value, 0: there is none, -errno. */
static int value(sd_bus_message *m, struct json_object **ret)
{
	AUTO_JSON struct json_object *v = NULL;
	const char *contents;
	char type;
	int r = sd_bus_message_peek_type(m, &type, &contents);

	if (r <= 0)
		return r;
	if (!strchr("avr", type))
		return basic(m, type, ret);
	r = sd_bus_message_enter_container(m, type, contents);
	if (r <= 0)
		return r;
	if (type == 'v')
		r = value(m, &v);
	else if (type == 'a' && contents[0] == '{')
		r = dictionary(m, contents, &v);
	else
		r = sequence(m, &v);
	if (r >= 0)
		r = sd_bus_message_exit_container(m);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(v);
	return 1;
}

/* ---- sentences ---- */

#define SYSTEM_SOCKET "/run/dbus/system_bus_socket"

static int no_bus(const struct bus *bus, int r)
{
	const char *why = strerror(-r);

	fprintf(bus->err, "pasidctl: ");
	if (r == -EACCES || r == -EPERM)
		fprintf(bus->err, "this user may not connect to the %s bus: %s; type: sudo %s\n", bus->which, why,
			bus->command);
	else if (!strcmp(bus->which, "system"))
		fprintf(bus->err, "the system bus cannot be reached at %s: %s; type: systemctl start dbus\n",
			getenv("DBUS_SYSTEM_BUS_ADDRESS") ? getenv("DBUS_SYSTEM_BUS_ADDRESS") : SYSTEM_SOCKET, why);
	else if (!strcmp(bus->which, "session"))
		fprintf(bus->err,
			"this session's bus cannot be reached: %s; pasidd is on the system bus if nobody told it "
			"otherwise; "
			"type: echo $DBUS_SESSION_BUS_ADDRESS\n",
			why);
	else if (r == -EINVAL || !strchr(bus->which, ':'))
		fprintf(bus->err,
			"\"%s\" is no bus: it has to be system, session or an address; type: pasidctl --bus "
			"unix:path=%s\n",
			bus->which, SYSTEM_SOCKET);
	else
		fprintf(bus->err, "the bus %s cannot be reached: %s; pasidd's log says which one it is on; type: %s\n",
			bus->which, why, "journalctl -u pasidd");
	return r;
}

static bool is_error(const sd_bus_error *e, const char *const *names)
{
	while (*names && (!e->name || strcmp(e->name, *names) != 0))
		names++;
	return *names;
}

static bool begins(const char *s, const char *with)
{
	return !strncmp(s, with, strlen(with));
}

static int refused(struct bus *bus, const char *path, const sd_bus_error *e, int r)
{
	static const char *const nobody[] = {"org.freedesktop.DBus.Error.ServiceUnknown",
					     "org.freedesktop.DBus.Error.NameHasNoOwner", NULL};
	static const char *const denied[] = {"org.freedesktop.DBus.Error.AccessDenied", "org.pasidd.Error.AccessDenied",
					     NULL};
	static const char *const unknown[] = {
		"org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.DBus.Error.UnknownMethod",
		"org.freedesktop.DBus.Error.UnknownInterface", "org.pasidd.Error.NotFound", NULL};
	static const char *const silent[] = {"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Timeout",
					     "org.freedesktop.DBus.Error.TimedOut", NULL};
	const char *said = e->message ? e->message : strerror(-r);

	bus->not_mapped = e->name && !strcmp(e->name, "org.pasidd.Error.NotMapped");
	if (bus->not_mapped)
		return r;
	fprintf(bus->err, "pasidctl: ");
	if (is_error(e, nobody))
		fprintf(bus->err,
			"nobody has the name " NAME " on the %s bus: pasidd does not run, or is on another one; type: "
			"systemctl start pasidd\n",
			bus->which);
	else if (is_error(e, denied))
		fprintf(bus->err, "this user may not: %s; type: sudo %s\n", said, bus->command);
	else if (is_error(e, unknown) && begins(path, BUS_CONTEXT))
		fprintf(bus->err, "there is no context %s, or it is not for this user; type: pasidctl contexts\n",
			path + strlen(BUS_CONTEXT));
	else if (e->name &&
		 (begins(e->name, "org.freedesktop.DBus.Error.Spawn.") || begins(e->name, "org.freedesktop.systemd1.")))
		fprintf(bus->err, "pasidd could not be started: %s; type: systemctl status pasidd\n", said);
	else if (r == -ECONNRESET || r == -ENOTCONN || r == -ESHUTDOWN || r == -EPIPE)
		fprintf(bus->err, "the %s bus is gone; type: systemctl status dbus\n", bus->which);
	else if (is_error(e, silent) || r == -ETIMEDOUT)
		fprintf(bus->err, "pasidd has not answered within %llu s; type: systemctl status pasidd\n",
			ANSWER_US / 1000000);
	else
		fprintf(bus->err, "%s\n", said);
	return r;
}

/* ---- calls ---- */

static int connect_to(const char *which, sd_bus **ret)
{
	__attribute__((cleanup(sd_bus_unrefp))) sd_bus *b = NULL;
	int r;

	if (!strcmp(which, "system"))
		return sd_bus_open_system(ret);
	if (!strcmp(which, "session"))
		return sd_bus_open_user(ret);
	r = sd_bus_new(&b);
	if (r >= 0)
		r = sd_bus_set_address(b, which);
	if (r >= 0)
		r = sd_bus_set_bus_client(b, true);
	if (r >= 0)
		r = sd_bus_start(b);
	if (r >= 0)
		*ret = TAKE_PTR(b);
	return r;
}

int bus_open(struct bus *bus, const char *which, const char *command, FILE *err)
{
	const char *unique;
	int r;

	*bus = (struct bus){.which = which, .command = command, .err = err};
	r = connect_to(which, &bus->b);
	/* It is there once it has greeted. */
	if (r >= 0)
		r = sd_bus_get_unique_name(bus->b, &unique);
	return r < 0 ? no_bus(bus, r) : 0;
}

void bus_close(struct bus *bus)
{
	bus->b = sd_bus_flush_close_unref(bus->b);
}

static int new_call(struct bus *bus, const char *path, const char *interface, const char *method, sd_bus_message **ret)
{
	return sd_bus_message_new_method_call(bus->b, ret, NAME, path, interface, method);
}

/* Sends it, and waits. */
static int ask(struct bus *bus, sd_bus_message *m, sd_bus_message **ret)
{
	AUTO_ERROR sd_bus_error e = SD_BUS_ERROR_NULL;
	int r = sd_bus_call(bus->b, m, ANSWER_US, &e, ret);

	return r < 0 ? refused(bus, sd_bus_message_get_path(m), &e, r) : 0;
}

static int garbled(const struct bus *bus, int r)
{
	fprintf(bus->err, "pasidctl: pasidd's answer makes no sense: %s; install a pasidctl that is as old\n",
		strerror(-r));
	return r;
}

static int call(struct bus *bus, const char *path, const char *interface, const char *method, const char *text_arg,
		size_t n, const uint64_t *args, struct json_object **ret)
{
	AUTO_MESSAGE sd_bus_message *m = NULL, *reply = NULL;
	int r = new_call(bus, path, interface, method, &m);

	if (r >= 0 && text_arg)
		r = sd_bus_message_append_basic(m, 's', text_arg);
	for (size_t i = 0; r >= 0 && i < n; i++)
		r = sd_bus_message_append_basic(m, 't', &args[i]);
	if (r < 0)
		return garbled(bus, r);
	r = ask(bus, m, &reply);
	if (r < 0)
		return r;
	r = sequence(reply, ret);
	return r < 0 ? garbled(bus, r) : 0;
}

int bus_call(struct bus *bus, const char *path, const char *interface, const char *method, size_t n,
	     const uint64_t *args, struct json_object **ret)
{
	char full[64];

	snprintf(full, sizeof(full), NAME ".%s1", interface);
	return call(bus, path, full, method, NULL, n, args, ret);
}

int bus_properties(struct bus *bus, const char *path, const char *interface, struct json_object **ret)
{
	AUTO_JSON struct json_object *answer = NULL;
	char full[64];
	int r;

	snprintf(full, sizeof(full), NAME ".%s1", interface);
	r = call(bus, path, "org.freedesktop.DBus.Properties", "GetAll", full, 0, NULL, &answer);
	if (r < 0)
		return r;
	*ret = json_object_get(json_object_array_get_idx(answer, 0));
	return json_object_is_type(*ret, json_type_object) ? 0 : garbled(bus, -EPROTO);
}

static int by_id(const void *a, const void *b)
{
	struct json_object *x = *(struct json_object *const *)a, *y = *(struct json_object *const *)b;
	uint64_t i = bus_number(x, "Id"), k = bus_number(y, "Id");

	return i < k ? -1 : i > k;
}

int bus_list(struct bus *bus, const char *interface, struct json_object **ret)
{
	AUTO_JSON struct json_object *answer = NULL;
	struct json_object *objects, *list, *properties;
	char full[64];
	int r = call(bus, BUS_MANAGER, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", NULL, 0, NULL,
		     &answer);

	if (r < 0)
		return r;
	objects = json_object_array_get_idx(answer, 0);
	if (!json_object_is_type(objects, json_type_object))
		return garbled(bus, -EPROTO);
	list = json_object_new_array();
	snprintf(full, sizeof(full), NAME ".%s1", interface);
	json_object_object_foreach (objects, path, interfaces)
		if (*path && json_object_is_type(interfaces, json_type_object) &&
		    json_object_object_get_ex(interfaces, full, &properties))
			json_object_array_add(list, json_object_get(properties));
	/* Devices stay in the order of the configuration. */
	if (!strcmp(interface, "Context"))
		json_object_array_sort(list, by_id);
	*ret = list;
	return 0;
}

int bus_open_trace(struct bus *bus)
{
	AUTO_MESSAGE sd_bus_message *m = NULL, *reply = NULL;
	int r = new_call(bus, BUS_MANAGER, NAME ".Manager1", "OpenTrace", &m);
	int fd;

	if (r < 0)
		return garbled(bus, r);
	r = ask(bus, m, &reply);
	if (r < 0)
		return r;
	r = sd_bus_message_read_basic(reply, 'h', &fd);
	if (r <= 0)
		return garbled(bus, r < 0 ? r : -EPROTO);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? garbled(bus, -errno) : fd;
}

int bus_alive(struct bus *bus)
{
	__attribute__((cleanup(sd_bus_creds_unrefp))) sd_bus_creds *creds = NULL;
	const char *owner = "";
	int r = sd_bus_get_name_creds(bus->b, NAME, SD_BUS_CREDS_UNIQUE_NAME, &creds);

	if (r >= 0)
		r = sd_bus_creds_get_unique_name(creds, &owner);
	if (r >= 0 && !bus->owner[0])
		snprintf(bus->owner, sizeof(bus->owner), "%s", owner);
	if (r >= 0 && !strcmp(bus->owner, owner))
		return 0;
	if (r < 0 && r != -ENXIO)
		return refused(bus, BUS_MANAGER, &SD_BUS_ERROR_NULL, r);
	fprintf(bus->err, "pasidctl: pasidd is gone, or another one has begun; type: systemctl status pasidd\n");
	return -ENXIO;
}

/* ---- what stands in it ---- */

static struct json_object *member(struct json_object *o, const char *name)
{
	struct json_object *v = NULL;

	if (json_object_is_type(o, json_type_object))
		json_object_object_get_ex(o, name, &v);
	return v;
}

static struct json_object *element(struct json_object *a, size_t i)
{
	return json_object_is_type(a, json_type_array) && i < json_object_array_length(a)
		       ? json_object_array_get_idx(a, i)
		       : NULL;
}

static uint64_t number_of(struct json_object *v)
{
	return json_object_is_type(v, json_type_int) || json_object_is_type(v, json_type_boolean)
		       ? json_object_get_uint64(v)
		       : 0;
}

static const char *string_of(struct json_object *v)
{
	return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";
}

uint64_t bus_number(struct json_object *o, const char *name)
{
	return number_of(member(o, name));
}

const char *bus_string(struct json_object *o, const char *name)
{
	return string_of(member(o, name));
}

static int digit(char c)
{
	const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* "_xx" stands for what may not be in a path. */
const char *bus_device_name(const char *path, char to[64])
{
	const char *from = strrchr(path, '/');
	size_t n = 0;

	for (from = from ? from + 1 : path; *from && n < 63; from++) {
		char c = *from;

		if (c == '_' && digit(from[1]) >= 0 && digit(from[2]) >= 0) {
			c = (char)(digit(from[1]) * 16 + digit(from[2]));
			from += 2;
		}
		to[n++] = c;
	}
	to[n] = '\0';
	return to;
}

uint64_t bus_number_at(struct json_object *a, size_t i)
{
	return number_of(element(a, i));
}

const char *bus_string_at(struct json_object *a, size_t i)
{
	return string_of(element(a, i));
}
