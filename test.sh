#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds pasidd with sanitizers and runs its tests.
#
#   ./test.sh              gcc with ASan (and its leak checks) and UBSan: unit tests, system tests, the demo both ways
#   ./test.sh --all        also: the same with clang, unit tests for arm64, each fuzzer for $FUZZ_SECONDS (60), the tests with
#                          a real service manager, those in virtual machines, the mutants
#   ./test.sh --arm64      only the unit tests of a build for arm64, see docs/arm64.md
#   ./test.sh --service    only the tests of the packages with systemd itself, in containers, as root; see docs/install.md
#   ./test.sh --vm         only the tests in virtual machines; the first time takes some ten minutes, see docs/vm.md
#   ./test.sh --mutants    only the mutants: breaks of the daemon, each of which a test has to notice
#   ... --no-setup         installs no packages, even as root
#
# The last line is "N passed, M failed, K skipped"; the status is 0 if none failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source tests/lib.sh

what=tests
setup=1
for argument; do
	case $argument in
	--all) what=all ;;
	--arm64) what=arm64 ;;
	--mutants) what=mutants ;;
	--service) what=service ;;
	--vm) what=vm ;;
	--no-setup) setup=0 ;;
	-h | --help)
		sed -n '3,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]##*/}"
		exit 0
		;;
	*) die "unknown option $argument; see --help" ;;
	esac
done

# shellcheck disable=SC2054
SANITIZERS=(-Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=debugoptimized)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
results=$work/results
: >"$results"

# result WORD NAME [TEXT]: one line into the results; what failed or was skipped is said again at the end.
result() {
	printf '%s\t%s\t%s\n' "$@" >>"$results"
}

# run_tests LABEL DIRECTORY [ARGUMENT...]: all tests of a build directory, or those that arguments of tests/run.py choose.
run_tests() {
	local label=$1 dir=$2
	shift 2
	echo "== tests, $label"
	python3 tests/run.py --build "$dir" --label "$label" --results "$results" "$@" || true
}

# with_compiler LABEL CC CXX DIRECTORY
with_compiler() {
	echo "== build, $1"
	if CC=$2 CXX=$3 build "$4" "${SANITIZERS[@]}"; then
		run_tests "$1" "$4"
	else
		result fail "$1/build" "the build failed"
	fi
}

# timed NAME COMMAND...: says how long it took.
timed() {
	local name=$1 started=$SECONDS
	shift
	"$@"
	echo "$name: $((SECONDS - started)) s"
}

# fuzz PROGRAM SECONDS: one fuzzer; its corpus starts from the seeds in the tree, if there are any.
fuzz() {
	local fuzzer=$1 seconds=$2 name=${1##*/} corpus seeds=()
	corpus=$work/corpus/$name
	mkdir -p "$corpus"
	[[ ! -d tests/fuzz/corpus/$name ]] || seeds=("tests/fuzz/corpus/$name")
	if "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
		-artifact_prefix="build-fuzz/$name-" "$corpus" "${seeds[@]}" >"$work/$name.log" 2>&1; then
		echo "ok   $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$name.log") runs"
		result pass "fuzz/$name" ""
	else
		echo "FAIL $name"
		tail -n 40 "$work/$name.log"
		result fail "fuzz/$name" "see build-fuzz/$name-*"
	fi
}

# As many at a time as there are processors.
run_fuzzers() {
	local seconds=${FUZZ_SECONDS:-60} fuzzer running=0
	echo "== fuzzers, $seconds s each, $(nproc) at a time"
	if ! CC=clang CXX=clang++ targets=fuzzers build build-fuzz "${SANITIZERS[@]}" -Dfuzz=true \
		-Dc_args=-fsanitize=fuzzer-no-link; then
		result fail fuzz/build "the build failed"
		return
	fi
	for fuzzer in build-fuzz/tests/fuzz/fuzz_*; do
		[[ -f $fuzzer && -x $fuzzer ]] || continue
		if [[ $running -eq $(nproc) ]]; then
			wait -n || true
			running=$((running - 1))
		fi
		fuzz "$fuzzer" "$seconds" &
		running=$((running + 1))
	done
	wait
}

# What the next two run on is made on the way, where that can be: as root, with Debian's packages within reach.
cache_options=()

# Unit tests of a build for arm64, in an emulator of single programs. Another machine than amd64 makes no cache.
run_arm64() {
	local status=0 said root sysroot
	echo "== build, arm64"
	bash tests/vm/cache.sh "${cache_options[@]}" 2>&1 | tee "$work/cache" || status=$?
	said=$(tail -n 1 "$work/cache")
	if [[ $status -eq 2 ]]; then
		echo "SKIPPED: the tests of a build for arm64: $said"
		result skip arm64 "$said"
		return
	fi
	root=$(sed -n 's/^root=//p' "$work/cache")
	sysroot=$(sed -n 's/^sysroot=//p' "$work/cache")
	if [[ $status -ne 0 ]]; then
		result fail arm64/cache "$said"
	elif build_arm64 build-arm64 "$sysroot"; then
		run_tests arm64 build-arm64 unit --wrapper "$(printf '%q ' "$root/lib64/ld-linux-x86-64.so.2" --library-path \
			"$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/qemu-aarch64" -L "$sysroot")"
	else
		result fail arm64/build "the build failed"
	fi
}

run_vm() {
	echo "== virtual machines"
	python3 tests/vm/run.py --results "$results" "${cache_options[@]}" || true
	grep -q $'\tvm' "$results" || result fail vm "there were no results"
}

run_service() {
	echo "== a real service manager"
	python3 tests/service/run.py --results "$results" "${cache_options[@]}" || true
	grep -q $'\tservice' "$results" || result fail service "there were no results"
}

run_mutants() {
	echo "== mutants"
	python3 tests/mutants/run.py --results "$results" || true
}

# fuse3: a user who is not root mounts through its fusermount3 (tests/system/stuck_fuse.py). mandoc judges manual pages.
packages=("${PACKAGES[@]}" g++ fuse3 mandoc)
[[ $what == tests ]] || packages+=(patch)
need_packages "$setup" "${packages[@]}"
if [[ $what == all ]]; then
	need_packages "$setup" clang llvm
	need_packages "$setup" "$(clang_runtime_package)"
fi

[[ $setup -eq 1 ]] || cache_options=(--no-setup)

case $what in
tests | all) timed "tests, gcc" with_compiler gcc gcc g++ build-test ;;
esac
if [[ $what == all ]]; then
	timed "tests, clang" with_compiler clang clang clang++ build-test-clang
	timed fuzzers run_fuzzers
fi
case $what in
arm64 | all) timed "tests, arm64" run_arm64 ;;
esac
case $what in
all) export SERVICE_KILLS=${SERVICE_KILLS:-100} ;;
esac
case $what in
service | all) timed "a real service manager" run_service ;;
esac
case $what in
vm | all) timed "virtual machines" run_vm ;;
esac
case $what in
mutants | all) timed mutants run_mutants ;;
esac

python3 tests/run.py --summary "$results"
