"""What suites of hypervisors measured, on the page, in a terminal and as JSON: density, starts, heartbeats, neighbours, promises."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from labctl.judge.density import START, curves
from labctl.judge.distribution import merge
from labctl.judge.promise import Verdict, judge
from labctl.judge.summary import summarise
from labctl.judge.vms import ISOLATION, METRICS, isolation, observed
from labctl.model import Outcome
from labctl.report.density import MOST_POINTS, told
from labctl.report.html import write_html
from labctl.report.text import as_json, show
from labctl.report.view import page
from labctl.result import RunResult
from tests.report_runs import hostile_run, hypervisor_run, of_suites, ordinary_run

FOLDER = Path("/nowhere")


@pytest.fixture(scope="module")
def run() -> RunResult:
    return hypervisor_run(FOLDER)


@pytest.fixture(scope="module")
def shown(run: RunResult) -> dict[str, Any]:
    return of_suites(run)


def names(curve: dict[str, Any]) -> list[str]:
    return [trace["name"] for trace in curve["chart"].figure["data"] if trace.get("showlegend", True)]


def trace_of(curve: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(trace for trace in curve["chart"].figure["data"] if trace["name"].startswith(name))
    return found


def test_the_curve_that_ended_in_a_panic_comes_first_and_says_so(shown: dict[str, Any]) -> None:
    dead, good = shown["density"]
    assert dead["label"] == "debian-xen on hv-2c-1g by xen"
    assert (dead["healthy"], dead["vms"], dead["failed"]) == ("–", "57", True)
    assert dead["ended"] == "died with 57 VMs: KernelCrash: Panic on CPU 1: FATAL TRAP: vector = 6 (invalid opcode)"
    assert len(trace_of(dead, "each start")["x"]) == 57
    assert trace_of(dead, "died with 57")["meta"] == {"role": "fail"}
    assert (good["healthy"], good["ended"], good["failed"]) == ("200", "all that were asked for", False)


def test_every_start_is_drawn_and_the_knee_and_the_limit_are_marked(run: RunResult, shown: dict[str, Any]) -> None:
    good = shown["density"][1]
    starts = [sample for cell in run.cells for sample in cell.samples if sample.metric == START]
    assert trace_of(good, "each start")["x"] == [int(sample.params["vms"]) for sample in starts] == list(range(1, 201))
    assert good["knee"].endswith("VMs: starts get slower")
    assert 100 <= int(good["knee"].split()[0]) <= 140
    assert trace_of(good, "knee at")["x"] == [float(trace_of(good, "knee at")["x"][0])] * 2
    assert trace_of(good, "promised: &gt;= 200")["x"] == [200, 200]
    assert names(good) == ["each start", "start, p50 of 10 starts", "start, p99 of 10 starts", names(good)[3], "promised: &gt;= 200", "200 healthy, ended by target", "PSS of a VM", "MemAvailable that a VM took"]  # fmt: skip


def test_plotly_takes_the_charts(shown: dict[str, Any]) -> None:
    for curve in shown["density"]:
        figure = go.Figure(curve["chart"].figure)
        assert figure.layout.yaxis.type == "log"
        domains = [figure.layout[name].domain for name in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
        assert all(upper[0] > lower[1] for upper, lower in pairwise(domains)), "panels do not overlap"
        assert domains[-1][0] == pytest.approx(0, abs=0.01)


def test_what_was_not_recorded_has_no_panel(run: RunResult) -> None:
    only = [replace(c, checks=()) for c in curves([run])]
    (_, good) = told(run, only)
    assert "yaxis2" not in good["chart"].figure["layout"]
    assert [row["gap"] for row in good["rows"]] == ["–"]
    bare = [replace(c, starts=()) for c in curves([run])]
    (_, good) = told(run, bare)
    assert good["chart"].figure["layout"]["yaxis"]["title"]["text"] == "gap, s"


def test_of_very_many_starts_evenly_many_are_drawn(run: RunResult) -> None:
    many = replace(curves([run])[0], starts=tuple((n, 0.02) for n in range(1, 20_001)))
    (curve,) = told(run, [many])
    points = trace_of(curve, "each start")["x"]
    assert (len(points), points[0], points[-1]) == (MOST_POINTS, 1, 20_000)
    assert curve["chart"].notes == ("4,000 of 20,000 starts are drawn; the lines are of all.",)
    assert len(curve["rows"]) <= 40


def test_each_check_is_a_row_with_the_starts_since_the_last(shown: dict[str, Any]) -> None:
    rows = shown["density"][1]["rows"]
    assert [row["vms"] for row in rows] == [str(n) for n in range(10, 201, 10)]
    assert rows[0]["memory"] == "–"
    assert rows[-1]["memory"] == "2.909 MiB"
    assert rows[-1]["cpu"] == "99 %"


def test_figures_of_each_vm_are_points_of_the_curve_and_no_series_of_their_own(run: RunResult) -> None:
    content = page(run, FOLDER / "report.html", ".")
    labels = [chart.label for chart in content["charts"].items]
    assert not [label for label in labels if "vms=" in label]
    assert any(label.startswith("density.healthy") for label in labels)


def test_what_vms_were_measured_by_is_told_with_percentiles_or_each_sample(shown: dict[str, Any]) -> None:
    rows = {(row["metric"], row["build"], row["where"]): row for row in shown["vms"]}
    assert list(dict.fromkeys(metric for metric, _, _ in rows)) == [m for m in METRICS if not m.startswith("migration")]
    tiny = rows["vm.start", "debian-kvm", "hv-2c-2g guest=tiny"]
    assert (tiny["count"], tiny["p99"], tiny["each"]) == ("20", "–", [])
    beats = rows["vm.beat_gap", "debian-kvm", "hv-2c-2g guest=tiny"]
    assert beats["count"] == "3,000"
    assert beats["p99"].endswith(" ms")
    fps = rows["desktop.fps", "debian-kvm", "hv-2c-2g"]
    assert len(fps["each"]) == 5
    assert fps["median"].endswith(" fps")
    assert [held.asked for held in fps["held"]] == ["each >= 60 fps"]


def test_neighbours_are_held_against_the_vm_alone(run: RunResult, shown: dict[str, Any]) -> None:
    kvm, xen = shown["neighbours"]
    assert (kvm["build"], xen["build"]) == ("debian-kvm", "debian-xen")
    assert [b["neighbour"] for b in kvm["beside"]] == ["none", "cpu", "memory", "disk", "console"]
    assert kvm["beside"][0]["factor"] == ""
    assert kvm["beside"][3]["factor"].startswith("× 1.9") or kvm["beside"][3]["factor"].startswith("× 1.8")
    found = [one for one in observed(summarise(run).groups, merge([run])) if one.group.metric == ISOLATION]
    without = isolation([one for one in found if ("neighbour", "none") not in one.group.params])
    assert all(b.factor is None for one in without for b in one.beside)


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [("density.healthy", Verdict.KEPT), ("desktop.fps", Verdict.BROKEN), ("network.rtt", Verdict.NOT_MEASURED)],
)
def test_the_promises_of_a_hypervisor_are_judged(run: RunResult, metric: str, verdict: Verdict) -> None:
    (found,) = [one for one in judge([run]) if one.promise.metric == metric and one.build == "debian-kvm"]
    assert found.verdict is verdict


def test_all_starts_of_a_density_run_are_held_to_a_promise_together(run: RunResult) -> None:
    promises = {"density.start median": {"limit": "<= 1 s"}, "density.gap max": {"limit": "<= 2 s"}}
    asked = replace(run, builds={"debian-kvm": {"promises": promises}})
    start, gap = judge([asked])
    assert (start.count, start.verdict) == (200, Verdict.KEPT)
    assert (gap.count, gap.verdict) == (20, Verdict.KEPT)


def test_the_terminal_and_json_tell_the_curves(run: RunResult) -> None:
    out = io.StringIO()
    show(run, None, file=out)
    lines = out.getvalue().splitlines()
    head = next(i for i, line in enumerate(lines) if "DENSITY OF" in line)
    assert "– of 57  debian-xen on hv-2c-1g by xen" in lines[head + 1]
    assert "200 of 200  debian-kvm on hv-2c-1g by kvm" in lines[head + 2]
    dead, good = sorted(as_json(run, None)["density"], key=lambda one: -len(one["build"]) or one["vms"])
    assert {dead["vms"], good["vms"]} == {57, 200}
    json.dumps(as_json(run, None), allow_nan=False)


def test_a_run_without_vms_has_none_of_it(tmp_path: Path) -> None:
    run = ordinary_run(FOLDER)
    found = of_suites(run)
    assert (found["density"], found["vms"], found["neighbours"]) == ([], [], [])
    text = write_html(run, tmp_path / "report.html").read_text()
    assert 'id="density"' not in text
    assert 'id="vms"' not in text


def test_hostile_figures_upset_nothing(tmp_path: Path) -> None:
    run = hostile_run(FOLDER)
    hostile = replace(
        run,
        cells=tuple(replace(c, attempts=tuple(replace(a, tests=(), outcome=Outcome.PASS) for a in c.attempts)) for c in run.cells),
    )
    found = of_suites(hostile)
    assert found["density"]
    assert found["vms"]
    json.dumps([curve["chart"].figure for curve in found["density"]], allow_nan=False)
    text = write_html(hostile, tmp_path / "report.html").read_text()
    assert "<script>window.pwned" not in text
    show(hostile, None, file=io.StringIO())
    json.dumps(as_json(hostile, None), allow_nan=False)
