/* SPDX-License-Identifier: MIT */
/*
 * Address spaces of a type1 container: /dev/vfio/vfio with the device's group in it. One container for each device, and a
 * container has one address space: others are lists of what they would map, and moving the device unmaps all of one and
 * maps all of the other, which takes as long as pinning their bytes takes.
 *
 * type1 maps by virtual address, so memory is mapped into this process for the moment of the call; what the kernel has
 * pinned stays pinned without it. A mapping is unmapped as it was mapped, whole (type1 v2).
 *
 * Source: Linux include/uapi/linux/vfio.h, drivers/vfio/vfio_iommu_type1.c.
 */
#include "transport/vfio_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "base/itree.h"
#include "base/util.h"

struct transport_memory {
	int fd;
	LIST_ENTRY(transport_memory) link; /* in type1.held */
};

struct mapping {
	struct itree_node node; /* IOVA */
	uint64_t off;
	uint32_t prot;
	const struct transport_memory *memory;
};

struct transport_space {
	struct itree mappings; /* empty for the device's own, from which it never has to come back */
	LIST_ENTRY(transport_space) link; /* in type1.spaces */
};

/* What the container maps, where a predecessor had the device. */
enum inherited {
	INHERITED_NOTHING,
	INHERITED_UNSEEN, /* it may be any space, and the rests of another */
	INHERITED_CURRENT, /* at least what the list of the current one says */
};

struct type1 {
	struct vfio_iommu iommu;
	int container, group;
	struct transport_space *current; /* that the device is in */
	enum inherited inherited;
	LIST_HEAD(, transport_space) spaces;
	LIST_HEAD(, transport_memory) held;
};

static struct type1 *of_iommu(struct vfio_iommu *m)
{
	return container_of(m, struct type1, iommu);
}

static bool type1_there(const struct pci_place *at)
{
	return at->group >= 0;
}

/* ---- the container's one address space ---- */

/* Of huge pages a part cannot be mapped into a process, only all of each. */
struct view {
	void *map;
	size_t len;
	void *at; /* what was asked for */
};

static int view_open(struct view *v, uint64_t len, int fd, uint64_t off, uint32_t prot)
{
	uint64_t page, first;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	page = (uint64_t)st.st_blksize;
	first = off / page * page;
	v->len = (off + len - first + page - 1) / page * page;
	v->map = util_map_shared(v->len, PROT_READ | (prot & TRANSPORT_WRITE ? PROT_WRITE : 0), fd, (off_t)first);
	if (!v->map)
		return -errno;
	v->at = (uint8_t *)v->map + (off - first);
	return 0;
}

static int dma_map(struct type1 *t, uint64_t iova, uint64_t len, int fd, uint64_t off, uint32_t prot)
{
	struct vfio_iommu_type1_dma_map m = {
		.argsz = sizeof(m),
		.flags = (prot & TRANSPORT_READ ? VFIO_DMA_MAP_FLAG_READ : 0u) |
			 (prot & TRANSPORT_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0u),
		.iova = iova,
		.size = len,
	};
	struct view v = {0};
	int r = view_open(&v, len, fd, off, prot);

	if (r < 0)
		return r;
	m.vaddr = (uintptr_t)v.at;
	if (ioctl(t->container, VFIO_IOMMU_MAP_DMA, &m) < 0)
		r = -errno;
	munmap(v.map, v.len);
	return r;
}

/* All mappings in a range, none of which reaches beyond it. How many bytes there were. */
static int dma_clear(struct type1 *t, uint64_t iova, uint64_t len, uint64_t *bytes)
{
	struct vfio_iommu_type1_dma_unmap m = {.argsz = sizeof(m), .iova = iova, .size = len};

	if (ioctl(t->container, VFIO_IOMMU_UNMAP_DMA, &m) < 0)
		return -errno;
	*bytes = m.size;
	return 0;
}

static int dma_unmap(struct type1 *t, uint64_t iova, uint64_t len)
{
	uint64_t bytes = 0;
	int r = dma_clear(t, iova, len, &bytes);

	return r < 0 || bytes == len ? r : bytes == 0 ? -ENOENT : -EIO;
}

/* ---- memory ---- */

