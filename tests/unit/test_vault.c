/* SPDX-License-Identifier: MIT */
/*
 * The vault beside a list of what is in it. It dies again and again, at random and before each message that it sends or
 * takes, and a successor has to find all that lives. What was dropped is closed in the end, wherever it was.
 */
#include <errno.h>
#include <event2/event.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/closer.h"
#include "base/util.h"
#include "store/fdstore.h"
#include "store/vault.h"
#include "unit/emulated.h"
#include "unit/manager_rig.h"

#define KEYS 9000u
#define LOW 200 /* fds from 3 on that are free for what a manager hands over */
#define MANY (UINT64_C(65) << 20) /* bytes that are not held for a moment */

static struct event_base *base;
static struct manager manager;
static struct fdstore *fs;
static struct vault *vault;
static unsigned int fds_before;
static bool lives[KEYS];
static uint64_t deadline_ns; /* of a test */

/* ---- a process's end, before some message ---- */

static uint32_t messages_left; /* 0: no end is near */

ssize_t __real_sendmsg(int fd, const struct msghdr *h, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *h, int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *h, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *h, int flags);

static void count_down(void)
{
	if (messages_left && !--messages_left)
		_exit(0);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *h, int flags)
{
	count_down();
	return __real_sendmsg(fd, h, flags);
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *h, int flags)
{
	count_down();
	return __real_recvmsg(fd, h, flags);
}

/* ---- lives ---- */

static int memory(uint64_t key)
{
	int fd = memfd_create("thing", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &key, sizeof(key), 0), sizeof(key));
	return fd;
}

static uint64_t key_of(int fd)
{
	uint64_t key = UINT64_MAX;

	(void)!pread(fd, &key, sizeof(key), 0);
	return key;
}

static void take(void *arg, const char *name, int fd, bool stored)
{
	assert_true(stored);
	assert_int_equal(vault_adopt(vault, name, fcntl(fd, F_DUPFD_CLOEXEC, LOW)), 0);
	dup2(STDERR_FILENO, fd); /* the place stays taken */
}

/* As after exec: what the manager has is handed over. */
static void begin(void)
{
	char pid[16], n[16], names[8 * LOW] = "";

	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	snprintf(n, sizeof(n), "%u", manager.n);
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", n, 1);
	assert_true(manager.n < LOW);
	for (uint32_t i = 0; i < manager.n; i++) {
		assert_int_equal(dup2(manager.stored[i].fd, 3 + (int)i), 3 + (int)i);
		strcat(strcat(names, manager.stored[i].name), ":");
	}
	setenv("LISTEN_FDNAMES", names, 1);
	base = event_base_new();
	assert_non_null(base);
	assert_int_equal(fdstore_new(&fs, base, 1000), 0);
	assert_int_equal(vault_new(&vault, base, fs), 0);
	assert_int_equal(fdstore_take(fs, "+", take, NULL), (int)manager.n);
}

static void end(void)
{
	vault = vault_free(vault);
	fs = fdstore_free(fs);
	event_base_free(base);
	manager_hear(&manager); /* what was said is heard, even after its death */
}

static void go_on(void)
{
	event_base_loop(base, EVLOOP_NONBLOCK);
	manager_hear(&manager);
}

/* Until something happens; what never does fails the test. */
static void wait_a_turn(void)
{
	assert_true(util_now_ns() < deadline_ns);
	event_base_loop(base, EVLOOP_ONCE);
	manager_hear(&manager);
}

static void put(uint64_t key, uint64_t bytes)
{
	AUTO_CLOSE int fd = memory(key);

	assert_in_range(vault_put(vault, key, bytes, fd), 0, VAULT_SOON);
	lives[key] = true;
}

static void drop(uint64_t key)
{
	assert_int_equal(vault_drop(vault, key), 0);
	lives[key] = false;
}

static size_t count_lives(void)
{
	size_t n = 0;

	for (uint32_t key = 0; key < KEYS; key++)
		n += lives[key];
	return n;
}

static bool is_known(void *arg, uint64_t key)
{
	return key < KEYS && lives[key];
}

static void check_all(void)
{
	assert_int_equal(vault_count(vault), count_lives());
	for (uint32_t key = 0; key < KEYS; key++) {
		AUTO_CLOSE int fd = vault_get(vault, key);

		if (lives[key])
			assert_int_equal(key_of(fd), key);
		else
			assert_int_equal(fd, -ENOENT);
	}
}

static void die_and_begin(void)
{
	end();
	begin();
	vault_forget_others(vault, is_known, NULL);
	check_all();
}

