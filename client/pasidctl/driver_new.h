/* SPDX-License-Identifier: MIT */
/* "pasidctl driver new": a directory with the skeleton of a driver, from which a shared object for pasidd is made. */
#ifndef PASIDCTL_DRIVER_NEW_H
#define PASIDCTL_DRIVER_NEW_H

#include <stdio.h>

/* directory: is made; NULL: one of the driver's name, here. Exit status 0; 1: it failed, and nothing is left of it; 2: that
 * is no name for a driver. */
int driver_new(const char *name, const char *directory, FILE *out, FILE *err);

#endif
