/* SPDX-License-Identifier: MIT */
/* See driver_new.h. */
#include "driver_new.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <pasid/driver.h>

#include "base/util.h"

#define PLACEHOLDER "@NAME@"
#define PATH_SIZE (ENGINE_NAME_MAX + sizeof(".c"))

/* The files of skeleton/, made by embed.py. In names and texts PLACEHOLDER stands for the driver's name. */
static const struct {
	const char *name, *text;
} skeleton[] = {
#include "skeleton.inc"
};

/* It becomes part of C names, and what clients see. */
static bool is_name(const char *s)
{
	size_t len = strlen(s);

	return len > 0 && len <= ENGINE_NAME_MAX && s[0] >= 'a' && s[0] <= 'z' &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == len;
}

static void fill_in(FILE *f, const char *text, const char *name)
{
	const char *at;

	while ((at = strstr(text, PLACEHOLDER))) {
		fprintf(f, "%.*s%s", (int)(at - text), text, name);
		text = at + strlen(PLACEHOLDER);
	}
	fputs(text, f);
}

static void file_name(char path[PATH_SIZE], size_t i, const char *name)
{
	bool own = !strncmp(skeleton[i].name, PLACEHOLDER, strlen(PLACEHOLDER));

	snprintf(path, PATH_SIZE, "%s%s", own ? name : "", skeleton[i].name + (own ? strlen(PLACEHOLDER) : 0));
}

static int write_file(int dir, size_t i, const char *name)
{
	char path[PATH_SIZE];
	FILE *f;
	int fd;
	bool failed;

	file_name(path, i, name);
	fd = openat(dir, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0)
		return -errno;
	f = fdopen(fd, "w");
	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	fill_in(f, skeleton[i].text, name);
	failed = fflush(f) != 0 || ferror(f);
	return fclose(f) != 0 || failed ? -EIO : 0;
}

static int write_files(const char *directory, const char *name)
{
	AUTO_CLOSE int dir = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	char path[PATH_SIZE];
	int r = dir < 0 ? -errno : 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(skeleton); i++)
		r = write_file(dir, i, name);
	for (size_t i = 0; r < 0 && dir >= 0 && i < ARRAY_SIZE(skeleton); i++) {
		file_name(path, i, name);
		unlinkat(dir, path, 0);
	}
	return r;
}

int driver_new(const char *name, const char *directory, FILE *out, FILE *err)
{
	const char *where = directory ? directory : name;
	int r;

	if (!is_name(name)) {
		fprintf(err,
			"pasidctl: \"%s\" is no name for a driver; allowed are 1 to %u small letters, digits and '_', "
			"a letter first\n",
			name, ENGINE_NAME_MAX);
		return 2;
	}
	if (mkdir(where, 0777) < 0) {
		r = errno;
		fprintf(err, "pasidctl: %s cannot be made: %s%s\n", where, strerror(r),
			r == EEXIST ? "; name another directory, or move it away" : "");
		return 1;
	}
	r = write_files(where, name);
	if (r < 0) {
		rmdir(where);
		fprintf(err, "pasidctl: files in %s cannot be written: %s; nothing is left of it\n", where,
			strerror(-r));
		return 1;
	}
	fprintf(out,
		"made %s; what is left to do is marked FILL IN in %s/%s.c, how to build and load it says "
		"%s/README.md\n",
		where, where, name, where);
	return 0;
}
