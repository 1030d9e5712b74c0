/* SPDX-License-Identifier: MIT */
/*
 * A machine of the test's own: a directory that a recorded tree (tests/unit/machines, see tests/vm/record_sysfs.py) is
 * laid out in, and that the test changes as it likes. Device nodes are plain files there, so that no root is needed.
 */
#ifndef TESTS_MACHINE_TREE_H
#define TESTS_MACHINE_TREE_H

#include <errno.h>
#include <ftw.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

static char tree_top[] = "/tmp/pasidctl-XXXXXX";

static inline const char *tree_at(const char *path)
{
	static char full[PATH_MAX + 32];

	snprintf(full, sizeof(full), "%s/%s", tree_top, path);
	return full;
}

/* The directories on the way to a file. */
static inline void tree_parents(const char *path)
{
	char copy[PATH_MAX];

	snprintf(copy, sizeof(copy), "%s", path);
	for (char *slash = strchr(copy, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(tree_at(copy), 0755) < 0)
			assert_int_equal(errno, EEXIST);
		*slash = '/';
	}
}

static inline int tree_unlink(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline void tree_remove(const char *path)
{
	nftw(tree_at(path), tree_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void tree_bytes(const char *path, const void *bytes, size_t n)
{
	FILE *f;

	tree_parents(path);
	f = fopen(tree_at(path), "we");
	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

static inline void tree_file(const char *path, const char *text)
{
	tree_bytes(path, text, strlen(text));
}

static inline void tree_link(const char *path, const char *target)
{
	tree_parents(path);
	unlink(tree_at(path));
	assert_int_equal(symlink(target, tree_at(path)), 0);
}

static inline void tree_directory(const char *path)
{
	tree_parents(path);
	if (mkdir(tree_at(path), 0755) < 0)
		assert_int_equal(errno, EEXIST);
}

static inline void tree_hex(const char *path, const char *hex)
{
	unsigned char bytes[4096];
	size_t n = strlen(hex) / 2;

	assert_true(n <= sizeof(bytes));
	for (size_t i = 0; i < n; i++) {
		unsigned int byte;

		assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
		bytes[i] = (unsigned char)byte;
	}
	tree_bytes(path, bytes, n);
}

static inline void tree_node(const char *path, const char *mode)
{
	tree_file(path, "");
	assert_int_equal(chmod(tree_at(path), (mode_t)strtoul(mode, NULL, 8)), 0);
}

static inline void tree_section(struct json_object *machine, const char *name, void (*make)(const char *, const char *))
{
	struct json_object *section = json_object_object_get(machine, name);

	assert_non_null(section);
	json_object_object_foreach (section, path, value)
		make(path, json_object_get_string(value));
}

static inline void tree_load(const char *name)
{
	const char *from = getenv("PASID_MACHINES");
	struct json_object *machine, *directories;
	char path[PATH_MAX];

	assert_non_null(from);
	snprintf(path, sizeof(path), "%s/%s.json", from, name);
	machine = json_object_from_file(path);
	assert_non_null(machine);
	directories = json_object_object_get(machine, "directories");
	for (size_t i = 0; i < json_object_array_length(directories); i++)
		tree_directory(json_object_get_string(json_object_array_get_idx(directories, i)));
	tree_section(machine, "files", tree_file);
	tree_section(machine, "bytes", tree_hex);
	tree_section(machine, "links", tree_link);
	tree_section(machine, "nodes", tree_node);
	json_object_put(machine);
}

static inline void tree_open(struct machine *m, const char *name)
{
	snprintf(tree_top, sizeof(tree_top), "/tmp/pasidctl-XXXXXX");
	assert_non_null(mkdtemp(tree_top));
	if (name)
		tree_load(name);
	assert_int_equal(machine_open(m, tree_top), 0);
}

static inline void tree_close(struct machine *m)
{
	machine_close(m);
	nftw(tree_top, tree_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

/* What a function printed. */
struct said {
	char *text;
	size_t n;
	FILE *f;
};

static inline void said_open(struct said *s)
{
	s->f = open_memstream(&s->text, &s->n);
	assert_non_null(s->f);
}

static inline const char *said_text(struct said *s)
{
	fflush(s->f);
	return s->text;
}

static inline void said_close(struct said *s)
{
	fclose(s->f);
	free(s->text);
}

#endif
