/* SPDX-License-Identifier: MIT */
/* See keys.h. */
#include "config/keys.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "config/config.h"

/* "file: path: found X; allowed is Y". */
static void say_wrong(struct place *p, const char *found, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));

static void say_wrong(struct place *p, const char *found, const char *fmt, va_list ap)
{
	char allowed[160];

	vsnprintf(allowed, sizeof(allowed), fmt, ap);
	snprintf(p->error, CONFIG_ERROR_MAX, "%s: %s%sfound %.79s; allowed is %s", p->file, p->path,
		 p->path[0] ? ": " : "", found, allowed);
}

__attribute__((format(printf, 3, 4))) static int place_wrong_text(struct place *p, const char *found, const char *fmt,
								  ...)
{
	va_list ap;

	va_start(ap, fmt);
	say_wrong(p, found, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

int place_wrong(struct place *p, struct json_object *found, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say_wrong(p, json_object_to_json_string_ext(found, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
		  fmt, ap);
	va_end(ap);
	return -EINVAL;
}

size_t place_enter(struct place *p, const char *name)
{
	size_t len = strlen(p->path);

	snprintf(p->path + len, sizeof(p->path) - len, "%s%s", len ? "." : "", name);
	return len;
}

size_t place_enter_index(struct place *p, size_t i)
{
	size_t len = strlen(p->path);

	snprintf(p->path + len, sizeof(p->path) - len, "[%zu]", i);
	return len;
}

void place_leave(struct place *p, size_t len)
{
	p->path[len] = 0;
}

static const struct key *find_key(const struct key *keys, const char *name)
{
	for (; keys->name; keys++)
		if (!strcmp(keys->name, name))
			return keys;
	return NULL;
}

static int unknown_key(struct place *p, const struct key *keys, const char *name)
{
	struct json_object *shown = json_object_new_string(name); /* escapes what would break the line */
	char list[256] = "";
	size_t len = 0;

	for (; keys->name && len < sizeof(list); keys++)
		len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", keys->name);
	snprintf(p->error, CONFIG_ERROR_MAX, "%s: %s%sfound an unknown key %.60s; allowed is %s", p->file, p->path,
		 p->path[0] ? ": " : "", json_object_to_json_string_ext(shown, JSON_C_TO_STRING_NOSLASHESCAPE), list);
	json_object_put(shown);
	return -EINVAL;
}

int keys_take(struct place *p, struct json_object *o, const struct key *keys, void *to)
{
	int r = 0;

	if (!json_object_is_type(o, json_type_object))
		return place_wrong(p, o, "an object");
	json_object_object_foreach (o, name, value) {
		const struct key *key = find_key(keys, name);
		size_t len;

		if (!key)
			return unknown_key(p, keys, name);
		len = place_enter(p, name);
		r = key->set(p, value, (char *)to + key->offset, key);
		if (r < 0)
			return r;
		place_leave(p, len);
	}
	return 0;
}

/* ---- kinds of values ---- */

static int number(struct place *p, struct json_object *v, const struct key *key, uint64_t *ret)
{
	uint64_t n = json_object_get_uint64(v);

	/* json-c keeps no larger number, and says that one instead. */
	if (n == UINT64_MAX && json_object_is_type(v, json_type_int))
		return place_wrong_text(p, "a number of 18446744073709551615 or more",
					"a whole number from %llu to %llu", (unsigned long long)key->min,
					(unsigned long long)key->max);
	/* What is negative as an int64 is 0 as a uint64. */
	if (!json_object_is_type(v, json_type_int) || json_object_get_int64(v) < 0 || n < key->min || n > key->max)
		return place_wrong(p, v, "a whole number from %llu to %llu", (unsigned long long)key->min,
				   (unsigned long long)key->max);
	*ret = n;
	return 0;
}

int key_u64(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	return number(p, v, key, to);
}

int key_u32(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	uint64_t n = 0;
	int r = number(p, v, key, &n);

	if (r == 0)
		*(uint32_t *)to = (uint32_t)n;
	return r;
}

const char *key_text(struct json_object *v)
{
	const char *s = json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";

	return strlen(s) == (size_t)json_object_get_string_len(v) ? s : "";
}

int key_string(struct place *p, struct json_object *v, void *to, const struct key *key)
{
	const char *text = key_text(v);
	char *s;

	if (strlen(text) < key->min || strlen(text) > key->max)
		return place_wrong(p, v, "%s", key->allowed);
	s = strdup(text);
	if (!s)
		return -ENOMEM;
	free(*(char **)to);
	*(char **)to = s;
	return 0;
}

/* ---- the text ---- */

int keys_read(const char *text, size_t len, struct place *p, struct json_object **ret)
{
	struct json_tokener *tok = json_tokener_new_ex(16);
	struct json_object *o;
	size_t end;
	int r = 0;

	if (!tok)
		return -ENOMEM;
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	o = json_tokener_parse_ex(tok, text, (int)len + 1); /* the NUL behind it ends the text */
	end = json_tokener_get_parse_end(tok);
	if (json_tokener_get_error(tok) != json_tokener_success || end < len) {
		snprintf(p->error, CONFIG_ERROR_MAX, "%s: not JSON at byte %zu of %zu: %s", p->file, end, len,
			 end < len && !text[end] ? "a NUL byte" : json_tokener_error_desc(json_tokener_get_error(tok)));
		json_object_put(o);
		r = -EINVAL;
	} else {
		*ret = o;
	}
	json_tokener_free(tok);
	return r;
}
