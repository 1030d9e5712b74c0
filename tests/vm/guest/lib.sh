# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# What the guest's scripts share: TAP, PCI devices, and the host's help. For busybox's shell.

tests=0
failed=0

# result ok|not TEXT [DETAILS]
result() {
	tests=$((tests + 1))
	if [ "$1" = ok ]; then
		echo "ok $tests - $2"
	else
		failed=1
		echo "not ok $tests - $2"
		[ -z "${3:-}" ] || printf '%s\n' "$3" | sed 's/^/# /'
	fi
}

# check TEXT COMMAND...: a test that passes if the command does; what it printed is shown if not.
check() {
	check_text=$1
	shift
	if check_output=$("$@" 2>&1); then
		result ok "$check_text"
	else
		result not "$check_text" "$* ended with $?: $check_output"
	fi
}

# The script's last line: it fails if a test did.
finish() {
	echo "1..$tests"
	exit "$failed"
}

uptime_seconds() {
	cut -d . -f 1 /proc/uptime
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
	wait_until=$(($(uptime_seconds) + $1))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "$(uptime_seconds)" -le "$wait_until" ] || return 1
		sleep 0.1
	done
}

# pci_find VENDOR:DEVICE: prints the addresses, as in 0000:00:02.0.
pci_find() {
	for pci_device in /sys/bus/pci/devices/*; do
		pci_id=$(cat "$pci_device/vendor"):$(cat "$pci_device/device")
		[ "$pci_id" != "0x${1%:*}:0x${1#*:}" ] || basename "$pci_device"
	done
}

# pci_bind BDF: gives the device to vfio-pci.
pci_bind() {
	echo vfio-pci >"/sys/bus/pci/devices/$1/driver_override" && echo "$1" >/sys/bus/pci/drivers_probe &&
		[ "$(basename "$(readlink "/sys/bus/pci/devices/$1/driver")")" = vfio-pci ]
}

# pci_group BDF: the number of its IOMMU group.
pci_group() {
	basename "$(readlink "/sys/bus/pci/devices/$1/iommu_group")"
}

# host VERB [ARGUMENT...]: asks the runner on the machine outside for something, see docs/vm.md; fails if it did.
host() {
	echo "@host $*" >"$VM_CONTROL"
	read -r host_word host_answer <"$VM_CONTROL" || return 1
	[ "$host_word" = ok ] && return
	echo "the host answered: $host_word $host_answer" >&2
	return 1
}
