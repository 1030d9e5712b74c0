/* SPDX-License-Identifier: MIT */
/* See machine.h. */
#include "machine.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

#define MAX_NAMES 65536u /* of a directory: more PCI functions than that in one domain there are not */

#define MAKE_PATH(path, fmt)                                           \
	({                                                             \
		va_list ap_;                                           \
		int n_;                                                \
		va_start(ap_, fmt);                                    \
		n_ = vsnprintf(path, sizeof(path), fmt, ap_);          \
		va_end(ap_);                                           \
		n_ >= 0 && n_ < (int)sizeof(path) ? 0 : -ENAMETOOLONG; \
	})

int machine_open(struct machine *m, const char *root)
{
	*m = (struct machine){.root = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC)};
	return m->root < 0 ? -errno : 0;
}

void machine_close(struct machine *m)
{
	if (m->root >= 0)
		close(m->root);
	m->root = -1;
}

/* Only what is a file is read: a FIFO would never answer. */
static int open_file(const struct machine *m, const char *path)
{
	AUTO_CLOSE int fd = openat(m->root, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	return S_ISREG(st.st_mode) ? util_take_fd(&fd) : -EINVAL;
}

static int read_up_to(int fd, char *ret, size_t size, size_t *n)
{
	for (*n = 0; *n < size;) {
		ssize_t got = read(fd, ret + *n, size - *n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		*n += (size_t)got;
	}
	return 0;
}

static int read_path(const struct machine *m, void *ret, size_t size, size_t *n, const char *path)
{
	AUTO_CLOSE int fd = open_file(m, path);

	*n = 0;
	return fd < 0 ? fd : read_up_to(fd, ret, size, n);
}

int machine_bytes(const struct machine *m, void *ret, size_t size, size_t *n, const char *fmt, ...)
{
	char path[PATH_MAX];

	*n = 0;
	return MAKE_PATH(path, fmt) < 0 ? -ENAMETOOLONG : read_path(m, ret, size, n, path);
}

static void tidy(char *text, size_t n)
{
	while (n > 0 && (isspace((unsigned char)text[n - 1]) || text[n - 1] == '\0'))
		n--;
	for (size_t i = 0; i < n; i++)
		if (!isprint((unsigned char)text[i]) && text[i] != '\t')
			text[i] = '?';
	text[n] = '\0';
}

int machine_read(const struct machine *m, char *ret, size_t size, const char *fmt, ...)
{
	char path[PATH_MAX];
	size_t n = 0;
	int r = MAKE_PATH(path, fmt);

	if (r == 0)
		r = read_path(m, ret, size, &n, path);
	if (r == 0 && n == size)
		r = -E2BIG;
	if (r < 0)
		n = 0;
	tidy(ret, n);
	return r;
}

int machine_link(const struct machine *m, char *ret, size_t size, const char *fmt, ...)
{
	char path[PATH_MAX], target[PATH_MAX];
	const char *name;
	ssize_t n;

	ret[0] = '\0';
	if (MAKE_PATH(path, fmt) < 0)
		return -ENAMETOOLONG;
	n = readlinkat(m->root, path, target, sizeof(target));
	if (n < 0)
		return -errno;
	if ((size_t)n == sizeof(target))
		return -E2BIG;
	target[n] = '\0';
	name = strrchr(target, '/');
	name = name ? name + 1 : target;
	if (strlen(name) >= size)
		return -E2BIG;
	strcpy(ret, name);
	return 0;
}

static int names_add(struct names *n, const char *name)
{
	void *v;

	if (strlen(name) >= MACHINE_NAME_MAX || n->n == MAX_NAMES)
		return -E2BIG;
	if ((n->n & (n->n - 1)) == 0) { /* full at each power of two */
		v = realloc(n->v, (n->n ? 2 * n->n : 1) * sizeof(*n->v));
		if (!v)
			return -ENOMEM;
		n->v = v;
	}
	strcpy(n->v[n->n++], name);
	return 0;
}

void names_fini(struct names *n)
{
	free(n->v);
	*n = (struct names){0};
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(a, b);
}

static int list_fd(int fd, struct names *ret)
{
	DIR *d = fdopendir(fd);
	struct dirent *e;
	int r = 0;

	if (!d) {
		r = -errno;
		close(fd);
		return r;
	}
	while (r == 0 && (e = readdir(d)))
		if (e->d_name[0] != '.')
			r = names_add(ret, e->d_name);
	closedir(d);
	return r;
}

int machine_list(const struct machine *m, struct names *ret, const char *fmt, ...)
{
	char path[PATH_MAX];
	int fd, r;

	*ret = (struct names){0};
	if (MAKE_PATH(path, fmt) < 0)
		return -ENAMETOOLONG;
	fd = openat(m->root, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = list_fd(fd, ret);
	if (r < 0)
		names_fini(ret);
	else if (ret->n)
		qsort(ret->v, ret->n, sizeof(*ret->v), compare_names);
	return r;
}

bool machine_has(const struct machine *m, const char *fmt, ...)
{
	char path[PATH_MAX];

	return MAKE_PATH(path, fmt) == 0 && faccessat(m->root, path, F_OK, 0) == 0;
}

int machine_stat(const struct machine *m, struct stat *ret, const char *fmt, ...)
{
	char path[PATH_MAX];

	if (MAKE_PATH(path, fmt) < 0)
		return -ENAMETOOLONG;
	return fstatat(m->root, path, ret, 0) < 0 ? -errno : 0;
}

bool machine_may_open(const struct machine *m, const char *path)
{
	return faccessat(m->root, path, R_OK | W_OK, AT_EACCESS) == 0;
}

bool machine_mentions(const struct machine *m, const char *word, const char *fmt, ...)
{
	char path[PATH_MAX], piece[4096];
	size_t length = strlen(word), kept = 0;
	AUTO_CLOSE int fd = MAKE_PATH(path, fmt) == 0 ? open_file(m, path) : -1;
	ssize_t n;

	if (length >= sizeof(piece))
		return false;
	while (fd >= 0 && (n = read(fd, piece + kept, sizeof(piece) - kept)) > 0) {
		size_t have = kept + (size_t)n;

		if (memmem(piece, have, word, length))
			return true;
		kept = have < length ? have : length - 1; /* a word may lie across two pieces */
		memmove(piece, piece + have - kept, kept);
	}
	return false;
}

static int store_file(const struct machine *m, const char *path, const char *text)
{
	AUTO_CLOSE int fd = openat(m->root, path, O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	size_t length = strlen(text);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = write(fd, text, length);
	if (n < 0)
		return -errno;
	return (size_t)n == length ? 0 : -EIO;
}

int machine_store(const struct machine *m, const char *text, const char *fmt, ...)
{
	char path[PATH_MAX];

	if (MAKE_PATH(path, fmt) < 0)
		return -ENAMETOOLONG;
	return m->store ? m->store(m->arg, m, path, text) : store_file(m, path, text);
}
