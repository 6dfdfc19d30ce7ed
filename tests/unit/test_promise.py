"""Promises: how they are written, what is wrong said of each, and verdicts that need enough observations."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from labctl.config import validate
from labctl.errors import ConfigError
from labctl.histogram import Histogram
from labctl.judge.availability import Uptime, availability, uptimes
from labctl.judge.bounds import poisson_mean, quantile_ranks
from labctl.judge.promise import Judged, Verdict, broken_gates, judge
from labctl.model import Cell, Channel, Direction, Outcome, Recipe
from labctl.promise import limit, subject
from labctl.report.order import sentence
from labctl.report.promises import told
from labctl.report.promises_text import promises_table
from labctl.report.text import show
from labctl.result import Attempt, CellResult, Distribution, RunResult, Sample, TestResult

FOLDER = Path("/nowhere")
TEST = "test_it.py::test_it"


def run_of(
    *recorded: Sample | Distribution,
    promises: object,
    outcome: Outcome = Outcome.PASS,
    target: str = "t",
    tags: tuple[str, ...] = ("qemu",),
    ready: float | None = 3.0,
) -> RunResult:
    attempt = Attempt(
        1,
        "gw0",
        outcome,
        1e9,
        1.0,
        "",
        "",
        (TestResult(TEST, outcome, 1.0),),
        tuple(one for one in recorded if isinstance(one, Sample)),
        {"ready": ready} if ready else {},
        (),
        "",
        "",
        FOLDER,
        True,
        0.0,
        tuple(one for one in recorded if isinstance(one, Distribution)),
    )
    cell = CellResult(Cell("b", target, "s"), outcome, 1.0, "", (attempt,))
    return RunResult(
        "r",
        FOLDER,
        "",
        1e9,
        1.0,
        outcome,
        True,
        False,
        (),
        "",
        {},
        {"b": {"promises": promises}},
        {target: {"tags": list(tags)}},
        (cell,),
        (),
    )


def sample(value: float, metric: str = "boot.ready", unit: str = "s", **params: str) -> Sample:
    return Sample(metric, value, unit, Direction.LOWER, Channel.WALL, TEST, params)


def rtt(values: list[float], **params: str) -> Distribution:
    return Distribution("network.rtt", Histogram.of(values), "s", Direction.LOWER, Channel.WALL, TEST, params)


def only(*runs: RunResult) -> Judged:
    (found,) = judge(runs)
    return found


# --- how they are written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<= 1 ms", ("<=", 0.001, "s")),
        (">=99.99%", (">=", 0.9999, "1")),
        (">= 200", (">=", 200.0, "1")),
        ("> 500 MB/s", (">", 5e8, "B/s")),
        ("< 1.5 GiB", ("<", 1.5 * 2**30, "B")),
        (">= 10000 IOPS", (">=", 1e4, "1/s")),
        ("<= 5 min", ("<=", 300.0, "s")),
    ],
)
def test_a_limit_is_read(text: str, found: tuple[str, float, str]) -> None:
    assert limit(text) == found


def test_a_subject_is_read() -> None:
    assert subject("storage.latency p99.9 pattern=randread qd=8") == ("storage.latency", "p99.9", {"pattern": "randread", "qd": "8"})
    assert subject("vm.density") == ("vm.density", "", {})


def test_every_mistake_is_named() -> None:
    promises = {
        "network.rtt p99": "<= 1 msec",
        "Boot": ">= 3 s",
        "boot.ready p100": "<= 3 s",
        "boot.ready mean": "<= 3 s",
        "a.b qd": "<= 3",
        "a.c": {"limit": "3 s", "gat": True},
        "a.d": 7,
        "a.e": {"limit": "<= 3 s", "gate": "yes"},
    }
    with pytest.raises(ConfigError) as error:
        validate(Recipe, {"schema": 1, "builder": "deb", "promises": promises}, "kernel/x.toml")
    told = [str(problem) for problem in error.value.problems]
    assert len(told) == len(promises) + 1
    for expected in (
        "did you mean 'ms'",
        "promises.Boot",
        "'p100' is not known; allowed: median",
        "'mean' is not known",
        "'qd' is not known",
        "a.c.gat: unknown",
        'such as "<= 3 s"',
    ):
        assert any(expected in line for line in told), expected


@pytest.mark.parametrize("asked", ["<= 99.99 %", ">= 100 %", ">= 0 %", ">= 3 s"])
def test_an_availability_that_nothing_could_keep_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 100"):
        validate(Recipe, {"schema": 1, "builder": "deb", "promises": {"uptime.availability": asked}}, "kernel/x.toml")


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_tables() -> None:
    """Median, one-sided 95 %: Conover's table A3 has 0 of 5, 1 of 8, 5 of 20 as the largest counts."""
    assert quantile_ranks(4, 0.5) == (None, None)
    assert quantile_ranks(5, 0.5) == (1, 5)
    assert quantile_ranks(8, 0.5) == (2, 7)
    assert quantile_ranks(20, 0.5) == (6, 15)
    # ln 0.05 / ln 0.99 = 298.07: so many are needed for an upper bound of p99.
    assert quantile_ranks(298, 0.99)[1] is None
    assert quantile_ranks(299, 0.99)[1] == 299


