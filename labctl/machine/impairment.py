"""Loss, delay, reordering and doubles on a cable between emulated machines, by a relay in its way: frames are datagrams of the host.

What happens to a frame is drawn from a seeded generator for each direction. Every frame is drawn for, so that a seed gives the same fate
to the n-th frame of a direction in each run; which frame that is (an ARP request, a ping) is up to the machines.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from labctl.machine.wires import Cable

_MOST_FRAME = 70_000
"""Bytes; QEMU gives whole TCP segments of up to 64 KiB to a back end that takes them."""
_PAUSE_S = 0.0005
"""Until a machine that took no more is tried again."""
_MOST_WAITING = 4096
"""Frames that are on their way in one direction: what comes then is lost, as in a full queue."""


@dataclass(frozen=True)
class Impairment:
    """Of each direction of a cable. Shares are from 0 to 1, times in seconds."""

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    """Up to so much is added to the delay, evenly distributed. Frames keep their order all the same."""
    reorder: float = 0.0
    """This share of the frames is held back until the next one has gone, or for `HELD` seconds."""
    double: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "double"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, found {getattr(self, name)}")
        for name in ("delay", "jitter"):
            if not 0 <= getattr(self, name) <= 60:
                raise ValueError(f"{name} is in seconds, from 0 to 60, found {getattr(self, name)}")


HELD = 0.05
"""Seconds after which a frame that was held back goes, though none came after it."""


@dataclass
class Counts:
    """What one direction has done to how many frames."""

    seen: int = 0
    lost: int = 0
    held_back: int = 0
    doubled: int = 0
    overflown: int = 0
    """Lost too, because more than could wait were on their way, or the machine was off."""


@dataclass
class Direction:
    """One way through the relay. Pure but for the generator: frames in, frames with the time at which they are due out."""

    impairment: Impairment
    number: int
    """0 or 1: the two directions of a cable draw apart."""
    counts: Counts = field(default_factory=Counts)
    _waiting: list[tuple[float, int, bytes]] = field(default_factory=list)
    _held: tuple[float, bytes] | None = None
    """When it goes at the latest, and the frame."""
    _last_due: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.impairment.seed}/{self.number}")  # noqa: S311  # repeatable, not secret
        self._order = itertools.count()

    def take(self, frame: bytes, now: float) -> None:
        """A frame has come."""
        wanted, counts = self.impairment, self.counts
        lost, held, doubled, extra = (self._random.random() for _ in range(4))
        counts.seen += 1
        if lost < wanted.loss:
            counts.lost += 1
            return
        if len(self._waiting) >= _MOST_WAITING:
            counts.overflown += 1
            return
        due = self._last_due = max(self._last_due, now + wanted.delay + extra * wanted.jitter)
        if held < wanted.reorder and self._held is None:
            counts.held_back += 1
            self._held = (due + HELD, frame)
            return
        self._send(due, frame)
        if doubled < wanted.double:
            counts.doubled += 1
            self._send(due, frame)
        if self._held is not None:
            self._send(due, self._held[1])
            self._held = None

    def due(self, now: float) -> Iterator[bytes]:
        """The frames that go now. One is still here until the next is asked for: who cannot take it may have it again later."""
        if self._held is not None and self._held[0] <= now:
            self._send(*self._held)
            self._held = None
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting[0][2]
            heapq.heappop(self._waiting)

    @property
    def next_due(self) -> float | None:
        """When the next frame goes, unless another comes before."""
        times = [self._waiting[0][0]] if self._waiting else []
        return min([*times, self._held[0]] if self._held is not None else times, default=None)

    def _send(self, due: float, frame: bytes) -> None:
        heapq.heappush(self._waiting, (due, next(self._order), frame))


@contextmanager
def impaired(cable: Cable, impairment: Impairment) -> Iterator[dict[str, Counts]]:
    """Stand in the way of a cable for this block. Gives the counts of what each end sent, by MACHINE.CARD; they grow as frames pass."""
    with ExitStack() as stack:
        ways: list[_Way] = []
        for number, (end, wire) in enumerate(cable.ends.items()):
            path = wire.out.with_suffix(".way")
            way = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            way.bind(str(path))
            stack.callback(path.unlink, missing_ok=True)
            other = next(w for name, w in cable.ends.items() if name != end)
            ways.append(_Way(way, other.local, Direction(impairment, number)))
        wake_up, woken = os.pipe()
        stack.callback(os.close, wake_up)
        stack.callback(os.close, woken)
        relay = threading.Thread(target=_relay, args=(ways, wake_up), name="impairment", daemon=True)
        relay.start()
        stack.callback(relay.join)
        stack.callback(os.write, woken, b"x")
        for end, way_in in zip(cable.ends, ways, strict=True):
            stack.callback(cable.lead, end, None)
            cable.lead(end, Path(way_in.socket.getsockname()))
        yield dict(zip(cable.ends, (way_in.direction.counts for way_in in ways), strict=True))


@dataclass
class _Way:
    """What one machine sends: where it arrives here, and where it goes on to."""

    socket: socket.socket
    to: Path
    direction: Direction

    def receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.direction.take(self.socket.recv(_MOST_FRAME), time.monotonic())

    def send(self) -> bool:
        """Whether all that is due has gone: the machine may have to take what it has got first."""
        for frame in self.direction.due(time.monotonic()):
            try:
                self.socket.sendto(frame, str(self.to))
            except BlockingIOError:
                return False
            except OSError:  # the machine is off
                self.direction.counts.overflown += 1
        return True


def _relay(ways: Sequence[_Way], stop: int, clock: Callable[[], float] = time.monotonic) -> None:
    """Pass frames on until something can be read from ``stop``."""
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        for way in ways:
            selector.register(way.socket, selectors.EVENT_READ, way)
        all_gone = True
        while True:
            times = [at for way in ways if (at := way.direction.next_due) is not None]
            timeout = max(0.0 if all_gone else _PAUSE_S, min(times) - clock()) if times else None
            for key, _ in selector.select(timeout):
                if key.data is None:
                    return
                key.data.receive()
            gone = [way.send() for way in ways]  # each of them, whatever the other says
            all_gone = all(gone)
