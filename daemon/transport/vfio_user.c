/* SPDX-License-Identifier: MIT */
/*
 * The vfio-user transport: a device that is a process at a Unix socket. Requests are answered in the order in which
 * they were made, or the device is lost; the oldest one has a deadline, counted from when it became the oldest. The
 * device's own requests are refused: all memory that it may reach it was given as files.
 */
#include "transport/vfio_user_priv.h"

#include "base/closer.h"
#include "base/util.h"

#include <assert.h>
#include <errno.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#define MAX_ERRNO 4095u

const char *vfu_command_name(uint16_t command)
{
	static const char *const names[] = {
		[VFIO_USER_VERSION] = "VERSION",
		[VFIO_USER_DMA_MAP] = "DMA_MAP",
		[VFIO_USER_DMA_UNMAP] = "DMA_UNMAP",
		[VFIO_USER_DEVICE_GET_INFO] = "DEVICE_GET_INFO",
		[VFIO_USER_DEVICE_GET_REGION_INFO] = "DEVICE_GET_REGION_INFO",
		[VFIO_USER_DEVICE_GET_IRQ_INFO] = "DEVICE_GET_IRQ_INFO",
		[VFIO_USER_DEVICE_SET_IRQS] = "DEVICE_SET_IRQS",
		[VFIO_USER_REGION_READ] = "REGION_READ",
		[VFIO_USER_REGION_WRITE] = "REGION_WRITE",
		[VFIO_USER_DMA_READ] = "DMA_READ",
		[VFIO_USER_DMA_WRITE] = "DMA_WRITE",
		[VFIO_USER_DEVICE_RESET] = "DEVICE_RESET",
	};

	return command < ARRAY_SIZE(names) && names[command] ? names[command] : "an unknown command";
}

static struct vfu *vfu_of(struct transport *t)
{
	return container_of(t, struct vfu, transport);
}

/* ---- Requests. */

static int send_message(struct vfu *v, uint16_t command, uint32_t flags, const void *payload, size_t len,
			const int *fds, unsigned int n_fds)
{
	struct {
		struct vfio_user_header header;
		uint8_t payload[VFU_MAX_SEND - sizeof(struct vfio_user_header)];
	} m;

	assert(len <= sizeof(m.payload));
	m.header = (struct vfio_user_header){
		.id = v->next_id,
		.command = command,
		.size = (uint32_t)(sizeof(m.header) + len),
		.flags = flags,
	};
	if (len > 0)
		memcpy(m.payload, payload, len);
	return vfu_conn_send(&v->conn, &m, m.header.size, fds, n_fds);
}

static uint16_t take_id(struct vfu *v)
{
	uint16_t id = v->next_id;

	v->next_id = (uint16_t)((id & VFU_ID_PROCESS) | ((id + 1) & VFU_ID_SEQUENCE));
	return id;
}

static struct vfu_pending *pending_oldest(struct vfu *v)
{
	return v->pending_count > 0 ? &v->pending[v->pending_head] : NULL;
}

static void pending_pop(struct vfu *v)
{
	v->pending_head = (v->pending_head + 1) % ARRAY_SIZE(v->pending);
	v->pending_count--;
	if (v->pending_count == 0) {
		event_del(&v->ev_answer);
		return;
	}
	vfu_deadline_start(&v->conn, &v->ev_answer, &v->answer_since_ns);
}

int vfu_request(struct vfu *v, const struct vfu_pending *p, const void *payload, size_t len, const int *fds,
		unsigned int n_fds)
{
	struct vfu_pending *slot;
	int r;

	if (v->pending_count >= VFU_MAX_PENDING + (p->command == VFIO_USER_DEVICE_RESET)) {
		v->crowded = true;
		return -EBUSY;
	}
	r = send_message(v, p->command, VFIO_USER_TYPE_COMMAND, payload, len, fds, n_fds);
	if (r < 0)
		return r;
	slot = &v->pending[(v->pending_head + v->pending_count) % ARRAY_SIZE(v->pending)];
	*slot = *p;
	slot->id = take_id(v);
	if (v->pending_count++ == 0)
		vfu_deadline_start(&v->conn, &v->ev_answer, &v->answer_since_ns);
	return 0;
}

