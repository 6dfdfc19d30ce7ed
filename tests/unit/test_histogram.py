"""Histograms: fio's own bins and percentiles come out again, merging is adding up, an error is never more than stated."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.histogram import MOST_STEPS, RELATIVE_ERROR, Histogram, bin_of, edges
from labctl.model import Channel, Direction
from labctl.parsers import fio
from labctl.result import Distribution
from labctl.store import records

FIO = Path(__file__).parents[1] / "data" / "fio"
counts = st.dictionaries(st.integers(0, MOST_STEPS), st.integers(1, 1000), min_size=1, max_size=30)
histograms = counts.map(Histogram.counted)


def recorded(name: str) -> tuple[bytes, dict[str, Any]]:
    """What fio wrote in a real machine, and of it the latencies of the one thing that it did."""
    raw = gzip.decompress((FIO / name).read_bytes())
    job = json.loads(raw)["jobs"][0]
    return raw, next(job[verb]["lat_ns"] for verb in ("read", "write") if job[verb]["total_ios"])


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


@pytest.mark.parametrize("name", ["randread-qd32.json.gz", "write-qd1.json.gz"])
def test_what_fio_counted_is_taken_over_without_loss(name: str) -> None:
    raw, lat = recorded(name)
    (requests,) = fio.parse(raw).jobs[0].requests.values()
    found = requests.latency.histogram
    assert found.count == lat["N"]
    assert {str(low + (high - low) // 2): count for index, count in found.bins for low, high in [edges(index)]} == lat["bins"]
    assert (found.minimum, found.maximum) == (lat["min"], lat["max"])
    assert found.mean * 1e9 == pytest.approx(lat["mean"], rel=1e-6)
    assert len(lat["percentile"]) >= 5
    for percent, nanoseconds in lat["percentile"].items():
        # fio names the middle of the bin, and may so name more than the longest of all.
        assert found.quantile(float(percent) / 100) * 1e9 == pytest.approx(min(nanoseconds, lat["max"])), percent


def test_halves_of_a_recording_make_the_whole_again() -> None:
    everything = {int(value): count for value, count in recorded("randread-qd32.json.gz")[1]["bins"].items()}
    chance = random.Random(1)
    half = {value: chance.randint(0, count) for value, count in everything.items()}
    rest = {value: count - half[value] for value, count in everything.items()}
    assert Histogram.merged([Histogram.counted(half), Histogram.counted(rest)]) == Histogram.counted(everything)


@pytest.mark.parametrize("counts", [{}, {100: 0}, {-1: 3}, {100: -3}, {1 << 60: 1}, {100: 1 << 60}])
def test_counts_that_cannot_be_are_refused(counts: dict[int, int]) -> None:
    with pytest.raises(ValueError):
        Histogram.counted(counts)


@pytest.mark.parametrize("odd", [{"minimum": -5, "maximum": 1 << 70, "total": -1}, {"minimum": 10**12, "maximum": 1, "total": 0}])
def test_statistics_that_contradict_the_bins_are_drawn_to_them(odd: dict[str, int]) -> None:
    found = Histogram.counted({42752: 2, 99999: 1}, **odd)
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
