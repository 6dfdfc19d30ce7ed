"""What the tests of a disk share: which disk it is, and a job of fio's."""

import pytest
from storage_settings import SECONDS

from labctl.errors import MeasurementInvalid
from labctl.parsers import fio as report_of_fio


@pytest.fixture
def disk(target, shell):
    """The device file of the disk that the target's file describes: told by its size, to the byte, so that no other is written to."""
    lines = shell("cd /sys/block; for d in *; do echo $d $(cat $d/size); done").splitlines()
    sectors = {name: int(count) for name, count in map(str.split, lines)}
    found = [name for name, count in sectors.items() if count * 512 == target.config.disk and not name.startswith(("loop", "ram"))]
    assert len(found) == 1, f"one disk must be of {target.config.disk} bytes; the machine's disks, in sectors of 512: {sectors}"
    return f"/dev/{found[0]}"


@pytest.fixture
def tool(shell):
    """``tool("mkfs.xfs")``: skip where the machine does not have that program."""

    def need(*names):
        for name in names:
            if shell(f"command -v {name} || echo absent") == "absent":
                pytest.skip(f"{name} is not in the machine")

    return need


@pytest.fixture
def fio(tool, shell):
    """``fio(filename=..., rw="randread", ...)``: one job; returns what it measured. The options are fio's own."""
    tool("fio")

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
