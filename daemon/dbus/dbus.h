/* SPDX-License-Identifier: MIT */
/*
 * The control plane (docs/dbus.md): what there is, as objects on a D-Bus, and calls of programs that speak nothing else.
 * Everything goes to the same service as the socket's requests. The bus is a guest in the one event loop: nothing here waits
 * for it, and without it the daemon runs on.
 */
#ifndef DBUS_DBUS_H
#define DBUS_DBUS_H

#include <sys/types.h>

struct event_base;
struct service;
struct dbus;

#define DBUS_ERROR_MAX 1024u

/* What lies beside the service, for calls that need it. */
struct dbus_host {
	/* Takes the fd, our end of a pair, as if a process of this uid and pid had connected to the socket. 0, -errno. */
	int (*connect)(void *arg, int fd, uid_t uid, pid_t pid);
	/* Reads the configuration again. 0, or -errno and a sentence. */
	int (*reload)(void *arg, char error[DBUS_ERROR_MAX]);
	void *arg;
};

/* where: "system", "session", an address (wire.h), or "none". Begins to connect, and does so again whenever the bus is gone.
 * -EINVAL: it is none of these. */
int dbus_new(struct dbus **ret, struct event_base *base, struct service *s, const char *where,
	     const struct dbus_host *host);
/* The contexts of bus names end. Takes NULL, returns NULL. */
struct dbus *dbus_free(struct dbus *b);

/* Who may see and close all, beside root: members of this group, who are looked up now. "": nobody. May wait for the
 * machine's database of users, so only at the start and when somebody asks for it. -ENOENT: there is no such group, and
 * nothing has changed. */
int dbus_set_admins(struct dbus *b, const char *group);

#endif
