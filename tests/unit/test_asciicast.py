"""The record as asciicast v2."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import StorageError
from labctl.machine.asciicast import export
from labctl.machine.transcript import Transcript


def cast(folder: Path, **options: int) -> tuple[dict[str, Any], list[list[Any]]]:
    out = io.StringIO()
    export(folder, out, **options)
    head, *events = map(json.loads, out.getvalue().splitlines())
    return head, events


def test_events_come_at_their_times(tmp_path: Path) -> None:
    with Transcript(tmp_path) as transcript:
        transcript.feed(b"boot\r\n", 1_000_000_000)
        transcript.feed(b"\x1b[1mr\xc3", 1_250_000_000)
        transcript.feed(b"\xa4dy \xff", 3_000_000_000)
    head, events = cast(tmp_path, width=100, height=30)
    assert {k: head[k] for k in ("version", "width", "height")} == {"version": 2, "width": 100, "height": 30}
    assert events == [[0, "o", "boot\r\n"], [0.25, "o", "\x1b[1mr"], [2.0, "o", "ädy �"]]


def test_marks_stand_where_they_were_made(tmp_path: Path) -> None:
    with Transcript(tmp_path) as transcript:
        transcript.feed(b"one")
        transcript.note("power on")
        transcript.feed(b"two")
        transcript.note("power off")
    with (tmp_path / "console.marks.jsonl").open("a") as file:
        file.write('{"t_ns": 1, "off')
    events = cast(tmp_path)[1]
    assert [e[1:] for e in events] == [["o", "one"], ["m", "power on"], ["o", "two"], ["m", "power off"]]
    assert [e[0] for e in events] == sorted(e[0] for e in events)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.integers(0, 10**10)), max_size=20), st.integers(0, 40))
def test_nothing_is_lost_of_a_record_that_a_kill_cut_short(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[bytes, int]], torn: int
) -> None:
    folder = tmp_path_factory.mktemp("record")
    with Transcript(folder) as transcript:
        for data, t_ns in chunks:
            transcript.feed(data, t_ns)
    index = folder / "console.idx"
    index.write_bytes(index.read_bytes()[: max(32, index.stat().st_size - torn)])
    events = cast(folder)[1]
    assert "".join(text for _, _, text in events) == b"".join(data for data, _ in chunks).decode(errors="replace")
    times = [t for t, _, _ in events]
    assert times == sorted(times)


def test_the_player_gets_the_wall_clock(tmp_path: Path) -> None:
    import time

    with Transcript(tmp_path) as transcript:
        transcript.feed(b"x")
    assert abs(cast(tmp_path)[0]["timestamp"] - time.time()) < 60


@pytest.mark.parametrize("content", [None, b"", b"x" * 31, b"LABCTIDX" + b"\x09" * 24, b"not an index" * 9])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "console.log").write_bytes(b"hello")
    if content is not None:
        (tmp_path / "console.idx").write_bytes(content)
    with pytest.raises(StorageError):
        cast(tmp_path)


def test_a_large_chunk_is_written_in_parts(tmp_path: Path) -> None:
    with Transcript(tmp_path) as transcript:
        transcript.feed(b"z" * 200_000, 5)
    assert [len(text) for _, _, text in cast(tmp_path)[1]] == [65536, 65536, 65536, 3392]
