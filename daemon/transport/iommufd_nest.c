/* SPDX-License-Identifier: MIT */
/* See iommufd_nest.h. */
#include "transport/iommufd_nest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/util.h"
#include "transport/kernel_abi.h"

#define EVENTS_DEPTH 256u /* records that the kernel keeps for us */
#define SEQUENCE_LAST 0x7fffffffu

int iommufd_smmu_info(const struct iommufd *i, uint32_t device, struct transport_smmu *ret, struct vfio_why *why)
{
	struct kabi_iommu_hw_info_arm_smmuv3 smmu = {0};
	struct kabi_iommu_hw_info info = {
		.size = sizeof(info),
		.dev_id = device,
		.data_len = sizeof(smmu),
		.data_uptr = (uintptr_t)&smmu,
	};

	if (ioctl(i->fd, KABI_IOMMU_GET_HW_INFO, &info) < 0)
		return errno == ENOTTY || errno == EOPNOTSUPP
			       ? vfio_fail(why, -EOPNOTSUPP,
					   "this kernel does not say what its IOMMU is; it takes Linux 6.15")
			       : vfio_fail(why, -errno, "asking what its IOMMU is: %s", strerror(errno));
	if (info.out_data_type == KABI_IOMMU_HW_INFO_TYPE_NONE)
		return vfio_fail(
			why, -EOPNOTSUPP,
			"this kernel says nothing of its IOMMU; it takes an Arm SMMUv3 and CONFIG_ARM_SMMU_V3_IOMMUFD");
	if (info.out_data_type != KABI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3)
		return vfio_fail(why, -EOPNOTSUPP, "its IOMMU is no Arm SMMUv3");
	*ret = (struct transport_smmu){.flags = smmu.flags};
	memcpy(ret->idr, smmu.idr, sizeof(ret->idr));
	return 0;
}

/* ---- coming and going ---- */

static int alloc_viommu(struct iommufd_nest *n, uint32_t parent, struct vfio_why *why)
{
	struct kabi_iommu_viommu_alloc m = {
		.size = sizeof(m),
		.type = KABI_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
		.dev_id = n->device,
		.hwpt_id = parent,
	};

	if (ioctl(n->fd->fd, KABI_IOMMU_VIOMMU_ALLOC, &m) == 0) {
		n->viommu = m.out_viommu_id;
		return 0;
	}
	if (errno == ENOTTY)
		return vfio_fail(why, -EOPNOTSUPP, "this kernel has no vIOMMUs; it takes Linux 6.15");
	if (errno == EOPNOTSUPP)
		return vfio_fail(
			why, -EOPNOTSUPP,
			"the device could get around the caches: it takes an SMMU with S2FWB, or firmware whose IORT "
			"says that memory accesses are coherent (CANWBS)");
	return vfio_fail(why, -errno, "making a vIOMMU: %s", strerror(errno));
}

static int alloc_vdevice(struct iommufd_nest *n, struct vfio_why *why)
{
	struct kabi_iommu_vdevice_alloc m = {
		.size = sizeof(m),
		.viommu_id = n->viommu,
		.dev_id = n->device,
		.virt_id = TRANSPORT_SMMU_STREAM,
	};

	if (ioctl(n->fd->fd, KABI_IOMMU_VDEVICE_ALLOC, &m) == 0) {
		n->vdevice = m.out_vdevice_id;
		return 0;
	}
	return errno == EOPNOTSUPP
		       ? vfio_fail(why, -EOPNOTSUPP, "it has more than one stream id, and the kernel can nest one")
		       : vfio_fail(why, -errno, "making a vDEVICE: %s", strerror(errno));
}

static int alloc_veventq(struct iommufd_nest *n, struct vfio_why *why)
{
	struct kabi_iommu_veventq_alloc m = {
		.size = sizeof(m),
		.viommu_id = n->viommu,
		.type = KABI_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
		.veventq_depth = EVENTS_DEPTH,
	};

	if (ioctl(n->fd->fd, KABI_IOMMU_VEVENTQ_ALLOC, &m) < 0)
		return errno == ENOTTY || errno == EOPNOTSUPP
			       ? vfio_fail(why, -EOPNOTSUPP, "this kernel does not pass on faults; it takes Linux 6.15")
			       : vfio_fail(why, -errno, "making a queue for faults: %s", strerror(errno));
	n->veventq = m.out_veventq_id;
	n->events = (int)m.out_veventq_fd;
	if (fcntl(n->events, F_SETFL, O_NONBLOCK) < 0 || fcntl(n->events, F_SETFD, FD_CLOEXEC) < 0)
		return vfio_fail(why, -errno, "a queue for faults: %s", strerror(errno));
	return 0;
}

