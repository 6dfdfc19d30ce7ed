"""Everything that a run measured, series by series: a chart of every sample, and a table of each metric. Reads, never computes.

A page of 10,000 cells must open as one of eight does: so rows are counted over all charts and all tables, and few series of many metrics
are shown whole, as many series of few metrics are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labctl.judge.density import OF_VMS, VMS
from labctl.judge.promise import Verdict
from labctl.judge.summary import GroupSummary, Summary
from labctl.model import Channel, Milestone
from labctl.report.beside import Beside
from labctl.report.figures import MOST_ROWS, POINTS, samples_chart
from labctl.report.printable import one_line
from labctl.report.quantity import natural, number, quantity, scale
from labctl.report.some import Some

MOST_DRAWN = 640
"""Series of all charts together."""
MOST_CHARTS = 200
MOST_TABLED = 640
"""Rows of all tables together."""
LEAST_ROWS = 8
"""That each table may have."""
MOST_SAMPLES = 8
"""That are told one by one in a row; a chart has them all."""
_NO_DECIMALS = 1000

Shown = Mapping[str, Any]


@dataclass(frozen=True)
class _Series:
    """What may stand in one chart: one metric with one set of parameters, of one suite, in one channel and unit."""

    metric: str
    """With what tells it from others of its name."""
    words: str
    """Parameters, and the suite where several have the series."""
    groups: Sequence[GroupSummary]

    @property
    def label(self) -> str:
        return one_line(f"{self.metric} {self.words}".rstrip(), 120)


def measurements(summary: Summary, beside: Beside) -> dict[str, Any]:
    """What the template shows of it; nothing in it is HTML."""
    series = list(_series(summary))
    drawn = _drawn(series)
    points = POINTS // max(1, len(drawn))
    by_metric: dict[str, list[_Series]] = {}
    for one in series:
        by_metric.setdefault(one.metric, []).append(one)
    most = max(LEAST_ROWS, MOST_TABLED // max(1, len(by_metric)))
    choice: dict[str, list[tuple[int, str]]] = {}
    for index, one in enumerate(drawn):
        choice.setdefault(one.metric, []).append((index, one.label))
    return {
        "charts": Some([samples_chart(one.label, one.groups, points, beside.promises(g.group for g in one.groups)) for one in drawn],
                       len(series) - len(drawn)),
        "choice": choice,
        "tables": Some.of((_table(metric, of, most, beside) for metric, of in by_metric.items()), MOST_CHARTS),
    }  # fmt: skip


def _drawn(series: Sequence[_Series]) -> Sequence[_Series]:
    """As many as a page bears, the first at least."""
    rows = 0
    for index, one in enumerate(series[:MOST_CHARTS]):
        rows += min(len(one.groups), MOST_ROWS)
        if rows > MOST_DRAWN and index:
            return series[:index]
    return series[:MOST_CHARTS]


def _series(summary: Summary) -> Iterator[_Series]:
    """Boot times come first."""
    suites: dict[tuple[object, ...], set[str]] = {}
    units: dict[tuple[object, ...], set[object]] = {}
    found: dict[tuple[Any, ...], list[GroupSummary]] = {}
    for summed in summary.groups:
        g = summed.group
        if g.metric in OF_VMS and any(name == VMS for name, _ in g.params):
            continue  # a figure for each VM: they are points of one curve
        suites.setdefault((g.metric, g.params), set()).add(g.suite)
        units.setdefault((g.metric, g.channel), set()).add((g.unit, g.direction))
        found.setdefault((g.metric, g.params, g.suite, g.channel, g.unit, g.direction), []).append(summed)
    for group in sorted(found, key=lambda k: (_interest(k[0]), k[3] is not Channel.WALL, natural(k[0]), k[4:], _by_milestone(k[1]), k[2])):
        metric, params, suite, channel, unit, direction = group
        name = metric if channel is Channel.WALL else f"{metric} ({channel})"
        if len(units[metric, channel]) > 1:
            name += f" in {unit}, {direction}"
        words = [f"{key}={value}" for key, value in params]
        if len(suites[metric, params]) > 1:
            words.append(f"in {suite}")
        ordered = sorted(found[group], key=lambda s: (natural(s.group.target), natural(s.group.build)))
        yield _Series(one_line(name, 80), one_line(" ".join(words), 120), ordered)


def _interest(metric: str) -> int:
    return 0 if metric.startswith("boot") and "ready" in metric else 1 if metric.startswith("boot") else 2


def _by_milestone(params: Sequence[tuple[str, str]]) -> tuple[object, ...]:
    """Milestones in the order in which a boot reaches them, other parameters as people count."""
    order = list(Milestone)
    return tuple((name, order.index(Milestone(value)) if value in order else len(order), natural(value)) for name, value in params)


def _table(metric: str, series: Sequence[_Series], most: int, beside: Beside) -> Shown:
    pairs = [(one.words, summed) for one in series for summed in one.groups]
    if len(pairs) > most:  # what is cut is nothing that breaks a promise
        pairs.sort(key=lambda pair: not any(held.told.verdict is Verdict.BROKEN for held in beside.of(pair[1].group)))
    rows = Some.of(pairs, most)
    shown = [_row(words, summed, beside) for words, summed in rows.items]
    return {
        "metric": metric,
        "rows": Some(shown, rows.more),
        "words": any(row["words"] for row in shown),
        "held": any(row["held"] for row in shown),
    }


def _row(words: str, summed: GroupSummary, beside: Beside) -> Shown:
    g, s = summed.group, summed.spread
    load = summed.conditions.get("load1")
    shown = {
        "words": words,
        "target": g.target,
        "build": g.build,
        "count": s.count,
        "load": "not known" if load is None else between(*load),
        "held": beside.of(g),
        **told_one_by_one(summed),
    }
    if (counted := summed.reading) is not None:
        # A mean or a median of counts that differ would be a figure of neither boot.
        exact = counted.agreement.value if counted.value is None else quantity(counted.value, g.unit)
        told = f"{quantity(counted.low, g.unit)} – {quantity(counted.high, g.unit)}" if counted.value is None else counted.agreement.value
        return {**shown, "median": exact, "quartiles": "–", "range": told, "mad": "–"}
    return {
        **shown,
        "median": quantity(s.median, g.unit),
        "quartiles": f"{quantity(s.lower_quartile, g.unit)} – {quantity(s.upper_quartile, g.unit)}",
        "range": f"{quantity(s.minimum, g.unit)} – {quantity(s.maximum, g.unit)}",
        "mad": quantity(s.mad, g.unit),
    }


def spread(summed: GroupSummary) -> Shown:
    """Median and every sample, in one unit; the range where not all of them can be told. Of counted figures that differ no median."""
    unit, s = summed.group.unit, summed.spread
    by, name = (1.0, "") if unit == "1/s" else scale(s.median, unit)  # of requests the unit stands in the head of the table
    counted = summed.reading
    differ = counted is not None and counted.value is None
    each = told_one_by_one(summed)
    return {
        "median": "nondeterministic" if differ else f"{_short(s.median / by)} {name}".rstrip(),
        "range": f"{_short(s.minimum / by)} – {_short(s.maximum / by)}" if each["more"] else "",
        **each,
    }


def told_one_by_one(summed: GroupSummary) -> Shown:
    """Samples in the order in which they were taken, in the unit of their median; how many more there are. A single one is the median."""
    by, _ = scale(summed.spread.median, summed.group.unit)
    each = summed.samples if summed.spread.count > 1 else ()
    return {"samples": [_short(sample.value / by) for sample in each[:MOST_SAMPLES]], "more": max(0, len(each) - MOST_SAMPLES)}


def between(low: float, high: float) -> str:
    """``0.5 to 1.25``, or the one figure that both are."""
    first, last = f"{low:.2f}".rstrip("0").rstrip("."), f"{high:.2f}".rstrip("0").rstrip(".")
    return first if first == last else f"{first} to {last}"


def _short(value: float) -> str:
    """Nobody needs the decimals of ten thousand requests a second."""
    return number(round(value) if abs(value) >= _NO_DECIMALS else value)
