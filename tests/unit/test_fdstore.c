/* SPDX-License-Identifier: MIT */
/* The fd store beside a manager of the test's own, which is slow, gone or silent when the test wants it so. */
#include <errno.h>
#include <event2/event.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/util.h"
#include "store/fdstore.h"
#include "unit/manager_rig.h"

#define MAX 300u
#define NOTES 16u /* that wait at most */

static struct event_base *base;
static struct manager manager;
static struct fdstore *fs;
static unsigned int fds_before;

static int setup(void **state)
{
	fds_before = count_fds();
	base = event_base_new();
	manager_init(&manager);
	return base ? fdstore_new(&fs, base, MAX) : -1;
}

static int teardown(void **state)
{
	fs = fdstore_free(fs);
	manager_fini(&manager);
	event_base_free(base);
	return count_fds() == fds_before ? 0 : -1;
}

static int memory(void)
{
	int fd = memfd_create("thing", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* Stores some memory under that name; the inode by which it is known again. */
static ino_t put(const char *name)
{
	AUTO_CLOSE int fd = memory();
	struct stat st;

	assert_int_equal(fdstore_put(fs, name, fd), 0);
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

static bool holds(const char *name, ino_t inode)
{
	struct stat st;
	int fd = manager_find(&manager, name);

	return fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == inode;
}

/* Both go on until neither has anything to do. */
static void settle(void)
{
	uint32_t heard;

	do {
		event_base_loop(base, EVLOOP_NONBLOCK);
		heard = manager.heard;
		manager_hear(&manager);
	} while (heard != manager.heard);
}

/* ---- */

static int told, told_error;

static void done(void *arg, int err)
{
	told++;
	told_error = err;
}

static void test_no_store(void **state)
{
	struct fdstore *none;
	char name[FDSTORE_NAME + 1];

	unsetenv("NOTIFY_SOCKET");
	assert_int_equal(fdstore_new(&none, base, MAX), 0);
	assert_false(fdstore_there(none));
	assert_int_equal(fdstore_put(none, "a000", 0), -EOPNOTSUPP);
	assert_int_equal(fdstore_drop(none, "a000"), -EOPNOTSUPP);
	assert_int_equal(fdstore_notify(none, "READY=1"), -EOPNOTSUPP);
	assert_int_equal(fdstore_barrier(none, done, &told), -EOPNOTSUPP);
	assert_int_equal(fdstore_name(none, 'a', name), 0);
	fdstore_free(none);
	setenv("NOTIFY_SOCKET", "vsock:2:1234", 1);
	assert_int_equal(fdstore_new(&none, base, MAX), -EINVAL);
	setenv("NOTIFY_SOCKET", "@nobody-listens-there", 1);
	assert_int_equal(fdstore_new(&none, base, MAX), -ECONNREFUSED);
	assert_null(fdstore_free(NULL));
}

static void test_put_and_drop(void **state)
{
	ino_t a = put("a000"), b = put("bzZ9");
	AUTO_CLOSE int fd = memory();

	assert_true(fdstore_there(fs));
	settle();
	assert_true(holds("a000", a) && holds("bzZ9", b));
	assert_int_equal(fdstore_count(fs), 2);
	assert_int_equal(fdstore_put(fs, "a000", fd), -EEXIST);
	assert_int_equal(fdstore_drop(fs, "a000"), 0);
	assert_int_equal(fdstore_drop(fs, "a000"), -ENOENT);
	a = put("a000"); /* the name is free at once */
	settle();
	assert_true(holds("a000", a));
	assert_int_equal(manager.n, 2);
	assert_int_equal(fdstore_notify(fs, "READY=1\nSTATUS=well"), 0);
	settle();
	assert_string_equal(manager.last_note, "READY=1\nSTATUS=well");
	assert_int_equal(fdstore_put(fs, "c000", -1), -EBADF);
	assert_int_equal(fdstore_count(fs), 2);
}

static void test_names(void **state)
{
	static const char *const wrong[] = {"",     "a",    "a00",   "a0000",           "a:00",
					    "a 00", ":000", "a00\n", "\xe4\x30\x30\x30"};
	char name[FDSTORE_NAME + 1];
	AUTO_CLOSE int fd = memory();

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		assert_int_equal(fdstore_put(fs, wrong[i], fd), -EINVAL);
		assert_int_equal(fdstore_drop(fs, wrong[i]), -EINVAL);
	}
	assert_int_equal(fdstore_name(fs, ':', name), -EINVAL);
	for (uint32_t i = 0; i < 70; i++) {
		assert_int_equal(fdstore_name(fs, 'x', name), 0);
		put(name);
	}
	assert_string_equal(name, "x017");
	assert_int_equal(fdstore_name(fs, 'y', name), 0);
	assert_string_equal(name, "y000");
	assert_int_equal(fdstore_drop(fs, "x00a"), 0);
	assert_int_equal(fdstore_drop(fs, "x003"), 0);
	assert_int_equal(fdstore_name(fs, 'x', name), 0);
	assert_string_equal(name, "x003");
	put(name);
	assert_int_equal(fdstore_name(fs, 'x', name), 0);
	assert_string_equal(name, "x00a");
	put(name);
	assert_int_equal(fdstore_name(fs, 'x', name), 0);
	assert_string_equal(name, "x018");
	settle();
	assert_int_equal(manager.n, 70);
}

static void test_full(void **state)
{
	AUTO_CLOSE int fd = memory();
	char name[FDSTORE_NAME + 1];
	struct fdstore *small;

	for (uint32_t i = 0; i < MAX; i++) {
		assert_int_equal(fdstore_left(fs), MAX - i);
		assert_int_equal(fdstore_name(fs, 'f', name), 0);
		put(name);
	}
	assert_int_equal(fdstore_name(fs, 'f', name), 0);
	assert_int_equal(fdstore_put(fs, name, fd), -ENOSPC);
	assert_int_equal(fdstore_drop(fs, "f000"), 0);
	assert_int_equal(fdstore_put(fs, name, fd), 0);
	settle();
	assert_int_equal(manager.n, MAX);
	/* The manager's own limit counts where it tells one that is smaller. */
	setenv("FDSTORE", "2", 1);
	assert_int_equal(fdstore_new(&small, base, MAX), 0);
	assert_int_equal(fdstore_left(small), 2);
	fdstore_free(small);
	setenv("FDSTORE", "4096", 1);
	assert_int_equal(fdstore_new(&small, base, MAX), 0);
	assert_int_equal(fdstore_left(small), MAX);
	fdstore_free(small);
}

/* A manager that does not listen for a while gets all in order, and what was taken back meanwhile never. */
static void test_slow_manager(void **state)
{
	ino_t inode[202];
	char name[FDSTORE_NAME + 1];

	for (uint32_t i = 0; i < ARRAY_SIZE(inode); i++) {
		assert_int_equal(fdstore_name(fs, 'p', name), 0);
		inode[i] = put(name);
	}
	assert_string_equal(name, "p03f");
	told = 0;
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	for (uint32_t i = 0; i < NOTES; i++)
		assert_int_equal(fdstore_notify(fs, "WATCHDOG=1"), 0);
	assert_int_equal(fdstore_notify(fs, "WATCHDOG=1"), -EAGAIN);
	assert_int_equal(fdstore_drop(fs, "p000"), 0); /* which is in the socket */
	assert_int_equal(fdstore_drop(fs, "p03f"), 0); /* which is not */
	event_base_loop(base, EVLOOP_NONBLOCK);
	assert_int_equal(told, 0);
	settle();
	assert_int_equal(told, 1);
	assert_int_equal(told_error, 0);
	assert_int_equal(manager.notes, NOTES);
	assert_int_equal(manager.heard, 201 + 1 + NOTES + 1);
	assert_int_equal(manager.n, 200);
	assert_true(holds("p001", inode[1]) && holds("p03e", inode[200]));
	assert_int_equal(fdstore_count(fs), 200);
}

/* One that is gone and comes back. */
static void test_manager_begins_anew(void **state)
{
	ino_t a, b;

	close(manager.socket);
	a = put("a000");
	b = put("a001");
	told = 0;
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	event_base_loop(base, EVLOOP_NONBLOCK);
	manager_listen(&manager);
	while (!told) {
		event_base_loop(base, EVLOOP_ONCE);
		manager_hear(&manager);
	}
	assert_int_equal(told_error, 0);
	assert_true(holds("a000", a) && holds("a001", b));
}

/* ---- barriers ---- */

static void ask_again(void *arg, int err)
{
	told++;
	if (err == 0 && told < 5)
		assert_int_equal(fdstore_barrier(fs, ask_again, arg), 0);
}

static void forget_other(void *arg, int err)
{
	told++;
	fdstore_forget(fs, arg == &told ? &told_error : &told);
}

static void test_barrier(void **state)
{
	ino_t a = put("a000");
	int order[3] = {0};

	told = 0;
	assert_int_equal(fdstore_barrier(fs, done, order), 0);
	assert_int_equal(told, 0);
	event_base_loop(base, EVLOOP_NONBLOCK);
	assert_int_equal(told, 0);
	settle();
	assert_int_equal(told, 1);
	assert_true(holds("a000", a));
	/* Asked from an answer. */
	told = 0;
	assert_int_equal(fdstore_barrier(fs, ask_again, order), 0);
	settle();
	assert_int_equal(told, 5);
	/* One that is told has the other forgotten. */
	told = 0;
	assert_int_equal(fdstore_barrier(fs, forget_other, &told), 0);
	assert_int_equal(fdstore_barrier(fs, forget_other, &told_error), 0);
	settle();
	assert_int_equal(told, 1);
}

static void test_barriers_together(void **state)
{
	char name[FDSTORE_NAME + 1];

	told = 0;
	for (unsigned int i = 0; i < 100; i++) {
		assert_int_equal(fdstore_name(fs, 'b', name), 0);
		put(name);
		for (unsigned int k = 0; k < 3; k++)
			assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	}
	settle();
	assert_int_equal(told, 300);
	assert_int_equal(manager.barriers, 2);
	assert_int_equal(manager.n, 100);
}

/* What is said after a barrier was asked for is not covered by it. */
static void test_barrier_covers_what_was_said(void **state)
{
	manager.holds_barriers = true;
	told = 0;
	put("a000");
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	settle();
	put("a001");
	assert_int_equal(fdstore_barrier(fs, done, &base), 0);
	manager_answer(&manager);
	settle();
	assert_int_equal(told, 1);
	manager_answer(&manager);
	settle();
	assert_int_equal(told, 2);
	/* Nobody waits any more for what is forgotten. */
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	fdstore_forget(fs, &told);
	settle();
	manager_answer(&manager);
	settle();
	assert_int_equal(told, 2);
}

static void test_silent_manager(void **state)
{
	uint64_t began = util_now_ns();

	manager.holds_barriers = true;
	told = 0;
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	settle();
	put("a000");
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	while (told < 2)
		event_base_loop(base, EVLOOP_ONCE);
	assert_int_equal(told_error, -ETIMEDOUT);
	assert_true(util_now_ns() - began >= 5000000000ull);
	/* Once it answers, all is well again. */
	manager.holds_barriers = false;
	assert_int_equal(fdstore_barrier(fs, done, &told), 0);
	manager_answer(&manager);
	settle();
	assert_int_equal(told, 3);
	assert_int_equal(told_error, 0);
}

/* ---- what is handed over ---- */

struct handed {
	uint32_t n;
	char names[16][16];
	bool stored[16];
};

static void take(void *arg, const char *name, int fd, bool stored)
{
	struct handed *h = arg;

	if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC))
		_exit(2);
	snprintf(h->names[h->n], sizeof(h->names[0]), "%s", name);
	h->stored[h->n++] = stored;
	close(fd);
}

