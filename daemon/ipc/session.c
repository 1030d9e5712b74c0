/* SPDX-License-Identifier: MIT */
/*
 * See session.h. The next request stays in the socket until its reply has been sent: peeked first, consumed last. While
 * a reply does not fit into the client's socket nothing more is read from it; after DRAIN_S of that the client is
 * dropped. Events never block anything: they are taken from the service when there is room.
 */
#include "ipc/session.h"

#include <errno.h>
#include <event2/event.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <pasid/protocol.h>

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"
#include "core/charge.h"
#include "service/service.h"
#include "store/store.h"

#define DRAIN_S 5 /* seconds for a client to make room for a reply */
#define TURN 16 /* requests before others get a look in */
#define PROBE 8 /* wake-ups, see session_work() */
#define REFUSED_MAX 32u /* connections beyond a limit that wait to be told so; more are just closed */
#define CROWDED_MS 2 /* how long to leave a client that sends fds for nothing while many wait to be closed */
#define FDS_MAX 253 /* SCM_MAX_FD of the kernel: no message carries more */

struct session {
	LIST_ENTRY(session) link;
	int fd;
	uid_t uid;
	pid_t pid;
	struct session_host *host;
	char name[STORE_NAME_MAX]; /* in the store; "": not there */
	struct service_client *client; /* NULL: refused */
	struct refusal refused; /* what its HELLO is answered */
	struct event *readable, *writable, *drain, *resume;
	bool admitted; /* the rate limit has let the message at the front pass */
	bool pending; /* the service works on the request at the front */
	bool ahead; /* there was another request behind the last one */
	unsigned int wakes;
	uint64_t owed; /* serial of the reply that waits for room; 0: none */
	void *event; /* an event that waits for room */
	size_t event_size;
	int fds[FDS_MAX]; /* of the message at hand */
	size_t n_fds;
	bool litters; /* it has sent fds that nothing came of */
};

static struct log_limit limit; /* of all sessions: a line a client can cause */
static unsigned int n_refused;

/* The message at hand; nobody keeps it beyond the call. */
static union {
	struct pasid_msg head;
	uint8_t bytes[PASID_MSG_MAX];
} message;

static void session_work(struct session *s);

/* ---- ends ---- */

struct session *session_free(struct session *s)
{
	if (!s)
		return NULL;
	free(s->event);
	if (s->readable)
		event_free(s->readable);
	if (s->writable)
		event_free(s->writable);
	if (s->drain)
		event_free(s->drain);
	if (s->resume)
		event_free(s->resume);
	if (!s->client)
		n_refused--;
	service_client_close(s->client);
	for (size_t i = 0; i < s->n_fds; i++)
		closer_close(s->fds[i], s->uid);
	/* What is still in its queue may hold fds, too. */
	shutdown(s->fd, SHUT_RDWR);
	if (s->host->store && s->name[0])
		fdstore_forget(s->host->store->fds, s);
	store_drop_client(s->host->store, s->name);
	closer_close(s->fd, s->uid);
	LIST_REMOVE(s, link);
	free(s);
	return NULL;
}

static void session_drop(struct session *s, const char *why)
{
	log_about(&(struct log_about){.pid = s->pid, .uid = s->uid}, &limit, LOG_WARN,
		  "client pid %d, uid %u is disconnected: %s", s->pid, s->uid, why);
	session_free(s);
}

/* ---- output ---- */

