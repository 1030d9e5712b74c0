/* SPDX-License-Identifier: MIT */
/*
 * Connections that are turned away because their uid's fds cannot be closed. The closer and the sessions are the test's
 * own: what counts is which sockets may wait for the uid's others, that none is closed on the loop, and what that takes.
 */
#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/closer.h"
#include "base/util.h"
#include "ipc/ipc.h"
#include "ipc/session.h"

#include "emulated.h"

#define HELD_MAX 8
#define CALLS_A_TURN 2200u /* of recvmsg(2) and recv(2) */

static struct event_base *base;
static struct ipc *ipc;
static char dir[] = "/tmp/listener-XXXXXX";
static char path[sizeof(dir) + 8];
static int n_exhausted; /* connections that come before the uid's fds are closed again */
static int held[HELD_MAX], n_held; /* by the closer, with what the uid sent */
static int n_closed; /* by the closer, as sockets with nothing in them */
static int n_sessions;
static unsigned int n_calls;

/* ---- in place of the closer, the sessions, and libc ---- */

void closer_close(int fd, uid_t uid)
{
	if (fd < 0)
		return;
	if (uid == CLOSER_OURS) {
		n_closed++;
		close(fd);
		return;
	}
	assert_true(n_held < HELD_MAX);
	assert_true(uid == getuid() || uid == (uid_t)-1);
	held[n_held++] = fd;
}

bool closer_exhausted(uid_t uid)
{
	return n_exhausted > 0 && n_exhausted--;
}

int session_new(struct session_host *host, int fd, uid_t uid, pid_t pid)
{
	n_sessions++;
	close(fd);
	return 0;
}

void sessions_adopt(struct session_host *host)
{
}

struct session *session_free(struct session *s)
{
	return NULL;
}

ssize_t __real_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *msg, int flags)
{
	n_calls++;
	return __real_recvmsg(fd, msg, flags);
}

ssize_t __real_recv(int fd, void *buf, size_t size, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t size, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t size, int flags)
{
	n_calls++;
	return __real_recv(fd, buf, size, flags);
}

/* ---- the other end ---- */

static int connect_one(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), size = 1 << 30;

	assert_true(fd >= 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* As many messages of that size as there is room for, and at most n. */
static int send_many(int fd, int n, size_t size)
{
	int i = 0;

	while (i < n && send(fd, "x", size, MSG_NOSIGNAL) >= 0)
		i++;
	return i;
}

static void send_fd(int fd, int what)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr msg = {.msg_control = control.buf, .msg_controllen = sizeof(control.buf)};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &what, sizeof(what));
	assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), 0);
}

