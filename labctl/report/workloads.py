"""What storage and network were measured by, as tables: workloads down, figures across, below each the promise that it is held to."""

from __future__ import annotations

import math
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
_Row = tuple[Params, str, str, str]
"""Parameters, build, suite; the unit where another row has the same metric in another one."""


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
    found: dict[tuple[str, str, Channel], dict[_Row, dict[str, Any]]] = {}
    recorded: list[GroupSummary | Merged] = [summed for summed in summary.groups if summed.group.metric in kind.samples]
    recorded += (one for one in merged if one.group.metric == kind.latency)
    for one in recorded:
        g = one.group
        table = found.setdefault((g.target, dict(g.params).get(kind.each, ""), g.channel), {})
        # What was recorded in a second unit has a row of its own, which says so: none may hide another.
        rows = (table.setdefault((g.params, g.build, g.suite, unit), {}) for unit in ("", g.unit or "1"))
        next(row for row in rows if g.metric not in row or row[g.metric].group.unit == g.unit)[g.metric] = one
    ordered = sorted(found.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]), item[0][2]))
    most = MOST_ROWS // max(1, min(MOST_TABLES, len(ordered)))
    return Some.of((_table(kind, where, rows, beside, most) for where, rows in ordered), MOST_TABLES)


def by_workload(params: Params, axes: Sequence[str] = tuple(STORAGE.axes)) -> tuple[object, ...]:
    """Patterns by name, blocks and queue depths as people count."""
    of = dict(params)
    return (*(natural(of.get(name, "")) for name in axes), tuple((name, natural(value)) for name, value in params))


def _table(kind: Kind, where: tuple[str, str, Channel], rows: Mapping[_Row, Mapping[str, Any]], beside: Beside, most: int) -> Shown:
    target, each, channel = where
    keys = sorted(rows, key=lambda key: (by_workload(key[0], tuple(kind.axes)), natural(key[1]), *key[2:]))
    # A column that says nothing of any of them is left out: a path has no direction where nobody asked how much goes through.
    axes = [name for name in kind.axes if any(name in dict(params) for params, *_ in keys)]
    several = len({suite for _, _, suite, _ in keys}) > 1
    shown = Some.of((_row(kind, axes, several, key, rows[key], beside) for key in keys), most)
    return {
        "target": one_line(target, 60),
        "each": one_line(each, 60),
        "channel": channel,
        "axes": [kind.axes[name] for name in axes],
        "figures": list(kind.samples.values()),
        "rows": shown,
        "else": any(row["else"] for row in shown.items),
    }


def _row(kind: Kind, axes: Sequence[str], several: bool, key: _Row, row: Mapping[str, Any], beside: Beside) -> Shown:
    params, build, suite, unit = key
    of = dict(params)
    known = (*axes, kind.each)
    latency = row.get(kind.latency)
    return {
        "axes": [one_line(of.get(name, "–"), 40) for name in axes],
        "other": one_line(
            " ".join([*(f"{name}={value}" for name, value in params if name not in known), *([f"in {unit}"] if unit else [])]), 80
        ),
        "build": one_line(build, 60),
        "suite": one_line(suite, 60) if several else "",
        "figures": [_figure(row.get(metric), beside) for metric in kind.samples],
        "latency": _latency(latency, beside) if isinstance(latency, Merged) else [],
        "else": _of_no_column(latency, beside) if isinstance(latency, Merged) else [],
    }


def _figure(summed: object, beside: Beside) -> Shown | None:
    return {**spread(summed), "held": beside.of(summed.group)} if isinstance(summed, GroupSummary) else None


def _latency(merged: Merged, beside: Beside) -> list[Shown]:
    held = beside.of(merged.group)
    return [
        {"at": quantity(merged.histogram.quantile(part), merged.group.unit), "held": [one for one in held if _is(one, part)]}
        for part in PERCENTILES
    ]


def _of_no_column(merged: Merged, beside: Beside) -> list[Held]:
    return [one for one in beside.of(merged.group) if not any(_is(one, part) for part in PERCENTILES)]


def _is(held: Held, part: float) -> bool:
    """A hundredth of 99.9 is not the 0.999 that a person writes."""
    return held.part is not None and math.isclose(held.part, part)
