"""Charts: what plotly itself accepts, what they show of the samples, and that no name in them is markup."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import plotly.graph_objects as go
import pytest

from labctl.judge.summary import GroupSummary, summarise, summarise_boots
from labctl.model import Channel
from labctl.report.figures import MOST_ROWS, Chart, milestones_chart, samples_chart
from labctl.report.quantity import natural, quantity
from tests.report_runs import failing_run, hostile_run, large_run, ordinary_run

FOLDER = Path("/nowhere")


def ready(groups: tuple[GroupSummary, ...], metric: str = "boot.ready") -> list[GroupSummary]:
    return [g for g in groups if g.group.metric == metric]


def every_chart() -> list[Chart]:
    charts = []
    for run in (ordinary_run(FOLDER), failing_run(FOLDER), hostile_run(FOLDER), large_run(FOLDER, cells=1000, samples=5000)):
        charts += [samples_chart("x", [g], 100) for g in summarise(run).groups[:20]]
        wall = [b for b in summarise_boots(run) if b.channel is Channel.WALL]
        charts.append(milestones_chart(wall))
    return charts


def test_plotly_accepts_every_chart() -> None:
    """plotly.graph_objects checks each property of each trace: an unknown one, a wrong type or value raises."""
    for chart in every_chart():
        figure = go.Figure(chart.figure)
        assert figure.layout.height == chart.height > 0


def test_only_what_the_basic_bundle_draws() -> None:
    kinds = {trace["type"] for chart in every_chart() for trace in chart.figure["data"]}
    assert kinds == {"bar", "scatter"}


def test_every_sample_is_a_point_and_the_bar_is_the_middle_half() -> None:
    groups = ready(summarise(ordinary_run(FOLDER)).groups)
    data = samples_chart("boot.ready", groups, 10_000).figure["data"]
    points = [t for t in data if t["type"] == "scatter" and t["marker"].get("symbol") is None]
    assert sorted(x for t in points for x in t["x"]) == pytest.approx(sorted(s.value for g in groups for s in g.samples), rel=1e-5)
    bars = [t for t in data if t["type"] == "bar"]
    ends = sorted(base + x for t in bars for base, x in zip(t["base"], t["x"], strict=True))
    assert ends == pytest.approx(sorted(g.spread.upper_quartile for g in groups), rel=1e-5)


def test_thinning_keeps_both_ends() -> None:
    groups = ready(summarise(ordinary_run(FOLDER, repeat=100)).groups)[:1]
    assert groups[0].spread.count == 600
    chart = samples_chart("boot.ready", groups, 50)
    points = next(t for t in chart.figure["data"] if t["type"] == "scatter")
    assert len(points["x"]) == 50
    assert min(points["x"]) == pytest.approx(groups[0].spread.minimum, rel=1e-5)
    assert max(points["x"]) == pytest.approx(groups[0].spread.maximum, rel=1e-5)
    assert "50 points" in " ".join(chart.notes)


def test_of_many_series_the_worst_are_drawn_and_it_is_said() -> None:
    groups = ready(summarise(large_run(FOLDER, cells=1600, samples=3200)).groups)
    chart = samples_chart("boot.ready", groups, 1000)
    medians = [x for t in chart.figure["data"] if t["type"] == "scatter" and t["marker"].get("symbol") for x in t["x"]]
    assert sorted(medians) == pytest.approx(sorted(g.spread.median for g in groups)[-MOST_ROWS:], rel=1e-5)
    assert f"{MOST_ROWS} of {len(groups)}" in " ".join(chart.notes)


def test_milestones_lie_end_to_end() -> None:
    boots = summarise_boots(ordinary_run(FOLDER))
    data = milestones_chart(boots).figure["data"]
    assert [t["name"] for t in data] == ["→ firmware", "→ kernel_entry", "→ init", "→ ready"]
    for before, after in pairwise(data):
        assert [b + x for b, x in zip(before["base"], before["x"], strict=True)] == pytest.approx(after["base"], rel=1e-4)


def test_names_are_not_markup() -> None:
    run = hostile_run(FOLDER)
    text = json.dumps([samples_chart("x", [g], 100).figure for g in summarise(run).groups])
    assert "<script" not in text
    assert "<img" not in text
    assert "\\u202e" not in text
    assert "&lt;script" in text


def test_targets_are_sorted_as_people_count() -> None:
    assert sorted(["qemu-16c", "qemu-2c", "qemu", "a9" * 3, "²"], key=natural) == ["a9a9a9", "qemu", "qemu-2c", "qemu-16c", "²"]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (2.4031, "s", "2.403 s"),
        (0.64, "s", "640 ms"),
        (0.0000123, "s", "12.30 µs"),
        (-0.5, "s", "-500 ms"),
        (0.0, "s", "0 s"),
        (1536, "B", "1.500 KiB"),
        (1_402_331_207, "1", "1,402,331,207"),
        (812.4567, "1/s", "812.5 1/s"),
        (1e300, "1", "1e+300"),
        (1e-30, "W", "1e-30 W"),
        (float("inf"), "s", "inf s"),
    ],
)
def test_quantities_read_well(value: float, unit: str, said: str) -> None:
    assert quantity(value, unit) == said
