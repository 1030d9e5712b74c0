/* SPDX-License-Identifier: MIT */
/*
 * The vfio-user messages that this server speaks, as they lie on the wire: numbers and layouts only.
 *
 * The protocol is the public one (QEMU's docs/interop/vfio-user.rst). Everything is in host byte order. Where a
 * message carries a struct of <linux/vfio.h> unchanged, that struct is used and not repeated here.
 */
#ifndef REFGPU_VFIO_USER_PROTO_H
#define REFGPU_VFIO_USER_PROTO_H

#include <assert.h>
#include <stdint.h>

#define VFIO_USER_MAJOR 0u
#define VFIO_USER_MINOR 0u

enum vfio_user_command {
	VFIO_USER_VERSION = 1,
	VFIO_USER_DMA_MAP = 2,
	VFIO_USER_DMA_UNMAP = 3,
	VFIO_USER_DEVICE_GET_INFO = 4,
	VFIO_USER_DEVICE_GET_REGION_INFO = 5,
	VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6,
	VFIO_USER_DEVICE_GET_IRQ_INFO = 7,
	VFIO_USER_DEVICE_SET_IRQS = 8,
	VFIO_USER_REGION_READ = 9,
	VFIO_USER_REGION_WRITE = 10,
	VFIO_USER_DMA_READ = 11, /* from the server */
	VFIO_USER_DMA_WRITE = 12, /* from the server */
	VFIO_USER_DEVICE_RESET = 13,
	VFIO_USER_REGION_WRITE_MULTI = 15,
};

#define VFIO_USER_TYPE_MASK 0xfu
#define VFIO_USER_TYPE_COMMAND 0x0u
#define VFIO_USER_TYPE_REPLY 0x1u
#define VFIO_USER_NO_REPLY 0x10u
#define VFIO_USER_ERROR 0x20u

struct vfio_user_header {
	uint16_t id;
	uint16_t command;
	uint32_t size; /* of the whole message, this header included */
	uint32_t flags;
	uint32_t error; /* errno, in replies with VFIO_USER_ERROR */
};

struct vfio_user_version {
	uint16_t major;
	uint16_t minor;
	/* JSON, NUL-terminated, may be missing */
};

#define VFIO_USER_DMA_READABLE 1u
#define VFIO_USER_DMA_WRITABLE 2u

struct vfio_user_dma_map {
	uint32_t argsz;
	uint32_t flags;
	uint64_t offset;
	uint64_t address;
	uint64_t size;
};

struct vfio_user_dma_unmap {
	uint32_t argsz;
	uint32_t flags;
	uint64_t address;
	uint64_t size;
};

struct vfio_user_region_access {
	uint64_t offset;
	uint32_t region;
	uint32_t count;
	/* data */
};

struct vfio_user_dma_access {
	uint64_t address;
	uint64_t count;
	/* data */
};

/* The reply to DMA_WRITE: its count is only 32 bits wide in the document, 64 in some implementations. */
#define VFIO_USER_DMA_WRITE_REPLY_MIN 12u

static_assert(sizeof(struct vfio_user_header) == 16, "wire layout");
static_assert(sizeof(struct vfio_user_version) == 4, "wire layout");
static_assert(sizeof(struct vfio_user_dma_map) == 32, "wire layout");
static_assert(sizeof(struct vfio_user_dma_unmap) == 24, "wire layout");
static_assert(sizeof(struct vfio_user_region_access) == 16, "wire layout");
static_assert(sizeof(struct vfio_user_dma_access) == 16, "wire layout");

/* What this server offers and accepts. The sizes bound what one message can make it allocate. */
#define VFIO_USER_MAX_FDS 8u
#define VFIO_USER_MAX_XFER (1u << 20)
#define VFIO_USER_MAX_DMA_MAPS 65535u
#define VFIO_USER_MAX_MESSAGE (sizeof(struct vfio_user_header) + 4096u + VFIO_USER_MAX_XFER)

#endif
