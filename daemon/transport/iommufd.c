/* SPDX-License-Identifier: MIT */
/*
 * See iommufd.h.
 *
 * Memory is made known to the kernel in an IOAS of its own that has no HWPT, where nothing of it is pinned: by file (Linux
 * 6.13), on older kernels by address. Address spaces map copies of that, which share its pages, so that each page is pinned
 * once however many of them map it. The kernel checks neither the file's access mode nor its seals: what a device may do
 * to a file is decided above.
 *
 * Source: Linux include/uapi/linux/iommufd.h, Documentation/userspace-api/iommufd.rst.
 */
#include "transport/iommufd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "transport/kernel_abi.h"
#include "transport/transport.h"

#define MAX_RANGES 64u
#define MAX_BY_ADDRESS 16384u /* mappings that we keep: a process may have 65,530 (vm.max_map_count) */

void iommufd_init(struct iommufd *i, int fd)
{
	*i = (struct iommufd){.fd = fd};
	LIST_INIT(&i->spaces);
	LIST_INIT(&i->held);
}

void iommufd_fini(struct iommufd *i)
{
	struct transport_memory *m;
	struct transport_space *s;

	while ((s = LIST_FIRST(&i->spaces)))
		iommufd_space_free(i, s);
	while ((m = LIST_FIRST(&i->held)))
		iommufd_release(i, m);
	if (i->fd >= 0)
		close(i->fd);
	i->fd = -1;
}

/* vfio hides the PASID capability of the device's config space; the IOMMU says what both can do. */
int iommufd_pasid_bits(const struct iommufd *i, uint32_t device, unsigned int *bits)
{
	struct kabi_iommu_hw_info info = {.size = sizeof(info), .dev_id = device};

	*bits = 0;
	if (ioctl(i->fd, KABI_IOMMU_GET_HW_INFO, &info) < 0)
		return errno == ENOTTY || errno == EOPNOTSUPP ? 0 : -errno;
	*bits = info.out_max_pasid_log2;
	return 0;
}

/* ---- address spaces ---- */

void iommufd_destroy(const struct iommufd *i, uint32_t id)
{
	struct kabi_iommu_destroy m = {.size = sizeof(m), .id = id};

	/* It can only fail if it is in use, which would be a mistake of ours; it goes with the fd then. */
	if (id)
		(void)ioctl(i->fd, KABI_IOMMU_DESTROY, &m);
}

int iommufd_space_new(struct iommufd *i, uint32_t device, enum iommufd_kind kind, struct transport_space **ret)
{
	static const uint32_t flags[] = {
		[IOMMUFD_PASID] = KABI_IOMMU_HWPT_ALLOC_PASID,
		[IOMMUFD_NEST_PARENT] = KABI_IOMMU_HWPT_ALLOC_NEST_PARENT,
	};
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_hwpt_alloc hwpt = {
		.size = sizeof(hwpt),
		.dev_id = device,
		.flags = flags[kind],
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
		iommufd_destroy(i, alloc.out_ioas_id);
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
	iommufd_destroy(i, s->hwpt);
	iommufd_destroy(i, s->ioas);
	LIST_REMOVE(s, link);
	free(s);
}

int iommufd_space_adopt(struct iommufd *i, uint32_t ioas, uint32_t hwpt, struct transport_space **ret)
{
	struct transport_space *s = calloc(1, sizeof(*s));
	size_t n = 0;
	int r;

	if (!s)
		return -ENOMEM;
	*s = (struct transport_space){.ioas = ioas, .hwpt = hwpt};
	/* The kernel says of an HWPT nothing without changing something; it shows when the device is attached. */
	r = iommufd_ranges(i, s, NULL, &n);
	if (r < 0 && r != -ENOSPC) {
		free(s);
		return r;
	}
	LIST_INSERT_HEAD(&i->spaces, s, link);
	*ret = s;
	return 0;
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

/* ---- memory ---- */

static uint32_t map_flags(uint32_t prot)
{
	return (prot & TRANSPORT_READ ? KABI_IOMMU_MAP_READABLE : 0u) |
	       (prot & TRANSPORT_WRITE ? KABI_IOMMU_MAP_WRITEABLE : 0u);
}

/* Does the kernel map files? It is asked for one that there cannot be. */
static bool maps_files(const struct iommufd *i)
{
	struct kabi_iommu_ioas_map_file map = {.size = sizeof(map), .ioas_id = i->store, .fd = -1, .length = 4096};

	return ioctl(i->fd, KABI_IOMMU_IOAS_MAP_FILE, &map) == 0 || errno != ENOTTY;
}

int iommufd_make_store(struct iommufd *i)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};

	if (i->store)
		return 0;
	if (ioctl(i->fd, KABI_IOMMU_IOAS_ALLOC, &alloc) < 0)
		return -errno;
	i->store = alloc.out_ioas_id;
	i->by_address = !maps_files(i);
	return 0;
}

