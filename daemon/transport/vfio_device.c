/* SPDX-License-Identifier: MIT */
/*
 * A PCI device behind a VFIO device fd: regions, interrupts, bus mastering. The kernel is believed in what it says
 * about the device; numbers are checked all the same before they index anything of ours.
 *
 * Source: Linux include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst.
 */
#include "transport/vfio_priv.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/util.h"

#define PAGE 4096u
#define INFO_ROOM 1024u /* a region's description with its capabilities */

union region_room {
	struct vfio_region_info info;
	uint8_t bytes[INFO_ROOM];
};

void vfio_device_init(struct vfio_device *d, int fd)
{
	*d = (struct vfio_device){.fd = fd};
}

void vfio_device_fini(struct vfio_device *d)
{
	for (uint32_t i = 0; i < d->n_regions; i++)
		for (uint32_t k = 0; k < d->regions[i].n_areas; k++)
			if (d->regions[i].areas[k].map)
				munmap(d->regions[i].areas[k].map, (size_t)range_len(d->regions[i].areas[k].at));
	if (d->fd >= 0)
		close(d->fd);
	vfio_device_init(d, -1);
}

/* ---- regions ---- */

static void add_area(struct vfio_region *r, uint64_t off, uint64_t size)
{
	struct range at;

	if (r->n_areas < VFIO_MAX_AREAS && range_make(&at, off, size) && at.last < r->size && range_aligned(at, PAGE))
		r->areas[r->n_areas++] = (struct vfio_area){.at = at};
}

static void add_sparse(struct vfio_region *r, const struct vfio_region_info_cap_sparse_mmap *cap, size_t room)
{
	for (uint32_t i = 0; i < cap->nr_areas && i < (room - sizeof(*cap)) / sizeof(cap->areas[0]); i++)
		add_area(r, cap->areas[i].offset, cap->areas[i].size);
}

/* The sparse capability lists what may be mapped; without it that is the whole region. */
static void add_areas(struct vfio_region *r, const union region_room *b)
{
	const struct vfio_info_cap_header *cap;
	uint32_t at = b->info.flags & VFIO_REGION_INFO_FLAG_CAPS ? b->info.cap_offset : 0;

	for (; at && at <= INFO_ROOM - sizeof(struct vfio_region_info_cap_sparse_mmap); at = cap->next) {
		cap = (const struct vfio_info_cap_header *)(const void *)(b->bytes + at);
		if (cap->id != VFIO_REGION_INFO_CAP_SPARSE_MMAP)
			continue;
		add_sparse(r, (const void *)cap, INFO_ROOM - at);
		return;
	}
	add_area(r, 0, r->size);
}

static int ask_region(struct vfio_device *d, uint32_t index, struct vfio_why *why)
{
	struct vfio_region *r = &d->regions[index];
	union region_room b = {.info = {.argsz = sizeof(b), .index = index}};

	if (ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, &b.info) < 0)
		return errno == EINVAL ? 0
				       : vfio_fail(why, -errno, "asking about region %u: %s", index, strerror(errno));
	r->size = b.info.size;
	r->offset = b.info.offset;
	r->flags = b.info.flags;
	if (b.info.flags & VFIO_REGION_INFO_FLAG_MMAP)
		add_areas(r, &b);
	return 0;
}

static void *area_map(const struct vfio_device *d, const struct vfio_region *r, const struct vfio_area *a)
{
	int prot = PROT_READ | (r->flags & VFIO_REGION_INFO_FLAG_WRITE ? PROT_WRITE : 0);

	return util_map_shared((size_t)range_len(a->at), prot, d->fd, (off_t)(r->offset + a->at.first));
}

volatile void *vfio_device_map(struct vfio_device *d, uint32_t region, uint64_t off, uint64_t len)
{
	struct vfio_region *r = &d->regions[region];
	struct range want;

	if (region >= d->n_regions || !range_make(&want, off, len))
		return NULL;
	for (uint32_t i = 0; i < r->n_areas; i++) {
		struct vfio_area *a = &r->areas[i];

		if (!range_contains(a->at, want))
			continue;
		if (!a->map)
			a->map = area_map(d, r, a);
		return a->map ? (volatile uint8_t *)a->map + (off - a->at.first) : NULL;
	}
	return NULL;
}

static bool may_access(const struct vfio_device *d, uint32_t region, uint64_t off, uint32_t width, uint32_t flag)
{
	const struct vfio_region *r = &d->regions[region];

	return region < d->n_regions && (width == 4 || width == 8) && off % width == 0 && r->flags & flag &&
	       r->size >= width && off <= r->size - width;
}

