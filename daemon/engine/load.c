/* SPDX-License-Identifier: MIT */
/*
 * See load.h. The path is walked fd by fd, without following links, and each step is judged by the fd that the next one
 * starts from; what is loaded is what the last fd is open on. So nothing can be exchanged between the look and the use.
 */
#include "engine/load.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define OTHERS_WRITE (S_IWGRP | S_IWOTH)

__attribute__((format(printf, 2, 3))) static int refuse(char error[DRIVER_ERROR_MAX], const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error, DRIVER_ERROR_MAX, fmt, ap);
	va_end(ap);
	return -EPERM;
}

/* ---- whose file it is ---- */

/* What the first n bytes of the path lead to, which is to be a directory or, at the end, a regular file. */
static int judge(int fd, const char *path, int n, mode_t kind, char error[DRIVER_ERROR_MAX])
{
	struct stat st;

	while (n > 1 && path[n - 1] == '/')
		n--;
	if (fstat(fd, &st) < 0)
		return refuse(error, "%.*s cannot be looked at: %s", n, path, strerror(errno));
	if (S_ISLNK(st.st_mode))
		return refuse(error, "%.*s is a symbolic link; name what it points to", n, path);
	if ((st.st_mode & S_IFMT) != kind)
		return refuse(error, "%.*s is no %s", n, path, kind == S_IFDIR ? "directory" : "regular file");
	if (st.st_uid != 0 && st.st_uid != geteuid())
		return refuse(error, "%.*s belongs to uid %u; allowed is 0%s", n, path, (unsigned int)st.st_uid,
			      geteuid() ? " or the daemon's own" : "");
	if (st.st_mode & OTHERS_WRITE && !(kind == S_IFDIR && st.st_mode & S_ISVTX))
		return refuse(error, "%.*s has mode %04o, others than its owner can write there; type: chmod go-w %.*s",
			      n, path, (unsigned int)(st.st_mode & 07777), n, path);
	return 0;
}

/* Goes on to the name in the directory `at`. */
static int step(int *at, const char *name, size_t len)
{
	char copy[DRIVER_PATH_MAX + 1];
	int next;

	snprintf(copy, sizeof(copy), "%.*s", (int)len, name);
	next = openat(*at, copy, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (next < 0)
		return -errno;
	close(*at);
	*at = next;
	return 0;
}

/* An fd of the file, or -errno and why not. */
static int open_trusted(const char *path, char error[DRIVER_ERROR_MAX])
{
	AUTO_CLOSE int at = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	const char *name = path + strspn(path, "/");
	int r = at < 0 ? -errno : 0;

	while (r == 0 && *name) {
		size_t len = strcspn(name, "/");

		r = judge(at, path, (int)(name - path), S_IFDIR, error);
		if (r < 0)
			return r;
		r = step(&at, name, len);
		name += len;
		if (r == 0)
			name += strspn(name, "/");
	}
	if (r < 0)
		return refuse(error, "%.*s: %s", (int)(name - path), path, strerror(-r));
	r = judge(at, path, (int)strlen(path), S_IFREG, error);
	return r < 0 ? r : util_take_fd(&at);
}

/* ---- what is in it ---- */

/* The reason alone, without the name that stands for the file here. */
static const char *load_error(const char *name)
{
	const char *said = dlerror();
	size_t len = strlen(name);

	if (!said)
		return "it cannot be loaded";
	return !strncmp(said, name, len) && !strncmp(said + len, ": ", 2) ? said + len + 2 : said;
}

static int take_exports(struct driver *d, const struct pasid_driver *x, char error[DRIVER_ERROR_MAX])
{
	char why[ENGINE_ERROR_MAX];

	if (!x)
		return refuse(error, "%s exports no \"pasid_driver\", so it is no driver of pasidd's", d->path);
	if (x->abi != PASID_DRIVER_ABI)
		return refuse(error,
			      "%s has version %u of the driver interface, this pasidd %u; compile it again with this "
			      "pasidd's <pasid/driver.h>",
			      d->path, x->abi, PASID_DRIVER_ABI);
	if (!x->engine)
		return refuse(error, "%s: its driver has no engine; it is required", d->path);
	if (x->verbs && (!x->verbs->fill || !x->verbs->copy))
		return refuse(error, "%s: its driver has verbs, but not both fill() and copy()", d->path);
	if (engine_check(x->engine, why) < 0)
		return refuse(error, "%s: %s", d->path, why);
	d->exports = x;
	return 0;
}

int driver_load(struct driver *ret, const char *path, char error[DRIVER_ERROR_MAX])
{
	struct driver d = {.path = path, .fd = open_trusted(path, error)};
	char name[32];
	int r;

	if (d.fd < 0)
		return d.fd;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", d.fd);
	d.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	if (d.handle)
		r = take_exports(&d, dlsym(d.handle, "pasid_driver"), error);
	else
		r = refuse(error, "%s cannot be loaded: %s", path, load_error(name));
	if (r < 0) {
		driver_unload(&d);
		return r;
	}
	*ret = d;
	return 0;
}

/* The fd is kept so long because the loader knows its objects by name: a second one of the same name is the first. */
void driver_unload(struct driver *d)
{
	if (d->handle)
		dlclose(d->handle);
	close(d->fd);
}
