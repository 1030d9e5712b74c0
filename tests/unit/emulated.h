/* SPDX-License-Identifier: MIT */
/* What an emulator of single programs (tests/run.py --wrapper) cannot do. A test on real system calls does not ask. */
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

/* Is there one? Then says why a test that needs more is skipped; tests/run.py takes it for the reason. */
static inline bool emulated(const char *lacks)
{
	if (!getenv("PASID_TEST_WRAPPER"))
		return false;
	printf("# skipped: %s\n", lacks);
	return true;
}

#define EMULATED_CLOSER "qemu-user has no clone(CLONE_FILES), and without it no daemon runs"
#define EMULATED_CONTROL "qemu-user has the kernel give more control data than the program has room for"
