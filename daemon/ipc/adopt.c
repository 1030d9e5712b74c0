/* SPDX-License-Identifier: MIT */
/* Connections that were there before this process, as the store has kept them. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/closer.h"
#include "ipc/session.h"
#include "service/service.h"
#include "store/store.h"

/* One that was accepted and not spoken of yet begins like any other. The other end of a pair that a process like this one
 * made says that it is its own, and is nobody's: whoever asked for the pair never got his end. */
static void begin_anew(struct session_host *host, int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.uid == getuid() ||
	    session_new(host, fd, cred.uid, cred.pid) < 0)
		closer_close(fd, (uid_t)-1);
}

void sessions_adopt(struct session_host *host)
{
	struct service_client *c, *next = service_adopted(host->service, NULL);
	char name[STORE_NAME_MAX];
	int fd;

	while ((c = next)) {
		next = service_adopted(host->service, c);
		fd = store_take_client(host->store, service_client_name(c));
		if (fd >= 0)
			session_adopt(host, fd, c);
		else if (!strchr(service_client_name(c), ':')) /* not a bus name */
			service_client_close(c);
	}
	while ((fd = store_next_client(host->store, name)) >= 0) {
		fdstore_drop(host->store->fds, name);
		begin_anew(host, fd);
	}
}
