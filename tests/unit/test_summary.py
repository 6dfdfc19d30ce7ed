"""Statistics of a run: against numpy, at the edges, and what must never be mixed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge.summary import concurrency, kernel_phases, overall, spread, summarise, summarise_boots, summarise_tests
from labctl.model import Channel, Direction, Milestone, Outcome
from labctl.result import RunResult, Sample, TestResult
from tests.report_runs import failing_run, ordinary_run

FOLDER = Path("/nowhere")
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60))
def test_spread_is_numpys(values: list[float]) -> None:
    found = spread(values)
    wanted = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    assert [found.minimum, found.lower_quartile, found.median, found.upper_quartile, found.maximum] == pytest.approx(wanted)
    assert found.mad == pytest.approx(np.median(np.abs(np.array(values) - np.median(values))), abs=1e-6)
    assert found.count == len(values)


@given(st.lists(finite, min_size=1, max_size=20))
def test_spread_is_ordered_whatever_the_values(values: list[float]) -> None:
    s = spread(values)
    assert s.minimum <= s.lower_quartile <= s.median <= s.upper_quartile <= s.maximum


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_spread_refuses_what_has_none(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        spread(values)


def one_cell(*samples: Sample, **changes: object) -> RunResult:
    """A run of one cell, whose one attempt has these samples."""
    run = ordinary_run(FOLDER)
    result = run.cells[0]
    attempt = replace(result.attempts[0], samples=samples, **changes)
    return replace(run, cells=(replace(result, attempts=(attempt,)),))


def sample(value: float = 1.0, **changes: object) -> Sample:
    return replace(Sample("boot.ready", value, "s", Direction.LOWER, Channel.WALL, "test_reaches_ready"), **changes)


def test_channels_units_and_params_are_never_mixed() -> None:
    run = one_cell(
        sample(), sample(channel=Channel.ICOUNT), sample(unit="ms"), sample(params={"disk": "a"}), sample(params={"disk": "b"}), sample(2.0)
    )
    groups = summarise(run).groups
    assert len(groups) == 5
    assert [g.spread.count for g in groups if g.group.unit == "s" and g.group.channel is Channel.WALL and not g.group.params] == [2]


def test_repeats_of_a_cell_are_one_series() -> None:
    once, thrice = summarise(ordinary_run(FOLDER)), summarise(ordinary_run(FOLDER, repeat=3))
    assert len(once.groups) == len(thrice.groups)
    assert thrice.groups[0].spread.count == 3 * once.groups[0].spread.count


def test_figures_not_to_be_trusted_are_left_out_and_counted() -> None:
    failed = (TestResult("test_reaches_ready", Outcome.INVALID, 1.0), TestResult("test_good", Outcome.PASS, 1.0))
    run = one_cell(
        sample(), sample(5.0, test="test_good"), sample(math.nan, test="test_good"), sample(-math.inf, test="test_good"), tests=failed
    )
    summary = summarise(run)
    assert [g.spread.median for g in summary.groups] == [5.0]
    assert summary.untrusted == 3


def test_host_conditions_are_ranges_of_finite_values() -> None:
    run = one_cell(*(sample(conditions={"load1": load}) for load in (0.5, math.nan, 3.5, math.inf, 2.0)), sample(conditions={"steal": 0.1}))
    groups = summarise(run).groups
    assert groups[0].conditions == {"load1": (0.5, 3.5), "steal": (0.1, 0.1)}
    assert overall(groups) == groups[0].conditions


def test_concurrency_counts_attempts_under_way_at_one_moment() -> None:
    run = ordinary_run(FOLDER)
    attempt = run.cells[0].attempts[0]

    def at(*spans: tuple[float, float]) -> RunResult:
        attempts = tuple(replace(attempt, started_at=start, duration_s=length) for start, length in spans)
        return replace(run, cells=(replace(run.cells[0], attempts=attempts),))

    assert concurrency(at()) == 0
    assert concurrency(at((0, 10), (10, 10))) == 1
    assert concurrency(at((0, 10), (9, 10), (9.5, 0.1), (30, 1))) == 3


def test_a_boot_that_failed_counts_but_is_not_ready() -> None:
    boots = {(b.channel, b.target, b.build): b for b in summarise_boots(failing_run(FOLDER))}
    failed = boots[Channel.WALL, "qemu-4c-2g", "debian-cloud-previous"]
    assert failed.boots == 1
    assert set(failed.milestones) == {Milestone.FIRMWARE, Milestone.KERNEL_ENTRY}
    counted = boots[Channel.ICOUNT, "qemu-1c-512m", "debian-cloud"]
    assert counted.milestones[Milestone.READY].maximum == 1.4, "real time got into virtual time"


def test_silences_of_several_boots_are_one_phase() -> None:
    run = ordinary_run(FOLDER, repeat=2)
    first = run.cells[0]
    stamps = ((0.5, "at 1.000 s, before: smp: up"), (0.1, "at 2.000 s, before: audit"))
    later = ((0.7, "at 1.234 s, before: smp: up"), (0.9, "odd one"), (math.nan, "at 1.0 s, before: x"))
    cells = [replace(first, attempts=(replace(first.attempts[0], kernel_stamps=s),)) for s in (stamps, later)]
    phases = kernel_phases(replace(run, cells=tuple(cells)))
    assert [(p.message, p.silence.count, round(p.silence.median, 3)) for p in phases] == [
        ("odd one", 1, 0.9),
        ("smp: up", 2, 0.6),
        ("audit", 1, 0.1),
    ]


def test_tests_are_counted_by_their_latest_result() -> None:
    tests = {t.name: t for t in summarise_tests(failing_run(FOLDER)) if t.suite == "boot"}
    assert tests["test_reaches_ready"].outcomes == {Outcome.PASS: 7, Outcome.FAIL: 1}
    assert tests["test_five_power_cycles"].outcomes == {Outcome.PASS: 7}


def test_a_skip_takes_no_time_of_its_test() -> None:
    run = ordinary_run(FOLDER)
    first, second, *others = run.cells
    skipped = tuple(replace(test, outcome=Outcome.SKIP, duration_s=0.0) for test in first.attempts[0].tests)
    some = replace(run, cells=(replace(first, attempts=(replace(first.attempts[0], tests=skipped),)), second, *others))
    tests = {t.name: t for t in summarise_tests(some)}
    assert tests["test_version"].outcomes == {Outcome.SKIP: 1, Outcome.PASS: 7}
    assert tests["test_version"].duration_s is not None
    assert (tests["test_version"].duration_s.count, tests["test_version"].duration_s.minimum > 0) == (7, True)
    none = replace(run, cells=(some.cells[0],))
    assert {t.duration_s for t in summarise_tests(none)} == {None}


def test_an_empty_run_has_no_figures() -> None:
    run = replace(ordinary_run(FOLDER), cells=())
    assert summarise(run).groups == summarise_boots(run) == kernel_phases(run) == summarise_tests(run) == ()
    assert concurrency(run) == 0
