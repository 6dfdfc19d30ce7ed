"""A program in the machine that reports its own tests: kselftests and others in KTAP, those of the Linux Test Project in their own words.

What it prints is taken from the shell, whole and without anybody else's words, and is on the console besides: where the machine dies under
it, what was reported until then is there.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from labctl.errors import ConsoleLost, LabctlError, TargetFailure
from labctl.machine.selftest import spans
from labctl.machine.session import Session
from labctl.machine.unended import SAID_NOTHING
from labctl.model import Outcome
from labctl.parsers import ktap, ltp
from labctl.parsers.crash import STAMP
from labctl.parsers.ktap import Report
from labctl.parsers.text import last_lines

PROGRAM_DEADLINE = 300.0
"""Seconds for one program, unless the caller says otherwise."""
MOST_OUTPUT = 4 << 20
"""Bytes of what it prints that are read. Then its output is closed: a flood ends it."""

_STATUS = re.compile(rb"\n# exit status ([0-9]{1,3})\s*\Z")
_KERNEL_MESSAGE = re.compile(STAMP + rb"[^\n]*\n")


@dataclass(frozen=True)
class Language:
    """How a kind of program says what became of its tests."""

    parse: Callable[[bytes, int | None], Report]
    """Of what it printed, and its exit status where that is known."""
    skipped: int
    """The exit status that means that nothing could be tested."""
    words: Callable[[int], str] = lambda status: ""
    """What another exit status means."""


def _parse_ktap(data: bytes, _status: int | None) -> Report:
    return ktap.parse(data, alone=True)


KTAP = Language(_parse_ktap, 4)
LTP = Language(ltp.parse, 32, ltp.words)


def run_program(
    session: Session, command: str, *, language: Language, take: Callable[[Report, list[float]], None], deadline: float = PROGRAM_DEADLINE
) -> Report:
    """Run ``command`` in the booted machine, and read what it reports. An exit status that does not fit the report is one of its problems.

    ``take`` gets the report and the seconds that each result took, also before whatever ended the machine or the command is raised: then it
    is what came until then. KernelCrash, TargetHung, CommandFailed; the lab's own faults.
    """
    session.ready()
    since, began_ns = session.transcript.size, time.monotonic_ns()
    try:
        ended = session.run(_echoed(command), deadline=deadline, check=False)
    except (TargetFailure, ConsoleLost) as error:
        until_then = _KERNEL_MESSAGE.sub(b"", session.transcript.read(since))
        _in_words_of(error, command, last_lines(until_then, 1))
        partial_report = language.parse(until_then, None)
        if partial_report.results:
            take(partial_report, _times(session, since, began_ns, language, partial_report))
        raise
    told = ended.output.encode()
    ending = _STATUS.search(told)
    status = int(ending[1]) if ending else None
    said = told[: ending.start() + 1] if ending else told
    report = language.parse(said, status)
    flooded = ended.status == 0 and len(told) > MOST_OUTPUT // 2  # `head` has read what it may, and closed
    if not ending and not flooded:  # that shell is dead too: the console may have been told more
        shown = language.parse(_KERNEL_MESSAGE.sub(b"", session.transcript.read(since)), None)
        report = shown if len(shown.results) > len(report.results) else report
    why = _odd_ending(status, report, language) if status is not None else _no_ending(ended.status, flooded)
    instead = "" if report.results or report.bail else _instead_of_results(said)
    report = replace(report, problems=(*report.problems, *(each for each in (why, instead) if each)))
    take(report, _times(session, since, began_ns, language, report, status))
    return report


def _echoed(command: str) -> str:
    # The console may be nobody's to write to: then the report is lost with the machine, and no more.
    # A shell of its own: what kills that (`kill $$`) leaves the one that tells how it ended.
    own = f"sh -c {shlex.quote(command)}"
    return f"{{ {own} 2>&1; printf '\\n# exit status %s\\n' $?; }} | tee /dev/console 2>/dev/null | head -c {MOST_OUTPUT}"


def _in_words_of(error: LabctlError, command: str, last: str) -> None:
    """An error about the command that was given, and not what it is wrapped in; ``last`` is what it said last on the console: what counts
    its output here keeps it back until it is much."""
    words = {repr(wrapped): repr(command[:200]) for wrapped in (_echoed(command)[:200], f"{_echoed(command)[:199]}…")}
    if last:
        words[SAID_NOTHING] = f"it last said {last[:200]!r}"
    for said, instead in words.items():
        error.message, error.title = error.message.replace(said, instead), error.title.replace(said, instead)


def _instead_of_results(said: bytes) -> str:
    """A shell that does not find the program, or a program that dies, has said why."""
    last = last_lines(said, 1)
    return f"it last said {last[:200].rstrip()!r}" if last.strip() else SAID_NOTHING


def _no_ending(status: int, flooded: bool) -> str:
    if flooded:
        return f"it says more than {MOST_OUTPUT >> 20} MiB: the rest is not read"
    return f"the shell that ran the program ended with {status} before it: how the program ended is not known"


def _odd_ending(status: int, report: Report, language: Language) -> str:
    outcomes = {result.outcome for result in report.results}
    if status == 0 or Outcome.FAIL in outcomes or (status == language.skipped and Outcome.SKIP in outcomes):
        return ""
    how = f"was killed by signal {status - 128}" if 128 < status < 193 else f"exited with {status}"
    how = f"{how} ({meaning})" if (meaning := language.words(status)) else how
    return f"no test failed, but the program {how}" if report.results else f"the program {how}"


def _times(session: Session, since: int, began_ns: int, language: Language, report: Report, status: int | None = None) -> list[float]:
    """By the console's record; zeros where that does not show every result (a message broke into a line, the console is slower)."""
    shown = language.parse(session.transcript.read(since), status)
    if [result.path for result in shown.results] != [result.path for result in report.results]:
        return [0.0] * len(report.results)
    return spans(session.transcript, since, began_ns, shown)
