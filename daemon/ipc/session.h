/* SPDX-License-Identifier: MIT */
/* One connection of a client: framing, serials, output. It knows bytes and no verbs. */
#ifndef IPC_SESSION_H
#define IPC_SESSION_H

#include <sys/queue.h>
#include <sys/types.h>

struct event_base;
struct service;
struct session;
struct service_client;

LIST_HEAD(sessions, session);

struct store;

/* What all sessions have in common; lives until the last one has ended. */
struct session_host {
	struct sessions list;
	struct event_base *base;
	struct service *service;
	struct store *store; /* NULL: no connection outlives this process */
};

/* Takes the fd if it returns 0; the session is on the list until it ends by itself or by session_free(). */
int session_new(struct session_host *host, int fd, uid_t uid, pid_t pid);
/* Goes on with a connection of a process that is gone; the fd is taken in any case. */
int session_adopt(struct session_host *host, int fd, struct service_client *client);
/* ... with all of them that there are. Others that belong to nobody begin anew, or end. */
void sessions_adopt(struct session_host *host);
struct session *session_free(struct session *s); /* takes NULL, returns NULL */

#endif
