"""What of a run comes first, and how it is said in a sentence. The same for the page and the terminal."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from labctl.judge.promise import broken_gates
from labctl.model import Outcome
from labctl.report.printable import one_line
from labctl.result import Attempt, CellResult, RunResult, TestResult
from labctl.store.inputs import listed

BAD = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID)
"""Outcomes that somebody must look at, the most telling first: a failure is the build's, an error the lab's."""

_WORDS = {
    Outcome.FAIL: "failed",
    Outcome.ERROR: "ended by an error of the lab",
    Outcome.INVALID: "invalid",
    Outcome.FLAKY: "flaky",
    Outcome.SKIP: "skipped",
    Outcome.PASS: "passed",
}


INTERRUPTED = "interrupted"
RUNNING = "running"
WAITING = "not begun"


def unended(run: RunResult, result: CellResult) -> str:
    """What a cell is that has no outcome because its run is still going on, was interrupted or was killed; empty if it has one."""
    begun = bool(result.attempts)
    if (run.finished and not run.interrupted) or result.outcome is not Outcome.ERROR or (begun and result.attempts[-1].complete):
        return ""
    if not begun:
        return WAITING
    return RUNNING if run.running else INTERRUPTED


def counts(run: RunResult) -> dict[Outcome, int]:
    """Cells that have an outcome, by it, worst first; outcomes that no cell has are absent."""
    found = Counter(result.outcome for result in run.cells if not unended(run, result))
    return {outcome: found[outcome] for outcome in _WORDS if found[outcome]}


def failures(run: RunResult) -> tuple[CellResult, ...]:
    """Cells that somebody must look at, by `BAD`, else in the run's order. One that was interrupted has failed nobody."""
    return tuple(result for outcome in BAD for result in run.cells if result.outcome is outcome and not unended(run, result))


def open_cells(run: RunResult) -> dict[str, tuple[CellResult, ...]]:
    """Cells that have no outcome, by what they are instead (`unended`)."""
    words = {id(result): unended(run, result) for result in run.cells}
    found = {word: tuple(r for r in run.cells if words[id(r)] == word) for word in (RUNNING, INTERRUPTED, WAITING)}
    return {word: results for word, results in found.items() if results}


def failing_attempt(result: CellResult) -> Attempt | None:
    """The last attempt that did not pass: the one whose console tells why."""
    return next((a for a in reversed(result.attempts) if a.outcome in BAD), None)


def speaking_test(attempt: Attempt) -> TestResult | None:
    """The test whose reason the attempt gives as its own; None where it is none's, as of a machine that could not be switched off."""
    bad = [test for test in attempt.tests if test.outcome in BAD]
    return next((test for test in bad if test.reason and test.reason in attempt.reason), None)


def sentence(run: RunResult) -> str:
    """``3 of 8 cells failed, 5 passed in 1 min 20 s.`` and what else must be known before reading on."""
    of = counts(run)
    without = Counter({word: len(results) for word, results in open_cells(run).items()})
    if run.running:
        told = f"Running, {len(run.cells) - without.total():,} of {len(run.cells):,} cells have ended"
        bad = [f"{of[outcome]:,} {_WORDS[outcome]}" for outcome in BAD if of.get(outcome)]
        return f"{told}{', ' if bad else ''}{', '.join(bad)}; {duration(run.duration_s)} so far."
    if of.get(Outcome.PASS) == len(run.cells):
        told = f"All {len(run.cells):,} cells passed" if len(run.cells) > 1 else "The only cell passed"
    elif run.cells:
        parts = [f"{of[outcome]:,} {word}" for outcome, word in _WORDS.items() if of.get(outcome)]
        parts += [f"{without[word]:,} {word}" for word in (INTERRUPTED, WAITING) if without[word]]
        told = f"{len(run.cells):,} {'cell' if len(run.cells) == 1 else 'cells'}: {', '.join(parts)}"
    else:
        told = "No cell was run"
    if reused := sum(result.reused is not None for result in run.cells):
        told += f" ({reused:,} reused: nothing has changed since {'it' if reused == 1 else 'they'} did)"
    if run.left_out:
        told += f"; {len(run.left_out):,} left out"
    told += f"; took {duration(run.duration_s)}."
    if run.outcome is Outcome.FAIL and run.finished and (broken := broken_gates([run])):
        names = dict.fromkeys(f"{one.build}: {one.promise.name}" for one in broken)
        told += f" Broken, and with a gate: {one_line(listed(list(names), 3), 300)}."
    if run.interrupted:
        told += " The run was interrupted."
    elif not run.finished:
        told += " The run did not end: it was killed."
    return told


def moment(at: float) -> str:
    """Seconds since the Unix epoch, in UTC, to the minute."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def duration(seconds: float) -> str:
    """``0.84 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
