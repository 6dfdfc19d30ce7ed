"""What a density runner says on the console (``guest/tools/density/density.c``) → lines, and what they come to. Pure.

The bytes are those of a machine under test: what contradicts itself is not believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from labctl.parsers.text import LINE_END

LIMITS = ("target", "start-failed", "start-late", "heartbeat-missed", "vm-died", "memory-reserve")
"""What can end it: enough VMs; one that could not be started, was not ready in time, did not beat in time, or died; little memory left."""
MOST = 4096
"""VMs that a runner starts at most."""

_SECONDS = rb"([0-9]{1,6}\.[0-9]{1,9})"
_BYTES = rb"([0-9]{1,18})"
_COUNT = rb"([0-9]{1,5})"
_WHY = rb'why="([ !#-~]{0,200})"'
_LINE = re.compile(
    rb"density: (?:"
    rb"begin runner=([a-z]{1,16}) vms=" + _COUNT + rb" memory=" + _BYTES
    + rb" beat=" + _SECONDS + rb" late=" + _SECONDS + rb" ready=" + _SECONDS + rb" reserve=" + _BYTES + rb" available=" + _BYTES
    + rb"|vm " + _COUNT + rb" start=" + _SECONDS
    + rb"|check " + _COUNT + rb" gap=" + _SECONDS + rb" pss=" + _BYTES + rb" available=" + _BYTES + rb" cpu=([01]\.[0-9]{1,9})"
    + rb"|end limit=([a-z-]{1,20}) healthy=" + _COUNT + rb" started=" + _COUNT + rb" seconds=" + _SECONDS + rb" " + _WHY
    + rb"|lost " + _WHY
    + rb")" + LINE_END
)  # fmt: skip


class Contradiction(ValueError):
    """What the runner says cannot be."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The run that is to come. Sizes in bytes, times in seconds."""

    last: ClassVar[bool] = False
    runner: str
    vms: int
    memory: int
    beat: float
    late: float
    ready: float
    reserve: int
    available: int
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Started:
    """A VM is ready."""

    last: ClassVar[bool] = False
    number: int
    seconds: float
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Check:
    """How it went while so many ran."""

    last: ClassVar[bool] = False
    vms: int
    gap: float
    """99th percentile, over the VMs, of each one's longest time between two beats since the check before; in seconds."""
    pss: int
    """Bytes of a VM's process, the mean of some; 0 where a VM is no process."""
    available: int
    """Bytes."""
    cpu: float
    """Share of the machine's CPUs that was not idle since the check before: 0 to 1."""
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class End:
    """How it ended."""

    last: ClassVar[bool] = True
    limit: str
    """One of `LIMITS`."""
    healthy: int
    started: int
    seconds: float
    why: str
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """The runner itself ended."""

    last: ClassVar[bool] = True
    why: str
    end: int = field(default=0, compare=False)


Line = Begin | Started | Check | End | Lost


def lines(data: bytes) -> list[Line]:
    """Those in what a console said, in their order; an unfinished line is none yet."""
    return [_line(found) for found in _LINE.finditer(data)]


def _line(found: re.Match[bytes]) -> Line:
    (runner, vms, memory, beat, late, ready, reserve, available, number, seconds, checked, gap, pss, left, cpu) = found.groups()[:15]
    limit, healthy, started, took, why, lost = found.groups()[15:]
    end = found.end()
    if runner is not None:
        times = float(beat), float(late), float(ready)
        return Begin(runner.decode(), int(vms), int(memory), *times, int(reserve), int(available), end)
    if number is not None:
        return Started(int(number), float(seconds), end)
    if checked is not None:
        return Check(int(checked), float(gap), int(pss), int(left), float(cpu), end)
    if limit is not None:
        return End(limit.decode(), int(healthy), int(started), float(took), why.decode(), end)
    return Lost(lost.decode(), end)


@dataclass
class Account:
    """What the lines come to so far: each is taken only if it goes with those before."""

    begin: Begin | None = None
    started: int = 0
    checked: int = 0
    """VMs at the last check."""

    def take(self, line: Line) -> None:
        """`Contradiction` for a line that cannot follow."""
        begin, started, checked = self.begin, self.started, self.checked
        match line:
            case Begin():
                wrong = begin is not None or not 1 <= line.vms <= MOST
                begin = line
            case _ if begin is None:
                raise Contradiction(f"the runner does not say how it begins: {line}")
            case Started():
                wrong = line.number != started + 1 or line.number > begin.vms
                started = line.number
            case Check():
                wrong = not checked <= line.vms <= started or line.cpu > 1
                checked = line.vms
            case End():
                wrong = line.limit not in LIMITS or not line.healthy <= line.started <= started
                wrong = wrong or (line.limit == "target" and not line.healthy == line.started == begin.vms)
            case Lost():
                wrong = False
        if wrong:
            raise Contradiction(f"the runner contradicts itself after {self.started} VMs: {line}")
        self.begin, self.started, self.checked = begin, started, checked
