/* SPDX-License-Identifier: MIT */
/*
 * Processes that drive QEMU's edu one after the other, each from what one that died has left: files, and what it has noted
 * down. Whoever includes this says how the first one begins, and what the others look at.
 */
#ifndef TESTS_VM_ADOPT_RIG_H
#define TESTS_VM_ADOPT_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <event2/event.h>

#include "base/util.h"
#include "transport/transport.h"

#define PAGE UINT64_C(4096)
#define PAGES 32u
#define HEIRS 4u
#define MAX_FDS 16u
#define DEADLINE_MS 20000u

#define IN_OWN UINT64_C(0x100000) /* the first half of the memory */
#define LATER UINT64_C(0x400000)

#define EDU_IRQ_STATUS 0x24u
#define EDU_IRQ_ACK 0x64u
#define EDU_SRC 0x80u
#define EDU_DST 0x88u
#define EDU_COUNT 0x90u
#define EDU_CMD 0x98u
#define EDU_BUFFER UINT64_C(0x40000)
#define EDU_TRANSFER_US 100000u
#define EDU_START 1u
#define EDU_FROM_DEVICE 2u
#define EDU_INTERRUPT 4u

/* What would be in a journal, in memory that outlives each of them. */
struct journal {
	uint8_t saved[TRANSPORT_SAVE_MAX], space[TRANSPORT_SAVE_MAX];
	size_t size, space_size;
	uint64_t root; /* of its tables, if they are its own */
	uint8_t pattern; /* in the device's buffer, once the transfer that is under way has ended */
	bool done; /* this one has seen all that it was to see */
};

static struct journal *journal;
static int memfd;
static uint8_t *memory;
static const char *address;
static const struct transport_ops *ops;

#define CHECK(x)                                                                               \
	do {                                                                                   \
		if (!(x)) {                                                                    \
			fprintf(stderr, "# line %d, process %d: %s\n", __LINE__, heir_is, #x); \
			_exit(1);                                                              \
		}                                                                              \
	} while (0)

static int heir_is; /* which process this is; 0: the one that opens the device */

/* ---- the loop ---- */

static struct event_base *base;
static struct transport *t;
static bool opened;
static unsigned int irqs;

static inline void on_opened(void *owner)
{
	opened = true;
}

static inline bool on_irq(void *owner, uint32_t vector)
{
	irqs++;
	return true;
}

static inline void on_room(void *owner)
{
}

static inline void on_lost(void *owner, int error, const char *why)
{
	fprintf(stderr, "# process %d: lost: %s\n", heir_is, why);
	_exit(1);
}

static const struct transport_events events = {
	.opened = on_opened,
	.irq = on_irq,
	.room = on_room,
	.lost = on_lost,
};

struct answer {
	bool there;
	int err;
};

static inline void on_done(void *arg, int err)
{
	*(struct answer *)arg = (struct answer){true, err};
}

/* `r`: what the call that asks said. */
static inline int await(struct answer *a, int r)
{
	CHECK(r == 0);
	while (!a->there)
		event_base_loop(base, EVLOOP_ONCE);
	return a->err;
}

#define AWAIT(call)                    \
	({                             \
		struct answer a = {0}; \
		await(&a, call);       \
	})

/* ---- the device ---- */

static inline uint64_t edu_read(uint64_t reg, uint32_t width)
{
	uint64_t v = 0;

	CHECK(ops->region_read(t, 0, reg, width, &v) == 0);
	return v;
}

static inline void edu_write(uint64_t reg, uint32_t width, uint64_t v)
{
	CHECK(ops->region_write(t, 0, reg, width, v) == 0);
}

static inline void edu_begin(uint64_t src, uint64_t dst, uint64_t cmd)
{
	edu_write(EDU_SRC, 8, src);
	edu_write(EDU_DST, 8, dst);
	edu_write(EDU_COUNT, 8, 256);
	edu_write(EDU_CMD, 8, EDU_START | cmd);
}

static inline void edu_idle(void)
{
	while (edu_read(EDU_CMD, 8) & EDU_START)
		usleep(1000); /* the guest's time is virtual */
}

/* The device's buffer to an address, with an interrupt. */
static inline void edu_store(uint64_t at)
{
	unsigned int before = irqs;

	edu_begin(EDU_BUFFER, at, EDU_FROM_DEVICE | EDU_INTERRUPT);
	while (irqs == before)
		event_base_loop(base, EVLOOP_ONCE);
	edu_idle();
	edu_write(EDU_IRQ_ACK, 4, edu_read(EDU_IRQ_STATUS, 4));
}

static inline bool is_all(const uint8_t *p, uint8_t pattern)
{
	for (unsigned int i = 0; i < 256; i++)
		if (p[i] != pattern)
			return false;
	return true;
}

/* A transfer from memory, and death in the middle of it. */
static inline void __attribute__((noreturn)) die(void)
{
	journal->pattern = (uint8_t)(0x50 + heir_is);
	memset(memory, journal->pattern, 256);
	edu_begin(IN_OWN, EDU_BUFFER, EDU_INTERRUPT);
	journal->done = true;
	kill(getpid(), SIGKILL);
	_exit(1);
}

/* ---- lives ---- */

static inline void begin(void)
{
	base = event_base_new();
	CHECK(base);
}

static inline void until_opened(void)
{
	while (!opened)
		event_base_loop(base, EVLOOP_ONCE);
	journal->size = ops->save(t, journal->saved);
	CHECK(journal->size > 0);
}

static inline void send_fds(int sock, const int *fds, size_t n)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control = {0};
	char byte = (char)n;
	struct iovec iov = {&byte, 1};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = CMSG_SPACE(sizeof(int) * n)};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);

	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int) * n);
	memcpy(CMSG_DATA(cm), fds, sizeof(int) * n);
	CHECK(sendmsg(sock, &mh, 0) == 1);
}

