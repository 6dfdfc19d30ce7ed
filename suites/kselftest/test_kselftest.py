"""The kernel's own tests of what it offers to programs (tools/testing/selftests): each line of their reports is a test of the run."""

import pytest

PROGRAMS = [
    "clone3",  # processes made in every way that clone3() has, and must not have
    "close_range_test",  # many files closed at once
    "get_syscall_info",  # what a debugger sees of a system call
    "membarrier_test_single_thread",  # barriers over all CPUs
    "sas",  # signals on a stack of their own
    pytest.param("mremap_test", marks=pytest.mark.requires(memory="4G")),  # memory moved, up to 2 GiB of it
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_kselftest(ktap, program):
    """Passes, none that it planned is missing, and it ends as it says."""
    report = ktap(f"cd /tmp && {program}", deadline=120)
    assert not report.wrong, report.wrong
    if report.skipped:
        pytest.skip(report.skipped)
