"""What VMs were measured by, as tables: start, heartbeat, migration, restart, desktop; and what a neighbour does to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labctl.judge.vms import ISOLATION, Observed, isolation
from labctl.model import Channel
from labctl.report.beside import Beside
from labctl.report.printable import one_line
from labctl.report.quantity import number, quantity, scale

MOST_ROWS = 120
MOST_SAMPLES = 8
"""That are told one by one."""
_NAMES = {
    "vm.start": "Start of a VM",
    "vm.beat_gap": "Gap between heartbeats",
    "restart.time": "Restart after a failure",
    "migration.downtime": "Downtime of a migration",
    "migration.total": "A migration in all",
    "desktop.fps": "Frames of the desktop",
    "desktop.latency": "Input to pixel",
}
_UNITS = {"desktop.fps": "fps"}
_P90_FROM, _P99_FROM = 10, 100
"""Observations from which a percentile says more than the largest."""

Shown = Mapping[str, Any]


def table(found: Sequence[Observed], beside: Beside) -> list[Shown]:
    """A row a series; isolation has a table of its own."""
    return [_row(one, beside) for one in found if one.group.metric != ISOLATION]


def neighbours(found: Sequence[Observed]) -> list[Shown]:
    """A row for each build and target: the VM alone, then beside each neighbour, with how many times as long its gaps are."""
    return [
        {
            "build": one_line(one.build, 60),
            "where": one_line(" ".join([one.target, *(f"{name}={value}" for name, value in one.params)]), 100),
            "beside": [
                {
                    "neighbour": one_line(beside.neighbour, 40),
                    "median": quantity(beside.observed.median, beside.observed.group.unit),
                    "high": quantity(beside.observed.high, beside.observed.group.unit),
                    "factor": f"× {beside.factor:.2f}" if beside.factor is not None else "",
                    "count": beside.observed.count,
                }
                for beside in one.beside
            ],
        }
        for one in isolation(found)
    ]


def _row(one: Observed, beside: Beside) -> Shown:
    g = one.group
    unit = _UNITS.get(g.metric, g.unit)
    by, _ = scale(one.median, unit)
    each = [number(value / by) for value in one.samples] if 1 < len(one.samples) <= MOST_SAMPLES else []
    return {
        "what": _NAMES.get(g.metric, g.metric) + ("" if g.channel is Channel.WALL else f" ({g.channel})"),
        "metric": g.metric,
        "build": one_line(g.build, 60),
        "where": one_line(" ".join([g.target, *(f"{name}={value}" for name, value in g.params)]), 100),
        "count": f"{one.count:,}",
        "low": quantity(one.low, unit),
        "median": quantity(one.median, unit),
        "p90": quantity(one.p90, unit) if one.count >= _P90_FROM else "–",
        "p99": quantity(one.p99, unit) if one.count >= _P99_FROM else "–",
        "high": quantity(one.high, unit),
        "each": each,
        "held": beside.of(g),
    }
