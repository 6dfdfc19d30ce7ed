"""What the suites measured, on the page and in a terminal: storage, percentile curves, availability, promises."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from labctl.histogram import Histogram
from labctl.judge.distribution import merge
from labctl.judge.promise import Verdict, judge
from labctl.judge.summary import Group, summarise
from labctl.model import Channel, Direction, Outcome
from labctl.parsers import fio
from labctl.promise import promise
from labctl.report.curves import MOST_LINES, curve_chart
from labctl.report.html import write_html
from labctl.report.promises import told
from labctl.report.quantity import percent, quantity
from labctl.report.suites import MOST_DRAWN
from labctl.report.text import show
from labctl.report.view import page
from labctl.result import Distribution, RunResult
from tests.report_runs import hostile_run, large_run, of_suites, ordinary_run, suites_run

FOLDER = Path("/nowhere")
FIO = Path(__file__).parents[1] / "data" / "fio"


@pytest.fixture(scope="module")
def run() -> RunResult:
    return suites_run(FOLDER)


@pytest.fixture(scope="module")
def shown(run: RunResult) -> dict[str, Any]:
    return of_suites(run)


def series(run: RunResult, metric: str) -> list[Any]:
    return [merged for merged in merge([run]) if merged.group.metric == metric]


def lines(figure: dict[str, Any]) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace["mode"] == "lines" and trace.get("showlegend")]


def test_storage_is_told_by_pattern_and_queue_depth_with_every_sample(run: RunResult, shown: dict[str, Any]) -> None:
    (table,) = shown["storage"].items
    assert table["axes"] == ["Pattern", "Block", "QD"]
    rows = [(r["axes"][0], r["axes"][2], r["build"]) for r in table["rows"].items]
    assert rows[:4] == [("randread", "1", "debian-cloud"), ("randread", "1", "debian-cloud-previous"), ("randread", "8", "debian-cloud"), ("randread", "8", "debian-cloud-previous")]  # fmt: skip
    assert len(rows) == 4 * 3 * 2
    wanted = {("pattern", "randread"), ("qd", "1")}
    values = [
        s.value
        for c in run.cells
        if c.cell.build == "debian-cloud"
        for s in c.samples
        if s.metric == "storage.iops" and wanted <= set(s.params.items())
    ]
    iops, bandwidth = table["rows"].items[0]["figures"]
    assert iops["samples"] == [f"{round(value):,}" for value in values]
    assert iops["median"] == f"{round(sorted(values)[1]):,}"
    assert bandwidth["median"].endswith(" MiB/s")
    assert len(table["rows"].items[0]["latency"]) == 3


def test_a_promise_stands_below_the_figure_that_it_is_made_of(run: RunResult, shown: dict[str, Any]) -> None:
    judged = {(j.promise.name, j.build, j.params): j.verdict for j in judge([run])}
    (table,) = shown["storage"].items
    rows = {(r["axes"][0], r["axes"][2], r["build"]): r for r in table["rows"].items}

    def below(cell: dict[str, Any]) -> list[tuple[str, Verdict]]:
        return [(held.asked, held.told.verdict) for held in cell["held"]]

    params = (("bs", "4k"), ("disk", "virtio-blk"), ("pattern", "randread"), ("qd", "32"))
    deep = rows["randread", "32", "debian-cloud"]
    assert below(deep["figures"][0]) == [
        ("median >= 100000", judged["storage.iops median pattern=randread qd=32", "debian-cloud", params]),
    ]
    assert below(deep["figures"][1]) == []
    assert [below(part) for part in deep["latency"]] == [[], [], []]
    shallow = rows["read", "1", "debian-cloud"]
    assert below(shallow["figures"][0]) == []
    assert [asked for asked, _ in below(shallow["latency"][2])] == ["p99.9 <= 50 us"]
    assert table["else"], "what is promised of a figure that has no column"
    assert [held.asked for held in shallow["else"]] == ["max <= 1 s"]
    (net,) = shown["network"].items
    assert [[asked for asked, _ in below(part)] for part in net["rows"].items[0]["latency"]] == [[], ["p99 <= 1 ms"], []]
    assert [r["axes"] for r in net["rows"].items] == [["guest-guest"]] * 2 + [["guest-host"]] * 2
    (one,) = [curve for curve in shown["curves"] if curve["label"] == "network.rtt path=guest-host"]
    assert [[held.asked for held in row["held"]] for row in one["rows"]] == [["p99 <= 1 ms"]] * 2
    assert [held.asked for held in shown["uptimes"][0]["held"]["gap"]] == ["max <= 5 s"]


def test_every_workload_has_its_curve_where_the_series_are_few(run: RunResult) -> None:
    """24 of storage's and a network's path or two are no more lines than one chart of many builds."""
    path = next(cell for cell in run.cells if cell.cell.suite == "network")
    found = path.attempts[0].distributions[0]
    many = tuple(replace(found, params={"path": "p", "size": str(n)}) for n in range(60))
    cells = (*run.cells, replace(path, attempts=(replace(path.attempts[0], distributions=many),)))
    shown = of_suites(replace(run, cells=cells))
    assert shown["curves_more"] == 0
    labels = [curve["label"] for curve in shown["curves"] if "size=" in curve["label"]]
    assert labels == [f"network.rtt path=p size={n}" for n in range(60)], "as people count"


def test_figures_in_two_units_hide_none_of_each_other(run: RunResult) -> None:
    stored = next(cell for cell in run.cells if cell.cell.suite == "storage")
    attempt = stored.attempts[0]
    one = next(sample for sample in attempt.samples if sample.metric == "storage.iops")
    other = replace(one, value=5.0, unit="kIOPS")
    only = replace(stored, attempts=(replace(attempt, samples=(one, other), distributions=()),))
    (table,) = of_suites(replace(run, cells=(only,)))["storage"].items
    assert [(row["other"], row["figures"][0]["median"]) for row in table["rows"].items] == [
        ("", f"{round(one.value):,}"),
        ("in kIOPS", "5 kIOPS"),
    ]


def test_of_two_suites_each_row_says_whose_it_is_and_what_was_judged(run: RunResult) -> None:
    """A promise is of both together: its verdict is not of the figure above it."""
    stored = next(cell for cell in run.cells if cell.cell.suite == "storage")
    attempt = stored.attempts[0]
    one = replace(next(sample for sample in attempt.samples if sample.metric == "storage.iops"), params={"pattern": "read"})
    cells = tuple(
        replace(
            stored,
            cell=replace(stored.cell, suite=suite),
            attempts=(replace(attempt, samples=(replace(one, value=value),), distributions=()),),
        )
        for suite, value in (("first", 1000.0), ("second", 2000.0))
    )
    asked = {stored.cell.build: {"promises": {"storage.iops": ">= 1500 IOPS"}}}
    (table,) = of_suites(replace(run, cells=cells, builds=asked))["storage"].items
    assert [(row["suite"], row["figures"][0]["median"]) for row in table["rows"].items] == [("first", "1,000"), ("second", "2,000")]
    for row in table["rows"].items:
        (held,) = row["figures"][0]["held"]
        assert (held.told.verdict, held.together) == (Verdict.BROKEN, "of 2 suites together: 1,000 1/s")


def test_a_broken_gate_is_told_at_the_top_with_its_figure(run: RunResult, tmp_path: Path) -> None:
    builds = {name: {**table, "promises": {"memory.available": {"limit": ">= 1 GiB", "gate": True}}} for name, table in run.builds.items()}
    text = write_html(replace(run, builds=builds, outcome=Outcome.FAIL), tmp_path / "report.html").read_text()
    top = text[text.index("<header") : text.index("</header>")]
    assert "memory.available" in top
    assert "promised &gt;= 1 GiB" in top


def test_memory_stands_beside_what_the_target_has(run: RunResult, shown: dict[str, Any]) -> None:
    good, less = shown["memory"].items
    assert (good["target"], good["whole"]) == ("qemu-2c-1g", "1 GiB")
    total, available = good["figures"]
    assert total["part"] == "96.0 % of the target's"
    assert len(total["samples"]) == 3
    assert available["part"] == "87.6 % of the target's"
    assert [held.told.verdict for held in available["held"]] == [Verdict.KEPT]
    assert float(less["figures"][1]["part"].partition(" ")[0]) < 87
    unknown = of_suites(replace(run, targets={}))["memory"].items[0]
    assert unknown["whole"] == "not known"
    assert unknown["figures"][0]["part"] == ""


def test_every_metric_has_a_chart_and_a_row_however_many_there_are(run: RunResult, tmp_path: Path) -> None:
    """A run of many suites has many metrics with few series each: none of them is in samples.csv alone."""
    content = page(run, FOLDER / "report.html", ".")
    groups = [s.group for s in summarise(run).groups]
    metrics = {(g.metric, g.params) for g in groups}
    assert len(metrics) > 30
    assert len(content["charts"].items) == len(metrics)
    assert content["charts"].more == content["tables"].more == 0
    assert sum(len(table["rows"].items) for table in content["tables"].items) == len(groups)
    assert [index for options in content["choice"].values() for index, _ in options] == list(range(len(metrics)))
    (gaps,) = [table for table in content["tables"].items if table["metric"] == "uptime.gap"]
    assert [held.asked for held in gaps["rows"].items[0]["held"]] == ["max <= 5 s"]
    assert len(gaps["rows"].items[0]["samples"]) == 3


def test_each_soak_is_told_with_its_gap(shown: dict[str, Any]) -> None:
    assert [len(row["singles"]["each"]) for row in shown["uptimes"]] == [3, 3]
    assert all(told.startswith("1 h 00 min") and ", gap " in told for told in shown["uptimes"][0]["singles"]["each"])


def test_a_margin_far_beyond_the_limit_is_told_in_times(run: RunResult) -> None:
    (one,) = [j for j in judge([run]) if j.promise.metric == "uptime.gap" and j.build == "debian-cloud"]
    margins = [told([replace(one, value=value)])[0].margin for value in (0.0, 1.4, 5.0, 7.0, 49.0, 50.0, 92_400.0, 1e300)]
    assert margins == ["+100 %", "+72 %", "0 %", "−40 %", "−880 %", "× 10", "× 18,480", "× 2e+299"]


def test_a_curve_goes_as_far_as_its_observations(run: RunResult) -> None:
    raw = gzip.decompress((FIO / "randread-qd32.json.gz").read_bytes())
    percentiles = json.loads(raw)["jobs"][0]["read"]["lat_ns"]["percentile"]
    found = Distribution(
        "storage.latency", fio.parse(raw).jobs[0].requests["read"].latency.histogram, "s", Direction.LOWER, Channel.WALL, "t"
    )
    group = Group("storage.latency", Channel.WALL, "s", Direction.LOWER, "storage", "t", "b")
    merged = replace(series(run, "network.rtt")[0], group=group, histogram=found.histogram, parts=(found,))
    (line,) = lines(curve_chart("x", [merged]).figure)
    at = dict(zip(line["customdata"], line["y"], strict=True))
    by = {"ms": 1e6, "µs": 1e3}[curve_chart("x", [merged]).figure["layout"]["yaxis"]["title"]["text"].split(", ")[1]]
    for percentile in ("50", "90", "99"):
        assert at[f"p{percentile}"] * by == pytest.approx(percentiles[f"{float(percentile):.6f}"], rel=1e-5)
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"])
    few = replace(merged, histogram=Histogram.of([0.001, 0.002, 0.003, 0.004]))
    assert max(lines(curve_chart("x", [few]).figure)[0]["x"]) == pytest.approx(4)


def test_single_histograms_are_drawn_beside_their_sum(run: RunResult) -> None:
    found = [one for one in series(run, "network.rtt") if dict(one.group.params)["path"] == "guest-host"]
    figure = curve_chart("x", found, [promise("network.rtt p99", "<= 1 ms")]).figure
    assert len(lines(figure)) == 2
    assert len([t for t in figure["data"] if t["mode"] == "lines" and not t["showlegend"]]) == 2 * 3
    (limit,) = [t for t in figure["data"] if t["mode"] == "markers"]
    assert limit["x"] == [100.0]
    assert limit["y"][0] == pytest.approx(1000 if "µs" in figure["layout"]["yaxis"]["title"]["text"] else 1)


def test_plotly_accepts_every_curve(shown: dict[str, Any]) -> None:
    hostile = hostile_run(FOLDER)
    for curve in (*shown["curves"], *of_suites(hostile)["curves"]):
        if curve["chart"].height:
            figure = go.Figure(curve["chart"].figure)
            assert figure.layout.height == curve["chart"].height
            assert {trace.type for trace in figure.data} == {"scatter"}
            assert all(math.isfinite(y) and y > 0 for trace in figure.data for y in trace.y)


def test_of_many_series_the_slowest_are_drawn_and_it_is_said(run: RunResult) -> None:
    first = series(run, "network.rtt")[0]
    many = [
        replace(first, group=replace(first.group, build=f"b{i}"), histogram=Histogram.of([0.001 * (i + 1)] * 200), parts=())
        for i in range(30)
    ]
    chart = curve_chart("x", many)
    assert [trace["name"] for trace in lines(chart.figure)] == [f"b{i}" for i in range(30 - MOST_LINES, 30)]
    assert f"{MOST_LINES} of 30" in " ".join(chart.notes)


def test_availability_says_what_it_supports(shown: dict[str, Any]) -> None:
    good, bad = shown["uptimes"]
    assert (good["failures"], good["soaks"], good["value"]) == (0, 3, "100 %")
    assert good["supports"].startswith("0 failures in 3 h 00 min support 99.92")
    assert ">= 99.99 % needs 23 h" in good["supports"]
    assert bad["failures"] == 3
    assert bad["verdict"].verdict is Verdict.BROKEN


def test_promises_are_told_the_worst_first(run: RunResult) -> None:
    rows = told(judge([run]))
    assert [row.promise for row in rows if row.gate and row.verdict is not Verdict.KEPT] == ["vm.density"] * 2
    assert {row.promise for row in rows[:2]} == {"vm.density"}, "a gate that is not kept stands first"
    verdicts = [row.verdict for row in rows[2:]]
    assert verdicts == sorted(verdicts, key=[Verdict.BROKEN, Verdict.UNDECIDED, Verdict.KEPT, Verdict.NOT_MEASURED].index)
    assert {row.promise for row in rows if row.verdict is Verdict.NOT_MEASURED} == {"vm.density"}
    kept = next(row for row in rows if row.verdict is Verdict.KEPT and row.promise == "network.rtt p99")
    assert kept.where.endswith("path=guest-host")
    assert kept.margin.startswith("+")


def test_the_page_holds_all_of_it(run: RunResult, tmp_path: Path) -> None:
    text = write_html(run, tmp_path / "report.html").read_text()
    for heading in ('id="promises"', 'id="memory"', 'id="storage"', 'id="network"', 'id="latency"', 'id="uptime"'):
        assert heading in text
    plain = write_html(ordinary_run(FOLDER), tmp_path / "plain.html").read_text()
    for heading in ('id="promises"', 'id="memory"', 'id="storage"', 'id="network"', 'id="latency"', 'id="uptime"', "which-curve"):
        assert heading not in plain


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = write_html(hostile_run(FOLDER), tmp_path / "report.html").read_text()
    assert text.count("<script>") == 2
    assert "<img" not in text


def test_a_large_run_keeps_the_page_small(tmp_path: Path) -> None:
    large = large_run(FOLDER, cells=80, samples=80)
    found = Distribution(
        "network.rtt", Histogram.of([0.001 * i for i in range(1, 300)]), "s", Direction.LOWER, Channel.WALL, "test_measure"
    )
    cells = tuple(
        replace(c, attempts=(replace(c.attempts[0], distributions=tuple(replace(found, params={"n": str(n)}) for n in range(40))),))
        for c in large.cells
    )
    before = write_html(large, tmp_path / "before.html").stat().st_size
    after = write_html(replace(large, cells=cells), tmp_path / "after.html").stat().st_size
    assert after - before < 900_000
    assert len(of_suites(replace(large, cells=cells))["curves"]) == MOST_DRAWN // MOST_LINES


def test_the_terminal_tells_promises_with_limit_and_margin(run: RunResult) -> None:
    out = io.StringIO()
    show(run, None, file=out)
    told_lines = out.getvalue().splitlines()
    head = next(i for i, line in enumerate(told_lines) if line.startswith("PROMISE"))
    assert [line.split("  ")[0] for line in told_lines[head + 1 : head + 4]] == ["not measured", "not measured", "broken"], "gates first"
    assert any("memory.available (gate)" in line and ">= 512 MiB" in line and "+75 %" in line for line in told_lines[head:])
    out = io.StringIO()
    show(ordinary_run(FOLDER), None, file=out)
    assert "PROMISE" not in out.getvalue()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (1.0, "100 %"),
        (0.9999, "99.99 %"),
        (0.999899, "99.9899 %"),
        (0.99999999, "99.999999 %"),
        (0.5, "50 %"),
        (0.0, "0 %"),
        (0.9972, "99.72 %"),
    ],
)
def test_a_part_is_never_rounded_up_to_a_hundred(part: float, said: str) -> None:
    assert percent(part) == said


def test_rates_of_bytes_read_well() -> None:
    assert quantity(42.5 * 2**20, "B/s") == "42.50 MiB/s"


def names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["label"] for row in rows]


def test_curves_stand_as_people_count(shown: dict[str, Any]) -> None:
    labels = [label for label in names(shown["curves"]) if "randread" in label]
    assert [label.rsplit("=", 1)[1] for label in labels] == ["1", "8", "32"]
