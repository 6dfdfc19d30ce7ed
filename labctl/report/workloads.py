"""What storage and network were measured by, as tables: workloads down, figures across, below each the promise that it is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labctl.judge.distribution import Merged
from labctl.judge.summary import GroupSummary, Summary
from labctl.model import Channel
from labctl.report.beside import Beside, Held
from labctl.report.measurements import spread
from labctl.report.printable import one_line
from labctl.report.quantity import natural, quantity
from labctl.report.some import Some

MOST_TABLES = 12
MOST_ROWS = 240
"""Of all tables together."""
PERCENTILES = (0.5, 0.99, 0.999)

Shown = Mapping[str, Any]
Params = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """Which metrics belong together, and by which parameters their workloads are told apart."""

    samples: Mapping[str, str]
    """Metric of single samples → the head of its column."""
    latency: str
    """The metric that is a histogram."""
    axes: Mapping[str, str]
    """Parameter → the head of its column, in the order of the rows."""
    each: str = ""
    """The parameter of which each value has a table of its own."""


STORAGE = Kind(
    {"storage.iops": "IOPS", "storage.bandwidth": "Bandwidth"},
    "storage.latency",
    {"pattern": "Pattern", "bs": "Block", "qd": "QD"},
    "disk",
)
NETWORK = Kind(
    {"network.throughput": "Throughput", "network.loss": "Lost"},
    "network.rtt",
    {"path": "Path", "direction": "Direction", "size": "Bytes"},
)


def tables(kind: Kind, summary: Summary, merged: Sequence[Merged], beside: Beside) -> Some[Shown]:
    """A table for each target and channel, and of storage for each disk."""
    found: dict[tuple[str, str, Channel], dict[tuple[Params, str, str], dict[str, Any]]] = {}
    recorded: list[GroupSummary | Merged] = [summed for summed in summary.groups if summed.group.metric in kind.samples]
    recorded += (one for one in merged if one.group.metric == kind.latency)
    for one in recorded:
        g = one.group
        table = found.setdefault((g.target, dict(g.params).get(kind.each, ""), g.channel), {})
        table.setdefault((g.params, g.build, g.suite), {})[g.metric] = one
    ordered = sorted(found.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]), item[0][2]))
    most = MOST_ROWS // max(1, min(MOST_TABLES, len(ordered)))
    return Some.of((_table(kind, where, rows, beside, most) for where, rows in ordered), MOST_TABLES)


def by_workload(params: Params, axes: Sequence[str] = tuple(STORAGE.axes)) -> tuple[object, ...]:
    """Patterns by name, blocks and queue depths as people count."""
    of = dict(params)
    return (*(natural(of.get(name, "")) for name in axes), params)


def _table(
    kind: Kind, where: tuple[str, str, Channel], rows: Mapping[tuple[Params, str, str], Mapping[str, Any]], beside: Beside, most: int
) -> Shown:
    target, each, channel = where
    keys = sorted(rows, key=lambda key: (by_workload(key[0], tuple(kind.axes)), natural(key[1]), key[2]))
    # A column that says nothing of any of them is left out: a path has no direction where nobody asked how much goes through.
    axes = [name for name in kind.axes if any(name in dict(params) for params, _, _ in keys)]
    return {
        "target": one_line(target, 60),
        "each": one_line(each, 60),
        "channel": channel,
        "axes": [kind.axes[name] for name in axes],
        "figures": list(kind.samples.values()),
        "rows": Some.of((_row(kind, axes, key, rows[key], beside) for key in keys), most),
    }


def _row(kind: Kind, axes: Sequence[str], key: tuple[Params, str, str], row: Mapping[str, Any], beside: Beside) -> Shown:
    params, build, _ = key
    of = dict(params)
    known = (*axes, kind.each)
    latency = row.get(kind.latency)
    return {
        "axes": [one_line(of.get(name, "–"), 40) for name in axes],
        "other": one_line(" ".join(f"{name}={value}" for name, value in params if name not in known), 80),
        "build": one_line(build, 60),
        "figures": [_figure(row.get(metric), beside) for metric in kind.samples],
        "latency": _latency(latency, beside) if isinstance(latency, Merged) else [],
    }


def _figure(summed: object, beside: Beside) -> Shown | None:
    told = spread(summed)
    return None if told is None or not isinstance(summed, GroupSummary) else {**told, "held": beside.of(summed.group)}


def _latency(merged: Merged, beside: Beside) -> list[Shown]:
    """What is promised of another percentile, or of all observations, stands below the last."""
    held = beside.of(merged.group)
    last = PERCENTILES[-1]

    def below(part: float) -> list[Held]:
        return [one for one in held if one.part == part or (part == last and one.part not in PERCENTILES)]

    return [{"at": quantity(merged.histogram.quantile(part), merged.group.unit), "held": below(part)} for part in PERCENTILES]