static void clean(void)
{
	while (vault_dead_bytes(vault))
		wait_a_turn();
	go_on();
	go_on();
}

static int setup(void **state)
{
	memset(lives, 0, sizeof(lives));
	fds_before = count_fds();
	deadline_ns = util_now_ns() + 30000000000ull;
	manager_init(&manager);
	begin();
	return 0;
}

static int teardown(void **state)
{
	end();
	manager_fini(&manager);
	return count_fds() == fds_before ? 0 : -1;
}

/* ---- */

static void test_put_get_drop(void **state)
{
	AUTO_CLOSE int fd = memory(7);

	assert_int_equal(vault_put(vault, 7, 100, fd), VAULT_SOON);
	go_on();
	go_on();
	assert_int_equal(vault_put(vault, 8, 100, fd), 0);
	assert_int_equal(vault_put(vault, 8, 100, fd), -EEXIST);
	assert_int_equal(vault_put(vault, 9, 100, -1), -EBADF);
	assert_int_equal(vault_count(vault), 2);
	assert_int_equal(vault_drop(vault, 9), -ENOENT);
	assert_int_equal(vault_get(vault, 9), -ENOENT);
	for (uint64_t key = 7; key < 9; key++) {
		AUTO_CLOSE int got = vault_get(vault, key);

		assert_true(same_file(got, fd));
		assert_true(fcntl(got, F_GETFD) & FD_CLOEXEC);
	}
	assert_int_equal(vault_drop(vault, 7), 0);
	assert_int_equal(vault_dead_bytes(vault), 100);
	assert_int_equal(vault_get(vault, 7), -ENOENT);
	clean();
	assert_int_equal(vault_count(vault), 1);
	assert_int_equal(manager.n, 1);
}

static void test_no_store(void **state)
{
	struct fdstore *none;
	struct vault *v;

	unsetenv("NOTIFY_SOCKET");
	assert_int_equal(fdstore_new(&none, base, 10), 0);
	assert_int_equal(vault_new(&v, base, none), 0);
	assert_int_equal(vault_put(v, 1, 1, 0), -EOPNOTSUPP);
	assert_int_equal(vault_drop(v, 1), -ENOENT);
	assert_int_equal(vault_get(v, 1), -ENOENT);
	vault_free(v);
	fdstore_free(none);
	setenv("NOTIFY_SOCKET", manager.address, 1);
	/* One with no place in it. */
	assert_int_equal(fdstore_new(&none, base, 0), 0);
	assert_int_equal(vault_new(&v, base, none), 0);
	assert_int_equal(vault_put(v, 1, 1, 0), -ENOSPC);
	vault_free(v);
	fdstore_free(none);
	assert_null(vault_free(NULL));
}

/* Many bytes are closed as soon as the loop gets to it, few a little later, whatever is in front of them. */
static void test_what_is_dropped_is_closed(void **state)
{
	static const uint64_t bytes[] = {MANY, 1 << 20, 1};

	assert_int_equal(closer_start(base), 0);
	for (uint32_t n = 0; n < ARRAY_SIZE(bytes); n++) {
		uint64_t began, ms;
		int p[2];
		char byte;

		assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
		for (uint32_t i = 0; i < 300; i++)
			if (i == 150)
				assert_true(vault_put(vault, 8000 + n, bytes[n], p[1]) >= 0);
			else
				put(n * 300 + i, 1);
		close(p[1]);
		assert_int_equal(read(p[0], &byte, 1), -1);
		began = util_now_ns();
		assert_int_equal(vault_drop(vault, 8000 + n), 0);
		while (read(p[0], &byte, 1) < 0)
			wait_a_turn();
		ms = (util_now_ns() - began) / 1000000;
		assert_true(n == 0 || ms >= (n == 1 ? 100 : 1000));
		close(p[0]);
	}
	check_all();
	closer_stop();
	die_and_begin();
}

/* What is empty leaves the store, but for one or two. */
static void test_shelves_come_and_go(void **state)
{
	for (uint32_t key = 0; key < 3000; key++) {
		put(key, 1 << 20);
		if (key % 100 == 0)
			go_on();
	}
	go_on();
	assert_in_range(manager.n, 13, 15);
	for (uint32_t key = 0; key < 3000; key++)
		drop(key);
	clean();
	while (manager.n > 3)
		wait_a_turn();
	die_and_begin();
	while (fdstore_count(fs) > 1 || manager.n > 1) { /* that is for what comes */
		wait_a_turn();
	}
}

