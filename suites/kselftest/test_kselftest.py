"""The kernel's own tests of what it offers to programs (tools/testing/selftests): each line of their reports is a test of the run."""

import pytest

PROGRAMS = {
    "breakpoint_test": "x",
    "mincore_selftest": "y",
    "clone3": "processes made in every way that clone3() has, and must not have",
    "close_range_test": "many files closed at once",
    "get_syscall_info": "what a debugger sees of a system call",
    "membarrier_test_single_thread": "barriers over all threads",
    "mremap_test": "memory moved to where nothing, or something, is",
    "sas": "signals on a stack of their own",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_kselftest(shell, ktap, program):
    """Passes, none that it planned is missing, and it ends as it says."""
    if shell.run(f"[ -x /usr/bin/{program} ]", check=False).status:
        pytest.skip(f"/usr/bin/{program} is not in the machine")
    report = ktap(f"cd /tmp && {program}", deadline=120)
    assert not report.wrong, report.wrong
    if report.skipped:
        pytest.skip(report.skipped)
