/* SPDX-License-Identifier: MIT */
/*
 * The connection: connecting, the handshake, and one request at a time. A request is sent once; then records are
 * received until its reply: events go into the queue, replies with other serials are dropped, anything that is not a
 * record of the protocol ends the connection. Waiting has no timeout of its own: it ends with the reply or with the
 * daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"

#define DEFAULT_PATH "/run/pasidd/socket"
#define CONNECT_TRIES 5u /* daemons that may die with a connection that was not greeted yet */
#define DRAIN_MAX 4096u /* records taken at once: more than any socket buffer holds, so that draining ends */
#define FDS_TAKEN 4u /* room for fds of a reply; the kernel closes what is beyond it */

_Static_assert(sizeof(struct pasid_msg) == 16, "frame header");
_Static_assert(sizeof(struct pasid_reply) == 48, "reply header");
_Static_assert(sizeof(struct pasid_hello_reply) == 32, "hello reply");
_Static_assert(sizeof(struct pasid_wire_device_info) == 120, "device info");
_Static_assert(sizeof(struct pasid_wire_ctx_info) == 72, "context info");
_Static_assert(sizeof(struct pasid_wire_bind_op) == 40, "bind operation");
_Static_assert(sizeof(struct pasid_wire_fault) == 64, "fault");
_Static_assert(sizeof(struct pasid_ev_fault) == 32, "fault event");
_Static_assert(sizeof(struct pasid_ev_lost) == 32, "lost event");
_Static_assert(sizeof(struct pasid_ev_device) == 48, "device event");
_Static_assert(sizeof(struct pasid_fence_line) == PASID_FENCE_STRIDE, "fence line");
_Static_assert(sizeof(struct pasid_bind_head) + PASID_BIND_MAX * sizeof(struct pasid_wire_bind_op) +
			       sizeof(struct pasid_msg) <=
		       PASID_MSG_MAX,
	       "the longest request fits");

void *conn_body(struct pasid *p)
{
	return p->out + sizeof(struct pasid_msg);
}

const void *conn_reply(const struct pasid *p)
{
	return p->in + sizeof(struct pasid_reply);
}

size_t conn_reply_len(const struct pasid *p)
{
	return ((const struct pasid_msg *)(const void *)p->in)->size - sizeof(struct pasid_reply);
}

int conn_check(struct pasid *p)
{
	return p->dead ? failure(p, -ECONNRESET, p->dead, p->dead_n1, p->dead_n2) : 0;
}

int conn_kill(struct pasid *p, uint32_t reason, uint64_t n1, uint64_t n2)
{
	if (!p->dead) {
		p->dead = reason;
		p->dead_n1 = n1;
		p->dead_n2 = n2;
		shutdown(p->fd, SHUT_RDWR);
	}
	return conn_check(p);
}

/* Waits until the socket has room for a request. Events are taken meanwhile, so that neither side waits in vain. */
static int conn_wait_room(struct pasid *p)
{
	struct pollfd pfd = {.fd = p->fd, .events = POLLIN | POLLOUT};
	int r = poll(&pfd, 1, -1);

	if (r < 0)
		return errno == EINTR ? 0 : failure(p, -errno, LOCAL_SYSTEM, 0, 0);
	return pfd.revents & (POLLIN | POLLHUP | POLLERR) ? conn_drain(p) : 0;
}

static int conn_send(struct pasid *p, size_t len, const int *fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} ctl;
	struct iovec iov = {p->out, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd) {
		memset(&ctl, 0, sizeof(ctl));
		mh.msg_control = &ctl;
		mh.msg_controllen = sizeof(ctl.space);
		ctl.align.cmsg_level = SOL_SOCKET;
		ctl.align.cmsg_type = SCM_RIGHTS;
		ctl.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&ctl.align), fd, sizeof(*fd));
	}
	for (;;) {
		int r, err;

		ssize_t n = fd ? sendmsg(p->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT)
			       : send(p->fd, p->out, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			return 0;
		err = errno;
		if (err == EPIPE || err == ECONNRESET || err == ENOTCONN || err == ECONNREFUSED)
			return conn_kill(p, LOCAL_HANGUP, 0, 0);
		if (err != EINTR && err != EAGAIN)
			return failure(p, -err, LOCAL_SYSTEM, 0, 0);
		r = err == EAGAIN ? conn_wait_room(p) : 0;
		if (r < 0)
			return r;
	}
}

/* Keeps the first fd of a record in *fd and closes the others. */
static void conn_take_fds(struct msghdr *mh, int *fd)
{
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t i, n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (i = 0; i < n; i++) {
			int got;

			memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (*fd < 0)
				*fd = got;
			else
				close(got);
		}
	}
}