/* A few in each of many lives come together on few shelves. */
static void test_many_lives(void **state)
{
	for (uint32_t key = 0; key < 200; key++) {
		put(key, 1);
		if (key % 3)
			go_on();
		if (key > 10 && key % 7 == 0)
			drop(key - 10);
		die_and_begin();
		go_on();
	}
	put(300, 1);
	while (manager.n > 6)
		wait_a_turn();
	check_all();
}

static void test_random(void **state)
{
	uint32_t seed = 1, next = 0;

	for (uint32_t n = 0; n < 12000 && next < 8000; n++) {
		uint32_t dice, key;

		seed = seed * 1103515245 + 12345;
		dice = (seed >> 16) % 1000;
		if (dice < 500) {
			put(next++, dice < 20 ? MANY : dice << 12);
		} else if (dice < 900 && next) {
			for (key = (seed >> 4) % next; key < next && !lives[key]; key++)
				;
			if (key < next)
				drop(key);
		} else if (dice < 995) {
			go_on();
		} else {
			die_and_begin();
		}
	}
	check_all();
	clean();
	check_all();
	die_and_begin();
	assert_int_equal(vault_dead_bytes(vault), 0);
}

static void test_eight_thousand(void **state)
{
	AUTO_CLOSE int fd = memory(1);
	struct rlimit rl;
	unsigned int before;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &rl), 0);
	if (rl.rlim_cur < 8500)
		skip();
	for (uint32_t key = 0; key < 8000; key++) {
		assert_in_range(vault_put(vault, key, 1, fd), 0, VAULT_SOON);
		if (key % 50 == 0)
			go_on();
	}
	go_on();
	assert_in_range(manager.n, 34, 36);
	before = count_fds();
	end();
	begin();
	assert_int_equal(vault_count(vault), 8000);
	assert_in_range(count_fds(), before - 100 + 8000, before + 100 + 8000);
	lives[5] = true;
	vault_forget_others(vault, is_known, NULL);
	assert_in_range(count_fds(), before - 100, before + 100);
	assert_int_equal(vault_count(vault), 1);
	while (manager.n > 2)
		wait_a_turn();
	assert_int_equal(vault_count(vault), 1);
	/* The first put of a life is certain, if the manager was heard of. */
	assert_int_equal(vault_put(vault, 6, 1, fd), 0);
}

/* While the manager has not heard of a new shelf, nothing leaves an old one for it. */
static void test_not_moved_to_where_it_could_be_lost(void **state)
{
	for (uint32_t key = 0; key < 20; key++)
		put(key, 1);
	go_on();
	end();
	begin();
	while (fdstore_notify(fs, "STATUS=talking") == 0) /* until there is no room even in the outbox */
		;
	vault_forget_others(vault, is_known, NULL);
	for (unsigned int i = 0; i < 10; i++)
		event_base_loop(base, EVLOOP_NONBLOCK);
	end();
	begin();
	check_all();
	vault_forget_others(vault, is_known, NULL);
	while (manager.n > 1)
		wait_a_turn();
	check_all();
}

/* ---- it dies at every message ---- */

enum state { NEVER, PUTTING, SOON, THERE, DROPPED };

struct shared {
	volatile enum state state[64];
	volatile bool finished;
};

static struct shared *shared;

static void all_that_is_soon_is_there(void *arg, int err)
{
	for (size_t key = 0; key < ARRAY_SIZE(shared->state); key++)
		if (err == 0 && shared->state[key] == SOON)
			shared->state[key] = THERE;
}

static void put_shared(uint64_t key, uint64_t bytes)
{
	AUTO_CLOSE int fd = memory(key);
	int r;

	shared->state[key] = PUTTING;
	r = vault_put(vault, key, bytes, fd);
	if (r < 0)
		_exit(1);
	shared->state[key] = r == VAULT_SOON ? SOON : THERE;
	if (r == VAULT_SOON && fdstore_barrier(fs, all_that_is_soon_is_there, shared) < 0)
		_exit(1);
}

static void drop_shared(uint64_t key)
{
	shared->state[key] = DROPPED;
	if (vault_drop(vault, key) < 0)
		_exit(1);
}

static bool is_shared(void *arg, uint64_t key)
{
	return key < ARRAY_SIZE(shared->state) && shared->state[key] != DROPPED && shared->state[key] != NEVER;
}

