/* SPDX-License-Identifier: MIT */
/*
 * What it costs to be found again, in this process and with a service manager of its own:
 *
 *   journal-append      an entry of 250 bytes; limit: a bare memcpy of them
 *   journal-open        per entry, of a journal that a successor checks and reads; limit: a memcpy
 *   checksum            of 250 bytes; limit: a memcpy
 *   vault-put           an fd; limit: a bare sendmsg of one into a socketpair
 *   vault-adopt         per fd, when a successor takes 8,000 over; limit: a bare recvmsg with MSG_PEEK of one
 *   vault-clean         per fd that is moved, since the one behind it was dropped; limit: a bare sendmsg
 */
#include <errno.h>
#include <event2/event.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/util.h"
#include "bench.h"
#include "store/crc32c.h"
#include "store/fdstore.h"
#include "store/journal.h"
#include "store/vault.h"
#include "unit/manager_rig.h"

#define ROUNDS 301u
#define WARM 20u
#define ENTRY 250u
#define APPENDS 64u
#define FDS 8000u
#define BATCH 100u

static struct manager manager;
static struct event_base *base;
static struct fdstore *fs;
static struct vault *vault;
static int memory;

static void must(bool ok, const char *what)
{
	if (!ok)
		die(what, strerror(errno));
}

/* ---- the journal ---- */

static uint8_t entry[ENTRY], ring[64 * ENTRY];

static double time_memcpy(void)
{
	double t = now_ns();

	for (uint32_t i = 0; i < APPENDS; i++) {
		memcpy(ring + i * ENTRY, entry, ENTRY);
		__asm__ volatile("" ::: "memory");
	}
	return (now_ns() - t) / APPENDS;
}

static double time_append(struct journal *j)
{
	struct iovec v = {entry, ENTRY};
	double t = now_ns();

	for (uint32_t i = 0; i < APPENDS; i++) {
		must(journal_room(j, journal_entry_bytes(ENTRY)) == 0, "room in a journal");
		journal_append(j, 1, &v, 1);
	}
	return (now_ns() - t) / APPENDS;
}

static double time_checksum(void)
{
	double t = now_ns();
	uint32_t crc = 0;

	for (uint32_t i = 0; i < APPENDS; i++)
		crc = crc32c(crc, entry, ENTRY);
	__asm__ volatile("" ::"r"(crc));
	return (now_ns() - t) / APPENDS;
}

static int count(void *arg, const struct journal_entry *e)
{
	(*(uint32_t *)arg)++;
	return 0;
}

static double time_open(const struct journal *j)
{
	char why[JOURNAL_WHY_MAX];
	struct journal *next;
	uint32_t n = 0;
	double t = now_ns();
	int fd = fcntl(journal_fd(j), F_DUPFD_CLOEXEC, 0);

	must(journal_open(&next, fd, 1, why) == 0 && journal_read(next, count, &n) == 0 && n > 0, "opening a journal");
	t = now_ns() - t;
	journal_free(next);
	return t / n;
}

static void bench_journal(void)
{
	static struct figure append = {.name = "journal-append", .unit = "ns"};
	static struct figure open = {.name = "journal-open", .unit = "ns/entry"};
	static struct figure checksum = {.name = "checksum", .unit = "ns"};
	struct journal *j;

	must(journal_new(&j, 1) == 0, "a journal");
	for (uint32_t i = 0; i < WARM + ROUNDS; i++) {
		double bare = time_memcpy();

		if (i == WARM)
			append.n = checksum.n = 0;
		figure_add(&append, time_append(j), bare);
		figure_add(&checksum, time_checksum(), bare);
	}
	for (uint32_t i = 0; i < 21; i++)
		figure_add(&open, time_open(j), time_memcpy());
	figure_print(&append);
	figure_print(&open);
	figure_print(&checksum);
	journal_free(j);
}

/* ---- the vault ---- */

static void go_on(void)
{
	for (uint32_t heard = manager.heard - 1; heard != manager.heard;) {
		heard = manager.heard;
		event_base_loop(base, EVLOOP_NONBLOCK);
		manager_hear(&manager);
	}
}

static bool nobody(void *arg, uint64_t key)
{
	return false;
}

static bool everybody(void *arg, uint64_t key)
{
	return true;
}

static void begin(void)
{
	base = event_base_new();
	must(base && fdstore_new(&fs, base, 1000) == 0 && vault_new(&vault, base, fs) == 0, "a vault");
}

