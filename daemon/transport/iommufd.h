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

#include <pasid/range.h>

#define IOMMU_PATH "/dev/iommu"

struct transport_space {
	uint32_t ioas, hwpt;
	LIST_ENTRY(transport_space) link; /* in iommufd.spaces */
};

struct transport_memory {
	uint64_t iova, len; /* in the store */
	uint32_t prot;
	int fd;
	void *p; /* by_address: where the kernel is told that it is */
	LIST_ENTRY(transport_memory) link; /* in iommufd.held */
};

struct iommufd {
	int fd;
	uint32_t store; /* an IOAS that no device is attached to, with all memory that is held; 0: none yet */
	bool by_address; /* the kernel knows no MAP_FILE */
	uint32_t n_by_address; /* memory that is held so */
	LIST_HEAD(, transport_space) spaces;
	LIST_HEAD(, transport_memory) held;
};

void iommufd_init(struct iommufd *i, int fd); /* of /dev/iommu, which it takes; -1: none */
void iommufd_destroy(const struct iommufd *i, uint32_t id); /* an object that nothing uses; 0: none */
void iommufd_fini(struct iommufd *i); /* what is left of spaces and memory goes with it */

/* device: its id in the iommufd. 0 bits: it has no PASIDs, or this kernel does not say. */
int iommufd_pasid_bits(const struct iommufd *i, uint32_t device, unsigned int *bits);
enum iommufd_kind {
	IOMMUFD_PLAIN,
	IOMMUFD_PASID, /* the device may be attached to it under a PASID, or to another under a PASID beside it */
	IOMMUFD_NEST_PARENT, /* a second stage, in whose addresses a first one of ours can lie (iommufd_nest.h) */
};

/* The IOAS for memory, made beforehand, so that its id is known; and whether it is to be mapped by address. */
int iommufd_make_store(struct iommufd *i);

/*
 * Over what a predecessor had: spaces and the store by their ids. It keeps what it maps; what memory it held is let go, for
 * nobody knows where in the store it lies. -EOPNOTSUPP: the kernel knows it by its addresses, which are gone. The pins are
 * this process's from now on.
 */
int iommufd_adopt(struct iommufd *i, uint32_t store);
int iommufd_space_adopt(struct iommufd *i, uint32_t ioas, uint32_t hwpt, struct transport_space **ret);
/* Destroys every object that is neither in use nor one of the n in `known`, a space or the store. */
void iommufd_sweep(const struct iommufd *i, const uint32_t *known, size_t n);

int iommufd_space_new(struct iommufd *i, uint32_t device, enum iommufd_kind kind, struct transport_space **ret);
void iommufd_space_free(struct iommufd *i, struct transport_space *s); /* nothing is attached to it */
/* Memory that may be mapped into several spaces, and is pinned once, while it is mapped into any. */
int iommufd_hold(struct iommufd *i, int fd, uint64_t off, uint64_t len, uint32_t prot, struct transport_memory **ret);
void iommufd_release(struct iommufd *i, struct transport_memory *m); /* no space maps of it */
/* As those of struct vfio_iommu_ops. */
int iommufd_ranges(const struct iommufd *i, const struct transport_space *s, struct range *v, size_t *n);
int iommufd_map(struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len, int fd, uint64_t off,
		uint32_t prot);
int iommufd_map_held(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len,
		     const struct transport_memory *m, uint64_t off, uint32_t prot);
int iommufd_unmap(const struct iommufd *i, const struct transport_space *s, uint64_t iova, uint64_t len);

#endif
