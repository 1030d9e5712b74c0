/* SPDX-License-Identifier: MIT */
/* pasidctl: words and options. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"
#include "bind.h"
#include "doctor.h"
#include "driver_new.h"
#include "selftest.h"

static const char usage_text[] =
	"Usage: pasidctl doctor [BDF] [--json]\n"
	"       pasidctl bind BDF... [--dry-run] [--persist]\n"
	"       pasidctl unbind BDF... [--dry-run]\n"
	"       pasidctl driver new NAME [DIRECTORY]\n"
	"       pasidctl selftest DEVICE [--socket PATH] [--seed N] [--driver FILE]\n"
	"\n"
	"Gets PCI devices ready for pasidd, and tries them. BDF is a device's address as lspci shows\n"
	"it, with or without the domain: 0000:01:00.0 or 01:00.0. DEVICE is its name in pasidd.\n"
	"\n"
	"  doctor   says what keeps this machine, and the device, from being shared, and what to type.\n"
	"           Each line begins with ok, warn (something is missing, sharing is possible) or bad\n"
	"           (it is not). The last line says in which modes of pasidd the device can be shared;\n"
	"           without BDF there is such a line for each device that is bound to vfio-pci or for\n"
	"           which pasidd has a driver. It changes nothing, and sees most as root\n"
	"    --json     the same for programs\n"
	"\n"
	"  bind     takes devices from their drivers and gives them to vfio-pci: all, or none. Devices\n"
	"           that share an IOMMU group go together. Says first what it does\n"
	"    --dry-run  says it, and does nothing\n"
	"    --persist  also at each start of the machine, by a file in /etc/udev/rules.d\n"
	"\n"
	"  unbind   gives devices back to the drivers that the kernel chooses, also at each start\n"
	"    --dry-run  says it, and does nothing\n"
	"\n"
	"  driver new\n"
	"           makes DIRECTORY (NAME, if there is none) with the skeleton of a driver for pasidd:\n"
	"           NAME.c, which compiles, is loaded by pasidd and drives nothing yet, and a meson.build\n"
	"\n"
	"  selftest tries, through the pasidd that runs, whether the device and its driver do what they\n"
	"           should and keep programs apart; a bank and a thief are part of it. Others may use\n"
	"           the device meanwhile. It takes a minute at most, on most devices a few seconds. All\n"
	"           that it prints belongs into a bug report\n"
	"    --socket   where pasidd listens, if not at $PASIDD_SOCKET or /run/pasidd/socket\n"
	"    --seed     of the bytes that are written, as an earlier run said it\n"
	"    --driver   the device's driver, if it does not come with pasidd: it knows the commands\n"
	"\n"
	"  -h, --help     this text\n"
	"      --version  the version\n"
	"\n"
	"Exit status: 0: done, or the machine (the device) can be shared; 1: it cannot, or it was\n"
	"refused, or it failed, and nothing is changed; 2: wrong usage, no such device, or it cannot\n"
	"be looked at. Of selftest: 0: all is well; 1: something failed, or leaked; 2: it could not be\n"
	"tried, or not all of it.\n";

struct options {
	const char *verb;
	struct selftest_options selftest;
	char bdfs[BIND_MAX][PCI_BDF_SIZE];
	size_t n;
	char **words; /* of "driver" */
	int n_words;
	bool json, dry_run, persist, seed;
};

#define VERBS "the first word has to be doctor, bind, unbind, selftest or driver"

static int wrong(const char *what, const char *word)
{
	fprintf(stderr, "pasidctl: %s", what);
	if (word)
		fprintf(stderr, ": \"%s\"", word);
	fprintf(stderr, "; see pasidctl --help\n");
	return EXIT_USAGE;
}

static int take_words(struct options *o, int argc, char **argv)
{
	if (optind == argc)
		return wrong(VERBS, NULL);
	o->verb = argv[optind];
	if (!strcmp(o->verb, "driver")) {
		o->words = argv + optind + 1;
		o->n_words = argc - optind - 1;
		return -1;
	}
	if (!strcmp(o->verb, "selftest")) {
		o->selftest.device = argc - optind == 2 ? argv[optind + 1] : NULL;
		return -1;
	}
	for (int i = optind + 1; i < argc; i++) {
		if (o->n == BIND_MAX)
			return wrong("that are too many devices", NULL);
		if (!pci_parse_bdf(argv[i], o->bdfs[o->n++]))
			return wrong("this is no PCI address such as 0000:01:00.0", argv[i]);
	}
	return -1;
}

/* -1: go on. */
static int take_seed(struct options *o, const char *text)
{
	char *end;

	errno = 0;
	o->selftest.seed = strtoull(text, &end, 0);
	o->seed = true;
	return errno || end == text || *end || *text == '-' ? wrong("a seed is a number of 64 bits", text) : -1;
}

