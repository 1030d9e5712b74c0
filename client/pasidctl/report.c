/* SPDX-License-Identifier: MIT */
/* See report.h. */
#include "report.h"

#include <json-c/json.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *const levels[] = {
	[LEVEL_OK] = "ok",
	[LEVEL_WARN] = "warn",
	[LEVEL_BAD] = "bad",
};

void report_fini(struct report *r)
{
	for (size_t i = 0; i < r->n; i++) {
		free(r->v[i].text);
		free(r->v[i].todo);
	}
	free(r->v);
	*r = (struct report){0};
}

/* Names in sysfs are a device's or a driver's own: nothing of them may move a terminal's cursor. */
static char *printable(char *text)
{
	for (char *c = text; c && *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return text;
}

static bool add(struct report *r, enum level level, const char *about, char *text, char *todo)
{
	struct finding *v = realloc(r->v, (r->n + 1) * sizeof(*v));

	if (!v)
		return false;
	r->v = v;
	v[r->n++] = (struct finding){level, about, printable(text), printable(todo)};
	r->bad += level == LEVEL_BAD;
	return true;
}

void report_add(struct report *r, enum level level, const char *about, const char *todo, const char *fmt, ...)
{
	char *text = NULL, *copy = todo ? strdup(todo) : NULL;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	if (text && (copy || !todo) && add(r, level, about, text, copy))
		return;
	free(text);
	free(copy);
	r->no_memory = true;
}

void report_print(const struct report *r, FILE *f)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct finding *v = &r->v[i];

		fprintf(f, "%-4s  %s: %s", levels[v->level], v->about, v->text);
		if (v->todo)
			fprintf(f, "; type: %s", v->todo);
		fputc('\n', f);
	}
}

struct json_object *report_json(const struct report *r)
{
	struct json_object *array = json_object_new_array();

	for (size_t i = 0; array && i < r->n; i++) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "level", json_object_new_string(levels[r->v[i].level]));
		json_object_object_add(o, "about", json_object_new_string(r->v[i].about));
		json_object_object_add(o, "text", json_object_new_string(r->v[i].text));
		if (r->v[i].todo)
			json_object_object_add(o, "type", json_object_new_string(r->v[i].todo));
		json_object_array_add(array, o);
	}
	return array;
}