static int store_file(const struct iommufd *i, struct transport_memory *m, uint64_t off)
{
	struct kabi_iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = map_flags(m->prot),
		.ioas_id = i->store,
		.fd = m->fd,
		.start = off,
		.length = m->len,
	};

	if (ioctl(i->fd, KABI_IOMMU_IOAS_MAP_FILE, &map) < 0)
		return -errno;
	m->iova = map.iova;
	return 0;
}

static int store_address(struct iommufd *i, struct transport_memory *m, uint64_t off)
{
	int prot = PROT_READ | (m->prot & TRANSPORT_WRITE ? PROT_WRITE : 0);
	struct kabi_iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = map_flags(m->prot),
		.ioas_id = i->store,
		.length = m->len,
	};
	int r;

	if (i->n_by_address == MAX_BY_ADDRESS)
		return -ENOSPC;
	m->p = util_map_shared(m->len, prot, m->fd, (off_t)off);
	if (!m->p)
		return -errno;
	map.user_va = (uintptr_t)m->p;
	if (ioctl(i->fd, KABI_IOMMU_IOAS_MAP, &map) < 0) {
		r = -errno;
		munmap(m->p, m->len);
		return r;
	}
	m->iova = map.iova;
	i->n_by_address++;
	return 0;
}

static int store(struct iommufd *i, struct transport_memory *m, uint64_t off)
{
	return i->by_address ? store_address(i, m, off) : store_file(i, m, off);
}

int iommufd_hold(struct iommufd *i, int fd, uint64_t off, uint64_t len, uint32_t prot, struct transport_memory **ret)
{
	AUTO_FREE struct transport_memory *m = malloc(sizeof(*m));
	AUTO_CLOSE int dup = -1;
	int r;

	if (!m)
		return -ENOMEM;
	r = iommufd_make_store(i);
	if (r < 0)
		return r;
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (dup < 0)
		return -errno;
	*m = (struct transport_memory){.len = len, .prot = prot, .fd = dup};
	r = store(i, m, off);
	if (r < 0)
		return r;
	util_take_fd(&dup);
	LIST_INSERT_HEAD(&i->held, m, link);
	*ret = TAKE_PTR(m);
	return 0;
}

static int unmap(const struct iommufd *i, uint32_t ioas, uint64_t iova, uint64_t len)
{
	struct kabi_iommu_ioas_unmap m = {.size = sizeof(m), .ioas_id = ioas, .iova = iova, .length = len};

	return ioctl(i->fd, KABI_IOMMU_IOAS_UNMAP, &m) < 0 ? -errno : 0;
}

/* Linux 6.14. Without it pins count for a user who may be gone, and none of them is lost. */
static int change_process(const struct iommufd *i)
{
	struct kabi_iommu_ioas_change_process m = {.size = sizeof(m)};

	if (ioctl(i->fd, KABI_IOMMU_IOAS_CHANGE_PROCESS, &m) == 0 || errno == ENOTTY)
		return 0;
	return errno == EINVAL ? -EOPNOTSUPP : -errno;
}

int iommufd_adopt(struct iommufd *i, uint32_t store)
{
	int r;

	i->store = store;
	i->by_address = !maps_files(i);
	if (i->by_address)
		return -EOPNOTSUPP;
	r = unmap(i, store, 0, UINT64_MAX);
	return r == 0 || r == -ENOENT ? change_process(i) : r;
}

/* An upper bound of their ids, which the kernel gives away from below: a device can have 65,536 spaces, of two each, and
 * frees some while it makes others. */
#define MAX_ID (1u << 18)
/* Ids are given away from below: behind so many that are nobody's there is nothing, unless thousands of spaces went at once.
 * Asking for each that there could be would take longer than all the rest of a device's taking over. */