@pytest.mark.parametrize(("count", "part"), [(9, 0.5), (40, 0.9), (400, 0.99), (9000, 0.5), (300_000, 0.99)])
def test_a_bound_holds_as_often_as_it_says(count: int, part: float) -> None:
    """Of uniform values the k-th of n is beta distributed: the bounds miss the true quantile in 5 % of cases at most, and not far less."""
    lower, upper = quantile_ranks(count, part)
    chance = random.Random(3)
    tries = 4000
    assert lower is not None
    assert upper is not None
    missed_low = sum(chance.betavariate(lower, count + 1 - lower) > part for _ in range(tries)) / tries
    missed_high = sum(chance.betavariate(upper, count + 1 - upper) < part for _ in range(tries)) / tries
    for missed in (missed_low, missed_high):
        assert missed < 0.062
    if count > 1000:  # of few, the ranks are far apart
        assert min(missed_low, missed_high) > 0.02


@pytest.mark.parametrize(
    ("events", "low", "high"),
    # Garwood's table: half of chi-square's 5th percentile at 2k degrees of freedom, and of its 95th at 2k + 2.
    [
        (0, 0.0, 2.99573),
        (1, 0.05129, 4.74386),
        (2, 0.35536, 6.29579),
        (5, 1.97015, 10.51303),
        (10, 5.42541, 16.96222),
        (50, 38.96475, 63.28713),
    ],
)
def test_poisson_bounds_are_garwood_s(events: int, low: float, high: float) -> None:
    assert poisson_mean(events) == pytest.approx((low, high), rel=1e-4)


def test_poisson_bounds_of_thousands_go_on_smoothly() -> None:
    assert poisson_mean(2001) == pytest.approx(poisson_mean(2000), rel=5e-3)


# --- availability -----------------------------------------------------------------------------------------------------


def test_no_failure_supports_only_so_much() -> None:
    found = availability(Uptime(3600.0, 0, (3.0,)))
    assert found is not None
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(1 / (1 + math.log(20) / 3600 * 3))
    assert found.mtbf_low == pytest.approx(3600 / math.log(20))
    hours = found.enough(0.9999) / 3600
    assert hours == pytest.approx(24.96, abs=0.01)
    enough = availability(Uptime(hours * 3600, 0, (3.0,)))
    assert enough is not None
    assert enough.low == pytest.approx(0.9999, abs=1e-9)


def test_availability_of_parts_is_that_of_the_whole() -> None:
    parts = [Uptime(1000.0, 1, (3.0,), 0.5), Uptime(5000.0, 0, (4.0,), 2.5), Uptime(10.0, 2, (5.0,))]
    whole = Uptime.merged(parts)
    assert whole == Uptime.merged([Uptime.merged(parts[:2]), parts[2]]) == Uptime(6010.0, 3, (3.0, 4.0, 5.0), 2.5, 3)
    found = availability(whole)
    assert found is not None
    assert found.restore_s == 4.0
    assert found.low < found.value < found.high < 1


def test_a_soak_in_which_the_machine_dies_counts() -> None:
    recorded = (sample(500.0, "uptime.seconds"), sample(1, "uptime.failures", "1"), sample(0.7, "uptime.gap"))
    failed = run_of(*recorded, promises={}, outcome=Outcome.FAIL)
    assert uptimes([failed]) == {("b", "t"): Uptime(500.0, 1, (3.0,), 0.7)}
    assert uptimes([run_of(*recorded, promises={}, outcome=Outcome.INVALID)]) == {}
    assert uptimes([failed, failed])["b", "t"].failures == 2


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), 1e300])
def test_failures_that_are_no_count_do_no_harm(value: float) -> None:
    found = uptimes([run_of(sample(10.0, "uptime.seconds"), sample(value, "uptime.failures", "1"), promises={})])
    assert found["b", "t"].failures == 0


