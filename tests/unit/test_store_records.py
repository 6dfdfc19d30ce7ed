"""Values ↔ JSON lines, and what a hostile line does to the reader."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.model import Cell, Channel, Direction, Outcome
from labctl.result import Sample, TestResult
from labctl.store import layout, records

names = st.from_regex(r"\A[a-z0-9][a-z0-9._+-]{0,15}\Z")
cells = st.builds(Cell, names, names, names, st.sampled_from(Channel), st.integers(1, 99))
wild_cells = st.builds(Cell, st.text(max_size=80), st.text(max_size=80), st.text(max_size=80), st.sampled_from(Channel), st.integers(1, 99))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [f.name for record in (Cell, Sample, TestResult) for f in dataclasses.fields(record)] + ["schema", "t", "kind", "stamps"]
)
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
finite = st.floats(allow_nan=False, allow_infinity=False)
samples = st.builds(
    Sample,
    plain_text,
    finite,
    plain_text,
    st.sampled_from(Direction),
    st.sampled_from(Channel),
    plain_text,
    st.dictionaries(plain_text, plain_text, max_size=3),
    st.integers(0, 1 << 53),
    st.floats(0, 1e10),
    st.dictionaries(plain_text, finite, max_size=3),
)


@given(samples)
def test_a_sample_comes_back_as_it_was(sample: Sample) -> None:
    line = records.event_line("sample", records.sample_record(sample), first=True)
    assert b"\n" not in line
    assert records.sample(records.event(line).fields) == sample


def test_a_test_comes_back_as_it_was() -> None:
    result = TestResult("test_boot.py::test_ready", Outcome.FAIL, 3.25, "no prompt", "line 1\nline 2\x1b[31m")
    assert records.test(records.event(records.event_line("test", records.test_record(result))).fields) == result


@given(cells)
def test_a_cell_comes_back_as_it_was(cell: Cell) -> None:
    assert records.cell(json.loads(records.document(records.cell_record(cell)))) == cell


@given(st.dictionaries(keys, json_values))
def test_no_shape_of_a_record_makes_a_decoder_crash(value: dict[str, object]) -> None:
    line = json.dumps(value).encode()
    try:
        found = records.parse(line)
    except records.Malformed:
        return
    for take in (records.cell, records.left_out, records.sample, records.test, lambda _: records.event(line)):
        try:
            take(found)
        except records.Malformed:
            continue
    records.stamps(found.get("stamps"))
    assert all(math.isfinite(number) for number in records.numbers(found).values())
    "".join([*records.texts(found), *records.texts(found).values()]).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0",
        b"nonsense",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b'{"t": 1.0, "kind": "x"',
        b'{"t": NaN, "kind": "x"}',
        b'{"t": 1e400, "kind": "x"}',
        b'{"t": -1, "kind": "x"}',
        b'{"t": "now", "kind": "x"}',
        b'{"t": true, "kind": "x"}',
        b'{"t": 1, "kind": 3}',
        b'{"t": 1}',
        b'{"schema": 2, "t": 1, "kind": "x"}',
        b'{"t": ' + b"9" * 5000 + b', "kind": "x"}',
        b"[" * 200_000,
    ],
)
def test_a_line_that_is_no_event_is_malformed(line: bytes) -> None:
    with pytest.raises(records.Malformed):
        records.event(line)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", None, True, 10**400])
def test_a_sample_without_a_finite_value_is_none(value: object) -> None:
    good = {"metric": "m", "value": 1.0, "unit": "s", "direction": "lower", "channel": "wall"}
    assert records.sample(good).value == 1.0
    with pytest.raises(records.Malformed):
        records.sample({**good, "value": value})


def test_events_are_counted_where_they_are_none() -> None:
    good = records.event_line("status", {"state": "booting"})
    found, skipped = records.events([good, b"garbage", b"", b"  ", good[:-3]])
    assert [event.kind for event in found] == ["status"]
    assert skipped == 2


def test_half_surrogates_never_come_in_or_go_out() -> None:
    assert records.event(records.event_line("x", {"said": "a\udc80b"})).fields["said"] == "a?b"
    with pytest.raises(records.Malformed):
        records.event(b'{"t": 1, "kind": "x", "said": "a\\ud800b"}')


def test_a_flood_of_text_loses_its_middle() -> None:
    text = "begin" + "x" * 10_000_000 + "end"
    kept = records.event(records.event_line("test", {"details": text})).fields["details"]
    assert len(kept) < records.MOST_TEXT + 100
    assert kept.startswith("begin")
    assert kept.endswith("end")
    assert "characters left out" in kept


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError):
        records.event_line("x", {"value": float("nan")})
    with pytest.raises(ValueError, match="sets kind, t itself"):
        records.event_line("x", {"t": 1, "kind": "y"})
    with pytest.raises(ValueError, match="at most"):
        records.event_line("x", {"many": ["y" * 1000] * 20_000})


@given(wild_cells | cells, wild_cells | cells)
def test_each_cell_has_a_safe_folder_of_its_own(one: Cell, other: Cell) -> None:
    name = layout.cell_folder(one)
    assert len(name.encode()) <= 255
    assert name.isascii()
    assert not set(name) & set("/\\ ,:;#?%*[]{}()<>|&$'\"`!\0\n=@")
    assert name[0] not in ".-~"
    assert (name == layout.cell_folder(other)) == (one == other)


def test_folders_of_usual_cells_can_be_read() -> None:
    assert layout.cell_folder(Cell("debian-6.1", "qemu-1c-512m", "boot")) == "debian-6.1~qemu-1c-512m~boot"
    assert layout.cell_folder(Cell("b", "t", "s", Channel.ICOUNT, 3)) == "b~t~s~icount~3"
