"""The density curve as it is told: a chart, a line that says how it ended, and its figures. Reads, never computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from labctl.judge.density import GAP, START, TARGET_REACHED, Curve, Window
from labctl.judge.promise import promises_of
from labctl.model import Outcome
from labctl.promise import Promise
from labctl.report.curves import ticks
from labctl.report.figures import Chart, plotly_text, rounded
from labctl.report.order import BAD
from labctl.report.printable import one_line
from labctl.report.quantity import natural, quantity, scale
from labctl.result import RunResult

MOST_CURVES = 24
MOST_POINTS = 4000
"""Starts that a chart draws; of more evenly many, both ends kept."""
MOST_ROWS = 40
_PANELS = {"start": 230, "gap": 130, "memory": 130, "cpu": 110}  # pixels
_BETWEEN = 26  # pixels
_MARGIN = 120  # pixels
_SHOWS = {START: "starts get slower", GAP: "heartbeats come later"}

Shown = Mapping[str, Any]
Trace = dict[str, Any]


def told(run: RunResult, curves: Sequence[Curve], drawn: int = MOST_CURVES) -> list[Shown]:
    """Each curve, the failed ones first; those beyond the most that are drawn have no chart."""
    ordered = sorted(curves, key=lambda c: (c.outcome not in BAD, natural(c.cell.build), natural(c.cell.target), c.runner, c.cell.repeat))
    return [_told(curve, _promised(run, curve), drawn=index < drawn) for index, curve in enumerate(ordered)]


def name_of(curve: Curve) -> str:
    """Build, target, runner, and what else tells it from others."""
    words = [curve.cell.build, "on", curve.cell.target, *([f"by {curve.runner}"] if curve.runner else [])]
    words += (f"{name}={value}" for name, value in curve.params)
    return one_line(" ".join([*words, *([f"#{curve.cell.repeat}"] if curve.cell.repeat > 1 else [])]), 120)


def ended(curve: Curve) -> str:
    """In a few words what ended it."""
    if curve.died:
        return one_line(curve.ended, 160)
    return "all that were asked for" if curve.limit == TARGET_REACHED else one_line(curve.limit, 80) or "not told"


def knee_of(curve: Curve) -> str:
    """Where each further VM begins to cost more, and what shows it; empty where nothing does."""
    return f"{round(curve.knee.bend.vms):,} VMs: {_SHOWS[curve.knee.metric]}" if curve.knee else ""


def _promised(run: RunResult, curve: Curve) -> list[Promise]:
    found = promises_of(run.builds.get(curve.cell.build, {}))
    same = {**dict(curve.params), "runner": curve.runner}.items()
    return [one for one in found if one.metric == "density.healthy" and one.unit == "1" and one.params.items() <= same and not one.upper]


def _told(curve: Curve, promises: Sequence[Promise], *, drawn: bool) -> Shown:
    label = name_of(curve)
    starts = curve.start
    return {
        "label": label,
        "outcome": curve.outcome,
        "failed": curve.outcome is not Outcome.PASS,
        "vms": f"{curve.vms:,}",
        "died": curve.died,
        "healthy": "–" if curve.healthy is None else f"{curve.healthy:,}",
        "ended": ended(curve),
        "knee": knee_of(curve),
        "start": [quantity(value, "s") for value in (starts.median, starts.p99)] if starts else [],
        "gap": _or_dash(curve.gap, "s"),
        "worst_gap": _or_dash(curve.worst_gap, "s"),
        "pss": _or_dash(curve.pss, "B"),
        "memory": _or_dash(curve.memory, "B"),
        "cpu": _share(curve.cpu),
        "chart": _chart(label, curve, promises) if drawn else Chart(label, {}, 0),
        **_rows(curve),
    }


def _or_dash(value: float | None, unit: str) -> str:
    return "–" if value is None else quantity(value, unit)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _rows(curve: Curve) -> dict[str, Any]:
    """What stands in the table: at most `MOST_ROWS` checks, evenly, the last among them."""
    steps = [(*step, taken) for step, taken in zip_longest(curve.steps, curve.taken)]  # a step may follow the last check
    each = -(-len(steps) // MOST_ROWS) or 1
    kept = [step for i, step in enumerate(steps) if (len(steps) - 1 - i) % each == 0]
    rows = [
        {
            "vms": f"{check.vms:,}",
            "p50": _or_dash(window.median if window else None, "s"),
            "p99": _or_dash(window.p99 if window else None, "s"),
            "gap": _or_dash(check.gap, "s"),
            "pss": _or_dash(check.pss, "B"),
            "memory": _or_dash(taken, "B"),
            "available": _or_dash(check.available, "B"),
            "cpu": _share(check.cpu),
        }
        for check, window, taken in kept
    ]
    return {"rows": rows, "every": each}


# --- the chart --------------------------------------------------------------------------------------------------------


def _chart(label: str, curve: Curve, promises: Sequence[Promise]) -> Chart:
    """Panels one above the other over the same VMs: starts, heartbeats, memory, CPU; of what was not recorded none."""
    notes: list[str] = []
    panels = {
        "start": _starts(curve, notes),
        "gap": _checked("gap", "s", [("heartbeat gap, p99 over VMs", "series-3", [(c.vms, c.gap) for c in curve.checks])]),
        "memory": _checked(
            "memory a VM",
            "B",
            [
                ("PSS of a VM", "series-4", [(c.vms, c.pss) for c in curve.checks]),
                ("MemAvailable that a VM took", "series-5", [(c.vms, taken) for c, taken in zip(curve.checks, curve.taken, strict=True)]),
            ],
        ),
        "cpu": _checked(
            "CPU",
            "%",
            [("CPU of the machine", "series-6", [(c.vms, None if c.cpu is None else 100 * min(1.0, c.cpu)) for c in curve.checks])],
        ),
    }
    shown = {name: panel for name, panel in panels.items() if panel[1]}
    most = max([curve.vms, *(promise.limit for promise in promises if promise.limit < 50 * max(1, curve.vms))], default=1)
    height = sum(_PANELS[name] for name in shown) + _BETWEEN * max(0, len(shown) - 1) + _MARGIN
    inner = max(1, height - _MARGIN)
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 12, "r": 16, "t": 72, "b": 48},
        "hovermode": "closest",
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": 1 + 8 / inner, "yanchor": "bottom", "traceorder": "normal"},
    }
    data: list[Trace] = []
    top = 1.0
    for index, (name, (title, traces)) in enumerate(shown.items(), 1):
        axis = "" if index == 1 else str(index)
        bottom = max(0.0, top - _PANELS[name] / inner)
        layout[f"yaxis{axis}"] = {
            "domain": [round(bottom, 4), round(top, 4)],
            "title": {"text": title},
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
            **_scale_of(name, traces),
        }
        top = bottom - _BETWEEN / inner
        data += ({**trace, "xaxis": "x", "yaxis": f"y{axis}"} for trace in traces)
        drawn = [y for trace in traces for y in trace["y"]]
        ends = [min(drawn) if name == "start" else 0, 100 if name == "cpu" else max(drawn)]
        data += ({**trace, "xaxis": "x", "yaxis": f"y{axis}"} for trace in _marks(curve, promises, ends, most, first=index == 1))
    layout["xaxis"] = {
        "title": {"text": "VMs"},
        "range": [0, rounded(1.04 * most)],
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
        "anchor": f"y{len(shown)}" if len(shown) > 1 else "y",
    }
    return Chart(label, {"data": data, "layout": layout}, height, tuple(notes))


def _scale_of(panel: str, traces: Sequence[Trace]) -> dict[str, Any]:
    """Starts differ by more than a straight axis can show; a share of the CPU is of the whole, and drawn as no more."""
    if panel == "start":
        return {"type": "log", "tickmode": "array", **ticks(traces)}
    return {"range": [0, 104], "nticks": 3} if panel == "cpu" else {"rangemode": "tozero", "nticks": 4}


def _starts(curve: Curve, notes: list[str]) -> tuple[str, list[Trace]]:
    if not curve.starts:
        return "", []
    drawn = tuple((at, seconds) for at, seconds in curve.starts if seconds > 0)  # what is 0 has no place on a logarithmic axis
    if not drawn:
        return "", []
    by, unit = scale(curve.start.median if curve.start else 1.0, "s")
    if len(drawn) > MOST_POINTS:
        drawn = tuple(drawn[i * (len(drawn) - 1) // (MOST_POINTS - 1)] for i in range(MOST_POINTS))
        notes.append(f"{MOST_POINTS:,} of {len(curve.starts):,} starts are drawn; the lines are of all.")
    windows = curve.windows
    points: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "each start",
        "x": [at for at, _ in drawn],
        "y": [rounded(seconds / by) for _, seconds in drawn],
        "marker": {"size": 5 if len(drawn) < 500 else 3, "opacity": 0.45},
        "hovertemplate": f"VM %{{x}} started in %{{y:.4~g}} {unit}<extra></extra>",
        "meta": {"role": "series-1"},
    }
    size = f"{windows[0].last - windows[0].first + 1} starts"
    lines = [
        _line(f"start, {name} of {size}", role, [(w.last, value(w) / by) for w in windows], unit)
        for name, role, value in (("p50", "series-1", _median), ("p99", "series-2", _p99))
        if all(value(w) > 0 for w in windows)
    ]
    return f"start, {unit}", [points, *lines]


def _median(window: Window) -> float:
    return window.median


def _p99(window: Window) -> float:
    return window.p99


def _checked(title: str, unit: str, series: Iterable[tuple[str, str, Sequence[tuple[int, float | None]]]]) -> tuple[str, list[Trace]]:
    """Lines of what was seen at the checks, all in one unit."""
    found = [(name, role, [(at, value) for at, value in points if value is not None]) for name, role, points in series]
    found = [(name, role, points) for name, role, points in found if points]
    if not found:
        return "", []
    by, unit = (1.0, unit) if unit == "%" else scale(max(abs(value) for _, _, points in found for _, value in points), unit)
    lines = [_line(name, role, [(at, value / by) for at, value in points], unit, dots=True) for name, role, points in found]
    # A panel of one line says by its axis what that is.
    return f"{title}, {unit}", [{**line, "showlegend": len(lines) > 1} for line in lines]


def _line(name: str, role: str, points: Sequence[tuple[int, float]], unit: str, *, dots: bool = False) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots or len(points) < 2 else "lines",
        "name": name,
        "x": [at for at, _ in points],
        "y": [rounded(value) for _, value in points],
        "line": {"width": 2},
        "marker": {"size": 5},
        "hovertemplate": f"%{{x}} VMs: %{{y:.4~g}} {unit}<extra>{name}</extra>",
        "meta": {"role": role},
    }


def _marks(curve: Curve, promises: Sequence[Promise], ends: Sequence[float], most: float, *, first: bool) -> list[Trace]:
    """Upright lines through every panel; the first one says what they are."""
    marks: list[tuple[float, str, str, str]] = []
    if curve.knee is not None:
        marks.append((curve.knee.bend.vms, f"knee at {round(curve.knee.bend.vms):,}", "invalid", "dot"))
    marks += ((promise.limit, f"promised: {promise.asked}", "muted", "dash") for promise in promises if promise.limit <= most)
    end = f"died with {curve.vms:,}" if curve.died else f"{curve.healthy:,} healthy, ended by {curve.limit or 'nothing told'}"
    marks.append((curve.vms, end, "pass" if curve.outcome is Outcome.PASS and not curve.died else "fail", "solid"))
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plotly_text(name),
            "x": [rounded(at)] * 2,
            "y": [rounded(y) for y in ends],
            "line": {"width": 2, "dash": dash},
            "hovertemplate": f"{plotly_text(name)}<extra></extra>",
            "showlegend": first,
            "meta": {"role": role},
        }
        for at, name, role, dash in marks
    ]
