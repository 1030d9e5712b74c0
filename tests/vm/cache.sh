#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes what the tests in a virtual machine run on, once per machine, outside of the checkout.
#
#   tests/vm/cache.sh              makes what is missing; the last lines of its output are those of --paths
#   tests/vm/cache.sh --paths      only says where things are: NAME=VALUE lines; 3 if something is missing
#   tests/vm/cache.sh --update     forgets the Debian root, so that the newest versions are fetched
#   ... --no-setup                 installs no packages, even as root
#
# All of it comes from Debian's packages, from the mirror that this machine's apt is configured for. Its steps
# (tests/cache_lib.sh):
#
#   root      a minimal Debian (trixie) with backports: the kernel's packages (fetched, not installed), a static
#             busybox, QEMU for arm64, and for amd64 unless this machine has one that knows vfio-user-pci
#   stock     Debian's own kernel with its VFIO modules
#   iommufd   a kernel from Debian's source with tests/vm/kernel.fragment
#   arm64     the same for arm64, with tests/vm/kernel-arm64.fragment
#   sysroot   what programs for arm64 are built against and run with: libraries, Python, busybox of this Debian's suite
#
# Its status is 2 if this machine cannot make it (no root, no mirror in reach), 1 if something went wrong.
# The cache is $PASIDD_VM_CACHE, else $XDG_CACHE_HOME/pasidd-vm, else ~/.cache/pasidd-vm.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../lib.sh"
source "$here/../cache_lib.sh"

