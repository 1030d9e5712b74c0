/* SPDX-License-Identifier: MIT */
/* pasidctl: the command line is read, and its verb does the rest. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "doctor.h"
#include "options.h"

int wrong(const char *what, const char *word)
{
	fprintf(stderr, "pasidctl: %s", what);
	if (word)
		fprintf(stderr, ": \"%s\"", word);
	fprintf(stderr, "; see pasidctl --help\n");
	return EXIT_USAGE;
}

int take_number(const char *word, const char *what, uint64_t most, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(word, &end, 0);
	return errno || end == word || *end || *word == '-' || *ret > most ? wrong(what, word) : -1;
}

#define VERBS                                                                                                        \
	"the first word has to be devices, contexts, stats, maps, walk, top, trace, doctor, bind, unbind, selftest " \
	"or driver"

static int take_words(struct options *o, int argc, char **argv, bool help)
{
	const char *first = optind < argc ? argv[optind] : NULL;

	o->verb = first ? verb_find(first) : NULL;
	if (help && !first) {
		help_all();
		return 0;
	}
	if (!o->verb)
		return wrong(VERBS, first);
	if (help) {
		help_verb(o->verb);
		return 0;
	}
	o->words = argv + optind + 1;
	o->n_words = argc - optind - 1;
	return o->given & ~o->verb->options ? wrong("that option is not for this", first) : -1;
}

/* An exit status, or -1 to go on. */
static int parse_options(struct options *o, int argc, char **argv)
{
	enum { OPT_JSON = 256, OPT_DRY_RUN, OPT_PERSIST, OPT_SOCKET, OPT_SEED, OPT_DRIVER, OPT_BUS, OPT_VERSION };
	static const struct option longs[] = {
		{"json", no_argument, NULL, OPT_JSON},
		{"dry-run", no_argument, NULL, OPT_DRY_RUN},
		{"persist", no_argument, NULL, OPT_PERSIST},
		{"help", no_argument, NULL, 'h'},
		{"socket", required_argument, NULL, OPT_SOCKET},
		{"seed", required_argument, NULL, OPT_SEED},
		{"driver", required_argument, NULL, OPT_DRIVER},
		{"bus", required_argument, NULL, OPT_BUS},
		{"output", required_argument, NULL, 'o'},
		{"version", no_argument, NULL, OPT_VERSION},
		{0},
	};
	bool help = false;
	int c;

	while ((c = getopt_long(argc, argv, "ho:", longs, NULL)) != -1) {
		switch (c) {
		case OPT_JSON:
			o->json = true;
			o->given |= OPTION_JSON;
			break;
		case OPT_DRY_RUN:
			o->given |= OPTION_DRY_RUN;
			break;
		case OPT_PERSIST:
			o->given |= OPTION_PERSIST;
			break;
		case OPT_SOCKET:
			o->selftest.socket = optarg;
			o->given |= OPTION_SOCKET;
			break;
		case OPT_DRIVER:
			o->selftest.driver = optarg;
			o->given |= OPTION_DRIVER;
			if (*optarg != '/')
				return wrong("a driver's path begins with a slash", optarg);
			break;
		case OPT_SEED:
			o->given |= OPTION_SEED;
			if (take_number(optarg, "a seed is a number of 64 bits", UINT64_MAX, &o->selftest.seed) >= 0)
				return EXIT_USAGE;
			break;
		case OPT_BUS:
			o->bus = optarg;
			o->given |= OPTION_BUS;
			break;
		case 'o':
			o->output = optarg;
			o->given |= OPTION_OUTPUT;
			break;
		case 'h':
			help = true;
			break;
		case OPT_VERSION:
			printf("pasidctl %s\n", PASIDD_VERSION);
			return 0;
		default:
			return wrong("no such option", NULL);
		}
	}
	return take_words(o, argc, argv, help);
}

/* What was typed, to be typed again. NULL: no memory. */
static char *command_line(int argc, char **argv)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		return NULL;
	fputs("pasidctl", f);
	for (int i = 1; i < argc; i++)
		fprintf(f, strpbrk(argv[i], " \t\n'\"\\$&;|<>()*?") || !*argv[i] ? " '%s'" : " %s", argv[i]);
	fclose(f);
	return text;
}

int main(int argc, char **argv)
{
	AUTO_FREE char *command = command_line(argc, argv); /* before options and words change places */
	struct options o = {.bus = "system", .command = command};
	int r;

	if (!command) {
		fprintf(stderr, "pasidctl: there is no memory\n");
		return 1;
	}
	r = parse_options(&o, argc, argv);
	return r >= 0 ? r : o.verb->run(&o);
}
