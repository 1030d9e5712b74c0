/* SPDX-License-Identifier: MIT */
/*
 * A device behind an Arm SMMUv3 whose first stage is ours, over /dev/iommu: a vIOMMU over a second stage, the device in it
 * under a stream id of our choosing, a queue of the SMMU's event records, and an HWPT that stands for our stream table
 * entry. What the words of entries, commands and records mean is translator/smmu's affair.
 *
 * Source: Linux include/uapi/linux/iommufd.h, Documentation/userspace-api/iommufd.rst.
 */
#ifndef TRANSPORT_IOMMUFD_NEST_H
#define TRANSPORT_IOMMUFD_NEST_H

#include "transport/iommufd.h"
#include "transport/transport.h"
#include "transport/vfio_priv.h"

struct iommufd_nest {
	const struct iommufd *fd;
	uint32_t device; /* its id there */
	uint32_t viommu, vdevice, veventq, hwpt; /* 0: not made */
	int events; /* of the veventq */
	uint32_t sequence; /* that the next record should have */
	bool any_sequence; /* nobody knows what a predecessor has read */
};

/* What the SMMU in front of the device says of itself. -EOPNOTSUPP: there is none. */
int iommufd_smmu_info(const struct iommufd *i, uint32_t device, struct transport_smmu *ret, struct vfio_why *why);
/* All but the HWPT, over the second stage `parent`, in which the device is. After a failure nothing is left. */
int iommufd_nest_init(struct iommufd_nest *n, const struct iommufd *i, uint32_t device,
		      const struct transport_space *parent, struct vfio_why *why);
/* The same, and the HWPT if its id is not 0, as a predecessor has made them; takes the queue's fd. */
void iommufd_nest_adopt(struct iommufd_nest *n, const struct iommufd *i, const struct vfio_saved *s, int events);
void iommufd_nest_fini(struct iommufd_nest *n); /* the device is not in it */
/* The HWPT for it. */
int iommufd_nest_entry(struct iommufd_nest *n, const uint64_t entry[2]);
/* As transport_nested_ops.invalidate and .events. */
int iommufd_nest_invalidate(const struct iommufd_nest *n, const struct transport_smmu_command *v, uint32_t count);
int iommufd_nest_events(struct iommufd_nest *n, struct transport_smmu_event *v, uint32_t max, uint64_t *lost);

#endif
