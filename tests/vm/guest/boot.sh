#!/bin/sh
# SPDX-License-Identifier: MIT
# Is there a kernel with VFIO, an IOMMU, and a device that vfio-pci can have? With an argument: also as device file; with
# another one: is the IOMMU, by its name in sysfs, of that kind?
#
#   boot.sh [iommufd [KIND]]
. ./lib.sh

check "there is /dev/vfio/vfio" test -c /dev/vfio/vfio
[ "${1:-}" != iommufd ] || check "there is /dev/iommu" test -c /dev/iommu
bdf=$(pci_find 1234:11e8)
check "QEMU's edu device is there ($bdf)" test -n "$bdf"
check "it is behind an IOMMU" test -e "/sys/bus/pci/devices/$bdf/iommu_group"
[ -z "${2:-}" ] || check "it is an IOMMU of kind $2" ls -d "/sys/bus/pci/devices/$bdf/iommu/../$2."*
check "vfio-pci takes it" pci_bind "$bdf"
check "its group is at /dev/vfio/$(pci_group "$bdf")" test -c "/dev/vfio/$(pci_group "$bdf")"
if [ "${1:-}" = iommufd ]; then
	name=$(basename "/sys/bus/pci/devices/$bdf/vfio-dev/"*)
	check "its device file is at /dev/vfio/devices/$name" test -c "/dev/vfio/devices/$name"
fi
finish
