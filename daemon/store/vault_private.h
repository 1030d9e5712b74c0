/* SPDX-License-Identifier: MIT */
/* What the files of the vault share. vault_shelf.c: shelves, and what is in them. vault_clean.c: what is dead goes. vault.c: the calls. */
#ifndef STORE_VAULT_PRIVATE_H
#define STORE_VAULT_PRIVATE_H

#include <event2/event.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "base/log.h"
#include "store/fdstore.h"
#include "store/vault.h"

#define SHELF_MAX 240u /* messages; what a socket's buffer of the usual size takes is a little more */

struct label { /* of a message */
	uint64_t key;
	uint64_t bytes;
};

struct item {
	TAILQ_ENTRY(item) link; /* in its shelf's items */
	SLIST_ENTRY(item) chain; /* in a bucket, if it is alive */
	struct shelf *shelf;
	struct label label;
	uint32_t size; /* of the message */
	bool alive;
	int fd; /* at hand since adoption; -1 */
};

struct shelf {
	TAILQ_ENTRY(shelf) link; /* in vault.shelves */
	struct vault *vault;
	char name[FDSTORE_NAME + 1];
	int fd; /* whose queue it is */
	int sender; /* the other end; -1: a predecessor had it */
	bool stored; /* for certain */
	TAILQ_HEAD(, item) items;
	uint32_t n, dead;
	uint32_t most; /* messages that go into it */
	uint64_t dead_bytes;
	uint64_t dirty_ns; /* since when there is something dead */
	uint32_t left; /* messages of the cleaning that was begun */
	bool broken; /* something else is in its queue than what we know: left alone */
};

SLIST_HEAD(bucket, item);

struct vault {
	struct event_base *base;
	struct fdstore *fs;
	struct event *timer;
	TAILQ_HEAD(, shelf) shelves;
	struct shelf *open; /* where the last one went; NULL */
	struct shelf *cleaned; /* now; NULL */
	struct bucket *buckets;
	size_t n_buckets, count;
	uint64_t dead_bytes;
	bool settled; /* others were forgotten, or there were none */
	struct log_limit limit;
};

/* ---- vault_shelf.c ---- */

struct bucket *vault_bucket(const struct vault *v, uint64_t key);
struct item *vault_find(const struct vault *v, uint64_t key); /* alive; NULL */
int vault_grow(struct vault *v); /* the table of keys; -ENOMEM */

int shelf_new(struct vault *v, struct shelf **ret); /* its way into the fd store begins */
struct shelf *shelf_alloc(struct vault *v, int fd, int sender); /* takes the fds; NULL: no memory */
/* Forgets it; what is in the store stays there. */
void shelf_free(struct shelf *s);
/* Leaves the store. It is empty, or what it holds is of no use. */
void shelf_retire(struct shelf *s);
/* Its queue is not what we know. What it holds can still be adopted by a successor. -EBADMSG. */
int shelf_breaks(struct shelf *s, const char *what, int error);

void shelf_add(struct shelf *s, struct item *i); /* at the end */
void shelf_remove(struct item *i);
void item_dies(struct item *i); /* it stays in the queue */
void item_free(struct item *i); /* it has left the queue */

/* Into the queue, at any price, or unless the shelf turns out to be full (-EAGAIN): its buffer may be smaller than usual. */
int shelf_send_item(const struct shelf *s, struct label label, int fd);
int shelf_send(struct shelf *s, struct label label, int fd);
/*
 * The next message of the queue: its size, or -errno. *fd (if asked for) is what came with it, or -1; without it the
 * kernel keeps, or with MSG_PEEK unset closes, what the message carries.
 */
ssize_t shelf_receive(const struct shelf *s, int flags, struct label *label, int *fd);
/* From where in the queue MSG_PEEK looks, in bytes; -1: always at its head. */
int shelf_peek_from(const struct shelf *s, int offset);

uint32_t vault_room(const struct vault *v); /* messages, on shelves that can be sent to */
/* One with room, rather one that is stored for certain. NULL: there is none. */
struct shelf *vault_find_room(const struct vault *v);

/* ---- vault_clean.c ---- */

void vault_clean(evutil_socket_t fd, short what, void *arg); /* of vault.timer */
void vault_clean_now(struct vault *v); /* from the loop */
void vault_clean_soon(struct vault *v); /* something has died */

#endif
