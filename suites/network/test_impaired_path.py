"""Loss, delay and reordering between two machines: what is put on the path is what a machine measures, within statistics."""

import math

import pytest
from network_paths import require

from labctl.machine.impairment import Impairment

PINGS = 1500
INTERVAL_US = 2000
OTHERS = 6
"""Frames that are no pings (ARP), at most, while a path is impaired."""


@pytest.fixture
def impaired(machines, guest_path):
    """``with impaired(loss=0.1) as counts``: on the cable between the two."""
    if not machines.emulated:
        pytest.skip("needs emulated machines: nobody stands in the way of a real cable")
    guest_path.ping(20)
    return lambda **how: machines.impaired(Impairment(**how))


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_loss(impaired, guest_path, share):
    """Each direction loses its share: of the round trips 1 - (1 - share)² are lost."""
    with impaired(loss=share, seed=11) as counts:
        found = guest_path.ping(PINGS, interval_us=INTERVAL_US)
        lost = sum(count.lost + count.overflown for count in counts.values())
    expected = 1 - (1 - share) ** 2
    deviation = math.sqrt(expected * (1 - expected) / PINGS)
    assert abs(found.loss - expected) <= 4 * deviation, f"{found.loss:.4f} lost, {expected:.4f} were to be"
    assert abs(found.sent - found.received - lost) <= OTHERS, f"{found.sent - found.received} without an answer, {lost} frames taken out"
    assert guest_path.ping(200).loss == 0


def test_delay(impaired, guest_path):
    """20 ms each way."""
    plain = guest_path.ping(100).round_trips
    with impaired(delay=0.02):
        found = guest_path.ping(100, interval_us=20_000)
    require(guest_path, found)
    assert found.round_trips.low >= 0.04
    assert found.round_trips.quantile(0.5) <= 0.04 + 4 * plain.quantile(0.99) + 0.01
    assert found.loss == 0


def test_reordering(impaired, guest_path):
    """One in ten is overtaken, on the way there or back; nothing is lost. Both at once may put two in order again."""
    with impaired(reorder=0.1, seed=5) as counts:
        found = guest_path.ping(PINGS, interval_us=INTERVAL_US, timeout_ms=2000)
        held = sum(count.held_back for count in counts.values())
    assert held > PINGS * 0.1
    assert 0.7 * held <= found.reordered <= held + OTHERS
    assert found.loss == 0


def test_doubles(impaired, guest_path):
    """One in ten comes twice; a doubled ping has two answers."""
    with impaired(double=0.1, seed=5) as counts:
        found = guest_path.ping(PINGS, interval_us=INTERVAL_US)
        doubled = sum(count.doubled for count in counts.values())
    assert 0.8 * doubled - OTHERS <= found.doubled <= 1.3 * doubled
    assert found.loss == 0
