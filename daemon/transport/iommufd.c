/* SPDX-License-Identifier: MIT */
/*
 * See iommufd.h.
 *
 * Memory is mapped by file (Linux 6.13); on older kernels by address, for the moment of the call. The kernel checks
 * neither the file's access mode nor its seals: what a device may do to a file is decided above.
 *
 * Source: Linux include/uapi/linux/iommufd.h, Documentation/userspace-api/iommufd.rst.
 */
#include "transport/iommufd.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "transport/kernel_abi.h"
#include "transport/transport.h"

#define MAX_RANGES 64u

void iommufd_init(struct iommufd *i, int fd)
{
	*i = (struct iommufd){.fd = fd};
	LIST_INIT(&i->spaces);
}

void iommufd_fini(struct iommufd *i)
{
	struct transport_space *s;

	while ((s = LIST_FIRST(&i->spaces)))
		iommufd_space_free(i, s);
	if (i->fd >= 0)
		close(i->fd);
	i->fd = -1;
}

/* vfio hides the PASID capability of the device's config space; the IOMMU says what both can do. */
unsigned int iommufd_pasid_bits(const struct iommufd *i, uint32_t device)
{
	struct kabi_iommu_hw_info info = {.size = sizeof(info), .dev_id = device};

	return ioctl(i->fd, KABI_IOMMU_GET_HW_INFO, &info) < 0 ? 0 : info.out_max_pasid_log2;
}

/* ---- address spaces ---- */

static void destroy(const struct iommufd *i, uint32_t id)
{
	struct kabi_iommu_destroy m = {.size = sizeof(m), .id = id};

	/* It can only fail if it is in use, which would be a mistake of ours; it goes with the fd then. */
	(void)ioctl(i->fd, KABI_IOMMU_DESTROY, &m);
}

int iommufd_space_new(struct iommufd *i, uint32_t device, bool pasid, struct transport_space **ret)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_hwpt_alloc hwpt = {
		.size = sizeof(hwpt),
		.dev_id = device,
		.flags = pasid ? KABI_IOMMU_HWPT_ALLOC_PASID : 0,
	};
	AUTO_FREE struct transport_space *s = calloc(1, sizeof(*s));
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

void iommufd_space_free(struct iommufd *i, struct transport_space *s)
{
	destroy(i, s->hwpt);
	destroy(i, s->ioas);
	LIST_REMOVE(s, link);
	free(s);
}

int iommufd_ranges(const struct iommufd *i, const struct transport_space *s, struct range *v, size_t *n)
{
	struct kabi_iommu_iova_range got[MAX_RANGES];
	struct kabi_iommu_ioas_iova_ranges m = {
		.size = sizeof(m),
		.ioas_id = s->ioas,
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

/* ---- mappings ---- */

static uint32_t map_flags(uint32_t prot)
{
	return KABI_IOMMU_MAP_FIXED_IOVA | (prot & TRANSPORT_READ ? KABI_IOMMU_MAP_READABLE : 0u) |
	       (prot & TRANSPORT_WRITE ? KABI_IOMMU_MAP_WRITEABLE : 0u);
}

static int map_file(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd,
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
static int map_file_writable(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len,
			     int fd, uint64_t off, uint32_t prot)
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

static int map_address(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd,
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

int iommufd_map(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd, uint64_t off,
		uint32_t prot)
{
	int r = i->by_address            ? -ENOTTY
		: prot & TRANSPORT_WRITE ? map_file_writable(i, s, iova, len, fd, off, prot)
					 : map_file(i, s, iova, len, fd, off, prot);

	if (r != -ENOTTY)
		return r;
	i->by_address = true;
	return map_address(i, s, iova, len, fd, off, prot);
}

int iommufd_unmap(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len)
{
	struct kabi_iommu_ioas_unmap m = {.size = sizeof(m), .ioas_id = s->ioas, .iova = iova, .length = len};

	return ioctl(i->fd, KABI_IOMMU_IOAS_UNMAP, &m) < 0 ? -errno : 0;
}
