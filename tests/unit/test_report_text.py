"""The terminal's table and the JSON object."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from labctl.model import Outcome
from labctl.report.order import duration, sentence
from labctl.report.text import EXCERPT_LINES, MOST_CELLS, MOST_FAILURES, as_json, cells_table, show, show_failures
from labctl.result import MachineEvent, RunResult
from tests.report_runs import HOSTILE, QEMU, failing_run, hostile_run, large_run, ordinary_run

FOLDER = Path("/nowhere")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(run: RunResult, width: int = 100) -> str:
    """As on a terminal of that width."""
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(cells_table(run), crop=False)
    return stream.getvalue()


def shown(run: RunResult, report: Path | None = None, stream: io.StringIO | None = None) -> list[str]:
    stream = stream or io.StringIO()
    show(run, report, file=stream)
    return stream.getvalue().removesuffix("\n").split("\n")


def crashed_run(excerpt: str) -> RunResult:
    run = failing_run(FOLDER)
    result = run.cells[6]
    attempt = replace(result.attempts[0], excerpt=excerpt)
    return replace(run, cells=(*run.cells[:6], replace(result, attempts=(attempt,)), *run.cells[7:]))


def test_a_failure_has_cause_console_and_a_command_that_can_be_pasted() -> None:
    text = printed(failing_run(FOLDER), 80)
    told = text[text.index("✗ fail debian-cloud-previous/qemu-4c-2g/boot") :]
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in told
    assert QEMU in told.split("\n"), "the command must be a line of its own, unbroken at any width"
    console = told[: told.index("by hand")]
    assert console.count("│") <= 17
    assert "[    1.205377] Kernel panic" in console, "the lines shown are those around the cause"


def test_what_can_be_done_about_a_failure_is_told_unless_the_command_says_it() -> None:
    run = failing_run(FOLDER)
    number, result = next((n, r) for n, r in enumerate(run.cells) if r.cell.id == "debian-cloud-previous/qemu-4c-2g/boot")

    def with_remedy(remedy: str) -> RunResult:
        attempts = (*result.attempts[:-1], replace(result.attempts[-1], remedy=remedy))
        return replace(run, cells=(*run.cells[:number], replace(result, attempts=attempts), *run.cells[number + 1 :]))

    mended = with_remedy("labctl power off rack1")
    assert "\n  try: labctl power off rack1\n" in printed(mended)
    assert as_json(mended, None)["cells"][number]["remedy"] == "labctl power off rack1"
    assert "try:" not in printed(run)
    assert "try:" not in printed(with_remedy(QEMU))


def test_what_is_pasted_and_what_the_console_said_is_whole_wherever_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "[    1.205377] " + " ".join(f"word{n}" for n in range(40))
    run = crashed_run(line)
    monkeypatch.setenv("COLUMNS", "60")
    assert {QEMU, f"  │ {line}"} <= set(shown(run))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    on_terminal = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(shown(run, stream=Terminal()))).split("\n")
    assert {QEMU, f"  │ {line}"} <= set(on_terminal)


def test_without_a_terminal_a_line_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    page = Path("/results/" + "long" * 30 + "/report.html")
    lines = shown(failing_run(FOLDER), page)
    assert lines[-1] == f"report: {page}"
    row = next(line for line in lines if line.startswith("✗ fail     debian-cloud-previous"))
    assert row.endswith("Kernel panic - not syncing: VFS: Unable to mount root fs")
    assert not [line for line in lines if line != line.rstrip()]
    assert shown(failing_run(FOLDER))[-1] == f"results: {FOLDER}"


def test_a_long_name_leaves_the_columns_their_words() -> None:
    run = failing_run(FOLDER)
    name = "linux-6.19-rc7-with-a-name-as-long-as-a-name-may-be-at-all-00001"
    cell = replace(run.cells[6].cell, build=name)
    text = printed(replace(run, cells=(*run.cells[:6], replace(run.cells[6], cell=cell), *run.cells[7:])), 80)
    lines = text.split("\n")
    assert lines[0].split() == ["OUTCOME", "BUILD", "TARGET", "SUITE", "READY", "TIME", "TRIES"]
    at = next(i for i, line in enumerate(lines) if line.startswith(f"✗ fail     {name}  qemu-4c-2g"))
    assert lines[at + 1] == "    Kernel panic - not syncing: VFS: Unable to mount root fs"
    assert "…" not in text[: text.index("left out")]


def test_the_cause_behind_a_long_path_is_in_the_table() -> None:
    run = failing_run(FOLDER)
    cause = f"cannot write /{'a-folder/' * 20}events.jsonl: No space left on device (0.0 MiB free there)"
    failed = replace(run.cells[6], reason=cause)
    rows = shown(replace(run, cells=(*run.cells[:6], failed, *run.cells[7:])))
    assert any(row.endswith("cannot write …/events.jsonl: No space left on device (0.0 MiB free there)") for row in rows)
    assert f"  {cause}" in rows, "below the table it is said in full"


def test_of_a_crash_the_head_is_shown() -> None:
    report = "\n".join(["[    2.0] BUG: kernel NULL pointer dereference", *(f"[    2.{n:02}]  call_{n}" for n in range(1, 40))])
    before = "\n".join(f"[    1.{n}] before {n}" for n in range(5))
    lines = shown(crashed_run(f"{before}\n{report}"))
    first = next(i for i, line in enumerate(lines) if line.startswith("  │"))
    assert lines[first : first + 6] == [f"  │ {line}" for line in f"{before}\n{report}".split("\n")[:6]]
    assert lines[first + 5 + EXCERPT_LINES] == "  │ … 30 lines below"


def test_who_reads_json_gets_the_failures_in_words() -> None:
    stream = io.StringIO()
    run = failing_run(FOLDER)
    show_failures(run, file=stream)
    text, table = stream.getvalue(), "\n".join(shown(run))
    assert text.strip()
    assert text.strip() in table
    assert QEMU in text.split("\n")


def test_every_cell_is_a_line() -> None:
    run = failing_run(FOLDER)
    lines = printed(run, 160).split("\n")
    for word, count in {"✓ pass": 8, "≈ flaky": 1, "– skip": 1, "? invalid": 2, "! error": 2, "✗ fail": 3}.items():
        assert len([line for line in lines if line.startswith(word)]) == count, word


def test_guest_text_neither_steers_the_terminal_nor_is_markup() -> None:
    run = hostile_run(FOLDER)
    text = printed(replace(run, cells=(replace(run.cells[0], reason="[red]x[/red] [link=http://127.0.0.1]y[/link]"), *run.cells[1:])), 200)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]x[/red]" in text


def test_of_a_large_run_failures_and_a_count() -> None:
    run = large_run(FOLDER, cells=2000, samples=2000)
    text = printed(run, 200)
    assert f"{2000 - MOST_CELLS:,} cells more" in text
    assert text.count("by hand:") == MOST_FAILURES
    assert "failures more" in text


def test_json_is_what_was_promised() -> None:
    run = failing_run(FOLDER)
    found = json.loads(json.dumps(as_json(run, Path("/r/report.html")), allow_nan=False))
    assert list(found) == ["schema", "run", "outcome", "results", "report", "cells", "promises", "density", "stories"]
    assert (found["schema"], found["run"], found["outcome"], found["results"], found["report"]) == (
        1,
        run.id,
        "fail",
        "/nowhere",
        "/r/report.html",
    )
    cell = found["cells"][0]
    assert list(cell) == [
        "id",
        "build",
        "target",
        "suite",
        "channel",
        "outcome",
        "attempts",
        "duration_s",
        "reason",
        "remedy",
        "red_since",
        "failed",
        "reused_from",
        "samples",
        "readings",
        "arrived",
        "machine_events",
    ]
    assert cell["id"] == "debian-cloud/qemu-1c-512m/boot"
    assert cell["attempts"] == 1
    assert cell["samples"][0] == {"metric": "boot.ready", "value": run.cells[0].samples[0].value, "unit": "s", "channel": "wall"}
    assert found["cells"][3]["attempts"] == 2
    assert as_json(run, None)["report"] is None


def test_json_holds_without_numbers() -> None:
    found = as_json(hostile_run(FOLDER), None)
    json.dumps(found, allow_nan=False)
    assert None in [s["value"] for s in found["cells"][0]["samples"]]
    assert found["cells"][0]["build"] == HOSTILE[0]


def test_the_sentence_says_what_must_be_known() -> None:
    run = ordinary_run(FOLDER)
    assert sentence(replace(run, duration_s=75.0)) == "All 8 cells passed; took 1 min 15 s."
    assert "interrupted" in sentence(replace(run, interrupted=True))
    assert "killed" in sentence(replace(run, finished=False))
    assert sentence(replace(run, finished=False, running=True)) == f"Running, 8 of 8 cells have ended; {duration(run.duration_s)} so far."
    assert sentence(replace(run, cells=(), duration_s=0.0)) == "No cell was run; took 0.00 s."


def test_a_cell_that_did_not_end_is_no_error_of_the_lab() -> None:
    run = ordinary_run(FOLDER)
    cut = replace(run.cells[0], outcome=Outcome.ERROR, attempts=(replace(run.cells[0].attempts[0], outcome=Outcome.ERROR, complete=False),))
    never = replace(run.cells[1], outcome=Outcome.ERROR, attempts=())
    stopped = replace(run, cells=(cut, never, *run.cells[2:]), outcome=Outcome.ERROR, interrupted=True, duration_s=75.0)
    assert sentence(stopped) == "8 cells: 6 passed, 1 interrupted, 1 not begun; took 1 min 15 s. The run was interrupted."
    lines = shown(stopped)
    assert [line.split("  ")[0] for line in lines[1:4]] == ["· interrupted", "· not begun", "✓ pass"]
    assert "by hand:" not in "\n".join(lines)
    assert lines[-2].startswith("· interrupted  8 cells")
    going_on = shown(replace(stopped, interrupted=False, finished=False, running=True))
    assert [line.split("  ")[0] for line in going_on[1:3]] == ["· running", "· not begun"]
    assert going_on[-2].startswith("· running  Running, 6 of 8 cells have ended; ")
    lost = replace(stopped, interrupted=False)
    assert sentence(lost).startswith("8 cells: 2 ended by an error of the lab, 6 passed"), "nobody wanted a worker to die"


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.84, 12.34, 59.96, 245, 7380)] == ["0.84 s", "12.3 s", "60.0 s", "4 min 05 s", "2 h 03 min"]


def test_what_the_machines_logged_is_told() -> None:
    run = ordinary_run(FOLDER)
    first = run.cells[0]
    entries = tuple(MachineEvent(n, 0.0, f"temperature, sensor {n}: asserted\x1b[2J") for n in range(1, 14))
    told = replace(first, attempts=(replace(first.attempts[0], machine_events=entries),))
    run = replace(run, cells=(told, *run.cells[1:]))
    text = printed(run)
    assert "temperature, sensor 1: asserted" in text
    assert "\x1b[2J" not in text
    assert "… and 3 more" in text
    assert as_json(run, None)["cells"][0]["machine_events"][0]["number"] == 1
