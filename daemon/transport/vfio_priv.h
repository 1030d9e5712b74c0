/* SPDX-License-Identifier: MIT */
/*
 * The inside of the kernel's VFIO as a transport, for its own files and its tests: the IOMMU side with the address spaces
 * that the device's DMA can go through (type1 or iommufd), the device behind its fd, and the transport that lets a thread do what may take
 * its time.
 *
 * Whoever fails says why in a sentence with the numbers and what to do, and returns -errno.
 */
#ifndef TRANSPORT_VFIO_PRIV_H
#define TRANSPORT_VFIO_PRIV_H

#include <stdbool.h>
#include <stdint.h>

#include <pasid/range.h>

#include "transport/pci.h"
#include "transport/transport.h"

struct vfio_why {
	char text[224];
};

__attribute__((format(printf, 3, 4))) int vfio_fail(struct vfio_why *why, int error, const char *fmt, ...);

/* ---- the IOMMU side: all calls may wait for the kernel ---- */

struct vfio_iommu_ops;

#define VFIO_SAVED_FORM 1u

/* What a successor needs beside the fds. Ids of an iommufd; 0: there is none. */
struct vfio_saved {
	uint32_t form;
	uint32_t type1; /* 1: all that follows is 0 */
	uint32_t device, ioas, hwpt, store, pasid_bits;
	uint32_t viommu, vdevice, veventq, nested_hwpt;
};

_Static_assert(sizeof(struct vfio_saved) <= TRANSPORT_SAVE_MAX, "saved");

struct vfio_iommu { /* a type1 container, or an iommufd; one for each device */
	const struct vfio_iommu_ops *ops;
	struct transport_space *own; /* the address space that the device is in after opening */
	unsigned int pasid_bits; /* 0: no PASID but the device's own traffic */
};

struct vfio_iommu_ops {
	const char *name;
	/* Is this way open to the device on this machine? Looks, and opens nothing. */
	bool (*there)(const struct pci_place *at);
	/* With the device in an address space of its own, empty; its fd is the caller's. */
	int (*open)(struct vfio_iommu **ret, const struct pci_place *at, int *device_fd, struct vfio_why *why);
	/* For a successor: false: there can be none. Then its fds, behind the device's: how many. */
	bool (*save)(const struct vfio_iommu *m, struct vfio_saved *ret);
	size_t (*keep)(const struct vfio_iommu *m, int *fds);
	/* As open, of what `save` and `keep` have said, the device's fd first; each that is taken leaves -1. */
	int (*adopt)(struct vfio_iommu **ret, const struct pci_place *at, const struct vfio_saved *s, int *fds,
		     size_t n, int *device_fd, struct vfio_why *why);
	/* The fd of the group that is held; NULL: none is, it is the iommufd that counts. */
	int (*group)(const struct vfio_iommu *m);
	/* The device's fd is closed by then. Spaces that are left go with it. Takes NULL, returns NULL. */
	struct vfio_iommu *(*close)(struct vfio_iommu *m);
	/* The usable IOVA ranges, ascending: *n is the room in v on entry and how many there are on return. -ENOSPC if
	 * that is more. */
	int (*ranges)(struct vfio_iommu *m, struct range *v, size_t *n);
	/* Into the device's own. prot: enum transport_prot. A mapping is unmapped as it was mapped, whole. The fd is
	 * closed after the call. */
	int (*map)(struct vfio_iommu *m, uint64_t iova, uint64_t len, int fd, uint64_t off, uint32_t prot);
	/* As in struct transport_space_ops. */
	int (*hold)(struct vfio_iommu *m, int fd, uint64_t len, uint32_t prot, struct transport_memory **ret);
	void (*release)(struct vfio_iommu *m, struct transport_memory *mem);
	int (*map_held)(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len,
			struct transport_memory *mem, uint64_t off, uint32_t prot);
	int (*unmap)(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len);
	/* All that is mapped there, whole mappings. */
	int (*clear)(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len);
	/* More address spaces, of which the device is in one at a time. */
	int (*space_new)(struct vfio_iommu *m, struct transport_space **ret);
	void (*space_free)(struct vfio_iommu *m, struct transport_space *s); /* the device is not in it */
	/* As in struct transport_space_ops. */
	bool spaces_are_lists;
	size_t (*space_save)(const struct transport_space *s, void *buf);
	int (*space_adopt)(struct vfio_iommu *m, const void *saved, size_t size, struct transport_space **ret);
	int (*adopted)(struct vfio_iommu *m);
	/* Moves the device. On failure it is in its own; -EIO: it is nowhere sure. */
	int (*attach)(struct vfio_iommu *m, int device_fd, struct transport_space *s);
	/* What the device does under that PASID goes through s. NULL: there are none. */
	int (*attach_pasid)(struct vfio_iommu *m, int device_fd, struct transport_space *s, uint32_t pasid);
	int (*detach_pasid)(struct vfio_iommu *m, int device_fd, uint32_t pasid);
	/* As in struct transport_nested_ops; NULL: there is no such thing. The last three are the loop's. */
	int (*nest)(struct vfio_iommu *m, const struct pci_place *at, int device_fd, struct transport_smmu *ret,
		    struct vfio_why *why);
	int (*nest_attach)(struct vfio_iommu *m, int device_fd, const uint64_t entry[2]);
	int (*events_fd)(const struct vfio_iommu *m);
	int (*invalidate)(struct vfio_iommu *m, const struct transport_smmu_command *v, uint32_t n);
	int (*events)(struct vfio_iommu *m, struct transport_smmu_event *v, uint32_t max, uint64_t *lost);
};