static inline size_t receive_fds(int sock, int *fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control;
	char byte = 0;
	struct iovec iov = {&byte, 1};
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};

	if (recvmsg(sock, &mh, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&mh))
		return 0;
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(int) * (size_t)byte);
	return (size_t)byte;
}

static void __attribute__((noreturn)) first(int sock);
static void __attribute__((noreturn)) heir(const int *fds, size_t n);

/* Returns whether it died as it should. */
static inline bool generation(int number, int *fds, size_t *n)
{
	int pair[2], status;
	pid_t pid;

	journal->done = false;
	heir_is = number;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return false;
	pid = fork();
	if (pid == 0) {
		if (number == 0)
			first(pair[1]);
		heir(fds, *n);
	}
	close(pair[1]);
	if (number == 0)
		*n = receive_fds(pair[0], fds);
	close(pair[0]);
	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		return false;
	return journal->done && *n > 0;
}

static inline int run(int argc, char **argv)
{
	int fds[MAX_FDS];
	bool good = true;
	size_t n = 0;

	ops = argc == 2 ? transport_find(argv[1], &address) : NULL;
	memfd = memfd_create("memory", MFD_CLOEXEC);
	if (!ops || memfd < 0 || ftruncate(memfd, (off_t)(PAGES * PAGE)) < 0)
		return 2;
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	journal = mmap(NULL, sizeof(*journal), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || journal == MAP_FAILED)
		return 2;
	for (int number = 0; good && number <= (int)HEIRS; number++) {
		/* Every other one finds the transfer ended, and its interrupt told to nobody. */
		if (number % 2)
			usleep(2 * EDU_TRANSFER_US);
		good = generation(number, fds, &n);
		printf("%s %d - process %d goes on, and dies with a transfer under way\n", good ? "ok" : "not ok",
		       number + 1, number);
		fflush(stdout);
	}
	printf("1..%u\n", HEIRS + 1);
	return good ? 0 : 1;
}

#endif