static void end(void)
{
	vault = vault_free(vault);
	fs = fdstore_free(fs);
	event_base_free(base);
	manager_hear(&manager);
}

/* n messages with an fd each, in a socketpair of which p[0] is read. */
static double bare_send(int p[2], uint32_t n)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} c = {0};
	uint64_t label[2] = {0};
	struct iovec v = {label, sizeof(label)};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c)};
	double t;

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, p) == 0, "a socketpair");
	c.head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
	memcpy(CMSG_DATA(&c.head), &memory, sizeof(memory));
	t = now_ns();
	for (uint32_t i = 0; i < n; i++)
		must(sendmsg(p[1], &h, 0) > 0, "a bare message");
	return (now_ns() - t) / n;
}

/* All that is in the manager's shelves. */
static double bare_peek(void)
{
	static int got[FDS];
	double t = now_ns();
	uint32_t n = 0;

	for (uint32_t s = 0; s < manager.n; s++) {
		int fd = manager.stored[s].fd, zero = 0;

		must(setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero)) == 0, "a place to peek at");
		for (;; n++) {
			union {
				struct cmsghdr head;
				char space[CMSG_SPACE(sizeof(int))];
			} c = {0};
			uint64_t label[2];
			struct iovec v = {label, sizeof(label)};
			struct msghdr h = {
				.msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c)};

			if (recvmsg(fd, &h, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
				break;
			memcpy(&got[n], CMSG_DATA(&c.head), sizeof(int));
		}
	}
	t = (now_ns() - t) / n;
	must(n == FDS, "peeking at fds");
	while (n)
		close(got[--n]);
	return t;
}

static void bench_put(void)
{
	static struct figure put = {.name = "vault-put", .unit = "ns"};
	static int p[FDS / BATCH][2];

	for (uint32_t n = 0; n < FDS / BATCH; n++) {
		double bare = bare_send(p[n], BATCH), t = now_ns();

		for (uint32_t i = 0; i < BATCH; i++)
			must(vault_put(vault, n * BATCH + i, 4096, memory) >= 0, "putting an fd");
		figure_add(&put, (now_ns() - t) / BATCH, bare);
		go_on();
	}
	figure_print(&put);
	for (uint32_t n = 0; n < FDS / BATCH; n++) {
		close(p[n][0]);
		close(p[n][1]);
	}
}

/* The shelves as they come from the manager, although not at the places where a process finds them. */
static void bench_adopt(void)
{
	static struct figure adopt = {.name = "vault-adopt", .unit = "ns/fd"};

	for (uint32_t i = 0; i < 21; i++) {
		double bare, t;

		end();
		begin();
		bare = bare_peek();
		t = now_ns();
		for (uint32_t s = 0; s < manager.n; s++)
			must(vault_adopt(vault, manager.stored[s].name,
					 fcntl(manager.stored[s].fd, F_DUPFD_CLOEXEC, 0)) == 0,
			     "adopting a shelf");
		figure_add(&adopt, (now_ns() - t) / FDS, bare);
		must(vault_count(vault) == FDS, "counting fds");
	}
	figure_print(&adopt);
}

/* The last of many is dropped, and has so many bytes that it is cleaned at once. */
static void bench_clean(void)
{
	static struct figure clean = {.name = "vault-clean", .unit = "ns/fd"};
	uint64_t key = FDS;

	vault_forget_others(vault, nobody, NULL);
	for (uint32_t i = 0; i < BATCH; i++)
		must(vault_put(vault, key++, 1, memory) >= 0, "putting an fd");
	go_on();
	for (uint32_t i = 0; i < ROUNDS; i++) {
		int p[2];
		double bare = bare_send(p, BATCH), t;

		close(p[0]);
		close(p[1]);
		must(vault_put(vault, key, UINT64_C(1) << 30, memory) >= 0 && vault_drop(vault, key++) == 0,
		     "putting an fd");
		t = now_ns();
		while (vault_dead_bytes(vault) >= UINT64_C(1) << 30)
			event_base_loop(base, EVLOOP_ONCE);
		figure_add(&clean, (now_ns() - t) / BATCH, bare);
	}
	figure_print(&clean);
}

int main(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	memory = memfd_create("thing", MFD_CLOEXEC);
	must(memory >= 0, "a memfd");
	bench_journal();
	manager_init(&manager);
	begin();
	vault_forget_others(vault, everybody, NULL);
	go_on();
	bench_put();
	bench_adopt();
	bench_clean();
	end();
	manager_fini(&manager);
	return 0;
}