static int type1_hold(struct vfio_iommu *iommu, int fd, uint64_t len, uint32_t prot, struct transport_memory **ret)
{
	struct transport_memory *m = malloc(sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (m->fd < 0) {
		r = -errno;
		free(m);
		return r;
	}
	LIST_INSERT_HEAD(&of_iommu(iommu)->held, m, link);
	*ret = m;
	return 0;
}

static void type1_release(struct vfio_iommu *iommu, struct transport_memory *m)
{
	close(m->fd); /* a memfd, of which its owner has another: nothing is freed here */
	LIST_REMOVE(m, link);
	free(m);
}

/* ---- address spaces ---- */

static struct mapping *mapping_of(struct itree_node *n)
{
	return n ? container_of(n, struct mapping, node) : NULL;
}

static struct mapping *mapping_first(const struct transport_space *s)
{
	return mapping_of(itree_first(&s->mappings));
}

static struct mapping *mapping_next(const struct mapping *w)
{
	return mapping_of(itree_next(&w->node));
}

static int type1_space_new(struct vfio_iommu *m, struct transport_space **ret)
{
	struct transport_space *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	LIST_INSERT_HEAD(&of_iommu(m)->spaces, s, link);
	*ret = s;
	return 0;
}

static uint64_t mapping_len(const struct mapping *w)
{
	return w->node.last - w->node.first + 1;
}

static void mapping_free(struct transport_space *s, struct mapping *w)
{
	itree_erase(&s->mappings, &w->node);
	free(w);
}

static int mapping_load(struct type1 *t, const struct mapping *w)
{
	return dma_map(t, w->node.first, mapping_len(w), w->memory->fd, w->off, w->prot);
}

static void type1_space_free(struct vfio_iommu *m, struct transport_space *s)
{
	struct mapping *w;

	while ((w = mapping_first(s)))
		mapping_free(s, w);
	LIST_REMOVE(s, link);
	free(s);
}

static int type1_map(struct vfio_iommu *m, uint64_t iova, uint64_t len, int fd, uint64_t off, uint32_t prot)
{
	return dma_map(of_iommu(m), iova, len, fd, off, prot);
}

static int type1_map_held(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len,
			  struct transport_memory *mem, uint64_t off, uint32_t prot)
{
	struct itree_node *next = itree_at_or_above(&s->mappings, iova);
	struct type1 *t = of_iommu(m);
	struct mapping *w;
	int r = 0;

	if (next && next->first <= iova + (len - 1))
		return -EEXIST; /* as the kernel has it */
	w = malloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	*w = (struct mapping){
		.node = {.first = iova, .last = iova + (len - 1)}, .off = off, .prot = prot, .memory = mem};
	itree_insert_before(&s->mappings, &w->node, next);
	if (s == t->current)
		r = mapping_load(t, w);
	if (r < 0)
		mapping_free(s, w);
	return r;
}

static int type1_unmap(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len)
{
	struct type1 *t = of_iommu(m);
	struct mapping *w;
	int r = s == t->current ? dma_unmap(t, iova, len) : 0;

	if (r < 0)
		return r;
	w = mapping_of(itree_at_or_above(&s->mappings, iova));
	if (w && w->node.first == iova)
		mapping_free(s, w);
	return 0;
}

static int type1_clear(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len)
{
	struct type1 *t = of_iommu(m);
	struct mapping *w, *next;
	uint64_t bytes;
	int r = s == t->current ? dma_clear(t, iova, len, &bytes) : 0;

	if (r < 0)
		return r;
	for (w = mapping_of(itree_at_or_above(&s->mappings, iova)); w && w->node.first <= iova + (len - 1); w = next) {
		next = mapping_next(w);
		mapping_free(s, w);
	}
	return 0;
}

/* Takes what of s is mapped away, up to `end` (NULL: all). -EIO: some of it is still there. */
static int unload(struct type1 *t, struct transport_space *s, const struct mapping *end)
{
	struct mapping *w;
	int r = 0;

	for (w = mapping_first(s); w && w != end; w = mapping_next(w))
		if (dma_unmap(t, w->node.first, mapping_len(w)) < 0)
			r = -EIO;
	return r;
}

static int unload_all(struct type1 *t)
{
	struct vfio_iommu_type1_dma_unmap m = {.argsz = sizeof(m), .flags = VFIO_DMA_UNMAP_FLAG_ALL};

	return ioctl(t->container, VFIO_IOMMU_UNMAP_DMA, &m) < 0 ? -EIO : 0;
}

static int load(struct type1 *t, struct transport_space *s)
{
	struct mapping *w;
	int r;

	for (w = mapping_first(s); w; w = mapping_next(w)) {
		r = mapping_load(t, w);
		if (r < 0)
			return unload(t, s, w) < 0 ? -EIO : r;
	}
	return 0;
}

static int type1_attach(struct vfio_iommu *m, int device, struct transport_space *s)
{
	struct type1 *t = of_iommu(m);
	int r;

	if (t->inherited == INHERITED_UNSEEN && s != m->own) {
		t->inherited = INHERITED_CURRENT;
		t->current = s;
	}
	if (t->current == s && t->inherited != INHERITED_UNSEEN)
		return 0;
	r = t->inherited ? unload_all(t) : unload(t, t->current, NULL);
	if (r < 0)
		return r;
	t->inherited = INHERITED_NOTHING;
	r = load(t, s);
	t->current = r < 0 ? m->own : s;
	return r;
}

/* ---- opening ---- */

static int type1_group(const struct vfio_iommu *m)
{
	return container_of(m, const struct type1, iommu)->group;
}

static struct vfio_iommu *type1_close(struct vfio_iommu *m)
{
	struct transport_memory *mem;
	struct transport_space *s;
	struct type1 *t;

	if (!m)
		return NULL;
	t = of_iommu(m);
	if (t->group >= 0)
		close(t->group);
	if (t->container >= 0)
		close(t->container);
	while ((s = LIST_FIRST(&t->spaces)))
		type1_space_free(m, s);
	while ((mem = LIST_FIRST(&t->held)))
		type1_release(m, mem);
	free(t);
	return NULL;
}

static void type1_closep(struct type1 **t)
{
	if (*t)
		type1_close(&(*t)->iommu);
}

static int check_container(const struct type1 *t, struct vfio_why *why)
{
	if (ioctl(t->container, VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
	    ioctl(t->container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) != 1)
		return vfio_fail(why, -EOPNOTSUPP,
				 "this kernel's VFIO has no type1 v2 container; load vfio_iommu_type1");
	return 0;
}

static int check_group(const struct type1 *t, const struct pci_place *at, struct vfio_why *why)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};

	if (ioctl(t->group, VFIO_GROUP_GET_STATUS, &status) < 0)
		return vfio_fail(why, -errno, "group %d of %s: asking for its state: %s", at->group, at->bdf,
				 strerror(errno));
	if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return vfio_fail(
			why, -EPERM,
			"group %d of %s is not viable: bind every device in /sys/kernel/iommu_groups/%d/devices "
			"to vfio-pci, or to no driver",
			at->group, at->bdf, at->group);
	return 0;
}

