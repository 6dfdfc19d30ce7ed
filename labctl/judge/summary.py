"""What a run measured, as statistics that say how far figures spread. Pure: RunResult in, values out.

Wall time and counted instructions are never put together, nor are two units of one metric. Figures that must not be trusted (of a test
that did not pass, or not finite) are left out and counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from labctl.judge.exact import Reading, reading
from labctl.model import Channel, Direction, Milestone, Outcome
from labctl.result import Attempt, CellResult, RunResult, Sample

# What `labctl.parsers.dmesg.slow_phases` puts before the message; the time differs from boot to boot, the message does not.
_STAMP = re.compile(r"^at \d+\.\d+ s, before: ")


@dataclass(frozen=True, slots=True)
class Spread:
    """How values lie. Quartiles interpolate linearly between neighbours (Hyndman and Fan's type 7, as numpy and R do)."""

    count: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float
    mad: float
    """Median of the absolute deviations from the median, not scaled."""


@dataclass(frozen=True, slots=True)
class Group:
    """What samples must share to be one series. Repeats of a cell are the same series."""

    metric: str
    channel: Channel
    unit: str
    direction: Direction
    suite: str
    target: str
    build: str
    params: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupSummary:
    group: Group
    spread: Spread
    samples: tuple[Sample, ...]
    """Those the spread is of, in the order in which they were taken."""
    conditions: Mapping[str, tuple[float, float]]
    """State of the host while they were taken: name → (lowest, highest)."""

    @property
    def reading(self) -> Reading | None:
        """Of counted figures, which have no spread: they agree or they do not. None for figures of real time."""
        return reading(sample.value for sample in self.samples) if self.group.channel is Channel.ICOUNT else None


@dataclass(frozen=True, slots=True)
class Summary:
    groups: tuple[GroupSummary, ...]
    """By metric, channel, suite, target, build, params."""
    untrusted: int
    """Samples left out: of a test that did not pass, or not a finite number."""


@dataclass(frozen=True, slots=True)
class BootSummary:
    """Milestones of the boots of one build on one target, in seconds from power-on."""

    build: str
    target: str
    channel: Channel
    boots: int
    milestones: Mapping[Milestone, Spread]
    """Only those that some boot reached; ``count`` says how many did."""


@dataclass(frozen=True, slots=True)
class KernelPhase:
    """A long silence of the kernel, by the message that ended it."""

    build: str
    target: str
    channel: Channel
    message: str
    silence: Spread
    """Seconds."""


@dataclass(frozen=True, slots=True)
class TestSummary:
    """One test over all cells: of each cell its latest result."""

    __test__ = False  # not for pytest to collect

    suite: str
    name: str
    outcomes: Mapping[Outcome, int]
    duration_s: Spread | None
    """Of those that ran: what is skipped takes no time. None where all were."""


def spread(values: Iterable[float]) -> Spread:
    """Raises ValueError if there is no value, or one that is not finite."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values to summarise")
    if not all(map(math.isfinite, ordered)):
        raise ValueError("values must be finite")
    median = _quantile(ordered, 0.5)
    return Spread(
        count=len(ordered),
        minimum=ordered[0],
        lower_quartile=_quantile(ordered, 0.25),
        median=median,
        upper_quartile=_quantile(ordered, 0.75),
        maximum=ordered[-1],
        mad=_quantile(sorted(abs(v - median) for v in ordered), 0.5),
    )


def summarise(run: RunResult) -> Summary:
    """Each series of the run, of the samples that its cells stand by (`CellResult.samples`)."""
    series: dict[Group, list[Sample]] = {}
    taken = trusted = 0
    for result in run.cells:
        cell = result.cell
        taken += sum(len(attempt.samples) for attempt in result.attempts)
        for sample in result.samples:
            if not math.isfinite(sample.value):
                continue
            trusted += 1
            params = tuple(sorted(sample.params.items())) if sample.params else ()
            group = Group(sample.metric, sample.channel, sample.unit, sample.direction, cell.suite, cell.target, cell.build, params)
            series.setdefault(group, []).append(sample)
    groups = tuple(
        GroupSummary(group, spread(s.value for s in series[group]), tuple(series[group]), _conditions(series[group]))
        for group in sorted(series, key=_order)
    )
    return Summary(groups, taken - trusted)


def overall(groups: Iterable[GroupSummary]) -> dict[str, tuple[float, float]]:
    """State of the host over the samples of several series: name → (lowest, highest)."""
    ranges: dict[str, tuple[float, float]] = {}
    for group in groups:
        for name, (low, high) in group.conditions.items():
            lowest, highest = ranges.get(name, (low, high))
            ranges[name] = (min(low, lowest), max(high, highest))
    return ranges


def summarise_boots(run: RunResult) -> tuple[BootSummary, ...]:
    """Milestones by build and target, of each cell's last attempt that reached any; by target, then build."""
    boots: dict[tuple[Channel, str, str], list[Mapping[str, float]]] = {}
    for result in run.cells:
        attempt = _last(result, lambda a: bool(a.milestones))
        if attempt is not None:
            key = (result.cell.channel, result.cell.target, result.cell.build)
            boots.setdefault(key, []).append(attempt.milestones)
    found = []
    for (channel, target, build), reached in sorted(boots.items()):
        times = {m: [float(r[m]) for r in reached if m in r and math.isfinite(r[m])] for m in Milestone}
        milestones = {m: spread(t) for m, t in times.items() if t}
        if milestones:
            found.append(BootSummary(build, target, channel, len(reached), milestones))
    return tuple(found)


def kernel_phases(run: RunResult) -> tuple[KernelPhase, ...]:
    """The kernel's longest silences, over the boots of a build on a target; by target and build, longest first."""
    silences: dict[tuple[Channel, str, str], dict[str, list[float]]] = {}
    for result in run.cells:
        attempt = _last(result, lambda a: bool(a.kernel_stamps))
        if attempt is None:
            continue
        messages = silences.setdefault((result.cell.channel, result.cell.target, result.cell.build), {})
        for seconds, message in attempt.kernel_stamps:
            if math.isfinite(seconds):
                messages.setdefault(_STAMP.sub("", message), []).append(seconds)
    return tuple(
        phase
        for (channel, target, build), messages in sorted(silences.items())
        for phase in sorted(
            (KernelPhase(build, target, channel, message, spread(found)) for message, found in messages.items()),
            key=lambda p: (-p.silence.median, p.message),
        )
    )


def summarise_tests(run: RunResult) -> tuple[TestSummary, ...]:
    """Each test over all cells, by suite and name."""
    outcomes: dict[tuple[str, str], Counter[Outcome]] = {}
    durations: dict[tuple[str, str], list[float]] = {}
    for result in run.cells:
        for test in result.tests:
            key = (result.cell.suite, test.name)
            outcomes.setdefault(key, Counter())[test.outcome] += 1
            if test.outcome is not Outcome.SKIP:
                durations.setdefault(key, []).append(test.duration_s if math.isfinite(test.duration_s) else 0.0)
    return tuple(TestSummary(*key, outcomes[key], spread(durations[key]) if key in durations else None) for key in sorted(outcomes))


def concurrency(run: RunResult) -> int:
    """Most attempts that were under way at one moment: 1 means that no cell shared the host with another."""
    edges = [(a.started_at, 1) for c in run.cells for a in c.attempts]
    edges += [(a.started_at + a.duration_s, -1) for c in run.cells for a in c.attempts]
    now = most = 0
    for _, step in sorted(edges):  # an end sorts before a start at the same moment
        now += step
        most = max(most, now)
    return most


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest of ordered values that at least this part of them does not exceed: an observation, never one between two."""
    return ordered[max(1, math.ceil(round(part * len(ordered), 6))) - 1]


def _quantile(ordered: Sequence[float], part: float) -> float:
    position = (len(ordered) - 1) * part
    below = math.floor(position)
    weight = position - below
    if not weight:
        return ordered[below]
    low, high = ordered[below], ordered[below + 1]
    return low if low == high else low * (1 - weight) + high * weight  # so that neither overflow nor rounding leaves [low, high]


def _conditions(samples: Iterable[Sample]) -> dict[str, tuple[float, float]]:
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for sample in samples:
        for name, value in sample.conditions.items():
            if not -math.inf < value < math.inf:
                continue
            if name not in lowest:
                lowest[name] = highest[name] = value
            elif value < lowest[name]:
                lowest[name] = value
            elif value > highest[name]:
                highest[name] = value
    return {name: (low, highest[name]) for name, low in lowest.items()}


def _last(result: CellResult, wanted: Callable[[Attempt], bool]) -> Attempt | None:
    return next((a for a in reversed(result.attempts) if wanted(a)), None)


def _order(group: Group) -> tuple[object, ...]:
    return (group.metric, group.channel, group.unit, group.suite, group.target, group.build, group.params, group.direction)
