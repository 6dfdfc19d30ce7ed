"""Questions over runs, the examples of docs/results.md, and what the store's verbs cost."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest

from labctl.errors import ConfigError, StorageError
from labctl.histogram import Histogram
from labctl.model import Cell, Channel, Direction, Outcome
from labctl.result import Distribution, Sample, TestResult
from labctl.run.boot_figures import MILESTONE, READY
from labctl.store.history import expected_durations
from labctl.store.parquet import COLUMNS, HISTOGRAM_COLUMNS
from labctl.store.query import histograms_frame, samples_frame, sql
from labctl.store.reader import list_runs, read_run
from labctl.store.writer import RunWriter

DOCS = Path(__file__).parents[2] / "docs" / "results.md"
# The metrics that a real run has: those of the suite that comes with a lab.
SUITE = runpy.run_path(str(Path(__file__).parents[2] / "suites" / "boot" / "test_boot.py"))
CELLS = (Cell("debian-6.1", "qemu-1c-512m", "boot"), Cell("debian-6.12", "qemu-1c-512m", "boot", Channel.WALL, 2))


def make(
    results: Path, *, finish: bool = True, cells: Sequence[Cell] = CELLS, samples: int = 3, run_id: str | None = None, text: str = ""
) -> RunWriter:
    run = RunWriter.create(
        results,
        matrix="default",
        argv=[],
        version="0.1.0",
        host={},
        builds={cells[0].build: {"digest": "sha256:abc"}},
        targets={},
        cells=cells,
        run_id=run_id,
    )
    for cell in cells:
        with run.attempt(cell, worker="gw0") as attempt:
            for index in range(samples):
                attempt.sample(
                    Sample(
                        READY.name,
                        3.0 + index / 10,
                        "s",
                        Direction.LOWER,
                        Channel.WALL,
                        f"test_ready{text}",
                        {"cycle": f"a'b\"{text}"},
                        index,
                        1.8e9 + index,
                        {"load1": 0.25},
                    )
                )
            found = Histogram.of([0.001, 0.002, 0.004 + cell.repeat / 1000])
            params = {"path": f"a'b\"{text}"}
            attempt.distribution(
                Distribution("network.rtt", found, "s", Direction.LOWER, Channel.WALL, f"test_ready{text}", params, 0, 1.8e9)
            )
            attempt.test(TestResult(f"test_ready{text}", Outcome.PASS, 3.0))
            attempt.finish(Outcome.PASS)
    if finish:
        run.finish(Outcome.PASS)
    return run


@pytest.mark.parametrize("name", ["results", 'it\'s [1] *? "x" {a,b} %s'])
def test_samples_of_runs_come_as_a_frame_wherever_they_lie(tmp_path: Path, name: str) -> None:
    ended, killed = make(tmp_path / name), make(tmp_path / name, finish=False)
    assert (ended.folder / "samples.parquet").is_file()
    for run in (ended, killed):
        frame = samples_frame(run.folder)
        assert list(frame.columns) == list(COLUMNS)
        assert len(frame) == 6
        row = frame[(frame.cell == CELLS[1].id) & (frame["index"] == 2)].iloc[0]
        assert (row.run, row["repeat"], row.attempt, row.value, row.unit, row.direction) == (run.id, 2, 1, 3.2, "s", "lower")
        assert (row.params, row.conditions, row.outcome, row["at"]) == ('{"cycle":"a\'b\\""}', '{"load1":0.25}', "pass", 1.8e9 + 2)
        assert sorted(frame.build_digest.unique()) == ["", "sha256:abc"]
        assert frame.started_at.iloc[0] == read_run(run.folder).started_at
    assert len(samples_frame([ended.folder, killed.folder])) == 12
    assert len(sql(tmp_path / name, "FROM samples")) == 12


def test_a_file_and_its_events_tell_the_same(tmp_path: Path) -> None:
    run = make(tmp_path, text="\0\n\t\x1b[31m\u2028é🙂\\u0000")
    from_file = samples_frame(run.folder)
    (run.folder / "samples.parquet").unlink()
    from_events = samples_frame(run.folder)
    assert from_file.equals(from_events)
    assert from_file.test.iloc[0] == "test_ready\0\n\t\x1b[31m\u2028é🙂\\u0000"


def test_histograms_come_as_a_frame_and_add_up_in_sql(tmp_path: Path) -> None:
    ended, killed = make(tmp_path), make(tmp_path, finish=False)
    assert (ended.folder / "histograms.parquet").is_file()
    from_file, from_events = histograms_frame(ended.folder), histograms_frame(killed.folder)
    assert list(from_file.columns) == list(HISTOGRAM_COLUMNS)
    own = ["run", "started_at"]
    assert from_file.drop(columns=own).to_json() == from_events.drop(columns=own).to_json()
    assert list(from_file["count"]) == [3, 3]
    assert list(from_file["max"]) == pytest.approx([0.005, 0.006])
    assert len(from_file.bins[0]) == 3
    bins = "SELECT unnest(bins, recursive := true) FROM histograms"
    merged = sql(tmp_path, f"SELECT low, high, sum(count) AS n FROM ({bins}) GROUP BY ALL ORDER BY low")
    assert list(merged.n) == [4, 4, 2, 2]
    assert merged.low[0] <= 0.001 < merged.high[0]


def test_a_damaged_file_is_replaced_by_the_events(tmp_path: Path) -> None:
    run = make(tmp_path)
    file = run.folder / "samples.parquet"
    for damage in (b"", b"PAR1", file.read_bytes()[:-9], b"x" * 100):
        file.write_bytes(damage)
        assert len(samples_frame(run.folder)) == 6


def test_a_file_damaged_within_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = make(tmp_path)
    (run.folder / "samples.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    with pytest.raises(StorageError, match="samples cannot be read"):
        samples_frame(run.folder)


def test_views_tell_of_all_runs(tmp_path: Path) -> None:
    ended, killed, empty = make(tmp_path), make(tmp_path, finish=False), make(tmp_path, samples=0)
    assert not (empty.folder / "samples.parquet").exists()
    runs = sql(tmp_path, "SELECT * FROM runs ORDER BY started_at").set_index("run")
    assert list(runs.index) == [ended.id, killed.id, empty.id]
    assert list(runs.finished) == [True, False, True]
    assert list(runs.outcome) == ["pass", "error", "pass"]
    assert list(runs.samples) == [6, 6, 0]
    assert list(runs.cells) == [2, 2, 2]
    cells = sql(tmp_path, "SELECT run, count(*) AS n FROM cells WHERE outcome = 'pass' AND attempts = 1 GROUP BY run").set_index("run")
    assert dict(cells.n) == {ended.id: 2, killed.id: 2, empty.id: 2}
    load = sql(tmp_path, "SELECT max((conditions->>'load1')::DOUBLE) AS load, count(*) AS n FROM samples").iloc[0]
    assert (load.load, load.n) == (0.25, 12)


def test_without_runs_the_views_are_empty(tmp_path: Path) -> None:
    for results in (tmp_path, tmp_path / "none"):
        assert sql(results, "SELECT (SELECT count(*) FROM samples) + (SELECT count(*) FROM cells) AS n").n.iloc[0] == 0
    assert samples_frame([]).empty


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM samples", "SELECT 'x'::INTEGER", ""])
def test_a_query_that_fails_is_the_author_s_mistake(tmp_path: Path, query: str) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match="the query"):
        sql(tmp_path, query)


def test_hostile_events_do_no_harm_to_the_file(tmp_path: Path) -> None:
    run = make(tmp_path, finish=False)
    begin = '{"t":1,"kind":"sample","unit":"s","direction":"none","channel":"wall",'
    huge = begin + '"metric":"m","value":1.7e308,"index":9007199254740993}\n'
    odd = begin + '"metric":"\\u0000","value":-0.0,"params":{"a":1e999}}\n'
    ends = '{"t":9e9,"kind":"end","outcome":"pass","duration_s":1e999}\n'
    for events in run.folder.glob("cells/*/attempt-1/events.jsonl"):
        with events.open("a") as file:
            file.write(huge + odd + ends)
    run.finish(Outcome.PASS)
    frame = samples_frame(run.folder)
    assert len(frame) == 10
    assert frame.value.max() == 1.7e308
    assert len(sql(tmp_path, "FROM cells")) == 2


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_documentation_work_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "results", finish=False)
    make(tmp_path / "results")
    run = make(tmp_path / "results", finish=False)
    with run.attempt(CELLS[0], worker="gw0") as attempt:
        at = Sample(MILESTONE.name, 0.5, "s", Direction.LOWER, Channel.WALL, "test_ready", {"milestone": "kernel_entry"})
        attempt.sample(at)
        attempt.test(TestResult("test_ready", Outcome.PASS, 1.0))
        attempt.finish(Outcome.PASS)
    run.finish(Outcome.PASS)
    monkeypatch.chdir(tmp_path)
    assert (len(blocks("python")), len(blocks("sql")), len(blocks("sh"))) == (2, 4, 1)
    for code in blocks("python"):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert "boot.ready" in ran.stdout
    by_build, over_time, milestones, longer = (duckdb.execute(query).fetchall() for query in blocks("sql"))
    assert by_build == [("debian-6.1", "qemu-1c-512m", 3.1, 6), ("debian-6.12", "qemu-1c-512m", 3.1, 6)]
    assert [(build, seconds, load) for _, build, seconds, load in sorted(over_time)][:1] == [("debian-6.1", 3.1, 0.25)]
    assert longer == [("network.rtt", 12, 8)]
    assert milestones == [("debian-6.1", "kernel_entry", 0.5, 1)]
    assert f"`{SUITE['POWER_OFF'].name}`" in DOCS.read_text()
    ran = subprocess.run(["sh", "-c", blocks("sh")[0]], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "none\n"


def test_the_documentation_names_every_column(tmp_path: Path) -> None:
    text = DOCS.read_text()
    make(tmp_path)
    for view in ("samples", "cells", "runs"):
        for column in sql(tmp_path, f"FROM {view}").columns:
            assert f"`{column}`" in text, f"{view}.{column}"


def best(call: object, times: int = 5) -> float:
    """Milliseconds of CPU time of the cheapest of several calls.

    The bounds below are twice and more of what a quiet host takes, for tests run on busy ones: they catch a heavy import, a file read
    too often, not a tenth more.
    """
    assert callable(call)
    spent = []
    for _ in range(times):
        before = time.process_time()
        call()
        spent.append((time.process_time() - before) * 1e3)
    return min(spent)


def test_history_of_twenty_runs_costs_little(tmp_path: Path) -> None:
    cells = [Cell("b", f"t{n}", "boot") for n in range(40)]
    first = make(tmp_path, cells=cells, samples=0, run_id="20260101-000000-aaaa")
    for number in range(1, 25):
        folder = tmp_path / f"20260101-0000{number:02}-aaaa"
        folder.mkdir()
        for name in ("run.json", "end.json"):
            (folder / name).write_bytes((first.folder / name).read_bytes())
    assert len(expected_durations(tmp_path)) == 40
    assert best(lambda: expected_durations(tmp_path)) < 20
    assert best(lambda: list_runs(tmp_path)) < 20


FINISH = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from labctl.model import Cell, Outcome
from labctl.store.writer import warm_up
from test_store_query import make
run = make(Path({results!r}), finish=False, cells=[Cell("b", f"t{{n}}", "boot") for n in range(8)], samples=10)
warm_up()
before = time.process_time()
run.finish(Outcome.PASS)
print((time.process_time() - before) * 1e3)
"""


def test_ending_a_run_of_eight_cells_costs_little(tmp_path: Path) -> None:
    code = FINISH.format(tests=str(Path(__file__).parent), results=str(tmp_path))
    spent = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(spent) < 100, spent


IMPORT = """
import time, labctl.model, labctl.result
before = time.process_time()
import labctl.store.writer
print((time.process_time() - before) * 1e3)
"""


def test_importing_the_writer_costs_little() -> None:
    spent = [float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(spent) < 40, spent
