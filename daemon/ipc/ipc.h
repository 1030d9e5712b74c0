/* SPDX-License-Identifier: MIT */
/*
 * The data plane's socket: accepts connections, moves messages between clients and the service.
 *
 * A request is peeked, carried out, answered, and only then consumed. Replies are kept for repeats. Nothing that a
 * client sends is closed on the loop: fds, and the sockets whose queues may hold fds, go to the closer.
 */
#ifndef IPC_IPC_H
#define IPC_IPC_H

#include <stdint.h>
#include <sys/types.h>

struct event_base;
struct service;
struct store;
struct ipc;

/* Listens at `path` (replacing a socket that nobody listens at) with mode `mode`; or on listen_fd if that is not -1,
 * which is taken in any case. 0, -EADDRINUSE if somebody listens there, -errno. Connections outlive this process in the store
 * (NULL: they do not), and those that are there from before go on. */
int ipc_new(struct ipc **ret, struct event_base *base, struct service *s, const char *path, mode_t mode, int listen_fd,
	    struct store *store);
/* A connection that did not come to the socket: our end of a pair, of which somebody of this uid and pid has the other. Takes the
 * fd in any case. 0, -EDQUOT, -errno. */
int ipc_add(struct ipc *i, int fd, uid_t uid, pid_t pid);
/* Stops listening, ends all sessions (their clients go on closing in the service) and removes the socket file. */
struct ipc *ipc_free(struct ipc *i);

#endif
