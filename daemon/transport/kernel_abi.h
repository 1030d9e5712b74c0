/* SPDX-License-Identifier: MIT */
/*
 * What we use of the kernel's iommufd, and of VFIO beyond what the oldest supported headers declare (Debian 12: Linux
 * 6.1): numbers and layouts of our own, under names of our own, so that this file may stand beside any <linux/vfio.h>.
 * It never meets <linux/iommufd.h>; tests/unit/test_kernel_abi.c compares the two where that header exists.
 *
 * Sources: Linux include/uapi/linux/iommufd.h (6.2; MAP_FILE and vIOMMUs 6.13, CHANGE_PROCESS 6.14, vEVENTQs 6.15),
 * include/uapi/linux/vfio.h (cdev 6.6; PASID 6.15).
 */
#ifndef TRANSPORT_KERNEL_ABI_H
#define TRANSPORT_KERNEL_ABI_H

#include <linux/ioctl.h>
#include <stdint.h>

#define KABI_IOMMU_TYPE ';'
#define KABI_VFIO_TYPE ';'

#define KABI_IOMMU_DESTROY _IO(KABI_IOMMU_TYPE, 0x80)
#define KABI_IOMMU_IOAS_ALLOC _IO(KABI_IOMMU_TYPE, 0x81)
#define KABI_IOMMU_IOAS_COPY _IO(KABI_IOMMU_TYPE, 0x83)
#define KABI_IOMMU_IOAS_IOVA_RANGES _IO(KABI_IOMMU_TYPE, 0x84)
#define KABI_IOMMU_IOAS_MAP _IO(KABI_IOMMU_TYPE, 0x85)
#define KABI_IOMMU_IOAS_UNMAP _IO(KABI_IOMMU_TYPE, 0x86)
#define KABI_IOMMU_HWPT_ALLOC _IO(KABI_IOMMU_TYPE, 0x89)
#define KABI_IOMMU_GET_HW_INFO _IO(KABI_IOMMU_TYPE, 0x8a)
#define KABI_IOMMU_HWPT_INVALIDATE _IO(KABI_IOMMU_TYPE, 0x8d)
#define KABI_IOMMU_IOAS_MAP_FILE _IO(KABI_IOMMU_TYPE, 0x8f)
#define KABI_IOMMU_VIOMMU_ALLOC _IO(KABI_IOMMU_TYPE, 0x90)
#define KABI_IOMMU_VDEVICE_ALLOC _IO(KABI_IOMMU_TYPE, 0x91)
#define KABI_IOMMU_IOAS_CHANGE_PROCESS _IO(KABI_IOMMU_TYPE, 0x92)
#define KABI_IOMMU_VEVENTQ_ALLOC _IO(KABI_IOMMU_TYPE, 0x93)

#define KABI_VFIO_DEVICE_BIND_IOMMUFD _IO(KABI_VFIO_TYPE, 100 + 18)
#define KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(KABI_VFIO_TYPE, 100 + 19)
#define KABI_VFIO_DEVICE_DETACH_IOMMUFD_PT _IO(KABI_VFIO_TYPE, 100 + 20)
#define KABI_VFIO_DEVICE_ATTACH_PASID 1u
#define KABI_VFIO_DEVICE_DETACH_PASID 1u
#define KABI_IOMMU_HWPT_ALLOC_NEST_PARENT (1u << 0)
#define KABI_IOMMU_HWPT_ALLOC_PASID (1u << 3)
/* What an Arm SMMUv3 is called, in one enumeration after the other. */
#define KABI_IOMMU_HW_INFO_TYPE_NONE 0u
#define KABI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3 2u
#define KABI_IOMMU_HWPT_DATA_ARM_SMMUV3 2u
#define KABI_IOMMU_VIOMMU_TYPE_ARM_SMMUV3 1u
#define KABI_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 1u
#define KABI_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 1u
#define KABI_IOMMU_VEVENTQ_FLAG_LOST_EVENTS (1u << 0)
/* In struct vfio_pci_hot_reset_info; then what older headers call group_id is a devid. */
#define KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID (1u << 0)
#define KABI_VFIO_PCI_DEVID_OWNED 0u

struct kabi_iommu_destroy {
	uint32_t size;
	uint32_t id;
};

struct kabi_iommu_ioas_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t out_ioas_id;
};

struct kabi_iommu_iova_range {
	uint64_t start;
	uint64_t last;
};

