/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user connection: turns a stream into messages and back. The stream may outlive this process, so no message is
 * ever cut: each is sent by one call, which takes all of it or nothing, and is taken from the socket by one call, once
 * all of it is there. Until then it is only looked at, and the socket says when more has come by edges, so that half a
 * message keeps nobody busy. A message never crosses a call's end, so a file descriptor always belongs to the message that
 * it came with. A loop turn reads a bounded number of messages, and the queue of what is unsent is bounded in messages,
 * bytes and time. A connection fails once; after that it is silent until `failed` is called from the loop.
 */
#include "transport/vfio_user_priv.h"

#include "base/closer.h"
#include "base/util.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Messages read, and messages written, in one loop turn. */
#define TURN 32u

#define HEADER ((uint32_t)sizeof(struct vfio_user_header))

struct vfu_msg {
	STAILQ_ENTRY(vfu_msg) out; /* vfu_conn.out */
	uint32_t len;
	unsigned int n_fds; /* ours */
	int fds[VFU_MAX_SEND_FDS];
	uint8_t data[];
};

static struct vfu_msg *msg_free(struct vfu_msg *m)
{
	if (!m)
		return NULL;
	for (unsigned int i = 0; i < m->n_fds; i++)
		close(m->fds[i]);
	free(m);
	return NULL;
}

static void msg_freep(struct vfu_msg **m)
{
	msg_free(*m);
}

/* A copy of data with duplicates of the fds. 0 or -errno. */
static int msg_new(struct vfu_msg **ret, const void *data, size_t len, const int *fds, unsigned int n_fds)
{
	__attribute__((cleanup(msg_freep))) struct vfu_msg *m = malloc(sizeof(*m) + len);

	if (!m)
		return -ENOMEM;
	m->len = (uint32_t)len;
	for (m->n_fds = 0; m->n_fds < n_fds; m->n_fds++) {
		m->fds[m->n_fds] = fcntl(fds[m->n_fds], F_DUPFD_CLOEXEC, 0);
		if (m->fds[m->n_fds] < 0)
			return -errno;
	}
	memcpy(m->data, data, len);
	*ret = TAKE_PTR(m);
	return 0;
}

int vfu_conn_fail(struct vfu_conn *c, int error, const char *fmt, ...)
{
	va_list ap;

	if (c->error)
		return -ENODEV;
	c->error = error;
	va_start(ap, fmt);
	vsnprintf(c->why, sizeof(c->why), fmt, ap);
	va_end(ap);
	event_del(&c->ev_read);
	event_del(&c->ev_write);
	event_del(&c->ev_more);
	event_del(&c->ev_drain);
	event_active(&c->ev_failed, EV_TIMEOUT, 0);
	return -ENODEV;
}

void vfu_conn_silence(struct vfu_conn *c)
{
	if (!c->error)
		c->error = -ENODEV;
	event_del(&c->ev_read);
	event_del(&c->ev_write);
	event_del(&c->ev_more);
	event_del(&c->ev_drain);
	event_del(&c->ev_failed);
}

static void add_timer(struct vfu_conn *c, struct event *timer, uint64_t us)
{
	struct timeval tv = {.tv_sec = (time_t)(us / 1000000u), .tv_usec = (suseconds_t)(us % 1000000u)};

	if (event_add(timer, &tv) < 0)
		vfu_conn_fail(c, -ENOMEM, "no memory for a timer of %u ms", c->deadline_ms);
}

void vfu_deadline_start(struct vfu_conn *c, struct event *timer, uint64_t *since_ns)
{
	*since_ns = util_now_ns();
	if (!c->error)
		add_timer(c, timer, (uint64_t)c->deadline_ms * 1000u);
}

bool vfu_deadline_passed(struct vfu_conn *c, struct event *timer, uint64_t since_ns)
{
	uint64_t passed_us = (util_now_ns() - since_ns) / 1000u, deadline_us = (uint64_t)c->deadline_ms * 1000u;

	if (passed_us >= deadline_us)
		return true;
	add_timer(c, timer, deadline_us - passed_us);
	return false;
}

/* ---- Sending. */

