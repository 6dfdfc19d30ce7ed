"""How long does a packet take, how much goes through, and is the network what it was set to? To the host, and between two machines."""

import pytest
from network_paths import require

from labctl.errors import CommandFailed
from labctl.model import Direction, Metric

RTT = Metric("network.rtt", "s", Direction.LOWER, "round trip of a UDP ping, as the machine sees it")
THROUGHPUT = Metric("network.throughput", "B/s", Direction.HIGHER, "of a TCP connection")
LOSS = Metric("network.loss", "1", Direction.LOWER, "share of pings that had no answer within a second")

PINGS = 3000
SECONDS = 2.0


@pytest.mark.benchmark
@pytest.mark.parametrize("size", [64, 1400])
def test_round_trip(path, size, record, record_histogram):
    """One ping after another."""
    path.ping(100, size=size)  # addresses are resolved, paths are warm
    found = path.ping(PINGS, size=size)
    record(LOSS, found.loss)
    if found.round_trips is not None:
        record_histogram(RTT, found.round_trips)
    require(path, found)
    assert not found.foreign
    assert not found.doubled


@pytest.mark.benchmark
@pytest.mark.parametrize("direction", ["send", "receive"])
def test_throughput(path, direction, record):
    """One connection, as the machine sees it."""
    found = path.rate(direction, SECONDS)
    if found.bytes:
        record(THROUGHPUT, found.rate)
    if found.end != "complete":
        raise CommandFailed(f"the transfer to {path.name} is {found.end} after {found.bytes} bytes", target=path.session.name)
