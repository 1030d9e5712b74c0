/* SPDX-License-Identifier: MIT */
/*
 * Address spaces of /dev/iommu: each an IOAS with an HWPT over it. Which device is attached to which is vfio_iommufd.c's
 * affair; nothing here knows what kind of device it is, so that the kernel's mock devices do, too.
 *
 * All calls may wait for the kernel; 0 or -errno, and after a failure everything is as before.
 */
#ifndef TRANSPORT_IOMMUFD_H
#define TRANSPORT_IOMMUFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/range.h"

#define IOMMU_PATH "/dev/iommu"

struct transport_space {
	uint32_t ioas, hwpt;
	LIST_ENTRY(transport_space) link; /* in iommufd.spaces */
};

struct iommufd {
	int fd;
	bool by_address; /* the kernel knows no MAP_FILE */
	LIST_HEAD(, transport_space) spaces;
};

void iommufd_init(struct iommufd *i, int fd); /* of /dev/iommu, which it takes; -1: none */
void iommufd_fini(struct iommufd *i); /* spaces that are left go with it */

/* device: its id in the iommufd. */
unsigned int iommufd_pasid_bits(const struct iommufd *i, uint32_t device);
/* pasid: the device may be attached to it under a PASID, or to another under a PASID beside it. */
int iommufd_space_new(struct iommufd *i, uint32_t device, bool pasid, struct transport_space **ret);
void iommufd_space_free(struct iommufd *i, struct transport_space *s); /* nothing is attached to it */
/* As ranges, map and unmap of struct vfio_iommu_ops. */
int iommufd_ranges(const struct iommufd *i, const struct transport_space *s, struct range *v, size_t *n);
int iommufd_map(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd, uint64_t off,
		uint32_t prot);
int iommufd_unmap(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len);

#endif