/* Finds 0 to 9 from a life before. */
static void live_once(uint32_t until)
{
	messages_left = until;
	begin();
	vault_forget_others(vault, is_shared, NULL);
	for (uint64_t key = 10; key < 20; key++)
		put_shared(key, MANY);
	drop_shared(0);
	drop_shared(5);
	drop_shared(12);
	drop_shared(15);
	while (vault_dead_bytes(vault))
		event_base_loop(base, EVLOOP_ONCE);
	for (uint64_t key = 20; key < 25; key++)
		put_shared(key, MANY);
	for (uint64_t key = 6; key < 12; key++)
		drop_shared(key);
	while (vault_dead_bytes(vault) || shared->state[24] != THERE)
		event_base_loop(base, EVLOOP_ONCE);
	messages_left = 0;
	shared->finished = true;
	_exit(0);
}

/* The manager is the parent. */
static void watch(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		struct pollfd p = {manager.socket, POLLIN, 0};

		poll(&p, 1, 5);
		manager_hear(&manager);
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	manager_hear(&manager);
}

static void check_shared(void)
{
	for (uint64_t key = 0; key < ARRAY_SIZE(shared->state); key++) {
		AUTO_CLOSE int fd = vault_get(vault, key);

		if (shared->state[key] == THERE)
			assert_int_equal(key_of(fd), key);
		else
			assert_true(fd < 0 ? fd == -ENOENT : key_of(fd) == key);
	}
}

static void test_dies_at_every_message(void **state)
{
	uint32_t n;

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(shared != MAP_FAILED);
	end();
	for (n = 1; !shared->finished; n++) {
		pid_t pid;

		memset(shared, 0, sizeof(*shared));
		while (manager.n)
			manager_remove(&manager, manager.n - 1);
		begin();
		for (uint64_t key = 0; key < 10; key++)
			put_shared(key, MANY);
		go_on();
		go_on();
		end();
		pid = fork();
		if (pid == 0)
			live_once(n);
		watch(pid);
		begin();
		check_shared();
		end();
	}
	assert_true(n > 60);
	begin();
	munmap(shared, 4096);
}

/* ---- what is not as it should be ---- */

static void test_not_a_shelf(void **state)
{
	AUTO_CLOSE int fd = memory(1);
	int p[2];

	assert_int_equal(fdstore_put(fs, "+00z", fd), 0);
	assert_int_equal(vault_adopt(vault, "+00z", fcntl(fd, F_DUPFD_CLOEXEC, 0)), -EBADMSG);
	assert_int_equal(fdstore_count(fs), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p), 0);
	assert_int_equal(send(p[1], "what is this, and what for?", 27, 0), 27);
	assert_int_equal(send(p[1], "0123456789abcdef", 16, 0), 16); /* of the right size, but without an fd */
	close(p[1]);
	assert_int_equal(vault_adopt(vault, "+00y", p[0]), 0);
	assert_int_equal(vault_count(vault), 1);
	assert_int_equal(vault_get(vault, 0x3736353433323130), -EMFILE);
	vault_forget_others(vault, is_known, NULL);
	while (vault_dead_bytes(vault))
		event_base_loop(base, EVLOOP_ONCE);
	assert_int_equal(vault_count(vault), 0);
}

/* More in flight than the limit on fds: said so, and nothing is lost. */
static int limited(void)
{
	struct rlimit rl = {LOW + 100, LOW + 100};
	int fd = memfd_create("thing", MFD_CLOEXEC), r = 0, n = 0;

	if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0 ||
	    setrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 2;
	for (uint64_t key = 0; key < 1000 && r >= 0; key++)
		r = vault_put(vault, key, 1, fd);
	n = (int)vault_count(vault);
	if (r != -ETOOMANYREFS || n < LOW)
		return 3;
	for (int key = 0; key < n; key++) {
		int got = vault_get(vault, (uint64_t)key);

		if (got < 0)
			return 4;
		close(got);
	}
	return 0;
}

static void test_too_many_in_flight(void **state)
{
	int status;
	pid_t pid;

	if (getuid() != 0)
		skip();
	pid = fork();
	if (pid == 0)
		_exit(limited());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	manager_hear(&manager);
}

static void reserve_low_fds(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	for (int fd = 3; fd < LOW; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			dup2(STDERR_FILENO, fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_put_get_drop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_store, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_is_dropped_is_closed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_shelves_come_and_go, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_lives, setup, teardown),
		cmocka_unit_test_setup_teardown(test_random, setup, teardown),
		cmocka_unit_test_setup_teardown(test_eight_thousand, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_moved_to_where_it_could_be_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_dies_at_every_message, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_a_shelf, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_many_in_flight, setup, teardown),
	};

	if (emulated("qemu-user has no SO_PEEK_OFF"))
		return 77;
	reserve_low_fds();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
