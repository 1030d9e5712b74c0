/* SPDX-License-Identifier: MIT */
/*
 * A PCI device that this process has for itself, and the least that can be asked of the kernel for it: each call below
 * but direct_open() is one ioctl. What pasidd does with a device of the same kind is measured against that.
 */
#ifndef TESTS_BENCH_DIRECT_H
#define TESTS_BENCH_DIRECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIRECT_SPACES 2u

struct direct {
	bool type1; /* otherwise iommufd */
	int iommu; /* the container, or /dev/iommu */
	int group; /* type1 */
	int device;
	uint32_t device_id; /* iommufd's */
	struct {
		uint32_t ioas, hwpt;
	} space[DIRECT_SPACES]; /* iommufd */
	int fd; /* what is mapped: a memfd, with all its pages there */
	void *memory;
};

/* way: "type1" or "iommufd"; pasid: space 0 is attached under it, too, if it is not 0. The device is in space 0 (of
 * type1 there is no other). Exits if it cannot be had. */
void direct_open(struct direct *d, const char *way, const char *bdf, uint32_t pasid, size_t bytes);

/* Of space 0: len bytes of the memory from off, for reading and writing. */
void direct_map(const struct direct *d, uint64_t iova, uint64_t off, uint64_t len);
void direct_unmap(const struct direct *d, uint64_t iova, uint64_t len);

/* iommufd: attaches the device to another space, from the one where it is. */
void direct_attach(const struct direct *d, unsigned int space);

#endif
