"""What suites measured of VMs, a series a row, and what a neighbour does to one. Pure.

Samples and histograms are told alike: what a suite counts by the thousand it may as well record one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labctl.judge.distribution import Merged
from labctl.judge.summary import Group, GroupSummary, percentile

METRICS = ("vm.start", "vm.beat_gap", "restart.time", "migration.downtime", "migration.total", "desktop.fps", "desktop.latency")
"""In the order in which they are told."""
ISOLATION = "isolation.beat_gap"
NEIGHBOUR = "neighbour"
"""Parameter of `ISOLATION`: what the VM beside it does."""
ALONE = "none"
_NEIGHBOURS = (ALONE, "cpu", "memory", "disk", "network", "console")


@dataclass(frozen=True, slots=True)
class Observed:
    """All observations of one series together."""

    group: Group
    count: int
    low: float
    median: float
    p90: float
    """Of fewer than 10 the largest."""
    p99: float
    """Of fewer than 100 the largest."""
    high: float
    samples: tuple[float, ...]
    """Each, in the order in which they were taken; none where they were counted in histograms."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A VM's heartbeat while another was at work."""

    neighbour: str
    observed: Observed
    factor: float | None
    """Median as a multiple of that without one at work."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One build on one target, with the same other parameters."""

    build: str
    target: str
    suite: str
    params: tuple[tuple[str, str], ...]
    beside: tuple[Beside, ...]
    """The VM alone first."""


def observed(groups: Sequence[GroupSummary], merged: Sequence[Merged]) -> tuple[Observed, ...]:
    """The series of `METRICS` and `ISOLATION`, in that order, then by parameters, target and build."""
    wanted = (*METRICS, ISOLATION)
    found = [_of_samples(one) for one in groups if one.group.metric in wanted]
    found += (_of_histogram(one) for one in merged if one.group.metric in wanted)
    order = {metric: place for place, metric in enumerate(wanted)}
    return tuple(sorted(found, key=lambda o: (order[o.group.metric], o.group.params, o.group.target, o.group.build, o.group.suite)))


def isolation(found: Sequence[Observed]) -> tuple[Isolation, ...]:
    """What neighbours did, of the series of `ISOLATION`; by target, build and parameters."""
    together: dict[tuple[str, str, str, tuple[tuple[str, str], ...], object], dict[str, Observed]] = {}
    for one in found:
        g = one.group
        if g.metric == ISOLATION and g.params and dict(g.params).get(NEIGHBOUR):
            rest = tuple(pair for pair in g.params if pair[0] != NEIGHBOUR)
            together.setdefault((g.target, g.build, g.suite, rest, (g.channel, g.unit)), {})[dict(g.params)[NEIGHBOUR]] = one
    return tuple(
        Isolation(build, target, suite, rest, tuple(_beside(name, of, of.get(ALONE)) for name in sorted(of, key=_place)))
        for (target, build, suite, rest, _), of in sorted(together.items(), key=lambda item: item[0][:4])
    )


def _place(neighbour: str) -> tuple[int, str]:
    return (_NEIGHBOURS.index(neighbour) if neighbour in _NEIGHBOURS else len(_NEIGHBOURS), neighbour)


def _beside(neighbour: str, of: dict[str, Observed], alone: Observed | None) -> Beside:
    one = of[neighbour]
    factor = one.median / alone.median if alone is not None and neighbour != ALONE and alone.median > 0 else None
    return Beside(neighbour, one, factor if factor is None or math.isfinite(factor) else None)


def _of_samples(one: GroupSummary) -> Observed:
    values = tuple(sample.value for sample in one.samples)
    ordered, s = sorted(values), one.spread
    return Observed(one.group, s.count, s.minimum, s.median, percentile(ordered, 0.9), percentile(ordered, 0.99), s.maximum, values)


def _of_histogram(one: Merged) -> Observed:
    h = one.histogram
    return Observed(one.group, h.count, h.low, h.quantile(0.5), h.quantile(0.9), h.quantile(0.99), h.high, ())