/* Registers are little-endian, and so is every machine that this runs on (see meson.build). */
int vfio_device_write(struct vfio_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	volatile void *at;
	off_t in_file;

	if (!may_access(d, region, off, width, VFIO_REGION_INFO_FLAG_WRITE))
		return -EINVAL;
	at = vfio_device_map(d, region, off, width);
	in_file = (off_t)(d->regions[region].offset + off);
	if (!at)
		return pwrite(d->fd, &value, width, in_file) == (ssize_t)width ? 0 : -EIO;
	/* The stores before it reach memory first. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (width == 8)
		*(volatile uint64_t *)at = value;
	else
		*(volatile uint32_t *)at = (uint32_t)value;
	return 0;
}

int vfio_device_read(struct vfio_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	const volatile void *at;
	off_t in_file;

	if (!may_access(d, region, off, width, VFIO_REGION_INFO_FLAG_READ))
		return -EINVAL;
	at = vfio_device_map(d, region, off, width);
	in_file = (off_t)(d->regions[region].offset + off);
	*value = 0;
	if (!at)
		return pread(d->fd, value, width, in_file) == (ssize_t)width ? 0 : -EIO;
	*value = width == 8 ? *(const volatile uint64_t *)at : *(const volatile uint32_t *)at;
	return 0;
}

/* ---- config space ---- */

static bool config_io(const struct vfio_device *d, uint32_t at, void *buf, size_t len, bool write)
{
	const struct vfio_region *r = &d->regions[VFIO_PCI_CONFIG_REGION_INDEX];
	off_t where = (off_t)(r->offset + at);

	if (r->size < at + len)
		return false;
	return (write ? pwrite(d->fd, buf, len, where) : pread(d->fd, buf, len, where)) == (ssize_t)len;
}

static int read_ids(struct vfio_device *d, struct vfio_why *why)
{
	uint32_t class_and_revision;

	if (!config_io(d, PCI_VENDOR_ID, &d->ids.vendor, 2, false) ||
	    !config_io(d, PCI_DEVICE_ID, &d->ids.device, 2, false) ||
	    !config_io(d, PCI_CLASS_REVISION, &class_and_revision, 4, false))
		return vfio_fail(why, -EIO, "its config space cannot be read");
	d->ids.class_code = class_and_revision >> 8;
	return 0;
}

static int master_bus(struct vfio_device *d, struct vfio_why *why)
{
	const uint16_t needed = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	uint16_t command;

	if (!config_io(d, PCI_COMMAND, &command, 2, false))
		return vfio_fail(why, -EIO, "its command register cannot be read");
	if ((command & needed) == needed)
		return 0;
	command |= needed;
	if (!config_io(d, PCI_COMMAND, &command, 2, true))
		return vfio_fail(why, -EIO, "its command register cannot be written: it may not master the bus");
	return 0;
}

int vfio_device_start(struct vfio_device *d, struct vfio_why *why)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};
	int r = 0;

	if (ioctl(d->fd, VFIO_DEVICE_GET_INFO, &info) < 0)
		return vfio_fail(why, -errno, "asking what it is: %s", strerror(errno));
	if (!(info.flags & VFIO_DEVICE_FLAGS_PCI) || info.num_regions <= VFIO_PCI_CONFIG_REGION_INDEX)
		return vfio_fail(why, -ENODEV, "it is no PCI device (flags 0x%x, %u regions)", info.flags,
				 info.num_regions);
	d->flags = info.flags;
	d->n_regions = info.num_regions < VFIO_MAX_REGIONS ? info.num_regions : VFIO_MAX_REGIONS;
	for (uint32_t i = 0; r == 0 && i < d->n_regions; i++)
		r = ask_region(d, i, why);
	if (r == 0)
		r = read_ids(d, why);
	return r == 0 ? master_bus(d, why) : r;
}

/* ---- interrupts ---- */

#define SET_ROOM (sizeof(struct vfio_irq_set) + TRANSPORT_MAX_IRQS * sizeof(int32_t))

static int set_irqs(const struct vfio_device *d, uint32_t index, uint32_t flags, const int *fds, uint32_t count)
{
	union {
		struct vfio_irq_set set;
		uint8_t bytes[SET_ROOM];
	} b = {.set = {.flags = flags, .index = index, .count = count}};
	size_t data = fds ? count * sizeof(*fds) : 0;

	b.set.argsz = (uint32_t)(sizeof(b.set) + data);
	if (fds)
		memcpy(b.bytes + sizeof(b.set), fds, data);
	return ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &b.set) < 0 ? -errno : 0;
}

static uint32_t count_irqs(const struct vfio_device *d, uint32_t index)
{
	struct vfio_irq_info info = {.argsz = sizeof(info), .index = index};

	if (ioctl(d->fd, VFIO_DEVICE_GET_IRQ_INFO, &info) < 0 || !(info.flags & VFIO_IRQ_INFO_EVENTFD))
		return 0;
	return info.count;
}

int vfio_device_arm(struct vfio_device *d, const int *fds, uint32_t count, struct vfio_why *why)
{
	static const uint32_t kinds[] = {VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_INTX_IRQ_INDEX};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		uint32_t there = count_irqs(d, kinds[i]);

		if (!there)
			continue;
		d->irq_index = kinds[i];
		d->n_irqs = there < count ? there : count;
		r = set_irqs(d, kinds[i], VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, fds, d->n_irqs);
		if (r == 0)
			return 0;
	}
	d->n_irqs = 0;
	return r < 0 ? vfio_fail(why, r, "arming its interrupts: %s", strerror(-r)) : 0;
}

int vfio_device_arm_notices(struct vfio_device *d, int request, int error, struct vfio_why *why)
{
	const struct {
		uint32_t index;
		int fd;
	} v[] = {{VFIO_PCI_REQ_IRQ_INDEX, request}, {VFIO_PCI_ERR_IRQ_INDEX, error}};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		int r = 0;

		if (count_irqs(d, v[i].index))
			r = set_irqs(d, v[i].index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, &v[i].fd,
				     1);
		if (r < 0)
			return vfio_fail(why, r, "arming its notice %u: %s", v[i].index, strerror(-r));
	}
	return 0;
}

void vfio_device_unmask(struct vfio_device *d)
{
	if (d->n_irqs && d->irq_index == VFIO_PCI_INTX_IRQ_INDEX)
		(void)set_irqs(d, d->irq_index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, NULL, 1);
}