SUITE=trixie
# Raise one when what its step makes changes other than by versions and fragment.
ROOT_RECIPE=2
SYSROOT_RECIPE=2
RECIPE=1
PACKAGES=(debootstrap debian-archive-keyring gcc libc6-dev make flex bison bc libelf-dev libssl-dev xz-utils python3
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
# Of arm64, in the sysroot.
SYSROOT_PACKAGES=(libc6-dev libevent-dev libjson-c-dev libsystemd-dev libcmocka-dev libpng-dev python3 busybox-static)
# In the order in which they have to be loaded.
STOCK_MODULES=(irqbypass vfio vfio_iommu_type1 vfio-pci-core vfio-pci)

cache=${PASIDD_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pasidd-vm}
root=$cache/root-$SUITE-$ROOT_RECIPE
sysroot=$cache/sysroot-arm64-$codename-$SYSROOT_RECIPE
fragment=$here/kernel.fragment
arm64_fragment=$here/kernel-arm64.fragment

# fact NAME: what the root's making found out.
fact() {
	sed -n "s/^$1=//p" "$root/facts"
}

# Known once there is a root.
set_paths() {
	linux=$cache/linux-$(fact linux_version)
	tree=$linux/tree
	stock=$linux/stock-$RECIPE
	iommufd=$linux/iommufd-$RECIPE-$(hash "$fragment")
	arm64=$linux/arm64-$RECIPE-$(hash "$arm64_fragment")
}

hash() {
	sha256sum "$1" | cut -c 1-12
}

# The versions of what is there, for reports.
qemu_version() {
	if [[ -n $(fact qemu) ]]; then
		"$(fact qemu)" --version | sed -n '1s/.*version \([^ ]*\).*/\1/p'
	else
		sed -n '/^Package: qemu-system-x86$/,/^$/s/^Version: //p' "$root/var/lib/dpkg/status"
	fi
}

print_paths() {
	printf '%s=%s\n' root "$root" qemu "$(fact qemu)" qemu_version "$(qemu_version)" busybox "$root/packages/busybox" \
		linux_version "$(fact linux_version)" stock "$stock" stock_modules "${STOCK_MODULES[*]}" iommufd "$iommufd" \
		arm64 "$arm64" sysroot "$sysroot"
}

# qemu_knows_vfio_user PROGRAM...: is it 10.1 or later, that is, has it the device?
qemu_knows_vfio_user() {
	"$@" -device help 2>/dev/null | grep -q '"vfio-user-pci"'
}

configure_apt() {
	local dir=$1 mirror=$2
	cat >"$dir/etc/apt/sources.list" <<-END
		deb $mirror $SUITE main
		deb $mirror $SUITE-backports main
	END
	cat >"$dir/etc/apt/preferences.d/backports" <<-END
		Package: *
		Pin: release n=$SUITE-backports
		Pin-Priority: 600
	END
	use_proxies "$dir"
}

# fetch DIRECTORY PACKAGE...: the .debs into the root's /packages. All of them now, because mirrors forget old versions
# of backports.
fetch() {
	local dir=$1
	shift
	in_root "$dir" sh -ec 'mkdir -p /packages; cd /packages; apt-get -o APT::Sandbox::User=root download "$@"' sh "$@"
}

# depends DIRECTORY PACKAGE PATTERN: those packages that this one depends on whose name fits.
depends() {
	in_root "$1" apt-cache depends --important "$2" | sed -n "s/^ *Depends: \($3\)$/\1/p"
}

write_facts() {
	local dir=$1 image=$2 qemu=$3
	{
		echo "linux_version=$(in_root "$dir" dpkg-deb -f "$(in_root "$dir" sh -c "echo /packages/${image}_*.deb")" Version)"
		echo "qemu=$qemu"
	} >"$dir/facts"
}

make_root() {
	local dir=$1 mirror image qemu kernel
	command -v debootstrap >/dev/null || die "debootstrap is not installed"
	mirror=$(mirror)
	qemu=$(command -v qemu-system-x86_64 || true)
	debootstrap --variant=minbase --include=ca-certificates "$SUITE" "$dir" "$mirror"
	configure_apt "$dir" "$mirror"
	in_root "$dir" apt-get update
	image=$(depends "$dir" linux-image-amd64 'linux-image-[0-9].*')
	# Newer ones are split: the image proper is in linux-binary-*, the modules are in linux-modules-*.
	mapfile -t kernel < <(depends "$dir" "$image" 'linux-\(binary\|modules\)-[0-9].*')
	fetch "$dir" "$image" "${kernel[@]}" "$(depends "$dir" linux-source 'linux-source-[0-9].*')" busybox-static
	dpkg-deb --fsys-tarfile "$dir"/packages/busybox-static_*.deb | tar -xO ./usr/bin/busybox >"$dir/packages/busybox"
	chmod 755 "$dir/packages/busybox"
	if [[ -z $qemu ]] || ! qemu_knows_vfio_user "$qemu"; then
		in_root "$dir" apt-get install -y --no-install-recommends qemu-system-x86
		qemu=
	fi
	in_root "$dir" apt-get install -y --no-install-recommends qemu-system-arm qemu-efi-aarch64 qemu-user
	in_root "$dir" apt-get clean
	write_facts "$dir" "$image" "$qemu"
}

make_stock() {
	local dir=$1 tree=$1/tree name file
	mkdir "$tree"
	for file in "$root"/packages/linux-{image,binary,modules}-*.deb; do
		[[ ! -f $file ]] || dpkg-deb -x "$file" "$tree"
	done
	# It has been in /boot, and beside its modules.
	file=$(find "$tree" -name 'vmlinuz*' -type f -print -quit)
	[[ -n $file ]] || die "Debian's kernel packages have no vmlinuz"
	cp "$file" "$dir/vmlinuz"
	mkdir "$dir/modules"
	for name in "${STOCK_MODULES[@]}"; do
		file=$(find "$tree" -name "$name.ko*" -print -quit)
		[[ -n $file ]] || die "Debian's kernel has no module $name"
		case $file in
		*.xz) xz -dc "$file" >"$dir/modules/$name.ko" ;;
		*) cp "$file" "$dir/modules/$name.ko" ;;
		esac
	done
	rm -r "$tree"
}

# It is built in directories beside it, which stay with their objects: another fragment then takes a part of the time.
make_source() {
	dpkg-deb --fsys-tarfile "$root"/packages/linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
		tar -xJ -C "$1" --strip-components=1
}

# check_config FRAGMENT CONFIG: which lines of the fragment did "make olddefconfig" not keep?
check_config() {
	local line lost=0
	while read -r line; do
		[[ $line == CONFIG_* ]] || continue
		grep -qxF "$line" "$2" && continue
		echo "${1##*/}: make olddefconfig did not keep $line"
		lost=1
	done <"$1"
	[[ $lost -eq 0 ]]
}

