/* SPDX-License-Identifier: MIT */
/*
 * A device behind the kernel's VFIO, QEMU's edu, that outlives the processes which drive it: one opens it and dies with a
 * transfer under way; each of the next ones goes on with nothing but the files and what the one before has noted down.
 *
 *   adopt_device SPEC
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <event2/event.h>

#include "base/util.h"
#include "transport/kernel_abi.h"
#include "transport/transport.h"

#define PAGE UINT64_C(4096)
#define PAGES 32u
#define HEIRS 4u
#define DEADLINE_MS 20000u

#define IN_OWN UINT64_C(0x100000) /* the first half of the memory */
#define IN_SPACE UINT64_C(0x100000) /* the second half */
#define LATER UINT64_C(0x400000)

#define EDU_IRQ_ACK 0x64u
#define EDU_SRC 0x80u
#define EDU_DST 0x88u
#define EDU_COUNT 0x90u
#define EDU_CMD 0x98u
#define EDU_BUFFER UINT64_C(0x40000)
#define EDU_START 1u
#define EDU_FROM_DEVICE 2u
#define EDU_INTERRUPT 4u

/* What would be in a journal, in memory that outlives each of them. */
struct journal {
	uint8_t saved[TRANSPORT_SAVE_MAX], space[TRANSPORT_SAVE_MAX];
	size_t size, space_size;
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

static void on_opened(void *owner)
{
	opened = true;
}

static bool on_irq(void *owner, uint32_t vector)
{
	irqs++;
	return true;
}

static void on_room(void *owner)
{
}

static void on_lost(void *owner, int error, const char *why)
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

static void on_done(void *arg, int err)
{
	*(struct answer *)arg = (struct answer){true, err};
}

/* `r`: what the call that asks said. */
static int await(struct answer *a, int r)
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

static uint64_t edu_read(uint64_t reg, uint32_t width)
{
	uint64_t v = 0;

	CHECK(ops->region_read(t, 0, reg, width, &v) == 0);
	return v;
}

static void edu_write(uint64_t reg, uint32_t width, uint64_t v)
{
	CHECK(ops->region_write(t, 0, reg, width, v) == 0);
}

static void edu_begin(uint64_t src, uint64_t dst, uint64_t cmd)
{
	edu_write(EDU_SRC, 8, src);
	edu_write(EDU_DST, 8, dst);
	edu_write(EDU_COUNT, 8, 256);
	edu_write(EDU_CMD, 8, EDU_START | cmd);
}

static void edu_idle(void)
{
	while (edu_read(EDU_CMD, 8) & EDU_START)
		usleep(1000); /* the guest's time is virtual */
}

/* The device's buffer to an address, with an interrupt. */
static void edu_store(uint64_t at)
{
	unsigned int before = irqs;

	edu_begin(EDU_BUFFER, at, EDU_FROM_DEVICE | EDU_INTERRUPT);
	while (irqs == before)
		event_base_loop(base, EVLOOP_ONCE);
	edu_idle();
	edu_write(EDU_IRQ_ACK, 4, edu_read(0x24, 4));
}

static bool is_all(const uint8_t *p, uint8_t pattern)
{
	for (unsigned int i = 0; i < 256; i++)
		if (p[i] != pattern)
			return false;
	return true;
}

/* A transfer from memory, and death in the middle of it. */
static void __attribute__((noreturn)) die(void)
{
	journal->pattern = (uint8_t)(0x50 + heir_is);
	memset(memory, journal->pattern, 256);
	edu_begin(IN_OWN, EDU_BUFFER, EDU_INTERRUPT);
	journal->done = true;
	kill(getpid(), SIGKILL);
	_exit(1);
}

/* ---- spaces, where there are any ---- */

static bool has_spaces(void)
{
	return journal->space_size > 0;
}

static void use_space(struct transport_space *s)
{
	memset(memory + PAGES / 2 * PAGE, 0, 256);
	CHECK(AWAIT(ops->spaces->attach(t, s, on_done, &a)) == 0);
	edu_store(IN_SPACE);
	CHECK(is_all(memory + PAGES / 2 * PAGE, journal->pattern));
	CHECK(AWAIT(ops->spaces->attach(t, NULL, on_done, &a)) == 0);
}

static struct transport_memory *hold(void)
{
	static struct transport_memory *m;

