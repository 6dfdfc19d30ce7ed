"""The curve of VMs started one after another: what belongs to it, where it bends, and what a promise makes of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge.density import AVAILABLE, CPU, GAP, HEALTHY, PSS, START, curves, knee, windows
from labctl.judge.promise import Judged, Verdict, judge
from labctl.model import Cell, Channel, Direction, Outcome
from labctl.result import Attempt, CellResult, RunResult, Sample, TestResult

Seconds = Callable[[int], float]
TEST = "test_density.py::test_as_many_as_promised"


def sample(metric: str, value: float, **params: str) -> Sample:
    return Sample(metric, value, "1", Direction.NONE, Channel.WALL, TEST, {"runner": "kvm", **params})


def samples(vms: int, start: Seconds, *, healthy: int | None = None, limit: str = "target", runner: str = "kvm") -> list[Sample]:
    found = [sample(START, start(n), vms=str(n), runner=runner) for n in range(1, vms + 1)]
    for n in range(10, vms + 1, 10):
        figures = ((GAP, 1.0), (PSS, 3e6), (AVAILABLE, 1e9 - n * 3.1e6), (CPU, n / 400))
        found += [sample(metric, value, vms=str(n), runner=runner) for metric, value in figures]
    return found + ([sample(HEALTHY, healthy, limit=limit, runner=runner)] if healthy is not None else [])


def run_of(*attempts: Sequence[Sample], outcome: Outcome = Outcome.PASS, promises: dict[str, str] | None = None) -> RunResult:
    """A cell for each, of one build on one target."""
    cells = []
    for i, found in enumerate(attempts, 1):
        test = TestResult(TEST, outcome, 60.0, "" if outcome is Outcome.PASS else "KernelCrash: Panic on CPU 1")
        one = Attempt(1, "gw0", outcome, 0.0, 60.0, test.reason, "", (test,), tuple(found), {}, (), "", "", Path(), True)
        cells.append(CellResult(Cell("xen", "hv-2c-1g", "density", repeat=i), outcome, 60.0, "", (one,)))
    table = {"promises": {name: {"limit": limit} for name, limit in (promises or {}).items()}}
    return RunResult("r", Path(), "", 0.0, 1.0, outcome, True, False, (), "", {}, {"xen": table}, {"hv-2c-1g": {}}, tuple(cells), ())


def bent(vms: int, at: int, noise: float = 0.0, seed: int = 1) -> Seconds:
    chance = random.Random(seed)
    return lambda n: 0.02 + max(0, n - at) * 0.001 + chance.gauss(0, noise)


def test_a_curve_holds_every_start_every_check_and_what_ended_it() -> None:
    (curve,) = curves([run_of(samples(200, lambda n: 0.02, healthy=200))])
    assert (curve.cell.build, curve.runner, curve.vms, curve.healthy, curve.limit) == ("xen", "kvm", 200, 200, "target")
    assert [at for at, _ in curve.starts] == list(range(1, 201))
    assert [check.vms for check in curve.checks] == list(range(10, 201, 10))
    assert (curve.gap, curve.pss, curve.cpu) == (1.0, 3e6, 0.5)
    assert curve.memory == pytest.approx(3.1e6)
    assert curve.knee is None


def test_a_second_look_at_as_many_vms_is_another_check() -> None:
    """Those that were held are looked at once more: what was seen before they were held is not lost."""
    held = [sample(GAP, 1.2, vms="20"), sample(AVAILABLE, 9e8, vms="20")]
    begun = [sample(AVAILABLE, 1e9, vms="0")]
    (curve,) = curves([run_of([*begun, *samples(20, lambda n: 0.02), sample(GAP, 3.6, vms="20"), *held])])
    assert [(check.vms, check.gap) for check in curve.checks] == [(0, None), (10, 1.0), (20, 1.0), (20, 3.6), (20, 1.2)]
    assert (curve.gap, curve.worst_gap) == (1.2, 3.6)
    assert curve.memory == pytest.approx((1e9 - 9e8) / 20)
    assert [window is None for _, window in curve.steps] == [True, False, False, True, True]


def test_a_curve_that_ended_in_a_panic_is_kept_up_to_there() -> None:
    (curve,) = curves([run_of(samples(57, lambda n: 0.02), outcome=Outcome.FAIL)])
    assert (curve.vms, curve.healthy, curve.limit) == (57, None, "")
    assert (curve.outcome, curve.reason) == (Outcome.FAIL, "KernelCrash: Panic on CPU 1")


def test_runners_are_curves_of_their_own() -> None:
    both = [*samples(20, lambda n: 0.02, healthy=20), *samples(30, lambda n: 0.3, healthy=30, runner="qemu")]
    assert [(curve.runner, curve.vms, curve.healthy) for curve in curves([run_of(both)])] == [("kvm", 20, 20), ("qemu", 30, 30)]


def test_of_several_attempts_the_last_with_a_curve_counts() -> None:
    run = run_of(samples(5, lambda n: 0.02))
    (first,) = run.cells[0].attempts
    second = replace(first, number=2, samples=tuple(samples(9, lambda n: 0.02, healthy=9)))
    third = replace(first, number=3, samples=())
    (curve,) = curves([replace(run, cells=(replace(run.cells[0], attempts=(first, second, third)),))])
    assert (curve.attempt, curve.vms) == (2, 9)


@pytest.mark.parametrize("vms", ["", "-1", "1e3", "٣", "99999999999", "1.5"])
def test_what_is_no_count_of_vms_is_passed_over(vms: str) -> None:
    found = [sample(START, 1.0, vms=vms), sample(START, float("nan"), vms="1"), sample(START, 0.5, vms="2")]
    (curve,) = curves([run_of(found)])
    assert curve.starts == ((2, 0.5),)


def test_figures_that_do_not_say_of_which_vm_are_no_curve() -> None:
    assert curves([run_of([sample(START, 1.0), sample(GAP, 1.0)])]) == ()


def test_windows_hold_each_start_once_and_their_p99_is_one_of_them() -> None:
    starts = [(n, float(n % 7)) for n in range(1, 1004)]
    found = windows(starts)
    assert [w.first for w in found[1:]] == [w.last + 1 for w in found[:-1]]
    assert (found[0].first, found[-1].last) == (1, 1003)
    assert all(w.p99 == 6.0 and w.median == 3.0 for w in found)
    assert windows([]) == ()
    assert len(windows(starts[:9])) == 1


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.004])
def test_the_knee_is_where_each_further_vm_begins_to_cost_more(noise: float) -> None:
    (curve,) = curves([run_of(samples(300, bent(300, 180, noise), healthy=300))])
    assert curve.knee is not None
    assert curve.knee.metric == START
    assert curve.knee.bend.vms == pytest.approx(180, abs=20)
    assert curve.knee.bend.after == pytest.approx(0.001, rel=0.25)
    assert abs(curve.knee.bend.before) < 0.0002


def test_the_heartbeat_may_show_the_knee_first() -> None:
    late = [s for s in samples(300, bent(300, 250), healthy=300) if s.metric != GAP]
    late += [sample(GAP, 1.0 + max(0, n - 120) * 0.02, vms=str(n)) for n in range(10, 301, 10)]
    (curve,) = curves([run_of(late)])
    assert curve.knee is not None
    assert (curve.knee.metric, curve.knee.bend.vms) == (GAP, pytest.approx(120, abs=10))


@pytest.mark.parametrize(
    "shape",
    [
        lambda n: 0.02,
        lambda n: 0.02 + n * 0.001,
        lambda n: 1.0 - n * 0.002,
        lambda n: 0.02 + min(n, 100) * 0.001,
    ],
    ids=["flat", "rising", "falling", "flattening"],
)
def test_what_does_not_get_steeper_has_no_knee(shape: Seconds) -> None:
    assert knee([(float(n), shape(n)) for n in range(1, 201, 10)]) is None


def test_a_straight_line_with_noise_seldom_seems_to_have_a_knee() -> None:
    chance = random.Random(5)
    found = sum(knee([(float(n), 1 + chance.gauss(0, 0.3)) for n in range(24)]) is not None for _ in range(300))
    assert found <= 0.05 * 300


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), max_size=30))
def test_no_points_upset_it(points: list[tuple[float, float]]) -> None:
    found = knee(points)
    assert found is None or found.after > found.before


def held(*runs: RunResult) -> tuple[Judged, ...]:
    return judge(runs)


PROMISE = {"density.healthy": ">= 200"}


def test_every_run_is_held_to_the_promise_and_what_ended_it_is_no_series_of_its_own() -> None:
    good, less = samples(200, lambda n: 0.02, healthy=200), samples(190, lambda n: 0.02, healthy=188, limit="memory reserve")
    (kept,) = held(run_of(good, good, promises=PROMISE))
    assert (kept.verdict, kept.value, kept.count, kept.params) == (Verdict.KEPT, 200, 2, (("runner", "kvm"),))
    (broken,) = held(run_of(good, less, promises=PROMISE))
    assert (broken.verdict, broken.value, broken.margin) == (Verdict.BROKEN, 188, pytest.approx(-0.06))
    (best,) = held(run_of(good, less, promises={"density.healthy max": ">= 200"}))
    assert (best.verdict, best.value) == (Verdict.KEPT, 200)


def test_a_test_that_failed_for_it_counts_and_a_machine_that_died_holds_none() -> None:
    (short,) = held(run_of(samples(150, lambda n: 0.02, healthy=150, limit="start failed"), outcome=Outcome.FAIL, promises=PROMISE))
    assert (short.verdict, short.value) == (Verdict.BROKEN, 150)
    (dead,) = held(run_of(samples(150, lambda n: 0.02), outcome=Outcome.FAIL, promises=PROMISE))
    assert (dead.verdict, dead.value) == (Verdict.BROKEN, 0)
    crashed = samples(200, lambda n: 0.02, healthy=200, limit="machine crashed")
    (lost,) = held(run_of(crashed, outcome=Outcome.FAIL, promises=PROMISE))
    assert (lost.verdict, lost.value) == (Verdict.BROKEN, 0), "they were well when they were looked at last, and no VM outlives its machine"
    assert lost.reason == "died with 200 VMs: KernelCrash: Panic on CPU 1"
    (lab,) = held(run_of(samples(150, lambda n: 0.02, healthy=150), outcome=Outcome.ERROR, promises=PROMISE))
    assert lab.verdict is Verdict.NOT_MEASURED


def test_a_bare_number_is_a_count_or_how_many_a_second() -> None:
    fps = [replace(sample("desktop.fps", value), unit="1/s") for value in (58.0, 61.0, 62.0)]
    verdicts = [
        held(run_of(fps, promises={name: limit}))[0].verdict
        for name, limit in (
            ("desktop.fps", ">= 60"),
            ("desktop.fps max", ">= 60"),
            ("desktop.fps", ">= 55 fps"),
            ("desktop.fps", ">= 55 s"),
        )
    ]
    assert verdicts == [Verdict.BROKEN, Verdict.KEPT, Verdict.KEPT, Verdict.NOT_MEASURED]