int vfu_send_region_write(struct vfu *v, const struct vfu_pending *p, uint32_t region, uint64_t off, uint32_t width,
			  uint64_t value)
{
	struct {
		struct vfio_user_region_access access;
		uint8_t data[8];
	} m = {.access = {.offset = off, .region = region, .count = width}};
	int r;

	/* Registers are little-endian whatever we are. */
	for (uint32_t i = 0; i < width; i++)
		m.data[i] = (uint8_t)(value >> (8 * i));
	if (p)
		return vfu_request(v, p, &m, sizeof(m.access) + width, NULL, 0);
	r = send_message(v, VFIO_USER_REGION_WRITE, VFIO_USER_TYPE_COMMAND | VFIO_USER_NO_REPLY, &m,
			 sizeof(m.access) + width, NULL, 0);
	if (r == 0)
		take_id(v);
	return r;
}

/* ---- Answers. */

static void on_answer_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct vfu *v = arg;
	const struct vfu_pending *p = pending_oldest(v);

	if (!p || !vfu_deadline_passed(&v->conn, &v->ev_answer, v->answer_since_ns))
		return;
	vfu_conn_fail(&v->conn, -ETIMEDOUT, "no answer to %s (message %u) within %u ms, %u requests are out",
		      vfu_command_name(p->command), p->id, v->conn.deadline_ms, v->pending_count);
}

/* The device asks for something: it may not, but it may ask. */
static void refuse(struct vfu *v, const struct vfio_user_header *h)
{
	struct vfio_user_header reply = {
		.id = h->id,
		.command = h->command,
		.size = sizeof(reply),
		.flags = VFIO_USER_TYPE_REPLY | VFIO_USER_ERROR,
		.error = ENOTSUP,
	};
	int r;

	if (h->flags & VFIO_USER_NO_REPLY)
		return;
	if (v->conn.out_messages >= VFU_MAX_REFUSALS) {
		vfu_conn_fail(&v->conn, -ENOBUFS, "the device asks and asks and leaves %u messages unread",
			      v->conn.out_messages);
		return;
	}
	r = vfu_conn_send(&v->conn, &reply, sizeof(reply), NULL, 0);
	if (r < 0)
		vfu_conn_fail(&v->conn, r, "refusing the device's request %u failed with error %d of our own",
			      h->command, -r);
}

/* What a positive answer to a request of an open device must look like. 0, or the connection has failed. */
static int judge_answer(struct vfu *v, const struct vfu_pending *p, const uint8_t *payload, uint32_t len)
{
	struct vfio_user_dma_unmap m;
	uint32_t want = p->command == VFIO_USER_DMA_UNMAP ? sizeof(m) : 0;

	if (len != want)
		return vfu_conn_fail(&v->conn, -EPROTO, "the device answered %s with %u bytes, %u are right",
				     vfu_command_name(p->command), len, want);
	if (p->command != VFIO_USER_DMA_UNMAP)
		return 0;
	memcpy(&m, payload, sizeof(m));
	if (m.address != p->bus || (m.size != p->len && !(p->clear && m.size == 0)))
		return vfu_conn_fail(&v->conn, -EPROTO,
				     "asked to unmap 0x%llx bytes at 0x%llx, the device unmapped 0x%llx at 0x%llx",
				     (unsigned long long)p->len, (unsigned long long)p->bus, (unsigned long long)m.size,
				     (unsigned long long)m.address);
	return 0;
}

/* The errno of an error reply, negative. -ENODEV is ours: it means that the device is lost. */
static int reply_error(const struct vfu_pending *p, const struct vfio_user_header *h)
{
	if (!(h->flags & VFIO_USER_ERROR) || (p->clear && h->error == ENOENT))
		return 0;
	return h->error == 0 || h->error == ENODEV ? -EIO : -(int)h->error;
}

