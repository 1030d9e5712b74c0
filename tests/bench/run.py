#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs the benchmarks of a build directory against a daemon and a reference GPU of its own, and prints their figures.

    run.py BUILD [--json] [--only NAME]     what run.sh calls once it has built
    run.py BUILD --growth DIRECTORY         writes growth.svg and the table of growth.md there
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "system"), str(HERE)]
import growth_svg  # noqa: E402
import harness  # noqa: E402
import supervised  # noqa: E402

MANY = 1 << 50
LIMITS = {"contexts": 4096, "buffers": 4096, "mappings": MANY, "bytes": MANY, "huge": MANY, "tables": MANY,
          "jobs": 4096, "rate": MANY}
CONFIG = {"limits": {"total_bytes": MANY, "connection": LIMITS, "uid": {"connections": 64, **LIMITS}}}


def figures(text):
    for line in text.splitlines():
        name, value, unit, limit, ratio = line.split("\t")
        yield {"name": name, "value": float(value), "unit": unit, "limit": float(limit), "ratio": float(ratio)}


def run(build, name, *args, slots=None, cpu=None, stack_of=harness.Stack):
    """A benchmark with a stack of its own; slots None: it needs none. cpu: all on that one."""
    command = [str(build / "tests/bench" / name), *args]
    if slots is None:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    with stack_of([{"slots": slots, "table_pages": 1 << 20}], CONFIG) as stack:
        if cpu is not None:
            for process in (stack.daemon, stack.gpus[0]):
                for task in os.listdir(f"/proc/{process.pid}/task"):
                    os.sched_setaffinity(int(task), {cpu})
        wait = [sys.executable, "-c", AWAIT, str(HERE.parent / "system"), stack.socket]
        subprocess.run(wait, check=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PASIDD_SOCKET": stack.socket},
                              preexec_fn=(lambda: os.sched_setaffinity(0, {cpu})) if cpu is not None else None).stdout


# The device is opened in the background: waited for in a process that then goes, so that no second client is about.
AWAIT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pasid_client import Client
with Client(sys.argv[2]) as c:
    end = time.monotonic() + 10
    while not all(present for _, _, present in c.devices()):
        if time.monotonic() > end:
            sys.exit("the device is not there")
        time.sleep(0.01)
"""


def benches(build):
    cpu = min(os.sched_getaffinity(0))
    yield "pgtable", lambda: run(build, "bench_pgtable")
    yield "store", lambda: run(build, "bench_store")
    yield "calls", lambda: run(build, "bench_calls", slots=8)
    yield "calls-one-cpu", lambda: run(build, "bench_calls", "-one-cpu", slots=8, cpu=cpu)
    yield "calls-kept", lambda: run(build, "bench_calls", "-kept", slots=8, cpu=cpu, stack_of=supervised.Stack)
    yield "work", lambda: run(build, "bench_work", slots=8)
    yield "switch", lambda: run(build, "bench_work", "switch", slots=1)


def print_table(rows):
    print(f"{'':44} {'measured':>10} {'limit':>10} {'ratio':>7}")
    for r in rows:
        print(f"{r['name']:44} {r['value']:10.2f} {r['limit']:10.2f} {r['ratio']:7.2f}  {r['unit']}", flush=True)


def grow(build, directory):
    rows = [[float(v) for v in line.split("\t")] for line in run(build, "growth", slots=8).splitlines()]
    (directory / "growth.svg").write_text(growth_svg.picture(rows), encoding="utf-8")
    growth_svg.write_table(directory / "growth.md", rows)
    print(growth_svg.table(rows))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--growth", type=Path)
    args = parser.parse_args()
    build = args.build.resolve()
    os.environ.update(PASIDD=str(build / "daemon/pasidd"), PASID_REFGPU=str(build / "tests/refgpu/pasid-refgpu"))
    if args.growth:
        grow(build, args.growth)
        return
    rows = []
    for name, bench in benches(build):
        if args.only in (None, name):
            rows += figures(bench())
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
