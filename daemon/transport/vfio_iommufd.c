/* SPDX-License-Identifier: MIT */
/*
 * Address spaces of /dev/iommu: each an IOAS with an HWPT over it, to one of which the device's cdev is attached. Mappings
 * of those that the device is not in stay in force, so that moving it is one call.
 *
 * Memory is mapped by file (Linux 6.13); on older kernels by address, for the moment of the call. The kernel checks
 * neither the file's access mode nor its seals: what a device may do to a file is decided above.
 *
 * Source: Linux include/uapi/linux/iommufd.h, include/uapi/linux/vfio.h, Documentation/userspace-api/iommufd.rst.
 */
#include "transport/vfio_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/queue.h>

#include "base/util.h"
#include "transport/kernel_abi.h"

#define IOMMU_PATH "/dev/iommu"
#define MAX_RANGES 64u

struct transport_space {
	uint32_t ioas, hwpt;
	LIST_ENTRY(transport_space) link; /* in iommufd.spaces */
};

struct iommufd {
	struct vfio_iommu iommu;
	int fd;
	uint32_t device; /* iommufd's id of it */
	bool by_address; /* the kernel knows no MAP_FILE */
	LIST_HEAD(, transport_space) spaces;
};

static struct iommufd *of_iommu(struct vfio_iommu *m)
{
	return container_of(m, struct iommufd, iommu);
}

static bool iommufd_there(const struct pci_place *at)
{
	return at->cdev[0] && access(IOMMU_PATH, F_OK) == 0;
}

/* ---- address spaces ---- */

static void destroy(const struct iommufd *i, uint32_t id)
{
	struct kabi_iommu_destroy m = {.size = sizeof(m), .id = id};

	/* It can only fail if it is in use, which would be a mistake of ours; it goes with the fd then. */
	(void)ioctl(i->fd, KABI_IOMMU_DESTROY, &m);
}

static int iommufd_space_new(struct vfio_iommu *m, struct transport_space **ret)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_hwpt_alloc hwpt = {
		.size = sizeof(hwpt),
		.dev_id = of_iommu(m)->device,
		/* The device's own, too, or no PASID could be attached beside it. */
		.flags = m->pasid_bits ? KABI_IOMMU_HWPT_ALLOC_PASID : 0,
	};
	AUTO_FREE struct transport_space *s = calloc(1, sizeof(*s));
	struct iommufd *i = of_iommu(m);
	int r;

	if (!s)
		return -ENOMEM;
	if (ioctl(i->fd, KABI_IOMMU_IOAS_ALLOC, &alloc) < 0)
		return -errno;
	hwpt.pt_id = alloc.out_ioas_id;
	if (ioctl(i->fd, KABI_IOMMU_HWPT_ALLOC, &hwpt) < 0) {
		r = -errno;
		destroy(i, alloc.out_ioas_id);
		return r;
	}
	s->ioas = alloc.out_ioas_id;
	s->hwpt = hwpt.out_hwpt_id;
	LIST_INSERT_HEAD(&i->spaces, s, link);
	*ret = TAKE_PTR(s);
	return 0;
}

static void iommufd_space_free(struct vfio_iommu *m, struct transport_space *s)
{
	destroy(of_iommu(m), s->hwpt);
	destroy(of_iommu(m), s->ioas);
	LIST_REMOVE(s, link);
	free(s);
}