def test_an_availability_is_judged_by_its_bound() -> None:
    promises = {"uptime.availability": ">= 99.99 %"}
    hour = run_of(sample(3600.0, "uptime.seconds"), sample(0, "uptime.failures", "1"), promises=promises)
    judged = only(hour)
    assert (judged.verdict, judged.value) == (Verdict.UNDECIDED, 1.0)
    assert judged.reason == "needs 25 h under load without another failure"
    assert only(*[hour] * 25).verdict is Verdict.KEPT
    failing = run_of(sample(3600.0, "uptime.seconds"), sample(9, "uptime.failures", "1"), promises=promises)
    assert only(failing).verdict is Verdict.BROKEN
    assert only(run_of(sample(3600.0, "uptime.seconds"), promises=promises, ready=None)).verdict is Verdict.NOT_MEASURED


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "asked", "verdict"),
    [
        ([2.0, 2.1, 2.2, 2.3, 2.4, 2.9], "<= 3 s", Verdict.KEPT),
        ([2.0, 2.1, 2.2, 2.3, 2.4, 3.1], "<= 3 s", Verdict.UNDECIDED),
        ([3.1, 3.2, 3.3, 3.4, 3.5, 3.6], "<= 3 s", Verdict.BROKEN),
        ([2.0, 2.1, 2.2, 2.3], "<= 3 s", Verdict.UNDECIDED),
        ([2.0, 2.1, 2.2, 2.3, 2.4], ">= 2 s", Verdict.KEPT),
        ([2.0, 2.1, 2.2, 2.3, 2.4], "> 2 s", Verdict.UNDECIDED),
    ],
)
def test_a_median_is_judged_by_its_bounds(values: list[float], asked: str, verdict: Verdict) -> None:
    assert only(run_of(*map(sample, values), promises={"boot.ready median": asked})).verdict is verdict


def test_without_a_statistic_every_observation_is_held_to_it() -> None:
    judged = only(run_of(sample(2.0), sample(3.5), promises={"boot.ready": "<= 3 s"}))
    assert (judged.verdict, judged.value) == (Verdict.BROKEN, 3.5)
    assert judged.margin == pytest.approx(-1 / 6)
    density = only(run_of(sample(200, "vm.density", "1"), promises={"vm.density": ">= 200"}))
    assert (density.verdict, density.margin) == (Verdict.KEPT, 0.0)


def test_a_tail_needs_its_observations() -> None:
    promises = {"network.rtt p99": "<= 1 ms"}
    assert only(run_of(rtt([2e-4] * 298), promises=promises)).verdict is Verdict.UNDECIDED
    judged = only(run_of(rtt([2e-4] * 200), rtt([2e-4] * 100), promises=promises))
    assert (judged.verdict, judged.count) == (Verdict.KEPT, 300)
    assert judged.margin == pytest.approx(0.8, abs=0.01)
    assert only(run_of(rtt([2e-4] * 900 + [2e-3] * 100), promises=promises)).verdict is Verdict.BROKEN


def test_boots_that_differ_are_not_averaged_into_a_verdict() -> None:
    """Two of three are within the limit, and so is the whole; the third is not."""
    quick, slow = [2e-4] * 1000, [2e-4] * 975 + [3e-3] * 25
    promises = {"network.rtt p99": "<= 1 ms"}
    judged = only(run_of(rtt(quick), rtt(quick), rtt(slow), promises=promises))
    assert (judged.verdict, judged.reason) == (Verdict.UNDECIDED, "the limit is within the bounds")
    assert judged.value == pytest.approx(2e-4, rel=0.01)
    assert judged.high == pytest.approx(3e-3, rel=0.01)


def test_a_value_as_near_as_a_bin_is_wide_is_undecided() -> None:
    assert only(run_of(rtt([0.000999] * 1000), promises={"network.rtt p99": "<= 1 ms"})).verdict is Verdict.UNDECIDED


def test_what_was_not_measured_is_never_kept() -> None:
    asked = {"network.rtt p99": "<= 1 ms", "boot.ready": "<= 1 KiB"}
    unheard, other_unit = judge([run_of(sample(1.0), promises=asked)])
    assert (unheard.verdict, unheard.reason) == (Verdict.NOT_MEASURED, "nothing recorded it")
    assert (other_unit.verdict, other_unit.reason) == (Verdict.NOT_MEASURED, "recorded in s, promised in B")
    failed = run_of(sample(1.0), promises={"boot.ready": "<= 3 s"}, outcome=Outcome.FAIL)
    assert only(failed).verdict is Verdict.NOT_MEASURED


