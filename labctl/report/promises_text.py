"""Promises in a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from labctl.judge.promise import Judged, Verdict
from labctl.report.promises import ranked

MOST_PROMISES = 20
"""In the table of a run."""
_LOOKS = {"broken": "bold red", "undecided": "magenta", "kept": "green", "not measured": "dim"}
_NUMBERS = ("VALUE", "LIMIT", "MARGIN")
_GAP = "  "


def promises_table(judged: Sequence[Judged], *, everything: bool = False) -> list[RenderableType]:
    """A line for each promise, the worst first; of those that were not measured those with a gate, of which somebody may believe that they
    hold, and how many others there are, unless ``everything`` is wanted."""
    pairs = ranked(judged)
    rows = [row for _, row in pairs]
    asked = [row for one, row in pairs if row.verdict is not Verdict.NOT_MEASURED or (row.gate and not one.promise.tags)]
    shown = rows if everything else asked[:MOST_PROMISES]
    if not shown:
        return []
    lines = [
        (
            row.verdict.value,
            f"{row.build}: {row.promise}{' (gate)' if row.gate else ''}",
            row.where,
            row.value or "–",
            row.limit,
            row.margin or "–",
            row.reason or row.bounds,
        )
        for row in shown
    ]
    heads = ("PROMISE", "OF", "WHERE", "VALUE", "LIMIT", "MARGIN", "BOUNDS OR REASON")
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]
    parts: list[RenderableType] = [Text("")]
    for line in (heads, *lines):
        padded = [
            f"{word:>{width}}" if head in _NUMBERS else f"{word:{width}}" for head, word, width in zip(heads, line, widths, strict=True)
        ]
        bold = "bold" if line is heads else ""
        text = Text.assemble((padded[0], _LOOKS.get(line[0], bold)), (f"{_GAP}{_GAP.join(padded[1:])}".rstrip(), bold))
        text.no_wrap, text.overflow = True, "ignore"
        parts.append(text)
    if more := len(rows) - len(shown):
        silent = sum(row.verdict is Verdict.NOT_MEASURED for row in rows if row not in shown)
        which = f"{more:,} not measured" if silent == more else f"{more:,} more, {silent:,} of them not measured"
        parts.append(Text(f"… and {which}: labctl report promises", style="dim"))
    return parts


def promises_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """For programs: figures in the unit of the metric."""
    return [
        {
            "build": one.build,
            "promise": one.promise.name,
            "limit": one.promise.asked,
            "gate": one.promise.gate,
            "target": one.target,
            "params": dict(one.params),
            "verdict": one.verdict.value,
            "reason": one.reason,
            "value": one.value,
            "low": one.low,
            "high": one.high,
            "unit": one.promise.unit,
            "margin": None if one.margin is None else round(one.margin, 6),
            "count": one.count,
        }
        for one in judged
    ]
