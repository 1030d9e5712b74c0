/* SPDX-License-Identifier: MIT */
/*
 * Bytes as a vfio-user client of the reference GPU, and as what such a client leaves in its memory. The input is a list
 * of records: a kind, a length, bytes; see enum. Most inputs begin with VERSION and end up with the device enabled.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

#define BUS UINT64_C(0x100000)
#define MEMORY 65536u

enum kind {
	KIND_RAW, /* the bytes as they are */
	KIND_COMMAND, /* under a header that fits: the first byte is the command, the next says which fds come along */
	KIND_REG, /* write a register: offset / 4, width, value */
	KIND_MEMORY, /* put bytes into memory: offset / 16, bytes */
	KIND_MAP, /* map memory for the device: page, pages */
	KIND_UNMAP,
	KIND_ENABLE, /* rings and queues at fixed places, format from the first byte; doorbells of all slots */
	KINDS,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct device *device;
static int memfd, eventfd_fd;
static uint8_t *memory;
static struct stop stop = {.fd = -1};

static void set_up(void)
{
	memfd = memfd_create("memory", MFD_CLOEXEC);
	eventfd_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	stop.fd = eventfd(0, EFD_CLOEXEC);
	if (memfd < 0 || eventfd_fd < 0 || stop.fd < 0 || ftruncate(memfd, MEMORY) < 0)
		abort();
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (memory == MAP_FAILED || device_new(&device, 2, NULL) < 0)
		abort();
	/* A client may map what its file does not have. */
	if (bus_catch_sigbus() < 0)
		abort();
}

static void send_bytes(int sock, const void *data, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (fd >= 0) {
		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	if (sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return; /* the socket's buffer is full: the rest is left out */
}

static void command(int sock, uint16_t number, const void *data, size_t len, int fd)
{
	struct {
		struct vfio_user_header hdr;
		uint8_t payload[512];
	} m = {.hdr = {.id = 1, .command = number, .size = (uint32_t)(sizeof(m.hdr) + len)}};

	memcpy(m.payload, data, len);
	send_bytes(sock, &m, m.hdr.size, fd);
}

static void reg(int sock, uint32_t offset, uint32_t width, uint64_t value)
{
	struct {
		struct vfio_user_region_access x;
		uint64_t value;
	} w = {{offset, REFGPU_BAR_REGS, width}, value};

	command(sock, VFIO_USER_REGION_WRITE, &w, sizeof(w.x) + width, -1);
}

static void map(int sock, uint64_t page, uint64_t pages)
{
	struct vfio_user_dma_map m = {sizeof(m), 3, page * 4096, BUS + page * 4096, pages * 4096};

	command(sock, VFIO_USER_DMA_MAP, &m, sizeof(m), memfd);
}

static void enable(int sock, uint8_t how)
{
	map(sock, 0, MEMORY / 4096);
	reg(sock, REFGPU_REG_FORMAT, 4, how & 1 ? REFGPU_FORMAT_X86_64 : REFGPU_FORMAT_VMSA64);
	reg(sock, REFGPU_REG_MAILBOX, 8, BUS);
	reg(sock, REFGPU_REG_INVQ, 8, BUS + 0x1000);
	reg(sock, REFGPU_REG_INVQ_SIZE, 4, 16);
	reg(sock, REFGPU_REG_FAULTQ, 8, BUS + 0x2000);
	reg(sock, REFGPU_REG_FAULTQ_SIZE, 4, 4);
	for (uint32_t i = 0; i < 2; i++) {
		reg(sock, REFGPU_SLOT_REG(i, REFGPU_SLOT_RING), 8, BUS + 0x3000 + i * 0x1000);
		reg(sock, REFGPU_SLOT_REG(i, REFGPU_SLOT_RING_SIZE), 4, 16);
	}
	reg(sock, REFGPU_REG_ENABLE, 4, 1);
	for (uint32_t i = 0; i < 2; i++)
		reg(sock, REFGPU_SLOT_REG(i, REFGPU_SLOT_RING_TAIL), 8, how >> 1 & 15);
	reg(sock, REFGPU_REG_INVQ_TAIL, 8, how >> 4);
}

static void play(int sock, uint8_t kind, const uint8_t *data, size_t len)
{
	struct vfio_user_dma_unmap unmap = {sizeof(unmap), 0, 0, 0};
	uint8_t b[16] = {0};
	uint64_t value;
	size_t at;

	memcpy(b, data, len < sizeof(b) ? len : sizeof(b));
	memcpy(&value, b + 2, sizeof(value));
	switch ((enum kind)(kind % KINDS)) {
	case KIND_RAW:
		send_bytes(sock, data, len, kind & 128 ? memfd : -1);
		break;
	case KIND_COMMAND:
		if (len >= 2)
			command(sock, b[0] % 17, data + 2, len - 2, b[1] & 1 ? memfd : b[1] & 2 ? eventfd_fd : -1);
		break;
	case KIND_REG:
		reg(sock, b[0] * 4u, b[1] & 1 ? 8 : 4, value);
		break;
	case KIND_MEMORY:
		at = (b[0] | (b[1] & 15u) << 8) * 16u;
		if (len > 2)
			memcpy(memory + at, data + 2, len - 2 < MEMORY - at ? len - 2 : MEMORY - at);
		break;
	case KIND_MAP:
		map(sock, b[0] % 32, b[1] % 32);
		break;
	case KIND_UNMAP:
		unmap.address = BUS + b[0] % 32 * 4096;
		unmap.size = b[1] % 32 * 4096;
		unmap.flags = b[2] & 3;
		command(sock, VFIO_USER_DMA_UNMAP, &unmap, sizeof(unmap), -1);
		break;
	case KIND_ENABLE:
		enable(sock, b[0]);
		break;
	case KINDS:
		break;
	}
}

/* Somebody has to take the answers, or the server waits for that. */
static void *take_answers(void *arg)
{
	static uint8_t buf[65536];
	int sock = *(int *)arg;

	while (recv(sock, buf, sizeof(buf), 0) > 0)
		;
	return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char version[] = "\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":4096}}";
	struct server server = {0};
	pthread_t reader;
	int sv[2];

	if (!device)
		set_up();
	memset(memory, 0, MEMORY);
	server.dev = device;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		abort();
	if (size && !(data[0] & 64))
		command(sv[1], VFIO_USER_VERSION, version, sizeof(version), -1);
	while (size >= 2) {
		size_t len = data[1] < size - 2 ? data[1] : size - 2;

		play(sv[1], data[0], data + 2, len);
		data += 2 + len;
		size -= 2 + len;
	}
	shutdown(sv[1], SHUT_WR);
	if (pthread_create(&reader, NULL, take_answers, &sv[1]) != 0)
		abort();
	if (server_serve(&server, sv[0], &stop) != 0)
		abort();
	pthread_join(reader, NULL);
	close(sv[1]);
	return 0;
}
