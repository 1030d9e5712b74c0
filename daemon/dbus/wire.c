/* SPDX-License-Identifier: MIT */
/*
 * Two flows of bytes and fds, one each way. A flow holds what its other end has not taken, and reads no more meanwhile, so that
 * a bus that stands still is felt by sd-bus.
 */
#include "dbus/wire.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/closer.h"
#include "base/util.h"

#define FLOW_BYTES 65536u
#define FLOW_FDS 253u /* SCM_MAX_FD of the kernel */
#define KEPT_MAX 256u
#define KEPT_MS 50
#define SYSTEM_BUS "unix:path=/run/dbus/system_bus_socket"

struct flow {
	struct wire *wire;
	int from, to;
	struct event *readable, *writable;
	bool from_bus;
	size_t off, len; /* what is left in bytes */
	size_t n_fds; /* that travel with the last of them */
	int fds[FLOW_FDS];
	uint8_t bytes[FLOW_BYTES];
};

/* A memfd that came: sd-bus closes its own number of it when a message has been dealt with, which is not to be the last one, or
 * gigabytes might be freed then and there. */
struct kept {
	int fds[KEPT_MAX];
	size_t n;
};

struct wire {
	int bus, near;
	int nothing; /* in the place of what may not pass */
	struct flow in, out;
	struct kept young, old;
	struct event *age;
	int queued; /* for the bus, at the last look, and since when it is not less */
	uint64_t still_since;
};

/* ---- addresses ---- */

/* The value of a key of "unix:KEY=VALUE,...;...": without escapes. Its length, or -errno. */
static int address_value(const char *address, const char *key, char *buf, size_t room)
{
	size_t n = 0;

	while (strncmp(address, key, strlen(key)) != 0) {
		address += strcspn(address, ",;");
		if (*address++ != ',')
			return -EINVAL;
	}
	for (address += strlen(key); *address && !strchr(",;", *address); n++) {
		unsigned int c = (unsigned char)*address;

		if (c == '%' && sscanf(address + 1, "%2x", &c) != 1)
			return -EINVAL;
		if (n == room)
			return -ENAMETOOLONG;
		buf[n] = (char)c;
		address += *address == '%' ? 3 : 1;
	}
	return n ? (int)n : -EINVAL;
}

static int parse_address(const char *address, struct sockaddr_un *addr, socklen_t *len)
{
	size_t room = sizeof(addr->sun_path) - 1;
	int n;

	if (strncmp(address, "unix:", 5) != 0)
		return -EINVAL;
	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	n = address_value(address + 5, "path=", addr->sun_path, room);
	if (n == -EINVAL) {
		n = address_value(address + 5, "abstract=", addr->sun_path + 1, room);
		n += n > 0;
	} else if (n > 0) {
		n++; /* the NUL */
	}
	if (n < 0)
		return n;
	*len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n);
	return 0;
}

int wire_address(const char *where, struct sockaddr_un *addr, socklen_t *len)
{
	const char *dir = getenv("XDG_RUNTIME_DIR");
	const char *address = where;
	char session[256];

	if (!strcmp(where, "system")) {
		address = getenv("DBUS_SYSTEM_BUS_ADDRESS");
		address = address ? address : SYSTEM_BUS;
	} else if (!strcmp(where, "session")) {
		address = getenv("DBUS_SESSION_BUS_ADDRESS");
		if (!address && !dir)
			return -ENOENT;
		snprintf(session, sizeof(session), "unix:path=%s/bus", dir ? dir : "");
		address = address ? address : session;
	}
	return parse_address(address, addr, len);
}

/* ---- fds on their way ---- */

static void on_age(evutil_socket_t fd, short what, void *arg)
{
	static const struct timeval tv = {0, KEPT_MS * 1000};
	struct wire *w = arg;

	for (size_t i = 0; i < w->old.n; i++)
		closer_close(w->old.fds[i], CLOSER_OURS);
	w->old = w->young;
	w->young.n = 0;
	if (w->old.n)
		evtimer_add(w->age, &tv);
}

static void keep(struct wire *w, int fd)
{
	static const struct timeval tv = {0, KEPT_MS * 1000};

	if (w->young.n == KEPT_MAX) {
		closer_close(fd, CLOSER_OURS);
		return;
	}
	w->young.fds[w->young.n++] = fd;
	if (!evtimer_pending(w->age, NULL))
		evtimer_add(w->age, &tv);
}

/* fcntl alone, until it has turned out to be a memfd: no call here can be made to wait. */
static void judge(struct flow *f)
{
	for (size_t i = 0; f->from_bus && i < f->n_fds; i++) {
		if (fcntl(f->fds[i], F_GET_SEALS) >= 0)
			continue;
		closer_close(f->fds[i], (uid_t)-1);
		f->fds[i] = f->wire->nothing;
	}
}

static void let_go(struct flow *f)
{
	for (size_t i = 0; i < f->n_fds; i++) {
		if (f->fds[i] == f->wire->nothing)
			continue;
		if (f->from_bus)
			keep(f->wire, f->fds[i]);
		else
			close(f->fds[i]); /* our own */
	}
	f->n_fds = 0;
}

/* ---- bytes ---- */

