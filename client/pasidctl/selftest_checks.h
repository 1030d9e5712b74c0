/* SPDX-License-Identifier: MIT */
/* The list of checks of "pasidctl selftest", in the order in which they are made. */
#ifndef PASIDCTL_SELFTEST_CHECKS_H
#define PASIDCTL_SELFTEST_CHECKS_H

#include "selftest_trial.h"

/* What a check needs. */
#define NEEDS_WORK 1u /* jobs */
#define NEEDS_PRIVATE 2u /* an address space of the context's own: where nothing is mapped, nobody else's memory is */
#define NEEDS_TOLD 4u /* faults come as events */
#define NEEDS_BANK 8u /* another process whose memory is to be kept from this one */

struct check {
	const char *name;
	void (*run)(struct trial *t);
	unsigned int needs;
	uint64_t features; /* PASID_FEATURE_*, all of them */
};

struct checks {
	const struct check *v;
	size_t n;
};

/* The first one says what a job takes. */
extern const struct checks engine_checks, translator_checks, address_checks, thief_checks;

#endif
