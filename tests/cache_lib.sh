# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What the caches of tests/vm and tests/service share: Debian roots, made in steps, each once per machine and outside of the
# checkout. A step makes a directory under another name and then renames it, so that it is there whole or not at all.

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")

# mirror: the address of the Debian mirror that apt is configured for. apt itself reads its files, in either format.
mirror() {
	local uri
	# shellcheck disable=SC2016
	uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v name="$codename" '($2 == name || $2 ~ /^(stable|testing|unstable|sid)$/) && $3 == "main" { print $1; exit }')
	[[ -n $uri ]] || die "apt on this machine has no Debian mirror configured (a line with component main and a suite)"
	echo "$uri"
}

# in_root DIRECTORY COMMAND...
in_root() {
	local dir=$1
	shift
	chroot "$dir" /usr/bin/env DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# use_proxies DIRECTORY: those of this machine's apt, if it has any, for apt in a root.
use_proxies() {
	apt-config dump | grep -iE '^Acquire::https?::Proxy' >"$1/etc/apt/apt.conf.d/90proxy" || true
}

# step SCRIPT TEXT DIRECTORY FUNCTION: calls FUNCTION, in a run of SCRIPT with --step, with an empty directory, which then
# becomes DIRECTORY. Its status is 1 if that went wrong.
step() {
	local script=$1 text=$2 final=$3 function=$4 log=$3.log started=$SECONDS alone=()
	if [[ -d $final ]]; then
		echo "cache: $text: there"
		return
	fi
	echo "cache: $text: being made ..."
	mkdir -p "$(dirname "$final")"
	rm -rf --one-file-system "$final.new"
	mkdir "$final.new"
	# A shell of its own: "set -e" does not work in what is tested. Its mounts end with it.
	! unshare --mount true 2>/dev/null || alone=(unshare --mount)
	if ! "${alone[@]}" "$BASH" "$script" --step "$function" "$final.new" >"$log" 2>&1; then
		tail -n 15 "$log" >&2
		printf '%s\n' "$text could not be made: $(tail -n 1 "$log") (the log: $log)" >&2
		return 1
	fi
	mv -T "$final.new" "$final"
	echo "cache: $text: made in $((SECONDS - started)) s"
}
