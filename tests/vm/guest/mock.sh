#!/bin/sh
# SPDX-License-Identifier: MIT
# The address spaces of /dev/iommu on the kernel's mock devices (mock_rig.h), which have no device file but this one.
#
#   mock.sh PROGRAM
mkdir -p /dev/vfio/devices
: >/dev/vfio/devices/mock
CMOCKA_MESSAGE_OUTPUT=TAP exec "/src/build-vm/tests/vm/$1"
