/* SPDX-License-Identifier: MIT */
/* The part of util.h that is not inline. */
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

int util_open_readonly(int fd)
{
	AUTO_CLOSE int ro = -1;
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0 || fchmod(fd, 0) < 0)
		return -errno;
	return util_take_fd(&ro);
}

uint64_t util_now_ns(void)
{
	struct timespec ts;

	/* CLOCK_MONOTONIC and a valid pointer: there is no error to handle. */
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
