/* SPDX-License-Identifier: MIT */
/* The listening socket: who a client is, is fixed here, from the credentials of the accepted connection. */
#include "ipc/ipc.h"

#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"
#include "ipc/session.h"

#define BACKLOG 128
#define ACCEPTS_A_TURN 16
#define LISTEN_TRIES 20
#define LISTEN_PAUSE_US 50000
#define DRAIN_A_TURN 1024 /* messages; a socket holds 555 with the kernel's default for net.core.wmem_max */
#define OUT_OF_FDS_MS 100 /* how long to leave connections waiting when the daemon has no fds left */

struct ipc {
	struct session_host host;
	int fd;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* ours to remove; "": not */
	struct event *accept, *again;
	int off; /* the connection that is being turned off, of off_uid; -1: none. Nobody is accepted before it is gone. */
	uid_t off_uid;
	uint32_t budget; /* messages that may still be thrown away in this turn */
	struct log_limit limit;
};

enum drained { DRAINED_EMPTY, DRAINED_IN_PART, DRAINED_TO_FDS /* or it is not known what is in it */ };

/* Throws away what is in a socket that nobody sends to any more, but no message with fds. With SO_PASSCRED every message
 * brings control data, be it empty, and the end brings none; fds find no room behind the credentials. */
static enum drained drain(int fd, uint32_t *budget)
{
	union {
		char buf[CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;

	for (; *budget; --*budget) {
		struct msghdr msg = {.msg_control = control.buf, .msg_controllen = sizeof(control.buf)};

		if (recvmsg(fd, &msg, MSG_PEEK | MSG_DONTWAIT) < 0 || (msg.msg_flags & MSG_CTRUNC))
			return DRAINED_TO_FDS;
		if (!msg.msg_controllen)
			return DRAINED_EMPTY;
		if (recv(fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) < 0)
			return DRAINED_TO_FDS;
	}
	return DRAINED_IN_PART;
}

/* The closer is busy with this uid's files for good. A socket that holds none need not wait among them; but it is not
 * closed here, since before Linux 6.10 whoever closes a Unix socket may have to close what others left in flight. One
 * that holds some waits; of these a uid has only as many as the kernel lets it have fds in flight. */
static void turn_off(struct ipc *i)
{
	switch (drain(i->off, &i->budget)) {
	case DRAINED_IN_PART:
		return;
	case DRAINED_EMPTY:
		closer_close(i->off, CLOSER_OURS);
		break;
	case DRAINED_TO_FDS:
		closer_close(i->off, i->off_uid);
		break;
	}
	i->off = -1;
}

static void turn_away(struct ipc *i, int fd, uid_t uid)
{
	static const int on = 1;

	shutdown(fd, SHUT_RDWR);
	if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
		closer_close(fd, uid);
		return;
	}
	i->off = fd;
	i->off_uid = uid;
	turn_off(i);
}

static void greet(struct ipc *i, int fd)
{
	struct log_about about = {0};
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int r;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
		closer_close(fd, (uid_t)-1);
		return;
	}
	about.pid = cred.pid;
	about.uid = cred.uid;
	if (closer_exhausted(cred.uid)) {
		log_about(&about, &i->limit, LOG_WARN,
			  "connection of pid %d, uid %u refused: too many fds that it sent cannot be closed", cred.pid,
			  cred.uid);
		turn_away(i, fd, cred.uid);
		return;
	}
	r = session_new(&i->host, fd, cred.uid, cred.pid);
	if (r == 0)
		return;
	shutdown(fd, SHUT_RDWR); /* it need not wait until the closer gets there */
	log_about(&about, &i->limit, LOG_WARN, "connection of pid %d, uid %u refused: %s", cred.pid, cred.uid,
		  r == -EDQUOT ? "it has as many as it may have" : strerror(-r));
	closer_close(fd, cred.uid);
}

int ipc_add(struct ipc *i, int fd, uid_t uid, pid_t pid)
{
	int r = closer_exhausted(uid) ? -EDQUOT : session_new(&i->host, fd, uid, pid);

	if (r < 0)
		closer_close(fd, uid);
	return r;
}