static bool hung_up(int fd)
{
	struct pollfd p = {.fd = fd};

	return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

static unsigned int turn(void)
{
	unsigned int before = n_calls;

	event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
	return n_calls - before;
}

/* Until nothing has happened for a while; no turn may take long. */
static void run(void)
{
	for (int idle = 0; idle < 5;) {
		unsigned int calls = turn();

		assert_in_range(calls, 0, CALLS_A_TURN);
		idle = calls ? 0 : idle + 1;
		usleep(1000);
	}
}

/* Sends a pipe behind n messages. Whoever turns the connection off does not close it. */
static void fd_behind(int n, size_t size)
{
	int p[2], c = connect_one();

	assert_int_equal(pipe(p), 0);
	assert_int_equal(send_many(c, n, size), n);
	send_fd(c, p[1]);
	close(p[1]);
	n_exhausted = 1;
	run();
	assert_true(hung_up(c));
	close(c);
	assert_int_equal(n_held, 1);
	assert_int_equal(n_closed, 0);
	assert_false(hung_up(p[0]));
	close(held[0]);
	assert_true(hung_up(p[0]));
	close(p[0]);
}

/* ---- tests ---- */

static void test_fds_behind_other_messages(void **state)
{
	fd_behind(0, 0);
	n_held = 0;
	fd_behind(1, 1);
}

/* More than were once thought to be all that a socket can hold. */
static void test_fds_behind_many_messages(void **state)
{
	fd_behind(530, 1);
}

static void test_fds_behind_many_empty_messages(void **state)
{
	fd_behind(530, 0);
}

static void test_messages_without_fds(void **state)
{
	for (size_t size = 0; size < 2; size++) {
		int c = connect_one(), n = send_many(c, 530, size);

		n_calls = 0;
		n_exhausted = 1;
		run();
		assert_true(hung_up(c));
		assert_int_equal(n_held, 0);
		assert_int_equal(n_closed, size + 1);
		assert_in_range(n_calls, n, 2 * n + 2);
		close(c);
	}
}

/* What is refused costs no more than what it brought. */
static void test_end_is_recognized(void **state)
{
	int c = connect_one(), d = connect_one();

	assert_int_equal(send(d, "x", 1, MSG_NOSIGNAL), 1);
	close(d); /* nobody is there any more */
	n_exhausted = 2;
	run();
	assert_true(hung_up(c));
	assert_int_equal(n_held, 0);
	assert_int_equal(n_closed, 2);
	assert_in_range(n_calls, 1, 6);
	close(c);
}

/* Others are accepted once a long queue is gone, a part in each turn. */
static void test_long_queue(void **state)
{
	int c = connect_one(), d, e, n = send_many(c, 100000, 0);

	n_exhausted = 2;
	d = connect_one();
	assert_int_equal(send(d, "x", 1, MSG_NOSIGNAL), 1);
	e = connect_one();
	n_calls = 0;
	run();
	assert_int_equal(n_held, 0);
	assert_int_equal(n_closed, 2);
	assert_in_range(n_calls, n, 2 * n + 6);
	assert_true(hung_up(c) && hung_up(d) && hung_up(e));
	assert_int_equal(n_sessions, 1);
	close(c);
	close(d);
	close(e);
}

static void test_end_in_a_long_queue(void **state)
{
	int c = connect_one(), n = send_many(c, 100000, 0);

	n_exhausted = 1;
	turn();
	if (n <= 1024) {
		close(c);
		print_message("net.core.wmem_max lets no queue be that long\n");
		skip();
	}
	assert_int_equal(n_held, 0);
	ipc = ipc_free(ipc);
	assert_int_equal(n_held, 2); /* with the listening socket */
	close(held[0]);
	close(held[1]);
	close(c);
}

/* Connections that nobody has accepted yet end with the listener, and what was sent to them, too. */
static void test_end_with_connections_waiting(void **state)
{
	int p[2], c = connect_one();

	assert_int_equal(pipe(p), 0);
	send_fd(c, p[1]);
	close(p[1]);
	ipc = ipc_free(ipc);
	assert_false(hung_up(p[0]));
	assert_int_equal(n_held, 1);
	close(held[0]);
	assert_true(hung_up(p[0]));
	close(p[0]);
	close(c);
}

static int setup(void **state)
{
	n_exhausted = n_held = n_closed = n_sessions = 0;
	n_calls = 0;
	base = event_base_new();
	return base && ipc_new(&ipc, base, NULL, path, 0600, -1, NULL) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
	n_held = 0;
	ipc = ipc_free(ipc);
	for (int i = 0; i < n_held; i++)
		close(held[i]);
	event_base_free(base);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_fds_behind_other_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fds_behind_many_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fds_behind_many_empty_messages, setup, teardown),
		cmocka_unit_test_setup_teardown(test_messages_without_fds, setup, teardown),
		cmocka_unit_test_setup_teardown(test_end_is_recognized, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_queue, setup, teardown),
		cmocka_unit_test_setup_teardown(test_end_in_a_long_queue, setup, teardown),
		cmocka_unit_test_setup_teardown(test_end_with_connections_waiting, setup, teardown),
	};
	int r;

	if (emulated(EMULATED_CONTROL))
		return 77;
	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/socket", dir);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	rmdir(dir);
	return r;
}
