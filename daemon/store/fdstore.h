/* SPDX-License-Identifier: MIT */
/*
 * The service manager's fd store: fds that it keeps while we are dead, and hands to whoever comes next. Spoken to over
 * $NOTIFY_SOCKET (sd_notify(3)), without ever waiting: what does not go out at once is queued, in order.
 *
 * The store is no database. It compares each new fd with all that it has, drops what is beyond its limit without a word,
 * and does not answer. So we count; what has to be certain is asked by a barrier: once that is done, the manager has
 * handled all that was said before.
 *
 * A name stands for one fd: a sign for its kind, and three letters or digits. The unit opens files under names, too, such as
 * devices' names; a kind whose sign is no letter, digit or "_" is never taken for one. One file cannot be stored twice.
 */
#ifndef STORE_FDSTORE_H
#define STORE_FDSTORE_H

#include <stdbool.h>
#include <stdint.h>

#define FDSTORE_NAME 4u /* characters: any but ":" and blanks, then letters or digits */

struct event_base;
struct fdstore;

/*
 * max: the most fds to keep there; it is what the unit says (FileDescriptorStoreMax=), or less. Where the manager tells
 * a smaller one ($FDSTORE, systemd 254), that one counts. Without $NOTIFY_SOCKET there is no store, and the calls below
 * say -EOPNOTSUPP. 0, -EINVAL for an address that is none, or -errno.
 */
int fdstore_new(struct fdstore **ret, struct event_base *base, uint32_t max);
/* What is queued is forgotten, waiters hear nothing. Takes NULL, returns NULL. */
struct fdstore *fdstore_free(struct fdstore *fs);

bool fdstore_there(const struct fdstore *fs);
uint32_t fdstore_count(const struct fdstore *fs);
uint32_t fdstore_left(const struct fdstore *fs); /* how many more there can be */

/*
 * What the manager handed over: each(name, fd) for all of it, in its order. Those that have a name of one of these kinds
 * (their signs) are `stored`, and count as such; of a name that is there twice only the first one is handed over, and
 * dropping it drops both. Others are sockets and files that the unit opens; their names may be anything. All are
 * close-on-exec, and each()'s. To be called once, before anything is stored. Returns how many there were, or -errno.
 */
int fdstore_take(struct fdstore *fs, const char *kinds, void (*each)(void *arg, const char *name, int fd, bool stored),
		 void *arg);

/* The lowest name of this kind that is free. -ENOSPC: all are in use; -EINVAL: that is no sign; -ENOMEM. */
int fdstore_name(struct fdstore *fs, char kind, char name[FDSTORE_NAME + 1]);

/*
 * Stores an fd, which stays the caller's and may be closed at once. 0: it is on its way. -ENOSPC: the store is full;
 * -EEXIST: that name is in use; -EINVAL: it is none; or -errno.
 */
int fdstore_put(struct fdstore *fs, const char *name, int fd);
/* The manager closes its fd. The name must be in use (-ENOENT); from now on it is free. */
int fdstore_drop(struct fdstore *fs, const char *name);
/* Anything else for the manager: "READY=1", in order with the rest. -EAGAIN: not now. */
int fdstore_notify(struct fdstore *fs, const char *text);

/*
 * done(arg, 0) is called from the loop once the manager has handled all that was said before; done(arg, -ETIMEDOUT) if it
 * has not within some seconds, and -errno if it cannot be asked. Many at once cost as much as one.
 */
int fdstore_barrier(struct fdstore *fs, void (*done)(void *arg, int err), void *arg);
/* done() is not called any more for this arg. */
void fdstore_forget(struct fdstore *fs, const void *arg);

#endif
