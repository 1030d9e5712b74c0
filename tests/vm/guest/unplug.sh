#!/bin/sh
# SPDX-License-Identifier: MIT
# Does the host's device_del take a device out of the guest, and device_add bring one back?
. ./lib.sh

gone() {
	[ -z "$(pci_find 1234:11e8)" ]
}

bdf=$(pci_find 1234:11e8)
check "edu is there behind a root port ($bdf)" test -n "$bdf"
check "vfio-pci takes it" pci_bind "$bdf"
check "the host unplugs it" host device_del edu0
check "it is gone" wait_for 20 gone
check "its group's file is gone, too" test ! -e "/sys/bus/pci/devices/$bdf"
check "the host plugs it in again" host device_add edu0
check "it is back" wait_for 20 test -e "/sys/bus/pci/devices/$bdf"
check "vfio-pci takes it again" pci_bind "$bdf"
finish
