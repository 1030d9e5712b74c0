/* SPDX-License-Identifier: MIT */
/*
 * What stands between the bus and sd-bus, with a bus of the test's own: messages of any size, with and without fds, both ways
 * at once, read at random. Every byte comes, in order; fds come with the message that they were sent with, for whoever reads
 * message by message; from the bus, memfds pass and nothing else does. $SEED repeats a run.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>

#include "base/util.h"
#include "dbus/wire.h"
#include "random.h"

#define MESSAGES 400u
#define BYTES_MAX 40000u
#define FDS_MAX 5u

static struct rng rng;

static uint32_t rnd(uint32_t below)
{
	return (uint32_t)rng_below(&rng, below);
}

struct message {
	size_t size;
	uint32_t n_fds;
	ino_t ino[FDS_MAX]; /* 0: of no memfd */
};

/* One way: what was sent, and how far it has been read. */
struct way {
	int from, to;
	bool from_bus;
	struct message sent[MESSAGES];
	size_t n_sent, part, n_read,
		at; /* part: bytes that are sent of the last message; at: bytes read of the next one */
	uint32_t fds_seen;
};

static struct event_base *base;
static struct wire *wire;
static int bus, near;

static void begin(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	AUTO_CLOSE int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char where[64];
	socklen_t len;

	snprintf(where, sizeof(where), "unix:abstract=pasidd-test-wire-%d", getpid());
	assert_int_equal(wire_address(where, &addr, &len), 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	base = event_base_new();
	assert_non_null(base);
	assert_int_equal(wire_open(&wire, base, where, &near), 0);
	bus = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	assert_true(bus >= 0);
}

static void turn(void)
{
	event_base_loop(base, EVLOOP_NONBLOCK);
}

static int some_fd(bool memory, ino_t *ino)
{
	int fd = memory ? memfd_create("wire", MFD_CLOEXEC) : dup(STDIN_FILENO);
	struct stat st;

	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	*ino = memory ? st.st_ino : 0;
	return fd;
}

/* One message, in one call as a bus does, or the rest of one of which the socket took a part. */
static void send_next(struct way *w)
{
	union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	static uint8_t bytes[BYTES_MAX + 1];
	struct message *m = &w->sent[w->n_sent];
	struct iovec iov = {bytes, 0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	int fds[FDS_MAX];
	ssize_t n;

	if (w->n_sent == MESSAGES)
		return;
	if (!w->part) {
		*m = (struct message){.size = 1 + rnd(rnd(4) ? 200 : BYTES_MAX)};
		m->n_fds = rnd(2) ? rnd(FDS_MAX + 1) : 0;
		for (uint32_t i = 0; i < m->n_fds; i++)
			fds[i] = some_fd(rnd(2), &m->ino[i]);
	}
	iov.iov_len = m->size - w->part;
	memset(bytes, (int)(w->n_sent & 0xff), iov.iov_len);
	if (!w->part && m->n_fds) {
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(m->n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(m->n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, m->n_fds * sizeof(int));
	}
	n = sendmsg(w->from, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	for (uint32_t i = 0; !w->part && i < m->n_fds; i++)
		close(fds[i]);
	if (n < 0) {
		assert_int_equal(errno, EAGAIN);
		return;
	}
	w->part += (size_t)n;
	if (w->part == m->size) {
		w->part = 0;
		w->n_sent++;
	}
}

static void expect_fd(const struct way *w, ino_t ino, int fd)
{
	bool memory = fcntl(fd, F_GET_SEALS) >= 0;
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	if (ino || w->from_bus)
		assert_int_equal(memory, ino != 0);
	if (ino)
		assert_int_equal(st.st_ino, ino);
	else if (w->from_bus)
		assert_true(write(fd, "x", 1) < 0); /* it is nothing: an eventfd takes no single byte */
	close(fd);
}

/* As sd-bus does: no further than to the end of the message. */
static void read_some(struct way *w)
{
	union {
		char buf[CMSG_SPACE(253 * sizeof(int))];
		struct cmsghdr align;
	} control;
	static uint8_t bytes[BYTES_MAX + 1];
	const struct message *m = &w->sent[w->n_read];
	struct iovec iov = {bytes, 0};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	ssize_t n;

	if (w->n_read == w->n_sent && !w->part)
		return;
	iov.iov_len = 1 + rnd((uint32_t)(m->size - w->at));
	n = recvmsg(w->to, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return;
	assert_true(n > 0);
	for (ssize_t i = 0; i < n; i++)
		assert_int_equal(bytes[i], w->n_read & 0xff);
	for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
		for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			assert_true(w->fds_seen < m->n_fds);
			expect_fd(w, m->ino[w->fds_seen++], fd);
		}
	w->at += (size_t)n;
	if (w->at < m->size)
		return;
	assert_int_equal(w->fds_seen, m->n_fds);
	w->n_read++;
	w->at = w->fds_seen = 0;
}

static void test_both_ways(void **state)
{
	static struct way in, out;
	uint32_t bias;

	begin();
	in = (struct way){.from = bus, .to = near, .from_bus = true};
	out = (struct way){.from = near, .to = bus};
	while (in.n_read < MESSAGES || out.n_read < MESSAGES) {
		bias = rnd(5); /* who is fast for a while */
		for (uint32_t i = rnd(40); i; i--) {
			if (rnd(5) >= bias)
				send_next(&in);
			if (rnd(5) >= bias)
				send_next(&out);
			if (rnd(3) == 0)
				turn();
			if (rnd(5) <= bias)
				read_some(&in);
			if (rnd(5) <= bias)
				read_some(&out);
		}
	}
	assert_null(wire_close(wire));
	assert_int_equal(read(bus, &bias, 1), 0);
	assert_int_equal(read(near, &bias, 1), 0);
	close(bus);
	close(near);
	event_base_free(base);
}

/* The end of one side is the end of the other. */
static void test_ends(void **state)
{
	char c;

	begin();
	close(bus);
	turn();
	assert_int_equal(recv(near, &c, 1, MSG_DONTWAIT), 0);
	wire_close(wire);
	close(near);
	event_base_free(base);

	begin();
	close(near);
	turn();
	assert_int_equal(recv(bus, &c, 1, MSG_DONTWAIT), 0);
	wire_close(wire);
	close(bus);
	event_base_free(base);
}

/* A bus that takes nothing is one that stands still, from the moment on that there is something for it. */
static void test_stands_still(void **state)
{
	static const uint8_t bytes[65536];
	static uint8_t taken[65536];
	uint64_t still, before = 0;

	begin();
	assert_false(wire_behind(wire, &still));
	for (int i = 0; i < 100; i++) { /* the first ones find room in the socket, the last ones do not */
		(void)!send(near, bytes, i ? sizeof(bytes) : 1, MSG_DONTWAIT);
		turn();
		assert_true(wire_behind(wire, &still));
		assert_true(still >= before);
		before = still;
	}
	assert_true(still > 0);
	(void)!recv(bus, taken, sizeof(taken), MSG_DONTWAIT);
	assert_true(wire_behind(wire, &still));
	assert_int_equal(still, 0);
	for (int i = 0; i < 1000; i++) {
		(void)!recv(bus, taken, sizeof(taken), MSG_DONTWAIT);
		turn();
	}
	assert_false(wire_behind(wire, &still));
	wire_close(wire);
	close(bus);
	close(near);
	event_base_free(base);
}

static void test_nobody_there(void **state)
{
	base = event_base_new();
	assert_int_equal(wire_open(&wire, base, "unix:path=/nowhere/at/all", &near), -ENOENT);
	assert_null(wire_close(NULL));
	event_base_free(base);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_ways),
		cmocka_unit_test(test_ends),
		cmocka_unit_test(test_stands_still),
		cmocka_unit_test(test_nobody_there),
	};

	rng.s = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
