/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user connection: turns a stream into messages and back. A read never crosses the end of a message, so a file
 * descriptor always belongs to the message that it came with. A loop turn reads a bounded number of bytes, and the
 * queue of what is unsent is bounded in messages, bytes and time. A connection fails once; after that it is silent
 * until `failed` is called from the loop.
 */
#include "transport/vfio_user_priv.h"

#include "base/closer.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Reads and writes in one loop turn; each is at most VFU_MAX_REPLY bytes, or one message. */
#define TURN 32u

#define HEADER ((uint32_t)sizeof(struct vfio_user_header))
#define MAX_REQUEST (HEADER + 16u + VFU_MAX_XFER)

/* Whose fds a device's are, to the closer: nobody's who could connect. */
#define DEVICE_UID ((uid_t)-1)

struct vfu_msg {
	STAILQ_ENTRY(vfu_msg) out; /* vfu_conn.out */
	uint32_t len, sent;
	unsigned int n_fds; /* ours; 0 once the first byte is sent */
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
	m->sent = 0;
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

/* One sendmsg: bytes sent, or -errno. */
static ssize_t transmit(int fd, const void *data, size_t len, const int *fds, unsigned int n_fds)
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
	return n < 0 ? -errno : n;
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
	ssize_t sent = 0;
	int r;

	if (c->error)
		return -ENODEV;
	if (STAILQ_EMPTY(&c->out)) {
		/* Stores to memory that the device maps come first, whatever the kernel's own locks promise. */
		atomic_thread_fence(memory_order_seq_cst);
		sent = transmit(c->fd, data, len, fds, n_fds);
		if ((size_t)sent == len)
			return 0;
		/* What is wrong with the fds, or with the user's number of fds in flight, is the caller's. */
		if (n_fds > 0 && (sent == -EBADF || sent == -EINVAL || sent == -ETOOMANYREFS))
			return (int)sent;
		if (sent < 0 && sent != -EAGAIN)
			return fail_send(c, (int)sent);
		if (sent < 0)
			sent = 0;
	}
	r = enqueue(c, (const uint8_t *)data + sent, len - (size_t)sent, fds, sent > 0 ? 0 : n_fds);
	if (r < 0 && sent > 0)
		return fail_send(c, r); /* half a message is out, the stream is broken */
	return r;
}

/* Sends from the head of the queue. True if the socket took something. */
static bool flush_one(struct vfu_conn *c)
{
	struct vfu_msg *m = STAILQ_FIRST(&c->out);
	ssize_t n = transmit(c->fd, m->data + m->sent, m->len - m->sent, m->fds, m->n_fds);

	if (n == -EAGAIN)
		return false;
	if (n < 0) {
		fail_send(c, (int)n);
		return false;
	}
	for (unsigned int i = 0; i < m->n_fds; i++)
		close(m->fds[i]);
	m->n_fds = 0;
	m->sent += (uint32_t)n;
	c->out_bytes -= (uint32_t)n;
	if (m->sent == m->len) {
		STAILQ_REMOVE_HEAD(&c->out, out);
		c->out_messages--;
		msg_free(m);
	}
	return true;
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
			closer_close(fd, DEVICE_UID);
			return vfu_conn_fail(c, -EPROTO, "the device sent 2 file descriptors with one message");
		}
		c->in_fd = fd;
	}
	if (mh->msg_flags & MSG_CTRUNC)
		return vfu_conn_fail(c, -EPROTO, "the device sent more file descriptors than the %d that may come here",
				     c->want_fd ? 1 : 0);
	return 0;
}

/* One recvmsg: bytes, 0 if there are none yet, -ENODEV if the connection has failed. Where no fd can come there is no
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
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0) {
		int error = errno;

		return vfu_conn_fail(c, -error, "reading from the device failed with error %d", error);
	}
	if (take_fd(c, &mh) < 0)
		return -ENODEV;
	if (n == 0)
		return vfu_conn_fail(c, -ECONNRESET, "the device closed the connection, %u bytes into a message",
				     c->in_have);
	return n;
}

/* What can be said of a message by its header alone. 0 or -ENODEV. */
static int judge_header(struct vfu_conn *c)
{
	const struct vfio_user_header *h = &c->in_header;
	uint32_t type = h->flags & VFIO_USER_TYPE_MASK;
	uint32_t max = type == VFIO_USER_TYPE_REPLY ? HEADER + VFU_MAX_REPLY : MAX_REQUEST;

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

	c->in_have = 0;
	c->events->message(c, &h, reply ? c->in_payload : NULL, reply ? h.size - HEADER : 0, &fd);
	if (fd < 0)
		return;
	closer_close(fd, DEVICE_UID);
	vfu_conn_fail(c, -EPROTO, "the device sent a file descriptor where none can come (command %u)", h.command);
}

/* Reads what is left of the header, or a piece of the payload; pieces of a request's payload overwrite each other.
 * True if there may be more to read. */
static bool read_piece(struct vfu_conn *c)
{
	uint8_t *to;
	size_t want;
	ssize_t n;

	if (c->in_have < HEADER) {
		to = (uint8_t *)&c->in_header + c->in_have;
		want = HEADER - c->in_have;
	} else {
		uint32_t left = c->in_header.size - c->in_have;
		bool reply = (c->in_header.flags & VFIO_USER_TYPE_MASK) == VFIO_USER_TYPE_REPLY;

		to = c->in_payload + (reply ? c->in_have - HEADER : 0);
		want = left < VFU_MAX_REPLY ? left : VFU_MAX_REPLY;
	}
	n = receive(c, to, want);
	if (n <= 0)
		return false;
	c->in_have += (uint32_t)n;
	if (c->in_have == HEADER && judge_header(c) < 0)
		return false;
	if (c->in_have >= HEADER && c->in_have == c->in_header.size)
		deliver(c);
	return c->error == 0;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_conn *c = arg;

	for (unsigned int n = 0; n < TURN && read_piece(c); n++)
		;
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
	event_assign(&c->ev_read, base, fd, EV_READ | EV_PERSIST, on_readable, c);
	event_assign(&c->ev_write, base, fd, EV_WRITE | EV_PERSIST, on_writable, c);
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
	event_del(&c->ev_drain);
	event_del(&c->ev_failed);
	while ((m = STAILQ_FIRST(&c->out))) {
		STAILQ_REMOVE_HEAD(&c->out, out);
		msg_free(m);
	}
	closer_close(util_take_fd(&c->in_fd), DEVICE_UID);
	closer_close(util_take_fd(&c->fd), DEVICE_UID);
}
