/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user device that a test plays by hand, in the same thread: the test runs the loop until the transport has said
 * what is expected, then answers, well or badly. cmocka.h comes first.
 */
#ifndef VFIO_USER_RIG_H
#define VFIO_USER_RIG_H

#include "base/util.h"
#include "transport/vfio_user_priv.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define DEADLINE 20000u /* ms: for tests that do not wait for one */
#define SHORT 30u
#define IRQS 3u
#define MAX_FDS 32

struct world {
	struct event_base *base;
	int fd; /* the device's end, or -1 */
	struct transport *t;
	unsigned int fds_before;

	int opened, losses, error, rooms;
	char why[256];
	unsigned int irqs[TRANSPORT_MAX_IRQS];
	int order[16]; /* the done callbacks as they came: their number */
	int err[16];
	int n_done;

	/* The last message that the device received. */
	struct vfio_user_header h;
	uint8_t body[8192];
	int fds[MAX_FDS];
	int n_fds;

	/* How the device lies while it is opened. */
	uint32_t device_fds; /* max_msg_fds, 0: no capabilities */
	uint8_t command; /* the low byte of the command register */
	int status_fd; /* behind region 2, or -1 */
	struct vfio_region_info region;
	struct {
		struct vfio_info_cap_header header;
		uint32_t nr_areas, reserved;
	} cap; /* struct vfio_region_info_cap_sparse_mmap without its flexible end */
	struct vfio_region_sparse_mmap_area area[2];
};

/* ---- What the transport tells its owner. */

static inline void on_opened(void *owner)
{
	((struct world *)owner)->opened++;
}

static inline bool on_irq(void *owner, uint32_t vector)
{
	((struct world *)owner)->irqs[vector]++;
	return true;
}

static inline void on_lost(void *owner, int error, const char *why)
{
	struct world *w = owner;

	w->losses++;
	w->error = error;
	snprintf(w->why, sizeof(w->why), "%s", why);
}

static inline void on_room(void *owner)
{
	((struct world *)owner)->rooms++;
}

static const struct transport_events events = {
	.opened = on_opened,
	.irq = on_irq,
	.room = on_room,
	.lost = on_lost,
};

struct done {
	struct world *w;
	int number;
};

static inline void on_done(void *arg, int err)
{
	struct done *d = arg;

	assert_int_equal(d->w->losses, 0); /* answers come before lost */
	d->w->order[d->w->n_done] = d->number;
	d->w->err[d->w->n_done++] = err;
}

/* ---- The device's end. */

static inline void on_watchdog(evutil_socket_t fd, short what, void *arg)
{
	fail_msg("nothing happened for 10 s");
}

/* One turn of the loop that waits for something to do. */
static inline void turn(struct world *w)
{
	struct timeval tv = {.tv_sec = 10};
	struct event watchdog;

	event_assign(&watchdog, w->base, -1, 0, on_watchdog, NULL);
	event_add(&watchdog, &tv);
	event_base_loop(w->base, EVLOOP_ONCE);
	event_del(&watchdog);
}

static inline void until_lost(struct world *w)
{
	while (w->losses == 0)
		turn(w);
	assert_int_equal(w->losses, 1);
	assert_true(strpbrk(w->why, "0123456789") != NULL);
}

static inline void drop_fds(struct world *w)
{
	for (int i = 0; i < w->n_fds; i++)
		close(w->fds[i]);
	w->n_fds = 0;
}

/* Reads len bytes from the transport, running the loop until they are there. */
static inline void device_read(struct world *w, void *buf, size_t len)
{
	size_t have = 0;

	while (have < len) {
		char control[CMSG_SPACE(sizeof(int) * MAX_FDS)];
		struct iovec iov = {(char *)buf + have, len - have};
		struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
		struct cmsghdr *cm;
		ssize_t n;

		mh.msg_controllen = sizeof(control);
		n = recvmsg(w->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && errno == EAGAIN) {
			turn(w);
			continue;
		}
		assert_true(n > 0);
		have += (size_t)n;
		cm = CMSG_FIRSTHDR(&mh);
		if (cm) {
			w->n_fds = (int)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(w->fds, CMSG_DATA(cm), sizeof(int) * (size_t)w->n_fds);
		}
	}
}

static inline void expect(struct world *w, uint16_t command, uint32_t size)
{
	drop_fds(w);
	device_read(w, &w->h, sizeof(w->h));
	assert_int_equal(w->h.command, command);
	assert_int_equal(w->h.flags & VFIO_USER_TYPE_MASK, VFIO_USER_TYPE_COMMAND);
	if (size != 0)
		assert_int_equal(w->h.size, sizeof(w->h) + size);
	assert_true(w->h.size - sizeof(w->h) <= sizeof(w->body));
	device_read(w, w->body, w->h.size - sizeof(w->h));
}