#define expect(condition)                          \
	do {                                       \
		if (!(condition))                  \
			return __LINE__ % 250 + 3; \
	} while (0)

/* In a process of its own, whose first fds are what the manager handed over. */
static int taken(void)
{
	struct handed h = {0};
	char pid[16], name[FDSTORE_NAME + 1];

	for (int fd = 3; fd < 12; fd++)
		close(fd);
	for (int fd = 3; fd < 12; fd++)
		expect(memfd_create("handed", 0) == fd);
	expect(fdstore_new(&fs, base, 3) == 0);
	close(10);
	close(11);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("LISTEN_PID", "1", 1);
	setenv("LISTEN_FDS", "7", 1);
	setenv("LISTEN_FDNAMES", "gpu0:a000:b001:pasidd.socket:a000:a00-:c000", 1);
	expect(fdstore_take(fs, "a+", take, &h) == 0);
	expect(!getenv("LISTEN_PID") && !getenv("LISTEN_FDS") && !getenv("LISTEN_FDNAMES"));
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "9", 1);
	setenv("LISTEN_FDNAMES", "gpu0:a000:+001:pasidd.socket:a000:a00-:", 1);
	expect(fdstore_take(fs, "a+", take, &h) == 7); /* fds 10 and 11 are not there */
	expect(h.n == 6); /* not the second a000 */
	expect(!strcmp(h.names[0], "gpu0") && !h.stored[0] && !strcmp(h.names[1], "a000") && h.stored[1]);
	expect(!strcmp(h.names[2], "+001") && h.stored[2] && !strcmp(h.names[3], "pasidd.socket") && !h.stored[3]);
	expect(!strcmp(h.names[4], "a00-") && !h.stored[4] && !strcmp(h.names[5], "unknown") && !h.stored[5]);
	expect(fdstore_count(fs) == 3 && fdstore_left(fs) == 0);
	expect(fdstore_name(fs, 'a', name) == 0 && !strcmp(name, "a001"));
	expect(fdstore_drop(fs, "a000") == 0 && fdstore_count(fs) == 1);
	expect(fdstore_drop(fs, "gpu0") == -ENOENT);
	fdstore_free(fs);
	return 0;
}