static void on_reply(struct vfu *v, const struct vfio_user_header *h, const uint8_t *payload, uint32_t len, int *fd)
{
	const struct vfu_pending *oldest = pending_oldest(v);
	struct vfu_pending p;
	int err;

	if (v->drains && (h->id & VFU_ID_PROCESS) != (v->next_id & VFU_ID_PROCESS)) {
		closer_close(util_take_fd(fd), VFU_DEVICE_UID);
		return;
	}
	if (!oldest || oldest->id != h->id || oldest->command != h->command) {
		vfu_conn_fail(&v->conn, -EPROTO,
			      "the device answered message %u (command %u), expected %d (command %d)", h->id,
			      h->command, oldest ? oldest->id : -1, oldest ? oldest->command : -1);
		return;
	}
	p = *oldest;
	if ((h->flags & VFIO_USER_ERROR) && (len != 0 || h->error > MAX_ERRNO)) {
		vfu_conn_fail(&v->conn, -EPROTO, "the device answered %s with error %u and %u bytes",
			      vfu_command_name(p.command), h->error, len);
		return;
	}
	err = reply_error(&p, h);
	if (err == 0 && p.done && !(h->flags & VFIO_USER_ERROR) && judge_answer(v, &p, payload, len) < 0)
		return;
	/* A file descriptor comes with nothing but descriptions of regions; the connection reports it. */
	if (*fd >= 0 && (err < 0 || p.command != VFIO_USER_DEVICE_GET_REGION_INFO))
		return;
	if (v->drains)
		v->drains = v->conn.want_fd = false;
	pending_pop(v);
	if (p.done)
		p.done(p.arg, err);
	else if (err < 0)
		vfu_conn_fail(&v->conn, err, "the device refused %s with error %u", vfu_command_name(p.command),
			      h->error);
	else
		vfu_open_answer(v, payload, len, fd);
	if (v->crowded && !v->forgotten && !v->conn.error) {
		v->crowded = false;
		v->events->room(v->owner);
	}
}

static void on_message(struct vfu_conn *c, const struct vfio_user_header *h, const uint8_t *payload, uint32_t len,
		       int *fd)
{
	struct vfu *v = container_of(c, struct vfu, conn);

	if ((h->flags & VFIO_USER_TYPE_MASK) == VFIO_USER_TYPE_COMMAND)
		refuse(v, h);
	else
		on_reply(v, h, payload, len, fd);
}

static void on_failed(struct vfu_conn *c)
{
	struct vfu *v = container_of(c, struct vfu, conn);
	const struct vfu_pending *oldest;

	for (uint32_t i = 0; i < v->n_irqs; i++)
		event_del(&v->irqs[i].ev);
	/* Nothing can be added meanwhile: the connection sends no more. */
	while ((oldest = pending_oldest(v))) {
		struct vfu_pending p = *oldest;

		pending_pop(v);
		if (p.done)
			p.done(p.arg, -ENODEV);
	}
	event_del(&v->ev_answer);
	if (!v->forgotten)
		v->events->lost(v->owner, c->error, c->why);
}

/* ---- Interrupts. */

/* The device holds the same open file: it could clear O_NONBLOCK and empty the counter just before we read, and we
 * would hang. So the counter is never read; the event is edge-triggered, and every write is an edge. */
static void on_irq(evutil_socket_t fd, short what, void *arg)
{
	struct vfu_irq *irq = arg;
	struct vfu *v = irq->device;

	if (!v->conn.error)
		(void)v->events->irq(v->owner, irq->vector);
}

static int make_irqs(struct vfu *v, struct event_base *base, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct vfu_irq *irq = &v->irqs[i];

		irq->device = v;
		irq->vector = i;
		irq->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (irq->fd < 0)
			return -errno;
		event_assign(&irq->ev, base, irq->fd, EV_READ | EV_PERSIST | EV_ET, on_irq, irq);
		v->n_irqs++;
	}
	return 0;
}

/* ---- The transport's operations. */

static struct transport *vfu_close(struct transport *t)
{
	struct vfu *v;

	if (!t)
		return NULL;
	v = vfu_of(t);
	event_del(&v->ev_answer);
	event_del(&v->ev_begin);
	for (uint32_t i = 0; i < v->n_irqs; i++) {
		event_del(&v->irqs[i].ev);
		close(v->irqs[i].fd);
	}
	vfu_conn_fini(&v->conn);
	for (uint32_t i = 0; i < ARRAY_SIZE(v->regions); i++)
		vfu_region_fini(&v->regions[i]);
	free(v);
	return NULL;
}

static void vfu_forget(struct transport *t)
{
	struct vfu *v = vfu_of(t);

	v->forgotten = true;
	v->pending_count = 0;
	event_del(&v->ev_answer);
	event_del(&v->ev_begin);
	for (uint32_t i = 0; i < v->n_irqs; i++)
		event_del(&v->irqs[i].ev);
	vfu_conn_silence(&v->conn);
}

void vfu_closep(struct vfu **v)
{
	if (!*v)
		return;
	(*v)->conn.fd = -1; /* still the caller's */
	vfu_close(&(*v)->transport);
}