@pytest.mark.parametrize(
    ("promise", "limit", "verdict"),
    [
        ("boot.ready", "<= 3 s", Verdict.BROKEN),
        ("boot.ready max", "<= 3 s", Verdict.BROKEN),
        ("boot.ready max", "<= 9 s", Verdict.KEPT),
        ("boot.ready min", "<= 3 s", Verdict.KEPT),  # the best is asked for
        ("boot.ready", ">= 0.5 s", Verdict.KEPT),
    ],
)
def test_what_a_test_recorded_that_failed_can_break_a_promise_of_the_worst(promise: str, limit: str, verdict: Verdict) -> None:
    """A pause of seven seconds fails its test: it is not to be left out of what is said of the longest pause."""
    passed, failed = (
        run_of(sample(value), promises={promise: limit}, outcome=o) for value, o in ((1.0, Outcome.PASS), (7.0, Outcome.FAIL))
    )
    (judged,) = judge([passed, failed])
    assert judged.verdict is verdict
    if verdict is Verdict.BROKEN:
        assert (judged.value, judged.count, judged.reason) == (7.0, 2, "recorded by a test that failed")
    invalid = replace(failed, cells=tuple(replace(cell, outcome=Outcome.INVALID) for cell in failed.cells))
    assert only(passed).verdict is judge([passed, invalid])[0].verdict, "a measurement that is invalid says nothing"


def test_a_run_that_a_gate_fails_names_it_and_lists_it_first() -> None:
    asked = {"a.b": "<= 1 s", "boot.ready": {"limit": "<= 3 s", "gate": True}, "network.rtt p99": "<= 1 ms"}
    run = replace(run_of(sample(4.0), replace(sample(9.0), metric="a.b"), promises=asked), outcome=Outcome.FAIL)
    assert sentence(run).endswith(" Broken, and with a gate: b: boot.ready.")
    rows = told(judge([run]))
    assert [(row.verdict, row.promise) for row in rows] == [
        (Verdict.BROKEN, "boot.ready"),
        (Verdict.BROKEN, "a.b"),
        (Verdict.NOT_MEASURED, "network.rtt p99"),
    ]
    out = io.StringIO()
    Console(file=out, width=200).print(*promises_table(judge([run])))
    assert "1 not measured: labctl report promises" in out.getvalue()
    many = {f"x.m{n}": "<= 1 s" for n in range(30)}
    recorded = [replace(sample(2.0 + n), metric=name) for n, name in enumerate(many)]
    rows = told(judge([run_of(*recorded, promises=many)]))
    assert [row.promise for row in rows[:2]] == ["x.m29", "x.m28"], "the farthest beyond its limit first"
    out = io.StringIO()
    Console(file=out, width=200).print(*promises_table(judge([run_of(*recorded, promises={**many, "y.z": "<= 1 s"})])))
    assert "… and 11 more, 1 of them not measured: labctl report promises" in out.getvalue()


def test_parameters_and_tags_choose() -> None:
    recorded = (rtt([1e-4] * 400, path="guest-host"), rtt([3e-3] * 400, path="guest-guest"))
    both = judge([run_of(*recorded, promises={"network.rtt p99": "<= 1 ms"})])
    assert [(j.params, j.verdict) for j in both] == [
        ((("path", "guest-guest"),), Verdict.BROKEN),
        ((("path", "guest-host"),), Verdict.KEPT),
    ]
    assert only(run_of(*recorded, promises={"network.rtt p99 path=guest-host": "<= 1 ms"})).verdict is Verdict.KEPT
    tagged = {"boot.ready": {"limit": "<= 3 s", "tags": ["hardware"]}}
    assert only(run_of(sample(9.0), promises=tagged)).reason == "nothing recorded it on a target with the tag hardware"
    assert only(run_of(sample(9.0), promises=tagged, tags=("hardware", "x"))).verdict is Verdict.BROKEN


