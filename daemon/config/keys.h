/* SPDX-License-Identifier: MIT */
/*
 * JSON by tables of keys: one table a level, of each key what it may be and where it goes. Whatever is wrong is said with the
 * place in the file, what was found there and what is allowed. What a table means is config.c's affair.
 *
 * Whoever refuses leaves the place as it is and returns -errno.
 */
#ifndef CONFIG_KEYS_H
#define CONFIG_KEYS_H

#include <stddef.h>
#include <stdint.h>

struct json_object;

struct place { /* where in the file we are, for errors */
	const char *file;
	char *error;
	char path[200];
};

struct key {
	const char *name;
	int (*set)(struct place *p, struct json_object *v, void *to, const struct key *key);
	size_t offset;
	uint64_t min, max; /* numbers; lengths of strings */
	const char *allowed; /* words for the error; numbers say their bounds themselves */
};

/* The places below: what place_enter() returns is what place_leave() goes back to. */
size_t place_enter(struct place *p, const char *name);
size_t place_enter_index(struct place *p, size_t i);
void place_leave(struct place *p, size_t len);
/* -EINVAL: what was found is not what is allowed. */
__attribute__((format(printf, 3, 4))) int place_wrong(struct place *p, struct json_object *found, const char *fmt, ...);

/* One JSON value of `len` bytes, behind which there is a NUL. *ret is the caller's; NULL is JSON's null. */
int keys_read(const char *text, size_t len, struct place *p, struct json_object **ret);
/* An object, whose keys are all in the table, which ends with a key without a name. */
int keys_take(struct place *p, struct json_object *o, const struct key *keys, void *to);

/* For struct key: numbers within min and max, strings of such a length, which take the place of the one before. */
int key_u64(struct place *p, struct json_object *v, void *to, const struct key *key);
int key_u32(struct place *p, struct json_object *v, void *to, const struct key *key);
int key_string(struct place *p, struct json_object *v, void *to, const struct key *key);
/* The text of a string without NULs in it; "" for anything else. */
const char *key_text(struct json_object *v);

#endif
