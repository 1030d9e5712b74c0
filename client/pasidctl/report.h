/* SPDX-License-Identifier: MIT */
/* What was found: lines of a level, what they are about, a sentence, and what to type. */
#ifndef PASIDCTL_REPORT_H
#define PASIDCTL_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct json_object;

enum level {
	LEVEL_OK,
	LEVEL_WARN, /* something is not possible, or not as fast; sharing is */
	LEVEL_BAD, /* nothing can be shared like this */
};

struct finding {
	enum level level;
	const char *about; /* one word, static */
	char *text, *todo; /* todo: what to type; NULL: nothing */
};

struct report {
	struct finding *v;
	size_t n;
	size_t bad;
	bool no_memory;
};

void report_fini(struct report *r);
#define AUTO_REPORT __attribute__((cleanup(report_fini)))

/* todo NULL: there is nothing to do. */
void report_add(struct report *r, enum level level, const char *about, const char *todo, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));

void report_print(const struct report *r, FILE *f);

/* An array, or NULL. */
struct json_object *report_json(const struct report *r);

#endif
