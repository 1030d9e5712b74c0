/* SPDX-License-Identifier: MIT */
/*
 * Reading and sending messages. A client that does not read, or stops in the middle of a message, is dropped after a
 * bounded time, or keeps only itself waiting.
 */
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "remote.h"
#include "status.h"

#define SEND_TIMEOUT_MS 60000 /* a client that died and has a successor reads nothing for a while */
#define SCM_FDS_AT_ONCE 253 /* the kernel's limit for one message */

static void count_malformed(struct conn *c)
{
	status_add(&c->status->malformed, 1);
}

int conn_init(struct conn *c, int fd, const struct stop *stop, struct refgpu_status *status)
{
	pthread_condattr_t attr;

	memset(c, 0, sizeof(*c));
	c->fd = fd;
	c->stop = stop;
	c->status = status;
	atomic_init(&c->max_xfer, VFIO_USER_MAX_XFER);
	c->backlog_end = &c->backlog;
	pthread_mutex_init(&c->send_lock, NULL);
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->answered, &attr);
	pthread_condattr_destroy(&attr);
	remote_init(&c->remote, c);
	return 0;
}

void conn_fini(struct conn *c)
{
	struct message *m;

	while ((m = c->backlog)) {
		c->backlog = m->next;
		message_free(m);
	}
	close(c->fd);
	pthread_cond_destroy(&c->answered);
	pthread_mutex_destroy(&c->lock);
	pthread_mutex_destroy(&c->send_lock);
}

struct message *message_free(struct message *m)
{
	unsigned int i;

	if (!m)
		return NULL;
	for (i = 0; i < m->n_fds; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
	free(m);
	return NULL;
}

static void message_take_fds(struct message *m, struct msghdr *mh)
{
	struct cmsghdr *c;
	size_t i, n;
	int fd;

	for (c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(fd);
		for (i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (m->n_fds < VFIO_USER_MAX_FDS) {
				m->fds[m->n_fds++] = fd;
			} else {
				m->too_many_fds = true;
				close(fd);
			}
		}
	}
	if (mh->msg_flags & MSG_CTRUNC)
		m->too_many_fds = true;
}

/* Waits for something to read; 1: there is, 0: time is up, or -ECANCELED. */
static int conn_poll(struct conn *c, int ms)
{
	struct pollfd p[] = {{.fd = c->fd, .events = POLLIN}, {.fd = c->stop->fd, .events = POLLIN}};
	int r;

	do {
		r = poll(p, 2, ms);
	} while (r < 0 && errno == EINTR && !atomic_load(&c->stop->asked));
	if (atomic_load(&c->stop->asked) || p[1].revents)
		return -ECANCELED;
	return r > 0 ? 1 : 0;
}

/* Fills all of buf; fds that come along go to m. */
static int conn_fill(struct conn *c, struct message *m, void *buf, size_t len)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(SCM_FDS_AT_ONCE * sizeof(int))];
	} control;
	uint8_t *to = buf;
	ssize_t n;
	int r;

	while (len) {
		struct iovec iov = {.iov_base = to, .iov_len = len};
		struct msghdr mh = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};

		n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			r = conn_poll(c, -1);
			if (r < 0)
				return r;
			continue;
		}
		if (n < 0)
			return -ECONNRESET;
		message_take_fds(m, &mh);
		if (n == 0)
			return -ECONNRESET;
		to += n;
		len -= (size_t)n;
	}
	return 0;
}

static struct message *message_with_room(struct message *m, size_t size)
{
	struct message *bigger = realloc(m, sizeof(*m) + size);

	if (bigger)
		bigger->size = size;
	return bigger;
}

/* One whole message, whatever it is. */
static int conn_read(struct conn *c, struct message **ret)
{
	struct message *m = calloc(1, sizeof(*m)), *bigger;
	size_t total;
	int r;

	if (!m)
		return -ENOMEM;
	r = conn_fill(c, m, &m->hdr, sizeof(m->hdr));
	if (r < 0)
		goto fail;
	total = m->hdr.size;
	r = -ECONNRESET;
	if (total < sizeof(m->hdr) || total > VFIO_USER_MAX_MESSAGE) {
		count_malformed(c);
		goto fail;
	}
	bigger = message_with_room(m, total - sizeof(m->hdr));
	if (!bigger)
		goto fail;
	m = bigger;
	r = conn_fill(c, m, m->payload, m->size);
	if (r < 0)
		goto fail;
	*ret = m;
	return 0;
fail:
	message_free(m);
	return r;
}

/* A reply goes to whoever waits for it; returns 1 if m was one (and is gone), 0 if it is a command. */
static int conn_take_reply(struct conn *c, struct message *m)
{
	uint32_t type = m->hdr.flags & VFIO_USER_TYPE_MASK;

	if (type == VFIO_USER_TYPE_COMMAND)
		return 0;
	if (type != VFIO_USER_TYPE_REPLY || remote_answer(c, m) < 0)
		count_malformed(c);
	message_free(m);
	return 1;
}

