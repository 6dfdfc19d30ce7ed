"""What happens to frames on a cable: by the draw of a seeded generator, and over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections.abc import Iterator

import pytest

from labctl.machine.impairment import HELD, Direction, Impairment, impaired
from labctl.machine.wires import Cable, laid
from labctl.model import Link

MANY = 4000


def frames(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def through(direction: Direction, count: int, gap: float = 0.001) -> list[tuple[float, bytes]]:
    """Every frame that comes out, with the time at which it did; they go in at intervals."""
    came: list[tuple[float, bytes]] = []
    for number, frame in enumerate(frames(count)):
        direction.take(frame, number * gap)
        came += [(number * gap, out) for out in direction.due(number * gap)]
    end = count * gap
    while (due := direction.next_due) is not None:
        end = max(end, due)
        came += [(end, out) for out in direction.due(end)]
    return came


def within(found: int, share: float, of: int) -> bool:
    """Within four standard deviations of a binomial count."""
    return abs(found - share * of) <= 4 * math.sqrt(of * share * (1 - share))


def test_nothing_asked_for_changes_nothing() -> None:
    direction = Direction(Impairment(), 0)
    assert [frame for _, frame in through(direction, 100)] == frames(100)
    assert direction.counts.seen == 100


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_loss(share: float) -> None:
    direction = Direction(Impairment(loss=share, seed=7), 0)
    came = through(direction, MANY)
    assert len(came) == MANY - direction.counts.lost
    assert within(direction.counts.lost, share, MANY)


def test_delay_and_jitter_keep_the_order() -> None:
    came = through(Direction(Impairment(delay=0.02, jitter=0.005), 0), 1000)
    assert [frame for _, frame in came] == frames(1000)
    waits = [at - int.from_bytes(frame, "big") * 0.001 for at, frame in came]
    assert min(waits) >= 0.02 - 1e-9
    assert max(waits) <= 0.02 + 0.005 + 0.001 + 1e-9


def test_reordered_frames_are_overtaken_by_one() -> None:
    direction = Direction(Impairment(reorder=0.1, seed=3), 0)
    numbers = [int.from_bytes(frame, "big") for _, frame in through(direction, MANY)]
    assert sorted(numbers) == list(range(MANY))
    overtaken = sum(later < earlier for earlier, later in itertools.pairwise(numbers))
    assert abs(overtaken - direction.counts.held_back) <= 1
    assert within(direction.counts.held_back, 0.1 / 1.1, MANY)  # none is held back while another is


def test_a_frame_held_back_goes_though_none_follows() -> None:
    direction = Direction(Impairment(reorder=1.0), 0)
    direction.take(b"last", 1.0)
    assert list(direction.due(1.0)) == []
    assert direction.next_due == pytest.approx(1.0 + HELD)
    assert list(direction.due(1.0 + HELD)) == [b"last"]


def test_doubles() -> None:
    direction = Direction(Impairment(double=0.3), 0)
    came = through(direction, MANY)
    assert len(came) == MANY + direction.counts.doubled
    assert within(direction.counts.doubled, 0.3, MANY)


def test_a_seed_gives_the_same_fate_and_directions_differ() -> None:
    def fate(seed: int, number: int) -> list[bytes]:
        return [frame for _, frame in through(Direction(Impairment(loss=0.5, seed=seed), number), 200)]

    assert fate(1, 0) == fate(1, 0)
    assert fate(1, 0) != fate(2, 0)
    assert fate(1, 0) != fate(1, 1)


def test_what_cannot_wait_is_lost_and_counted() -> None:
    direction = Direction(Impairment(delay=60), 0)
    for frame in frames(5000):
        direction.take(frame, 0.0)
    assert direction.counts.overflown == 5000 - len(list(direction.due(61.0)))
    assert direction.counts.overflown > 0


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"reorder": -0.1}, {"double": math.nan}, {"delay": -1}, {"jitter": 61}])
def test_what_cannot_be_asked_for(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Impairment(**wrong)


@pytest.fixture
def cable() -> Iterator[tuple[Cable, socket.socket, socket.socket]]:
    """A cable, and two ends that listen as emulators do."""
    with laid([Link(between=("a.lan", "b.lan"))]) as (cable,), contextlib.ExitStack() as stack:
        ends = []
        for wire in cable.ends.values():
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            end.bind(str(wire.local))
            end.settimeout(10)
            ends.append(end)
        yield cable, ends[0], ends[1]


def test_a_cable_carries_both_ways_whatever_stands_in_it(cable: tuple[Cable, socket.socket, socket.socket]) -> None:
    wires, a, b = cable
    out = {name.partition(".")[0]: str(wire.out) for name, wire in wires.ends.items()}

    def crosses(frame: bytes) -> None:
        a.sendto(frame, out["a"])
        assert b.recv(100) == frame
        b.sendto(frame[::-1], out["b"])
        assert a.recv(100) == frame[::-1]

    crosses(b"direct")
    with impaired(wires, Impairment(delay=0.05)) as counts:
        began = time.monotonic()
        crosses(b"delayed")
        assert time.monotonic() - began >= 0.1
        assert {end: count.seen for end, count in counts.items()} == {"a.lan": 1, "b.lan": 1}
    crosses(b"direct again")
    assert {end: count.seen for end, count in counts.items()} == {"a.lan": 1, "b.lan": 1}


def test_all_is_lost_where_all_is_to_be_lost(cable: tuple[Cable, socket.socket, socket.socket]) -> None:
    wires, a, b = cable
    with impaired(wires, Impairment(loss=1.0)) as counts:
        for _ in range(5):
            a.sendto(b"x", str(wires.ends["a.lan"].out))
        end = time.monotonic() + 10
        while counts["a.lan"].lost < 5 and time.monotonic() < end:
            time.sleep(0.005)  # the relay is another thread
        assert counts["a.lan"].lost == 5
    b.setblocking(False)
    with pytest.raises(BlockingIOError):
        b.recv(10)


def test_a_machine_that_is_off_is_no_error(cable: tuple[Cable, socket.socket, socket.socket]) -> None:
    wires, a, b = cable
    wires.ends["b.lan"].local.unlink()
    b.close()
    with impaired(wires, Impairment()) as counts:
        a.sendto(b"x", str(wires.ends["a.lan"].out))
        end = time.monotonic() + 10
        while not counts["a.lan"].overflown and time.monotonic() < end:
            time.sleep(0.005)  # the relay is another thread
        assert counts["a.lan"].overflown == 1


def test_frames_wait_for_a_machine_that_takes_none_just_now(cable: tuple[Cable, socket.socket, socket.socket]) -> None:
    wires, a, b = cable
    with impaired(wires, Impairment()) as counts:
        for frame in frames(200):  # many more than the kernel keeps for a socket
            a.sendto(frame, str(wires.ends["a.lan"].out))
        assert [b.recv(10) for _ in range(200)] == frames(200)
        assert counts["a.lan"].overflown == 0