/* Both ends see the end of the other. */
static void end(struct wire *w)
{
	shutdown(w->bus, SHUT_RDWR);
	shutdown(w->near, SHUT_RDWR);
	event_del(w->in.readable);
	event_del(w->out.readable);
}

static union {
	char buf[CMSG_SPACE(FLOW_FDS * sizeof(int))];
	struct cmsghdr align;
} control;

static ssize_t flow_read(struct flow *f)
{
	struct iovec iov = {f->bytes, sizeof(f->bytes)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(f->from, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c;

	if (n < 0)
		return -errno;
	for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		f->n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(f->fds, CMSG_DATA(c), f->n_fds * sizeof(int));
	}
	f->off = 0;
	f->len = (size_t)n;
	judge(f);
	return n;
}

static ssize_t send_some(struct flow *f, size_t size, size_t n_fds)
{
	struct iovec iov = {f->bytes + f->off, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	if (n_fds) {
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		memset(control.buf, 0, msg.msg_controllen);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), f->fds, n_fds * sizeof(int));
	}
	n = sendmsg(f->to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	return n < 0 ? -errno : n;
}

/* All that is left, or as much as the other end takes. The kernel ends what it gives in one go with bytes of the message that
 * the fds came with; whether it begins with that message, nobody knows. So they go with the last byte. */
static ssize_t flow_write(struct flow *f)
{
	while (f->len) {
		bool last = f->len == 1;
		ssize_t n = send_some(f, f->n_fds && !last ? f->len - 1 : f->len, last ? f->n_fds : 0);

		if (n < 0)
			return n;
		f->off += (size_t)n;
		f->len -= (size_t)n;
	}
	let_go(f);
	return 0;
}

static bool is_for_later(ssize_t n)
{
	return n == -EAGAIN || n == -EINTR;
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct flow *f = arg;
	ssize_t n = flow_write(f);

	if (n < 0 && !is_for_later(n))
		end(f->wire);
	else if (f->len)
		event_add(f->writable, NULL);
	else
		event_add(f->readable, NULL);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct flow *f = arg;
	ssize_t n = flow_read(f);

	if (n == 0 || (n < 0 && !is_for_later(n)))
		end(f->wire);
	if (n <= 0)
		return;
	n = flow_write(f);
	if (n < 0 && !is_for_later(n)) {
		end(f->wire);
	} else if (f->len) {
		event_del(f->readable);
		event_add(f->writable, NULL);
	}
}

/* ---- as a whole ---- */

static int flow_init(struct flow *f, struct wire *w, struct event_base *base, int from, int to)
{
	f->wire = w;
	f->from = from;
	f->to = to;
	f->from_bus = from == w->bus;
	f->readable = event_new(base, from, EV_READ | EV_PERSIST, on_readable, f);
	f->writable = event_new(base, to, EV_WRITE, on_writable, f);
	return f->readable && f->writable && event_add(f->readable, NULL) == 0 ? 0 : -ENOMEM;
}

static void flow_fini(struct flow *f)
{
	if (f->readable)
		event_free(f->readable);
	if (f->writable)
		event_free(f->writable);
	let_go(f);
}

static int connect_bus(struct wire *w, const char *where)
{
	struct sockaddr_un addr;
	socklen_t len;
	int r = wire_address(where, &addr, &len);

	if (r < 0)
		return r;
	w->bus = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (w->bus < 0)
		return -errno;
	return connect(w->bus, (const struct sockaddr *)&addr, len) < 0 ? -errno : 0;
}

int wire_open(struct wire **ret, struct event_base *base, const char *where, int *fd)
{
	struct wire *w = calloc(1, sizeof(*w));
	int pair[2], r;

	if (!w)
		return -ENOMEM;
	w->bus = w->near = -1;
	w->nothing = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->age = evtimer_new(base, on_age, w);
	r = w->nothing < 0 || !w->age ? -ENOMEM : connect_bus(w, where);
	if (r == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		r = -errno;
	if (r < 0) {
		wire_close(w);
		return r;
	}
	w->near = pair[0];
	r = flow_init(&w->in, w, base, w->bus, w->near);
	if (r == 0)
		r = flow_init(&w->out, w, base, w->near, w->bus);
	if (r < 0) {
		close(pair[1]);
		wire_close(w);
		return r;
	}
	*fd = pair[1];
	*ret = w;
	return 0;
}

/* What is in the socket only becomes more while nobody reads it. */
bool wire_behind(struct wire *w, uint64_t *still_ns)
{
	uint64_t now = util_now_ns();
	int queued = 0;

	if (ioctl(w->bus, SIOCOUTQ, &queued) < 0)
		queued = 0;
	if (queued < w->queued || !w->queued)
		w->still_since = now;
	w->queued = queued;
	*still_ns = now - w->still_since;
	return queued > 0 || w->out.len;
}

/* What is in the bus's queue may hold fds of others. */
struct wire *wire_close(struct wire *w)
{
	if (!w)
		return NULL;
	flow_fini(&w->in);
	flow_fini(&w->out);
	if (w->age) {
		on_age(-1, 0, w);
		on_age(-1, 0, w);
		event_free(w->age);
	}
	closer_close(w->bus, (uid_t)-1);
	if (w->near >= 0)
		close(w->near);
	if (w->nothing >= 0)
		close(w->nothing);
	free(w);
	return NULL;
}
