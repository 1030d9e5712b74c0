#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes what the tests with a real service manager run on, once per machine, outside of the checkout.
#
#   tests/service/cache.sh             makes what is missing; the last lines of its output are those of --paths
#   tests/service/cache.sh --paths     only says where things are: NAME=VALUE lines; 3 if something is missing
#   tests/service/cache.sh --update    forgets the Debian roots, so that the newest versions are fetched
#   ... --no-setup                     installs no packages, even as root
#
# All of it comes from Debian's packages, from the mirror that this machine's apt is configured for. For each suite of
# SUITES, in steps (tests/cache_lib.sh):
#
#   root     a minimal Debian that boots: systemd, dbus, Python, the libraries that pasidd needs, three users
#   build    the same with what debian/control asks for to build the packages, lintian and ccache
#
# Its status is 2 if this machine cannot make it (no root, no mirror in reach), 1 if something went wrong.
# The cache is $PASIDD_SERVICE_CACHE, else $XDG_CACHE_HOME/pasidd-service, else ~/.cache/pasidd-service.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$here/../..
source "$here/../lib.sh"
source "$here/../cache_lib.sh"

SUITES=(bookworm trixie)
# Raise it when what a step makes changes other than by versions and by debian/control.
RECIPE=2
PACKAGES=(debootstrap debian-archive-keyring systemd-container)
ROOT_PACKAGES=(systemd systemd-sysv dbus udev python3 libjson-c5 acl)
declare -A LIBRARIES=([bookworm]="libevent-core-2.1-7 libpng16-16" [trixie]="libevent-core-2.1-7t64 libpng16-16t64")

cache=${PASIDD_SERVICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pasidd-service}

root_of() {
	echo "$cache/root-$1-$RECIPE"
}

build_of() {
	echo "$cache/build-$1-$RECIPE-$(sed '/^$/,$d' "$top/debian/control" | sha256sum | cut -c 1-12)"
}

print_paths() {
	local suite
	mkdir -p "$cache/ccache"
	echo "suites=${SUITES[*]}"
	echo "ccache=$cache/ccache"
	for suite in "${SUITES[@]}"; do
		printf '%s=%s\n' "root_$suite" "$(root_of "$suite")" "build_$suite" "$(build_of "$suite")"
	done
}

# make_root SUITE DIRECTORY
make_root() {
	local suite=$1 dir=$2 include user mirror
	command -v debootstrap >/dev/null || die "debootstrap is not installed"
	mirror=$(mirror)
	include=$(IFS=, && echo "${ROOT_PACKAGES[*]}")
	debootstrap --variant=minbase --include="$include,${LIBRARIES[$suite]// /,}" "$suite" "$dir" "$mirror"
	use_proxies "$dir"
	for user in alice bob eve; do
		in_root "$dir" useradd --create-home --shell /bin/sh "$user"
	done
	in_root "$dir" apt-get clean
	# A machine of its own at each boot.
	: >"$dir/etc/machine-id"
}

make_root_bookworm() {
	make_root bookworm "$1"
}

make_root_trixie() {
	make_root trixie "$1"
}

# make_build SUITE DIRECTORY
make_build() {
	local dir=$2
	cp -a "$(root_of "$1")/." "$dir"
	mkdir -p "$dir/control/debian"
	cp "$top/debian/control" "$top/debian/changelog" "$dir/control/debian"
	in_root "$dir" apt-get update
	in_root "$dir" apt-get install -y --no-install-recommends dpkg-dev lintian ccache
	in_root "$dir" apt-get build-dep -y --no-install-recommends /control
	in_root "$dir" apt-get clean
}

make_build_bookworm() {
	make_build bookworm "$1"
}

make_build_trixie() {
	make_build trixie "$1"
}

fill() {
	local suite
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	for suite in "${SUITES[@]}"; do
		[[ -d $(root_of "$suite") || $EUID -eq 0 ]] || die "making the cache of Debian roots takes root, for debootstrap"
		step "$here/cache.sh" "Debian $suite" "$(root_of "$suite")" "make_root_$suite" || exit 2
		step "$here/cache.sh" "Debian $suite that builds" "$(build_of "$suite")" "make_build_$suite" || exit 1
	done
}

what=fill
setup=1
for argument; do
	case $argument in
	--paths) what=paths ;;
	--update) what=update ;;
	--no-setup) setup=0 ;;
	--step)
		"$2" "$3"
		exit
		;;
	-h | --help)
		sed -n '3,19s/^# \{0,1\}//p' "$here/cache.sh"
		exit 0
		;;
	*) die "unknown option $argument; see --help" ;;
	esac
done

if [[ $what == update ]]; then
	for suite in "${SUITES[@]}"; do
		rm -rf --one-file-system "$(root_of "$suite")" "$(build_of "$suite")"
	done
	what=fill
fi
if [[ $what == fill ]]; then
	need_packages "$setup" "${PACKAGES[@]}"
	fill
fi
for suite in "${SUITES[@]}"; do
	for dir in "$(root_of "$suite")" "$(build_of "$suite")"; do
		[[ -d $dir ]] && continue
		echo "the cache lacks $dir: run tests/service/cache.sh" >&2
		exit 3
	done
done
print_paths
