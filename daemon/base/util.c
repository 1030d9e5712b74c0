/* SPDX-License-Identifier: MIT */
/* The part of util.h that is not inline: the clock. */
#include "base/util.h"

#include <time.h>

uint64_t util_now_ns(void)
{
	struct timespec ts;

	/* CLOCK_MONOTONIC and a valid pointer: there is no error to handle. */
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
