/* SPDX-License-Identifier: MIT */
/*
 * The vfio-user protocol, version 0.0, as far as a client needs it: numbers and layouts, in host byte order. Source:
 * QEMU's docs/interop/vfio-user.rst. Region and interrupt descriptions, capabilities and their flags are those of
 * <linux/vfio.h>.
 */
#ifndef TRANSPORT_VFIO_USER_PROTO_H
#define TRANSPORT_VFIO_USER_PROTO_H

#include <linux/vfio.h>
#include <stdint.h>

#define VFIO_USER_MAJOR 0u
#define VFIO_USER_MINOR 0u

enum vfio_user_command {
	VFIO_USER_VERSION = 1,
	VFIO_USER_DMA_MAP = 2,
	VFIO_USER_DMA_UNMAP = 3,
	VFIO_USER_DEVICE_GET_INFO = 4,
	VFIO_USER_DEVICE_GET_REGION_INFO = 5,
	VFIO_USER_DEVICE_GET_IRQ_INFO = 7,
	VFIO_USER_DEVICE_SET_IRQS = 8,
	VFIO_USER_REGION_READ = 9,
	VFIO_USER_REGION_WRITE = 10,
	VFIO_USER_DMA_READ = 11, /* from the device */
	VFIO_USER_DMA_WRITE = 12, /* from the device */
	VFIO_USER_DEVICE_RESET = 13,
};

/* Header flags. */
#define VFIO_USER_TYPE_MASK 0xfu
#define VFIO_USER_TYPE_COMMAND 0x0u
#define VFIO_USER_TYPE_REPLY 0x1u
#define VFIO_USER_NO_REPLY 0x10u
#define VFIO_USER_ERROR 0x20u

struct vfio_user_header {
	uint16_t id; /* the asker's choice, echoed in the reply */
	uint16_t command;
	uint32_t size; /* bytes of the message with this header */
	uint32_t flags;
	uint32_t error; /* errno of a reply with VFIO_USER_ERROR; 0 there means that the device does not say */
};

/* Followed by JSON with its terminating NUL. */
struct vfio_user_version {
	uint16_t major;
	uint16_t minor;
};

/* What a peer that does not say is assumed to take. */
#define VFIO_USER_DEFAULT_MAX_FDS 1u
#define VFIO_USER_DEFAULT_MAX_XFER 1048576u
#define VFIO_USER_DEFAULT_PGSIZES 4096u

#define VFIO_USER_DMA_READABLE 1u
#define VFIO_USER_DMA_WRITEABLE 2u

struct vfio_user_dma_map {
	uint32_t argsz;
	uint32_t flags;
	uint64_t offset; /* in the file that comes with the message */
	uint64_t address;
	uint64_t size;
};

struct vfio_user_dma_unmap {
	uint32_t argsz;
	uint32_t flags;
	uint64_t address;
	uint64_t size;
};

struct vfio_user_device_info {
	uint32_t argsz;
	uint32_t flags; /* VFIO_DEVICE_FLAGS_ */
	uint32_t num_regions;
	uint32_t num_irqs;
};

/* Followed by the data of a write request or a read reply. */
struct vfio_user_region_access {
	uint64_t offset;
	uint32_t region;
	uint32_t count;
};

/* struct vfio_irq_set without its flexible end, which the protocol carries as file descriptors. */
#define VFIO_USER_IRQ_SET_SIZE 20u

_Static_assert(sizeof(struct vfio_user_header) == 16, "header");
_Static_assert(sizeof(struct vfio_user_version) == 4, "version");
_Static_assert(sizeof(struct vfio_user_dma_map) == 32, "dma map");
_Static_assert(sizeof(struct vfio_user_dma_unmap) == 24, "dma unmap");
_Static_assert(sizeof(struct vfio_user_device_info) == 16, "device info");
_Static_assert(sizeof(struct vfio_user_region_access) == 16, "region access");
_Static_assert(sizeof(struct vfio_region_info) == 32, "region info");
_Static_assert(sizeof(struct vfio_irq_info) == 16, "irq info");
_Static_assert(sizeof(struct vfio_irq_set) == VFIO_USER_IRQ_SET_SIZE, "irq set");
_Static_assert(sizeof(struct vfio_info_cap_header) == 8, "capability header");
_Static_assert(sizeof(struct vfio_region_info_cap_sparse_mmap) == 16, "sparse mmap capability");
_Static_assert(sizeof(struct vfio_region_sparse_mmap_area) == 16, "sparse mmap area");

#endif
