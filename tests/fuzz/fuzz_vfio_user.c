/* SPDX-License-Identifier: MIT */
/*
 * Arbitrary bytes as a vfio-user device's answers. The input is a list of records: a byte of flags, a length, bytes.
 * Raw bytes alone hardly get past the first header, so a record may ask for a header that fits the question which is
 * out, or for a whole correct answer of the next opening stage; then the rest of the dialogue gets its share.
 */
#include "transport/vfio_user_priv.h"

#include "base/util.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum {
	RECORD_HEADER = 1, /* precede the bytes by the header of a reply to what is out */
	RECORD_ERROR = 2, /* which says error */
	RECORD_FD = 4, /* and brings a file */
	RECORD_CORRECT = 8, /* a correct answer, the bytes laid over its beginning by exclusive or */
	RECORD_CALL = 16, /* before: a call of each kind */
	RECORD_ADOPT = 32, /* before that: the client dies, and has a successor */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int losses;

static void on_opened(void *owner)
{
}

static bool on_irq(void *owner, uint32_t vector)
{
	return true;
}

static void on_lost(void *owner, int error, const char *why)
{
	if (losses++ > 0 || error >= 0 || why[0] == '\0')
		abort();
}

static void on_done(void *arg, int err)
{
	if (err > 0 || losses > 0)
		abort();
}

static void on_room(void *owner)
{
}

static const struct transport_events events = {
	.opened = on_opened,
	.irq = on_irq,
	.room = on_room,
	.lost = on_lost,
};

static void call_everything(struct transport *t, int fd)
{
	volatile uint8_t *map = t->ops->region_map(t, 2, 0, 4096);

	if (map)
		(void)map[0];
	t->ops->dma_map(t, 0x10000, 4096, fd, 0, TRANSPORT_READ, on_done, NULL);
	t->ops->region_write(t, 0, 16, 8, 1);
	t->ops->dma_unmap(t, 0x10000, 4096, on_done, NULL);
	t->ops->dma_clear(t, 0x10000, 4096, on_done, NULL);
	t->ops->reset(t, on_done, NULL);
}

/* The body of a correct answer to the oldest question; its length. */
static size_t correct_body(const struct vfu *v, const struct vfu_pending *p, uint8_t *body)
{
	struct vfio_user_device_info info = {16, VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET, 9, 5};
	struct vfio_region_info region = {
		.argsz = 80, .flags = 15, .index = v->regions_known, .cap_offset = 32, .size = 65536};
	struct vfio_info_cap_header cap = {VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, 0};
	struct vfio_region_sparse_mmap_area areas[2] = {{0, 4096}, {8192, 4096}};
	struct vfio_irq_info irq = {16, VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX, 8};
	struct vfio_user_region_access access = {0, VFIO_PCI_CONFIG_REGION_INDEX, 64};
	struct vfio_user_dma_unmap unmap = {24, 0, p->bus, p->len};
	static const char version[] = "\0\0\0\0{\"capabilities\":{\"max_msg_fds\":2}}";
	uint32_t nr_areas = 2;

#define BODY(x) (memcpy(body, &(x), sizeof(x)), sizeof(x))
	switch (p->command) {
	case VFIO_USER_VERSION:
		return BODY(version);
	case VFIO_USER_DEVICE_GET_INFO:
		return BODY(info);
	case VFIO_USER_DEVICE_GET_REGION_INFO:
		memcpy(body, &region, sizeof(region));
		memcpy(body + 32, &cap, sizeof(cap));
		memcpy(body + 40, &nr_areas, sizeof(nr_areas));
		memcpy(body + 48, areas, sizeof(areas));
		return 80;
	case VFIO_USER_DEVICE_GET_IRQ_INFO:
		return BODY(irq);
	case VFIO_USER_REGION_READ:
		BODY(access);
		return sizeof(access) + 64;
	case VFIO_USER_REGION_WRITE:
		access.offset = 4;
		access.count = 2;
		return BODY(access);
	case VFIO_USER_DMA_UNMAP:
		return BODY(unmap);
	default:
		return 0;
	}
}

static void send_bytes(int sock, const void *data, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {(void *)(uintptr_t)data, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *cm;

	if (fd >= 0) {
		mh.msg_control = control.buf;
		mh.msg_controllen = sizeof(control.buf);
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cm), &fd, sizeof(fd));
	}
	if (sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return; /* the transport has hung up, or reads slowly: both are fine */
}

static void play(const struct vfu *v, int sock, int fd, uint8_t flags, const uint8_t *data, size_t len)
{
	uint8_t m[sizeof(struct vfio_user_header) + 512] = {0};
	const struct vfu_pending *p = v->pending_count > 0 ? &v->pending[v->pending_head] : NULL;
	struct vfio_user_header h = {.size = (uint32_t)(sizeof(h) + len), .flags = VFIO_USER_TYPE_REPLY};
	uint8_t *body = m + sizeof(h);

	if (!p || !(flags & (RECORD_HEADER | RECORD_CORRECT))) {
		send_bytes(sock, data, len, flags & RECORD_FD ? fd : -1);
		return;
	}
	h.id = p->id;
	h.command = p->command;
	if (flags & RECORD_ERROR) {
		h.flags |= VFIO_USER_ERROR;
		h.error = len > 0 ? data[0] : 0;
		h.size = sizeof(h);
	} else if (flags & RECORD_CORRECT) {
		size_t n = correct_body(v, p, body);

		for (size_t i = 0; i < len && i < n; i++)
			body[i] ^= data[i];
		h.size = (uint32_t)(sizeof(h) + n);
	} else {
		memcpy(body, data, len);
	}
	memcpy(m, &h, sizeof(h));
	send_bytes(sock, m, h.size, flags & RECORD_FD ? fd : -1);
}

static void drain(int sock)
{
	static uint8_t buf[65536];

	while (recv(sock, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

static struct transport *succeed(struct transport *t, struct event_base *base)
{
	const struct vfu *v = container_of(t, struct vfu, transport);
	uint8_t saved[TRANSPORT_SAVE_MAX];
	int fds[TRANSPORT_KEEP_MAX];
	size_t size;

	if (v->conn.error || v->stage == VFU_STAGE_VERSION)
		return t;
	size = t->ops->save(t, saved);
	if (t->ops->keep(t, fds) != 1)
		abort();
	fds[0] = dup(fds[0]);
	t->ops->close(t);
	if (transport_vfio_user.adopt(&t, base, "/", 3, 60000, saved, size, fds, 1, &events, NULL) < 0)
		abort();
	return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct event_base *base;
	static int fd = -1;
	struct transport *t = NULL;
	int sv[2];

	if (!base) {
		base = event_base_new();
		fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (!base || fd < 0 || ftruncate(fd, 65536) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
			abort();
	}
	losses = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		abort();
	if (vfio_user_open_fd(&t, base, sv[0], 3, 60000, &events, NULL) < 0)
		abort();
	while (size >= 2) {
		uint8_t flags = data[0];
		size_t len = data[1] < size - 2 ? data[1] : size - 2;

		drain(sv[1]);
		if (flags & RECORD_ADOPT)
			t = succeed(t, base);
		if (flags & RECORD_CALL)
			call_everything(t, fd);
		play(container_of(t, struct vfu, transport), sv[1], fd, flags, data + 2, len);
		event_base_loop(base, EVLOOP_NONBLOCK);
		data += 2 + len;
		size -= 2 + len;
	}
	close(sv[1]);
	while (losses == 0)
		event_base_loop(base, EVLOOP_ONCE);
	t->ops->close(t);
	return 0;
}
