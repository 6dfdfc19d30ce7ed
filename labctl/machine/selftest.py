"""The tests that a kernel runs on itself, reported on its console in KTAP: they need no shell, only a console."""

from __future__ import annotations

from labctl.deadline import Deadline
from labctl.errors import BootFailed, TargetHung
from labctl.machine.boot import Boot, explain
from labctl.machine.session import POWER_DEADLINE, Session
from labctl.machine.transcript import ConsoleEnded
from labctl.parsers.ktap import Ktap, Report

REPORT_DEADLINE = 600.0
"""Seconds from a boot to the end of its report."""
_READ = 1 << 20


def read_report(session: Session, boot: Boot, deadline: Deadline | None = None) -> Report:
    """Until the report on the console of ``boot`` is complete or the machine has ended.

    KernelCrash, TargetHung (silence, deadline); BootFailed if it ended without a report. What a machine reports before its power goes is
    a report, if a cut off one.
    """
    limit = deadline or Deadline.after(REPORT_DEADLINE)
    transcript, silence = session.transcript, session.config.boot.silence
    reader, cursor = Ktap(), boot.since
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
    session.check_crash()
    if not reader.begun:
        raise BootFailed(
            f"no self-tests were reported: {transcript.ended}",
            target=session.name,
            tail=transcript.tail(10, boot.since),
            remedy="the command line must ask for them; a kernel without any has no place in this suite",
        )
    return reader.report()


def durations(session: Session, boot: Boot, report: Report) -> list[float]:
    """Seconds that each result of the report took: from the one before on the console, or from ``ready``, to its own line."""
    times = [session.transcript.time_of(boot.since + result.end - 1) for result in report.results]
    before = boot.t0_ns + round(boot.milestones["ready"] * 1e9)
    took = []
    for at in times:
        took.append(max(0, at - before) / 1e9)
        before = max(before, at)
    return took