/* Sends bytes with n_fds copies of one file descriptor. */
static inline void device_send(struct world *w, const void *buf, size_t len, int fd, unsigned int n_fds)
{
	char control[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	int fds[MAX_FDS];
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds > 0) {
		struct cmsghdr *cm;

		memset(control, 0, sizeof(control));
		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		assert_true(n_fds <= ARRAY_SIZE(fds));
		for (unsigned int i = 0; i < n_fds; i++)
			fds[i] = fd;
		memcpy(CMSG_DATA(cm), fds, sizeof(int) * n_fds);
	}
	assert_int_equal(sendmsg(w->fd, &mh, MSG_NOSIGNAL), len);
}

static inline void send_header(struct world *w, struct vfio_user_header h)
{
	device_send(w, &h, sizeof(h), -1, 0);
}

static inline void reply_fds(struct world *w, const void *body, size_t len, int fd, unsigned int n_fds)
{
	uint8_t m[8192];
	struct vfio_user_header h = w->h;

	h.flags = VFIO_USER_TYPE_REPLY;
	h.size = (uint32_t)(sizeof(h) + len);
	memcpy(m, &h, sizeof(h));
	if (len > 0)
		memcpy(m + sizeof(h), body, len);
	device_send(w, m, h.size, fd, n_fds);
}

static inline void reply(struct world *w, const void *body, size_t len)
{
	reply_fds(w, body, len, -1, 0);
}

static inline void reply_error(struct world *w, uint32_t error)
{
	struct vfio_user_header h = w->h;

	h.flags = VFIO_USER_TYPE_REPLY | VFIO_USER_ERROR;
	h.size = sizeof(h);
	h.error = error;
	send_header(w, h);
}

/* ---- A device that behaves, stage by stage. */

static inline void answer_version(struct world *w)
{
	struct {
		struct vfio_user_version v;
		char json[200];
	} m = {.v = {0, 0}};

	expect(w, VFIO_USER_VERSION, 0);
	assert_int_equal(w->body[w->h.size - sizeof(w->h) - 1], 0);
	assert_non_null(strstr((char *)w->body + sizeof(m.v), "max_msg_fds"));
	if (w->device_fds == 0) {
		reply(w, &m, sizeof(m.v));
		return;
	}
	snprintf(m.json, sizeof(m.json), "{\"capabilities\":{\"max_msg_fds\":%u,\"max_data_xfer_size\":4096}}",
		 w->device_fds);
	reply(w, &m, sizeof(m.v) + strlen(m.json) + 1);
}

static inline void answer_info(struct world *w)
{
	struct vfio_user_device_info m = {sizeof(m), VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET, 9, 5};

	expect(w, VFIO_USER_DEVICE_GET_INFO, sizeof(m));
	reply(w, &m, sizeof(m));
}

static inline struct vfio_region_info region_info(const struct world *w, uint32_t index)
{
	struct vfio_region_info m = {.argsz = sizeof(m), .index = index, .flags = 3};

	if (index == 2)
		return w->region;
	m.size = index == 0 ? 65536 : index == VFIO_PCI_CONFIG_REGION_INDEX ? 256 : 0;
	return m;
}

/* Region 2, as the test has prepared it, with one or two areas. */
static inline void answer_status_region(struct world *w)
{
	uint8_t m[sizeof(w->region) + sizeof(w->cap) + sizeof(w->area)];

	expect(w, VFIO_USER_DEVICE_GET_REGION_INFO, sizeof(struct vfio_region_info));
	memcpy(m, &w->region, sizeof(w->region));
	memcpy(m + sizeof(w->region), &w->cap, sizeof(w->cap));
	memcpy(m + sizeof(w->region) + sizeof(w->cap), w->area, sizeof(w->area));
	reply_fds(w, m, sizeof(m), w->status_fd, w->status_fd >= 0 ? 1 : 0);
}

static inline void answer_region(struct world *w, uint32_t index)
{
	struct vfio_region_info m = region_info(w, index), asked;

	if (index == 2) {
		answer_status_region(w);
		return;
	}
	expect(w, VFIO_USER_DEVICE_GET_REGION_INFO, sizeof(m));
	memcpy(&asked, w->body, sizeof(asked));
	assert_int_equal(asked.index, index);
	reply(w, &m, sizeof(m));
}

static inline void answer_irq_info(struct world *w)
{
	struct vfio_irq_info m = {sizeof(m), VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX, 8};

	expect(w, VFIO_USER_DEVICE_GET_IRQ_INFO, sizeof(m));
	reply(w, &m, sizeof(m));
}

