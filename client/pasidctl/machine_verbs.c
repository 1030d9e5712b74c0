/* SPDX-License-Identifier: MIT */
/* The words of the verbs that are about this machine and its devices. */
#include "options.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "bind.h"
#include "doctor.h"
#include "driver_new.h"

static int open_machine(struct machine *m)
{
	int r = machine_open(m, "/");

	if (r == 0)
		return -1;
	fprintf(stderr, "pasidctl: / cannot be opened: %s\n", strerror(-r));
	return EXIT_USAGE;
}

/* -1: go on. */
static int take_bdfs(const struct options *o, char bdfs[BIND_MAX][PCI_BDF_SIZE])
{
	if (o->n_words > (int)BIND_MAX)
		return wrong("that are too many devices", NULL);
	for (int i = 0; i < o->n_words; i++)
		if (!pci_parse_bdf(o->words[i], bdfs[i]))
			return wrong("this is no PCI address such as 0000:01:00.0", o->words[i]);
	return -1;
}

int run_doctor(struct options *o)
{
	char bdfs[BIND_MAX][PCI_BDF_SIZE];
	struct machine m;
	int r = take_bdfs(o, bdfs);

	if (r < 0 && o->n_words > 1)
		r = wrong("doctor takes one device at most", NULL);
	if (r < 0)
		r = open_machine(&m);
	if (r >= 0)
		return r;
	r = doctor(&m, o->n_words ? bdfs[0] : NULL, o->json, stdout, stderr);
	machine_close(&m);
	return r;
}

static int bind_or_unbind(struct options *o, bool bind)
{
	const struct bind_options how = {.dry_run = o->given & OPTION_DRY_RUN,
					 .persist = o->given & OPTION_PERSIST,
					 .json = o->json,
					 .out = stdout,
					 .err = stderr};
	char bdfs[BIND_MAX][PCI_BDF_SIZE];
	struct machine m;
	size_t n = (size_t)o->n_words;
	int r = take_bdfs(o, bdfs);

	if (r < 0 && !n)
		r = wrong("which device?", NULL);
	if (r < 0)
		r = open_machine(&m);
	if (r >= 0)
		return r;
	r = bind ? bind_devices(&m, bdfs, n, &how) : unbind_devices(&m, bdfs, n, &how);
	machine_close(&m);
	return r;
}

int run_bind(struct options *o)
{
	return bind_or_unbind(o, true);
}

int run_unbind(struct options *o)
{
	return bind_or_unbind(o, false);
}

int run_driver(struct options *o)
{
	if (o->n_words < 2 || o->n_words > 3 || strcmp(o->words[0], "new") != 0)
		return wrong("driver takes \"new\", a name, and maybe a directory", NULL);
	return driver_new(o->words[1], o->n_words > 2 ? o->words[2] : NULL, stdout, stderr);
}

int run_selftest(struct options *o)
{
	struct machine m;
	int r;

	if (o->n_words != 1)
		return wrong("selftest takes one device", NULL);
	o->selftest.device = o->words[0];
	o->selftest.json = o->json;
	if (!(o->given & OPTION_SEED) &&
	    getrandom(&o->selftest.seed, sizeof(o->selftest.seed), 0) != sizeof(o->selftest.seed))
		return wrong("there are no random numbers: give a --seed", NULL);
	r = open_machine(&m);
	if (r >= 0)
		return r;
	r = selftest(&m, &o->selftest, stdout, stderr);
	machine_close(&m);
	return r;
}
