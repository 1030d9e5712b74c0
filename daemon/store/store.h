/* SPDX-License-Identifier: MIT */
/*
 * What outlives this process, in one place: the journal; fds of devices and of clients' connections, each in the service
 * manager's fd store; fds of memory, in the vault. A store of NULL is none: nothing is kept, and everything that may be asked
 * of it succeeds.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/fdstore.h"
#include "store/journal.h"
#include "store/vault.h"

#define STORE_NAME_MAX (FDSTORE_NAME + 1)
/* Successors that may fail at what they find before it is given up: by crashing, or for whatever reason. Being killed from
 * outside is no fault of the journal's, but memory that runs out looks like that. */
#define STORE_CRASHES_MAX 3u
#define STORE_TRIES_MAX 30u

struct event_base;

struct store {
	struct fdstore *fds;
	struct vault *vault;
	struct journal *journal; /* NULL: given up */
	struct store_found *found; /* connections and devices that nobody has asked for yet */
	size_t n_found, max_found;
	uint64_t last_key;
	struct store_tries *tries; /* since the journal was last believed */
	int tries_fd, journal_fd;
};

/*
 * Takes what the service manager hands over. Files that are not the store's go to other(), which takes them. max: fds that
 * it may have there. 0 and *ret; NULL if there is no fd store. version is that of what is written into the journal.
 * -EPROTONOSUPPORT: a newer daemon wrote the journal; -EBADMSG: it cannot be believed. Then *ret is there, too, and `why` says
 * what is wrong (JOURNAL_WHY_MAX bytes).
 */
int store_open(struct store **ret, struct event_base *base, uint32_t max, uint32_t version,
	       void (*other)(void *arg, const char *name, int fd), void *arg, char *why);
/* What is kept stays kept. Takes NULL, returns NULL. */
struct store *store_free(struct store *s);

/* Everything was taken over, or nothing was there: what is left over is dropped. */
void store_believed(struct store *s);
/* Everything is dropped, and there is a new journal. 0, or -errno: then there is none. */
int store_begin_anew(struct store *s, uint32_t version);
/* The journal cannot be continued: a successor will find that out. */
void store_give_up(struct store *s);

/* ---- connections ---- */
/* 0 and its name; -ENOSPC: the store is full. It is certain to be kept once a fdstore_barrier() is done. */
int store_put_client(struct store *s, int fd, char name[STORE_NAME_MAX]);
int store_take_client(struct store *s, const char *name); /* the fd, now the caller's; -ENOENT */
void store_drop_client(struct store *s, const char *name);
/* One of those that nobody has asked for; its fd, now the caller's, or -ENOENT if there is none. */
int store_next_client(struct store *s, char name[STORE_NAME_MAX]);

/* ---- devices ---- */
/* 0 and their names, or -errno and none is kept. */
int store_put_device(struct store *s, const int *fds, size_t n, char names[][STORE_NAME_MAX]);
/* The fds, now the caller's; -ENOENT: one of them is not there. */
int store_take_device(struct store *s, char names[][STORE_NAME_MAX], size_t n, int *fds);
void store_drop_device(struct store *s, char names[][STORE_NAME_MAX], size_t n);

/* ---- memory, by the keys of the vault ---- */
/* The first of n keys that have never been used, of a kind (1 to 15). */
uint64_t store_keys(struct store *s, unsigned int kind, unsigned int n);
int store_keep(struct store *s, uint64_t key, uint64_t bytes, int fd);
void store_drop(struct store *s, uint64_t key);
int store_get(struct store *s, uint64_t key); /* a new fd, or -ENOENT */
int store_get_pair(struct store *s, uint64_t key, int *fd, int *ro_fd); /* of key and key + 1 */

#endif
