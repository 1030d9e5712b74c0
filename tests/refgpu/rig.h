/* SPDX-License-Identifier: MIT */
/*
 * A test rig: the server in a child process, a raw vfio-user client in this one, memory that both map, and a few page
 * tables. For tests only; cmocka.h comes first. The client never sleeps: it looks at memory until a deadline.
 */
#ifndef REFGPU_RIG_H
#define REFGPU_RIG_H

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "server.h"

#define RIG_BUS UINT64_C(0x100000000) /* bus address of the memory */
#define RIG_SIZE (64u << 20)
#define RIG_SLOTS 4u
#define RIG_WORDS 64u
#define RIG_DEADLINE_S 20
/* Offsets in the memory. */
#define RIG_MAILBOX 0x0u
#define RIG_INVQ 0x1000u
#define RIG_INVQ_WORDS 64u
#define RIG_FAULTQ 0x2000u
#define RIG_FAULTQ_WORDS 4u
#define RIG_FENCES 0x3000u
#define RIG_RING 0x4000u
#define RIG_TABLES 0x100000u
#define RIG_DATA 0x400000u

struct rig_reply {
	struct vfio_user_header hdr;
	uint8_t data[8192];
	size_t size;
	int fd;
};

struct rig {
	pid_t pid;
	int listener;
	int sock;
	int memfd;
	uint8_t *mem;
	const struct refgpu_status *status;
	int irq[REFGPU_VECTORS];
	enum refgpu_format format;
	uint64_t next_table;
	uint64_t inv_tail;
	uint64_t tail[RIG_SLOTS];
	uint64_t seq;
	uint16_t id;
	bool stashed;
	struct rig_reply stash; /* a command of the device that came in while a reply was waited for */
};

static struct stop rig_stop = {.fd = -1};

static void rig_on_term(int sig)
{
	static const uint64_t one = 1;

	(void)sig;
	atomic_store(&rig_stop.asked, true);
	if (write(rig_stop.fd, &one, sizeof(one)) < 0)
		abort();
}

static int rig_child(int listener)
{
	struct server server = {0};
	int r;

	rig_stop.fd = eventfd(0, EFD_CLOEXEC);
	signal(SIGTERM, rig_on_term);
	bus_catch_sigbus();
	r = device_new(&server.dev, RIG_SLOTS, NULL);
	if (r == 0)
		r = server_run(&server, listener, &rig_stop);
	device_free(server.dev);
	close(listener);
	close(rig_stop.fd);
	return r < 0 ? 1 : 0;
}

static double rig_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Waits until cond holds. */
#define rig_until(cond)                                       \
	do {                                                  \
		double until_ = rig_now() + RIG_DEADLINE_S;   \
		while (!(cond)) {                             \
			if (rig_now() > until_)               \
				fail_msg("never: %s", #cond); \
			sched_yield();                        \
		}                                             \
	} while (0)

static void rig_connect(struct rig *g)
{
	struct sockaddr_un sun;
	socklen_t len = sizeof(sun);

	assert_int_equal(getsockname(g->listener, (struct sockaddr *)&sun, &len), 0);
	g->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(g->sock, (struct sockaddr *)&sun, len), 0);
}

static void rig_send(struct rig *g, const void *bytes, size_t size, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(64 * sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (n_fds) {
		mh.msg_control = &control;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	assert_int_equal(sendmsg(g->sock, &mh, MSG_NOSIGNAL), (ssize_t)size);
}

/* Sends a command; its id. */
static uint16_t rig_command(struct rig *g, uint16_t command, uint32_t flags, const void *data, size_t size,
			    const int *fds, size_t n_fds)
{
	uint8_t bytes[8192];
	struct vfio_user_header hdr = {
		.id = ++g->id, .command = command, .flags = flags, .size = (uint32_t)(sizeof(hdr) + size)};

	memcpy(bytes, &hdr, sizeof(hdr));
	if (size)
		memcpy(bytes + sizeof(hdr), data, size);
	rig_send(g, bytes, sizeof(hdr) + size, fds, n_fds);
	return hdr.id;
}

/* Receives one message; false at the end of the connection. */
static bool rig_receive(struct rig *g, struct rig_reply *ret)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = &ret->hdr, .iov_len = sizeof(ret->hdr)};
	struct msghdr mh = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct pollfd p = {.fd = g->sock, .events = POLLIN};
	struct cmsghdr *c;

	ret->fd = -1;
	if (poll(&p, 1, RIG_DEADLINE_S * 1000) != 1)
		fail_msg("no answer");
	if (recvmsg(g->sock, &mh, MSG_WAITALL | MSG_CMSG_CLOEXEC) != sizeof(ret->hdr))
		return false;
	c = CMSG_FIRSTHDR(&mh);
	if (c)
		memcpy(&ret->fd, CMSG_DATA(c), sizeof(ret->fd));
	ret->size = ret->hdr.size - sizeof(ret->hdr);
	assert_true(ret->size <= sizeof(ret->data));
	if (ret->size)
		assert_int_equal(recv(g->sock, ret->data, ret->size, MSG_WAITALL), (ssize_t)ret->size);
	return true;
}

