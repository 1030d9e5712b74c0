# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What demo.sh and test.sh share: the packages that a build needs, and build directories.

# shellcheck disable=SC2034
PACKAGES=(gcc libc6-dev meson ninja-build pkg-config libevent-dev libjson-c-dev libsystemd-dev libcmocka-dev
	libpng-dev python3 dbus-daemon systemd)

die() {
	printf '%s\n' "$*" >&2
	exit 2
}

# Is this Debian package installed?
package_installed() {
	[[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

# Clang's sanitizer runtime is a package of its own, named by clang's version.
clang_runtime_package() {
	local version
	if command -v clang >/dev/null; then
		version=$(clang -dumpversion)
	else
		version=$(LC_ALL=C apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\).*/\1/p' | head -n 1)
	fi
	version=${version%%.*}
	printf 'libclang-rt-%s-dev\n' "${version:-14}"
}

apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	# The lists may be missing (a fresh image) or old (then a package is not found): fetch them and try once more.
	apt-get install -y --no-install-recommends "$@" >&2 && return
	apt-get update >&2
	apt-get install -y --no-install-recommends "$@" >&2
}

# need_packages INSTALL PACKAGE...: says which packages are missing and how to install them; does so as root if INSTALL
# is 1. Elsewhere than on Debian there is nothing to say: then the build will.
need_packages() {
	local install=$1 package missing=()
	shift
	command -v dpkg-query >/dev/null || return 0
	for package; do
		package_installed "$package" || missing+=("$package")
	done
	if [[ ${#missing[@]} -eq 0 ]]; then
		echo "no Debian packages are missing"
		return 0
	fi
	echo "missing Debian packages: ${missing[*]}"
	echo "apt-get install -y --no-install-recommends ${missing[*]}"
	if [[ $install -eq 1 && $EUID -eq 0 ]]; then
		apt_install "${missing[@]}" || die "they could not be installed"
	else
		echo "(not installed: that takes root, and no --no-setup)"
	fi
}

# build DIRECTORY [MESON-OPTION...]: configures it if it is not, and builds $targets or everything. Only what goes wrong
# is shown.
build() {
	local dir=$1 log
	shift
	log=$(mktemp) || return 1
	# shellcheck disable=SC2086
	if ! { { [[ -f "$dir/build.ninja" ]] || meson setup "$dir" "$@"; } && ninja -C "$dir" ${targets:-}; } >"$log" 2>&1; then
		grep -v '^\[[0-9]*/[0-9]*\] ' "$log" | tail -n 60 >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

# build_arm64 DIRECTORY SYSROOT [MESON-OPTION...]: the same for arm64, with a sysroot of tests/vm/cache.sh.
build_arm64() {
	local dir=$1 sysroot=$2
	shift 2
	build "$dir" --cross-file <(printf "[constants]\nsysroot = '%s'\n" "$sysroot") \
		--cross-file tests/arm64/aarch64-linux-gnu.ini "$@"
}
