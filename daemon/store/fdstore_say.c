/* SPDX-License-Identifier: MIT */
/*
 * See fdstore_private.h. Messages that did not go out wait in the outbox, and as long as one waits there no other overtakes
 * it. There is at most one for each name that is dropped or put, one barrier, and NOTES_MAX others.
 *
 * Of barriers one is on its way at a time. Whoever asks for one when nothing was said since it was begun waits for that
 * one, the others for the next.
 */
#include "store/fdstore_private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/closer.h"
#include "base/util.h"

#define NOTES_MAX 16u
#define BARRIER_MS 5000u
#define AGAIN_MS 50 /* between tries where the manager takes nothing, and not because its socket is full */

/* ---- messages ---- */

struct message *message_new(enum message_kind kind, const char *text)
{
	size_t size = strlen(text) + 1;
	struct message *m = calloc(1, sizeof(*m) + size);

	if (!m)
		return NULL;
	m->kind = kind;
	m->fd = -1;
	memcpy(m->text, text, size);
	return m;
}

/* By now nobody else may have its fd, a device's perhaps. */
static void message_close(struct message *m)
{
	closer_close(util_take_fd(&m->fd), CLOSER_OURS);
}

void message_free(struct message *m)
{
	message_close(m);
	free(m);
}

/* 0, or -errno: it was not sent. */
static int message_send(struct fdstore *fs, const struct message *m, int fd)
{
	static const char *const before[] = {[PUT] = "FDSTORE=1\nFDPOLL=0\nFDNAME=",
					     [DROP] = "FDSTOREREMOVE=1\nFDNAME=",
					     [BARRIER] = "",
					     [NOTE] = ""};
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec v[] = {{(char *)(uintptr_t)before[m->kind], strlen(before[m->kind])},
			    {(char *)(uintptr_t)m->text, strlen(m->text)}};
	struct msghdr h = {.msg_iov = v, .msg_iovlen = ARRAY_SIZE(v)};

	if (fd >= 0) {
		h.msg_control = control.space;
		h.msg_controllen = sizeof(control.space);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	}
	return sendmsg(fs->socket, &h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* ---- the outbox ---- */

/* What did not go out now is tried again: when the socket has room, or some time later. */
static void try_again(struct fdstore *fs, int error)
{
	static const struct timeval later = {0, AGAIN_MS * 1000};

	if (error == -EAGAIN) {
		event_add(fs->writable, NULL);
		return;
	}
	log_limited(&fs->limit, LOG_WARN, "the service manager takes no messages at %s: %s; it is tried again",
		    getenv("NOTIFY_SOCKET"), strerror(-error));
	/* It may have begun anew. */
	if (error == -ECONNREFUSED || error == -ENOTCONN)
		(void)connect(fs->socket, (const struct sockaddr *)&fs->address, fs->address_len);
	evtimer_add(fs->again, &later);
}

static void outbox_add(struct fdstore *fs, struct message *m)
{
	TAILQ_INSERT_TAIL(&fs->outbox, m, link);
	m->queued = true;
	fs->notes += m->kind == NOTE;
}

void outbox_remove(struct fdstore *fs, struct message *m)
{
	TAILQ_REMOVE(&fs->outbox, m, link);
	m->queued = false;
	fs->notes -= m->kind == NOTE;
}

/* Does it go by itself, some time? What is too much, or no fd at all, does not. */
static bool is_passing(int error)
{
	switch (error) {
	case -EAGAIN:
	case -ECONNREFUSED:
	case -EINTR:
	case -ENOBUFS:
	case -ENOENT:
	case -ENOMEM:
	case -ENOTCONN:
		return true;
	default:
		return false;
	}
}

int fdstore_say(struct fdstore *fs, struct message *m, int fd)
{
	int r = -EAGAIN;

	if (TAILQ_EMPTY(&fs->outbox)) {
		r = message_send(fs, m, fd);
		if (r < 0 && m->kind != DROP && !is_passing(r))
			return r;
	}
	if (r < 0 && fd >= 0) {
		m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (m->fd < 0)
			return -errno;
	}
	if (r < 0 && TAILQ_EMPTY(&fs->outbox))
		try_again(fs, r);
	if (r < 0)
		outbox_add(fs, m);
	fs->said++;
	return 0;
}

static void flush_outbox(evutil_socket_t fd, short what, void *arg)
{
	struct fdstore *fs = arg;
	struct message *m;
	int r;

	while ((m = TAILQ_FIRST(&fs->outbox))) {
		r = message_send(fs, m, m->fd);
		if (r < 0) {
			try_again(fs, r);
			return;
		}
		outbox_remove(fs, m);
		if (m->kind == PUT)
			message_close(m);
		else
			message_free(m);
	}
}

int fdstore_notify(struct fdstore *fs, const char *text)
{
	struct message *m;
	int r;

	if (fs->socket < 0)
		return -EOPNOTSUPP;
	if (fs->notes == NOTES_MAX)
		return -EAGAIN;
	m = message_new(NOTE, text);
	if (!m)
		return -ENOMEM;
	r = fdstore_say(fs, m, -1);
	if (r < 0 || !m->queued)
		message_free(m);
	return r;
}

/* ---- barriers ---- */

static void look_at_deadlines(struct fdstore *fs)
{
	struct waiter *w = TAILQ_FIRST(&fs->asked);
	uint64_t now = util_now_ns(), ns;
	struct timeval left;

	if (!w)
		w = TAILQ_FIRST(&fs->next);
	if (!w) {
		evtimer_del(fs->deadline);
		return;
	}
	ns = w->deadline_ns > now ? w->deadline_ns - now : 0;
	left.tv_sec = (time_t)(ns / 1000000000u);
	left.tv_usec = (suseconds_t)(ns % 1000000000u / 1000);
	evtimer_add(fs->deadline, &left);
}

static void finish(struct fdstore *fs, struct waiters *from, struct waiter *w, int err)
{
	TAILQ_REMOVE(from, w, link);
	TAILQ_INSERT_TAIL(&fs->finished, w, link);
	w->err = err;
}

static void finish_all(struct fdstore *fs, struct waiters *from, int err)
{
	struct waiter *w;

	while ((w = TAILQ_FIRST(from)))
		finish(fs, from, w, err);
}

/* Whoever is told may ask again, or have others forgotten. */
static void tell(struct fdstore *fs)
{
	struct waiter *w;

	while ((w = TAILQ_FIRST(&fs->finished))) {
		TAILQ_REMOVE(&fs->finished, w, link);
		w->done(w->arg, w->err);
		free(w);
	}
	look_at_deadlines(fs);
}

static int barrier_begin(struct fdstore *fs);

static void on_answer(evutil_socket_t fd, short what, void *arg)
{
	struct fdstore *fs = arg;
	char byte;
	int r = 0;

	if (read(fs->answer_fd, &byte, 1) != 0)
		return;
	event_free(fs->answer);
	fs->answer = NULL;
	close(util_take_fd(&fs->answer_fd));
	finish_all(fs, &fs->asked, 0);
	TAILQ_CONCAT(&fs->asked, &fs->next, link);
	if (!TAILQ_EMPTY(&fs->asked))
		r = barrier_begin(fs);
	if (r < 0)
		finish_all(fs, &fs->asked, r);
	tell(fs);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct fdstore *fs = arg;
	struct waiters *lists[] = {&fs->asked, &fs->next};
	uint64_t now = util_now_ns();
	uint32_t n = 0;
	struct waiter *w;

	for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
		for (; (w = TAILQ_FIRST(lists[i])) && w->deadline_ns <= now; n++)
			finish(fs, lists[i], w, -ETIMEDOUT);
	if (n)
		log_limited(&fs->limit, LOG_WARN,
			    "the service manager has not answered within %u ms; %u requests waited for it", BARRIER_MS,
			    n);
	tell(fs);
}

static int barrier_begin(struct fdstore *fs)
{
	AUTO_CLOSE int near = -1, far = -1;
	struct message *m;
	int p[2], r;

	if (pipe2(p, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	near = p[0];
	far = p[1];
	fs->answer = event_new(fs->base, near, EV_READ | EV_PERSIST, on_answer, fs);
	m = message_new(BARRIER, "BARRIER=1");
	r = fs->answer && m && event_add(fs->answer, NULL) == 0 ? fdstore_say(fs, m, far) : -ENOMEM;
	if (m && (r < 0 || !m->queued))
		message_free(m);
	if (r < 0) {
		if (fs->answer)
			event_free(fs->answer);
		fs->answer = NULL;
		return r;
	}
	fs->answer_fd = util_take_fd(&near);
	fs->covers = fs->said;
	return 0;
}

int fdstore_barrier(struct fdstore *fs, void (*done)(void *arg, int err), void *arg)
{
	AUTO_FREE struct waiter *w = NULL;
	int r = 0;

	if (fs->socket < 0)
		return -EOPNOTSUPP;
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->done = done;
	w->arg = arg;
	w->deadline_ns = util_now_ns() + BARRIER_MS * UINT64_C(1000000);
	if (!fs->answer)
		r = barrier_begin(fs);
	if (r < 0)
		return r;
	if (fs->covers == fs->said)
		TAILQ_INSERT_TAIL(&fs->asked, w, link);
	else
		TAILQ_INSERT_TAIL(&fs->next, w, link);
	w = NULL;
	look_at_deadlines(fs);
	return 0;
}

static void forget(struct waiters *l, const void *arg)
{
	struct waiter *w, *next;

	TAILQ_FOREACH_SAFE (w, l, link, next) {
		if (arg && w->arg != arg)
			continue;
		TAILQ_REMOVE(l, w, link);
		free(w);
	}
}

void fdstore_forget(struct fdstore *fs, const void *arg)
{
	assert(arg);
	forget(&fs->asked, arg);
	forget(&fs->next, arg);
	forget(&fs->finished, arg);
}

/* ---- its life ---- */

static int parse_address(struct fdstore *fs, const char *text)
{
	size_t len = strlen(text);

	if ((text[0] != '/' && text[0] != '@') || len < 2 || len >= sizeof(fs->address.sun_path))
		return -EINVAL;
	fs->address.sun_family = AF_UNIX;
	memcpy(fs->address.sun_path, text, len + 1);
	fs->address_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (text[0] == '/'));
	if (text[0] == '@')
		fs->address.sun_path[0] = '\0';
	return 0;
}

int fdstore_say_init(struct fdstore *fs, const char *address)
{
	int r = parse_address(fs, address);

	if (r < 0)
		return r;
	fs->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fs->socket < 0 || connect(fs->socket, (const struct sockaddr *)&fs->address, fs->address_len) < 0)
		return -errno;
	fs->writable = event_new(fs->base, fs->socket, EV_WRITE, flush_outbox, fs);
	fs->again = evtimer_new(fs->base, flush_outbox, fs);
	fs->deadline = evtimer_new(fs->base, on_deadline, fs);
	return fs->writable && fs->again && fs->deadline ? 0 : -ENOMEM;
}

void fdstore_say_fini(struct fdstore *fs)
{
	struct event *events[] = {fs->writable, fs->again, fs->answer, fs->deadline};
	struct message *m;

	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		if (events[i])
			event_free(events[i]);
	while ((m = TAILQ_FIRST(&fs->outbox))) {
		outbox_remove(fs, m);
		message_free(m);
	}
	forget(&fs->asked, NULL);
	forget(&fs->next, NULL);
	forget(&fs->finished, NULL);
	util_closep(&fs->answer_fd);
	util_closep(&fs->socket);
}
