/* SPDX-License-Identifier: MIT */
/* The command line: a verb, its words, and options before or after them. */
#ifndef PASIDCTL_OPTIONS_H
#define PASIDCTL_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "selftest.h"

enum option_bit {
	OPTION_JSON = 1u << 0,
	OPTION_DRY_RUN = 1u << 1,
	OPTION_PERSIST = 1u << 2,
	OPTION_SOCKET = 1u << 3,
	OPTION_SEED = 1u << 4,
	OPTION_DRIVER = 1u << 5,
	OPTION_BUS = 1u << 6,
	OPTION_OUTPUT = 1u << 7,
};

struct options {
	const struct verb *verb;
	char **words; /* behind the verb */
	int n_words;
	unsigned int given; /* bits of enum option_bit */
	bool json;
	const char *bus;
	const char *output; /* NULL: standard output */
	const char *command; /* all of it, as it was typed */
	struct selftest_options selftest;
};

struct verb {
	const char *name;
	const char *usage; /* behind "pasidctl ", a line each; indented as in the text */
	const char *text;
	unsigned int options; /* that it knows, besides --help */
	int (*run)(struct options *o); /* an exit status */
};

/* verbs.c */
const struct verb *verb_find(const char *name);
void help_all(void);
void help_verb(const struct verb *v);

/* Prints what is wrong with the command line, and with which word (may be NULL): EXIT_USAGE. */
int wrong(const char *what, const char *word);
/* A number among the words: -1, or EXIT_USAGE and `what` was said. */
int take_number(const char *word, const char *what, uint64_t most, uint64_t *ret);

/* machine_verbs.c: what is about this machine, look.c, space.c, top.c, trace.c: what is asked of pasidd. */
int run_doctor(struct options *o);
int run_bind(struct options *o);
int run_unbind(struct options *o);
int run_driver(struct options *o);
int run_selftest(struct options *o);
int run_devices(struct options *o);
int run_contexts(struct options *o);
int run_stats(struct options *o);
int run_maps(struct options *o);
int run_walk(struct options *o);
int run_top(struct options *o);
int run_trace(struct options *o);

#endif
