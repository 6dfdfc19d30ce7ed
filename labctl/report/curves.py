"""Percentile curves as plotly's JSON: how much worse the tail is than the middle.

The horizontal axis has the nines at equal distances: p50, p90, p99, p99.9 and p99.99 stand at 2, 10, 100 ... = 1 / (1 - p) of a
logarithmic axis, as HdrHistogram draws them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from labctl.histogram import Histogram
from labctl.judge.distribution import Merged
from labctl.promise import Promise
from labctl.report.figures import PALETTE, Chart, plotly_text, rounded
from labctl.report.quantity import natural, scale

MOST_LINES = 12
"""Series of a chart."""
MOST_PARTS = 8
"""Single histograms that are drawn beside their sum; of more only the sum."""
NINES = (0.5, 0.9, 0.99, 0.999, 0.9999)
_STEPS_A_DECADE = 12
_HEIGHT = 420  # pixels
_FEW_DECADES = 4


def curve_chart(label: str, series: Sequence[Merged], promises: Sequence[Promise] = ()) -> Chart:
    """One line for each build and target, of merged histograms; thin lines are the single ones. All series are of one unit."""
    ordered = sorted(series, key=lambda m: (natural(m.group.target), natural(m.group.build), m.group.suite))
    notes: list[str] = []
    if len(ordered) > MOST_LINES:
        slowest = sorted(ordered, key=lambda m: (-m.histogram.quantile(0.99), natural(m.group.target), natural(m.group.build)))
        notes.append(f"{MOST_LINES} of {len(ordered):,} series are drawn, those of the highest p99.")
        kept = slowest[:MOST_LINES]
        ordered = [one for one in ordered if one in kept]
    by, unit = scale(max(m.histogram.quantile(0.99) for m in ordered), ordered[0].group.unit)
    unit = plotly_text(unit)
    targets, suites = {m.group.target for m in ordered}, {m.group.suite for m in ordered}
    data: list[dict[str, Any]] = []
    for index, merged in enumerate(ordered):
        g = merged.group
        words = [g.build, *([f"on {g.target}"] if len(targets) > 1 else []), *([f"in {g.suite}"] if len(suites) > 1 else [])]
        name = plotly_text(" ".join(words))
        role = {"role": f"series-{index % PALETTE + 1}"}
        if 1 < len(merged.parts) <= MOST_PARTS:
            for part in merged.parts:
                xs, ys = _curve(part.histogram, by)
                thin = {"width": 1}
                data.append(_line(xs, ys, name, role, thin) | {"opacity": 0.35, "hoverinfo": "skip", "showlegend": False})
        xs, ys = _curve(merged.histogram, by)
        dash = ("solid", "dash", "dot")[index // PALETTE % 3]
        data.append(
            _line(xs, ys, name, role, {"width": 2.5, "dash": dash})
            | {
                "customdata": [_percentile(1 - 1 / x) for x in xs],
                "hovertemplate": f"%{{customdata}}: %{{y:.4~g}} {unit}<extra>{name}</extra>",
                "showlegend": True,
            }
        )
    data += (_limit(promise, by, unit) for promise in promises)
    layout = {
        "height": _HEIGHT,
        "margin": {"l": 12, "r": 16, "t": 56, "b": 48},
        "hovermode": "closest",
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": {
            "type": "log",
            "title": {"text": "percentile"},
            "tickmode": "array",
            "tickvals": [rounded(1 / (1 - part)) for part in NINES],
            "ticktext": [_percentile(part) for part in NINES],
            "range": [math.log10(1.8), 4.05],
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
        },
        "yaxis": {
            "type": "log",
            "title": {"text": f"{plotly_text(ordered[0].group.metric)}, {unit}".rstrip(", ")},
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
            "tickmode": "array",
            **ticks(data),
        },
    }
    return Chart(label, {"data": data, "layout": layout}, _HEIGHT, tuple(notes))


def _curve(histogram: Histogram, by: float) -> tuple[list[float], list[float]]:
    """From p50 to p99.99, or as far as an observation stands for what is beyond."""
    decades = min(4.0, math.log10(max(2, histogram.count)))
    first = math.log10(2)
    steps = max(1, math.ceil((decades - first) * _STEPS_A_DECADE))
    at = [first + (decades - first) * i / steps for i in range(steps + 1)]
    parts = sorted({1 - 10**-x for x in at} | {part for part in NINES if histogram.count * (1 - part) >= 1 - 1e-9})
    # What is 0 has no place on a logarithmic axis.
    points = [(1 / (1 - part), value / by) for part in parts if (value := histogram.quantile(part)) > 0]
    return [rounded(x) for x, _ in points], [rounded(y) for _, y in points]


def _line(xs: list[float], ys: list[float], name: str, role: dict[str, str], line: dict[str, Any]) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": xs, "y": ys, "line": line, "meta": role}


def _limit(promise: Promise, by: float, unit: str) -> dict[str, Any]:
    """Where the promise has its limit: a mark at its percentile, a line where it is for all observations."""
    part = promise.part
    xs = [2.0, 10_000.0] if part is None else [rounded(1 / (1 - part))]
    name = plotly_text(f"promised: {promise.name} {promise.asked}")
    return {
        "type": "scatter",
        "mode": "lines" if part is None else "markers",
        "name": name,
        "x": xs,
        "y": [rounded(promise.limit / by)] * len(xs),
        "line": {"width": 2, "dash": "dash"},
        "marker": {"symbol": "triangle-down" if promise.upper else "triangle-up", "size": 13},
        "hovertemplate": f"%{{y:.4~g}} {unit}<extra>{name}</extra>",
        "showlegend": True,
        "meta": {"role": "fail"},
    }


def ticks(data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """1, 2, 5, 10, 20 ... over what is drawn; of many decades only their beginnings, and of very many some of those."""
    drawn = [y for trace in data for y in trace["y"]] or [1.0]
    first, last = math.floor(math.log10(min(drawn))), math.ceil(math.log10(max(drawn)))
    several = (1, 2, 5) if last - first <= _FEW_DECADES else (1,)
    every = max(1, (last - first) // 8)
    values = [digit * 10.0**decade for decade in range(first, last + 1, every) for digit in several]
    return {"tickvals": values, "ticktext": [f"{value:,.10g}" if 1e-4 <= value < 1e7 else f"{value:.0e}" for value in values]}


def _percentile(part: float) -> str:
    digits = f"{100 * part:.3f}".rstrip("0").rstrip(".")
    return f"p{digits}"
