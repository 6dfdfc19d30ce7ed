"""From the outcomes of tests to those of attempts, cells and runs. Pure: one table of rules, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from labctl.model import Outcome
from labctl.result import Attempt

INTERRUPTED = "the run was interrupted in the middle of this attempt"
WORKER_DIED = "the worker died in the middle of this attempt"
NEVER_STARTED = "never started"
RUNNING = "this attempt is under way"
WAITING = "not begun yet"
ON_A_COPY = "on a copy of a machine that was booted before: "
"""Begins the reason of an attempt that failed there."""

LAB_FAILED = "the lab failed before: "
NO_BOOT = "the machine does not boot: "
"""Begin the reasons of tests that were not tried on it then: skipped, though nothing says that they would not apply."""

_GRAVEST_FIRST = (Outcome.ERROR, Outcome.FAIL, Outcome.INVALID, Outcome.FLAKY, Outcome.PASS, Outcome.SKIP)


def attempt_outcome(tests: Iterable[Outcome]) -> Outcome:
    """The gravest of its tests; ``skip`` only if all were skipped; ``error`` if there was none, for then nothing was found out."""
    return _gravest(tests, empty=Outcome.ERROR)


def cell_outcome(attempts: Sequence[Attempt]) -> tuple[Outcome, str]:
    """A cell's outcome and its reason in a line, from its attempts in their order.

    The last attempt decides, together with those tests of earlier attempts that it did not run again. A pass after an attempt
    that did not pass reads ``flaky``, with that attempt's reason.
    """
    if not attempts:
        return Outcome.ERROR, NEVER_STARTED
    *earlier, last = attempts
    latest = {test.name: test for attempt in earlier for test in attempt.tests}
    standing = [latest[name] for name in latest.keys() - {test.name for test in last.tests}]
    outcome = _gravest((last.outcome, *(test.outcome for test in standing)), empty=last.outcome)
    if outcome is not last.outcome and outcome is not Outcome.PASS:
        return outcome, next((test.reason for test in standing if test.outcome is outcome), "")
    if outcome is Outcome.PASS:
        for attempt in earlier:
            if attempt.outcome not in (Outcome.PASS, Outcome.SKIP):
                if attempt.reason.startswith(ON_A_COPY):
                    return Outcome.FLAKY, f"fails only on a copy, not when booted: {attempt.reason.removeprefix(ON_A_COPY)}"
                return Outcome.FLAKY, f"attempt {attempt.number}: {attempt.reason or attempt.outcome}"
    return outcome, last.reason


def run_outcome(cells: Iterable[Outcome]) -> Outcome:
    """``fail`` if any cell failed or is invalid, else ``error`` if any is or there is none, else ``pass``, as flaky and skipped are."""
    seen = set(cells)
    if seen & {Outcome.FAIL, Outcome.INVALID}:
        return Outcome.FAIL
    return Outcome.ERROR if Outcome.ERROR in seen or not seen else Outcome.PASS


def _gravest(outcomes: Iterable[Outcome], *, empty: Outcome) -> Outcome:
    seen = set(outcomes)
    return next((outcome for outcome in _GRAVEST_FIRST if outcome in seen), empty)
