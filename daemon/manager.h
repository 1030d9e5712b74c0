/* SPDX-License-Identifier: MIT */
/*
 * What a service manager hands over at the start, and what it hears of us: sd_listen_fds(3), sd_notify(3). Without one there
 * is nothing to take, and nobody listens.
 */
#ifndef DAEMON_MANAGER_H
#define DAEMON_MANAGER_H

struct event;
struct event_base;
struct service_config;

/* Device files go to their transports. *listener: the socket that clients connect to, the caller's; -1: there is none. */
void manager_take_fds(const struct service_config *c, int *listener);
/* From now on it hears that the loop turns, for as long as it does. *ret: NULL if it does not ask for that. 0, -ENOMEM. */
int manager_watch(struct event **ret, struct event_base *base);

void manager_ready(void);
/* Between these two we are reading the configuration again; error: what came of it, NULL if nothing is wrong. */
void manager_reloading(void);
void manager_reloaded(const char *error);
void manager_stopping(void);

#endif