struct kabi_iommu_ioas_iova_ranges {
	uint32_t size;
	uint32_t ioas_id;
	uint32_t num_iovas;
	uint32_t reserved;
	uint64_t allowed_iovas; /* address of an array of kabi_iommu_iova_range */
	uint64_t out_iova_alignment;
};

enum kabi_iommu_map_flags {
	KABI_IOMMU_MAP_FIXED_IOVA = 1,
	KABI_IOMMU_MAP_WRITEABLE = 2,
	KABI_IOMMU_MAP_READABLE = 4,
};

struct kabi_iommu_ioas_copy {
	uint32_t size;
	uint32_t flags; /* enum kabi_iommu_map_flags */
	uint32_t dst_ioas_id;
	uint32_t src_ioas_id;
	uint64_t length;
	uint64_t dst_iova;
	uint64_t src_iova;
};

struct kabi_iommu_ioas_map {
	uint32_t size;
	uint32_t flags;
	uint32_t ioas_id;
	uint32_t reserved;
	uint64_t user_va;
	uint64_t length;
	uint64_t iova;
};

struct kabi_iommu_ioas_map_file {
	uint32_t size;
	uint32_t flags;
	uint32_t ioas_id;
	int32_t fd;
	uint64_t start;
	uint64_t length;
	uint64_t iova;
};

struct kabi_iommu_ioas_unmap {
	uint32_t size;
	uint32_t ioas_id;
	uint64_t iova;
	uint64_t length;
};

struct kabi_iommu_ioas_change_process {
	uint32_t size;
	uint32_t reserved;
};

struct kabi_iommu_hwpt_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t dev_id;
	uint32_t pt_id; /* the IOAS, or the vIOMMU */
	uint32_t out_hwpt_id;
	uint32_t reserved;
	uint32_t data_type;
	uint32_t data_len;
	uint64_t data_uptr;
};

struct kabi_iommu_hw_info {
	uint32_t size;
	uint32_t flags;
	uint32_t dev_id;
	uint32_t data_len;
	uint64_t data_uptr;
	uint32_t out_data_type;
	uint8_t out_max_pasid_log2; /* 0 on kernels before 6.15, too */
	uint8_t reserved[3];
	uint64_t out_capabilities;
};

struct kabi_iommu_hw_info_arm_smmuv3 {
	uint32_t flags;
	uint32_t reserved;
	uint32_t idr[6];
	uint32_t iidr;
	uint32_t aidr;
};

struct kabi_iommu_hwpt_arm_smmuv3 {
	uint64_t ste[2];
};

struct kabi_iommu_viommu_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t type;
	uint32_t dev_id;
	uint32_t hwpt_id;
	uint32_t out_viommu_id;
	uint32_t data_len;
	uint32_t reserved;
	uint64_t data_uptr;
};

struct kabi_iommu_vdevice_alloc {
	uint32_t size;
	uint32_t viommu_id;
	uint32_t dev_id;
	uint32_t out_vdevice_id;
	uint64_t virt_id;
};

struct kabi_iommu_veventq_alloc {
	uint32_t size;
	uint32_t flags;
	uint32_t viommu_id;
	uint32_t type;
	uint32_t veventq_depth;
	uint32_t out_veventq_id;
	uint32_t out_veventq_fd;
	uint32_t reserved;
};

struct kabi_iommufd_vevent_header {
	uint32_t flags;
	uint32_t sequence; /* 0 to INT32_MAX, then 0 */
};

struct kabi_iommu_hwpt_invalidate {
	uint32_t size;
	uint32_t hwpt_id; /* or the vIOMMU's */
	uint64_t data_uptr;
	uint32_t data_type;
	uint32_t entry_len;
	uint32_t entry_num; /* on return: how many were carried out */
	uint32_t reserved;
};

struct kabi_vfio_device_bind_iommufd {
	uint32_t argsz;
	uint32_t flags;
	int32_t iommufd;
	uint32_t out_devid;
};

struct kabi_vfio_device_attach_iommufd_pt {
	uint32_t argsz;
	uint32_t flags;
	uint32_t pt_id;
	uint32_t pasid; /* counts with KABI_VFIO_DEVICE_ATTACH_PASID */
};

struct kabi_vfio_device_detach_iommufd_pt {
	uint32_t argsz;
	uint32_t flags;
	uint32_t pasid; /* counts with KABI_VFIO_DEVICE_DETACH_PASID */
};

#endif
