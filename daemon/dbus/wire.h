/* SPDX-License-Identifier: MIT */
/*
 * The socket to the bus, and a pair of ours between it and sd-bus, which closes on the spot whatever fds come. Here they are
 * looked at on the way: close(2) of a file may wait for whoever serves it (base/closer.h), so that only memfds pass, which is
 * all that a call takes. In the place of anything else sd-bus is given an fd that is nothing.
 */
#ifndef DBUS_WIRE_H
#define DBUS_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

struct event_base;
struct wire;

/* Where "system", "session" or an address "unix:path=..." or "unix:abstract=..." is. 0, -EINVAL, -ENAMETOOLONG; -ENOENT: this
 * process has no session. */
int wire_address(const char *where, struct sockaddr_un *addr, socklen_t *len);

/* Does not wait. *fd is the end for sd-bus, and the caller's; it reports the end of the bus like a socket to it. 0, -errno. */
int wire_open(struct wire **ret, struct event_base *base, const char *where, int *fd);
/* Is there something that the bus has not taken yet? And for how long has it taken nothing, in ns, as far as can be told from one
 * such question to the next. */
bool wire_behind(struct wire *w, uint64_t *still_ns);
struct wire *wire_close(struct wire *w); /* takes NULL, returns NULL */

#endif
