#!/bin/sh
# SPDX-License-Identifier: MIT
# pasidctl on a real kernel: what doctor says before a device is bound, when it is, and after; devices that have a
# driver, that share a group, that are in use.
#
#   doctor.sh stock|iommufd|iommu-off|arm64|arm64-nested
. ./lib.sh

kernel=$1
said=/tmp/said

# runs STATUS ARGUMENT...: pasidctl ends with this status; what it said is in $said.
runs() {
	runs_wanted=$1
	shift
	"$PASIDCTL" "$@" >$said 2>&1
	runs_status=$?
	[ $runs_status = "$runs_wanted" ] && return
	echo "pasidctl $*: status $runs_status"
	cat $said
	return 1
}

# says STATUS LINE ARGUMENT...: and its last line is this one.
says() {
	says_wanted=$2
	says_status=$1
	shift 2
	runs "$says_status" "$@" || return 1
	[ "$(tail -n 1 $said)" = "$says_wanted" ] && return
	echo "not \"$says_wanted\", but:"
	cat $said
	return 1
}

# also PATTERN: what was said last has such a line.
also() {
	grep -q -e "$1" $said && return
	echo "no line $1 in:"
	cat $said
	return 1
}

# also_not PATTERN: it has none.
also_not() {
	! also "$1" >/dev/null || {
		cat $said
		return 1
	}
}

driver() {
	basename "$(readlink "/sys/bus/pci/devices/$1/driver")"
}

# driver_is BDF DRIVER
driver_is() {
	[ "$(driver "$1")" = "$2" ] || {
		driver "$1"
		return 1
	}
}

gone() {
	! test -e "$1"
}

# as_bank STATUS ARGUMENT...: the same by a user without rights.
as_bank() {
	as_bank_wanted=$1
	shift
	su bank -s /bin/sh -c "$PASIDCTL $*" >$said 2>&1
	as_bank_status=$?
	[ $as_bank_status = "$as_bank_wanted" ] && return
	echo "pasidctl $*: status $as_bank_status"
	cat $said
	return 1
}

# One edu is alone in its group, the other, where there is one, is behind a bridge that does not keep its devices apart.
edu=$(pci_find 1234:11e8 | grep '^0000:00:')
sharing=$(pci_find 1234:11e8 | grep -v '^0000:00:')
serial=$(pci_find 1b36:0002)
case $kernel in
arm64*) check "the device is there ($edu)" test -n "$edu" ;;
*) check "the devices are there ($edu; $sharing and $serial)" test -n "$edu" -a -n "$sharing" -a -n "$serial" ;;
esac
check "a word that is no address is refused" runs 2 doctor 00:1f
check "so is a device that is not there" runs 2 doctor 0000:7f:1f.7

unbound="cannot be shared as it is: driver: it is bound to no driver; type: pasidctl bind $edu; driver: edu"
case $kernel in
stock) shared="can be shared: exclusive (type1); not pasid: this kernel has no iommufd; driver: edu" ;;
iommufd) shared="can be shared: exclusive (iommufd); not pasid: the device has no PASID capability; driver: edu" ;;
arm64) shared="can be shared: exclusive, maybe nested (iommufd); not pasid: the device has no PASID capability; driver: edu" ;;
arm64-nested) shared="can be shared: nested, exclusive (iommufd); not pasid: the device has no PASID capability; driver: edu" ;;
iommu-off)
	check "the machine has no IOMMU" runs 1 doctor
	check "with the line to type" also "^bad   iommu: .*started with intel_iommu=off; type: .*intel_iommu=on,sm_on"
	check "so has the device" runs 1 doctor "$edu"
	check "which is not bound" runs 1 bind "$edu"
	check "for it would reach all memory" also "is behind no IOMMU"
	check "and nothing was written" test "$(cat "/sys/bus/pci/devices/$edu/driver_override")" = "(null)"
	finish
	;;
esac
[ "$kernel" != iommufd ] || [ -n "$(pci_find 1234:9a51)" ] || result not "the GPU is there"