/* Receives a record into p->in. Without fd the kernel discards fds that come along. Bytes, or -1 with errno set. */
static ssize_t conn_recv(struct pasid *p, int flags, int *fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(FDS_TAKEN * sizeof(int))];
	} ctl;
	struct iovec iov = {p->in, PASID_MSG_MAX};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (!fd) /* MSG_TRUNC: the true length, also of a record that is too long */
		return recv(p->fd, p->in, PASID_MSG_MAX, flags | MSG_TRUNC);
	mh.msg_control = &ctl;
	mh.msg_controllen = sizeof(ctl.space);
	n = recvmsg(p->fd, &mh, flags | MSG_TRUNC | MSG_CMSG_CLOEXEC);
	if (n >= 0) {
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		conn_take_fds(&mh, fd);
	}
	return n;
}

/* Receives one well-formed record. 1, 0 if none is there and wait is false, or -ECONNRESET. */
static int conn_receive(struct pasid *p, bool wait, int *fd)
{
	const struct pasid_msg *m = (const void *)p->in;

	for (;;) {
		ssize_t n = conn_recv(p, wait ? 0 : MSG_DONTWAIT, fd);

		if (n == 0)
			return conn_kill(p, LOCAL_HANGUP, 0, 0);
		if (n > 0) {
			if ((size_t)n < sizeof(*m) || (size_t)n > PASID_MSG_MAX || m->size != (size_t)n)
				return conn_kill(p, LOCAL_GARBLED, (size_t)n < sizeof(*m) ? 0 : m->opcode, (size_t)n);
			return 1;
		}
		if (errno == EAGAIN && !wait)
			return 0;
		if (errno == EAGAIN) { /* the caller of pasid_connect_fd() made the socket non-blocking */
			struct pollfd pfd = {.fd = p->fd, .events = POLLIN};

			(void)poll(&pfd, 1, -1);
		} else if (errno != EINTR && errno != ENOMEM && errno != ENOBUFS) {
			return conn_kill(p, LOCAL_HANGUP, 0, 0);
		}
	}
}

int conn_drain(struct pasid *p)
{
	unsigned int i;
	int r;

	r = conn_check(p);
	for (i = 0; r == 0 && i < DRAIN_MAX; i++) {
		const struct pasid_msg *m = (const void *)p->in;

		r = conn_receive(p, false, NULL);
		if (r <= 0)
			return r;
		if (m->serial == 0)
			events_take(p, m);
		r = 0;
	}
	return r;
}

/* Judges the reply in p->in. */
static int conn_judge(struct pasid *p, const struct conn_call *c)
{
	const struct pasid_reply *r = (const void *)p->in;
	size_t body;

	if (r->msg.size < sizeof(*r) || r->msg.opcode != c->opcode || r->code > 0 || r->code < -4095)
		return conn_kill(p, LOCAL_GARBLED, r->msg.opcode, r->msg.size);
	if (r->code < 0) {
		p->why.index = r->index;
		return failure(p, r->code, r->reason, r->n1, r->n2);
	}
	body = r->msg.size - sizeof(*r);
	if (c->reply_unit ? body % c->reply_unit != 0 : body != c->reply)
		return conn_kill(p, LOCAL_GARBLED, r->msg.opcode, r->msg.size);
	return 0;
}

int conn_call(struct pasid *p, const struct conn_call *c)
{
	struct pasid_msg head = {
		.size = (uint32_t)(sizeof(head) + c->body),
		.opcode = c->opcode,
		.fds = c->fd ? 1 : 0,
		.serial = p->serial,
	};
	const struct pasid_msg *m = (const void *)p->in;
	int r;

	r = conn_check(p);
	if (r < 0)
		return r;
	memcpy(p->out, &head, sizeof(head));
	r = conn_send(p, head.size, c->fd);
	if (r < 0)
		return r;
	p->serial++;
	for (;;) {
		r = conn_receive(p, true, c->take_fd);
		if (r < 0)
			return r;
		if (m->serial == 0)
			events_take(p, m);
		else if (m->serial == head.serial)
			return conn_judge(p, c);
	}
}

/* Maps the fence memory. The daemon is trusted with it, but a length that is not there would be a SIGBUS later. */
static int conn_map_fences(struct pasid *p, int fd, uint64_t bytes)
{
	struct stat st;
	void *m;

	if (fd < 0 || bytes < PASID_FENCE_STRIDE || bytes > SIZE_MAX / 2)
		return conn_kill(p, LOCAL_GARBLED, PASID_OP_HELLO, bytes);
	if (fstat(fd, &st) < 0)
		return failure(p, -errno, LOCAL_SYSTEM, 0, 0);
	if (st.st_size < 0 || (uint64_t)st.st_size < bytes)
		return conn_kill(p, LOCAL_GARBLED, PASID_OP_HELLO, bytes);
	m = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED)
		return failure(p, -errno, LOCAL_SYSTEM, 0, 0);
	p->fences = m;
	p->fence_bytes = (size_t)bytes;
	return 0;
}

