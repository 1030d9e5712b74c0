#!/bin/sh
# SPDX-License-Identifier: MIT
# The address spaces of /dev/iommu on the kernel's mock devices (mock_iommu.c), which have no device file but this one.
mkdir -p /dev/vfio/devices
: >/dev/vfio/devices/mock
CMOCKA_MESSAGE_OUTPUT=TAP exec /src/build-vm/tests/vm/mock_iommu
