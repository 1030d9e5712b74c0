/* SPDX-License-Identifier: MIT */
/* See direct.h. */
#include "direct.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "transport/kernel_abi.h"
#include "transport/pci.h"

static int ask(int fd, unsigned long request, const void *arg, const char *what)
{
	int r = ioctl(fd, request, arg);

	if (r < 0)
		die(what, strerror(errno));
	return r;
}

static int open_or_die(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die(path, strerror(errno));
	return fd;
}

static void open_type1(struct direct *d, const struct pci_place *at)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/vfio/%d", at->group);
	d->iommu = open_or_die("/dev/vfio/vfio");
	d->group = open_or_die(path);
	ask(d->group, VFIO_GROUP_SET_CONTAINER, &d->iommu, "VFIO_GROUP_SET_CONTAINER");
	if (ioctl(d->iommu, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		die("VFIO_SET_IOMMU", strerror(errno));
	d->device = ask(d->group, VFIO_GROUP_GET_DEVICE_FD, at->bdf, "VFIO_GROUP_GET_DEVICE_FD");
}

static void attach(const struct direct *d, unsigned int space, uint32_t pasid)
{
	struct kabi_vfio_device_attach_iommufd_pt m = {
		.argsz = sizeof(m),
		.flags = pasid ? KABI_VFIO_DEVICE_ATTACH_PASID : 0,
		.pt_id = d->space[space].hwpt,
		.pasid = pasid,
	};

	ask(d->device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &m, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static void make_space(struct direct *d, unsigned int space, uint32_t pasid)
{
	struct kabi_iommu_ioas_alloc ioas = {.size = sizeof(ioas)};
	struct kabi_iommu_hwpt_alloc hwpt = {
		.size = sizeof(hwpt),
		.flags = pasid ? KABI_IOMMU_HWPT_ALLOC_PASID : 0,
		.dev_id = d->device_id,
	};

	ask(d->iommu, KABI_IOMMU_IOAS_ALLOC, &ioas, "IOMMU_IOAS_ALLOC");
	hwpt.pt_id = ioas.out_ioas_id;
	ask(d->iommu, KABI_IOMMU_HWPT_ALLOC, &hwpt, "IOMMU_HWPT_ALLOC");
	d->space[space].ioas = ioas.out_ioas_id;
	d->space[space].hwpt = hwpt.out_hwpt_id;
}

static void open_iommufd(struct direct *d, const struct pci_place *at, uint32_t pasid)
{
	struct kabi_vfio_device_bind_iommufd bind = {.argsz = sizeof(bind)};
	char path[48];

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", at->cdev);
	d->iommu = open_or_die("/dev/iommu");
	d->device = open_or_die(path);
	bind.iommufd = d->iommu;
	ask(d->device, KABI_VFIO_DEVICE_BIND_IOMMUFD, &bind, "VFIO_DEVICE_BIND_IOMMUFD");
	d->device_id = bind.out_devid;
	for (unsigned int i = 0; i < DIRECT_SPACES; i++)
		make_space(d, i, pasid);
	/* The kernel wants the device itself attached before a PASID of it. */
	attach(d, pasid ? 1 : 0, 0);
	if (pasid)
		attach(d, 0, pasid);
}

void direct_open(struct direct *d, const char *way, const char *bdf, uint32_t pasid, size_t bytes)
{
	struct pci_place at;

	*d = (struct direct){.type1 = !strcmp(way, "type1")};
	if (pci_find("/sys", bdf, &at) < 0)
		die(bdf, "there is no such PCI device");
	if (d->type1)
		open_type1(d, &at);
	else
		open_iommufd(d, &at, pasid);
	d->fd = memfd_create("bench", MFD_CLOEXEC);
	if (d->fd < 0 || ftruncate(d->fd, (off_t)bytes) < 0)
		die("a memfd", strerror(errno));
	d->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, d->fd, 0);
	if (d->memory == MAP_FAILED)
		die("a memfd", strerror(errno));
}

void direct_map(const struct direct *d, uint64_t iova, uint64_t off, uint64_t len)
{
	struct vfio_iommu_type1_dma_map t = {
		.argsz = sizeof(t),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)d->memory + off,
		.iova = iova,
		.size = len,
	};
	struct kabi_iommu_ioas_map_file f = {
		.size = sizeof(f),
		.flags = KABI_IOMMU_MAP_FIXED_IOVA | KABI_IOMMU_MAP_READABLE | KABI_IOMMU_MAP_WRITEABLE,
		.ioas_id = d->space[0].ioas,
		.fd = d->fd,
		.start = off,
		.length = len,
		.iova = iova,
	};

	if (d->type1)
		ask(d->iommu, VFIO_IOMMU_MAP_DMA, &t, "VFIO_IOMMU_MAP_DMA");
	else
		ask(d->iommu, KABI_IOMMU_IOAS_MAP_FILE, &f, "IOMMU_IOAS_MAP_FILE");
}

void direct_unmap(const struct direct *d, uint64_t iova, uint64_t len)
{
	struct vfio_iommu_type1_dma_unmap t = {.argsz = sizeof(t), .iova = iova, .size = len};
	struct kabi_iommu_ioas_unmap f = {.size = sizeof(f), .ioas_id = d->space[0].ioas, .iova = iova, .length = len};

	if (d->type1)
		ask(d->iommu, VFIO_IOMMU_UNMAP_DMA, &t, "VFIO_IOMMU_UNMAP_DMA");
	else
		ask(d->iommu, KABI_IOMMU_IOAS_UNMAP, &f, "IOMMU_IOAS_UNMAP");
}

void direct_attach(const struct direct *d, unsigned int space)
{
	attach(d, space, 0);
}
