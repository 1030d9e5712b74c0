# SPDX-License-Identifier: MIT
"""What stands at the end of a run of the tests in virtual machines: versions, times, figures."""


def show_versions(qemu, ran):
    releases = {case.kernel: machine.release for case, machine, _ in ran if machine.release}
    kernels = ", ".join(f"{release} ({kernel})" for kernel, release in sorted(releases.items()))
    print(f"QEMU {qemu}; Linux {kernels or 'did not come up'}")


def show_times(ran):
    print("from the start of QEMU to the verdict:")
    for case, machine, outcome in ran:
        verdict = f"{outcome.seconds:6.1f} s" if machine.verdict_at else "    none"
        print(f"  {case.name:22} {case.kernel:8} {verdict}")
    print(f"  {'all':31} {sum(outcome.seconds for *_, outcome in ran):6.1f} s")


def show_figures(ran):
    """As tests/bench/run.py has them. Each stands beside its limit: the least that does the same."""
    measured = [(case, machine.figures) for case, machine, _ in ran if machine.figures]
    if measured:
        print(f"  {'':30} {'measured':>10} {'limit':>10} {'ratio':>7}")
    for case, figures in measured:
        print(f"{case.name}:")
        for name, value, unit, limit, ratio in figures:
            print(f"  {name:30} {value:>10} {limit:>10} {ratio:>7}  {unit}")


def show(qemu, ran):
    """ran: cases, each with its machine and its outcome."""
    print("== report")
    show_versions(qemu, ran)
    show_times(ran)
    show_figures(ran)
