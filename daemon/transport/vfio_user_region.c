/* SPDX-License-Identifier: MIT */
/*
 * A region as the device describes it, and mappings of it. Every area lies inside its region, on page boundaries, and
 * its file offset fits in an off_t. A region's file is the device's choice, so it is not touched until somebody maps
 * it, and then only if it is a memfd sealed against shrinking: any other file could hang us (a file system that does
 * not answer) or kill us (SIGBUS behind a truncation).
 */
#include "transport/vfio_user_priv.h"

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define PAGE 4096u

void vfu_region_init(struct vfu_region *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = -1;
}

void vfu_region_fini(struct vfu_region *r)
{
	for (uint32_t i = 0; i < r->n_areas; i++) {
		if (r->areas[i].map)
			munmap(r->areas[i].map, (size_t)range_len(r->areas[i].at));
	}
	closer_close(util_take_fd(&r->fd), VFU_DEVICE_UID);
	vfu_region_init(r);
}

static int add_area(struct vfu_region *r, uint32_t index, uint64_t off, uint64_t size, struct vfu_conn *c)
{
	struct range at;

	if (r->n_areas == VFU_MAX_AREAS)
		return vfu_conn_fail(c, -EPROTO, "region %u has more than %u mmap-able areas", index, VFU_MAX_AREAS);
	if (!range_make(&at, off, size) || at.last >= r->size || !range_aligned(at, PAGE))
		return vfu_conn_fail(
			c, -EPROTO,
			"region %u of %llu bytes has a mmap-able area of %llu bytes at 0x%llx, outside or unaligned",
			index, (unsigned long long)r->size, (unsigned long long)size, (unsigned long long)off);
	r->areas[r->n_areas++] = (struct vfu_area){.at = at};
	return 0;
}

/* The sparse mmap capability at p, of which len bytes were received. */
static int parse_sparse(struct vfu_region *r, uint32_t index, const uint8_t *p, uint32_t len, struct vfu_conn *c)
{
	struct vfio_region_info_cap_sparse_mmap cap;
	struct vfio_region_sparse_mmap_area area;
	int ret;

	if (len < sizeof(cap))
		return vfu_conn_fail(c, -EPROTO, "region %u's mmap capability has %u bytes, %zu are needed", index, len,
				     sizeof(cap));
	memcpy(&cap, p, sizeof(cap));
	if (cap.nr_areas > (len - sizeof(cap)) / sizeof(area))
		return vfu_conn_fail(c, -EPROTO, "region %u's mmap capability names %u areas in %u bytes", index,
				     cap.nr_areas, len);
	for (uint32_t i = 0; i < cap.nr_areas; i++) {
		memcpy(&area, p + sizeof(cap) + i * sizeof(area), sizeof(area));
		ret = add_area(r, index, area.offset, area.size, c);
		if (ret < 0)
			return ret;
	}
	return 0;
}

/* Offsets in the chain of capabilities only rise, so that it ends. A positive return says that areas were listed. */
static int parse_caps(struct vfu_region *r, uint32_t index, uint32_t at, const uint8_t *p, uint32_t len,
		      struct vfu_conn *c)
{
	uint32_t least = sizeof(struct vfio_region_info);
	bool sparse = false;

	while (at != 0) {
		struct vfio_info_cap_header cap;
		int ret;

		if (at < least || at > len || len - at < sizeof(cap))
			return vfu_conn_fail(c, -EPROTO, "region %u has a capability at %u, %u to %u are possible",
					     index, at, least, len);
		memcpy(&cap, p + at, sizeof(cap));
		if (cap.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
			ret = parse_sparse(r, index, p + at, len - at, c);
			if (ret < 0)
				return ret;
			sparse = true;
		}
		least = at + (uint32_t)sizeof(cap);
		at = cap.next;
	}
	return sparse;
}

