/* SPDX-License-Identifier: MIT */
/*
 * What is dead leaves the shelves, with what it keeps alive: the shelf with most of it first, in slices. Soon if it is much;
 * what is little may wait until there is more on the same shelf, since what lives in front of it has to be moved.
 */
#include "store/vault_private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "base/closer.h"
#include "base/util.h"

#define SPARSE 64u /* a predecessor's shelf with less in it is not worth its place in the store */
#define DEAD_BYTES_MAX (UINT64_C(64) << 20) /* of all shelves: no waiting beyond */
#define DEAD_BYTES_MANY (UINT64_C(1) << 20) /* of one shelf: cleaned after SOON_MS, else after LATE_MS */
#define SOON_MS 100u
#define LATE_MS 1000u
#define SLICE 64u /* messages cleaned in one go, and then a pause */
#define PAUSE_MS 2u

/* A copy of what is at the head of its queue, in a shelf that is in the store if this one is. -EAGAIN: not now. */
static int send_copy(struct vault *v, struct item *i, int fd, struct shelf **ret)
{
	struct shelf *s = i->shelf, *unused;
	int r = -EAGAIN;

	if (s->sender >= 0)
		r = shelf_send_item(s, i->label, fd);
	while (r == -EAGAIN) {
		s = vault_find_room(v);
		if (!s)
			(void)shelf_new(v, &unused);
		if (!s || !s->stored)
			return -EAGAIN;
		r = shelf_send(s, i->label, fd);
		if (r == -EAGAIN && s->n == 0)
			return r;
	}
	*ret = s;
	return r;
}

/* A live item in front goes behind, here or elsewhere. */
static int move_head(struct vault *v, struct item *i)
{
	struct shelf *s = i->shelf, *to;
	AUTO_CLOSE int fd = -1; /* never the last one of its file: another is in the queue */
	struct label label;
	ssize_t n = shelf_receive(s, MSG_PEEK, &label, &fd);
	int r;

	if (n != i->size || label.key != i->label.key)
		return shelf_breaks(s, "what it holds cannot be looked at", n < 0 ? (int)-n : EBADMSG);
	if (fd < 0)
		return -EMFILE;
	r = send_copy(v, i, fd, &to);
	if (r < 0)
		return r;
	n = shelf_receive(s, 0, &label, NULL);
	if (n < 0)
		return shelf_breaks(s, "what was moved from it stays", (int)-n);
	shelf_remove(i);
	shelf_add(to, i);
	return 0;
}

static int drop_head(struct item *i)
{
	struct shelf *s = i->shelf;
	struct label label;
	int fd;
	ssize_t n = shelf_receive(s, 0, &label, &fd);

	if (n < 0)
		return shelf_breaks(s, "nothing can be taken from it", (int)-n);
	closer_close(fd, CLOSER_OURS);
	item_free(i);
	return n == 0 ? shelf_breaks(s, "it ends early", EBADMSG) : 0;
}

/* A predecessor's shelf in which little is left. */
static bool is_sparse(const struct shelf *s)
{
	return s->sender < 0 && s->vault->settled && s->n - s->dead < SPARSE;
}

static bool is_due(const struct shelf *s, uint64_t now)
{
	const struct vault *v = s->vault;
	uint32_t ms = s->dead_bytes >= DEAD_BYTES_MANY ? SOON_MS : LATE_MS;

	if (s->broken)
		return false;
	return is_sparse(s) ||
	       (s->dead && (v->dead_bytes > DEAD_BYTES_MAX || now - s->dirty_ns >= ms * UINT64_C(1000000)));
}

/* The one whose cleaning frees most; NULL: there is none to be cleaned now. *later: there will be. */
static struct shelf *find_due(const struct vault *v, bool *later)
{
	uint64_t now = util_now_ns();
	struct shelf *s, *found = NULL;

	*later = false;
	TAILQ_FOREACH (s, &v->shelves, link) {
		*later |= s->dead && !s->broken;
		if (is_due(s, now) && (!found || s->dead_bytes > found->dead_bytes))
			found = s;
	}
	return found;
}

/* A slice of the cleaning that was begun; 0: it goes on. */
static int clean_slice(struct vault *v, struct shelf *s)
{
	for (uint32_t n = 0; n < SLICE; n++) {
		struct item *i = TAILQ_FIRST(&s->items);
		int r;

		if (!s->left || (!s->dead && !is_sparse(s)))
			return 1;
		r = i->alive ? move_head(v, i) : drop_head(i);
		if (r < 0)
			return r;
		s->left--;
	}
	return 0;
}

static void cleaned(struct vault *v, struct shelf *s)
{
	v->cleaned = NULL;
	s->dirty_ns = util_now_ns();
	if (s->n == 0 && (s->sender < 0 || vault_room(v) >= 2 * SHELF_MAX))
		shelf_retire(s);
}

static void look(struct vault *v, uint32_t ms)
{
	const struct timeval tv = {ms / 1000, ms % 1000 * 1000};

	if (ms == 0 || !evtimer_pending(v->timer, NULL))
		evtimer_add(v->timer, &tv);
}

void vault_clean(evutil_socket_t fd, short what, void *arg)
{
	struct vault *v = arg;
	bool later = true;
	int r;

	if (!v->cleaned) {
		v->cleaned = find_due(v, &later);
		if (v->cleaned)
			v->cleaned->left = v->cleaned->n;
	}
	if (!v->cleaned) {
		if (later)
			look(v, SOON_MS);
		return;
	}
	r = clean_slice(v, v->cleaned);
	if (r > 0)
		cleaned(v, v->cleaned);
	if (r < 0) {
		v->cleaned = NULL;
		if (r != -EAGAIN && r != -EBADMSG)
			log_limited(&v->limit, LOG_WARN, "%" PRIu64 " bytes that were freed are still held: %s",
				    v->dead_bytes, strerror(-r));
	}
	look(v, r < 0 ? SOON_MS : v->dead_bytes > DEAD_BYTES_MAX ? 0 : PAUSE_MS);
}

void vault_clean_now(struct vault *v)
{
	look(v, 0);
}

void vault_clean_soon(struct vault *v)
{
	look(v, v->dead_bytes > DEAD_BYTES_MAX ? 0 : SOON_MS);
}