/*
 * One sendmsg. 0: all of it is sent; -errno: nothing is. For a stream the kernel fills buffers of half of SO_SNDBUF each,
 * and can fail between two of them; SO_SNDBUF is 4608 at the least, and our messages are far below half of that.
 */
static int transmit(int fd, const void *data, size_t len, const int *fds, unsigned int n_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * VFU_MAX_SEND_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (n_fds > 0) {
		struct cmsghdr *cm;

		memset(&control, 0, sizeof(control));
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(cm), fds, sizeof(int) * n_fds);
	}
	do
		n = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EMSGSIZE;
}

static int fail_send(struct vfu_conn *c, int error)
{
	return vfu_conn_fail(c, error, "sending to the device failed with error %d, %u messages (%u bytes) unsent",
			     -error, c->out_messages, c->out_bytes);
}

static int enqueue(struct vfu_conn *c, const void *data, size_t len, const int *fds, unsigned int n_fds)
{
	struct vfu_msg *m = NULL;
	int r;

	if (c->out_messages >= VFU_MAX_QUEUE || c->out_bytes + len > VFU_MAX_QUEUE_BYTES)
		return vfu_conn_fail(c, -ENOBUFS, "the device left %u messages (%u bytes) unread, at most %u (%u) wait",
				     c->out_messages, c->out_bytes, VFU_MAX_QUEUE, VFU_MAX_QUEUE_BYTES);
	r = msg_new(&m, data, len, fds, n_fds);
	if (r < 0)
		return r;
	if (STAILQ_EMPTY(&c->out)) {
		vfu_deadline_start(c, &c->ev_drain, &c->drain_since_ns);
		if (event_add(&c->ev_write, NULL) < 0)
			vfu_conn_fail(c, -ENOMEM, "no memory to wait for the socket, %u bytes unsent", m->len);
	}
	STAILQ_INSERT_TAIL(&c->out, m, out);
	c->out_messages++;
	c->out_bytes += m->len;
	return 0;
}

int vfu_conn_send(struct vfu_conn *c, const void *data, size_t len, const int *fds, unsigned int n_fds)
{
	int r;

	assert(len <= VFU_MAX_SEND);
	if (c->error)
		return -ENODEV;
	if (!STAILQ_EMPTY(&c->out))
		return enqueue(c, data, len, fds, n_fds);
	/* Stores to memory that the device maps come first, whatever the kernel's own locks promise. */
	atomic_thread_fence(memory_order_seq_cst);
	r = transmit(c->fd, data, len, fds, n_fds);
	if (r == -EAGAIN)
		return enqueue(c, data, len, fds, n_fds);
	/* What is wrong with the fds, or with the user's number of fds in flight, is the caller's. */
	if (r == 0 || (n_fds > 0 && (r == -EBADF || r == -EINVAL || r == -ETOOMANYREFS)))
		return r;
	return fail_send(c, r);
}

/* Sends the head of the queue. True if the socket took it. */
static bool flush_one(struct vfu_conn *c)
{
	struct vfu_msg *m = STAILQ_FIRST(&c->out);
	int r = transmit(c->fd, m->data, m->len, m->fds, m->n_fds);

	if (r < 0) {
		if (r != -EAGAIN)
			fail_send(c, r);
		return false;
	}
	STAILQ_REMOVE_HEAD(&c->out, out);
	c->out_messages--;
	c->out_bytes -= m->len;
	msg_free(m);
	return true;
}

/* The socket tells only once that it can be read or written; what a turn has left is for the next one. */
static void go_on(struct vfu_conn *c)
{
	static const struct timeval now;

	if (!c->error && event_add(&c->ev_more, &now) < 0)
		vfu_conn_fail(c, -ENOMEM, "no memory for a timer of 0 ms");
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;
	unsigned int n = 0;

	while (n < TURN && !STAILQ_EMPTY(&c->out) && flush_one(c))
		n++;
	if (c->error || n == 0)
		return;
	if (STAILQ_EMPTY(&c->out)) {
		event_del(&c->ev_write);
		event_del(&c->ev_drain);
		return;
	}
	vfu_deadline_start(c, &c->ev_drain, &c->drain_since_ns);
	if (n == TURN)
		go_on(c);
}