/* What the device says next, a stashed command first. */
static void rig_listen(struct rig *g, struct rig_reply *ret)
{
	if (g->stashed)
		*ret = g->stash;
	else
		assert_true(rig_receive(g, ret));
	g->stashed = false;
}

/* A command and its reply; the errno in it, or -1 if the connection ended. */
static int rig_call(struct rig *g, uint16_t command, const void *data, size_t size, const int *fds, size_t n_fds,
		    struct rig_reply *ret)
{
	uint16_t id = rig_command(g, command, 0, data, size, fds, n_fds);

	if (!rig_receive(g, ret))
		return -1;
	if ((ret->hdr.flags & VFIO_USER_TYPE_MASK) == VFIO_USER_TYPE_COMMAND) {
		assert_false(g->stashed);
		g->stashed = true;
		g->stash = *ret;
		if (!rig_receive(g, ret))
			return -1;
	}
	assert_int_equal(ret->hdr.id, id);
	assert_int_equal(ret->hdr.command, command);
	assert_int_equal(ret->hdr.flags & VFIO_USER_TYPE_MASK, VFIO_USER_TYPE_REPLY);
	return ret->hdr.flags & VFIO_USER_ERROR ? (int)ret->hdr.error : 0;
}

static int rig_dma_map(struct rig *g, uint64_t bus, uint64_t size, uint32_t rights, int fd, uint64_t offset)
{
	struct vfio_user_dma_map map = {sizeof(map), rights, offset, bus, size};
	struct rig_reply reply;

	return rig_call(g, VFIO_USER_DMA_MAP, &map, sizeof(map), &fd, fd >= 0, &reply);
}

static int rig_dma_unmap(struct rig *g, uint64_t bus, uint64_t size)
{
	struct vfio_user_dma_unmap unmap = {sizeof(unmap), 0, bus, size};
	struct rig_reply reply;

	return rig_call(g, VFIO_USER_DMA_UNMAP, &unmap, sizeof(unmap), NULL, 0, &reply);
}

static int rig_region_write(struct rig *g, uint32_t region, uint64_t offset, uint32_t len, uint64_t val)
{
	struct {
		struct vfio_user_region_access x;
		uint64_t val;
	} w = {{offset, region, len}, val};
	struct rig_reply reply;

	return rig_call(g, VFIO_USER_REGION_WRITE, &w, sizeof(w.x) + len, NULL, 0, &reply);
}

static uint64_t rig_reg_read(struct rig *g, uint32_t reg, uint32_t len)
{
	struct vfio_user_region_access x = {reg, REFGPU_BAR_REGS, len};
	struct rig_reply reply;
	uint64_t val = 0;

	assert_int_equal(rig_call(g, VFIO_USER_REGION_READ, &x, sizeof(x), NULL, 0, &reply), 0);
	memcpy(&val, reply.data + sizeof(x), len);
	return val;
}

static int rig_reg32(struct rig *g, uint32_t reg, uint32_t val)
{
	return rig_region_write(g, REFGPU_BAR_REGS, reg, 4, val);
}

static int rig_reg64(struct rig *g, uint32_t reg, uint64_t val)
{
	return rig_region_write(g, REFGPU_BAR_REGS, reg, 8, val);
}

static struct refgpu_mailbox *rig_mailbox(struct rig *g)
{
	return (struct refgpu_mailbox *)(void *)(g->mem + RIG_MAILBOX);
}

static uint64_t rig_load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static uint32_t rig_state(struct rig *g, unsigned int slot)
{
	return __atomic_load_n(&rig_mailbox(g)->slot[slot].state, __ATOMIC_ACQUIRE);
}