int conn_next(struct conn *c, struct message **ret)
{
	struct message *m = c->backlog;
	int r;

	if (m) {
		c->backlog = m->next;
		if (!c->backlog)
			c->backlog_end = &c->backlog;
		c->n_backlog--;
		*ret = m;
		return 0;
	}
	do {
		if (atomic_load(&c->stop->asked))
			return -ECANCELED;
		if (atomic_load(&c->dead))
			return -ECONNRESET;
		r = conn_read(c, &m);
		if (r < 0)
			return r;
	} while (conn_take_reply(c, m));
	*ret = m;
	return 0;
}

static void nap(int ms)
{
	struct timespec t = {.tv_nsec = ms * 1000000L};

	nanosleep(&t, NULL);
}

void conn_pump(struct conn *c, int ms)
{
	struct message *m;

	if (c->n_backlog >= CONN_MAX_BACKLOG || atomic_load(&c->dead)) {
		nap(ms);
		return;
	}
	if (conn_poll(c, ms) <= 0)
		return;
	if (conn_read(c, &m) < 0) {
		atomic_store(&c->dead, true);
		return;
	}
	if (conn_take_reply(c, m))
		return;
	m->next = NULL;
	*c->backlog_end = m;
	c->backlog_end = &m->next;
	c->n_backlog++;
}

void conn_break(struct conn *c)
{
	atomic_store(&c->dead, true);
	shutdown(c->fd, SHUT_RDWR);
}

static int wait_writable(struct conn *c)
{
	struct pollfd p[] = {{.fd = c->fd, .events = POLLOUT}, {.fd = c->stop->fd, .events = POLLIN}};
	int r = poll(p, 2, SEND_TIMEOUT_MS);

	if (r < 0 && errno == EINTR)
		return 0;
	return r <= 0 || p[1].revents ? -ETIMEDOUT : 0;
}

static void message_attach(struct msghdr *mh, void *control, int fd)
{
	struct cmsghdr *c;

	mh->msg_control = control;
	mh->msg_controllen = CMSG_SPACE(sizeof(fd));
	c = CMSG_FIRSTHDR(mh);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
}

static void iov_advance(struct msghdr *mh, size_t n)
{
	size_t part;

	while (n) {
		part = n < mh->msg_iov->iov_len ? n : mh->msg_iov->iov_len;
		mh->msg_iov->iov_base = (uint8_t *)mh->msg_iov->iov_base + part;
		mh->msg_iov->iov_len -= part;
		n -= part;
		if (!mh->msg_iov->iov_len && mh->msg_iovlen > 1) {
			mh->msg_iov++;
			mh->msg_iovlen--;
		}
	}
}

int conn_send(struct conn *c, const struct vfio_user_header *hdr, const void *head, size_t head_size, const void *data,
	      size_t size, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov[] = {{.iov_base = (void *)(uintptr_t)hdr, .iov_len = sizeof(*hdr)},
			      {.iov_base = (void *)(uintptr_t)head, .iov_len = head_size},
			      {.iov_base = (void *)(uintptr_t)data, .iov_len = size}};
	struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 3};
	size_t left = sizeof(*hdr) + head_size + size;
	ssize_t n;
	int r = 0;

	if (fd >= 0)
		message_attach(&mh, &control, fd);
	pthread_mutex_lock(&c->send_lock);
	while (left && r == 0) {
		n = atomic_load(&c->dead) ? -1 : sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0) {
			r = !atomic_load(&c->dead) && (errno == EAGAIN || errno == EINTR) ? wait_writable(c) : -EPIPE;
			continue;
		}
		mh.msg_control = NULL;
		mh.msg_controllen = 0;
		left -= (size_t)n;
		if (left)
			iov_advance(&mh, (size_t)n);
	}
	if (r < 0)
		conn_break(c);
	pthread_mutex_unlock(&c->send_lock);
	return r;
}

int conn_reply(struct conn *c, const struct vfio_user_header *to, int error, const void *data, size_t size, int fd)
{
	struct vfio_user_header hdr = {.id = to->id, .command = to->command, .flags = VFIO_USER_TYPE_REPLY};

	if (error)
		count_malformed(c);
	if (to->flags & VFIO_USER_NO_REPLY)
		return 0;
	if (error) {
		hdr.flags |= VFIO_USER_ERROR;
		hdr.error = (uint32_t)error;
		size = 0;
		fd = -1;
	}
	hdr.size = (uint32_t)(sizeof(hdr) + size);
	return conn_send(c, &hdr, NULL, 0, data, size, fd);
}
