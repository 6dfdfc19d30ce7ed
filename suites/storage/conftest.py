"""What the tests of a disk's speed share: a job of fio's."""

import pytest
from storage_settings import SECONDS

from labctl.errors import MeasurementInvalid
from labctl.parsers import fio as report_of_fio


@pytest.fixture
def fio(needs, shell):
    """``fio(filename=..., rw="randread", ...)``: one job; returns what it measured. The options are fio's own."""
    needs("fio")

    def run(seconds=SECONDS, **options):
        words = {"name": "cell", "ioengine": "io_uring", "direct": 1, "time_based": 1, "runtime": seconds} | options
        job = " ".join(f"--{name}={value}" for name, value in words.items())
        # Latencies from submission to completion; no line of progress. The report goes to a file, so that no warning is mixed with it.
        how = "--lat_percentiles=1 --clat_percentiles=0 --eta=never --output-format=json+ --output=/tmp/fio.json"
        shell.run(f"rm -f /tmp/fio.json; fio {job} {how}", deadline=30 + 10 * seconds)
        report = report_of_fio.parse(shell("cat /tmp/fio.json"))
        if report.signal:
            raise MeasurementInvalid(f"fio was ended by signal {report.signal}")
        return report.jobs[0]

    return run