static int iommufd_attach(struct vfio_iommu *m, int device, struct transport_space *s)
{
	struct kabi_vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach), .pt_id = s->hwpt};
	int r = ioctl(device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0 ? -errno : 0;

	if (r == 0)
		return 0;
	/* The kernel left it where it was. */
	attach.pt_id = m->own->hwpt;
	return ioctl(device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0 ? -EIO : r;
}

static int iommufd_attach_pasid(struct vfio_iommu *m, int device, struct transport_space *s, uint32_t pasid)
{
	struct kabi_vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.flags = KABI_VFIO_DEVICE_ATTACH_PASID,
		.pt_id = s->hwpt,
		.pasid = pasid,
	};

	return ioctl(device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0 ? -errno : 0;
}

static int iommufd_detach_pasid(struct vfio_iommu *m, int device, uint32_t pasid)
{
	struct kabi_vfio_device_detach_iommufd_pt detach = {
		.argsz = sizeof(detach),
		.flags = KABI_VFIO_DEVICE_DETACH_PASID,
		.pasid = pasid,
	};

	return ioctl(device, KABI_VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) < 0 ? -errno : 0;
}

/* ---- opening ---- */

/* vfio hides the PASID capability of the device's config space; the IOMMU says what both can do. */
static unsigned int pasid_bits(const struct iommufd *i)
{
	struct kabi_iommu_hw_info info = {.size = sizeof(info), .dev_id = i->device};

	return ioctl(i->fd, KABI_IOMMU_GET_HW_INFO, &info) < 0 ? 0 : info.out_max_pasid_log2;
}

static struct vfio_iommu *iommufd_close(struct vfio_iommu *m)
{
	struct transport_space *s;
	struct iommufd *i;

	if (!m)
		return NULL;
	i = of_iommu(m);
	while ((s = LIST_FIRST(&i->spaces)))
		iommufd_space_free(m, s);
	if (i->fd >= 0)
		close(i->fd);
	free(i);
	return NULL;
}

static void iommufd_closep(struct iommufd **i)
{
	if (*i)
		iommufd_close(&(*i)->iommu);
}

static int bind_device(struct iommufd *i, const struct pci_place *at, int device, struct vfio_why *why)
{
	struct kabi_vfio_device_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = i->fd};

	if (ioctl(device, KABI_VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
		return vfio_fail(why, -errno, "%s to %s: %s%s", at->bdf, IOMMU_PATH, strerror(errno),
				 errno == EPERM    ? "; a device of its group is bound to a driver other than vfio-pci"
				 : errno == EINVAL ? "; another process uses it" /* a cdev can be bound once */
						   : "");
	i->device = bind.out_devid;
	return 0;
}

static int make_own(struct iommufd *i, int device)
{
	int r = iommufd_space_new(&i->iommu, &i->iommu.own);

	return r == 0 ? iommufd_attach(&i->iommu, device, i->iommu.own) : r;
}

/* Some IOMMUs say that they can do PASIDs and refuse such a table (AMD's attach, Linux 7.3). */
static int attach_own(struct iommufd *i, const struct pci_place *at, int device, struct vfio_why *why)
{
	int r;

	i->iommu.pasid_bits = pasid_bits(i);
	r = make_own(i, device);
	if (r < 0 && i->iommu.pasid_bits) {
		if (i->iommu.own)
			iommufd_space_free(&i->iommu, i->iommu.own);
		i->iommu.own = NULL;
		i->iommu.pasid_bits = 0;
		r = make_own(i, device);
	}
	return r < 0 ? vfio_fail(why, r, "%s into an address space of %s: %s", at->bdf, IOMMU_PATH, strerror(-r)) : 0;
}

static int iommufd_open(struct vfio_iommu **ret, const struct pci_place *at, int *device_fd, struct vfio_why *why)
{
	__attribute__((cleanup(iommufd_closep))) struct iommufd *i = calloc(1, sizeof(*i));
	AUTO_CLOSE int device = -1;
	char path[48];
	int r;

	if (!i)
		return vfio_fail(why, -ENOMEM, "no memory");
	i->iommu.ops = &vfio_iommu_iommufd;
	LIST_INIT(&i->spaces);
	i->fd = open(IOMMU_PATH, O_RDWR | O_CLOEXEC);
	if (i->fd < 0)
		return vfio_fail(why, -errno, "%s: %s", IOMMU_PATH, strerror(errno));
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", at->cdev);
	device = open(path, O_RDWR | O_CLOEXEC);
	if (device < 0)
		return vfio_fail(why, -errno, "%s, the device %s: %s", path, at->bdf, strerror(errno));
	r = bind_device(i, at, device, why);
	if (r == 0)
		r = attach_own(i, at, device, why);
	if (r < 0)
		return r;
	*device_fd = util_take_fd(&device);
	*ret = &TAKE_PTR(i)->iommu;
	return 0;
}

static int iommufd_ranges(struct vfio_iommu *iommu, struct range *v, size_t *n)
{
	struct kabi_iommu_iova_range got[MAX_RANGES];
	struct iommufd *i = of_iommu(iommu);
	struct kabi_iommu_ioas_iova_ranges m = {
		.size = sizeof(m),
		.ioas_id = i->iommu.own->ioas,
		.num_iovas = MAX_RANGES,
		.allowed_iovas = (uintptr_t)got,
	};
	size_t most = *n;

	if (ioctl(i->fd, KABI_IOMMU_IOAS_IOVA_RANGES, &m) < 0)
		return errno == EMSGSIZE ? -ENOSPC : -errno;
	*n = m.num_iovas;
	if (m.num_iovas > most)
		return -ENOSPC;
	for (size_t k = 0; k < *n; k++)
		v[k] = (struct range){got[k].start, got[k].last};
	return 0;
}

static uint32_t map_flags(uint32_t prot)
{
	return KABI_IOMMU_MAP_FIXED_IOVA | (prot & TRANSPORT_READ ? KABI_IOMMU_MAP_READABLE : 0u) |
	       (prot & TRANSPORT_WRITE ? KABI_IOMMU_MAP_WRITEABLE : 0u);
}

static int map_file(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd,
		    uint64_t off, uint32_t prot)
{
	struct kabi_iommu_ioas_map_file m = {
		.size = sizeof(m),
		.flags = map_flags(prot),
		.ioas_id = s->ioas,
		.fd = fd,
		.start = off,
		.length = len,
		.iova = iova,
	};

	return ioctl(i->fd, KABI_IOMMU_IOAS_MAP_FILE, &m) < 0 ? -errno : 0;
}

/*
 * The kernel looks at no seal here (io_pagetable.c, Linux 7.3). A page of it that we map meanwhile cannot be had of a
 * file sealed against writing, and keeps that seal off until the pages are pinned, which then do (memfd.c).
 */
static int map_file_writable(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd,
			     uint64_t off, uint32_t prot)
{
	struct stat st;
	size_t page;
	void *p;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	page = (size_t)st.st_blksize; /* a huge page, where it consists of them */
	p = util_map_shared(page, PROT_READ | PROT_WRITE, fd, 0);
	if (!p)
		return -errno;
	r = map_file(i, s, iova, len, fd, off, prot);
	munmap(p, page);
	return r;
}

static int map_address(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd,
		       uint64_t off, uint32_t prot)
{
	int mmap_prot = PROT_READ | (prot & TRANSPORT_WRITE ? PROT_WRITE : 0);
	void *p = util_map_shared(len, mmap_prot, fd, (off_t)off);
	struct kabi_iommu_ioas_map m = {
		.size = sizeof(m),
		.flags = map_flags(prot),
		.ioas_id = s->ioas,
		.user_va = (uintptr_t)p,
		.length = len,
		.iova = iova,
	};
	int r = 0;

	if (!p)
		return -errno;
	if (ioctl(i->fd, KABI_IOMMU_IOAS_MAP, &m) < 0)
		r = -errno;
	munmap(p, len);
	return r;
}

static int iommufd_map(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len, int fd, int number,
		       uint64_t off, uint32_t prot)
{
	struct iommufd *i = of_iommu(m);
	int r = i->by_address            ? -ENOTTY
		: prot & TRANSPORT_WRITE ? map_file_writable(i, s, iova, len, fd, off, prot)
					 : map_file(i, s, iova, len, fd, off, prot);

	if (r != -ENOTTY)
		return r;
	i->by_address = true;
	return map_address(i, s, iova, len, fd, off, prot);
}

static int iommufd_unmap(struct vfio_iommu *iommu, struct transport_space *s, uint64_t iova, uint64_t len)
{
	struct kabi_iommu_ioas_unmap m = {.size = sizeof(m), .ioas_id = s->ioas, .iova = iova, .length = len};

	return ioctl(of_iommu(iommu)->fd, KABI_IOMMU_IOAS_UNMAP, &m) < 0 ? -errno : 0;
}

const struct vfio_iommu_ops vfio_iommu_iommufd = {
	.name = "iommufd",
	.there = iommufd_there,
	.open = iommufd_open,
	.close = iommufd_close,
	.ranges = iommufd_ranges,
	.map = iommufd_map,
	.unmap = iommufd_unmap,
	.space_new = iommufd_space_new,
	.space_free = iommufd_space_free,
	.attach = iommufd_attach,
	.attach_pasid = iommufd_attach_pasid,
	.detach_pasid = iommufd_detach_pasid,
};