check "before it is bound" says 1 "$unbound" doctor "$edu"
check "the machine is in order" runs 0 doctor
check "also as JSON" runs 0 doctor --json
check "a dry run says what it would do" runs 0 bind --dry-run "$edu"
check "line by line" also "vfio-pci > /sys/bus/pci/devices/$edu/driver_override"
check "and does not do it" test ! -e "/sys/bus/pci/devices/$edu/driver"
check "without udev nothing persists" runs 1 bind --persist "$edu"
check "and it was not bound" says 1 "$unbound" doctor "$edu"
check "only root may bind" as_bank 1 bind "$edu"
check "and is told so" also "type: sudo pasidctl bind $edu\$"
mkdir -p /etc/udev/rules.d
check "it is bound" says 0 "$edu is bound to vfio-pci" bind --persist "$edu"
check "as sysfs says" driver_is "$edu" vfio-pci
check "with a rule for udev" grep -q "KERNEL==\"$edu\"" "/etc/udev/rules.d/20-pasidd-$edu.rules"
check "now it can be shared" says 0 "$shared" doctor "$edu"
case $kernel in
arm64) check "the firmware does not say that it is coherent" also "^warn  nested: the firmware does not say .* S2FWB; .*; type: " ;;
arm64-nested) check "the firmware says that it is coherent" also "^ok    nested: the firmware says " ;;
*) check "nothing is said of an SMMU's first stage" also_not "nested" ;;
esac
check "everybody may look" as_bank 0 doctor "$edu"
check "and sees who may open the device" also "/dev/vfio/.* is there: mode 0600, of root; you may not open it"
check "and what only root sees" also "^warn  pasid: only root may read .*; type: sudo pasidctl doctor $edu\$"
case $kernel in
arm64*) check "and what only root may read of the firmware" also "^warn  nested: only root may read .*; type: sudo pasidctl doctor $edu\$" ;;
esac
check "binding it once more is nothing new" says 0 "$edu is bound to vfio-pci" bind "$edu"

group=/dev/vfio/$(pci_group "$edu")
sleep 60 3<>"$group" &
holder=$!
check "in use it stays" runs 1 unbind "$edu"
check "and the user is named" also "in use by process $holder "
kill $holder
wait $holder 2>/dev/null
check "it is given back" says 0 "$edu is bound to no driver: none of this kernel's that are loaded is for it" unbind "$edu"
check "the rule is gone" gone "/etc/udev/rules.d/20-pasidd-$edu.rules"
check "it can no more be shared" says 1 "$unbound" doctor "$edu"
check "nothing is left to do" runs 0 unbind "$edu"
case $kernel in arm64*) finish ;; esac

check "the serial port has its driver" driver_is "$serial" serial
check "which keeps its neighbour from being shared" runs 1 doctor "$sharing"
check "and says who it is" also "^bad   group: .* has also $serial, bound to serial"
check "so that binding is refused" runs 1 bind "$sharing"
check "with the whole command" also "type: pasidctl bind $sharing $serial\$"
check "both together are bound" runs 0 bind "$sharing" "$serial"
check "taken from the driver" driver_is "$serial" vfio-pci
check "then the neighbour can be shared" runs 0 doctor "$sharing"
check "both go back" says 0 "$serial is bound to serial" unbind "$sharing" "$serial"
check "to the driver that it had" driver_is "$serial" serial

if [ "$kernel" = iommufd ]; then
	gpu=$(pci_find 1234:9a51)
	check "the GPU is bound" runs 0 bind "$gpu"
	check "it can be shared" says 0 "can be shared: gpu-mmu, global (iommufd); not pasid: the driver refgpu tags no access with its PASID,\
 the machine could (20 bits); driver: refgpu" doctor "$gpu"
	check "its PASIDs were seen" also "^ok    pasid: it has PASIDs of 20 bits, with ATS, with PRI"
	check "it is given back" runs 0 unbind "$gpu"
fi
finish
