"""The tests that a kernel runs on itself, reported on its console in KTAP: they need no shell, only a console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from labctl.deadline import Deadline
from labctl.errors import BootFailed, ConsoleLost, TargetFailure, TargetHung
from labctl.machine.boot import Boot, explain
from labctl.machine.protocols import Ends
from labctl.machine.session import POWER_DEADLINE, Session
from labctl.machine.transcript import ConsoleEnded, Transcript
from labctl.model import Milestone, PowerState
from labctl.parsers.ktap import Ktap, Report

REPORT_DEADLINE = 600.0
"""Seconds from a boot to the end of its report."""
END_GRACE = 2.0
"""Seconds after a report in which what the machine does still counts, on a target that does not say that it ends."""
_LOOK = 1.0
"""Seconds of silence after which a machine whose console outlives it is asked whether it is on."""
_READ = 1 << 20
_BANNER_WIDTH = 200


def read_report(session: Session, boot: Boot, *, take: Callable[[Report, list[float]], None], deadline: Deadline | None = None) -> Report:
    """Until the report on the console of ``boot`` is complete and the machine has ended by itself, or is known not to do so.

    How it ends belongs to what it reports: `Report.problems` names an end that says failure, a reset, one that does not come though the
    target promises it (``boot.end``), and what the report itself should not have gone on to say.

    KernelCrash, TargetHung (silence, deadline); BootFailed if it ended without a report. What a machine reports before its power goes is
    a report, if a cut off one.

    ``take`` gets the report and the seconds that each result took, also before whatever ended the machine is raised: then it is what came
    until then.
    """
    reader = Ktap()
    try:
        report = _read(session, boot, reader, deadline or Deadline.after(REPORT_DEADLINE))
    except (TargetFailure, ConsoleLost):
        until_then = reader.report()
        if until_then.results:
            take(until_then, _durations(session, boot, until_then))
        raise
    take(report, _durations(session, boot, report))
    return report


def _read(session: Session, boot: Boot, reader: Ktap, limit: Deadline) -> Report:
    transcript, silence = session.transcript, session.config.boot.silence
    cursor = boot.since
    while not reader.done:
        try:
            there = transcript.wait_beyond(cursor, limit.sooner(silence))
        except ConsoleEnded:
            session.machine.power.state(Deadline.after(POWER_DEADLINE))  # raises where the lab is at fault
            break
        if not there:
            where = f"after {reader.last}" if reader.last else "before the first test"
            why = f"no end after {limit.seconds:g} s" if limit.expired else f"silent for {silence:g} s"
            hung = TargetHung(f"self-tests: {why}, {where}", target=session.name, tail=transcript.tail(10, boot.since))
            raise explain(transcript, boot.since, hung)
        data = transcript.read(cursor, cursor + _READ)
        reader.feed(data)
        cursor += len(data)
    wrong = _watch_the_end(session, boot, reader, cursor) if reader.done else []
    session.check_crash()
    if not reader.begun:
        raise BootFailed(
            f"no self-tests were reported: {transcript.ended}",
            target=session.name,
            tail=transcript.tail(10, boot.since),
            remedy="the command line must ask for them; a kernel without any has no place in this suite",
        )
    report = reader.report()
    return replace(report, problems=(*report.problems, *wrong))


def _watch_the_end(session: Session, boot: Boot, reader: Ktap, cursor: int) -> list[str]:
    """From the end of the report to that of the machine: what is wrong with it."""
    transcript, power, promised = session.transcript, session.machine.power, session.config.boot.end
    limit = Deadline.after(END_GRACE if promised is None else promised)
    starts, searched = banners(session, boot), boot.offsets.get(Milestone.READY, cursor)
    while True:
        if any(banner in transcript.read(searched, cursor) for banner in starts):
            return ["the machine was reset after the report: it says its banner again"]
        searched = max(searched, cursor - _BANNER_WIDTH)
        try:
            there = transcript.wait_beyond(cursor, limit.sooner(_LOOK))
        except ConsoleEnded:
            break
        if there:
            data = transcript.read(cursor, cursor + _READ)
            reader.feed(data)
            cursor += len(data)
        elif power.state(Deadline.after(POWER_DEADLINE)) is PowerState.OFF:
            break
        if limit.expired:
            return [] if promised is None else [f"the machine did not end within {promised:g} s of its report"]
    power.state(Deadline.after(POWER_DEADLINE))  # raises where the lab is at fault
    bad = power.ended_badly() if isinstance(power, Ends) else ""
    return [f"all was reported, but {bad}"] if bad else []


def banners(session: Session, boot: Boot) -> list[bytes]:
    """The lines of a boot that no boot says twice."""
    starts = [boot.offsets[name] for name in (Milestone.FIRMWARE, Milestone.KERNEL_ENTRY) if name in boot.offsets]
    lines = [session.transcript.read(at, at + _BANNER_WIDTH).partition(b"\n")[0].rstrip() for at in starts]
    return [line for line in lines if line]


def _durations(session: Session, boot: Boot, report: Report) -> list[float]:
    """Seconds that each result of the report took: from the one before on the console, or from ``ready``, to its own line."""
    return spans(session.transcript, boot.since, boot.t0_ns + round(boot.milestones["ready"] * 1e9), report)


def spans(transcript: Transcript, since: int, began_ns: int, report: Report) -> list[float]:
    """Seconds from ``began_ns`` (monotonic) to the first result of a report that was read from offset ``since`` on, and from each to the
    next."""
    took = []
    for at in [transcript.time_of(since + result.end - 1) for result in report.results]:
        took.append(max(0, at - began_ns) / 1e9)
        began_ns = max(began_ns, at)
    return took