static void on_drain_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;

	if (!vfu_deadline_passed(c, &c->ev_drain, c->drain_since_ns))
		return;
	vfu_conn_fail(c, -ETIMEDOUT, "the device read nothing for %u ms, %u messages (%u bytes) wait", c->deadline_ms,
		      c->out_messages, c->out_bytes);
}

/* ---- Receiving. */

/* Takes the fd that a recvmsg brought, if any, into its slot before anything is judged. 0 or -ENODEV. */
static int take_fd(struct vfu_conn *c, struct msghdr *mh)
{
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
		int fd;

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS || cm->cmsg_len < CMSG_LEN(sizeof(fd)))
			continue;
		memcpy(&fd, CMSG_DATA(cm), sizeof(fd));
		if (c->in_fd >= 0) {
			closer_close(fd, VFU_DEVICE_UID);
			return vfu_conn_fail(c, -EPROTO, "the device sent 2 file descriptors with one message");
		}
		c->in_fd = fd;
	}
	if (mh->msg_flags & MSG_CTRUNC)
		return vfu_conn_fail(c, -EPROTO, "the device sent more file descriptors than the %d that may come here",
				     c->want_fd ? 1 : 0);
	return 0;
}

static int fail_receive(struct vfu_conn *c, int error)
{
	if (error == EAGAIN)
		return 0;
	return vfu_conn_fail(c, -error, "reading from the device failed with error %d", error);
}

/* One recvmsg: bytes, 0 if there are none, -ENODEV if the connection has failed. Where no fd can come there is no
 * room for one: the kernel drops it, which spares us closing a file of the device's choice. The room, where there is
 * one, is CMSG_LEN, not CMSG_SPACE: the padding would hold a second fd. */
static ssize_t receive(struct vfu_conn *c, void *buf, size_t len)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (c->want_fd) {
		mh.msg_control = control.buf;
		mh.msg_controllen = CMSG_LEN(sizeof(int));
	}
	do
		n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return fail_receive(c, errno);
	return take_fd(c, &mh) < 0 ? -ENODEV : n;
}

/* What can be said of a message by its header alone. 0 or -ENODEV. */
static int judge_header(struct vfu_conn *c)
{
	const struct vfio_user_header *h = &c->in_header;
	uint32_t type = h->flags & VFIO_USER_TYPE_MASK;
	uint32_t max = type == VFIO_USER_TYPE_REPLY ? HEADER + VFU_MAX_REPLY : VFU_MAX_RECEIVE;

	if (type != VFIO_USER_TYPE_COMMAND && type != VFIO_USER_TYPE_REPLY)
		return vfu_conn_fail(c, -EPROTO, "the device sent a message of unknown type %u (flags 0x%x)", type,
				     h->flags);
	if (h->size < HEADER || h->size > max)
		return vfu_conn_fail(c, -EPROTO,
				     "the device sent a message of %u bytes, %u to %u are possible (command %u)",
				     h->size, HEADER, max, h->command);
	return 0;
}

static void deliver(struct vfu_conn *c)
{
	const struct vfio_user_header h = c->in_header;
	bool reply = (h.flags & VFIO_USER_TYPE_MASK) == VFIO_USER_TYPE_REPLY;
	int fd = util_take_fd(&c->in_fd);

	c->events->message(c, &h, reply ? c->in + HEADER : NULL, reply ? h.size - HEADER : 0, &fd);
	if (fd < 0)
		return;
	closer_close(fd, VFU_DEVICE_UID);
	vfu_conn_fail(c, -EPROTO, "the device sent a file descriptor where none can come (command %u)", h.command);
}