static void rig_enable(struct rig *g)
{
	unsigned int i;

	rig_reg32(g, REFGPU_REG_FORMAT, g->format);
	rig_reg64(g, REFGPU_REG_MAILBOX, RIG_BUS + RIG_MAILBOX);
	rig_reg64(g, REFGPU_REG_INVQ, RIG_BUS + RIG_INVQ);
	rig_reg32(g, REFGPU_REG_INVQ_SIZE, RIG_INVQ_WORDS);
	rig_reg64(g, REFGPU_REG_FAULTQ, RIG_BUS + RIG_FAULTQ);
	rig_reg32(g, REFGPU_REG_FAULTQ_SIZE, RIG_FAULTQ_WORDS);
	for (i = 0; i < RIG_SLOTS; i++) {
		rig_reg64(g, REFGPU_SLOT_REG(i, REFGPU_SLOT_RING), RIG_BUS + RIG_RING + i * 0x1000);
		rig_reg32(g, REFGPU_SLOT_REG(i, REFGPU_SLOT_RING_SIZE), RIG_WORDS);
		g->tail[i] = 0;
	}
	g->inv_tail = 0;
	assert_int_equal(rig_reg32(g, REFGPU_REG_ENABLE, 1), 0);
}

static void rig_bring_up(struct rig *g)
{
	static const char version[] = "\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";
	struct vfio_irq_set set = {.argsz = sizeof(set),
				   .index = VFIO_PCI_MSIX_IRQ_INDEX,
				   .count = REFGPU_VECTORS,
				   .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER};
	struct vfio_region_info info = {.argsz = sizeof(info), .index = VFIO_PCI_BAR2_REGION_INDEX};
	struct rig_reply reply;

	rig_connect(g);
	assert_int_equal(rig_call(g, VFIO_USER_VERSION, version, sizeof(version), NULL, 0, &reply), 0);
	assert_int_equal(rig_call(g, VFIO_USER_DEVICE_GET_REGION_INFO, &info, sizeof(info), NULL, 0, &reply), 0);
	assert_true(reply.fd >= 0);
	g->status = mmap(NULL, 4096, PROT_READ, MAP_SHARED, reply.fd, 0);
	assert_ptr_not_equal(g->status, MAP_FAILED);
	close(reply.fd);
	assert_int_equal(rig_call(g, VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), g->irq, REFGPU_VECTORS, &reply), 0);
	assert_int_equal(rig_dma_map(g, RIG_BUS, RIG_SIZE, 3, g->memfd, 0), 0);
	rig_enable(g);
}

