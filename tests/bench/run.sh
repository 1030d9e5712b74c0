#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Builds a release build of its own (asserts stay on) in build-bench and runs the benchmarks. docs/performance.md says
# what they measure.
#
#   tests/bench/run.sh                 a table: each figure beside its limit, measured in the same rounds
#   tests/bench/run.sh --json          the same as an array of {name, value, unit, limit, ratio}
#   tests/bench/run.sh --only NAME     one of pgtable, store, calls, calls-one-cpu, calls-kept, work, switch
#   tests/bench/run.sh --growth docs   a million mappings: writes growth.svg and the table of growth.md there
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
case ${1-} in
-h | --help)
	sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
	exit 0
	;;
esac
source "$top/tests/lib.sh"
(cd "$top" && build build-bench -Dbuildtype=release -Db_ndebug=false -Dwerror=false) || die "the build failed"
exec python3 "$top/tests/bench/run.py" "$top/build-bench" "$@"
