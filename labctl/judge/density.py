"""How many VMs a machine holds: the curve of VMs started one after another, where it bends, and what ended it. Pure.

What failed counts here as it does for availability: a hypervisor that dies in the middle of it is a failed test, and its curve up to there
tells the most. A curve is of one attempt; repeats and runs are not put together, for a mean of two curves bends nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labctl.judge.summary import percentile, spread
from labctl.model import Cell, Channel, Outcome
from labctl.result import Attempt, RunResult, Sample, TestResult

START = "density.start"
GAP = "density.gap"
PSS = "density.pss"
AVAILABLE = "density.available"
CPU = "density.cpu"
HEALTHY = "density.healthy"
OF_VMS = (START, GAP, PSS, AVAILABLE, CPU)
VMS = "vms"
"""Parameter of those: how many VMs there were then, or which VM in its turn it was."""
LIMIT = "limit"
"""Parameter of `HEALTHY`: what ended it."""
TARGET_REACHED = "target"
"""The limit of a run that was to start no more."""
DIED = ("machine crashed", "runner silent", "runner or machine lost")
"""Limits of a run that came to no end: what it counted as healthy was so when it was looked at last."""
MOST_VMS = 1_000_000
WINDOWS = 25
"""Windows of starts that a curve is cut into, if each is then of `_SMALLEST_WINDOW` starts."""
_SMALLEST_WINDOW = 10
_LEAST_POINTS = 8
_TRIMMED = 0.15
"""No bend is looked for in the first and the last part of a curve."""
_SUP_F = 8.68
"""Below it a straight line is as good: 5 % of straight lines with noise exceed it by chance (Andrews 1993, Econometrica 61, 821, with
the corrected table of 2003: one parameter, trimmed by 15 %)."""
_STEEP = 1.25
"""A bend that matters ends at this much of where the straight line would have gone."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was seen when all VMs were looked at. None: not recorded."""

    vms: int
    gap: float | None = None
    """Seconds between two heartbeats of a VM, p99 over VMs."""
    pss: float | None = None
    """Bytes of the host's memory that a VM takes, what is shared parted among those that share it."""
    available: float | None = None
    """Bytes of the machine that were still to be had."""
    cpu: float | None = None
    """Share of the machine's CPU time that was used, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Window:
    """VMs started one after another, and how long their starts took, in seconds."""

    first: int
    last: int
    median: float
    p99: float
    """Of fewer than 100 the longest."""


@dataclass(frozen=True, slots=True)
class Bend:
    """Two lines that meet are what a curve is like."""

    vms: float
    level: float
    """Where they meet."""
    before: float
    """Slope: what each VM adds, up to there."""
    after: float


@dataclass(frozen=True, slots=True)
class Knee:
    """From where on each further VM costs more than before."""

    metric: str
    """`START` or `GAP`: what shows it first."""
    bend: Bend


@dataclass(frozen=True)
class Curve:
    """VMs against time and memory, of one attempt. Checks are in the order in which they were made, several of as many VMs if they were."""

    cell: Cell
    attempt: int
    runner: str
    params: tuple[tuple[str, str], ...]
    """The other parameters."""
    starts: tuple[tuple[int, float], ...]
    """Which VM in its turn, and the seconds that its start took."""
    checks: tuple[Check, ...]
    healthy: int | None
    """VMs that were well at the end, or when they were looked at last (`died`); None where nobody said."""
    limit: str
    """What ended it, in the runner's words; empty if it did not come to an end."""
    outcome: Outcome
    """Of the test that recorded it."""
    reason: str

    @property
    def vms(self) -> int:
        """The most that there were."""
        return max((at for at, _ in (*self.starts, *((check.vms, 0.0) for check in self.checks))), default=0)

    @property
    def died(self) -> bool:
        """Whether it came to no end: the machine, or what carried the VMs, was lost with them on it."""
        return self.healthy is None or self.limit in DIED

    @property
    def held(self) -> int:
        """VMs that were well at the end: none where there was no end."""
        return 0 if self.died else self.healthy or 0

    @property
    def ended(self) -> str:
        """In a few words; empty where it was to start no more."""
        if self.died:
            return f"died with {self.vms:,} VMs: {self.reason or self.limit or 'nobody knows why'}"
        return "" if self.limit in ("", TARGET_REACHED) else f"ended by: {self.limit}"

    @property
    def windows(self) -> tuple[Window, ...]:
        return windows(self.starts)

    @property
    def start(self) -> Window | None:
        """Of all starts together."""
        return _window(self.starts) if self.starts else None

    @property
    def steps(self) -> tuple[tuple[Check, Window | None], ...]:
        """Each check with the starts since the one before; what came after the last one has a check in which nothing was seen."""
        checks = list(self.checks)
        if self.starts and (not checks or checks[-1].vms < self.starts[-1][0]):
            checks.append(Check(self.starts[-1][0]))
        found: list[tuple[Check, Window | None]] = []
        place = 0
        for check in checks:
            first = place
            while place < len(self.starts) and self.starts[place][0] <= check.vms:
                place += 1
            found.append((check, _window(self.starts[first:place]) if place > first else None))
        return tuple(found)

    @property
    def knee(self) -> Knee | None:
        """The earliest of what starts and heartbeats show."""
        series = {
            START: [((w.first + w.last) / 2, w.median) for w in self.windows],
            GAP: [(float(check.vms), check.gap) for check in self.checks if check.gap is not None],
        }
        found = [Knee(metric, bend) for metric, points in series.items() if (bend := knee(points)) is not None]
        return min(found, key=lambda one: one.bend.vms, default=None)

    @property
    def memory(self) -> float | None:
        """Bytes that a VM took of what was available, from the first check to the last; None where it was not recorded twice."""
        return next((taken for taken in reversed(self.taken) if taken is not None), None)

    @property
    def taken(self) -> tuple[float | None, ...]:
        """At each check the bytes that each VM since the first check took of what was available then."""
        first = next((check for check in self.checks if check.available is not None), None)
        if first is None or first.available is None:
            return (None,) * len(self.checks)
        before, vms = first.available, first.vms
        return tuple(
            (before - check.available) / (check.vms - vms) if check.available is not None and check.vms > vms else None
            for check in self.checks
        )

    @property
    def cpu(self) -> float | None:
        """At the last check."""
        return next((check.cpu for check in reversed(self.checks) if check.cpu is not None), None)

    @property
    def gap(self) -> float | None:
        """At the last check."""
        return next((check.gap for check in reversed(self.checks) if check.gap is not None), None)

    @property
    def worst_gap(self) -> float | None:
        """At any check."""
        return max((check.gap for check in self.checks if check.gap is not None), default=None)

    @property
    def pss(self) -> float | None:
        """At the last check."""
        return next((check.pss for check in reversed(self.checks) if check.pss is not None), None)