static inline void answer_set_irqs(struct world *w, uint32_t start, uint32_t count)
{
	struct vfio_irq_set m;

	expect(w, VFIO_USER_DEVICE_SET_IRQS, VFIO_USER_IRQ_SET_SIZE);
	memcpy(&m, w->body, VFIO_USER_IRQ_SET_SIZE);
	assert_int_equal(m.index, VFIO_PCI_MSIX_IRQ_INDEX);
	assert_int_equal(m.start, start);
	assert_int_equal(m.count, count);
	assert_int_equal(w->n_fds, count);
	reply(w, NULL, 0);
}

static inline void answer_read_config(struct world *w)
{
	uint8_t m[16 + 64] = {0};
	const uint8_t config[] = {0x34, 0x12, 0x51, 0x9a, w->command, 0, 0, 0, 1, 7, 0x80, 3};

	expect(w, VFIO_USER_REGION_READ, 16);
	memcpy(m, w->body, 16);
	memcpy(m + 16, config, sizeof(config));
	reply(w, m, sizeof(m));
}

static inline void answer_write_command(struct world *w)
{
	expect(w, VFIO_USER_REGION_WRITE, 16 + 2);
	assert_int_equal(w->body[16], 7); /* what was there, memory space, bus master */
	reply(w, w->body, 16);
}

#define STAGES 15 /* version, info, 9 regions, irq info, set irqs, config, command */

static inline void answer_stage(struct world *w, int stage)
{
	if (stage == 0)
		answer_version(w);
	else if (stage == 1)
		answer_info(w);
	else if (stage < 11)
		answer_region(w, (uint32_t)stage - 2);
	else if (stage == 11)
		answer_irq_info(w);
	else if (stage == 12)
		answer_set_irqs(w, 0, IRQS);
	else if (stage == 13)
		answer_read_config(w);
	else
		answer_write_command(w);
}

static inline void answer_stages(struct world *w, int n)
{
	for (int i = 0; i < n; i++)
		answer_stage(w, i);
}

/* Something for each stage: its request, unanswered. */
static inline void await_stage(struct world *w)
{
	drop_fds(w);
	device_read(w, &w->h, sizeof(w->h));
	device_read(w, w->body, w->h.size - sizeof(w->h));
}

/* ---- The world of one test. */

static inline unsigned int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static inline void begin(struct world *w)
{
	memset(w, 0, sizeof(*w));
	w->fds_before = count_fds();
	w->base = event_base_new();
	assert_non_null(w->base);
	w->fd = -1;
	w->device_fds = 8;
	w->command = 1;
	w->region = (struct vfio_region_info){.argsz = 80,
					      .index = 2,
					      .size = 8192,
					      .offset = 4096,
					      .flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP |
						       VFIO_REGION_INFO_FLAG_CAPS,
					      .cap_offset = 32};
	w->cap.header = (struct vfio_info_cap_header){.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1};
	w->cap.nr_areas = 1;
	w->area[0] = (struct vfio_region_sparse_mmap_area){.offset = 4096, .size = 4096};
	w->status_fd = memfd_create("status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(w->status_fd, 16384), 0);
	assert_int_equal(fcntl(w->status_fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
}

static inline void open_socketpair(struct world *w, uint32_t deadline_ms)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv), 0);
	w->fd = sv[1];
	assert_int_equal(vfio_user_open_fd(&w->t, w->base, sv[0], IRQS, deadline_ms, &events, w), 0);
}

static inline void begin_opened(struct world *w, uint32_t deadline_ms)
{
	begin(w);
	open_socketpair(w, deadline_ms);
	answer_stages(w, STAGES);
	while (!w->opened)
		turn(w);
}

static inline void end(struct world *w)
{
	int opened = w->opened, losses = w->losses, n_done = w->n_done;

	drop_fds(w);
	if (w->t)
		w->t = w->t->ops->close(w->t);
	util_closep(&w->fd);
	util_closep(&w->status_fd);
	event_base_loop(w->base, EVLOOP_NONBLOCK);
	assert_int_equal(opened, w->opened);
	assert_int_equal(losses, w->losses);
	assert_int_equal(n_done, w->n_done);
	event_base_free(w->base);
	assert_int_equal(count_fds(), w->fds_before);
}

static inline void end_lost(struct world *w, int error)
{
	until_lost(w);
	assert_int_equal(w->error, error);
	assert_int_equal(w->t->ops->region_write(w->t, 0, 0, 4, 1), -ENODEV);
	assert_int_equal(w->t->ops->dma_unmap(w->t, 0, 4096, on_done, NULL), -ENODEV);
	assert_int_equal(w->t->ops->reset(w->t, on_done, NULL), -ENODEV);
	assert_null((void *)w->t->ops->region_map(w->t, 2, 4096, 4));
	end(w);
}

static inline int map_page(struct world *w, uint64_t bus, struct done *d)
{
	return w->t->ops->dma_map(w->t, bus, 4096, w->status_fd, 0, TRANSPORT_READ, on_done, d);
}

#endif