extern const struct vfio_iommu_ops vfio_iommu_type1;
extern const struct vfio_iommu_ops vfio_iommu_iommufd;

/* ---- the device ---- */

#define VFIO_MAX_REGIONS 16u /* the fixed ones of PCI, and room for a driver's own, which nobody asks for */
#define VFIO_MAX_AREAS 8u

struct vfio_area {
	struct range at; /* in the region */
	void *map; /* NULL until asked for */
};

struct vfio_region {
	uint64_t size, offset; /* offset: in the device's file */
	uint32_t flags; /* VFIO_REGION_INFO_FLAG_* */
	uint32_t n_areas; /* what may be mapped */
	struct vfio_area areas[VFIO_MAX_AREAS];
};

struct vfio_device {
	int fd;
	uint32_t flags; /* VFIO_DEVICE_FLAGS_* */
	struct transport_ids ids;
	uint32_t n_regions;
	struct vfio_region regions[VFIO_MAX_REGIONS];
	uint32_t irq_index; /* VFIO_PCI_*_IRQ_INDEX of the interrupts that are armed */
	uint32_t n_irqs;
};

void vfio_device_init(struct vfio_device *d, int fd); /* takes the fd */
void vfio_device_fini(struct vfio_device *d);
/* Asks the kernel what it is and lets it master the bus. May wait. */
int vfio_device_start(struct vfio_device *d, struct vfio_why *why);
/* Arms up to `count` interrupts of the best kind there is, fds[i] each; d->n_irqs says how many. */
int vfio_device_arm(struct vfio_device *d, const int *fds, uint32_t count, struct vfio_why *why);
/* Arms the notices that the device is asked back (`request`) and that it has died (`error`); either may not exist. */
int vfio_device_arm_notices(struct vfio_device *d, int request, int error, struct vfio_why *why);
/* An interrupt that was level-triggered (INTx) is masked by the kernel until this. */
void vfio_device_unmask(struct vfio_device *d);
/* Waits. group_fd: of its group, which proves that the others in it are ours when all of a bus has to be reset; -1: it is
 * bound to an iommufd, which does. */
int vfio_device_reset(const struct vfio_device *d, const struct pci_place *at, int group_fd, struct vfio_why *why);
volatile void *vfio_device_map(struct vfio_device *d, uint32_t region, uint64_t off, uint64_t len);
/* By a mapping where the kernel allows one, else through the device's file. */
int vfio_device_write(struct vfio_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t value);
int vfio_device_read(struct vfio_device *d, uint32_t region, uint64_t off, uint32_t width, uint64_t *value);

#endif