static void test_take(void **state)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(taken());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	settle();
	assert_int_equal(manager.heard, 1);
}

/* ---- anything ---- */

static void test_random(void **state)
{
	static ino_t inode[26];
	char name[] = "r000";
	uint32_t seed = 1;

	memset(inode, 0, sizeof(inode));
	for (unsigned int i = 0; i < 20000; i++) {
		uint32_t n, what;

		seed = seed * 1103515245 + 12345;
		n = (seed >> 16) % 26;
		what = (seed >> 8) % 7;
		name[3] = (char)('a' + n);
		if (what < 3 && !inode[n]) {
			inode[n] = put(name);
		} else if (what < 3) {
			assert_int_equal(fdstore_drop(fs, name), 0);
			inode[n] = 0;
		} else if (what == 3) {
			event_base_loop(base, EVLOOP_NONBLOCK);
		} else if (what == 4) {
			assert_int_equal(fdstore_barrier(fs, done, &told), 0);
		} else {
			manager_hear_one(&manager);
		}
		if (i % 100)
			continue;
		settle();
		for (n = 0; n < 26; n++) {
			name[3] = (char)('a' + n);
			assert_true(inode[n] ? holds(name, inode[n]) : manager_find(&manager, name) < 0);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_no_store, setup, teardown),
		cmocka_unit_test_setup_teardown(test_put_and_drop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow_manager, setup, teardown),
		cmocka_unit_test_setup_teardown(test_manager_begins_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(test_barrier, setup, teardown),
		cmocka_unit_test_setup_teardown(test_barriers_together, setup, teardown),
		cmocka_unit_test_setup_teardown(test_barrier_covers_what_was_said, setup, teardown),
		cmocka_unit_test_setup_teardown(test_silent_manager, setup, teardown),
		cmocka_unit_test_setup_teardown(test_take, setup, teardown),
		cmocka_unit_test_setup_teardown(test_random, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
