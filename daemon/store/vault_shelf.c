/* SPDX-License-Identifier: MIT */
/*
 * See vault.h. A shelf is a SEQPACKET socketpair; what is sent into one end waits in the other's queue, with one fd and a
 * struct label for each message. We are the only one to send and to receive, so each shelf's list of items is what is in
 * its queue, in order, the dead ones included.
 *
 * A shelf of our own is cleaned in place: a live item in front of a dead one is peeked at, sent to the end once more, and
 * only then consumed. One that a predecessor made cannot be sent to, so its live items go to another shelf, and when it is
 * empty it leaves the store. Nothing is consumed before its copy is in a shelf that is in the store for certain.
 */
#include "store/vault_private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/closer.h"
#include "base/util.h"

#define SEND_BUFFER (512 << 10) /* bytes asked for */

/* ---- items by key ---- */

struct bucket *vault_bucket(const struct vault *v, uint64_t key)
{
	return &v->buckets[(key * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (v->n_buckets - 1)];
}

struct item *vault_find(const struct vault *v, uint64_t key)
{
	struct item *i;

	SLIST_FOREACH (i, vault_bucket(v, key), chain)
		if (i->label.key == key)
			return i;
	return NULL;
}

int vault_grow(struct vault *v)
{
	struct bucket *old = v->buckets;
	size_t n_old = v->n_buckets;
	struct item *i;

	v->buckets = calloc(n_old ? 2 * n_old : 256, sizeof(*v->buckets));
	if (!v->buckets) {
		v->buckets = old;
		return -ENOMEM;
	}
	v->n_buckets = n_old ? 2 * n_old : 256;
	for (size_t b = 0; b < n_old; b++)
		while ((i = SLIST_FIRST(&old[b]))) {
			SLIST_REMOVE_HEAD(&old[b], chain);
			SLIST_INSERT_HEAD(vault_bucket(v, i->label.key), i, chain);
		}
	free(old);
	return 0;
}

/* ---- messages ---- */

struct control {
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	};
};

