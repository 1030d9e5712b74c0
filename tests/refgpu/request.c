/* SPDX-License-Identifier: MIT */
/*
 * The client's commands: each judged against a row of a table, copied out of the message, then done.
 *
 * A handler returns 0 or a positive errno for the reply; what it wants to say goes into struct answer. It takes the
 * fds that it keeps out of the message.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/vfio.h>

#include "server.h"

#define VERSION_DATA_MAX 4096u

struct answer {
	const void *data;
	size_t size;
	int fd;
	union {
		struct vfio_device_info device;
		struct vfio_region_info region;
		struct vfio_irq_info irq;
		struct vfio_user_dma_unmap unmap;
		struct vfio_user_region_access access;
		char version[sizeof(struct vfio_user_version) + 256];
	} small;
	uint8_t bytes[sizeof(struct vfio_user_region_access) + PCI_CONFIG_SIZE];
};

static const void *say(struct answer *a, const void *data, size_t size)
{
	a->data = data;
	a->size = size;
	return data;
}

/* The number after "max_data_xfer_size": all of the client's JSON that this server needs. */
static uint32_t version_max_xfer(const char *json)
{
	static const char key[] = "\"max_data_xfer_size\"";
	const char *p = strstr(json, key);
	unsigned long val;

	p = p ? strchr(p + sizeof(key) - 1, ':') : NULL;
	val = p ? strtoul(p + 1, NULL, 10) : VFIO_USER_MAX_XFER;
	/* Below a cache line the device could not work at all; no client means that. */
	return val < 64 || val > VFIO_USER_MAX_XFER ? VFIO_USER_MAX_XFER : (uint32_t)val;
}

static int do_version(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_user_version v;
	int n;

	memcpy(&v, m->payload, sizeof(v));
	if (s->versioned)
		return EINVAL;
	if (m->size > sizeof(v) && m->payload[m->size - 1] != '\0')
		return EINVAL;
	if (v.major != VFIO_USER_MAJOR) {
		atomic_store(&s->conn.dead, true); /* the protocol's way of saying no */
		return EPROTONOSUPPORT;
	}
	if (m->size > sizeof(v))
		atomic_store(&s->conn.max_xfer, version_max_xfer((const char *)m->payload + sizeof(v)));
	v.minor = VFIO_USER_MINOR;
	memcpy(a->small.version, &v, sizeof(v));
	n = snprintf(a->small.version + sizeof(v), sizeof(a->small.version) - sizeof(v),
		     "{\"capabilities\":{\"max_msg_fds\":%u,\"max_data_xfer_size\":%u,\"max_dma_maps\":%u,"
		     "\"pgsizes\":4096}}",
		     VFIO_USER_MAX_FDS, VFIO_USER_MAX_XFER, VFIO_USER_MAX_DMA_MAPS);
	say(a, a->small.version, sizeof(v) + (size_t)n + 1);
	s->versioned = true;
	return 0;
}

static int do_dma_map(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_user_dma_map map;

	(void)a;
	memcpy(&map, m->payload, sizeof(map));
	if (map.argsz < sizeof(map))
		return EINVAL;
	return -dma_add(&s->dev->dma, map.address, map.size, map.flags, m->n_fds ? m->fds[0] : -1, map.offset);
}

static int do_dma_unmap(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_user_dma_unmap unmap;
	int r = 0;

	memcpy(&unmap, m->payload, sizeof(unmap));
	if (unmap.argsz < sizeof(unmap) || (unmap.flags & ~VFIO_DMA_UNMAP_FLAG_ALL))
		return EINVAL;
	if (!(unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL))
		r = dma_remove(&s->dev->dma, unmap.address, unmap.size);
	else if (unmap.address || unmap.size)
		r = -EINVAL;
	else
		dma_remove_all(&s->dev->dma);
	a->small.unmap = unmap;
	say(a, &a->small.unmap, sizeof(unmap));
	return -r;
}

static int do_get_info(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_device_info *info = &a->small.device;
	const size_t size = 16; /* of the protocol's version of the struct; newer headers have a longer one */
	uint32_t argsz;

	(void)s;
	memcpy(&argsz, m->payload, sizeof(argsz));
	if (argsz < size)
		return EINVAL;
	info->argsz = (uint32_t)size;
	info->flags = VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI;
	info->num_regions = VFIO_PCI_NUM_REGIONS;
	info->num_irqs = VFIO_PCI_NUM_IRQS;
	say(a, info, size);
	return 0;
}