def test_of_a_metric_that_nothing_recorded_the_nearest_is_named() -> None:
    """And in a run's table too, where it has a gate: somebody may believe that it holds."""
    run = run_of(sample(4.0), ready=None, promises={"boot.redy": {"limit": "<= 3 s", "gate": True}, "storage.iops": ">= 1"})
    elsewhere = {"limit": "<= 1 ms", "gate": True, "tags": ["hardware"]}
    run = replace(run, builds={name: {"promises": {**table["promises"], "network.rtt": elsewhere}} for name, table in run.builds.items()})
    found = {judged.promise.name: judged.reason for judged in judge([run])}
    assert found == {"boot.redy": "nothing recorded it; did you mean 'boot.ready'?", "storage.iops": "nothing recorded it",
                     "network.rtt": "nothing recorded it on a target with the tag hardware"}  # fmt: skip
    out = io.StringIO()
    show(run, None, file=out)
    table = out.getvalue()[out.getvalue().index("PROMISE") :]
    assert "boot.redy (gate)" in table
    assert "did you mean 'boot.ready'?" in table
    assert "storage.iops" not in table
    assert "network.rtt" not in table, "it is made for other targets"
    assert "2 not measured" in table


def test_what_is_recorded_in_the_promised_unit_is_held_to_it_whatever_else_is() -> None:
    """In any order; neither is counted to the other."""
    asked = {"a.b": {"limit": "<= 2 s", "gate": True}}
    for recorded in (
        (sample(10.0, "a.b"), replace(sample(3.0, "a.b"), unit="1")),
        (replace(sample(3.0, "a.b"), unit="1"), sample(10.0, "a.b")),
    ):
        judged = only(run_of(*recorded, promises=asked))
        assert (judged.verdict, judged.value, judged.count, judged.unit) == (Verdict.BROKEN, 10.0, 1, "s")
    hist = rtt([0.5] * 400)
    judged = only(run_of(hist, replace(hist, unit="B", histogram=Histogram.of([7.0] * 500)), promises={"network.rtt p50": "<= 1 s"}))
    assert (judged.verdict, judged.count) == (Verdict.KEPT, 400)
    assert judged.value == pytest.approx(0.5, rel=0.01)
    other = only(run_of(replace(sample(3.0, "a.b"), unit="B"), promises=asked))
    assert (other.verdict, other.reason) == (Verdict.NOT_MEASURED, "recorded in B, promised in s")


def test_of_a_parameter_that_no_series_has_those_that_they_have_are_named() -> None:
    run = run_of(
        rtt([1e-4], path="host"), rtt([1e-4], path="guest"), promises={"network.rtt path=cable": "<= 1 s", "network.rtt way=x": "<= 1 s"}
    )
    reasons = {judged.promise.name: judged.reason for judged in judge([run])}
    assert reasons == {
        "network.rtt path=cable": "nothing recorded it with these parameters; recorded with path=guest, host",
        "network.rtt way=x": "nothing recorded it with these parameters; what recorded it has no parameter way, but path",
    }


def test_where_machines_booted_it_is_said_who_records_that() -> None:
    (judged,) = judge([run_of(sample(1.0, "a.b"), promises={"boot.ready median": "<= 3 s"})])
    assert judged.reason == "nothing recorded it; a test does with record_boot, as those of the suite boot do"


@pytest.mark.parametrize(("asked", "needed"), [("median", "5"), ("p99", "299"), ("p99.9", "2,995")])
def test_how_many_observations_are_missing_is_said(asked: str, needed: str) -> None:
    count = int(needed.replace(",", ""))
    few, enough = (only(run_of(rtt([1e-4] * n), promises={f"network.rtt {asked}": "<= 1 ms"})) for n in (count - 1, count))
    assert (few.verdict, few.reason) == (Verdict.UNDECIDED, f"too few observations: {needed} are needed")
    assert enough.verdict is Verdict.KEPT


def test_a_limit_may_be_below_zero() -> None:
    for value, verdict in ((-3.0, Verdict.KEPT), (-9.0, Verdict.BROKEN)):
        assert only(run_of(sample(value, "a.b"), promises={"a.b": ">= -5 s"})).verdict is verdict


def test_only_a_gate_that_is_broken_fails() -> None:
    for limits, count in (("<= 3 s", 0), ({"limit": "<= 3 s", "gate": True}, 1), ({"limit": "<= 9 s", "gate": True}, 0)):
        assert len(broken_gates([run_of(sample(4.0), promises={"boot.ready": limits})])) == count
    assert not broken_gates([run_of(promises={"boot.ready": {"limit": "<= 3 s", "gate": True}})])


@pytest.mark.parametrize("damage", [None, 3, [], "x", {"boot.ready": None}, {"boot.ready": {"limit": 3}}, {"": "<= 1"}, {"a.b": ["<= 1"]}])
def test_damaged_promises_of_a_run_do_no_harm(damage: object) -> None:
    assert judge([run_of(sample(1.0), promises=damage)]) == ()