/* The group and a container. What was handed over for that may be had again after a failure: a group that is not viable
 * now may be later. */
static int open_files(struct type1 *t, const struct pci_place *at, struct vfio_why *why)
{
	const struct vfio_file file = vfio_file_group(at);
	bool kept_group, kept_container = false;
	int r;

	t->group = vfio_file_open(&file, &kept_group, why);
	if (t->group < 0)
		return t->group;
	r = check_group(t, at, why);
	if (r == 0)
		r = t->container = vfio_file_open(&vfio_file_container, &kept_container, why);
	if (r >= 0)
		r = check_container(t, why);
	if (r < 0) {
		vfio_file_return(&file, &t->group, kept_group);
		vfio_file_return(&vfio_file_container, &t->container, kept_container);
	}
	return r;
}

static int attach_group(struct type1 *t, const struct pci_place *at, int *device_fd, struct vfio_why *why)
{
	if (ioctl(t->group, VFIO_GROUP_SET_CONTAINER, &t->container) < 0)
		return vfio_fail(why, -errno, "group %d into a container: %s", at->group, strerror(errno));
	if (ioctl(t->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0)
		return vfio_fail(why, -errno, "the IOMMU in front of group %d: %s", at->group, strerror(errno));
	*device_fd = ioctl(t->group, VFIO_GROUP_GET_DEVICE_FD, at->bdf);
	if (*device_fd < 0)
		return vfio_fail(why, -errno, "the device %s of group %d: %s", at->bdf, at->group, strerror(errno));
	fcntl(*device_fd, F_SETFD, FD_CLOEXEC);
	return 0;
}

/* Without files; in its own space. */
static int type1_new(struct type1 **ret, struct vfio_why *why)
{
	__attribute__((cleanup(type1_closep))) struct type1 *t = calloc(1, sizeof(*t));

	if (!t)
		return vfio_fail(why, -ENOMEM, "no memory");
	t->iommu.ops = &vfio_iommu_type1;
	t->container = t->group = -1;
	LIST_INIT(&t->spaces);
	LIST_INIT(&t->held);
	if (type1_space_new(&t->iommu, &t->iommu.own) < 0)
		return vfio_fail(why, -ENOMEM, "no memory");
	t->current = t->iommu.own;
	*ret = TAKE_PTR(t);
	return 0;
}

static int type1_open(struct vfio_iommu **ret, const struct pci_place *at, int *device_fd, struct vfio_why *why)
{
	__attribute__((cleanup(type1_closep))) struct type1 *t = NULL;
	int r = type1_new(&t, why);

	if (r == 0)
		r = open_files(t, at, why);
	if (r == 0)
		r = attach_group(t, at, device_fd, why);
	if (r < 0)
		return r;
	*ret = &TAKE_PTR(t)->iommu;
	return 0;
}

/* ---- for a successor, and of a predecessor ---- */

/*
 * What is mapped is pinned and stays so when the process and its addresses are gone, and can be unmapped. It counts for the
 * locked memory of nobody then (vfio_iommu_type1.c: vfio_lock_acct()). Of spaces beside the device's own only their process
 * knew what they would map: so a successor is told again. Where the device works it stays, for it was there before it began;
 * whatever a move that was under way may have left goes with the first move away, or at once if the device does nothing.
 */
static bool type1_save(const struct vfio_iommu *m, struct vfio_saved *ret)
{
	*ret = (struct vfio_saved){.form = VFIO_SAVED_FORM, .type1 = 1};
	return true;
}

static size_t type1_space_save(const struct transport_space *s, void *buf)
{
	memset(buf, 0, 1); /* there is nothing to say of a list */
	return 1;
}

static int type1_space_adopt(struct vfio_iommu *m, const void *saved, size_t size, struct transport_space **ret)
{
	return size == 1 ? type1_space_new(m, ret) : -EBADMSG;
}

static size_t type1_keep(const struct vfio_iommu *m, int *fds)
{
	const struct type1 *t = container_of(m, const struct type1, iommu);

	fds[0] = t->container;
	fds[1] = t->group;
	return 2;
}

static int type1_adopt(struct vfio_iommu **ret, const struct pci_place *at, const struct vfio_saved *s, int *fds,
		       size_t n, int *device_fd, struct vfio_why *why)
{
	const struct vfio_file group = vfio_file_group(at);
	__attribute__((cleanup(type1_closep))) struct type1 *t = NULL;
	int r;

	if (n != 3 || !vfio_file_is(&vfio_file_container, fds[1]) || !vfio_file_is(&group, fds[2]))
		return vfio_fail(why, -EBADMSG, "the %zu files are not a device, %s and %s", n,
				 vfio_file_container.path, group.path);
	r = type1_new(&t, why);
	if (r < 0)
		return r;
	t->inherited = INHERITED_UNSEEN;
	t->container = util_take_fd(&fds[1]);
	t->group = util_take_fd(&fds[2]);
	*device_fd = util_take_fd(&fds[0]);
	*ret = &TAKE_PTR(t)->iommu;
	return 0;
}

/* ---- what is usable ---- */

static int take_ranges(const struct vfio_iommu_type1_info_cap_iova_range *cap, size_t room, struct range *v, size_t *n)
{
	size_t most = *n;

	if (cap->nr_iovas > (room - sizeof(*cap)) / sizeof(cap->iova_ranges[0]))
		return -EPROTO;
	*n = cap->nr_iovas;
	if (cap->nr_iovas > most)
		return -ENOSPC;
	for (uint32_t i = 0; i < cap->nr_iovas; i++)
		v[i] = (struct range){cap->iova_ranges[i].start, cap->iova_ranges[i].end};
	return 0;
}

static int type1_ranges(struct vfio_iommu *m, struct range *v, size_t *n)
{
	union {
		struct vfio_iommu_type1_info info;
		uint8_t bytes[4096];
	} b = {.info = {.argsz = sizeof(b)}};
	const struct vfio_info_cap_header *cap;
	uint32_t at;

	if (ioctl(of_iommu(m)->container, VFIO_IOMMU_GET_INFO, &b.info) < 0)
		return -errno;
	if (!(b.info.flags & VFIO_IOMMU_INFO_CAPS) || b.info.argsz > sizeof(b))
		return -EOPNOTSUPP;
	for (at = b.info.cap_offset; at; at = cap->next) {
		if (at > sizeof(b) - sizeof(struct vfio_iommu_type1_info_cap_iova_range))
			return -EPROTO;
		cap = (const struct vfio_info_cap_header *)(const void *)(b.bytes + at);
		if (cap->id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)
			return take_ranges((const void *)cap, sizeof(b) - at, v, n);
	}
	return -EOPNOTSUPP;
}

const struct vfio_iommu_ops vfio_iommu_type1 = {
	.name = "type1",
	.there = type1_there,
	.open = type1_open,
	.save = type1_save,
	.keep = type1_keep,
	.adopt = type1_adopt,
	.group = type1_group,
	.close = type1_close,
	.ranges = type1_ranges,
	.map = type1_map,
	.hold = type1_hold,
	.release = type1_release,
	.map_held = type1_map_held,
	.unmap = type1_unmap,
	.clear = type1_clear,
	.space_new = type1_space_new,
	.space_free = type1_space_free,
	.spaces_are_lists = true,
	.space_save = type1_space_save,
	.space_adopt = type1_space_adopt,
	.attach = type1_attach,
};
