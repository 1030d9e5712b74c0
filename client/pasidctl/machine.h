/* SPDX-License-Identifier: MIT */
/*
 * The machine that is looked at: files below a directory that stands for "/". All that they say is taken for hostile:
 * lengths are bounded, links that go round in circles and files that are none are errors. Paths have no slash in front.
 * The one place that writes to sysfs is machine_store(), which a test takes over.
 */
#ifndef PASIDCTL_MACHINE_H
#define PASIDCTL_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#define MACHINE_NAME_MAX 64u /* of drivers, devices, groups, with the NUL: longer ones are errors */

struct machine {
	int root; /* an fd of that directory */
	/* NULL: into the file. */
	int (*store)(void *arg, const struct machine *m, const char *path, const char *text);
	void *arg;
};

struct names {
	char (*v)[MACHINE_NAME_MAX];
	size_t n;
};

int machine_open(struct machine *m, const char *root);
void machine_close(struct machine *m);

/* The path of a file, for all that take one: 0 or -ENAMETOOLONG. */
#define MACHINE_PATH(n) __attribute__((format(printf, n, (n) + 1)))

/* The text of a file without white space at its end; in between only spaces and tabs are left of what is not printable.
 * 0, -E2BIG (it does not fit), -errno. On failure the text is "". */
int machine_read(const struct machine *m, char *ret, size_t size, const char *fmt, ...) MACHINE_PATH(4);

/* Up to size bytes, and how many there were. */
int machine_bytes(const struct machine *m, void *ret, size_t size, size_t *n, const char *fmt, ...) MACHINE_PATH(5);

/* The last component of what a symbolic link points to. 0, -ENOENT, -E2BIG, -errno. On failure it is "". */
int machine_link(const struct machine *m, char *ret, size_t size, const char *fmt, ...) MACHINE_PATH(4);

/* The names in a directory, sorted, without those that begin with a dot. On failure there are none. */
int machine_list(const struct machine *m, struct names *ret, const char *fmt, ...) MACHINE_PATH(3);
void names_fini(struct names *n);
#define AUTO_NAMES __attribute__((cleanup(names_fini)))

bool machine_has(const struct machine *m, const char *fmt, ...) MACHINE_PATH(2);
int machine_stat(const struct machine *m, struct stat *ret, const char *fmt, ...) MACHINE_PATH(3);
bool machine_may_open(const struct machine *m, const char *path);

/* Does any line of this file hold the word? For files of any length. */
bool machine_mentions(const struct machine *m, const char *word, const char *fmt, ...) MACHINE_PATH(3);

/* Writes into a file that is there, in one write. */
int machine_store(const struct machine *m, const char *text, const char *fmt, ...) MACHINE_PATH(3);

#endif
