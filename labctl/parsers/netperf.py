"""What the lab's network tools print (guest/tools/udpping.c, tcprate.c): counts, a histogram, and how it ended. Nothing of it is believed
that contradicts itself: it was said by a machine under test."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labctl.histogram import Histogram

_LINE = re.compile(r"([a-z]+) ([0-9]{1,19})")
_BIN = re.compile(r"bin ([0-9]{1,5}) ([0-9]{1,19})")
_MOST_LINES = 5000
_PINGS = ("sent", "received", "late", "doubled", "reordered", "refused", "foreign")


class Unreadable(ValueError):
    """This is not what the tool prints, or not all of it."""


@dataclass(frozen=True, slots=True)
class Pings:
    """What `udpping` counted. Of ``sent`` pings ``received`` were answered in time and ``late`` too late; the rest were not answered."""

    sent: int
    received: int
    late: int
    doubled: int
    """Answers to a ping that had one."""
    reordered: int
    """Answers that came after that of a later ping."""
    refused: int
    """The peer's system said that nobody listens there."""
    foreign: int
    """Packets that are no answers to these pings."""
    round_trips: Histogram | None
    """In seconds; None if no ping was answered in time."""
    end: str
    """``complete``, or ``silent``: the peer was given up."""

    @property
    def loss(self) -> float:
        """Share of the pings without an answer in time."""
        return 1 - self.received / self.sent if self.sent else 1.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What `tcprate` counted."""

    bytes: int
    seconds: float
    end: str
    """``complete``, ``refused``, ``silent`` or ``broken``."""

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


def pings(text: str) -> Pings:
    """Read what `udpping ping` printed. `Unreadable` says what is wrong with it."""
    values, bins, end = _read(text, "udpping", {"complete", "silent"})
    sent, received, late, doubled, reordered, refused, foreign = (_take(values, name) for name in _PINGS)
    if received + late > sent or sum(count for _, count in bins) != received:
        raise Unreadable(f"{received} answers in time and {late} late ones to {sent} pings, {sum(c for _, c in bins)} round trips")
    round_trips = None
    if received:
        least, most, total = (_take(values, name) for name in ("min", "max", "sum"))
        try:
            round_trips = Histogram(tuple(bins), least, most, total)
        except ValueError as error:
            raise Unreadable(str(error)) from None
    _nothing_else(values)
    return Pings(sent, received, late, doubled, reordered, refused, foreign, round_trips, end)


def transfer(text: str) -> Transfer:
    """Read what `tcprate send` or `receive` printed. `Unreadable` says what is wrong with it."""
    values, bins, end = _read(text, "tcprate", {"complete", "refused", "silent", "broken"})
    found = Transfer(_take(values, "bytes"), _take(values, "nanoseconds") / 1e9, end)
    if bins or (end == "complete" and found.seconds == 0):
        raise Unreadable("a transfer that took no time" if not bins else "a histogram of a transfer")
    _nothing_else(values)
    return found


def _read(text: str, tool: str, ends: set[str]) -> tuple[dict[str, int], list[tuple[int, int]], str]:
    """The numbers by name, the bins, and the end."""
    lines = text.strip().splitlines()
    if not lines or len(lines) > _MOST_LINES or lines[0].strip() != f"{tool} 1":
        raise Unreadable(f"does not begin with '{tool} 1': {_shown(lines[0]) if lines else 'nothing at all'}")
    word, _, end = lines[-1].strip().partition(" ")
    if word != "end" or end not in ends:
        raise Unreadable(f"is cut off: its last line is {_shown(lines[-1])}")
    values: dict[str, int] = {}
    bins: list[tuple[int, int]] = []
    for line in (line.strip() for line in lines[1:-1]):
        if found := _BIN.fullmatch(line):
            bins.append((int(found[1]), int(found[2])))
        elif (found := _LINE.fullmatch(line)) and found[1] not in values:
            values[found[1]] = int(found[2])
        else:
            raise Unreadable(f"has a line that {tool} does not print: {_shown(line)}")
    return values, bins, end


def _take(values: dict[str, int], name: str) -> int:
    if name not in values:
        raise Unreadable(f"does not say '{name}'")
    return values.pop(name)


def _nothing_else(values: dict[str, int]) -> None:
    if values:
        raise Unreadable(f"says {next(iter(values))!r}, which is unknown")


def _shown(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:59] + "…")