static void on_begin(evutil_socket_t fd, short what, void *arg)
{
	vfu_open_ask(arg);
}

static const struct vfu_conn_events conn_events = {
	.message = on_message,
	.failed = on_failed,
};

int vfu_new(struct vfu **ret, struct event_base *base, int fd, uint32_t irqs, uint32_t deadline_ms,
	    const struct transport_events *events, void *owner)
{
	struct vfu *v;
	int r;

	if (irqs > TRANSPORT_MAX_IRQS || deadline_ms == 0)
		return -EINVAL;
	if (!(event_base_get_features(base) & EV_FEATURE_ET))
		return -EOPNOTSUPP;
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->transport.ops = &transport_vfio_user;
	v->events = events;
	v->owner = owner;
	for (uint32_t i = 0; i < ARRAY_SIZE(v->regions); i++)
		vfu_region_init(&v->regions[i]);
	event_assign(&v->ev_answer, base, -1, 0, on_answer_deadline, v);
	event_assign(&v->ev_begin, base, -1, 0, on_begin, v);
	vfu_conn_init(&v->conn, base, fd, deadline_ms, &conn_events);
	r = make_irqs(v, base, irqs);
	if (r == 0)
		r = vfu_conn_start(&v->conn);
	if (r < 0)
		vfu_closep(&v);
	else
		*ret = v;
	return r;
}

int vfio_user_open_fd(struct transport **ret, struct event_base *base, int fd, uint32_t irqs, uint32_t deadline_ms,
		      const struct transport_events *events, void *owner)
{
	__attribute__((cleanup(vfu_closep))) struct vfu *v = NULL;
	int r = vfu_new(&v, base, fd, irqs, deadline_ms, events, owner);

	if (r < 0)
		return r;
	if (vfu_open_ask(v) < 0)
		return v->conn.error;
	*ret = &TAKE_PTR(v)->transport;
	return 0;
}

static bool vfu_address_ok(const char *address)
{
	return address[0] == '/' && address[1] && strlen(address) < sizeof(((struct sockaddr_un *)0)->sun_path);
}

