"""The console's record: nothing lost, right times, bounded memory, and a disk that fails."""

from __future__ import annotations

import json
import random
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import StorageError
from labctl.machine import transcript as module
from labctl.machine.matching import PatternLike
from labctl.machine.timeindex import read_index
from labctl.machine.transcript import ConsoleEnded, Match, Pattern, Transcript

SOON = 5.0


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[list[object]]:
    """Run ``work`` beside the test; what it returned or raised is in the list at the end of the block."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except (DeadlineExpired, ConsoleEnded, StorageError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield outcome
    thread.join(SOON)
    assert not thread.is_alive()


def until_waiting(transcript: Transcript) -> None:
    end = time.monotonic() + SOON
    while not transcript._waiting:
        assert time.monotonic() < end
        time.sleep(0.001)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"boot ", b"ready", b"\n", b"panic: at ", b"0x1", b"z" * 300]), max_size=60), st.randoms())
def test_matches_and_their_times_do_not_depend_on_when_anyone_looks(words: list[bytes], chance: random.Random) -> None:
    patterns: list[PatternLike] = [b"ready", re.compile(rb"panic: (.*)"), Pattern(re.compile(rb"boot (\w+)"), b"boot")]
    stream = b"".join(words)
    seen: list[Match] = []
    with mock.patch.object(module, "SETTLE_S", 1e6), Transcript(window=64) as transcript, transcript.watch(patterns) as watch:
        done, now = 0, 1000
        while done < len(stream):
            chunk = stream[done : done + chance.randint(1, 50)]
            done, now = done + len(chunk), now + 7
            transcript.feed(chunk, now)
            if chance.random() < 0.3:
                seen += watch.pending()
        transcript.end("over")
        seen += watch.pending()
        late = transcript.watch(patterns).pending()
        assert seen == late
        assert all(stream[m.offset : m.end] == m.text and m.t_ns == transcript.time_of(m.end - 1) for m in seen)
    with Transcript() as whole:
        whole.feed(stream)
        whole.end("over")
        at_once = whole.watch(patterns).pending()
    assert [(m.pattern, m.offset, m.text, m.groups) for m in seen] == [(m.pattern, m.offset, m.text, m.groups) for m in at_once]


@pytest.mark.parametrize("kept", [True, False], ids=["folder", "nameless"])
def test_a_watch_that_lags_far_behind_the_window_loses_nothing(tmp_path: Path, kept: bool) -> None:
    with Transcript(tmp_path if kept else None, window=4096) as transcript, transcript.watch([re.compile(rb"line (\d+)\n")]) as watch:
        for number in range(50_000):
            transcript.feed(b"line %d\n" % number, 10 + number)
        assert len(transcript._window) <= 2 * 4096
        numbers = [(int(m.groups[0] or b""), m.t_ns) for m in (watch.next(Deadline.after(SOON)) for _ in range(50_000))]
        assert numbers == [(n, 10 + n) for n in range(50_000)]
        assert transcript.read(0, 14) == b"line 0\nline 1\n"
        assert transcript.read(transcript.size - 9000) == transcript.read(0)[-9000:]
        assert [transcript.time_of(o) for o in (0, 6, 7, transcript.size - 1, transcript.size + 99)] == [10, 10, 11, 50_009, 50_009]


def test_many_small_chunks_are_borne_in_bounded_memory() -> None:
    with Transcript() as transcript:
        for number in range(100_000):
            transcript.feed(b".", number)
        assert len(transcript._index._ends) <= 1 << 16
        assert [transcript.time_of(o) for o in (0, 1, 40_000, 99_999)] == [0, 1, 40_000, 99_999]


def test_one_huge_line_is_borne_in_bounded_memory() -> None:
    with Transcript(window=1 << 16) as transcript, transcript.watch([b"end", re.compile(rb"z{2}q")]) as watch:
        for _ in range(200):
            transcript.feed(b"z" * 50_000)
            assert watch.pending() == []
        transcript.feed(b"zqend\n")
        assert [m.text[-3:] for m in watch.pending()] == [b"end", b"zzq"]
        assert len(transcript._window) <= 2 << 16
        assert len(transcript.tail()) < 1000


def test_a_waiter_wakes_up_and_knows_the_chunks_time() -> None:
    with Transcript() as transcript:
        with in_thread(lambda: transcript.wait([b"nothing", b"ready"], deadline=Deadline.after(SOON))) as outcome:
            until_waiting(transcript)
            transcript.feed(b"almost rea", 5)
            transcript.feed(b"dy", 6)
        assert outcome == [Match(1, 7, 12, 6, b"ready", ())]


def test_a_prompt_without_newline_is_found_once_the_line_rests() -> None:
    with Transcript() as transcript:
        transcript.feed(b"login: ", 7)
        began = time.monotonic()
        found = transcript.wait([re.compile(rb"login: ?$")], deadline=Deadline.after(SOON))
        assert (found.text, found.t_ns) == (b"login: ", 7)
        assert time.monotonic() - began < 1


def test_pending_leaves_a_line_that_is_being_written() -> None:
    with mock.patch.object(module, "SETTLE_S", 1e6), Transcript() as transcript, transcript.watch([re.compile(rb"v(\d+)")]) as watch:
        transcript.feed(b"v1")
        assert watch.pending() == []
        transcript.feed(b"23\n")
        assert [m.groups for m in watch.pending()] == [(b"123",)]
        transcript.feed(b"v4")
        transcript.end("off")
        assert [m.groups for m in watch.pending()] == [(b"4",)]


def test_an_expired_deadline_still_searches_what_was_read() -> None:
    with Transcript() as transcript:
        transcript.feed(b"ready v7")
        assert transcript.wait([re.compile(rb"ready v(\d)")], deadline=Deadline.after(0)).groups == (b"7",)
        with pytest.raises(DeadlineExpired, match="0 s"):
            transcript.wait([b"never"], deadline=Deadline.after(0))


def test_a_deadline_holds_under_a_flood() -> None:
    stop = threading.Event()
    with Transcript() as transcript:

        def flood() -> None:
            while not stop.is_set():
                transcript.feed(b"x" * 65536)

        with in_thread(flood):
            began = time.monotonic()
            with pytest.raises(DeadlineExpired):
                transcript.wait([re.compile(rb"q+")] * 20, deadline=Deadline.after(0.2))
            stop.set()
        assert time.monotonic() - began < SOON


def test_the_end_comes_after_everything_was_searched_and_a_resume_goes_on() -> None:
    with Transcript() as transcript, transcript.watch([re.compile(rb"panic (\w+)")]) as watch:
        transcript.feed(b"panic one\npanic tw")
        transcript.end("QEMU exited")
        transcript.end("second reason")
        assert [watch.next(Deadline.after(SOON)).groups for _ in range(2)] == [(b"one",), (b"tw",)]
        with pytest.raises(ConsoleEnded) as over:
            watch.next(Deadline.after(SOON))
        assert (over.value.reason, transcript.ended) == ("QEMU exited", "QEMU exited")
        transcript.resume()
        assert transcript.ended is None
        size = transcript.size
        with in_thread(lambda: watch.next(Deadline.after(SOON))) as outcome:
            until_waiting(transcript)
            transcript.feed(b"\npanic again\n")
        assert [(m.offset, m.groups) for m in outcome if isinstance(m, Match)] == [(size + 1, (b"again",))]


def test_a_waiter_learns_of_the_end_and_of_a_close() -> None:
    for act, reason in ((lambda t: t.end("gone"), "gone"), (Transcript.close, "the transcript was closed")):
        transcript = Transcript()
        with in_thread(lambda t=transcript: t.wait([b"x"], deadline=Deadline.after(SOON))) as outcome:  # type: ignore[misc]
            until_waiting(transcript)
            act(transcript)
        assert [str(e) for e in outcome] == [reason]
        assert transcript.wait_end(Deadline.after(SOON)) == reason
    with pytest.raises(DeadlineExpired):
        Transcript().wait_end(Deadline.after(0))


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    with Transcript(tmp_path / "new") as transcript:
        transcript.feed(b"\xff\x1b[0m", 100)
        transcript.note("power on")
        transcript.feed(b"two", 200)
        assert (transcript.size, transcript.last_ns) == (8, 200)
    assert (tmp_path / "new/console.log").read_bytes() == b"\xff\x1b[0mtwo"
    anchor, records = read_index(tmp_path / "new/console.idx")
    assert list(records) == [(100, 5), (200, 8)]
    assert abs(anchor.epoch_ns - time.time_ns()) < 60e9
    assert abs(anchor.monotonic_ns - time.monotonic_ns()) < 60e9
    marks = [json.loads(line) for line in (tmp_path / "new/console.marks.jsonl").read_text().splitlines()]
    assert [(m["schema"], m["offset"], m["text"]) for m in marks] == [(1, 5, "power on")]
    assert transcript.tail() == "�␛[0mtwo"


@pytest.mark.parametrize("index_end", [0, 5, 31, 32, 40, 48, 63, 64], ids=str)
def test_a_record_that_a_kill_cut_short_is_continued(tmp_path: Path, index_end: int) -> None:
    with Transcript(tmp_path) as transcript:
        transcript.feed(b"one\n", 100)
        transcript.feed(b"two\n", 200)
    index = tmp_path / "console.idx"
    index.write_bytes(index.read_bytes()[:index_end])
    with Transcript(tmp_path) as transcript:
        assert transcript.size == 8
        transcript.feed(b"three\n", 300)
        assert transcript.wait([b"two\nthree"], deadline=Deadline.after(0)).offset == 4
        assert transcript.read(0) == b"one\ntwo\nthree\n"
        whole = (index_end - 32) // 16 if index_end >= 32 else 0
        assert [transcript.time_of(o) for o in (3, 7, 8)] == [[0, 100, 100][whole], [0, 100, 200][whole], 300]


def test_a_foreign_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "console.idx").write_bytes(b"something else that is longer than a header")
    with pytest.raises(StorageError, match="not a time index"):
        Transcript(tmp_path)


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        Transcript(tmp_path / "file" / "attempt")


def test_a_full_disk_reaches_whoever_waits_and_not_the_reader(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to("/dev/full")
    with Transcript(tmp_path, window=1000) as transcript:
        with in_thread(lambda: transcript.wait([b"x"], deadline=Deadline.after(SOON))) as outcome:
            until_waiting(transcript)
            transcript.feed(b"hello ready\n")
        assert [type(e) for e in outcome] == [StorageError]
        assert "No space left on device" in str(outcome[0])
        for _ in range(100):
            transcript.feed(b"more\n" * 100)
        assert len(transcript._window) <= 2000
        assert transcript.tail(1) == "more"
        with pytest.raises(StorageError):
            transcript.wait([b"more"], deadline=Deadline.after(SOON))
        assert [m.text for m in transcript.watch([b"more"], transcript.size - 5).pending()] == [b"more"]


def test_a_limit_in_the_middle_of_a_chunk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Transcript(tmp_path, window=64) as transcript:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            transcript.feed(b"a" * 600)
            transcript.feed(b"b" * 600)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        transcript.feed(b"c")
        assert "File too large" in str(transcript.failure)
        assert transcript.size == 1201
        assert transcript.read(0, 1000) == b"a" * 600 + b"b" * 400
        transcript.feed(b"d" * 200)
        with pytest.raises(StorageError, match="File too large"):
            transcript.read(0, 1300)
    assert (tmp_path / "console.log").read_bytes() == b"a" * 600 + b"b" * 400


def test_after_the_close_the_folder_is_still_read_and_a_nameless_record_says_that_it_is_gone(tmp_path: Path) -> None:
    kept, nameless = Transcript(tmp_path, window=100), Transcript(window=100)
    for transcript in (kept, nameless):
        with transcript:
            for number in range(100):
                transcript.feed(b"line %02d\n" % number)
    assert kept.read(0, 8) == b"line 00\n"
    assert nameless.tail(1) == "line 99"
    with pytest.raises(StorageError, match="without a folder"):
        nameless.read(0, 8)


def test_many_wait_at_once() -> None:
    with Transcript() as transcript:
        outcomes: list[Match] = []
        threads = [
            threading.Thread(target=lambda n=n: outcomes.append(transcript.wait([b"mark %d;" % n], deadline=Deadline.after(SOON))))
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for n in range(20):
            transcript.feed(b"mark %d;" % n)
        for thread in threads:
            thread.join(SOON)
        assert sorted(m.text for m in outcomes) == sorted(b"mark %d;" % n for n in range(20))


def test_a_log_takes_only_so_much_of_the_disk(tmp_path: Path) -> None:
    most, line = 4 << 20, b"%09d\n"
    count = (24 << 20) // 10
    with Transcript(tmp_path, window=1 << 16, most=most) as transcript:
        for start in range(0, count, 10_000):
            transcript.feed(b"".join(line % number for number in range(start, min(start + 10_000, count))))
        size = transcript.size
        assert transcript.read(0, 20) == b"000000000\n000000001\n"
        assert transcript.read(size - 10) == line % (count - 1)
        assert transcript.read(size - (1 << 20), size - (1 << 20) + 200).count(b"\n") == 20  # from the log, not the window
        assert transcript.time_of(size - 1) >= transcript.time_of(0)
    log = tmp_path / "console.log"
    assert log.stat().st_size == size == count * 10
    assert log.stat().st_blocks * 512 <= most + (2 << 20)
    assert b"bytes were dropped here" in log.read_bytes()[2 << 20 : (2 << 20) + 200]
    assert (tmp_path / "console.marks.jsonl").read_text().count("only its beginning and its end are kept") == 1


def test_a_log_within_its_bound_is_whole(tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * 8192
    with Transcript(tmp_path, most=4 << 20) as transcript:
        transcript.feed(data)
    assert (tmp_path / "console.log").read_bytes() == data