static int parse_areas(struct vfu_region *r, uint32_t index, const struct vfio_region_info *info, const uint8_t *p,
		       uint32_t len, struct vfu_conn *c)
{
	int sparse = 0;

	if (info->flags & VFIO_REGION_INFO_FLAG_CAPS) {
		sparse = parse_caps(r, index, info->cap_offset, p, len, c);
		if (sparse < 0)
			return sparse;
	}
	if (sparse > 0 && !(info->flags & VFIO_REGION_INFO_FLAG_MMAP) && r->n_areas > 0)
		return vfu_conn_fail(c, -EPROTO, "region %u lists %u mmap-able areas and is not mmap-able", index,
				     r->n_areas);
	if (sparse > 0 || !(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
		return 0;
	return add_area(r, index, 0, r->size, c);
}

static int parse(struct vfu_region *r, uint32_t index, const uint8_t *p, uint32_t len, bool has_fd, struct vfu_conn *c)
{
	struct vfio_region_info info;

	if (len < sizeof(info))
		return vfu_conn_fail(c, -EPROTO, "the description of region %u has %u bytes, %zu are needed", index,
				     len, sizeof(info));
	memcpy(&info, p, sizeof(info));
	if (info.argsz < sizeof(info) || info.argsz > len)
		return vfu_conn_fail(c, -EPROTO, "the description of region %u needs %u bytes and came with %u", index,
				     info.argsz, len);
	if (info.index != index)
		return vfu_conn_fail(c, -EPROTO, "asked about region %u, the device answered about %u", index,
				     info.index);
	if (has_fd && !(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
		return vfu_conn_fail(c, -EPROTO, "region %u is not mmap-able and came with a file descriptor", index);
	if (info.size > INT64_MAX || (has_fd && (info.offset > INT64_MAX - info.size || info.offset % PAGE != 0)))
		return vfu_conn_fail(c, -EPROTO, "region %u has 0x%llx bytes at file offset 0x%llx", index,
				     (unsigned long long)info.size, (unsigned long long)info.offset);
	r->size = info.size;
	r->offset = info.offset;
	r->flags = info.flags;
	return parse_areas(r, index, &info, p, info.argsz, c);
}

int vfu_region_parse(struct vfu_region *r, uint32_t index, const uint8_t *payload, uint32_t len, int *fd,
		     struct vfu_conn *c)
{
	int ret;

	vfu_region_fini(r);
	ret = parse(r, index, payload, len, *fd >= 0, c);
	if (ret < 0)
		return ret;
	/* mmap-able without a file: as good as not mmap-able. */
	if (*fd < 0)
		r->n_areas = 0;
	r->fd = util_take_fd(fd);
	return 0;
}

/* Whether loads from bytes up to `end` of the file can neither block nor fault, now and later. The seal proves a
 * memfd, hence no file system of the device's; hugetlb pages are out because a punched hole there may not fill
 * again. */
static bool file_is_safe(int fd, uint64_t end)
{
	struct statfs fs;
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & F_SEAL_SHRINK) && fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC &&
	       fstat(fd, &st) == 0 && st.st_size >= 0 && (uint64_t)st.st_size >= end;
}

static void *area_map(const struct vfu_region *r, const struct vfu_area *a)
{
	static struct log_limit limit; /* a device may come back as often as it likes */
	uint64_t end = r->offset + a->at.last + 1;
	int prot = (r->flags & VFIO_REGION_INFO_FLAG_WRITE) ? PROT_READ | PROT_WRITE : PROT_READ;

	if (!file_is_safe(r->fd, end)) {
		log_limited(&limit, LOG_WARN,
			    "vfio-user: a region's file is no memfd of at least %llu bytes sealed against shrinking: "
			    "not mapped",
			    (unsigned long long)end);
		return NULL;
	}
	return util_map_shared((size_t)range_len(a->at), prot, r->fd, (off_t)(r->offset + a->at.first));
}

volatile void *vfu_region_map(struct vfu_region *r, uint64_t off, uint64_t len)
{
	struct range want;

	if (r->fd < 0 || !range_make(&want, off, len))
		return NULL;
	for (uint32_t i = 0; i < r->n_areas; i++) {
		struct vfu_area *a = &r->areas[i];

		if (!range_contains(a->at, want))
			continue;
		if (!a->map)
			a->map = area_map(r, a);
		return a->map ? (volatile uint8_t *)a->map + (off - a->at.first) : NULL;
	}
	return NULL;
}
