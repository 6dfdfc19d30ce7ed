"""Runs written and read back, in every state that a kill or a stranger can leave them in."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from labctl.errors import ConfigError, MeasurementInvalid, StorageError
from labctl.model import Cell, Channel, Direction, Outcome
from labctl.report.write import write_reports
from labctl.result import LeftOut, RunResult, Sample, TestResult
from labctl.store.follow import Follower
from labctl.store.history import expected, expected_durations, expected_from
from labctl.store.outcome import INTERRUPTED, NEVER_STARTED, WORKER_DIED
from labctl.store.reader import find_run, list_runs, read_run
from labctl.store.writer import AttemptWriter, RunWriter

WRONG: tuple[object, ...] = (None, 3, "x", [], [[]], [{}], {"pass": "x"}, float("nan"), 10**400, -1)
"""What a stranger may put in place of any value."""
CELLS = (Cell("debian-6.1", "qemu-1c", "boot"), Cell("debian-6.1", "qemu-2c", "boot"), Cell("debian-6.1", "qemu-2c", "boot", repeat=2))


def begin(results: Path, cells: Sequence[Cell] = CELLS, run_id: str | None = None) -> RunWriter:
    return RunWriter.create(
        results,
        matrix="default",
        argv=["labctl", "run", "matrix"],
        version="0.1.0",
        host={"cpu": "a CPU", "cores": "2"},
        builds={"debian-6.1": {"digest": "sha256:abc", "version": "6.1.0-56"}},
        targets={"qemu-1c": {"cpus": 1}},
        cells=cells,
        left_out=[LeftOut(Cell("debian-6.1", "qemu-8c", "boot"), "the host has 2 CPUs")],
        run_id=run_id,
    )


def sample(value: float, *, test: str = "test_ready", index: int = 0) -> Sample:
    return Sample("boot_time", value, "s", Direction.LOWER, Channel.WALL, test, {"cycle": "1"}, index, 1.8e9, {"load1": 0.5})


def fill(attempt: AttemptWriter, outcome: Outcome = Outcome.PASS, value: float = 3.5) -> None:
    attempt.status("booting")
    attempt.milestone("kernel_entry", 0.5, 1)
    attempt.milestone("ready", 3.5, 1)
    attempt.milestone("ready", 3.7, 2)
    attempt.phases([(0.0, "Linux version"), (1.25, "Run /init")])
    attempt.sample(sample(value))
    attempt.test(TestResult("test_ready", outcome, 3.6, "" if outcome is Outcome.PASS else "no prompt"))
    attempt.finish(outcome, reason="" if outcome is Outcome.PASS else "no prompt", reproduce="qemu-system-x86_64 -S")


def events_of(run: RunWriter, cell: Cell = CELLS[0], number: int = 1) -> Path:
    return run.folder / "cells" / f"{cell.build}~{cell.target}~{cell.suite}" / f"attempt-{number}" / "events.jsonl"


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run = begin(tmp_path / "deep" / "results")
    worker = RunWriter.open(run.folder)
    for cell in CELLS:
        with worker.attempt(cell, worker="gw1") as attempt:
            fill(attempt)
    written = run.finish(Outcome.PASS)
    read = read_run(run.folder)

    assert read == written
    assert (read.id, read.matrix, read.outcome, read.finished, read.interrupted) == (run.id, "default", Outcome.PASS, True, False)
    assert read.argv == ("labctl", "run", "matrix")
    assert read.host["cpu"] == "a CPU"
    assert read.builds["debian-6.1"]["digest"] == "sha256:abc"
    assert [result.cell for result in read.cells] == list(CELLS)
    assert [out.reason for out in read.left_out] == ["the host has 2 CPUs"]
    assert abs(read.started_at - time.time()) < 60
    assert read.skipped_lines == 0
    first = read.cells[0].attempts[0]
    assert (first.worker, first.outcome, first.complete, first.reproduce) == ("gw1", Outcome.PASS, True, "qemu-system-x86_64 -S")
    assert first.milestones == {"kernel_entry": 0.5, "ready": 3.5}
    assert first.kernel_stamps == ((0.0, "Linux version"), (1.25, "Run /init"))
    assert first.samples == (sample(3.5),)
    assert first.folder == events_of(run).parent
    assert 0 < first.duration_s < 60
    assert (tmp_path / "deep/results/latest").resolve() == run.folder
    for name in ("run.json", "end.json"):
        assert json.loads((run.folder / name).read_bytes())["schema"] == 1
    for events in (run.folder / "events.jsonl", events_of(run)):
        assert json.loads(events.read_bytes().split(b"\n")[0])["schema"] == 1


def test_retries_are_kept_and_read_flaky(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as first:
        first.sample(sample(9.0))
        first.test(TestResult("test_ready", Outcome.ERROR, 1.0, "console lost"))
        first.sample(sample(1.0, test="test_cpus"))
        first.test(TestResult("test_cpus", Outcome.PASS, 1.0))
        first.finish(Outcome.ERROR, reason="console lost", error="ConsoleLost")
    with run.attempt(CELLS[0], worker="gw1") as second:
        fill(second)
    result = run.finish(Outcome.PASS).cells[0]
    assert (result.outcome, result.reason) == (Outcome.FLAKY, "attempt 1: console lost")
    assert [(a.number, a.outcome, a.error) for a in result.attempts] == [(1, Outcome.ERROR, "ConsoleLost"), (2, Outcome.PASS, "")]
    assert [(s.test, s.value) for s in result.samples] == [("test_cpus", 1.0), ("test_ready", 3.5)]
    assert {t.name: t.outcome for t in result.tests} == {"test_ready": Outcome.PASS, "test_cpus": Outcome.PASS}
    assert result.duration_s == pytest.approx(sum(a.duration_s for a in result.attempts))


def test_files_that_tests_keep_are_beside_the_record_and_in_the_report(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        first, second = attempt.keep("screen.png", b"one"), attempt.keep("screen.png", b"two")
        fill(attempt)
    assert (first.name, first.read_bytes()) == ("screen.png", b"one")
    assert (second.name, second.read_bytes()) == ("screen-2.png", b"two")
    result = run.finish(Outcome.PASS)
    place = "cells/debian-6.1~qemu-1c~boot/attempt-1/kept"
    assert first.parent == run.folder / place
    page = write_reports(result).read_text()
    assert f'href="./{place}/screen.png"' in page
    assert f'href="./{place}/screen-2.png"' in page


def test_what_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begin(tmp_path).attempt(CELLS[0], worker="gw0") as attempt:
        for name in ("../screen.png", "screen", "Screen.png", ".png", "a/b.png", "screen.exe", "x" * 61 + ".png"):
            with pytest.raises(ValueError, match="no name of a file to keep"):
                attempt.keep(name, b"")
        monkeypatch.setattr("labctl.store.writer.MOST_KEPT_BYTES", 3)
        with pytest.raises(ValueError, match="4 bytes, more than the 3"):
            attempt.keep("screen.png", b"four")
        monkeypatch.setattr("labctl.store.writer.MOST_KEPT", 1)
        attempt.keep("one.png", b"")
        with pytest.raises(ValueError, match="kept 1 files already"):
            attempt.keep("two.png", b"")
    assert [path.name for path in attempt.folder.glob("kept/*")] == ["one.png"]


def test_a_run_killed_in_the_middle_says_so(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        fill(attempt)
    run.attempt(CELLS[1], worker="gw0").sample(sample(1.0))
    run._events.close()  # as its process' death does
    read = read_run(run.folder)
    assert (read.finished, read.outcome) == (False, Outcome.ERROR)
    assert [cell.outcome for cell in read.cells] == [Outcome.PASS, Outcome.ERROR, Outcome.ERROR]
    assert [cell.reason for cell in read.cells] == ["", INTERRUPTED, NEVER_STARTED]
    assert not read.cells[1].attempts[0].complete
    assert len(read.cells[1].attempts[0].samples) == 1
    assert read.cells[1].samples == ()


def test_an_attempt_that_did_not_end_in_a_run_that_did_lost_its_worker(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.attempt(CELLS[0], worker="gw0").status("booting")
    assert run.finish(Outcome.ERROR).cells[0].reason == WORKER_DIED
    assert read_run(run.folder).cells[0].reason == WORKER_DIED
    stopped = begin(tmp_path)
    stopped.attempt(CELLS[0], worker="gw0").status("booting")
    assert stopped.finish(Outcome.ERROR, interrupted=True).cells[0].reason == INTERRUPTED
    assert read_run(stopped.folder).interrupted


def test_cut_at_any_byte_it_is_read_up_to_there(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        for index in range(20):
            attempt.sample(sample(float(index), index=index))
        fill(attempt)
    events = events_of(run)
    whole = events.read_bytes()
    before = 0
    for size in range(0, len(whole) - 1, 7):
        events.write_bytes(whole[:size])
        read = read_run(run.folder).cells[0].attempts[0]
        assert len(read.samples) >= before
        assert not read.complete
        assert [s.value for s in read.samples] == [float(i) for i in range(20)][: len(read.samples)] + [3.5] * (len(read.samples) > 20)
        before = len(read.samples)
    events.write_bytes(whole)
    assert read_run(run.folder).cells[0].attempts[0].complete


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"t": 1.0, "kind": "tor')
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        with events_of(run).open("ab") as file:
            file.write(b'{"t": 1.0, "kind": "sam')
        fill(attempt)
    read = run.finish(Outcome.PASS)
    assert read.skipped_lines == 2
    assert read.cells[0].attempts[0].samples == (sample(3.5),)
    assert read.cells[0].outcome is Outcome.PASS


def test_noise_of_every_kind_does_no_harm(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        fill(attempt)
    whole = events_of(run).read_bytes()
    chance = random.Random(7)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 30)):
            at = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    del damaged[at : at + chance.randrange(40)]
                case 2:
                    damaged[at:at] = chance.choice([b"\n", b"NaN", b"1e999", b"null", b"[" * 3000, b'"', b"\\ud800", bytes(9), b"-1"])
            if not damaged:
                break
        events_of(run).write_bytes(damaged)
        read_run(run.folder)


def test_hostile_values_are_skipped_and_counted(tmp_path: Path) -> None:
    run = begin(tmp_path)
    good = {"t": 2.0, "kind": "sample", "metric": "m", "value": 1, "unit": "s", "direction": "lower", "channel": "wall"}
    lines = [
        {"t": 1.0, "kind": "begin", "worker": 7},
        good,
        {**good, "value": float("nan")},
        {**good, "value": "much"},
        {**good, "metric": ["m"]},
        {**good, "direction": "sideways"},
        {**good, "params": 3, "conditions": [1], "index": 1e9, "at": -1},
        {"t": 3.0, "kind": "milestone", "name": "ready", "seconds": float("inf"), "boot": 1},
        {"t": 3.0, "kind": "milestone", "name": {}, "seconds": 1.0},
        {"t": 3.0, "kind": "phases", "stamps": [[1, "a"], [1], 7, ["x", "y"], [2, 3], "ab"]},
        {"t": 3.0, "kind": "test", "name": "x", "outcome": "splendid"},
        {"t": 3.0, "kind": "end", "outcome": "great"},
        {"t": 1e300, "kind": "status"},
        {"t": 4.0, "kind": "of the future", "what": [1, 2]},
    ]
    events_of(run).parent.mkdir(parents=True)
    events_of(run).write_text("\n".join(map(json.dumps, lines)) + "\n")
    read = read_run(run.folder)
    attempt = read.cells[0].attempts[0]
    assert [s.value for s in attempt.samples] == [1.0, 1.0]
    assert attempt.kernel_stamps == ((1.0, "a"),)
    assert attempt.milestones == {}
    assert not attempt.complete
    assert read.skipped_lines == 9
    run.finish(Outcome.PASS)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"schema": 2}', b'{"schema": "1"}', b"{}"])
def test_a_damaged_head_is_an_error_and_a_damaged_end_is_no_end(tmp_path: Path, content: bytes) -> None:
    run = begin(tmp_path)
    run.finish(Outcome.PASS)
    (run.folder / "end.json").write_bytes(content)
    assert not read_run(run.folder).finished
    assert [r.finished for r in list_runs(tmp_path)] == [False]
    (run.folder / "run.json").write_bytes(content)
    with pytest.raises(StorageError, match=run.id):
        read_run(run.folder)
    with pytest.raises(StorageError, match=run.id):
        RunWriter.open(run.folder)
    assert list_runs(tmp_path) == []


def test_a_head_with_wrong_types_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = begin(tmp_path)
    head = json.loads((run.folder / "run.json").read_bytes())
    for name in head.keys() - {"schema"}:
        for wrong in WRONG:
            (run.folder / "run.json").write_text(json.dumps({**head, name: wrong}))
            read_run(run.folder)
            list_runs(tmp_path)
    head["cells"] = [{"build": "b"}, 3, *head["cells"], {**head["cells"][0], "repeat": 10**30}]
    (run.folder / "run.json").write_text(json.dumps(head))
    read = read_run(run.folder)
    assert [c.cell for c in read.cells] == list(CELLS)
    assert read.skipped_lines == 3


def test_an_end_with_wrong_types_does_no_harm(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.finish(Outcome.PASS)
    end = json.loads((run.folder / "end.json").read_bytes())
    for name in end.keys() - {"schema"}:
        for wrong in WRONG:
            (run.folder / "end.json").write_text(json.dumps({**end, name: wrong}))
            read_run(run.folder)
            list_runs(tmp_path)
            expected_durations(tmp_path)


def test_what_is_no_file_under_a_file_s_name_does_not_block(tmp_path: Path) -> None:
    run = begin(tmp_path)
    events_of(run).parent.mkdir(parents=True)
    os.mkfifo(events_of(run))
    (events_of(run).parents[1] / "attempt-2" / "events.jsonl").mkdir(parents=True)
    (events_of(run).parents[1] / "attempt-x").write_text("")
    (events_of(run).parents[1] / "attempt-3").symlink_to("attempt-3")
    os.mkfifo(run.folder / "end.json")
    read = read_run(run.folder)
    assert [a.number for a in read.cells[0].attempts] == [1, 2, 3]
    assert read.cells[0].outcome is Outcome.ERROR
    assert not read.finished


def test_an_endless_line_is_one_bad_line(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        with events_of(run).open("ab") as file:
            file.write(b"x" * (40 << 20) + b"\n")
        fill(attempt)
    read = read_run(run.folder)
    assert read.skipped_lines == 1
    assert read.cells[0].outcome is Outcome.PASS


def test_attempts_of_many_workers_never_share_a_folder(tmp_path: Path) -> None:
    run = begin(tmp_path)
    made: list[int] = []

    def work() -> None:
        mine = RunWriter.open(run.folder)
        for _ in range(25):
            with mine.attempt(CELLS[0], worker="gw") as attempt:
                made.append(attempt.number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(1, 101))
    assert read_run(run.folder).skipped_lines == 0


def test_a_cell_of_no_run_and_a_figure_that_is_none_are_refused(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with pytest.raises(ValueError, match="not a cell of run"):
        run.attempt(Cell("other", "qemu-1c", "boot"), worker="gw0")
    with run.attempt(CELLS[0], worker="gw0") as attempt, pytest.raises(MeasurementInvalid, match="boot_time is nan"):
        attempt.sample(sample(float("nan")))


@pytest.mark.parametrize("name", ["", ".", "..", "latest", "a/b", "../x"])
def test_an_id_cannot_lead_out_of_the_results(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        begin(tmp_path / "results", run_id=name)


def test_a_folder_that_cannot_be_written_is_named_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/results: Not a directory\n"):  # the free space has nothing to do with it
        begin(tmp_path / "file" / "results")
    begin(tmp_path, run_id="mine")
    with pytest.raises(StorageError, match=r"mine: File exists"):
        begin(tmp_path, run_id="mine")
    if Path("/proc/1").exists():
        with pytest.raises(StorageError, match=r"/proc/nowhere: No such file") as caught:
            begin(Path("/proc/nowhere"))
        assert "--results" in caught.value.remedy


def test_a_run_that_goes_on_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        fill(attempt)
    run.attempt(CELLS[1], worker="gw1")
    running = read_run(run.folder)
    assert (running.running, running.finished, [r.running for r in list_runs(tmp_path)]) == (True, False, [True])
    assert [cell.reason for cell in running.cells][1:] == ["this attempt is under way", "not begun yet"]
    RunWriter.open(run.folder).event("a worker's")
    assert read_run(run.folder).running
    run._events.close()  # as its process' death does
    killed = read_run(run.folder)
    assert (killed.running, killed.finished, [r.running for r in list_runs(tmp_path)]) == (False, False, [False])
    ended = begin(tmp_path).finish(Outcome.PASS)
    assert (ended.running, read_run(ended.folder).running) == (False, False)


def test_runs_are_listed_newest_first_without_their_events(tmp_path: Path) -> None:
    finished, killed = begin(tmp_path), begin(tmp_path)
    for run in (finished, killed):
        with run.attempt(CELLS[0], worker="gw0") as attempt:
            fill(attempt)
    result = finished.finish(Outcome.FAIL)
    for run in (finished, killed):
        shutil.rmtree(run.folder / "cells")
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("")
    listed = list_runs(tmp_path)
    assert [r.id for r in listed] == [killed.id, finished.id]
    assert (listed[0].finished, listed[0].outcome, listed[0].cells, listed[0].matrix) == (False, Outcome.ERROR, 3, "default")
    assert (listed[1].outcome, listed[1].samples, listed[1].counts) == (Outcome.FAIL, 1, {Outcome.PASS: 1, Outcome.ERROR: 2})
    assert listed[1].duration_s == result.duration_s
    assert list_runs(tmp_path / "none") == []


def test_a_run_is_found_by_what_one_would_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no run in"):
        find_run(tmp_path)
    first, second = begin(tmp_path, run_id="20260101-000000-aaaa"), begin(tmp_path, run_id="20260101-000000-bbbb")
    assert find_run(tmp_path) == find_run(tmp_path, "latest") == second.folder
    assert find_run(tmp_path, first.id) == find_run(tmp_path, "20260101-000000-a") == first.folder
    assert find_run(tmp_path, str(first.folder)) == first.folder
    assert find_run(tmp_path, f"{tmp_path}/latest") == second.folder
    assert read_run(tmp_path / "latest").id == second.id
    monkeypatch.chdir(first.folder)
    assert find_run(tmp_path, ".") == find_run(tmp_path, f"../{first.id}/") == first.folder
    with pytest.raises(ConfigError, match=r"begins 2 runs.*aaaa, 20260101-000000-bbbb"):
        find_run(tmp_path, "2026")
    with pytest.raises(ConfigError, match="did you mean '20260101-000000-aaaa'"):
        find_run(tmp_path, "20260101-000001-aaaa")
    with pytest.raises(ConfigError, match="known: "):
        find_run(tmp_path, "")


def test_latest_does_not_go_back_to_an_older_run(tmp_path: Path) -> None:
    old, new = begin(tmp_path, run_id="20260101-000000-bbbb"), begin(tmp_path, run_id="20260101-000000-aaaa")
    old.finish(Outcome.PASS)
    assert (tmp_path / "latest").resolve() == new.folder == find_run(tmp_path)
    shutil.rmtree(new.folder)
    RunWriter.open(old.folder).finish(Outcome.PASS)
    assert (tmp_path / "latest").resolve() == old.folder


def test_a_results_folder_without_links_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    run = begin(tmp_path)
    assert run.finish(Outcome.PASS).finished
    assert find_run(tmp_path) == run.folder


def durations(results: Path, run_id: str, seconds: dict[Cell, float], **more: object) -> None:
    begin(results, tuple(seconds), run_id).finish(Outcome.PASS)
    path = results / run_id / "end.json"
    end = json.loads(path.read_bytes())
    for found, spent in zip(end["cells"], seconds.values(), strict=True):
        found["durations"] = [spent]
    path.write_text(json.dumps({**end, **more}))


def test_durations_are_expected_as_they_were(tmp_path: Path) -> None:
    one, other, third = Cell("b", "t1", "boot"), Cell("b", "t2", "boot"), Cell("b", "t1", "boot", Channel.ICOUNT)
    for number, spent in enumerate([100.0, 3.0, 4.0, 50.0]):
        durations(tmp_path, f"2026010{number + 1}-000000-aaaa", {one: spent, other: 8.0, third: 60.0})
    begin(tmp_path)  # one that never ended tells nothing
    history = expected_durations(tmp_path, most_runs=3)
    assert history == {"b/t1/boot": 4.0, "b/t2/boot": 8.0, "b/t1/boot@icount": 60.0}
    assert expected_durations(tmp_path)["b/t1/boot"] == 27.0
    assert expected(history, Cell("b", "t1", "boot", repeat=3)) == 4.0
    assert expected(history, Cell("new", "t2", "boot")) == 8.0
    assert expected(history, Cell("new", "t9", "boot")) == 6.0
    assert expected(history, Cell("new", "t9", "boot", Channel.ICOUNT)) == 60.0
    assert expected(history, Cell("new", "t1", "fio")) is None
    assert expected(dict(history), Cell("new", "t2", "boot")) == 8.0
    assert expected_from(history, Cell("b", "t1", "boot", repeat=3)) == "history"
    assert expected_from(history, Cell("new", "t2", "boot")) == expected_from(history, Cell("new", "t9", "boot")) == "similar"
    assert expected_from(history, Cell("new", "t1", "fio")) is None
    assert expected_durations(tmp_path / "none") == {}


def test_what_the_lab_broke_and_waiting_tell_no_duration(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for cell, outcome in zip(CELLS[:2], (Outcome.PASS, Outcome.ERROR), strict=True):
        with run.attempt(cell, worker="gw0") as attempt:
            attempt.status("leasing")
            attempt.status("waiting", why="busy")
            time.sleep(0.05)
            attempt.status("booting")
            attempt.finish(outcome)
    result = run.finish(Outcome.ERROR)
    assert result.cells[0].attempts[0].waited_s >= 0.05
    assert result.cells[0].attempts[0].duration_s < 0.05
    history = expected_durations(tmp_path)
    assert list(history) == [CELLS[0].key]
    assert history[CELLS[0].key] < 0.05


def test_a_follower_sees_each_event_once_and_only_whole_ones(tmp_path: Path) -> None:
    run = begin(tmp_path)
    follower = Follower(run.folder)
    assert follower.poll() == []
    attempt = run.attempt(CELLS[0], worker="gw0")
    attempt.status("booting")
    assert [(c, n, e["kind"]) for c, n, e in follower.poll()] == [(CELLS[0].id, 1, "begin"), (CELLS[0].id, 1, "status")]
    assert follower.poll() == []
    with events_of(run).open("ab") as file:
        file.write(b'{"t": 1.0, "kind": "ha')
        file.flush()
        assert follower.poll() == []
        file.write(b'lf"}\n')
    assert [e["kind"] for _, _, e in follower.poll()] == ["half"]
    attempt.finish(Outcome.ERROR)
    again = run.attempt(CELLS[0], worker="gw1")
    assert [(n, e["kind"]) for _, n, e in follower.poll()] == [(1, "end"), (2, "begin")]
    again.finish(Outcome.PASS)
    assert [(n, e["outcome"]) for _, n, e in follower.poll()] == [(2, "pass")]
    assert follower.poll() == []


def test_a_follower_that_comes_late_misses_nothing(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.attempt(CELLS[0], worker="gw0").status("booting")  # its worker dies
    with run.attempt(CELLS[0], worker="gw1") as attempt:
        fill(attempt)
    follower = Follower(run.folder)
    found = follower.poll()
    assert [n for _, n, _ in found] == sorted(n for _, n, _ in found)
    assert {n for _, n, _ in found} == {1, 2}
    assert found[-1][2]["kind"] == "end"
    assert follower.poll() == []


def test_a_follower_is_not_led_astray(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for folder in ("../../..", "..", "", "a/b", 3, "\0"):
        run.event("attempt", cell="x", folder=folder, attempt=1)
    run.event("attempt", cell="x", folder="nowhere", attempt="1")
    assert Follower(run.folder).poll() == []
    assert Follower(tmp_path / "none").poll() == []


def test_following_a_thousand_cells_is_cheap(tmp_path: Path) -> None:
    cells = [Cell("b", f"t{n}", "boot") for n in range(1000)]
    run = begin(tmp_path, cells)
    follower = Follower(run.folder)
    for cell in cells:
        with run.attempt(cell, worker="gw0") as attempt:
            attempt.finish(Outcome.PASS)
    assert len(follower.poll()) == 2000
    began = time.process_time()
    for _ in range(100):
        follower.poll()
    assert time.process_time() - began < 0.1


def test_files_are_readable_by_others_as_usual(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.finish(Outcome.PASS)
    for name in ("run.json", "end.json", "events.jsonl"):
        assert stat.S_IMODE((run.folder / name).stat().st_mode) & 0o400
    assert not [p for p in run.folder.rglob("*") if p.name.endswith(".tmp")]


def test_nothing_heavy_is_imported_to_write_and_read() -> None:
    code = (
        "import sys, labctl.model, labctl.result; import labctl.store.writer, labctl.store.reader, labctl.store.history, labctl.store.follow;"
        "print([m for m in ('duckdb', 'pandas', 'pyarrow', 'numpy', 'subprocess', 'statistics') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stderr


def test_a_result_read_twice_is_equal(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        fill(attempt, Outcome.FAIL)
    first: RunResult = read_run(run.folder)
    assert first == read_run(run.folder)
    assert first.cells[0].reason == "no prompt"
