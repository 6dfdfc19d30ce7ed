"""Charts as plotly's JSON. Plain dicts: building them with plotly.graph_objects costs a quarter of a second; the tests check them with it.

Colours are left to the page, which knows whether it is dark: a trace says in ``meta`` which role of the palette it plays.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from labctl.judge.summary import BootSummary, GroupSummary
from labctl.model import Channel, Direction, Milestone
from labctl.promise import Promise
from labctl.report.printable import one_line
from labctl.report.quantity import natural, scale

PALETTE = 8
"""Colours of series that the page's style sheet has."""
MOST_ROWS = 40
MOST_LEGEND = 6
"""Of more builds a legend is only in the way: each row says its build."""
POINTS = 16_000
"""Points that all charts of a page draw together."""
_ROW = 30  # pixels
_MARGIN = 92  # pixels above and below the rows
_FAR = 3
"""Times the largest sample: a wider axis would leave the samples no room."""


@dataclass(frozen=True)
class Chart:
    """A figure, and what must be said beside it."""

    label: str
    figure: dict[str, Any]
    height: int
    """Pixels."""
    notes: tuple[str, ...] = ()


@dataclass
class _Rows:
    """The vertical axis: a heading for each target, its builds below; one line each where there is one build only."""

    positions: dict[tuple[str, str], int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, keys: Sequence[tuple[str, str]], *, grouped: bool) -> _Rows:
        rows = cls()
        several = grouped and len({build for _, build in keys}) > 1
        last = None
        for target, build in keys:
            if several and target != last:
                rows.labels.append(f"<b>{plotly_text(target)}</b>")
                last = target
            rows.positions[target, build] = len(rows.labels)
            rows.labels.append(
                plotly_text(build) if several else plotly_text(target) if grouped else f"{plotly_text(target)} · {plotly_text(build)}"
            )
        return rows

    @property
    def height(self) -> int:
        return len(self.labels) * _ROW + _MARGIN

    @property
    def axis(self) -> dict[str, Any]:
        return {
            "tickmode": "array",
            "tickvals": list(range(len(self.labels))),
            "ticktext": self.labels,
            "range": [len(self.labels) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
            "ticks": "",
        }


def samples_chart(label: str, groups: Sequence[GroupSummary], points: int, promises: Sequence[Promise] = ()) -> Chart:
    """Every sample as a point, the middle half as a bar behind them, the median as a line. All groups are of one metric, channel and unit.

    A promise is an upright line across all rows, or a note where it lies too far away to be drawn with the samples.

    Draws about ``points`` points: of a larger group evenly by rank, both ends kept.
    """
    first = groups[0].group
    notes: list[str] = []
    keyed = {(g.group.target, g.group.build): g for g in groups}
    keys = sorted(keyed, key=lambda key: (natural(key[0]), natural(key[1])))
    crowded = len(keys) > MOST_ROWS
    if crowded:
        sign = 1 if first.direction is Direction.HIGHER else -1
        keys = sorted(keys, key=lambda key: (sign * keyed[key].spread.median, key))[:MOST_ROWS]
        which = "lowest" if sign > 0 else "highest"
        notes.append(f"{MOST_ROWS} of {len(keyed):,} series are drawn, those of the {which} median.")
    rows = _Rows.of(keys, grouped=not crowded)
    by, unit = scale(max(abs(keyed[key].spread.maximum) for key in keys), first.unit)
    unit = plotly_text(unit)
    each = max(3, points // len(keys))
    if any(keyed[key].spread.count > each for key in keys):
        notes.append(f"At most {each:,} points a series are drawn, both ends kept; medians and quartiles are of all samples.")

    builds = sorted({build for _, build in keys}, key=natural)
    data: list[dict[str, Any]] = []
    for index, build in enumerate(builds):
        of_build = [(rows.positions[key], keyed[key]) for key in keys if key[1] == build]
        # Counts that differ have no median: nobody is shown one.
        averaged = [(y, g) for y, g in of_build if g.reading is None or g.reading.value is not None]
        role = {"role": f"series-{index % PALETTE + 1}"}
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "base": [rounded(g.spread.lower_quartile / by) for _, g in averaged],
                "x": [rounded((g.spread.upper_quartile - g.spread.lower_quartile) / by) for _, g in averaged],
                "y": [y for y, _ in averaged],
                "width": 0.62,
                "opacity": 0.22,
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": role,
            }
        )
        xs: list[float] = []
        ys: list[float] = []
        loads: list[str] = []
        for y, group in of_build:
            drawn = _thinned(sorted(((s.value, s.conditions.get("load1", math.nan)) for s in group.samples), key=lambda s: s[0]), each)
            xs += (rounded(value / by) for value, _ in drawn)
            # Spread over the row by the golden ratio: even, and the same each time.
            ys += (round(y + (i * 0.618034 % 1 - 0.5) * 0.46, 2) for i in range(len(drawn)))
            loads += (f"{load:.2f}" if math.isfinite(load) else "not known" for _, load in drawn)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(build),
                "x": xs,
                "y": ys,
                "customdata": loads,
                "marker": {"size": 7 if len(xs) < 2000 else 4, "opacity": 0.8 if len(xs) < 500 else 0.5},
                "hovertemplate": f"%{{x:.5~g}} {unit}<br>host load %{{customdata}}<extra>{plotly_text(build)}</extra>",
                "showlegend": 1 < len(builds) <= MOST_LEGEND,
                "meta": role,
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [rounded(g.spread.median / by) for _, g in averaged],
                "y": [y for y, _ in averaged],
                "customdata": [g.spread.count for _, g in averaged],
                "marker": {"symbol": "line-ns", "size": 20, "line": {"width": 3}},
                "hovertemplate": f"median %{{x:.5~g}} {unit} of %{{customdata}} samples<extra>{plotly_text(build)}</extra>",
                "showlegend": False,
                "meta": role,
            }
        )
    lowest, highest = min(keyed[key].spread.minimum for key in keys), max(keyed[key].spread.maximum for key in keys)
    for promise in promises:
        told = f"promised: {promise.name} {promise.asked}"
        size = max(abs(lowest), abs(highest))
        if not size or max(highest, promise.limit) - min(lowest, promise.limit) <= _FAR * size:
            data.append(_limit(plotly_text(told), promise.limit / by, len(rows.labels), unit))
        else:
            notes.append(f"{one_line(told, 120)}, which is too far from these samples to be drawn.")
    return Chart(
        label, {"data": data, "layout": _layout(rows, f"{plotly_text(first.metric)}, {unit}".rstrip(", "))}, rows.height, tuple(notes)
    )