def curves(runs: Iterable[RunResult]) -> tuple[Curve, ...]:
    """Of each cell, runner and parameters that of the last attempt that has one; in the order of the runs and their cells."""
    found: list[Curve] = []
    for run in runs:
        for result in run.cells:
            latest: dict[object, Curve] = {}
            for attempt in result.attempts:
                for key, curve in _of_attempt(result.cell, attempt).items():
                    latest.pop(key, None)
                    latest[key] = curve
            found += latest.values()
    return tuple(found)


def knee(points: Sequence[tuple[float, float]]) -> Bend | None:
    """Where a curve begins to rise more steeply; None where a straight line tells it as well, or there are too few points.

    Two lines that meet, ``y = a + b x + c max(0, x - k)``, by least squares for each k among the points but the first and the last 15 %;
    c must be positive. It counts only where the two are better than one line by more than chance (`_SUP_F`), and where the last point
    lies a quarter above the first line.
    """
    points = sorted(points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(points) < _LEAST_POINTS or not all(map(math.isfinite, (*xs, *ys))):
        return None
    line = _fit([[1.0, x] for x in xs], ys)
    if line is None:
        return None
    skipped = max(1, math.ceil(_TRIMMED * len(points)))
    best: tuple[float, float, Sequence[float]] | None = None
    for bend in dict.fromkeys(xs[skipped : len(xs) - skipped]):
        if (fitted := _fit([[1.0, x, max(0.0, x - bend)] for x in xs], ys)) is not None and (best is None or fitted[0] < best[0]):
            best = (fitted[0], bend, fitted[1])
    if best is None:
        return None
    left, at, (level, slope, more) = best
    extended = level + slope * xs[-1]
    # What rounding leaves of an exact line is no evidence.
    rest = max(left, 1e-12 * sum(y * y for y in ys))
    better = (line[0] - left) / (rest / (len(points) - 3))
    if more <= 0 or better < _SUP_F or extended + more * (xs[-1] - at) < _STEEP * max(extended, 0.0):
        return None
    return Bend(at, level + slope * at, slope, slope + more)


def windows(starts: Sequence[tuple[int, float]]) -> tuple[Window, ...]:
    """Starts in their order, cut into windows of equal size; the last may be larger."""
    ordered = sorted(starts)
    if not ordered:
        return ()
    size = max(_SMALLEST_WINDOW, math.ceil(len(ordered) / WINDOWS))
    count = max(1, len(ordered) // size)
    cuts = [ordered[i * size : (i + 1) * size if i < count - 1 else None] for i in range(count)]
    return tuple(_window(cut) for cut in cuts)


def _window(starts: Sequence[tuple[int, float]]) -> Window:
    times = sorted(seconds for _, seconds in starts)
    return Window(starts[0][0], starts[-1][0], spread(times).median, percentile(times, 0.99))


def _of_attempt(cell: Cell, attempt: Attempt) -> dict[tuple[object, ...], Curve]:
    parts: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = {}
    for sample in attempt.samples:
        known = sample.metric in (*OF_VMS, HEALTHY) and sample.channel is Channel.WALL
        if known and 0 <= sample.value < math.inf:
            same = tuple(sorted((name, value) for name, value in sample.params.items() if name not in (VMS, LIMIT)))
            parts.setdefault((sample.test, same), []).append(sample)
    tests = {test.name: test for test in attempt.tests}
    found = {(test, same): _curve(cell, attempt, same, samples, tests.get(test)) for (test, same), samples in parts.items()}
    return {key: curve for key, curve in found.items() if curve.starts or curve.checks or curve.healthy is not None}


def _curve(cell: Cell, attempt: Attempt, same: Sequence[tuple[str, str]], samples: Sequence[Sample], test: TestResult | None) -> Curve:
    starts: dict[int, float] = {}
    checks: list[tuple[int, dict[str, float]]] = []
    healthy: int | None = None
    limit = ""
    for sample in samples:
        if sample.metric == HEALTHY:
            healthy, limit = min(round(sample.value), MOST_VMS), sample.params.get(LIMIT, "")
        elif (vms := _number(sample.params)) is None:
            continue
        elif sample.metric == START:
            starts[vms] = sample.value
        else:
            if not checks or checks[-1][0] != vms or sample.metric in checks[-1][1]:
                checks.append((vms, {}))  # another look, if only at as many
            checks[-1][1][sample.metric] = sample.value
    outcome = attempt.outcome if test is None else test.outcome
    return Curve(
        cell,
        attempt.number,
        dict(same).get("runner", ""),
        tuple((name, value) for name, value in same if name != "runner"),
        tuple(sorted(starts.items())),
        tuple(
            Check(vms, *(of.get(metric) for metric in (GAP, PSS, AVAILABLE, CPU))) for vms, of in sorted(checks, key=lambda check: check[0])
        ),
        healthy,
        limit,
        outcome,
        "" if outcome is Outcome.PASS else (test.reason if test and test.reason else attempt.reason),
    )


def _number(params: Mapping[str, str]) -> int | None:
    told = params.get(VMS, "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 8 and int(told) <= MOST_VMS else None


def _fit(rows: Sequence[Sequence[float]], ys: Sequence[float]) -> tuple[float, tuple[float, ...]] | None:
    """Squared error and coefficients of least squares, by the normal equations; None where the columns depend on each other."""
    width = len(rows[0])
    size = [max(abs(row[i]) for row in rows) or 1.0 for i in range(width)]  # columns of one size: they solve to more digits
    scaled = [[value / by for value, by in zip(row, size, strict=True)] for row in rows]
    matrix = [
        [math.fsum(r[i] * r[j] for r in scaled) for j in range(width)] + [math.fsum(r[i] * y for r, y in zip(scaled, ys, strict=True))]
        for i in range(width)
    ]
    for column in range(width):
        pivot = max(range(column, width), key=lambda i: abs(matrix[i][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for other in range(width):
            if other != column:
                factor = matrix[other][column] / matrix[column][column]
                matrix[other] = [a - factor * b for a, b in zip(matrix[other], matrix[column], strict=True)]
    found = [matrix[i][width] / matrix[i][i] for i in range(width)]
    error = math.fsum((y - math.fsum(c * v for c, v in zip(found, row, strict=True))) ** 2 for row, y in zip(scaled, ys, strict=True))
    return error, tuple(c / by for c, by in zip(found, size, strict=True))