static int do_region_info(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_region_info *info = &a->small.region;

	memcpy(info, m->payload, sizeof(*info));
	if (info->argsz < sizeof(*info) || info->index >= VFIO_PCI_NUM_REGIONS)
		return EINVAL;
	*info = (struct vfio_region_info){.argsz = sizeof(*info), .index = info->index};
	switch (info->index) {
	case VFIO_PCI_BAR0_REGION_INDEX:
		info->size = REFGPU_BAR_REGS_SIZE;
		info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
		break;
	case VFIO_PCI_BAR2_REGION_INDEX:
		info->size = REFGPU_BAR_STATUS_SIZE;
		info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_MMAP;
		a->fd = s->dev->status.fd_ro;
		break;
	case VFIO_PCI_CONFIG_REGION_INDEX:
		info->size = PCI_CONFIG_SIZE;
		info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
		break;
	}
	say(a, info, sizeof(*info));
	return 0;
}

static int do_irq_info(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_irq_info *info = &a->small.irq;

	(void)s;
	memcpy(info, m->payload, sizeof(*info));
	if (info->argsz < sizeof(*info) || info->index >= VFIO_PCI_NUM_IRQS)
		return EINVAL;
	*info = (struct vfio_irq_info){.argsz = sizeof(*info), .index = info->index};
	if (info->index == VFIO_PCI_MSIX_IRQ_INDEX) {
		info->count = REFGPU_VECTORS;
		info->flags = VFIO_IRQ_INFO_EVENTFD;
	}
	say(a, info, sizeof(*info));
	return 0;
}

static bool irqs_wants_fd(const struct message *m, size_t i)
{
	int32_t number = 0;

	if (m->size > sizeof(struct vfio_irq_set))
		memcpy(&number, m->payload + sizeof(struct vfio_irq_set) + i * sizeof(number), sizeof(number));
	return number >= 0;
}

/* Each vector gets the next fd sent, or none: if none were sent, or if the client sent numbers, for a negative one. */
static int irqs_set_eventfds(struct server *s, struct message *m, const struct vfio_irq_set *set)
{
	size_t numbers = m->size - sizeof(*set), i, wanted = 0, next = 0;
	bool wants;

	if (numbers && numbers != set->count * sizeof(int32_t))
		return EINVAL;
	for (i = 0; i < set->count; i++)
		wanted += irqs_wants_fd(m, i);
	if (m->n_fds != wanted && (numbers || m->n_fds))
		return EINVAL;
	for (i = 0; i < m->n_fds; i++)
		if (!irqs_can_arm(m->fds[i]))
			return EINVAL;
	for (i = 0; i < set->count; i++) {
		wants = m->n_fds && irqs_wants_fd(m, i);
		irqs_arm(&s->dev->irqs, set->start + (uint32_t)i, wants ? &m->fds[next++] : NULL);
	}
	return 0;
}

static int irqs_trigger(struct server *s, const struct message *m, const struct vfio_irq_set *set, bool all)
{
	uint32_t i;

	if (m->n_fds || m->size != sizeof(*set) + (all ? 0 : set->count))
		return EINVAL;
	if (all && !set->count && !set->start)
		irqs_disarm_all(&s->dev->irqs);
	for (i = 0; i < set->count; i++)
		if (all || m->payload[sizeof(*set) + i])
			irqs_fire(&s->dev->irqs, set->start + i);
	return 0;
}

static int do_set_irqs(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_irq_set set;
	uint32_t max;

	(void)a;
	memcpy(&set, m->payload, sizeof(set));
	if (set.argsz < sizeof(set) || set.index >= VFIO_PCI_NUM_IRQS)
		return EINVAL;
	max = set.index == VFIO_PCI_MSIX_IRQ_INDEX ? REFGPU_VECTORS : 0;
	if (set.start > max || set.count > max - set.start)
		return EINVAL;
	if ((set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) != VFIO_IRQ_SET_ACTION_TRIGGER ||
	    (set.flags & ~(uint32_t)(VFIO_IRQ_SET_ACTION_TYPE_MASK | VFIO_IRQ_SET_DATA_TYPE_MASK)))
		return EINVAL;
	if (!max)
		return set.count || m->n_fds ? EINVAL : 0;
	switch (set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
	case VFIO_IRQ_SET_DATA_EVENTFD:
		return irqs_set_eventfds(s, m, &set);
	case VFIO_IRQ_SET_DATA_NONE:
		return irqs_trigger(s, m, &set, true);
	case VFIO_IRQ_SET_DATA_BOOL:
		return irqs_trigger(s, m, &set, false);
	default:
		return EINVAL;
	}
}

/* Bytes of a region, 0 if there is none. */
static uint32_t region_size(uint32_t region)
{
	switch (region) {
	case VFIO_PCI_BAR0_REGION_INDEX:
		return REFGPU_BAR_REGS_SIZE;
	case VFIO_PCI_BAR2_REGION_INDEX:
		return REFGPU_BAR_STATUS_SIZE;
	case VFIO_PCI_CONFIG_REGION_INDEX:
		return PCI_CONFIG_SIZE;
	default:
		return 0;
	}
}