# make_kernel DIRECTORY FRAGMENT TARGET IMAGE MAKE-ARGUMENT...
make_kernel() {
	local dir=$1 fragment=$2 target=$3 image=$4 objects=$linux/objects-$3
	shift 4
	mkdir -p "$objects"
	(
		cd "$objects"
		make -s -C "$tree" O="$objects" "$@" tinyconfig
		"$tree/scripts/kconfig/merge_config.sh" -m .config "$fragment" >/dev/null
		make -s "$@" olddefconfig
		check_config "$fragment" .config
		nice make -s -j"$(nproc)" "$@" "$target"
	)
	cp "$objects/$image" "$dir/vmlinuz"
	cp "$objects/.config" "$dir/config"
}

make_iommufd() {
	make_kernel "$1" "$fragment" bzImage arch/x86/boot/bzImage
}

make_arm64() {
	make_kernel "$1" "$arm64_fragment" Image arch/arm64/boot/Image ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
}

# Packages are unpacked and not set up: nothing of arm64 is run. /lib stays the link to /usr/lib that debootstrap made.
# Links that name paths from / would leave the sysroot.
make_sysroot() {
	local dir=$1 include package link target
	include=$(IFS=, && echo "${SYSROOT_PACKAGES[*]}")
	debootstrap --arch=arm64 --foreign --variant=minbase --include="$include" "$codename" "$dir" "$(mirror)"
	for package in "$dir"/var/cache/apt/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$dir"
	done
	# What Debian's packages do when they are set up; Python of this suite is of the same version.
	/usr/bin/python3 -m compileall -q -s "$dir" -x '/(lib2to3/tests|test)/' "$dir"/usr/lib/python3.*
	rm -r "$dir/var/cache/apt" "$dir/debootstrap" "$dir/usr/share/doc" "$dir/usr/share/locale"
	find "$dir/usr" -type l -lname '/*' | while read -r link; do
		target=$(readlink "$link")
		ln -sfnr "$dir$target" "$link"
	done
}

# make_step TEXT DIRECTORY FUNCTION: a step. Whether there is a root is up to the machine; the rest is up to us.
make_step() {
	step "$here/cache.sh" "$@" && return
	[[ $2 == "$root" ]] && exit 2
	exit 1
}

fill() {
	[[ $(dpkg --print-architecture) == amd64 ]] || die "the virtual machines are amd64, and so has to be what makes them"
	[[ -d $root || $EUID -eq 0 ]] || die "making the VM cache takes root, for debootstrap"
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	make_step "Debian $SUITE with QEMU" "$root" make_root
	set_paths
	make_step "Debian's kernel $(fact linux_version)" "$stock" make_stock
	make_step "the source of Linux $(fact linux_version)" "$tree" make_source
	make_step "a kernel with iommufd" "$iommufd" make_iommufd
	make_step "the same for arm64" "$arm64" make_arm64
	make_step "Debian $codename for arm64" "$sysroot" make_sysroot
}

missing() {
	printf 'the VM cache lacks %s: run tests/vm/cache.sh\n' "$*" >&2
	exit 3
}

what=fill
setup=1
for argument; do
	case $argument in
	--paths) what=paths ;;
	--update) what=update ;;
	--no-setup) setup=0 ;;
	--step)
		[[ ! -d $root ]] || set_paths
		"$2" "$3"
		exit
		;;
	-h | --help)
		sed -n '3,22s/^# \{0,1\}//p' "$here/cache.sh"
		exit 0
		;;
	*) die "unknown option $argument; see --help" ;;
	esac
done

if [[ $what == update ]]; then
	rm -rf --one-file-system "$root"
	what=fill
fi
if [[ $what == fill ]]; then
	need_packages "$setup" "${PACKAGES[@]}"
	fill
fi
[[ -d $root ]] || missing "its Debian root"
set_paths
[[ -d $stock ]] || missing "Debian's kernel"
[[ -d $iommufd ]] || missing "the kernel with iommufd"
[[ -d $arm64 ]] || missing "the kernel for arm64"
[[ -d $sysroot ]] || missing "the sysroot for arm64"
print_paths
