"""What the suites measured, arranged for the page under the names of docs/suites.md.

Reads, never computes: figures come from `labctl.judge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labctl.judge.availability import FAILURES, GAP, SECONDS, Uptime, availability, soaks, uptimes
from labctl.judge.density import curves as density_curves
from labctl.judge.distribution import Merged
from labctl.judge.promise import Judged
from labctl.judge.summary import Summary
from labctl.judge.vms import observed
from labctl.model import Channel
from labctl.promise import AVAILABILITY, Promise
from labctl.report import density, vms, workloads
from labctl.report.beside import Beside
from labctl.report.curves import MOST_LINES, NINES, curve_chart
from labctl.report.figures import Chart
from labctl.report.memory import OF_TARGET, memory
from labctl.report.order import duration
from labctl.report.printable import one_line
from labctl.report.promises import told
from labctl.report.quantity import natural, percent, quantity
from labctl.report.workloads import Params, by_workload
from labctl.result import RunResult

MOST_PROMISES = 200
MOST_CURVES = 200
MOST_DRAWN = 288
"""Lines of all charts together."""
MOST_CURVE_ROWS = 60
MOST_SAMPLES = 8
"""Samples that are told in a cell of a table."""
MOST_UPTIMES = 100
MOST_DENSITIES = 100
MOST_NEIGHBOURS = 20

_OF_SOAKS = {SECONDS: "s", FAILURES: "1", GAP: "s"}
"""Metric → its unit."""

Shown = Mapping[str, Any]


def suites(run: RunResult, summary: Summary, merged: Sequence[Merged], judged: Sequence[Judged], beside: Beside) -> dict[str, Any]:
    """What the template of the suites shows, each a list and how many more there are; nothing in it is HTML."""
    promises = told(judged)
    curves = _curves(merged, beside)
    ups = _uptimes(run, judged, beside)
    densities = density.told(run, density_curves([run]))
    seen = observed(summary.groups, merged)
    machines, neighbours = vms.table(seen, beside), vms.neighbours(seen)
    return {
        "promises": promises[:MOST_PROMISES],
        "promises_more": max(0, len(promises) - MOST_PROMISES),
        "density": densities[:MOST_DENSITIES],
        "density_more": max(0, len(densities) - MOST_DENSITIES),
        "vms": machines[: vms.MOST_ROWS],
        "vms_more": max(0, len(machines) - vms.MOST_ROWS),
        "neighbours": neighbours[:MOST_NEIGHBOURS],
        "neighbours_more": max(0, len(neighbours) - MOST_NEIGHBOURS),
        "storage": workloads.tables(workloads.STORAGE, summary, merged, beside),
        "network": workloads.tables(workloads.NETWORK, summary, merged, beside),
        "memory": memory(run, summary, beside),
        "memory_heads": list(OF_TARGET.values()),
        "curves": [curve for curve in curves if curve["chart"].height],
        "curves_more": sum(not curve["chart"].height for curve in curves),
        "uptimes": ups[:MOST_UPTIMES],
        "uptimes_more": max(0, len(ups) - MOST_UPTIMES),
    }


# --- latency ----------------------------------------------------------------------------------------------------------


def _curves(merged: Sequence[Merged], beside: Beside) -> list[Shown]:
    """A chart for each metric with one set of parameters, in one unit and channel: what may be compared stands in one."""
    found: dict[tuple[str, Params, str, Channel], list[Merged]] = {}
    for one in merged:
        g = one.group
        found.setdefault((g.metric, g.params, g.unit, g.channel), []).append(one)
    keys = sorted(found, key=lambda key: (key[0], key[3], by_workload(key[1]), key[2]))
    units: dict[tuple[str, Params, Channel], int] = {}
    for metric, params, _, channel in keys:
        units[metric, params, channel] = units.get((metric, params, channel), 0) + 1
    curves: list[Shown] = []
    lines = 0
    for key in keys:
        metric, params, unit, channel = key
        words = [metric, *(f"{name}={value}" for name, value in params), *([f"({channel})"] if channel is not Channel.WALL else [])]
        label = one_line(" ".join([*words, *([f"in {unit}"] if units[metric, params, channel] > 1 else [])]), 120)
        series = sorted(found[key], key=lambda m: (natural(m.group.target), natural(m.group.build), m.group.suite))
        # Few series of many workloads are drawn whole, as many series of few are.
        lines += min(len(series), MOST_LINES)
        drawn = lines <= MOST_DRAWN and len(curves) < MOST_CURVES
        chart = curve_chart(label, series, _above_zero(beside, series)) if drawn else Chart(label, {}, 0)
        rows = [_curve_row(one, unit, beside) for one in series[:MOST_CURVE_ROWS]] if drawn else []
        curves.append(
            {
                "label": label,
                "chart": chart,
                "rows": rows,
                "held": any(row["held"] for row in rows),
                "more": max(0, len(series) - MOST_CURVE_ROWS),
            }
        )
    return curves


def _above_zero(beside: Beside, series: Iterable[Merged]) -> list[Promise]:
    """What can be drawn on a logarithmic axis of the promises that these curves are held to."""
    return [one for one in beside.promises(merged.group for merged in series) if one.limit > 0]


def _curve_row(one: Merged, unit: str, beside: Beside) -> Shown:
    g, h = one.group, one.histogram
    return {
        "target": one_line(g.target, 60),
        "build": one_line(g.build, 60),
        "suite": one_line(g.suite, 60),
        "count": h.count,
        "parts": len(one.parts),
        "at": [quantity(h.quantile(part), unit) if h.count * (1 - part) >= 1 - 1e-9 else "–" for part in NINES],
        "max": quantity(h.high, unit),
        "held": beside.of(g),
        "singles": [quantity(part.histogram.quantile(0.99), unit) for part in one.parts[:MOST_SAMPLES]] if len(one.parts) > 1 else [],
        "singles_more": max(0, len(one.parts) - MOST_SAMPLES),
    }


# --- endurance --------------------------------------------------------------------------------------------------------


def _uptimes(run: RunResult, judged: Sequence[Judged], beside: Beside) -> list[Shown]:
    single = soaks([run])
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
                "singles": _singles(single[build, target]),
                "held": {metric.rpartition(".")[2]: beside.of_metric(metric, build, target, unit) for metric, unit in _OF_SOAKS.items()},
                "value": percent(found.value) if found else "–",
                "bounds": f"{percent(found.low)} – {percent(found.high)}" if found else "–",
                "mtbf": f"≥ {duration(found.mtbf_low)}" if found else "–",
                "restore": quantity(found.restore_s, "s") if found else "–",
                "supports": supports,
                "verdict": told([one])[0] if one is not None else None,
            }
        )
    return rows


def _singles(parts: Sequence[Uptime]) -> Shown:
    """Of several soaks the time under load and the worst gap of each."""
    told = [f"{duration(part.seconds)}, gap {quantity(part.gap, 's')}" for part in parts[:MOST_SAMPLES]] if len(parts) > 1 else []
    return {"each": told, "more": max(0, len(parts) - MOST_SAMPLES)}
