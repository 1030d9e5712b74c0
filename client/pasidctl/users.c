/* SPDX-License-Identifier: MIT */
/* See users.h. */
#include "users.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* In /proc the files of VFIO show by their names: the group's, and the device's own. */
struct wanted {
	char group[32], cdev[32 + MACHINE_NAME_MAX];
};

static bool fd_is_wanted(const struct machine *m, const char *pid, const char *fd, const struct wanted *w)
{
	char path[32 + 2 * MACHINE_NAME_MAX], target[sizeof(w->cdev)];
	ssize_t n;

	snprintf(path, sizeof(path), "proc/%s/fd/%s", pid, fd);
	n = readlinkat(m->root, path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = '\0';
	return !strcmp(target, w->group) || !strcmp(target, w->cdev);
}

static bool process_is_wanted(const struct machine *m, const char *pid, const struct wanted *w)
{
	AUTO_NAMES struct names fds = {0};

	if (machine_list(m, &fds, "proc/%s/fd", pid) < 0)
		return false;
	for (size_t i = 0; i < fds.n; i++)
		if (fd_is_wanted(m, pid, fds.v[i], w))
			return true;
	return false;
}

bool users_find(const struct machine *m, const struct device *d, struct user *ret)
{
	AUTO_NAMES struct names pids = {0};
	struct wanted w;

	snprintf(w.group, sizeof(w.group), "/dev/vfio/%d", d->group);
	snprintf(w.cdev, sizeof(w.cdev), "/dev/vfio/devices/%s", d->cdev);
	machine_list(m, &pids, "proc");
	for (size_t i = 0; i < pids.n; i++) {
		if (!isdigit((unsigned char)pids.v[i][0]) || strlen(pids.v[i]) >= sizeof(ret->pid) ||
		    !process_is_wanted(m, pids.v[i], &w))
			continue;
		strcpy(ret->pid, pids.v[i]);
		machine_read(m, ret->name, sizeof(ret->name), "proc/%s/comm", ret->pid);
		return true;
	}
	return false;
}
