#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Two apps share one GPU: a bank, and a thief that tries everything to get at the bank's memory.
#
#   ./demo.sh [--no-isolation] [--no-setup] [--out DIRECTORY]
#
# Exit status: 0 nothing leaked, 1 something leaked, 2 it could not be run. --no-isolation gives both apps one address
# space, as without pasidd: there the theft succeeds. --no-setup installs no packages, even as root.
set -euo pipefail
trap 'exit 2' EXIT # whatever ends this early is not a verdict
cd "$(dirname "${BASH_SOURCE[0]}")"
source tests/lib.sh

setup=1
arguments=()
while [[ $# -gt 0 ]]; do
	case $1 in
	--no-setup) setup=0 ;;
	--no-isolation) arguments+=(--no-isolation) ;;
	--out)
		[[ $# -ge 2 ]] || die "--out needs a directory"
		arguments+=(--out "$2")
		shift
		;;
	-h | --help)
		sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]##*/}"
		trap - EXIT
		exit 0
		;;
	*) die "unknown option $1; see --help" ;;
	esac
	shift
done

need_packages "$setup" "${PACKAGES[@]}"
build build || die "COULD NOT RUN: the build failed"
# An interpreter that cannot even begin ends with 1, too.
python3 tests/system/demo/run.py --help >/dev/null || die "COULD NOT RUN: python3 does not work"
exec python3 tests/system/demo/run.py --build build "${arguments[@]}"
