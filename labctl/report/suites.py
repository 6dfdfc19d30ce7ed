"""What the suites for storage, network, endurance and hypervisors measured, arranged for the page under the names of docs/suites.md.

Reads, never computes: figures come from `labctl.judge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labctl.judge.availability import availability, uptimes
from labctl.judge.density import curves as density_curves
from labctl.judge.distribution import Merged, merge
from labctl.judge.promise import Judged, judge
from labctl.judge.summary import GroupSummary, Summary
from labctl.judge.vms import observed
from labctl.model import Channel
from labctl.promise import AVAILABILITY, Promise
from labctl.report import density, vms
from labctl.report.curves import NINES, curve_chart
from labctl.report.figures import Chart
from labctl.report.order import duration
from labctl.report.printable import one_line
from labctl.report.promises import told
from labctl.report.quantity import natural, number, percent, quantity, scale
from labctl.result import RunResult

IOPS = "storage.iops"
BANDWIDTH = "storage.bandwidth"
LATENCY = "storage.latency"
MOST_PROMISES = 200
MOST_STORAGE = 12
MOST_STORAGE_ROWS = 100
MOST_CURVES = 24
MOST_CURVE_ROWS = 60
MOST_SAMPLES = 8
"""Samples that are told in a cell of a table."""
MOST_UPTIMES = 100
MOST_DENSITIES = 100
MOST_NEIGHBOURS = 20
_NO_DECIMALS = 1000

Shown = Mapping[str, Any]
_Params = tuple[tuple[str, str], ...]


def suites(run: RunResult, summary: Summary) -> dict[str, Any]:
    """What the template of the suites shows, each a list and how many more there are; nothing in it is HTML."""
    judged = judge([run])
    merged = merge([run])
    promises = told(judged)
    storage = _storage(summary, merged)
    curves = _curves(merged, judged)
    ups = _uptimes(run, judged)
    densities = density.told(run, density_curves([run]))
    seen = observed(summary.groups, merged)
    machines, beside = vms.table(seen), vms.neighbours(seen)
    return {
        "promises": promises[:MOST_PROMISES],
        "promises_more": max(0, len(promises) - MOST_PROMISES),
        "density": densities[:MOST_DENSITIES],
        "density_more": max(0, len(densities) - MOST_DENSITIES),
        "vms": machines[: vms.MOST_ROWS],
        "vms_more": max(0, len(machines) - vms.MOST_ROWS),
        "neighbours": beside[:MOST_NEIGHBOURS],
        "neighbours_more": max(0, len(beside) - MOST_NEIGHBOURS),
        "storage": storage[:MOST_STORAGE],
        "storage_more": max(0, len(storage) - MOST_STORAGE),
        "curves": curves[:MOST_CURVES],
        "curves_more": max(0, len(curves) - MOST_CURVES),
        "uptimes": ups[:MOST_UPTIMES],
        "uptimes_more": max(0, len(ups) - MOST_UPTIMES),
    }


# --- storage ----------------------------------------------------------------------------------------------------------


def _storage(summary: Summary, merged: Sequence[Merged]) -> list[Shown]:
    """A table for each disk of each target and channel: pattern, size of a block and queue depth down, what was reached across."""
    found: dict[tuple[str, str, Channel], dict[tuple[_Params, str, str], dict[str, Any]]] = {}
    recorded: list[GroupSummary | Merged] = [summed for summed in summary.groups if summed.group.metric in (IOPS, BANDWIDTH)]
    recorded += (one for one in merged if one.group.metric == LATENCY)
    for one in recorded:
        g = one.group
        table = found.setdefault((g.target, dict(g.params).get("disk", ""), g.channel), {})
        table.setdefault((g.params, g.build, g.suite), {})[g.metric] = one
    return [
        {
            "target": one_line(target, 60),
            "disk": one_line(disk, 60),
            "channel": channel,
            "rows": [_storage_row(key, rows[key]) for key in sorted(rows, key=_workload)[:MOST_STORAGE_ROWS]],
            "more": max(0, len(rows) - MOST_STORAGE_ROWS),
        }
        for (target, disk, channel), rows in sorted(found.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]), item[0][2]))
    ]


def _workload(key: tuple[_Params, str, str]) -> tuple[object, ...]:
    """Patterns by name, blocks and queue depths as people count."""
    params, build, suite = key
    of = dict(params)
    return (of.get("pattern", ""), natural(of.get("bs", "")), natural(of.get("qd", "")), params, natural(build), suite)


def _storage_row(key: tuple[_Params, str, str], row: Mapping[str, Any]) -> Shown:
    params, build, _ = key
    of = dict(params)
    known = ("pattern", "bs", "qd", "disk")
    latency = row.get(LATENCY)
    histogram = latency.histogram if isinstance(latency, Merged) else None
    unit = latency.group.unit if isinstance(latency, Merged) else ""
    return {
        **{name: one_line(of.get(name, "–"), 40) for name in known[:3]},
        "other": one_line(" ".join(f"{name}={value}" for name, value in params if name not in known), 80),
        "build": one_line(build, 60),
        "iops": _spread(row.get(IOPS)),
        "bandwidth": _spread(row.get(BANDWIDTH)),
        "latency": [quantity(histogram.quantile(part), unit) for part in (0.5, 0.99, 0.999)] if histogram else [],
    }


def _spread(summed: object) -> Shown | None:
    """Median and every sample, in one unit; the range where not all of them can be told. Of counted figures that differ no median."""
    if not isinstance(summed, GroupSummary):
        return None
    unit, s = summed.group.unit, summed.spread
    by, name = (1.0, "") if unit == "1/s" else scale(s.median, unit)  # of requests the unit stands in the head of the table
    counted = summed.reading
    differ = counted is not None and counted.value is None
    each = [_short(sample.value / by) for sample in summed.samples] if s.count > 1 else []
    return {
        "median": "nondeterministic" if differ else f"{_short(s.median / by)} {name}".rstrip(),
        "samples": each[:MOST_SAMPLES],
        "range": f"{_short(s.minimum / by)} – {_short(s.maximum / by)}" if len(each) > MOST_SAMPLES else "",
        "more": max(0, len(each) - MOST_SAMPLES),
    }


def _short(value: float) -> str:
    """Nobody needs the decimals of ten thousand requests a second."""
    return number(round(value) if abs(value) >= _NO_DECIMALS else value)


# --- latency ----------------------------------------------------------------------------------------------------------


def _curves(merged: Sequence[Merged], judged: Sequence[Judged]) -> list[Shown]:
    """A chart for each metric with one set of parameters, in one unit and channel: what may be compared stands in one."""
    found: dict[tuple[str, _Params, str, Channel], list[Merged]] = {}
    for one in merged:
        g = one.group
        found.setdefault((g.metric, g.params, g.unit, g.channel), []).append(one)
    keys = sorted(found, key=lambda key: (key[0], key[3], _workload((key[1], "", "")), key[2]))
    curves: list[Shown] = []
    for index, key in enumerate(keys):
        metric, params, unit, channel = key
        words = [metric, *(f"{name}={value}" for name, value in params), *([f"({channel})"] if channel is not Channel.WALL else [])]
        label = one_line(" ".join(words), 120)
        series = sorted(found[key], key=lambda m: (natural(m.group.target), natural(m.group.build), m.group.suite))
        drawn = index < MOST_CURVES
        chart = curve_chart(label, series, _promised(judged, key)) if drawn else Chart(label, {}, 0)
        curves.append(
            {
                "label": label,
                "chart": chart,
                "rows": [_curve_row(one, unit) for one in series[:MOST_CURVE_ROWS]] if drawn else [],
                "more": max(0, len(series) - MOST_CURVE_ROWS),
            }
        )
    return curves


def _promised(judged: Iterable[Judged], key: tuple[str, _Params, str, Channel]) -> list[Promise]:
    """The promises that speak of these curves, each once though several builds are held to it."""
    metric, params, unit, channel = key
    found: list[Promise] = []
    for one in judged:
        same = one.promise.metric == metric and one.promise.unit == unit and one.params == params and channel is Channel.WALL
        if same and one.target and one.promise.limit > 0 and one.promise not in found:
            found.append(one.promise)
    return found[:4]


def _curve_row(one: Merged, unit: str) -> Shown:
    g, h = one.group, one.histogram
    return {
        "target": one_line(g.target, 60),
        "build": one_line(g.build, 60),
        "suite": one_line(g.suite, 60),
        "count": h.count,
        "parts": len(one.parts),
        "at": [quantity(h.quantile(part), unit) if h.count * (1 - part) >= 1 - 1e-9 else "–" for part in NINES],
        "max": quantity(h.high, unit),
        "singles": [quantity(part.histogram.quantile(0.99), unit) for part in one.parts[:MOST_SAMPLES]] if len(one.parts) > 1 else [],
        "singles_more": max(0, len(one.parts) - MOST_SAMPLES),
    }


# --- endurance --------------------------------------------------------------------------------------------------------


def _uptimes(run: RunResult, judged: Sequence[Judged]) -> list[Shown]:
    promised = {(j.build, j.target): j for j in judged if j.promise.metric == AVAILABILITY}
    rows: list[Shown] = []
    for (build, target), up in sorted(uptimes([run]).items(), key=lambda item: (natural(item[0][1]), natural(item[0][0]))):
        found = availability(up)
        one = promised.get((build, target))
        supports = "no boot tells what a failure costs, so an availability cannot be told"
        if found is not None:
            failures = "1 failure" if up.failures == 1 else f"{up.failures:,} failures"
            supports = f"{failures} in {duration(up.seconds)} support {percent(found.low)} and no more, with 95 % confidence"
            if one is not None and found.low < one.promise.limit:
                supports += f"; {one.promise.asked} needs {duration(found.enough(one.promise.limit))} without another failure"
        rows.append(
            {
                "build": one_line(build, 60),
                "target": one_line(target, 60),
                "seconds": duration(up.seconds),
                "soaks": up.soaks,
                "failures": up.failures,
                "gap": quantity(up.gap, "s") if up.gap else "–",
                "value": percent(found.value) if found else "–",
                "bounds": f"{percent(found.low)} – {percent(found.high)}" if found else "–",
                "mtbf": f"≥ {duration(found.mtbf_low)}" if found else "–",
                "restore": quantity(found.restore_s, "s") if found else "–",
                "supports": supports,
                "verdict": told([one])[0] if one is not None else None,
            }
        )
    return rows