static int conn_hello(struct pasid *p)
{
	const struct pasid_hello hello = {.magic = PASID_PROTOCOL_MAGIC, .version = PASID_PROTOCOL_VERSION};
	int fd = -1, r;
	const struct conn_call call = {.opcode = PASID_OP_HELLO,
				       .body = sizeof(hello),
				       .take_fd = &fd,
				       .reply = sizeof(struct pasid_hello_reply)};
	struct pasid_hello_reply reply;

	memcpy(conn_body(p), &hello, sizeof(hello));
	r = conn_call(p, &call);
	if (r == 0) {
		memcpy(&reply, conn_reply(p), sizeof(reply));
		p->bind_max = reply.bind_max < PASID_BIND_MAX ? reply.bind_max : PASID_BIND_MAX;
		if (reply.version != PASID_PROTOCOL_VERSION)
			r = failure(p, -EOPNOTSUPP, PASID_WHY_VERSION, PASID_PROTOCOL_VERSION, reply.version);
		else
			r = conn_map_fences(p, fd, reply.fence_bytes);
	}
	if (fd >= 0)
		close(fd);
	return r;
}

/* Whether spinning can help: somebody else can run meanwhile. */
static bool more_than_one_cpu(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) < 0 || CPU_COUNT(&set) > 1;
}

/* A connection that owns fd, also when it cannot be made. */
static struct pasid *conn_new(int fd)
{
	struct pasid *p = calloc(1, sizeof(*p));

	if (!p) {
		close(fd);
		return NULL;
	}
	p->fd = fd;
	p->serial = 1;
	p->spin = more_than_one_cpu();
	p->out = malloc(PASID_MSG_MAX);
	p->in = malloc(PASID_MSG_MAX);
	events_init(p);
	strcpy(p->error, "no call has failed");
	return p->out && p->in ? p : pasid_disconnect(p);
}

/* *hung_up: nobody answered, and the connection ended. */
static int connect_fd(struct pasid **ret, int fd, const char *to, bool *hung_up)
{
	struct pasid *p;
	int r, flags;

	*hung_up = false;
	flags = fcntl(fd, F_GETFD);
	if (flags < 0)
		return error_connect(NULL, -errno, "use %s", to);
	if (!(flags & FD_CLOEXEC))
		(void)fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
	p = conn_new(fd);
	if (!p)
		return error_connect(NULL, -ENOMEM, "connect to %s", to);
	r = conn_hello(p);
	if (r < 0) {
		*hung_up = p->dead == LOCAL_HANGUP;
		error_connect(p, r, "greet the daemon at %s", to);
		pasid_disconnect(p);
		return r;
	}
	*ret = p;
	return 0;
}

int pasid_connect_fd(struct pasid **ret, int fd)
{
	bool hung_up;

	if (!ret) {
		if (fd >= 0)
			close(fd);
		return -EINVAL;
	}
	*ret = NULL;
	return connect_fd(ret, fd, "the socket given", &hung_up);
}

/* A connected socket, or -errno. */
static int connect_to(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd, r;

	if (strlen(path) >= sizeof(sa.sun_path))
		return error_connect(NULL, -ENAMETOOLONG, "connect to %s", path);
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_connect(NULL, -errno, "make a socket");
	do
		r = connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
	while (r == -EINTR);
	if (r == 0)
		return fd;
	close(fd);
	return error_connect(NULL, r, "connect to %s", path);
}

/* A daemon that dies takes along what it has accepted and not greeted yet; its successor greets. */
int pasid_connect(struct pasid **ret, const char *path)
{
	bool hung_up = true;
	int fd, r = 0;

	if (!ret)
		return -EINVAL;
	*ret = NULL;
	if (!path)
		path = secure_getenv("PASIDD_SOCKET");
	if (!path)
		path = DEFAULT_PATH;
	for (unsigned int i = 0; hung_up && i < CONNECT_TRIES; i++) {
		fd = connect_to(path);
		if (fd < 0)
			return fd;
		r = connect_fd(ret, fd, path, &hung_up);
	}
	return r;
}

struct pasid *pasid_disconnect(struct pasid *p)
{
	size_t i;

	if (!p)
		return NULL;
	for (i = 0; i < p->maps; i++)
		munmap(p->map[i].addr, p->map[i].len);
	for (i = 0; i < p->ctxs; i++)
		free(p->ctx[i]);
	if (p->fences)
		munmap((void *)(uintptr_t)p->fences, p->fence_bytes);
	free(p->map);
	free(p->ctx);
	free(p->in);
	free(p->out);
	close(p->fd);
	free(p);
	return NULL;
}

int pasid_fd(const struct pasid *p)
{
	return p->fd;
}
