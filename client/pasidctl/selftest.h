/* SPDX-License-Identifier: MIT */
/*
 * "pasidctl selftest": whether the device and the driver behind a running pasidd do what they should, and keep programs
 * apart, tried as a program would. Others may use the device meanwhile; nothing of theirs is touched.
 */
#ifndef PASIDCTL_SELFTEST_H
#define PASIDCTL_SELFTEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "machine.h"

#define SELFTEST_OK 0
#define SELFTEST_FAILED 1
#define SELFTEST_UNTRIED 2

struct selftest_options {
	const char *device;
	const char *socket; /* NULL: libpasid's default */
	const char *driver; /* path of a shared object; NULL: one that comes with pasidd */
	uint64_t seed; /* of all bytes that are written */
	bool json; /* one object in the end, for programs */
};

/* Prints to out, why nothing could be tried to err. An exit status. */
int selftest(const struct machine *m, const struct selftest_options *o, FILE *out, FILE *err);

#endif