/* An exit status, or -1 to go on. */
static int parse_options(struct options *o, int argc, char **argv)
{
	enum { OPT_JSON = 256, OPT_DRY_RUN, OPT_PERSIST, OPT_SOCKET, OPT_SEED, OPT_DRIVER, OPT_VERSION };
	static const struct option longs[] = {
		{"json", no_argument, NULL, OPT_JSON},
		{"dry-run", no_argument, NULL, OPT_DRY_RUN},
		{"persist", no_argument, NULL, OPT_PERSIST},
		{"help", no_argument, NULL, 'h'},
		{"socket", required_argument, NULL, OPT_SOCKET},
		{"seed", required_argument, NULL, OPT_SEED},
		{"driver", required_argument, NULL, OPT_DRIVER},
		{"version", no_argument, NULL, OPT_VERSION},
		{0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case OPT_JSON:
			o->json = true;
			break;
		case OPT_DRY_RUN:
			o->dry_run = true;
			break;
		case OPT_PERSIST:
			o->persist = true;
			break;
		case OPT_SOCKET:
			o->selftest.socket = optarg;
			break;
		case OPT_DRIVER:
			o->selftest.driver = optarg;
			if (*optarg != '/')
				return wrong("a driver's path begins with a slash", optarg);
			break;
		case OPT_SEED:
			if (take_seed(o, optarg) >= 0)
				return EXIT_USAGE;
			break;
		case 'h':
			fputs(usage_text, stdout);
			return 0;
		case OPT_VERSION:
			printf("pasidctl %s\n", PASIDD_VERSION);
			return 0;
		default:
			return wrong("no such option", NULL);
		}
	}
	return take_words(o, argc, argv);
}

static int run_doctor(const struct machine *m, const struct options *o)
{
	if (o->n > 1 || o->dry_run || o->persist)
		return wrong("doctor takes one device at most, and no option but --json", NULL);
	return doctor(m, o->n ? o->bdfs[0] : NULL, o->json, stdout, stderr);
}

static int run_bind(const struct machine *m, struct options *o, bool bind)
{
	const struct bind_options how = {.dry_run = o->dry_run, .persist = o->persist, .out = stdout, .err = stderr};

	if (o->n == 0)
		return wrong("which device?", NULL);
	if (o->json || (o->persist && !bind))
		return wrong("that option is not for this", o->verb);
	return bind ? bind_devices(m, o->bdfs, o->n, &how) : unbind_devices(m, o->bdfs, o->n, &how);
}

static int run_driver(const struct options *o)
{
	if (o->n_words < 2 || o->n_words > 3 || strcmp(o->words[0], "new") != 0)
		return wrong("driver takes \"new\", a name, and maybe a directory", NULL);
	if (o->json || o->dry_run || o->persist)
		return wrong("that option is not for this", o->verb);
	return driver_new(o->words[1], o->n_words > 2 ? o->words[2] : NULL, stdout, stderr);
}

static int run_selftest(const struct machine *m, struct options *o)
{
	if (!o->selftest.device)
		return wrong("selftest takes one device", NULL);
	if (o->json || o->dry_run || o->persist)
		return wrong("that option is not for this", o->verb);
	if (!o->seed && getrandom(&o->selftest.seed, sizeof(o->selftest.seed), 0) != sizeof(o->selftest.seed))
		return wrong("there are no random numbers: give a --seed", NULL);
	return selftest(m, &o->selftest, stdout, stderr);
}

static int run(const struct machine *m, struct options *o)
{
	if (!strcmp(o->verb, "selftest"))
		return run_selftest(m, o);
	if (o->seed || o->selftest.socket || o->selftest.driver)
		return wrong("that option is not for this", o->verb);
	if (!strcmp(o->verb, "doctor"))
		return run_doctor(m, o);
	if (!strcmp(o->verb, "bind"))
		return run_bind(m, o, true);
	if (!strcmp(o->verb, "unbind"))
		return run_bind(m, o, false);
	if (!strcmp(o->verb, "driver"))
		return run_driver(o);
	return wrong(VERBS, o->verb);
}

int main(int argc, char **argv)
{
	struct options o = {0};
	struct machine m;
	int r = parse_options(&o, argc, argv);

	if (r >= 0)
		return r;
	r = machine_open(&m, "/");
	if (r < 0) {
		fprintf(stderr, "pasidctl: / cannot be opened: %s\n", strerror(-r));
		return EXIT_USAGE;
	}
	r = run(&m, &o);
	machine_close(&m);
	return r;
}
