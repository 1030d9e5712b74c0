/* SPDX-License-Identifier: MIT */
/* See vault.h: putting, dropping, getting, and taking over. How it is done is in vault_shelf.c. */
#include "store/vault.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/closer.h"
#include "base/util.h"
#include "store/vault_private.h"

/* ---- putting and dropping ---- */

static int place(struct vault *v, struct label label, int fd, struct shelf **ret)
{
	int r;

	do {
		*ret = vault_find_room(v);
		r = *ret ? 0 : shelf_new(v, ret);
		if (r < 0)
			return r;
		r = shelf_send(*ret, label, fd);
	} while (r == -EAGAIN && (*ret)->n > 0);
	return r;
}

static struct item *item_new(struct vault *v, struct label label)
{
	struct item *i;

	if (v->count >= v->n_buckets && vault_grow(v) < 0)
		return NULL;
	i = calloc(1, sizeof(*i));
	if (!i)
		return NULL;
	i->label = label;
	i->size = sizeof(label);
	i->fd = -1;
	return i;
}

static void item_lives(struct vault *v, struct item *i)
{
	i->alive = true;
	SLIST_INSERT_HEAD(vault_bucket(v, i->label.key), i, chain);
	v->count++;
}

/* A shelf is made before it is needed, so that by then it is stored for certain. Without it a later put says why. */
static void prepare_next(struct vault *v)
{
	struct shelf *unused;

	if (fdstore_there(v->fs) && vault_room(v) < SHELF_MAX / 2)
		(void)shelf_new(v, &unused);
}

int vault_put(struct vault *v, uint64_t key, uint64_t bytes, int fd)
{
	AUTO_FREE struct item *i = NULL;
	struct shelf *s;
	int r;

	if (!fdstore_there(v->fs))
		return -EOPNOTSUPP;
	i = item_new(v, (struct label){key, bytes});
	if (!i)
		return -ENOMEM;
	if (vault_find(v, key))
		return -EEXIST;
	r = place(v, i->label, fd, &s);
	if (r < 0)
		return r;
	v->open = s;
	shelf_add(s, i);
	item_lives(v, TAKE_PTR(i));
	if (s->n % 32 == 0)
		prepare_next(v);
	return s->stored ? 0 : VAULT_SOON;
}

int vault_drop(struct vault *v, uint64_t key)
{
	struct item *i = v->count ? vault_find(v, key) : NULL;

	if (!i)
		return -ENOENT;
	SLIST_REMOVE(vault_bucket(v, key), i, item, chain);
	v->count--;
	item_dies(i);
	vault_clean_soon(v);
	return 0;
}

int vault_get(struct vault *v, uint64_t key)
{
	struct item *i = v->count ? vault_find(v, key) : NULL, *before;
	struct label label;
	int offset = 0, fd = -1, r;
	ssize_t n;

	if (!i)
		return -ENOENT;
	if (i->fd >= 0)
		return util_take_fd(&i->fd);
	for (before = TAILQ_FIRST(&i->shelf->items); before != i; before = TAILQ_NEXT(before, link))
		offset += (int)before->size;
	r = shelf_peek_from(i->shelf, offset);
	if (r < 0)
		return r;
	n = shelf_receive(i->shelf, MSG_PEEK, &label, &fd);
	(void)shelf_peek_from(i->shelf, -1);
	if (n == (ssize_t)sizeof(label) && label.key == key)
		return fd < 0 ? -EMFILE : fd;
	closer_close(fd, CLOSER_OURS);
	return shelf_breaks(i->shelf, "it does not hold what it should", n < 0 ? (int)-n : EBADMSG);
}

/* ---- a successor ---- */

static bool is_socket_for_messages(int fd)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_SEQPACKET;
}

/* 1: there was one more message, up to *offset; 0: that was all. */
static int adopt_item(struct vault *v, struct shelf *s, int *offset)
{
	struct label label = {0};
	struct item *i;
	int fd;
	ssize_t n = shelf_receive(s, MSG_PEEK, &label, &fd);

	if (n == 0 || n == -EAGAIN)
		return 0;
	if (n < 0)
		return (int)n;
	i = item_new(v, label);
	if (!i) {
		closer_close(fd, CLOSER_OURS);
		return -ENOMEM;
	}
	i->size = (uint32_t)n;
	i->fd = fd;
	shelf_add(s, i);
	*offset += (int)n;
	if (n != sizeof(label)) {
		(void)shelf_peek_from(s, *offset); /* it counts what fitted into the label */
		i->label = (struct label){0};
		log_warn("the shelf \"%s\" of fds has a message of %zd bytes, which is not ours", s->name, n);
	}
	/* The same key once more: it was being moved. */
	if (n == sizeof(label) && !vault_find(v, label.key))
		item_lives(v, i);
	else
		item_dies(i);
	return 1;
}

int vault_adopt(struct vault *v, const char *name, int fd)
{
	struct shelf *s;
	int offset = 0, r;

	if (strlen(name) != FDSTORE_NAME || !is_socket_for_messages(fd)) {
		closer_close(fd, 0);
		fdstore_drop(v->fs, name);
		return -EBADMSG;
	}
	s = shelf_alloc(v, fd, -1);
	if (!s) {
		closer_close(fd, CLOSER_OURS);
		return -ENOMEM;
	}
	memcpy(s->name, name, sizeof(s->name));
	s->stored = true;
	r = shelf_peek_from(s, 0);
	while (r >= 0 && (r = adopt_item(v, s, &offset)) > 0)
		;
	if (r == 0)
		r = shelf_peek_from(s, -1);
	if (r < 0)
		shelf_free(s);
	return r;
}

void vault_forget_others(struct vault *v, bool (*known)(void *arg, uint64_t key), void *arg)
{
	struct shelf *s;
	struct item *i;

	TAILQ_FOREACH (s, &v->shelves, link)
		TAILQ_FOREACH (i, &s->items, link) {
			if (i->alive && !known(arg, i->label.key))
				(void)vault_drop(v, i->label.key);
			closer_close(util_take_fd(&i->fd), CLOSER_OURS);
		}
	v->settled = true;
	prepare_next(v);
	vault_clean_now(v);
}

/* ---- its life ---- */

int vault_new(struct vault **ret, struct event_base *base, struct fdstore *fs)
{
	struct vault *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->base = base;
	v->fs = fs;
	TAILQ_INIT(&v->shelves);
	v->timer = evtimer_new(base, vault_clean, v);
	if (!v->timer || vault_grow(v) < 0) {
		vault_free(v);
		return -ENOMEM;
	}
	*ret = v;
	return 0;
}

struct vault *vault_free(struct vault *v)
{
	struct shelf *s;

	if (!v)
		return NULL;
	while ((s = TAILQ_FIRST(&v->shelves)))
		shelf_free(s);
	if (v->timer)
		event_free(v->timer);
	free(v->buckets);
	free(v);
	return NULL;
}

size_t vault_count(const struct vault *v)
{
	return v->count;
}

uint64_t vault_dead_bytes(const struct vault *v)
{
	return v->dead_bytes;
}
