"""From hours under load and failures to an availability that can be stood by. Pure.

Failures are taken as a Poisson process, its rate bounded exactly (`labctl.judge.bounds.poisson_mean`). Availability in the steady state is
MTBF / (MTBF + MTTR) (IEC 60050-192, 192-08-07): with a rate of failures r and a time to restore t it is ``1 / (1 + r t)``. Restoring is
counted as one boot: what notices the failure and cuts the power is taken to need no time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from labctl.judge.bounds import poisson_mean
from labctl.judge.summary import spread
from labctl.model import Milestone, Outcome
from labctl.result import CellResult, RunResult

SECONDS = "uptime.seconds"
FAILURES = "uptime.failures"
GAP = "uptime.gap"
_MOST_FAILURES = 100_000
"""A sample of more is no count of failures."""


@dataclass(frozen=True, slots=True)
class Uptime:
    """Time under load; of several they add up."""

    seconds: float
    failures: int
    restore: tuple[float, ...] = ()
    """Seconds from power-on to ``ready`` of the machines' boots."""
    gap: float = 0.0
    """The longest time between two heartbeats, in seconds."""
    soaks: int = 1
    """Stretches of time that it is the sum of."""

    @classmethod
    def merged(cls, parts: Iterable[Uptime]) -> Uptime:
        """ValueError if there is none."""
        found = list(parts)
        if not found:
            raise ValueError("no uptime to merge")
        return cls(
            math.fsum(part.seconds for part in found),
            sum(part.failures for part in found),
            tuple(seconds for part in found for seconds in part.restore),
            max(part.gap for part in found),
            sum(part.soaks for part in found),
        )


@dataclass(frozen=True, slots=True)
class Availability:
    """What an uptime supports. The bounds hold with 95 % each."""

    uptime: Uptime
    restore_s: float
    """Median seconds that a failure is taken to cost."""
    value: float
    low: float
    high: float
    mtbf_low: float
    """Seconds between failures, at least."""

    def enough(self, limit: float) -> float:
        """Seconds under load, those that were included, that support a limit (below 1) if no further failure comes."""
        rate = (1 / limit - 1) / self.restore_s
        return poisson_mean(self.uptime.failures)[1] / rate


def availability(uptime: Uptime) -> Availability | None:
    """None where nothing can be said: no time, or no boot that tells what a failure costs."""
    if uptime.seconds <= 0 or not uptime.restore:
        return None
    restore = spread(uptime.restore).median
    if restore <= 0:
        return None
    fewest, most = poisson_mean(uptime.failures)

    def at(failures: float) -> float:
        return 1 / (1 + failures / uptime.seconds * restore)

    return Availability(uptime, restore, at(uptime.failures), at(most), at(fewest), uptime.seconds / most)


def uptimes(runs: Iterable[RunResult]) -> dict[tuple[str, str], Uptime]:
    """What the runs recorded, by build and target: the sum of all `soaks`."""
    return {key: Uptime.merged(parts) for key, parts in soaks(runs).items()}


def soaks(runs: Iterable[RunResult]) -> dict[tuple[str, str], tuple[Uptime, ...]]:
    """What each attempt recorded, by build and target; at least one for each that is there.

    The samples of failed tests count too: a soak in which the machine dies is a failed test, and leaving it out would leave out the
    failure. Only where the lab was at fault, or a measurement invalid, nothing is believed.
    """
    found: dict[tuple[str, str], list[Uptime]] = {}
    for run in runs:
        for result in run.cells:
            found.setdefault((result.cell.build, result.cell.target), []).extend(_of_cell(result))
    return {key: tuple(parts) for key, parts in found.items() if parts}


def _of_cell(result: CellResult) -> Iterable[Uptime]:
    for attempt in result.attempts:
        outcomes = {test.name: test.outcome for test in attempt.tests}
        seconds: list[float] = []
        failures, gap = 0, 0.0
        for sample in attempt.samples:
            believed = outcomes.get(sample.test, attempt.outcome) in (Outcome.PASS, Outcome.FAIL)
            if not believed or not 0 <= sample.value < math.inf:
                continue
            if sample.metric == SECONDS:
                seconds.append(sample.value)
            elif sample.metric == FAILURES and sample.value <= _MOST_FAILURES:
                failures += math.ceil(sample.value)
            elif sample.metric == GAP:
                gap = max(gap, sample.value)
        if seconds:
            ready = attempt.milestones.get(Milestone.READY)
            yield Uptime(math.fsum(seconds), failures, (ready,) if ready else (), gap, len(seconds))
