/* SPDX-License-Identifier: MIT */
/* One connection of a client: framing, serials, output. It knows bytes and no verbs. */
#ifndef IPC_SESSION_H
#define IPC_SESSION_H

#include <sys/queue.h>
#include <sys/types.h>

struct event_base;
struct service;
struct session;

LIST_HEAD(sessions, session);

/* Takes the fd if it returns 0; the session is on the list until it ends by itself or by session_free(). */
int session_new(struct sessions *list, struct event_base *base, struct service *s, int fd, uid_t uid, pid_t pid);
struct session *session_free(struct session *s); /* takes NULL, returns NULL */

#endif