def _limit(name: str, at: float, rows: int, unit: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [rounded(at)] * 2,
        "y": [-0.6, rows - 0.4],
        "line": {"width": 2, "dash": "dash"},
        "hovertemplate": f"%{{x:.5~g}} {unit}<extra>{name}</extra>",
        "showlegend": True,
        "meta": {"role": "fail"},
    }


def milestones_chart(boots: Sequence[BootSummary]) -> Chart:
    """What a boot's time went into: medians of the milestones as bars end to end. All boots are of one channel."""
    notes = []
    keyed = {(b.target, b.build): b for b in boots}
    keys = sorted(keyed, key=lambda key: (natural(key[0]), natural(key[1])))
    crowded = len(keys) > MOST_ROWS
    if crowded:
        keys = sorted(keys, key=lambda key: (-_reached(keyed[key]), key))[:MOST_ROWS]
        notes.append(f"{MOST_ROWS} of {len(keyed):,} are drawn, the slowest.")
    rows = _Rows.of(keys, grouped=not crowded)
    by, unit = scale(max(_reached(keyed[key]) for key in keys), "s")
    data: list[dict[str, Any]] = []
    for index, milestone in enumerate(Milestone):
        starts: list[float] = []
        lengths: list[float] = []
        ys: list[int] = []
        for key in keys:
            found = keyed[key].milestones
            if milestone in found:
                before = max((found[m].median for m in list(Milestone)[:index] if m in found), default=0.0)
                starts.append(rounded(before / by))
                lengths.append(rounded(max(0.0, found[milestone].median - before) / by))
                ys.append(rows.positions[key])
        if ys:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"→ {milestone}",
                    "base": starts,
                    "x": lengths,
                    "y": ys,
                    "width": 0.68,
                    "text": [f"{length:.2f}" for length in lengths],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "textangle": 0,
                    "constraintext": "none",
                    "hovertemplate": f"%{{x:.4~g}} {unit} until {milestone}<extra></extra>",
                    "meta": {"role": f"phase-{index + 1}"},
                }
            )
    layout = _layout(rows, f"{unit} from power-on")
    layout["xaxis"]["rangemode"] = "tozero"
    layout["uniformtext"] = {"mode": "hide", "minsize": 10}
    names = {Channel.WALL: "real time", Channel.ICOUNT: "virtual time, by counted instructions"}
    return Chart(names[boots[0].channel], {"data": data, "layout": layout}, rows.height, tuple(notes))


def _layout(rows: _Rows, title: str) -> dict[str, Any]:
    return {
        "height": rows.height,
        "margin": {"l": 12, "r": 16, "t": 40, "b": 48},
        "barmode": "overlay",
        "hovermode": "closest",
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": {"title": {"text": title}, "zeroline": False, "fixedrange": True, "automargin": True},
        "yaxis": rows.axis,
    }


def _thinned(ordered: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    if len(ordered) <= most:
        return ordered
    return [ordered[i * (len(ordered) - 1) // (most - 1)] for i in range(most)]


def _reached(boot: BootSummary) -> float:
    return max(s.median for s in boot.milestones.values())


def rounded(value: float) -> float:
    """Six digits are more than a chart shows, and half the bytes. JSON has no infinity, which a difference of finite values can be."""
    return float(f"{max(-1e300, min(1e300, value)):.6g}")


def plotly_text(name: str) -> str:
    """Plotly reads a few tags in its texts."""
    return html.escape(one_line(name, 40), quote=False)
