"""Density curves in a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from labctl.judge.density import Curve
from labctl.report.density import told
from labctl.result import RunResult

MOST_CURVES = 20
_HEADS = ("HEALTHY", "DENSITY OF", "KNEE", "START p50 / p99", "GAP p99", "PSS", "CPU", "ENDED BY")
_GAP = "  "


def density_table(run: RunResult, curves: Sequence[Curve]) -> list[RenderableType]:
    """A line for each curve, those that failed first."""
    shown = told(run, curves, drawn=0)
    lines = [
        (
            f"{'–' if c['died'] else c['healthy']} of {c['vms']}",
            c["label"],
            c["knee"] or "–",
            " / ".join(c["start"]) or "–",
            c["gap"],
            c["pss"],
            c["cpu"],
            c["ended"],
        )
        for c in shown[:MOST_CURVES]
    ]
    if not lines:
        return []
    widths = [max(len(line[i]) for line in (_HEADS, *lines)) for i in range(len(_HEADS))]
    parts: list[RenderableType] = [Text("")]
    for line, style in ((_HEADS, "bold"), *((line, "bold red" if c["failed"] else "") for line, c in zip(lines, shown, strict=False))):
        first = Text(f"{line[0]:>{widths[0]}}", style)
        rest = Text(_GAP + _GAP.join(f"{word:{width}}" for word, width in zip(line[1:], widths[1:], strict=True)).rstrip())
        rest.stylize("bold" if line is _HEADS else "")
        text = first + rest
        text.no_wrap, text.overflow = True, "ignore"
        parts.append(text)
    if more := len(shown) - len(lines):
        parts.append(Text(f"… and {more:,} curves more: see the report", style="dim"))
    return parts


def density_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """For programs: figures in seconds, bytes and parts of one."""
    return [
        {
            "build": c.cell.build,
            "target": c.cell.target,
            "suite": c.cell.suite,
            "repeat": c.cell.repeat,
            "runner": c.runner,
            "params": dict(c.params),
            "outcome": c.outcome.value,
            "reason": c.reason,
            "vms": c.vms,
            "healthy": c.healthy,
            "limit": c.limit,
            "died": c.died,
            "knee": _knee(c),
            "start": None if c.start is None else {"p50": c.start.median, "p99": c.start.p99},
            "gap": c.gap,
            "pss": c.pss,
            "memory": c.memory,
            "cpu": c.cpu,
            "checks": [
                {"vms": k.vms, "gap": k.gap, "pss": k.pss, "available": k.available, "cpu": k.cpu} for k in c.checks
            ],
        }
        for c in curves
    ]  # fmt: skip


def _knee(curve: Curve) -> dict[str, Any] | None:
    knee = curve.knee
    return None if knee is None else {"metric": knee.metric, "vms": knee.bend.vms, "before": knee.bend.before, "after": knee.bend.after}
