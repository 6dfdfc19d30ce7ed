"""How fast is the disk, by the kernel's own count? For kernels with a self-test ``iops`` that reports figures."""

import pytest

from labctl.model import Direction, Metric, Outcome
from labctl.parsers.ktap import figures

IOPS = Metric("kernel.iops", "1/s", Direction.HIGHER, "requests of 4 KiB that the disk answered, by the kernel's clock")


@pytest.mark.benchmark
@pytest.mark.requires(disk="64M")
def test_iops(target, selftests, record):
    """Read and write, random and sequential, 1 and 32 requests at a time."""
    report = selftests(target.boot(append="test=iops"))
    failed = [f"{result.name}: {result.reason}" for result in report.results if result.outcome is Outcome.FAIL]
    assert not failed, "; ".join(failed)
    assert not report.problems, "; ".join(report.problems)
    told = [figure for figure in figures(report) if figure.unit == "IOPS"]
    assert told, "the kernel reported no figure"
    for figure in told:
        record(IOPS, figure.value, requests=figure.name)
