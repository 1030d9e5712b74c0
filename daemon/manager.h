/* SPDX-License-Identifier: MIT */
/*
 * What a service manager hands over at the start, and what it hears of us: sd_listen_fds(3), sd_notify(3). Without one there
 * is nothing to take, and nobody listens.
 */
#ifndef DAEMON_MANAGER_H
#define DAEMON_MANAGER_H

#include <stdint.h>

struct event;
struct event_base;
struct service_config;

struct manager_given {
	const struct service_config *config;
	int listener; /* the socket that clients connect to; -1: there is none */
};

/* One of the fds that were handed over, which is taken: device files go to their transports. */
void manager_take(void *given, const char *name, int fd);
/* How many fds it keeps for us while we are dead: systemd says so since version 254, the unit file before that ($FDSTORE). */
uint32_t manager_fdstore_max(void);
/* Instead of serving anybody. */
void manager_says(const char *status);
/* From now on it hears that the loop turns, for as long as it does. *ret: NULL if it does not ask for that. 0, -ENOMEM. */
int manager_watch(struct event **ret, struct event_base *base);

void manager_ready(void);
/* We could not begin. It starts us again at once, whatever the reason is: takes the pause that it does not. */
void manager_failed(void);
/* Between these two we are reading the configuration again; error: what came of it, NULL if nothing is wrong. */
void manager_reloading(void);
void manager_reloaded(const char *error);
void manager_stopping(void);

#endif
