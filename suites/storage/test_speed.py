"""How many requests a second does the disk take, how much does it move, how long does each wait?"""

import pytest

from labctl.model import Channel, Direction, Metric

# In virtual time, where an instruction lasts as long as every other, a second is none of the wall's: each channel has its own figures.
METRICS = {
    channel: (
        Metric("storage.iops", "1/s", Direction.HIGHER, "requests that the disk answered", channel),
        Metric("storage.bandwidth", "B/s", Direction.HIGHER, "bytes read or written", channel),
        Metric("storage.latency", "s", Direction.LOWER, "from a request's submission to its completion", channel),
    )
    for channel in Channel
}


@pytest.mark.benchmark
@pytest.mark.requires(tags=["scratch-disk", "speed"])
@pytest.mark.parametrize("qd", [1, 8, 32])
@pytest.mark.parametrize("pattern", ["read", "write", "rw", "randread", "randwrite", "randrw"])
def test_speed(cell, disk, fio, record, record_histogram, pattern, qd):
    """4 KiB at a time: sequential and random (rand...), read, write and both (rw), with 1, 8 and 32 requests on their way."""
    job = fio(filename=disk, rw=pattern, bs="4k", iodepth=qd)
    iops, bandwidth, latency = METRICS[cell.channel]
    assert job.requests, "fio counted no request"
    for verb, requests in job.requests.items():
        what = {"bs": "4k", "pattern": pattern if len(job.requests) == 1 else f"{pattern}:{verb}"}
        record(iops, requests.iops, **what)
        record(bandwidth, requests.bandwidth, **what)
        record_histogram(latency, requests.latency.histogram, **what)
