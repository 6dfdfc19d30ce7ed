"""Histograms: fio's own bins and percentiles come out again, merging is adding up, an error is never more than stated."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.histogram import MOST_STEPS, RELATIVE_ERROR, Histogram, bin_of, edges
from labctl.model import Channel, Direction, Distribution
from labctl.parsers.fio_latency import histogram
from labctl.store import records

FIO = Path(__file__).parents[1] / "data" / "fio"
counts = st.dictionaries(st.integers(0, MOST_STEPS), st.integers(1, 1000), min_size=1, max_size=30)
histograms = counts.map(Histogram.counted)


def recorded(name: str, direction: str) -> dict[str, object]:
    """``clat_ns`` as fio 3.33 wrote it on a real disk."""
    found: dict[str, object] = json.loads((FIO / name).read_text())["jobs"][0][direction]["clat_ns"]
    return found


@given(st.integers(0, MOST_STEPS))
def test_a_value_lies_in_its_bin_and_the_middle_is_near(value: int) -> None:
    low, high = edges(bin_of(value))
    assert low <= value < high
    assert abs((low + (high - low) // 2) - value) <= value * RELATIVE_ERROR
    assert bin_of(high) == bin_of(value) + 1


@given(histograms, histograms, histograms)
def test_merging_is_associative_and_commutative(a: Histogram, b: Histogram, c: Histogram) -> None:
    merged = Histogram.merged([a, b, c])
    assert (
        merged
        == Histogram.merged([c, a, b])
        == Histogram.merged([a, Histogram.merged([b, c])])
        == Histogram.merged([Histogram.merged([a, b]), c])
    )
    assert merged.count == a.count + b.count + c.count


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=200), st.lists(st.floats(0, 1e3), min_size=1, max_size=200))
def test_merged_is_what_all_values_together_would_be(some: list[float], others: list[float]) -> None:
    assert Histogram.merged([Histogram.of(some), Histogram.of(others)]) == Histogram.of(some + others)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300), st.floats(0, 1))
def test_a_quantile_is_near_the_observation_of_its_rank(values: list[float], part: float) -> None:
    exact = sorted(values)[max(1, math.ceil(round(part * len(values), 6))) - 1]
    assert Histogram.of(values).quantile(part) == pytest.approx(exact, rel=RELATIVE_ERROR, abs=0.51e-9)


@pytest.mark.parametrize(("name", "direction"), [("randread-qd8.json", "read"), ("randwrite-qd1.json", "write")])
def test_what_fio_counted_is_taken_over_without_loss(name: str, direction: str) -> None:
    clat = recorded(name, direction)
    found = histogram(clat)
    assert found.count == clat["N"]
    assert {str(low + (high - low) // 2): count for index, count in found.bins for low, high in [edges(index)]} == clat["bins"]
    assert (found.minimum, found.maximum) == (clat["min"], clat["max"])
    assert found.mean * 1e9 == pytest.approx(clat["mean"], rel=1e-6)
    percentiles = clat["percentile"]
    assert isinstance(percentiles, dict)
    assert len(percentiles) == 17
    for percent, nanoseconds in percentiles.items():
        assert found.quantile(float(percent) / 100) * 1e9 == pytest.approx(nanoseconds), percent


def test_halves_of_a_recording_make_the_whole_again() -> None:
    bins = recorded("randread-qd8.json", "read")["bins"]
    assert isinstance(bins, dict)
    everything = {int(value): count for value, count in bins.items()}
    chance = random.Random(1)
    half = {value: chance.randint(0, count) for value, count in everything.items()}
    rest = {value: count - half[value] for value, count in everything.items()}
    assert Histogram.merged([Histogram.counted(half), Histogram.counted(rest)]) == Histogram.counted(everything)


@pytest.mark.parametrize(
    "latency",
    [
        {},
        {"bins": {}},
        {"bins": []},
        {"bins": {"100": 0}},
        {"bins": {"-1": 3}},
        {"bins": {"1e3": 3}},
        {"bins": {"100": -3}},
        {"bins": {"100": 1.5}},
        {"bins": {"100": True}},
        {"bins": {"9" * 19: 1}},
        {"bins": {"100": 1 << 60}},
    ],
)
def test_what_fio_could_not_have_written_is_refused(latency: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        histogram(latency)


@pytest.mark.parametrize(
    "odd", [{"min": -5, "max": 1e400, "mean": float("nan")}, {"min": "x", "max": None}, {"min": 10**12, "max": 1, "mean": 0}]
)
def test_statistics_of_fio_that_contradict_its_bins_do_no_harm(odd: dict[str, object]) -> None:
    found = histogram({"bins": {"42752": 2, "99999": 1}, **odd})
    assert found.count == 3
    assert 42e-6 < found.low <= found.mean <= found.high < 101e-6


@pytest.mark.parametrize("values", [[], [-1.0], [float("nan")], [float("inf")], [1e8]])
def test_what_has_no_bin_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError):
        Histogram.of(values)


def test_histograms_of_two_steps_are_not_merged() -> None:
    with pytest.raises(ValueError, match="one step"):
        Histogram.merged([Histogram.of([1.0]), Histogram.of([1.0], step=1e-6)])


def test_the_size_is_bounded_and_the_tail_exact() -> None:
    chance = random.Random(2)
    found = Histogram.of([*(chance.lognormvariate(-9, 2) for _ in range(20_000)), 5.0])
    assert len(found.bins) < 1500
    assert found.high == found.quantile(1) == 5.0
    assert found.quantile(0) == found.low


@given(histograms)
def test_a_record_comes_back_as_it_was(found: Histogram) -> None:
    whole = Distribution(
        "network.rtt", found, "s", Direction.LOWER, Channel.WALL, "test_rtt", {"path": "guest-host"}, 2, 1.5e9, {"load1": 0.5}
    )
    line = records.event_line("histogram", records.distribution_record(whole))
    assert records.distribution(records.event(line).fields) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"bins": [[1, 2], [1, 2]]},
        {"bins": [[3, 1], [1, 1]]},
        {"bins": [[1, 0]]},
        {"bins": [[1]]},
        {"bins": [[1.5, 1]]},
        {"bins": [1, 2]},
        {"bins": []},
        {"bins": None},
        {"bins": [[1, 1 << 60]]},
        {"bins": [[4000, 1]]},
        {"min": 99},
        {"max": -1},
        {"sum": "0"},
        {"sum": "9" * 60},
        {"sum": 12},
        {"step": 0},
        {"step": -1e-9},
        {"unit": None},
        {"direction": "sideways"},
    ],
)
def test_a_damaged_record_is_told_apart(change: dict[str, object]) -> None:
    whole = Distribution("network.rtt", Histogram.of([1e-8, 2e-8]), "s", Direction.LOWER, Channel.WALL, "test_rtt")
    good = json.loads(records.event_line("histogram", records.distribution_record(whole)))
    assert records.distribution(good) == whole
    with pytest.raises(records.Malformed):
        records.distribution({**good, **change})