/* Looks at what comes next, and takes nothing: bytes of it in c->in, 0 if there are none, -ENODEV. */
static ssize_t peek(struct vfu_conn *c)
{
	ssize_t n;

	do
		n = recv(c->fd, c->in, sizeof(c->in), MSG_PEEK | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return fail_receive(c, errno);
	if (n == 0)
		return vfu_conn_fail(c, -ECONNRESET, "the device closed the connection, 0 bytes into a message");
	return n;
}

/* Whether so many bytes have come, which is more than can be looked at: 1, 0: not yet, -ENODEV: they never will. */
static int arrived(struct vfu_conn *c, uint32_t bytes)
{
	struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
	int have = 0;

	/* In this order: all that was sent is there when the end is seen. */
	if (poll(&p, 1, 0) < 0 || ioctl(c->fd, FIONREAD, &have) < 0)
		return fail_receive(c, errno);
	if (have >= 0 && (uint32_t)have >= bytes)
		return 1;
	if (p.revents)
		return vfu_conn_fail(c, -ECONNRESET, "the device closed the connection, %d bytes into a message", have);
	return 0;
}

/* The size of the next message, if all of it is there; 0: not yet, -ENODEV. */
static ssize_t next_message(struct vfu_conn *c)
{
	ssize_t n = peek(c);

	if (n <= 0)
		return n;
	if (n < HEADER) {
		int r = arrived(c, HEADER);

		if (r <= 0)
			return r;
		n = peek(c);
		/* No look passes a file descriptor. */
		if (n >= 0 && n < HEADER)
			return vfu_conn_fail(c, -EPROTO,
					     "the device sent a file descriptor after %zd bytes of a header", n);
	}
	if (n < 0 || judge_header(c) < 0)
		return -ENODEV;
	if ((size_t)n < c->in_header.size) {
		int r = arrived(c, c->in_header.size);

		if (r <= 0)
			return r;
	}
	return c->in_header.size;
}

/* True if there may be more to read. One call takes all; more are needed if a file descriptor came in the midst of it. */
static bool read_message(struct vfu_conn *c)
{
	ssize_t size = next_message(c), have = 0, n;

	if (size <= 0)
		return false;
	for (; have < size; have += n) {
		n = receive(c, c->in + have, (size_t)(size - have));
		if (n == 0)
			vfu_conn_fail(c, -EPROTO, "somebody else took %zd bytes of a message", size - have);
		if (n <= 0)
			return false;
	}
	deliver(c);
	return c->error == 0;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;
	unsigned int n = 0;

	while (n < TURN && read_message(c))
		n++;
	if (n == TURN)
		go_on(c);
}

static void on_more(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;

	if (!STAILQ_EMPTY(&c->out))
		on_writable(c->fd, EV_WRITE, c);
	if (!c->error)
		on_readable(c->fd, EV_READ, c);
}

static void on_failed(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;

	c->events->failed(c);
}

void vfu_conn_init(struct vfu_conn *c, struct event_base *base, int fd, uint32_t deadline_ms,
		   const struct vfu_conn_events *events)
{
	c->events = events;
	c->fd = fd;
	c->deadline_ms = deadline_ms;
	c->in_fd = -1;
	STAILQ_INIT(&c->out);
	event_assign(&c->ev_read, base, fd, EV_READ | EV_PERSIST | EV_ET, on_readable, c);
	event_assign(&c->ev_write, base, fd, EV_WRITE | EV_PERSIST | EV_ET, on_writable, c);
	event_assign(&c->ev_more, base, -1, 0, on_more, c);
	event_assign(&c->ev_drain, base, -1, 0, on_drain_deadline, c);
	event_assign(&c->ev_failed, base, -1, 0, on_failed, c);
}

int vfu_conn_start(struct vfu_conn *c)
{
	return event_add(&c->ev_read, NULL) < 0 ? -ENOMEM : 0;
}

void vfu_conn_fini(struct vfu_conn *c)
{
	struct vfu_msg *m;

	event_del(&c->ev_read);
	event_del(&c->ev_write);
	event_del(&c->ev_more);
	event_del(&c->ev_drain);
	event_del(&c->ev_failed);
	while ((m = STAILQ_FIRST(&c->out))) {
		STAILQ_REMOVE_HEAD(&c->out, out);
		msg_free(m);
	}
	closer_close(util_take_fd(&c->in_fd), VFU_DEVICE_UID);
	closer_close(util_take_fd(&c->fd), VFU_DEVICE_UID);
}
