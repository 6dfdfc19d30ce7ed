"""Follow what a program in the machine says on the console, line by line, until it ends, or until the machine does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, ConsoleLost, KernelCrash, LabctlError, TargetHung
from labctl.machine.boot import explain
from labctl.machine.selftest import banners
from labctl.machine.session import POWER_DEADLINE, Session
from labctl.machine.transcript import ConsoleEnded
from labctl.model import PowerState
from labctl.parsers.crash import PATTERNS

_LOOK = 1.0
"""Seconds of silence after which it is asked whether the machine is on: a console may outlive its machine."""
_LINE = 1 << 10
"""Bytes that are looked at again, for a line may come in parts."""


class Line(Protocol):
    """What a parser makes of one line."""

    @property
    def end(self) -> int:
        """Offset behind it, in the bytes that were parsed."""

    @property
    def last(self) -> bool:
        """Whether the program has ended with it."""


L = TypeVar("L", bound=Line)


def told(
    session: Session, since: int, patience: float, parse: Callable[[bytes], Sequence[L]], what: str, reached: Callable[[L | None], str]
) -> Iterator[L]:
    """Each line that is said from offset ``since`` of the transcript on, as it comes; the last one is `Line.last`.

    ``what`` is a line called ("heartbeat"); ``reached`` makes of the last one the end of an error's sentence: how far it had come.
    Raises what ended it: KernelCrash, CommandFailed where the machine went off or was reset, TargetHung where no line came for ``patience``
    seconds; the lab's own faults as they are.
    """
    transcript, power = session.transcript, session.machine.power
    anew = banners(session, session.boots[-1])
    start = heard = since
    limit = Deadline.after(patience)
    latest: L | None = None

    def ended(why: LabctlError) -> LabctlError:
        error = explain(transcript, since, why)
        if isinstance(error, KernelCrash):
            with suppress(KernelCrash):  # by this the session knows too: what comes next starts from a fresh boot
                session.check_crash()
        far = reached(latest)
        error.message, error.title = error.message + far, error.title + far
        return error

    while True:
        try:
            there = transcript.wait_beyond(heard, limit.sooner(_LOOK))
        except ConsoleEnded as over:
            if power.state(Deadline.after(POWER_DEADLINE)) is PowerState.ON:
                raise ended(ConsoleLost(f"the console ended: {over.reason}", target=session.name)) from None
            raise ended(CommandFailed(f"the machine went off: {over.reason}", target=session.name)) from None
        heard = transcript.size
        data = transcript.read(start, heard)
        taken = 0
        for line in parse(data):
            latest, taken, limit = line, line.end, Deadline.after(patience)
            yield line
            if line.last:
                return
        if any(literal in data and regex.search(data) for regex, literal in PATTERNS):
            error = ended(TargetHung("it crashed", target=session.name))
            if isinstance(error, KernelCrash):
                raise error
        if any(banner in data for banner in anew):
            raise ended(CommandFailed("the machine was reset: it says its banner again", target=session.name))
        if limit.expired or (not there and power.state(Deadline.after(POWER_DEADLINE)) is PowerState.OFF):
            why = f"no {what} for {patience:g} s" if limit.expired else "the machine went off"
            kind = TargetHung if limit.expired else CommandFailed
            raise ended(kind(why, target=session.name, tail=transcript.tail(10, since)))
        start = max(start + taken, heard - _LINE)