int iommufd_nest_init(struct iommufd_nest *n, const struct iommufd *i, uint32_t device,
		      const struct transport_space *parent, struct vfio_why *why)
{
	int r;

	*n = (struct iommufd_nest){.fd = i, .device = device, .events = -1};
	r = alloc_viommu(n, parent->hwpt, why);
	if (r == 0)
		r = alloc_vdevice(n, why);
	if (r == 0)
		r = alloc_veventq(n, why);
	if (r < 0)
		iommufd_nest_fini(n);
	return r;
}

void iommufd_nest_adopt(struct iommufd_nest *n, const struct iommufd *i, const struct vfio_saved *s, int events)
{
	*n = (struct iommufd_nest){
		.fd = i,
		.device = s->device,
		.viommu = s->viommu,
		.vdevice = s->vdevice,
		.veventq = s->veventq,
		.hwpt = s->nested_hwpt,
		.events = events,
		.any_sequence = true,
	};
}

void iommufd_nest_fini(struct iommufd_nest *n)
{
	if (!n->fd)
		return;
	if (n->events >= 0)
		close(n->events); /* it keeps the queue, and that the vIOMMU */
	iommufd_destroy(n->fd, n->hwpt);
	iommufd_destroy(n->fd, n->veventq);
	iommufd_destroy(n->fd, n->vdevice);
	iommufd_destroy(n->fd, n->viommu);
	*n = (struct iommufd_nest){.events = -1};
}

int iommufd_nest_entry(struct iommufd_nest *n, const uint64_t entry[2])
{
	struct kabi_iommu_hwpt_arm_smmuv3 data = {{entry[0], entry[1]}};
	struct kabi_iommu_hwpt_alloc m = {
		.size = sizeof(m),
		.dev_id = n->device,
		.pt_id = n->viommu,
		.data_type = KABI_IOMMU_HWPT_DATA_ARM_SMMUV3,
		.data_len = sizeof(data),
		.data_uptr = (uintptr_t)&data,
	};

	if (ioctl(n->fd->fd, KABI_IOMMU_HWPT_ALLOC, &m) < 0)
		return -errno;
	n->hwpt = m.out_hwpt_id;
	return 0;
}

/* ---- commands and records ---- */

int iommufd_nest_invalidate(const struct iommufd_nest *n, const struct transport_smmu_command *v, uint32_t count)
{
	struct kabi_iommu_hwpt_invalidate m = {
		.size = sizeof(m),
		.hwpt_id = n->viommu,
		.data_uptr = (uintptr_t)v,
		.data_type = KABI_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
		.entry_len = sizeof(*v),
		.entry_num = count,
	};

	if (ioctl(n->fd->fd, KABI_IOMMU_HWPT_INVALIDATE, &m) < 0)
		return -errno;
	/* The kernel says how many it carried out, whatever it returns. */
	return m.entry_num == count ? 0 : -EIO;
}

/* Records that should have come in between. */
static uint64_t skipped(struct iommufd_nest *n, uint32_t sequence)
{
	uint64_t lost = n->any_sequence ? 0 : (sequence - n->sequence) & SEQUENCE_LAST;

	n->any_sequence = false;
	n->sequence = (sequence + 1) & SEQUENCE_LAST;
	return lost;
}

/*
 * A record is a header and four words; a header alone says that what came last was lost. The kernel puts whole ones into
 * the buffer.
 */
int iommufd_nest_events(struct iommufd_nest *n, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	uint8_t buffer[TRANSPORT_SMMU_EVENTS * (sizeof(struct kabi_iommufd_vevent_header) + sizeof(*v))];
	struct kabi_iommufd_vevent_header head;
	uint32_t room = max < TRANSPORT_SMMU_EVENTS ? max : TRANSPORT_SMMU_EVENTS;
	size_t at = 0;
	ssize_t size = read(n->events, buffer, room * (sizeof(head) + sizeof(*v)));
	int count = 0;

	if (size < 0)
		return errno == EAGAIN || errno == EINTR || errno == ENOMEM ? 0 : -errno; /* later, then */
	while (at + sizeof(head) <= (size_t)size) {
		memcpy(&head, buffer + at, sizeof(head));
		at += sizeof(head);
		*lost += skipped(n, head.sequence);
		if (head.flags & KABI_IOMMU_VEVENTQ_FLAG_LOST_EVENTS) {
			(*lost)++;
			continue;
		}
		if (at + sizeof(*v) > (size_t)size || (uint32_t)count == room)
			return -EPROTO;
		memcpy(&v[count++], buffer + at, sizeof(*v));
		at += sizeof(*v);
	}
	return count;
}
