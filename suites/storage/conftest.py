"""What the tests of a disk's speed share: a job of fio's."""

import os
import re

import pytest
from storage_settings import SECONDS

from labctl.errors import MeasurementInvalid, TargetFailure
from labctl.parsers import fio as report_of_fio

# Linux waits half a minute for it, and asks again. On a host that is busy it happens now and then, in a machine that QEMU emulates.
LOST_BY_QEMU = re.compile(rb"nvme nvme\d+: I/O \d+ [^\r\n]{0,40}timeout, (aborting|completion polled|reset controller|disable controller)")


@pytest.fixture
def fio(target, needs, shell):
    """``fio(filename=..., rw="randread", ...)``: one job; returns what it measured. The options are fio's own."""
    needs("fio")

    def run(seconds=SECONDS, **options):
        since = target.transcript.size
        try:
            done = job(seconds, options)
        except TargetFailure:
            require_answers(since)
            raise
        require_answers(since)
        return done

    def require_answers(since):
        lost = LOST_BY_QEMU.search(target.transcript.read(since)) if "qemu" in target.config.drivers else None
        if lost:
            why = f"QEMU's NVMe controller did not answer a request ({lost[0].decode()}): no fault of the build, and no figure of it"
            raise MeasurementInvalid(why)

    def job(seconds, options):
        words = {"name": "cell", "ioengine": "io_uring", "direct": 1, "time_based": 1, "runtime": seconds} | options
        line = " ".join(f"--{name}={value}" for name, value in words.items())
        # Latencies from submission to completion; no line of progress. The report goes to a file, so that no warning is mixed with it.
        how = "--lat_percentiles=1 --clat_percentiles=0 --eta=never --output-format=json+ --output=/tmp/fio.json"
        shell.run(f"rm -f /tmp/fio.json; fio {line} {how}", deadline=30 + 10 * seconds)
        report = report_of_fio.parse(shell("cat /tmp/fio.json"))
        if report.signal:
            raise MeasurementInvalid(f"fio was ended by signal {report.signal}")
        (done,) = report.jobs
        if done.error:
            raise MeasurementInvalid(f"fio's job ended with an error: {os.strerror(done.error)}")
        return done

    return run
