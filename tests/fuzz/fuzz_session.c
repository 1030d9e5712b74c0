/* SPDX-License-Identifier: MIT */
/*
 * Bytes as a client: a session over a socket pair, with a service whose only device cannot be reached. The input is a
 * list of records: flags, an opcode, a length, bytes. Mostly the header is made right, so that the verbs get their
 * share; otherwise the bytes go out as they are. Each client must leave nothing behind.
 */
#include <event2/event.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <pasid/protocol.h>

#include "base/log.h"
#include "ipc/session.h"
#include "service/service.h"

enum {
	RECORD_RAW = 1, /* no header of ours */
	RECORD_FD = 2, /* brings a memfd */
	RECORD_REPEAT = 4, /* of the last serial */
	RECORD_LOOP = 8, /* let the daemon look now, not only when all is sent */
	RECORD_READ = 16, /* take its answers */
	RECORD_SERIAL = 32, /* any serial */
	RECORD_FDS = 64, /* claims another number of fds */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct event_base *base;
static struct service *service;
static int memfd;

static void set_up(void)
{
	static const struct device_config device = {.name = "none",
						    .spec = "vfio-user:/nonexistent/socket",
						    .format = "vmsa64",
						    .burst = 4,
						    .job_limit_ms = 1000,
						    .answer_ms = 1000,
						    .table_pages = 64};
	static struct service_config config = {.devices = &device, .n_devices = 1};

	log_set_level((enum log_level)0);
	for (int i = 0; i < PASID_RES_COUNT; i++)
		config.limits.connection.v[i] = config.limits.uid.v[i] = i == PASID_RES_RATE ? UINT64_MAX : 16;
	config.limits.total_bytes = 65536;
	base = event_base_new();
	memfd = memfd_create("buffer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (!base || memfd < 0 || ftruncate(memfd, 8192) < 0 || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 ||
	    service_new(&service, base, &config, NULL, NULL) < 0)
		abort();
}

static void send_bytes(int sock, const void *data, size_t len, bool with_fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)data, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *cm;

	if (with_fd) {
		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cm), &memfd, sizeof(memfd));
	}
	if (sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return; /* it has hung up, or nothing fits any more */
}

static void drain(int sock)
{
	static uint8_t buf[PASID_MSG_MAX];
	struct pasid_reply reply;

	for (;;) {
		ssize_t n = recv(sock, buf, sizeof(buf), MSG_DONTWAIT);

		if (n <= 0)
			return;
		if ((size_t)n < sizeof(reply))
			abort(); /* there are no events without a device */
		memcpy(&reply, buf, sizeof(reply));
		if (reply.msg.size != (size_t)n || (reply.code == 0) != (reply.reason == 0) || reply.reserved)
			abort();
	}
}

static void play(int sock, uint8_t flags, uint8_t opcode, const uint8_t *data, size_t len, uint64_t *serial)
{
	struct {
		struct pasid_msg head;
		uint8_t body[512];
	} m = {0};

	if (flags & RECORD_RAW) {
		send_bytes(sock, data, len, flags & RECORD_FD);
		return;
	}
	if (!(flags & RECORD_REPEAT))
		++*serial;
	m.head.size = (uint32_t)(sizeof(m.head) + len);
	m.head.opcode = opcode % 13;
	m.head.fds = !!(flags & RECORD_FD) ^ !!(flags & RECORD_FDS);
	m.head.serial = *serial;
	memcpy(m.body, data, len);
	if ((flags & RECORD_SERIAL) && len >= 8)
		memcpy(&m.head.serial, data, 8);
	send_bytes(sock, &m, m.head.size, flags & RECORD_FD);
}

static void say_hello(int sock, uint64_t *serial)
{
	struct pasid_hello hello = {PASID_PROTOCOL_MAGIC, PASID_PROTOCOL_VERSION, 0};

	play(sock, 0, PASID_OP_HELLO, (const uint8_t *)&hello, sizeof(hello), serial);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct session_host host = {0};
	uint64_t serial = 0;
	int sv[2];

	if (!base)
		set_up();
	host = (struct session_host){.base = base, .service = service};
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) < 0 ||
	    session_new(&host, sv[0], 1000, 1) < 0)
		abort();
	if (size && !(data[0] & 128))
		say_hello(sv[1], &serial);
	while (size >= 3) {
		size_t len = data[2] < size - 3 ? data[2] : size - 3;

		play(sv[1], data[0], data[1], data + 3, len, &serial);
		if (data[0] & RECORD_LOOP)
			event_base_loop(base, EVLOOP_NONBLOCK);
		if (data[0] & RECORD_READ)
			drain(sv[1]);
		data += 3 + len;
		size -= 3 + len;
	}
	event_base_loop(base, EVLOOP_NONBLOCK);
	drain(sv[1]);
	close(sv[1]);
	while (!LIST_EMPTY(&host.list) || service_lingering(service))
		event_base_loop(base, EVLOOP_NONBLOCK);
	return 0;
}
