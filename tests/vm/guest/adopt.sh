#!/bin/sh
# SPDX-License-Identifier: MIT
# Processes that take QEMU's edu over, one after the other, each from one that died.
#
#   adopt.sh PROGRAM iommufd|type1
. ./lib.sh

bdf=$(pci_find 1234:11e8)
pci_bind "$bdf" || exit 1
exec "/src/build-vm/tests/vm/$1" "$2:$bdf"
