"""How fast is the disk, by the kernel's own count? For kernels with a self-test ``iops`` that reports figures."""

import re

import pytest

from labctl.model import Channel, Direction, Metric, Outcome
from labctl.parsers.ktap import figures

IOPS = Metric("kernel.iops", "1/s", Direction.HIGHER, "requests of 4 KiB that the disk answered, by the kernel's clock")
PER_REQUEST = Metric("kernel.instructions_per_request", "1", Direction.LOWER, "what the kernel runs for a request of 4 KiB", Channel.ICOUNT)
REQUESTS = 2000
# The kernel says when it begins, and reports the figure as soon as it has it.
_MEASURED = re.compile(rb"# begin (\S+)\r?(\n) *(# bench) \1=\d+ IOPS")


@pytest.mark.benchmark
@pytest.mark.requires(disk="64M", channel="wall")
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


@pytest.mark.requires(disk="64M", channel="icount")
def test_instructions_per_request(target, selftests, record):
    """What the driver and the block layer cost, in two boots. It is not the disk's latency: that costs no instructions."""
    for _ in range(2):
        boot = target.boot(append=f"test=iops requests={REQUESTS}")
        report = selftests(boot)
        assert not [result for result in report.results if result.outcome is Outcome.FAIL]
        assert not report.problems, "; ".join(report.problems)
        said = target.transcript.read(boot.since)
        told = list(_MEASURED.finditer(said))
        figured = [figure.name for figure in figures(report) if figure.unit == "IOPS"]
        assert figured, "the kernel reported no figure"
        uncounted = sorted(set(figured) - {found[1].decode() for found in told})
        assert not uncounted, f"the kernel does not say where it begins with {', '.join(uncounted)}"
        for found in told:
            before, after = (target.instructions_at(boot.since + found.start(part)) for part in (2, 3))
            record(PER_REQUEST, (after - before) / REQUESTS, requests=found[1].decode())
