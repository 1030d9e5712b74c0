/* SPDX-License-Identifier: MIT */
/* See persist.h. Source: udev(7). The file's name sorts before 80-drivers.rules, which loads the usual driver. */
#include "persist.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define MARK "# Written by pasidctl bind --persist; pasidctl unbind removes it."
#define TEMPORARY PERSIST_DIR "/.pasidd-new"

void persist_path(const char *bdf, char ret[PERSIST_PATH_SIZE])
{
	snprintf(ret, PERSIST_PATH_SIZE, PERSIST_DIR "/20-pasidd-%s.rules", bdf);
}

enum persist persist_look(const struct machine *m, const char *bdf)
{
	char path[PERSIST_PATH_SIZE], start[sizeof(MARK) - 1];
	struct stat st;
	size_t n;

	persist_path(bdf, path);
	if (fstatat(m->root, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return PERSIST_NONE;
	if (!S_ISREG(st.st_mode) || machine_bytes(m, start, sizeof(start), &n, "%s", path) < 0 || n < sizeof(start))
		return PERSIST_FOREIGN;
	return memcmp(start, MARK, n) == 0 ? PERSIST_OURS : PERSIST_FOREIGN;
}

static int write_all(int fd, const char *text, size_t n)
{
	while (n) {
		ssize_t done = write(fd, text, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		text += done;
		n -= (size_t)done;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

static int write_temporary(const struct machine *m, const char *text)
{
	AUTO_CLOSE int fd = -1;

	if (unlinkat(m->root, TEMPORARY, 0) < 0 && errno != ENOENT)
		return -errno;
	fd = openat(m->root, TEMPORARY, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0644) < 0)
		return -errno;
	return write_all(fd, text, strlen(text));
}

/* The rule is for this kind of device at this address: another one in the slot is left alone. */
static char *make_text(const struct device *d)
{
	char *text;
	int n = asprintf(&text,
			 MARK "\n"
			      "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"%s\", ATTR{vendor}==\"0x%04x\", "
			      "ATTR{device}==\"0x%04x\", ATTR{driver_override}=\"vfio-pci\", "
			      "RUN{builtin}+=\"kmod load vfio-pci\", RUN+=\"" PASIDCTL_PATH " bind %s\"\n",
			 d->bdf, d->vendor, d->device, d->bdf);

	return n < 0 ? NULL : text;
}

static void sync_directory(const struct machine *m)
{
	AUTO_CLOSE int fd = openat(m->root, PERSIST_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0)
		fsync(fd);
}

int persist_write(const struct machine *m, const struct device *d)
{
	char path[PERSIST_PATH_SIZE];
	AUTO_FREE char *text = make_text(d);
	int r;

	if (!text)
		return -ENOMEM;
	if (persist_look(m, d->bdf) == PERSIST_FOREIGN)
		return -EEXIST;
	persist_path(d->bdf, path);
	r = write_temporary(m, text);
	if (r == 0 && renameat(m->root, TEMPORARY, m->root, path) < 0)
		r = -errno;
	if (r < 0)
		unlinkat(m->root, TEMPORARY, 0);
	else
		sync_directory(m);
	return r;
}

int persist_remove(const struct machine *m, const char *bdf)
{
	char path[PERSIST_PATH_SIZE];
	enum persist state = persist_look(m, bdf);

	if (state != PERSIST_OURS)
		return state == PERSIST_NONE ? 0 : -EEXIST;
	persist_path(bdf, path);
	if (unlinkat(m->root, path, 0) < 0)
		return errno == ENOENT ? 0 : -errno;
	sync_directory(m);
	return 0;
}