	CHECK(AWAIT(ops->spaces->hold(t, &m, memfd, PAGES * PAGE, TRANSPORT_READ | TRANSPORT_WRITE, on_done, &a)) == 0);
	return m;
}

/* Two spaces, of which only the first is noted down. */
static void make_spaces(void)
{
	static struct transport_space *first, *second;

	CHECK(AWAIT(ops->spaces->make(t, &first, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->map(t, first, IN_SPACE, PAGE, hold(), PAGES / 2 * PAGE,
				     TRANSPORT_READ | TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->make(t, &second, on_done, &a)) == 0);
	journal->space_size = ops->spaces->save(t, first, journal->space);
}

/* How many objects the iommufd has: the number that the next one gets, since they are dense. */
static uint32_t next_id(int iommufd)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_destroy destroy = {.size = sizeof(destroy)};

	CHECK(ioctl(iommufd, KABI_IOMMU_IOAS_ALLOC, &alloc) == 0);
	destroy.id = alloc.out_ioas_id;
	CHECK(ioctl(iommufd, KABI_IOMMU_DESTROY, &destroy) == 0);
	return alloc.out_ioas_id;
}

static void adopt_spaces(void)
{
	static struct transport_space *s;
	int fds[TRANSPORT_KEEP_MAX];
	uint32_t before;

	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size - 1, on_done, &a)) == -EBADMSG);
	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size, on_done, &a)) == 0);
	use_space(s);
	CHECK(AWAIT(ops->spaces->map(t, s, LATER, PAGE, hold(), PAGE, TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->unmap(t, s, LATER, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->clear(t, s, LATER, PAGE, on_done, &a)) == 0);
	CHECK(ops->keep(t, fds) >= 2);
	before = next_id(fds[1]);
	CHECK(AWAIT(ops->spaces->adopted(t, on_done, &a)) == 0);
	CHECK(next_id(fds[1]) < before);
	use_space(s);
	/* The next one finds something else to destroy. */
	CHECK(AWAIT(ops->spaces->make(t, &(struct transport_space *){NULL}, on_done, &a)) == 0);
}

/* ---- lives ---- */

static void begin(void)
{
	base = event_base_new();
	CHECK(base);
}

static void until_opened(void)
{
	while (!opened)
		event_base_loop(base, EVLOOP_ONCE);
	journal->size = ops->save(t, journal->saved);
	CHECK(journal->size > 0);
}

static void send_fds(int sock, const int *fds, size_t n)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * TRANSPORT_KEEP_MAX)];
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

static size_t receive_fds(int sock, int *fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * TRANSPORT_KEEP_MAX)];
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

static void __attribute__((noreturn)) first(int sock)
{
	int fds[TRANSPORT_KEEP_MAX];

	begin();
	CHECK(ops->open(&t, base, address, 1, DEADLINE_MS, &events, NULL) == 0);
	until_opened();
	CHECK(AWAIT(ops->dma_map(t, IN_OWN, PAGES / 2 * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	if (ops == &transport_iommufd)
		make_spaces();
	send_fds(sock, fds, ops->keep(t, fds));
	die();
}

static void __attribute__((noreturn)) heir(const int *fds, size_t n)
{
	int file = memfd_create("later", MFD_CLOEXEC);
	uint8_t *later;

	begin();
	CHECK(ftruncate(file, (off_t)PAGE) == 0);
	later = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(later != MAP_FAILED);
	CHECK(ops->adopt(&t, base, address, 1, DEADLINE_MS, journal->saved, journal->size, fds, n, &events, NULL) == 0);
	until_opened();
	edu_idle();
	edu_write(EDU_IRQ_ACK, 4, edu_read(0x24, 4));
	/* What it wrote arrives by the mapping of one that is dead, and by one of this one. */
	edu_store(IN_OWN + PAGE);
	CHECK(is_all(memory + PAGE, journal->pattern));
	CHECK(AWAIT(ops->dma_clear(t, LATER, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_map(t, LATER, PAGE, file, 0, TRANSPORT_WRITE, on_done, &a)) == 0);
	edu_store(LATER);
	CHECK(is_all(later, journal->pattern));
	if (has_spaces())
		adopt_spaces();
	/* The dead one's mapping is unmapped, and not found again. */
	CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_clear(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) < 0 || ops != &transport_type1);
	CHECK(AWAIT(ops->dma_map(t, IN_OWN, PAGES / 2 * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	die();
}

/* Returns whether it died as it should. */
static bool generation(int number, int *fds, size_t *n)
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

int main(int argc, char **argv)
{
	int fds[TRANSPORT_KEEP_MAX];
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
		good = generation(number, fds, &n);
		printf("%s %d - process %d goes on, and dies with a transfer under way\n", good ? "ok" : "not ok",
		       number + 1, number);
		fflush(stdout);
	}
	printf("1..%u\n", HEIRS + 1);
	return good ? 0 : 1;
}