static void rig_start(struct rig *g, enum refgpu_format format)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	unsigned int i;

	memset(g, 0, sizeof(*g));
	g->format = format;
	g->next_table = RIG_TABLES;
	g->memfd = memfd_create("rig", MFD_CLOEXEC);
	assert_int_equal(ftruncate(g->memfd, RIG_SIZE), 0);
	g->mem = mmap(NULL, RIG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
	assert_ptr_not_equal(g->mem, MAP_FAILED);
	g->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* No name: the kernel makes one up. */
	assert_int_equal(bind(g->listener, (struct sockaddr *)&sun, sizeof(sun.sun_family)), 0);
	assert_int_equal(listen(g->listener, 4), 0);
	g->pid = fork();
	assert_true(g->pid >= 0);
	if (g->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(g->memfd);
		munmap(g->mem, RIG_SIZE);
		exit(rig_child(g->listener));
	}
	for (i = 0; i < REFGPU_VECTORS; i++)
		g->irq[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rig_bring_up(g);
}

static void rig_hang_up(struct rig *g)
{
	munmap((void *)(uintptr_t)g->status, 4096);
	close(g->sock);
}

static void rig_end(struct rig *g)
{
	unsigned int i;
	int status;

	rig_hang_up(g);
	kill(g->pid, SIGTERM);
	assert_int_equal(waitpid(g->pid, &status, 0), g->pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	for (i = 0; i < REFGPU_VECTORS; i++)
		close(g->irq[i]);
	close(g->listener);
	close(g->memfd);
	munmap(g->mem, RIG_SIZE);
}

/* ---- Tables: typed out again here, so that they share nothing with the walkers. ---- */

static uint64_t rig_table(struct rig *g)
{
	uint64_t at = g->next_table;

	g->next_table += 4096;
	memset(g->mem + at, 0, 4096);
	return RIG_BUS + at;
}

static uint64_t *rig_entry(struct rig *g, uint64_t table, unsigned int index)
{
	return (uint64_t *)(void *)(g->mem + (table - RIG_BUS) + index * 8ul);
}

static uint64_t rig_table_bits(const struct rig *g)
{
	return g->format == REFGPU_FORMAT_X86_64 ? 0x7 : 0x3;
}

static uint64_t rig_leaf_bits(const struct rig *g, int shift, bool writable)
{
	if (g->format == REFGPU_FORMAT_X86_64)
		return (writable ? 0x7 : 0x5) | (shift > 12 ? 0x80 : 0);
	return 0x440 | (writable ? 0 : 0x80) | (shift > 12 ? 0x1 : 0x3);
}

/* The entry for va whose span is 1 << shift, with the tables above it. */
static uint64_t *rig_pte(struct rig *g, uint64_t root, uint64_t va, int shift)
{
	uint64_t table = root, *e;
	int at;

	for (at = 39; at > shift; at -= 9) {
		e = rig_entry(g, table, (va >> at) & 511);
		if (!*e)
			__atomic_store_n(e, rig_table(g) | rig_table_bits(g), __ATOMIC_RELEASE);
		table = *e & UINT64_C(0xfffffffff000);
	}
	return rig_entry(g, table, (va >> shift) & 511);
}

static void rig_map(struct rig *g, uint64_t root, uint64_t va, uint64_t bus, int shift, bool writable)
{
	__atomic_store_n(rig_pte(g, root, va, shift), bus | rig_leaf_bits(g, shift, writable), __ATOMIC_RELEASE);
}

static void rig_unmap(struct rig *g, uint64_t root, uint64_t va, int shift)
{
	__atomic_store_n(rig_pte(g, root, va, shift), 0, __ATOMIC_RELEASE);
}

/* ---- Work. ---- */

static void rig_put_word(struct rig *g, unsigned int slot, const struct refgpu_ring_word *w)
{
	struct refgpu_ring_word *ring = (struct refgpu_ring_word *)(void *)(g->mem + RIG_RING + slot * 0x1000);

	ring[g->tail[slot]++ % RIG_WORDS] = *w;
}

static void rig_doorbell(struct rig *g, unsigned int slot)
{
	assert_int_equal(rig_reg64(g, REFGPU_SLOT_REG(slot, REFGPU_SLOT_RING_TAIL), g->tail[slot]), 0);
}

static void rig_switch(struct rig *g, unsigned int slot, uint64_t root, uint32_t asid)
{
	rig_put_word(g, slot, &(struct refgpu_ring_word){.op = REFGPU_RING_SET_TTBR, .addr = root, .asid = asid});
}

static uint64_t *rig_fence(struct rig *g, unsigned int slot)
{
	return (uint64_t *)(void *)(g->mem + RIG_FENCES + slot * 64);
}

static void rig_put_run(struct rig *g, unsigned int slot, uint64_t va, uint64_t len, uint64_t job)
{
	rig_put_word(g, slot,
		     &(struct refgpu_ring_word){.op = REFGPU_RING_RUN,
						.addr = va,
						.len = len,
						.job = job,
						.fence = RIG_BUS + RIG_FENCES + slot * 64});
}

static void rig_wait_done(struct rig *g, unsigned int slot)
{
	rig_until(rig_load(&rig_mailbox(g)->slot[slot].done) == g->tail[slot]);
}

static uint64_t rig_post_control(struct rig *g, unsigned int slot, enum refgpu_ctrl ctrl)
{
	uint64_t value = ++g->seq << 8 | ctrl;

	assert_int_equal(rig_reg64(g, REFGPU_SLOT_REG(slot, REFGPU_SLOT_CTRL), value), 0);
	return value;
}

static void rig_control(struct rig *g, unsigned int slot, enum refgpu_ctrl ctrl)
{
	uint64_t value = rig_post_control(g, slot, ctrl);

	rig_until(rig_load(&rig_mailbox(g)->slot[slot].ctrl_ack) == value);
}

static void rig_invalidate(struct rig *g, uint32_t op, uint32_t asid, uint64_t first, uint64_t last)
{
	struct refgpu_inv *q = (struct refgpu_inv *)(void *)(g->mem + RIG_INVQ);

	q[g->inv_tail++ % RIG_INVQ_WORDS] = (struct refgpu_inv){.op = op, .asid = asid, .first = first, .last = last};
	assert_int_equal(rig_reg64(g, REFGPU_REG_INVQ_TAIL, g->inv_tail), 0);
	rig_until(rig_load(&rig_mailbox(g)->invq_head) == g->inv_tail);
}

static struct refgpu_fault *rig_fault(struct rig *g, uint64_t index)
{
	return (struct refgpu_fault *)(void *)(g->mem + RIG_FAULTQ) + index % RIG_FAULTQ_WORDS;
}

#endif
