/* SPDX-License-Identifier: MIT */
/* Our numbers and layouts of the kernel's interface beside the kernel's own, where its headers are new enough. */
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <stddef.h>

#include "transport/kernel_abi.h"

#define SAME(ours, theirs) _Static_assert((unsigned long)(ours) == (unsigned long)(theirs), #ours)
#define SAME_FIELD(s, f) SAME(offsetof(struct kabi_##s, f), offsetof(struct s, f))

SAME(KABI_IOMMU_DESTROY, IOMMU_DESTROY);
SAME(KABI_IOMMU_IOAS_ALLOC, IOMMU_IOAS_ALLOC);
SAME(KABI_IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_IOVA_RANGES);
SAME(KABI_IOMMU_IOAS_MAP, IOMMU_IOAS_MAP);
SAME(KABI_IOMMU_IOAS_UNMAP, IOMMU_IOAS_UNMAP);
SAME(KABI_IOMMU_IOAS_COPY, IOMMU_IOAS_COPY);
SAME(KABI_IOMMU_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_FIXED_IOVA);
SAME(KABI_IOMMU_MAP_WRITEABLE, IOMMU_IOAS_MAP_WRITEABLE);
SAME(KABI_IOMMU_MAP_READABLE, IOMMU_IOAS_MAP_READABLE);
SAME(sizeof(struct kabi_iommu_destroy), sizeof(struct iommu_destroy));
SAME(sizeof(struct kabi_iommu_ioas_alloc), sizeof(struct iommu_ioas_alloc));
SAME_FIELD(iommu_ioas_alloc, out_ioas_id);
SAME(sizeof(struct kabi_iommu_iova_range), sizeof(struct iommu_iova_range));
SAME(sizeof(struct kabi_iommu_ioas_iova_ranges), sizeof(struct iommu_ioas_iova_ranges));
SAME_FIELD(iommu_ioas_iova_ranges, allowed_iovas);
SAME(sizeof(struct kabi_iommu_ioas_copy), sizeof(struct iommu_ioas_copy));
SAME_FIELD(iommu_ioas_copy, dst_ioas_id);
SAME_FIELD(iommu_ioas_copy, dst_iova);
SAME_FIELD(iommu_ioas_copy, src_iova);
SAME(sizeof(struct kabi_iommu_ioas_map), sizeof(struct iommu_ioas_map));
SAME_FIELD(iommu_ioas_map, user_va);
SAME_FIELD(iommu_ioas_map, iova);
SAME(sizeof(struct kabi_iommu_ioas_unmap), sizeof(struct iommu_ioas_unmap));
SAME_FIELD(iommu_ioas_unmap, iova);
#ifdef IOMMU_IOAS_MAP_FILE
SAME(KABI_IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_MAP_FILE);
SAME(sizeof(struct kabi_iommu_ioas_map_file), sizeof(struct iommu_ioas_map_file));
SAME_FIELD(iommu_ioas_map_file, fd);
SAME_FIELD(iommu_ioas_map_file, start);
SAME_FIELD(iommu_ioas_map_file, iova);
#endif
#ifdef IOMMU_IOAS_CHANGE_PROCESS
SAME(KABI_IOMMU_IOAS_CHANGE_PROCESS, IOMMU_IOAS_CHANGE_PROCESS);
SAME(sizeof(struct kabi_iommu_ioas_change_process), sizeof(struct iommu_ioas_change_process));
#endif
#ifdef IOMMU_HWPT_ALLOC
SAME(KABI_IOMMU_HWPT_ALLOC, IOMMU_HWPT_ALLOC);
SAME_FIELD(iommu_hwpt_alloc, out_hwpt_id);
#endif
#ifdef IOMMU_GET_HW_INFO
SAME(KABI_IOMMU_GET_HW_INFO, IOMMU_GET_HW_INFO);
SAME_FIELD(iommu_hw_info, out_data_type);
SAME_FIELD(iommu_hw_info, out_capabilities);
#endif
#ifdef VFIO_DEVICE_ATTACH_PASID
SAME(KABI_VFIO_DEVICE_ATTACH_PASID, VFIO_DEVICE_ATTACH_PASID);
SAME(KABI_VFIO_DEVICE_DETACH_PASID, VFIO_DEVICE_DETACH_PASID);
SAME(KABI_VFIO_DEVICE_DETACH_IOMMUFD_PT, VFIO_DEVICE_DETACH_IOMMUFD_PT);
SAME(KABI_IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_ALLOC_PASID);
SAME_FIELD(iommu_hw_info, out_max_pasid_log2);
SAME_FIELD(vfio_device_attach_iommufd_pt, pasid);
SAME_FIELD(vfio_device_detach_iommufd_pt, pasid);
#endif
#ifdef IOMMU_VEVENTQ_ALLOC
SAME(KABI_IOMMU_HWPT_INVALIDATE, IOMMU_HWPT_INVALIDATE);
SAME(KABI_IOMMU_VIOMMU_ALLOC, IOMMU_VIOMMU_ALLOC);
SAME(KABI_IOMMU_VDEVICE_ALLOC, IOMMU_VDEVICE_ALLOC);
SAME(KABI_IOMMU_VEVENTQ_ALLOC, IOMMU_VEVENTQ_ALLOC);
SAME(KABI_IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_ALLOC_NEST_PARENT);
SAME(KABI_IOMMU_HW_INFO_TYPE_NONE, IOMMU_HW_INFO_TYPE_NONE);
SAME(KABI_IOMMU_HW_INFO_TYPE_ARM_SMMUV3, IOMMU_HW_INFO_TYPE_ARM_SMMUV3);
SAME(KABI_IOMMU_HWPT_DATA_ARM_SMMUV3, IOMMU_HWPT_DATA_ARM_SMMUV3);
SAME(KABI_IOMMU_VIOMMU_TYPE_ARM_SMMUV3, IOMMU_VIOMMU_TYPE_ARM_SMMUV3);
SAME(KABI_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3);
SAME(KABI_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, IOMMU_VEVENTQ_TYPE_ARM_SMMUV3);
SAME(KABI_IOMMU_VEVENTQ_FLAG_LOST_EVENTS, IOMMU_VEVENTQ_FLAG_LOST_EVENTS);
SAME(sizeof(struct kabi_iommu_hw_info_arm_smmuv3), sizeof(struct iommu_hw_info_arm_smmuv3));
SAME_FIELD(iommu_hw_info_arm_smmuv3, idr);
SAME(sizeof(struct kabi_iommu_hwpt_arm_smmuv3), sizeof(struct iommu_hwpt_arm_smmuv3));
SAME_FIELD(iommu_viommu_alloc, hwpt_id);
SAME_FIELD(iommu_viommu_alloc, out_viommu_id);
SAME_FIELD(iommu_vdevice_alloc, out_vdevice_id);
SAME_FIELD(iommu_vdevice_alloc, virt_id);
SAME_FIELD(iommu_veventq_alloc, veventq_depth);
SAME_FIELD(iommu_veventq_alloc, out_veventq_fd);
SAME(sizeof(struct kabi_iommufd_vevent_header), sizeof(struct iommufd_vevent_header));
SAME_FIELD(iommu_hwpt_invalidate, data_uptr);
SAME_FIELD(iommu_hwpt_invalidate, entry_num);
#endif
#ifdef VFIO_PCI_HOT_RESET_FLAG_DEV_ID
SAME(KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_PCI_HOT_RESET_FLAG_DEV_ID);
SAME(KABI_VFIO_PCI_DEVID_OWNED, VFIO_PCI_DEVID_OWNED);
#endif
#ifdef VFIO_DEVICE_BIND_IOMMUFD
SAME(KABI_VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_BIND_IOMMUFD);
SAME(KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_ATTACH_IOMMUFD_PT);
SAME_FIELD(vfio_device_bind_iommufd, iommufd);
SAME_FIELD(vfio_device_bind_iommufd, out_devid);
SAME_FIELD(vfio_device_attach_iommufd_pt, pt_id);
#endif

int main(void)
{
	return 0;
}
