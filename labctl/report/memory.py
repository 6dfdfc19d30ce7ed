"""A machine's memory as the kernel has it, beside what the target's file says that the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labctl.judge.summary import GroupSummary, Summary
from labctl.model import Channel
from labctl.report.beside import Beside
from labctl.report.measurements import spread
from labctl.report.printable import one_line
from labctl.report.quantity import natural, quantity
from labctl.report.some import Some
from labctl.result import RunResult
from labctl.size import parse_size

MOST_ROWS = 100
OF_TARGET = {"memory.total": "Total", "memory.available": "Available"}
"""Metrics that are a part of the target's memory → the head of the column."""

Shown = Mapping[str, Any]


def memory(run: RunResult, summary: Summary, beside: Beside) -> Some[Shown]:
    """A row for each build on each target that recorded one of `OF_TARGET`, in any suite."""
    found: dict[tuple[str, str, str], dict[str, GroupSummary]] = {}
    for summed in summary.groups:
        g = summed.group
        if g.metric in OF_TARGET and g.channel is Channel.WALL and g.unit == "B" and not g.params:
            found.setdefault((g.target, g.build, g.suite), {})[g.metric] = summed
    rows = sorted(found.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]), item[0][2]))
    return Some.of((_row(run, *where, row, beside) for where, row in rows), MOST_ROWS)


def _row(run: RunResult, target: str, build: str, suite: str, row: Mapping[str, GroupSummary], beside: Beside) -> Shown:
    whole = _size(run.targets.get(target, {}).get("memory"))
    return {
        "target": one_line(target, 60),
        "build": one_line(build, 60),
        "suite": one_line(suite, 60),
        "whole": "not known" if whole is None else quantity(whole, "B"),
        "figures": [_figure(row.get(metric), whole, beside) for metric in OF_TARGET],
    }


def _size(value: object) -> int | None:
    """Bytes, of what run.json says that a target has."""
    try:
        return parse_size(value) or None
    except ValueError:
        return None


def _figure(summed: GroupSummary | None, whole: int | None, beside: Beside) -> Shown | None:
    if summed is None:
        return None
    part = "" if whole is None else f"{100 * summed.spread.median / whole:.1f} % of the target's"
    return {**spread(summed), "part": part, "held": beside.of(summed.group)}
