/* SPDX-License-Identifier: MIT */
/*
 * Where thousands of fds outlive the daemon, although the service manager should not be given thousands. They are kept in
 * flight: each in a message with its key, unread, in the queue of a socket. Of such a socket, a shelf, which holds some
 * hundred fds, one end is in the fd store, and for as long as it is there the messages are.
 *
 * What was put is found by a successor at least once. What was dropped goes soon, but not at once: a queue gives back what
 * is in front only, so what is alive in front of it goes to the end first. Keys are never used again.
 */
#ifndef STORE_VAULT_H
#define STORE_VAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VAULT_KIND '+' /* of the names of shelves in the fd store */
#define VAULT_SOON 1 /* of vault_put() */

struct event_base;
struct fdstore;
struct vault;

/* The fd store stays the caller's; nothing is put there before the first fd. Without a store calls say -EOPNOTSUPP. */
int vault_new(struct vault **ret, struct event_base *base, struct fdstore *fs);
/* What is in the store stays there. Takes NULL, returns NULL. */
struct vault *vault_free(struct vault *v);

/*
 * Keeps a duplicate of the fd, which stays the caller's; `bytes` is what it keeps alive. 0: a successor will find it.
 * VAULT_SOON: it will, once a fdstore_barrier() that is asked for now is done. -EEXIST; -ENOSPC: the fd store is full;
 * -ETOOMANYREFS: more fds of this user are in flight than its RLIMIT_NOFILE; or -errno.
 */
int vault_put(struct vault *v, uint64_t key, uint64_t bytes, int fd);
/* -ENOENT: there is no such key. */
int vault_drop(struct vault *v, uint64_t key);
/* A new fd of what was put under that key, the caller's; -ENOENT, -EMFILE. */
int vault_get(struct vault *v, uint64_t key);

/*
 * A daemon begins with these: first every shelf that fdstore_take() told of, whose fd is taken in any case; 0, or
 * -EBADMSG: it is none, and is dropped from the store, or -errno. Then, when it knows what it has, and in a first life, too:
 * all other keys are forgotten. Until then the fds are at hand for vault_get().
 */
int vault_adopt(struct vault *v, const char *name, int fd);
void vault_each(const struct vault *v, void (*each)(void *arg, uint64_t key), void *arg); /* one may come twice */
void vault_forget_others(struct vault *v, bool (*known)(void *arg, uint64_t key), void *arg);

size_t vault_count(const struct vault *v); /* fds that were put and not dropped */
uint64_t vault_dead_bytes(const struct vault *v); /* of what was dropped and is still held */

#endif