int shelf_send_item(const struct shelf *s, struct label label, int fd)
{
	struct control c = {0};
	struct iovec v = {&label, sizeof(label)};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c)};

	c.head.cmsg_level = SOL_SOCKET;
	c.head.cmsg_type = SCM_RIGHTS;
	c.head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&c.head), &fd, sizeof(fd));
	return sendmsg(s->sender, &h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

ssize_t shelf_receive(const struct shelf *s, int flags, struct label *label, int *fd)
{
	struct control c = {0};
	struct iovec v = {label, sizeof(*label)};
	struct msghdr h = {
		.msg_iov = &v, .msg_iovlen = 1, .msg_control = fd ? &c : NULL, .msg_controllen = fd ? sizeof(c) : 0};
	ssize_t n = recvmsg(s->fd, &h, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);

	if (n < 0)
		return -errno;
	if (fd) {
		*fd = -1;
		if (h.msg_controllen >= CMSG_LEN(sizeof(int)) && c.head.cmsg_type == SCM_RIGHTS)
			memcpy(fd, CMSG_DATA(&c.head), sizeof(*fd));
	}
	return n;
}

int shelf_peek_from(const struct shelf *s, int offset)
{
	return setsockopt(s->fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) < 0 ? -errno : 0;
}

/* ---- shelves ---- */

void shelf_add(struct shelf *s, struct item *i)
{
	TAILQ_INSERT_TAIL(&s->items, i, link);
	i->shelf = s;
	s->n++;
}

void shelf_remove(struct item *i)
{
	struct shelf *s = i->shelf;

	TAILQ_REMOVE(&s->items, i, link);
	s->n--;
	if (!i->alive) {
		s->dead--;
		s->dead_bytes -= i->label.bytes;
		s->vault->dead_bytes -= i->label.bytes;
	}
}

void item_free(struct item *i)
{
	shelf_remove(i);
	closer_close(i->fd, CLOSER_OURS);
	free(i);
}

void item_dies(struct item *i)
{
	struct shelf *s = i->shelf;

	i->alive = false;
	if (!s->dead++)
		s->dirty_ns = util_now_ns();
	s->dead_bytes += i->label.bytes;
	s->vault->dead_bytes += i->label.bytes;
	closer_close(util_take_fd(&i->fd), CLOSER_OURS);
}

/* Forgets it; what is in the store stays there. Its queue may hold the last references to memory. */
void shelf_free(struct shelf *s)
{
	struct vault *v = s->vault;
	struct item *i;

	while ((i = TAILQ_FIRST(&s->items))) {
		if (i->alive) {
			SLIST_REMOVE(vault_bucket(v, i->label.key), i, item, chain);
			v->count--;
		}
		item_free(i);
	}
	fdstore_forget(v->fs, s);
	TAILQ_REMOVE(&v->shelves, s, link);
	if (v->cleaned == s)
		v->cleaned = NULL;
	if (v->open == s)
		v->open = NULL;
	closer_close(s->fd, CLOSER_OURS);
	util_closep(&s->sender);
	free(s);
}

struct shelf *shelf_alloc(struct vault *v, int fd, int sender)
{
	struct shelf *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->vault = v;
	s->fd = fd;
	s->sender = sender;
	s->most = sender >= 0 ? SHELF_MAX : 0;
	TAILQ_INIT(&s->items);
	TAILQ_INSERT_TAIL(&v->shelves, s, link);
	return s;
}

static void on_stored(void *arg, int err)
{
	struct shelf *s = arg;

	s->stored = err == 0;
	/* A manager that is slow may still do it. */
	if (err < 0 && fdstore_barrier(s->vault->fs, on_stored, s) < 0)
		log_limited(&s->vault->limit, LOG_WARN, "whether the service manager keeps fds cannot be asked: %s",
			    strerror(-err));
	vault_clean_now(s->vault);
}

int shelf_new(struct vault *v, struct shelf **ret)
{
	static const int bytes = SEND_BUFFER;
	struct shelf *s;
	int p[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p) < 0)
		return -errno;
	s = shelf_alloc(v, p[0], p[1]);
	if (!s) {
		close(p[0]);
		close(p[1]);
		return -ENOMEM;
	}
	/* If it may not be so large, the shelf is full earlier. */
	(void)setsockopt(p[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	r = fdstore_name(v->fs, VAULT_KIND, s->name);
	if (r == 0)
		r = fdstore_put(v->fs, s->name, s->fd);
	if (r == 0) {
		r = fdstore_barrier(v->fs, on_stored, s);
		if (r < 0)
			fdstore_drop(v->fs, s->name);
	}
	if (r < 0) {
		shelf_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

void shelf_retire(struct shelf *s)
{
	fdstore_drop(s->vault->fs, s->name);
	shelf_free(s);
}

uint32_t vault_room(const struct vault *v)
{
	const struct shelf *s;
	uint32_t sum = 0;

	TAILQ_FOREACH (s, &v->shelves, link)
		sum += s->n < s->most ? s->most - s->n : 0;
	return sum;
}

struct shelf *vault_find_room(const struct vault *v)
{
	struct shelf *s, *found = NULL;

	if (v->open && v->open->stored && v->open->n < v->open->most)
		return v->open;
	TAILQ_FOREACH (s, &v->shelves, link) {
		if (s->n >= s->most)
			continue;
		if (s->stored)
			return s;
		found = s;
	}
	return found;
}

int shelf_send(struct shelf *s, struct label label, int fd)
{
	int r = shelf_send_item(s, label, fd);

	if (r == -EAGAIN && s->n > 0)
		s->most = s->n - s->n / 16 - 1; /* with room for what is moved within it */
	return r;
}

int shelf_breaks(struct shelf *s, const char *what, int error)
{
	log_error("the shelf \"%s\" of fds is left alone: %s: %s", s->name, what, strerror(error));
	s->broken = true;
	return -EBADMSG;
}
