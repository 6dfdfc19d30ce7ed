"""Histograms of a run, added up to one for each series. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labctl.histogram import Histogram
from labctl.judge.summary import Group
from labctl.result import Distribution, RunResult


@dataclass(frozen=True, slots=True)
class Merged:
    """One series: all observations of its repeats together, and each histogram by itself."""

    group: Group
    histogram: Histogram
    parts: tuple[Distribution, ...]


def merge(runs: Iterable[RunResult]) -> tuple[Merged, ...]:
    """Each series of the runs, of the histograms that their cells stand by; by metric, channel, suite, target, build, params."""
    series: dict[tuple[Group, float], list[Distribution]] = {}
    for run in runs:
        for result in run.cells:
            cell = result.cell
            for found in result.distributions:
                params = tuple(sorted(found.params.items()))
                group = Group(found.metric, found.channel, found.unit, found.direction, cell.suite, cell.target, cell.build, params)
                series.setdefault((group, found.histogram.step), []).append(found)
    merged = [Merged(group, Histogram.merged(one.histogram for one in parts), tuple(parts)) for (group, _), parts in series.items()]
    return tuple(sorted(merged, key=_order))


def _order(found: Merged) -> tuple[object, ...]:
    g = found.group
    return (g.metric, g.channel, g.unit, g.suite, g.target, g.build, g.params, g.direction, found.histogram.step)