static int vfu_open(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		    uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	AUTO_CLOSE int fd = -1;
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int r;

	if (address[0] == '\0')
		return -EINVAL;
	if (strlen(address) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, address);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* A Unix socket connects at once or not at all: EAGAIN means that the device's backlog is full. */
	if (connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	r = vfio_user_open_fd(ret, base, fd, irqs, deadline_ms, events, owner);
	if (r == 0)
		util_take_fd(&fd);
	return r;
}

static void vfu_ids(const struct transport *t, struct transport_ids *ret)
{
	*ret = container_of(t, const struct vfu, transport)->ids;
}

/* As far as the page tables of every format reach; a device's own bus may be narrower, which shows when it maps. */
static int vfu_usable(struct transport *t, struct range *v, size_t *n)
{
	size_t room = *n;

	*n = 1;
	if (!room)
		return -ENOSPC;
	v[0] = (struct range){0, (1ull << 47) - 1};
	return 0;
}

/* 0 if the device can be used; -ENODEV if it is lost, -ENOTCONN if it is not opened yet. */
static int check_open(const struct vfu *v)
{
	if (v->conn.error)
		return -ENODEV;
	return v->stage == VFU_STAGE_OPEN ? 0 : -ENOTCONN;
}

static bool range_is_pages(uint64_t first, uint64_t len)
{
	struct range r;

	return range_make(&r, first, len) && range_aligned(r, 4096);
}

static int vfu_dma_map(struct transport *t, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot,
		       transport_done done, void *arg)
{
	struct vfu *v = vfu_of(t);
	struct vfio_user_dma_map m = {.argsz = sizeof(m), .offset = off, .address = bus, .size = len};
	int r = check_open(v);

	if (r < 0)
		return r;
	if (!range_is_pages(bus, len) || !range_is_pages(off, len) || off + len > INT64_MAX || prot == 0 ||
	    (prot & ~(uint32_t)(TRANSPORT_READ | TRANSPORT_WRITE)) || !done)
		return -EINVAL;
	m.flags = (prot & TRANSPORT_READ ? VFIO_USER_DMA_READABLE : 0) |
		  (prot & TRANSPORT_WRITE ? VFIO_USER_DMA_WRITEABLE : 0);
	return vfu_request(v, &(struct vfu_pending){.command = VFIO_USER_DMA_MAP, .done = done, .arg = arg}, &m,
			   sizeof(m), &fd, 1);
}

static int unmap(struct vfu *v, uint64_t bus, uint64_t len, bool clear, transport_done done, void *arg)
{
	const struct vfu_pending p = {
		.command = VFIO_USER_DMA_UNMAP, .done = done, .arg = arg, .bus = bus, .len = len, .clear = clear};
	struct vfio_user_dma_unmap m = {.argsz = sizeof(m), .address = bus, .size = len};
	int r = check_open(v);

	if (r < 0)
		return r;
	if (!range_is_pages(bus, len) || !done)
		return -EINVAL;
	return vfu_request(v, &p, &m, sizeof(m), NULL, 0);
}

static int vfu_dma_unmap(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	return unmap(vfu_of(t), bus, len, false, done, arg);
}

/* Where there was nothing, libvfio-user says -ENOENT; others, and pasid-refgpu, say that it is gone. */
static int vfu_dma_clear(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	return unmap(vfu_of(t), bus, len, true, done, arg);
}

static int vfu_region_write(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	struct vfu *v = vfu_of(t);
	const struct vfu_region *reg;
	int r = check_open(v);

	if (r < 0)
		return r;
	if (region >= v->n_regions || (width != 4 && width != 8))
		return -EINVAL;
	reg = &v->regions[region];
	if (!(reg->flags & VFIO_REGION_INFO_FLAG_WRITE) || reg->size < width || off > reg->size - width)
		return -EINVAL;
	r = vfu_send_region_write(v, NULL, region, off, width, value);
	/* Nobody would know which doorbell is missing. */
	if (r < 0 && r != -ENODEV)
		vfu_conn_fail(&v->conn, r, "a register write failed with error %d of our own", -r);
	return r;
}

/* A message would have to be waited for. */
static int vfu_region_read(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	struct vfu *v = vfu_of(t);
	const volatile void *at;
	int r = check_open(v);

	if (r < 0)
		return r;
	if (region >= v->n_regions || (width != 4 && width != 8) || off % width)
		return -EINVAL;
	at = vfu_region_map(&v->regions[region], off, width);
	if (!at)
		return -EOPNOTSUPP;
	*value = width == 8 ? *(const volatile uint64_t *)at : *(const volatile uint32_t *)at;
	return 0;
}

static volatile void *vfu_map_region(struct transport *t, uint32_t region, uint64_t off, uint64_t len)
{
	struct vfu *v = vfu_of(t);

	if (check_open(v) < 0 || region >= v->n_regions)
		return NULL;
	return vfu_region_map(&v->regions[region], off, len);
}

static int vfu_reset(struct transport *t, transport_done done, void *arg)
{
	struct vfu *v = vfu_of(t);
	int r = check_open(v);

	if (r < 0)
		return r;
	if (!done)
		return -EINVAL;
	if (!(v->device_flags & VFIO_DEVICE_FLAGS_RESET))
		return -EOPNOTSUPP;
	r = vfu_request(v, &(struct vfu_pending){.command = VFIO_USER_DEVICE_RESET, .done = done, .arg = arg}, NULL, 0,
			NULL, 0);
	if (r < 0)
		return r;
	/* A reset may clear the config space, as a PCI reset does: bus mastering comes back before anything that is
	 * asked for later. */
	r = vfu_send_region_write(v, NULL, VFIO_PCI_CONFIG_REGION_INDEX, PCI_COMMAND, 2, v->pci_command);
	if (r < 0)
		vfu_conn_fail(&v->conn, r, "bus mastering after a reset: error %d of our own", -r);
	return 0;
}

const struct transport_ops transport_vfio_user = {
	.scheme = "vfio-user",
	.address_ok = vfu_address_ok,
	.open = vfu_open,
	.save = vfu_save,
	.keep = vfu_keep,
	.adopt = vfu_adopt,
	.close = vfu_close,
	.forget = vfu_forget,
	.ids = vfu_ids,
	.usable = vfu_usable,
	.dma_map = vfu_dma_map,
	.dma_unmap = vfu_dma_unmap,
	.dma_clear = vfu_dma_clear,
	.region_write = vfu_region_write,
	.region_read = vfu_region_read,
	.region_map = vfu_map_region,
	.reset = vfu_reset,
};