static void accept_later(struct ipc *i, uint32_t ms)
{
	struct timeval wait = {0, (suseconds_t)ms * 1000};

	event_del(i->accept);
	evtimer_add(i->again, &wait);
}

static void on_accept(evutil_socket_t lfd, short what, void *arg)
{
	struct ipc *i = arg;

	i->budget = DRAIN_A_TURN;
	for (int n = 0; n < ACCEPTS_A_TURN; n++) {
		int fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			greet(i, fd);
			if (i->off < 0)
				continue;
			accept_later(i, 0);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) {
			log_limited(&i->limit, LOG_ERROR,
				    "cannot accept a connection: %s; raise LimitNOFILE=, or lower "
				    "the limits on connections",
				    strerror(errno));
			accept_later(i, OUT_OF_FDS_MS);
		}
		return;
	}
}

static void on_again(evutil_socket_t fd, short what, void *arg)
{
	struct ipc *i = arg;

	i->budget = DRAIN_A_TURN;
	if (i->off >= 0)
		turn_off(i);
	if (i->off >= 0)
		accept_later(i, 0);
	else
		event_add(i->accept, NULL);
}

/* Does somebody listen there? A socket file of a process that is gone refuses, and may be replaced. */
static int check_stale(const struct sockaddr_un *addr)
{
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (lstat(addr->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN)
		return -EADDRINUSE;
	if (errno != ECONNREFUSED && errno != EPROTOTYPE)
		return -errno;
	if (errno == EPROTOTYPE)
		return -EADDRINUSE;
	return unlink(addr->sun_path) < 0 ? -errno : 0;
}

static int listen_at(struct ipc *i, const char *path, mode_t mode)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	strcpy(addr.sun_path, path);
	/* A daemon that was killed leaves children that share its fds, for a moment. */
	for (int n = 0; (r = check_stale(&addr)) == -EADDRINUSE && n < LISTEN_TRIES; n++)
		usleep(LISTEN_PAUSE_US);
	if (r < 0)
		return r;
	i->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (i->fd < 0)
		return -errno;
	/* Nobody connects before listen(2): the mode is right by then. */
	if (bind(i->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -errno;
	strcpy(i->path, path);
	if (chmod(path, mode) < 0 || listen(i->fd, BACKLOG) < 0)
		return -errno;
	return 0;
}

int ipc_new(struct ipc **ret, struct event_base *base, struct service *s, const char *path, mode_t mode, int listen_fd,
	    struct store *store)
{
	struct ipc *i = calloc(1, sizeof(*i));
	int r;

	if (!i) {
		util_closep(&listen_fd);
		return -ENOMEM;
	}
	i->host.base = base;
	i->host.service = s;
	i->host.store = store;
	i->fd = listen_fd;
	i->off = -1;
	LIST_INIT(&i->host.list);
	r = listen_fd < 0 ? listen_at(i, path, mode) : 0;
	if (r == 0) {
		i->accept = event_new(base, i->fd, EV_READ | EV_PERSIST, on_accept, i);
		i->again = evtimer_new(base, on_again, i);
		if (!i->accept || !i->again || event_add(i->accept, NULL) < 0)
			r = -ENOMEM;
	}
	if (r < 0) {
		ipc_free(i);
		return r;
	}
	if (store)
		sessions_adopt(&i->host);
	*ret = i;
	return 0;
}

struct ipc *ipc_free(struct ipc *i)
{
	if (!i)
		return NULL;
	if (i->path[0])
		unlink(i->path);
	if (i->accept)
		event_free(i->accept);
	if (i->again)
		event_free(i->again);
	closer_close(i->fd, (uid_t)-1); /* what waits to be accepted ends with it, and the fds that came there */
	closer_close(i->off, i->off_uid);
	while (!LIST_EMPTY(&i->host.list))
		session_free(LIST_FIRST(&i->host.list));
	free(i);
	return NULL;
}