static bool access_ok(const struct vfio_user_region_access *x)
{
	uint32_t size = region_size(x->region);

	return x->count && x->count <= PCI_CONFIG_SIZE && x->offset < size && x->count <= size - x->offset;
}

static int do_region_read(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_user_region_access x;
	uint8_t *to = a->bytes + sizeof(x);
	int r = 0;

	memcpy(&x, m->payload, sizeof(x));
	if (!access_ok(&x))
		return EINVAL;
	if (x.region == VFIO_PCI_CONFIG_REGION_INDEX)
		pci_read(&s->dev->pci, (uint32_t)x.offset, to, x.count);
	else if (x.region == VFIO_PCI_BAR0_REGION_INDEX)
		r = regs_read(s->dev, x.offset, x.count, to);
	else
		status_page_read(&s->dev->status, (uint32_t)x.offset, to, x.count);
	memcpy(a->bytes, &x, sizeof(x));
	say(a, a->bytes, sizeof(x) + x.count);
	return -r;
}

static int do_region_write(struct server *s, struct message *m, struct answer *a)
{
	struct vfio_user_region_access x;
	const uint8_t *from = m->payload + sizeof(x);
	int r = 0;

	memcpy(&x, m->payload, sizeof(x));
	if (!access_ok(&x) || m->size != sizeof(x) + x.count)
		return EINVAL;
	if (x.region == VFIO_PCI_BAR2_REGION_INDEX)
		return EPERM;
	if (x.region == VFIO_PCI_BAR0_REGION_INDEX)
		r = regs_write(s->dev, x.offset, x.count, from);
	else if (pci_write(&s->dev->pci, (uint32_t)x.offset, from, x.count))
		device_reset_counted(s->dev);
	a->small.access = x;
	say(a, &a->small.access, sizeof(x));
	return -r;
}

static int do_reset(struct server *s, struct message *m, struct answer *a)
{
	(void)m;
	(void)a;
	device_reset_counted(s->dev);
	return 0;
}

struct request {
	int (*fn)(struct server *s, struct message *m, struct answer *a);
	size_t min; /* of the payload */
	size_t max;
	unsigned int max_fds;
};

#define ACCESS_SIZE sizeof(struct vfio_user_region_access)

static const struct request requests[] = {
	[VFIO_USER_VERSION] = {do_version, sizeof(struct vfio_user_version), VERSION_DATA_MAX, 0},
	[VFIO_USER_DMA_MAP] = {do_dma_map, sizeof(struct vfio_user_dma_map), sizeof(struct vfio_user_dma_map), 1},
	[VFIO_USER_DMA_UNMAP] = {do_dma_unmap, sizeof(struct vfio_user_dma_unmap), sizeof(struct vfio_user_dma_unmap),
				 0},
	[VFIO_USER_DEVICE_GET_INFO] = {do_get_info, 16, sizeof(struct vfio_device_info), 0},
	[VFIO_USER_DEVICE_GET_REGION_INFO] = {do_region_info, sizeof(struct vfio_region_info), VERSION_DATA_MAX, 0},
	[VFIO_USER_DEVICE_GET_IRQ_INFO] = {do_irq_info, sizeof(struct vfio_irq_info), sizeof(struct vfio_irq_info), 0},
	[VFIO_USER_DEVICE_SET_IRQS] = {do_set_irqs, sizeof(struct vfio_irq_set), VERSION_DATA_MAX, VFIO_USER_MAX_FDS},
	[VFIO_USER_REGION_READ] = {do_region_read, ACCESS_SIZE, ACCESS_SIZE, 0},
	[VFIO_USER_REGION_WRITE] = {do_region_write, ACCESS_SIZE + 1, ACCESS_SIZE + VFIO_USER_MAX_XFER, 0},
	[VFIO_USER_DEVICE_RESET] = {do_reset, 0, 0, 0},
};

static int request_judge(const struct server *s, const struct message *m)
{
	const struct request *r = &requests[0];

	if (m->hdr.command < sizeof(requests) / sizeof(requests[0]))
		r = &requests[m->hdr.command];
	if (!r->fn)
		return EOPNOTSUPP;
	if (!s->versioned && m->hdr.command != VFIO_USER_VERSION)
		return EINVAL;
	if (m->size < r->min || m->size > r->max || m->too_many_fds || m->n_fds > r->max_fds)
		return EINVAL;
	if (m->hdr.flags & ~(VFIO_USER_TYPE_MASK | VFIO_USER_NO_REPLY))
		return EINVAL;
	return 0;
}

void request_handle(struct server *s, struct message *m)
{
	struct answer a = {.fd = -1};
	int error = request_judge(s, m);

	if (!error)
		error = requests[m->hdr.command].fn(s, m, &a);
	conn_reply(&s->conn, &m->hdr, error, a.data, a.size, a.fd);
}