/* 0, -EAGAIN, or -errno: the client is gone. */
static int put(struct session *s, const void *data, size_t size, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)data, size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *cmsg;
	ssize_t n;

	if (fd >= 0) {
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	}
	do
		n = fd < 0 ? send(s->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
			   : sendmsg(s->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	return errno == EWOULDBLOCK || errno == ENOBUFS ? -EAGAIN : -errno;
}

/* False: the service had no memory to keep it. */
static bool put_kept(struct session *s, uint64_t serial, int *r)
{
	struct service_reply reply;

	if (!service_client_kept(s->client, serial, &reply))
		return false;
	*r = put(s, reply.data, reply.size, reply.with_fence ? service_client_fence(s->client) : -1);
	return true;
}

/* Takes the message whose reply is out from the socket. Its own references to fds are dropped here, never the last
 * ones: ours are closed afterwards, by the closer. */
static void consume(struct session *s)
{
	ssize_t n;

	do
		n = recv(s->fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	(void)n; /* nothing else reads this socket, and a client that is gone shows at the next peek */
	s->admitted = false;
	for (size_t i = 0; i < s->n_fds; i++) {
		s->litters |= s->fds[i] >= 0;
		closer_close(s->fds[i], s->uid);
	}
	s->n_fds = 0;
}

/* Sends the reply of `serial` and consumes its request, or waits for room. False: the session is gone. */
static bool answer(struct session *s, uint64_t serial)
{
	static const struct timeval patience = {DRAIN_S, 0};
	int r;

	if (!put_kept(s, serial, &r)) {
		session_drop(s, "no memory to keep its reply");
		return false;
	}
	if (r == -EAGAIN) {
		s->owed = serial;
		event_add(s->writable, NULL);
		if (!evtimer_pending(s->drain, NULL))
			evtimer_add(s->drain, &patience);
		event_del(s->readable);
		return true;
	}
	if (r < 0) {
		session_free(s);
		return false;
	}
	consume(s);
	return true;
}

static void on_drain(evutil_socket_t fd, short what, void *arg)
{
	struct session *s = arg;

	session_drop(s, s->client ? "it has not made room for a reply in 5 s" : "refused, and no HELLO in 5 s");
}

/* An event that finds no room waits, alone; the rest stays with the service, which keeps states and not messages. */
static bool give_one_event(struct session *s, const void *data, size_t size)
{
	int r = put(s, data, size, -1);

	if (r == -EAGAIN && !s->event) {
		s->event = malloc(size);
		if (s->event)
			memcpy(s->event, data, size);
		s->event_size = size;
	}
	if (r == -EAGAIN)
		event_add(s->writable, NULL);
	return r == 0;
}

static void give_events(struct session *s)
{
	static uint8_t buf[PASID_MSG_MAX];
	size_t n;

	if (s->owed)
		return;
	if (s->event) {
		if (!give_one_event(s, s->event, s->event_size))
			return;
		free(s->event);
		s->event = NULL;
	}
	while ((n = service_next_event(s->client, buf)))
		if (!give_one_event(s, buf, n))
			return;
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct session *s = arg;
	uint64_t owed = s->owed;

	s->owed = 0;
	if (owed) {
		if (!answer(s, owed) || s->owed)
			return;
		evtimer_del(s->drain);
		event_add(s->readable, NULL);
	}
	give_events(s);
}

/* ---- input ---- */

static void take_fds(struct session *s, struct msghdr *msg)
{
	struct cmsghdr *cmsg;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(s->fds + s->n_fds, CMSG_DATA(cmsg), n * sizeof(int));
		s->n_fds += n;
	}
}

/* Our own references to the fds of the message at the front. False: there was no room for all of them. */
static bool peek_fds(struct session *s)
{
	static union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {NULL, 0};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};

	if (recvmsg(s->fd, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0)
		return false;
	take_fds(s, &msg);
	return !(msg.msg_flags & MSG_CTRUNC);
}

/* Peeks the next message. Its size; 0: none now; negative: the session is gone. Without a control buffer the kernel
 * only tells us that there are fds (MSG_CTRUNC), and gives us none. */
static ssize_t peek(struct session *s)
{
	struct iovec iov = {message.bytes, sizeof(message)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	do
		n = recvmsg(s->fd, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n <= 0) {
		session_free(s);
		return -1;
	}
	if (n > PASID_MSG_MAX || (size_t)n < sizeof(message.head) || message.head.size != (size_t)n) {
		session_drop(s, "a message's length is not what it says, or out of bounds");
		return -1;
	}
	if ((msg.msg_flags & MSG_CTRUNC) && !peek_fds(s)) {
		session_drop(s, "the daemon has no room for the fds that came with a message");
		return -1;
	}
	return n;
}

static bool is_repeat(const struct session *s, uint64_t serial)
{
	uint64_t last = service_client_serial(s->client);

	return serial && serial <= last && last - serial < PASID_IN_FLIGHT;
}

static bool rate_allows(struct session *s)
{
	uint64_t wait;
	struct timeval tv;

	if (s->admitted)
		return true; /* it is made again because the service asked for that */
	wait = account_rate(service_client_account(s->client), util_now_ns());
	if (!wait) {
		s->admitted = true;
		return true;
	}
	tv = (struct timeval){(time_t)(wait / 1000000000), (suseconds_t)(wait / 1000 % 1000000 + 1)};
	event_del(s->readable);
	evtimer_add(s->resume, &tv);
	return false;
}

/* fds of a message that is not consumed yet: peeked again when its turn comes. */
static void put_back_fds(struct session *s)
{
	for (size_t i = 0; i < s->n_fds; i++)
		closer_close(s->fds[i], s->uid);
	s->n_fds = 0;
}

static bool carry_out(struct session *s, size_t size)
{
	struct service_reply reply;

	s->pending = true;
	switch (service_request(s->client, &message, size, s->fds, s->n_fds, &reply)) {
	case SERVICE_PENDING:
		event_del(s->readable);
		return false;
	case SERVICE_LATER:
		s->pending = false;
		put_back_fds(s);
		event_del(s->readable);
		return false;
	case SERVICE_REPLY:
		break;
	}
	s->pending = false;
	return answer(s, message.head.serial) && !s->owed;
}

/* A client that sends fds for nothing is read no faster than they are closed, so that they do not pile up here. */
static bool fds_keep_up(struct session *s)
{
	static const struct timeval wait = {0, CROWDED_MS * 1000};

	if (!s->litters || !closer_crowded(s->uid))
		return true;
	event_del(s->readable);
	evtimer_add(s->resume, &wait);
	return false;
}

/* One request; false if there is none, or it is not over yet, or the session is gone. */
static bool work_once(struct session *s)
{
	bool repeat;
	ssize_t n;

	if (!fds_keep_up(s))
		return false;
	n = peek(s);
	if (n <= 0)
		return false;
	repeat = is_repeat(s, message.head.serial);
	if (!repeat && message.head.serial != service_client_serial(s->client) + 1) {
		session_drop(s, "a serial that is neither the next one nor a kept one");
		return false;
	}
	if (!rate_allows(s)) {
		put_back_fds(s);
		return false;
	}
	/* What the last process was about to answer holds once the devices are taken over, and not before. */
	if (repeat && service_client_waits(s->client)) {
		put_back_fds(s);
		event_del(s->readable);
		return false;
	}
	if (repeat)
		return answer(s, message.head.serial) && !s->owed;
	return carry_out(s, (size_t)n);
}

/* A look that finds nothing costs as much as a look that does. Whoever waits for each reply before the next request is
 * spared it but for one wake-up in PROBE, where it shows whether there is more by now. */
static void session_work(struct session *s)
{
	int turn = s->ahead || ++s->wakes % PROBE == 0 ? TURN : 1;

	for (int i = 0; i < turn; i++) {
		if (!work_once(s))
			return;
		s->ahead = i > 0;
	}
}

/* The only word to a connection that may not be: the answer to its HELLO. Consumed first, so that the client finds the
 * answer before the end of the connection. */
static void turn_away(struct session *s)
{
	struct pasid_reply reply = {
		.msg = {.size = sizeof(reply), .opcode = PASID_OP_HELLO, .serial = 1},
		.code = refusal_code(s->refused.reason),
		.reason = s->refused.reason,
		.n1 = s->refused.n1,
		.n2 = s->refused.n2,
	};

	if (peek(s) <= 0)
		return;
	consume(s);
	if (message.head.opcode == PASID_OP_HELLO && message.head.serial == 1)
		put(s, &reply, sizeof(reply), -1);
	session_free(s);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct session *s = arg;

	if (s->client)
		session_work(s);
	else
		turn_away(s);
}

static void on_resume(evutil_socket_t fd, short what, void *arg)
{
	struct session *s = arg;

	event_add(s->readable, NULL);
	session_work(s);
}

/* ---- what the service says ---- */

static void on_reply(void *owner, const struct service_reply *reply)
{
	struct session *s = owner;

	s->pending = false;
	if (answer(s, service_client_serial(s->client)) && !s->owed)
		event_add(s->readable, NULL);
}

static void on_retry(void *owner)
{
	struct session *s = owner;

	event_active(s->resume, EV_TIMEOUT, 0);
}

static void on_events(void *owner)
{
	give_events(owner);
}

static const struct service_client_ops session_ops = {
	.reply = on_reply,
	.retry = on_retry,
	.events = on_events,
};

static int add_events(struct session *s)
{
	struct event_base *base = s->host->base;

	s->readable = event_new(base, s->fd, EV_READ | EV_PERSIST, on_readable, s);
	s->writable = event_new(base, s->fd, EV_WRITE, on_writable, s);
	s->drain = evtimer_new(base, on_drain, s);
	s->resume = evtimer_new(base, on_resume, s);
	return s->readable && s->writable && s->drain && s->resume ? 0 : -ENOMEM;
}

static struct session *session_alloc(struct session_host *host, int fd, uid_t uid, pid_t pid)
{
	struct session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->fd = fd;
	s->uid = uid;
	s->pid = pid;
	s->host = host;
	return s;
}

/* From here on the connection outlives us: nothing that it asked before was answered. */
static void on_stored(void *arg, int err)
{
	struct session *s = arg;

	if (err < 0)
		session_drop(s, "the service manager does not say that it keeps the connection");
	else if (event_add(s->readable, NULL) < 0)
		session_drop(s, "no memory");
}

/* False: there is no room for it in the store. */
static bool outlive(struct session *s)
{
	struct store *store = s->host->store;

	return store_put_client(store, s->fd, s->name) == 0 && service_client_keep(s->client, s->name) &&
	       fdstore_barrier(store->fds, on_stored, s) == 0;
}

static int session_begin(struct session *s)
{
	static const struct timeval patience = {DRAIN_S, 0};

	if (!s->client)
		return event_add(s->readable, NULL) < 0 || evtimer_add(s->drain, &patience) < 0 ? -ENOMEM : 0;
	if (!s->host->store)
		return event_add(s->readable, NULL) < 0 ? -ENOMEM : 0;
	if (!outlive(s))
		session_drop(s, "the fd store has no room for it");
	return 0;
}

/* A quarter of the store is for devices and for shelves of the vault: who is connected goes on when nobody else may come. */
static int check_store(const struct session *s, struct refusal *why)
{
	const struct fdstore *fds = s->host->store ? s->host->store->fds : NULL;
	uint32_t kept, max;

	if (!fds)
		return 0;
	kept = fdstore_count(fds);
	max = kept + fdstore_left(fds);
	max -= max / 4;
	if (kept < max)
		return 0;
	log_limited(
		&limit, LOG_WARN,
		"connection of pid %d, uid %u refused: the service manager keeps %u fds, and connections get no more "
		"than %u; raise FileDescriptorStoreMax=, or lower the limits on connections",
		s->pid, s->uid, kept, max);
	return refuse(why, PASID_WHY_QUOTA_STORE, kept, max);
}

int session_new(struct session_host *host, int fd, uid_t uid, pid_t pid)
{
	struct session *s = session_alloc(host, fd, uid, pid);
	int r;

	if (!s)
		return -ENOMEM;
	r = check_store(s, &s->refused);
	if (r == 0)
		r = service_client_new(host->service, uid, pid, &session_ops, s, &s->client, &s->refused);
	if (r < 0 && (r != -EDQUOT || n_refused == REFUSED_MAX)) {
		free(s);
		return r;
	}
	n_refused += r < 0;
	LIST_INSERT_HEAD(&host->list, s, link);
	if (add_events(s) < 0 || session_begin(s) < 0)
		session_free(s);
	return 0;
}

int session_adopt(struct session_host *host, int fd, struct service_client *client)
{
	struct session *s = session_alloc(host, fd, service_client_uid(client), service_client_pid(client));

	if (!s) {
		closer_close(fd, service_client_uid(client));
		service_client_close(client);
		return -ENOMEM;
	}
	s->client = client;
	snprintf(s->name, sizeof(s->name), "%s", service_client_name(client));
	service_client_own(client, &session_ops, s);
	LIST_INSERT_HEAD(&host->list, s, link);
	if (add_events(s) < 0 || event_add(s->readable, NULL) < 0) {
		session_free(s);
		return -ENOMEM;
	}
	if (service_client_doomed(client))
		session_drop(s, "what was kept of it is not whole");
	else
		give_events(s);
	return 0;
}