#define MAX_MISSES 8192u

static bool is_known(const struct iommufd *i, uint32_t id, const uint32_t *known, size_t n)
{
	for (size_t k = 0; k < n; k++)
		if (known[k] == id)
			return true;
	return id == i->store;
}

static void mark(uint8_t *bits, uint32_t id)
{
	if (id < MAX_ID)
		bits[id / 8] |= (uint8_t)(1u << id % 8);
}

/* Destroys what is not marked; whether there was anything. */
static bool sweep_once(const struct iommufd *i, const uint8_t *ours, const uint32_t *known, size_t n)
{
	struct kabi_iommu_destroy m = {.size = sizeof(m)};
	uint32_t misses = 0;
	bool any = false;
	int r;

	for (m.id = 1; m.id < MAX_ID && misses < MAX_MISSES; m.id++) {
		misses++;
		if ((ours[m.id / 8] >> m.id % 8 & 1) || is_known(i, m.id, known, n)) {
			misses = 0;
			continue;
		}
		r = ioctl(i->fd, KABI_IOMMU_DESTROY, &m);
		any |= r == 0;
		if (r == 0 || errno != ENOENT)
			misses = 0;
	}
	return any;
}

void iommufd_sweep(const struct iommufd *i, const uint32_t *known, size_t n)
{
	AUTO_FREE uint8_t *ours = calloc(MAX_ID / 8, 1);
	const struct transport_space *s;

	if (!ours)
		return; /* what is left goes with the fd */
	LIST_FOREACH (s, &i->spaces, link) {
		mark(ours, s->ioas);
		mark(ours, s->hwpt);
	}
	/* An IOAS can go when the HWPT over it has gone. */
	while (sweep_once(i, ours, known, n))
		;
}

void iommufd_release(struct iommufd *i, struct transport_memory *m)
{
	/* It can only fail for what is not mapped. */
	(void)unmap(i, i->store, m->iova, m->len);
	if (m->p) {
		munmap(m->p, m->len);
		i->n_by_address--;
	}
	close(m->fd); /* a memfd, of which its owner has another: nothing is freed here */
	LIST_REMOVE(m, link);
	free(m);
}

/* ---- mappings ---- */

static int copy(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len,
		const struct transport_memory *m, uint64_t off, uint32_t prot)
{
	/* A part of what was mapped will do, although the header says that it must be all (io_pagetable.c, Linux 7.3:
	 * iopt_get_pages()). */
	struct kabi_iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = KABI_IOMMU_MAP_FIXED_IOVA | map_flags(prot),
		.dst_ioas_id = s->ioas,
		.src_ioas_id = i->store,
		.length = len,
		.dst_iova = iova,
		.src_iova = m->iova + off,
	};

	return ioctl(i->fd, KABI_IOMMU_IOAS_COPY, &copy) < 0 ? -errno : 0;
}

/*
 * The kernel looks at no seal when it pins (io_pagetable.c, Linux 7.3). A page of the file that we map meanwhile cannot be
 * had of one sealed against writing, and keeps that seal off until the pages are pinned, which then do (memfd.c).
 */
int iommufd_map_held(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len,
		     const struct transport_memory *m, uint64_t off, uint32_t prot)
{
	struct stat st;
	size_t page;
	void *p;
	int r;

	if (!(prot & TRANSPORT_WRITE))
		return copy(i, s, iova, len, m, off, prot);
	if (fstat(m->fd, &st) < 0)
		return -errno;
	page = (size_t)st.st_blksize; /* a huge page, where it consists of them */
	p = util_map_shared(page, PROT_READ | PROT_WRITE, m->fd, 0);
	if (!p)
		return -errno;
	r = copy(i, s, iova, len, m, off, prot);
	munmap(p, page);
	return r;
}

int iommufd_map(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd, uint64_t off,
		uint32_t prot)
{
	struct transport_memory *m;
	int r = iommufd_hold(i, fd, off, len, prot, &m);

	if (r < 0)
		return r;
	r = iommufd_map_held(i, s, iova, len, m, 0, prot);
	iommufd_release(i, m);
	return r;
}

int iommufd_unmap(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len)
{
	return unmap(i, s->ioas, iova, len);
}
