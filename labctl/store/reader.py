"""Runs read back from their folders, in whatever state they are: running, ended, killed at any instant, damaged.

The events of the attempts are the truth. A line that is torn, foreign or of a wrong shape is skipped and counted, and nothing that
stands in a folder makes the reader crash: only a folder without a run in it is an error.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labctl.config import nearest
from labctl.errors import ConfigError, Problem, StorageError
from labctl.model import SCHEMA, Cell, Outcome
from labctl.result import Attempt, CellResult, Distribution, LeftOut, MachineEvent, Reused, RunResult, Sample, TestResult
from labctl.store import inputs, layout, records, stories
from labctl.store.disk import MOST_DOCUMENT, claimed, lines, open_regular, storage_error
from labctl.store.outcome import INTERRUPTED, RUNNING, WAITING, WORKER_DIED, cell_outcome

_WAITING = ("leasing", "waiting")
"""States in which an attempt does nothing but wait for others."""


@dataclass(frozen=True)
class RunSummary:
    """A run in a line of a list."""

    id: str
    folder: Path
    matrix: str
    version: str
    started_at: float
    """Seconds since the Unix epoch."""
    duration_s: float
    """0 if it did not end."""
    outcome: Outcome
    """``error`` if it did not end."""
    finished: bool
    """False while it runs and if it was killed."""
    running: bool
    """Its writer is alive."""
    interrupted: bool
    cells: int
    """How many were asked for."""
    counts: Mapping[Outcome, int]
    """Cells by outcome; empty if the run did not end."""
    samples: int
    histograms: int


def read_run(folder: Path, *, ending: tuple[Outcome, bool] | None = None) -> RunResult:
    """A run as its folder tells it. StorageError if there is none, or of an unknown schema.

    ``ending`` is for the writer, which knows outcome and whether it was interrupted before they stand in end.json.
    """
    folder = folder.resolve()  # results/latest is a link to the run, not its name
    asked = _asked(folder)
    end = None if ending else end_of(folder)
    skipped = 0
    cells: list[Cell] = []
    keys: dict[str, tuple[str, bool]] = {}
    reused: dict[str, Reused] = {}
    left_out: list[LeftOut] = []
    for found in records.items(asked.get("cells")):
        try:
            cells.append(records.cell(found))
            keys[cells[-1].id] = records.text(found.get("key", found.get("tried")), ""), "tried" not in found
            if "reused" in found:
                reused[cells[-1].id] = records.reused(records.mapping(found["reused"]))
        except records.Malformed:
            skipped += 1
    for found in records.items(asked.get("left_out")):
        try:
            left_out.append(records.left_out(found))
        except records.Malformed:
            skipped += 1

    events, unread = _read_events(folder / layout.EVENTS)
    skipped += unread
    started_at = records.seconds(asked.get("started_at"), events[0].t if events else 0.0)
    last = max((event.t for event in events), default=started_at)

    if ending:
        outcome, interrupted = ending
    elif end is not None:
        outcome = records.choice(Outcome, end.get("outcome"), Outcome.ERROR)
        interrupted = end.get("interrupted") is True
    else:
        outcome, interrupted = Outcome.ERROR, False
    finished = end is not None or ending is not None
    running = not finished and claimed(folder / layout.EVENTS)
    unended = RUNNING if running else WORKER_DIED if finished and not interrupted else INTERRUPTED

    results: list[CellResult] = []
    for cell in dict.fromkeys(cells):
        if (earlier := reused.get(cell.id)) is not None:
            results.append(CellResult(cell, Outcome.PASS, 0.0, "", (), earlier, *keys[cell.id]))
            continue
        attempts: list[Attempt] = []
        home = folder / layout.CELLS / layout.cell_folder(cell)
        for number in layout.attempt_numbers(home):
            attempt, until, unread = _read_attempt(home / layout.attempt_folder(number), number, unended)
            attempts.append(attempt)
            last = max(last, until)
            skipped += unread
        verdict, reason = cell_outcome(attempts)
        if running and not attempts:
            reason = WAITING
        results.append(CellResult(cell, verdict, sum(a.duration_s for a in attempts), reason, tuple(attempts), None, *keys[cell.id]))

    return RunResult(
        id=folder.name,
        folder=folder,
        matrix=records.text(asked.get("matrix"), ""),
        started_at=started_at,
        duration_s=records.seconds(end.get("duration_s") if end else None, round(max(0.0, last - started_at), 6)),
        outcome=outcome,
        finished=finished,
        interrupted=interrupted,
        argv=tuple(records.text(word, "?") for word in records.items(asked.get("argv"))),
        version=records.text(asked.get("version"), ""),
        host=records.texts(asked.get("host")),
        builds=records.tables(asked.get("builds")),
        targets=records.tables(asked.get("targets")),
        cells=tuple(results),
        left_out=tuple(left_out),
        skipped_lines=skipped,
        running=running,
        decided_by=inputs.read(asked.get("decided_by")),
        stories=records.titles(asked.get("stories")),
        story_tests=records.story_tests(asked.get("story_tests")),
    )


def end_record(run: RunResult) -> dict[str, Any]:
    """What end.json says: enough to list the run and to expect durations without opening anything else of it."""
    return {
        "schema": SCHEMA,
        "id": run.id,
        "matrix": run.matrix,
        "version": run.version,
        "started_at": run.started_at,
        "duration_s": run.duration_s,
        "outcome": run.outcome.value,
        "interrupted": run.interrupted,
        "counts": dict(Counter(cell.outcome.value for cell in run.cells)),
        "samples": sum(len(attempt.samples) for cell in run.cells for attempt in cell.attempts),
        "histograms": sum(len(attempt.distributions) for cell in run.cells for attempt in cell.attempts),
        "cells": [
            {
                **records.cell_record(result.cell),
                "outcome": result.outcome.value,
                "reason": result.reason,
                "attempts": len(result.attempts),
                "duration_s": round(result.duration_s, 6),
                "durations": [round(a.duration_s, 6) for a in result.attempts if _tells_duration(a)],
                "tests": result.reused.tests if result.reused else len(result.tests),
                **({"stories": told} if (told := stories.record(result.tests)) else {}),
                **(
                    {"key" if result.proves else "tried": result.key}
                    if result.key and not any(a.benchmark for a in result.attempts)
                    else {}
                ),
                **({"reused": records.reused_record(result.reused)} if result.reused else {}),
            }
            for result in run.cells
        ],
        **({"story_tests": run.story_tests} if run.story_tests else {}),
    }


def _tells_duration(attempt: Attempt) -> bool:
    """Whether the next attempt may be expected to be as busy: not if the lab failed or nothing was done."""
    return attempt.complete and attempt.outcome not in (Outcome.ERROR, Outcome.SKIP)


def list_runs(results: Path) -> list[RunSummary]:
    """The runs in a results folder, newest first; no events are read. A folder that holds no run is passed over."""
    found: list[RunSummary] = []
    for folder in run_folders(results):
        try:
            found.append(_summary(folder))
        except StorageError:
            continue
    return sorted(found, key=lambda run: (run.started_at, run.id), reverse=True)


def run_folders(results: Path) -> list[Path]:
    """Folders that may hold runs, the newest first as far as names tell; none if there is no such results folder."""
    try:
        with os.scandir(results) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.name != layout.LATEST and e.is_dir()]
    except OSError:
        return []
    return [results.resolve() / name for name in sorted(names, reverse=True)]


def find_run(results: Path, wanted: str = "latest") -> Path:
    """The folder of a run by ``latest`` (begun last, ended or not), id, unique prefix or path. ConfigError with the nearest name."""
    if wanted == layout.LATEST:
        if runs := list_runs(results):
            return runs[0].folder
        raise ConfigError(f"there is no run in {results} yet", remedy="labctl run matrix makes one")
    if wanted and (os.sep in wanted or wanted == ".") and (Path(wanted) / layout.RUN).is_file():
        return Path(wanted).resolve()
    names = [folder.name for folder in run_folders(results) if (folder / layout.RUN).is_file()]
    if wanted in names:
        return results.resolve() / wanted
    matching = [name for name in names if wanted and name.startswith(wanted)]
    if len(matching) == 1:
        return results.resolve() / matching[0]
    if matching:
        raise ConfigError([Problem("run", "", f"{wanted!r} begins {len(matching)} runs", ", ".join(sorted(matching)[-12:]))])
    raise ConfigError([Problem("run", "", f"unknown run {wanted!r} in {results}", nearest(wanted, sorted(names, reverse=True)[:12]))])


def _summary(folder: Path) -> RunSummary:
    end = end_of(folder)
    about = end if end is not None else _asked(folder)
    counts = records.mapping(about.get("counts")) if end is not None else {}
    return RunSummary(
        id=folder.name,
        folder=folder,
        matrix=records.text(about.get("matrix"), ""),
        version=records.text(about.get("version"), ""),
        started_at=records.seconds(about.get("started_at"), 0.0),
        duration_s=records.seconds(about.get("duration_s"), 0.0),
        outcome=records.choice(Outcome, about.get("outcome"), Outcome.ERROR) if end is not None else Outcome.ERROR,
        finished=end is not None,
        running=end is None and claimed(folder / layout.EVENTS),
        interrupted=about.get("interrupted") is True,
        cells=len(records.items(about.get("cells"))),
        counts={o: records.integer(counts[o.value], 0) for o in Outcome if o.value in counts},
        samples=records.integer(about.get("samples"), 0),
        histograms=records.integer(about.get("histograms"), 0),
    )


def _asked(folder: Path) -> dict[str, Any]:
    path = folder / layout.RUN
    try:
        asked = document(path)
    except FileNotFoundError:
        raise StorageError(f"{folder} holds no run: there is no {layout.RUN} in it") from None
    except OSError as error:
        raise storage_error(path, "read", error) from error
    except records.Malformed as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    if asked.get("schema") != SCHEMA:
        raise StorageError(
            f"{path} has schema {_short(asked.get('schema'))}, this labctl knows {SCHEMA}",
            remedy="read it with the labctl that wrote it",
        )
    return asked


def end_of(folder: Path) -> dict[str, Any] | None:
    """end.json of a run, an object of the known schema; None if the run has not ended or it is unreadable."""
    try:
        end = document(folder / layout.END)
    except (OSError, records.Malformed):
        return None
    return end if end.get("schema") == SCHEMA else None


def document(path: Path) -> dict[str, Any]:
    """A JSON object in a file of bounded size. OSError; Malformed."""
    with open_regular(path) as file:
        raw = file.read(MOST_DOCUMENT + 1)
    if len(raw) > MOST_DOCUMENT:
        raise records.Malformed(f"more than {MOST_DOCUMENT} bytes")
    return records.parse(raw)


def _short(value: object) -> str:
    return repr(value)[:40]


def _read_events(path: Path) -> tuple[list[records.Event], int]:
    try:
        with open_regular(path) as file:
            return records.events(lines(file))
    except FileNotFoundError:
        return [], 0
    except OSError:
        return [], 1


def _read_attempt(folder: Path, number: int, unended: str) -> tuple[Attempt, float, int]:
    """One attempt, the time of its last event, and how many lines of it could not be read."""
    events, skipped = _read_events(folder / layout.EVENTS)
    worker = ""
    benchmark = False
    tests: dict[str, TestResult] = {}
    samples: list[Sample] = []
    distributions: list[Distribution] = []
    milestones: dict[str, float] = {}
    first_boot: int | None = None
    stamps: tuple[tuple[float, str], ...] = ()
    machine_events: list[MachineEvent] = []
    arrived: list[str] = []
    end: Mapping[str, Any] | None = None
    waiting_since: float | None = None
    waited = 0.0
    for event in events:
        fields = event.fields
        try:
            if waiting_since is not None and event.kind in ("status", "end"):
                waited += max(0.0, event.t - waiting_since)
                waiting_since = None
            match event.kind:
                case "begin":
                    worker = records.text(fields.get("worker"), "")
                    benchmark = fields.get("benchmark") is True
                case "status":
                    waiting_since = event.t if fields.get("state") in _WAITING else None
                case "test":
                    result = records.test(fields)
                    tests[result.name] = result
                case "sample":
                    samples.append(records.sample(fields))
                case "histogram":
                    distributions.append(records.distribution(fields))
                case "milestone":
                    boot = records.integer(fields.get("boot"), 0)
                    name, seconds = records.text(fields.get("name")), records.seconds(fields.get("seconds"))
                    first_boot = boot if first_boot is None else first_boot
                    if boot == first_boot:
                        milestones.setdefault(name, seconds)
                case "phases":
                    stamps = stamps or records.stamps(fields.get("stamps"))
                case "machine":
                    number_of, at = records.integer(fields.get("number"), 0), records.seconds(fields.get("at"), 0.0)
                    machine_events.append(MachineEvent(number_of, at, records.text(fields.get("text"))))
                case "arrived":
                    arrived.append(records.text(fields.get("digest")))
                case "end":
                    records.choice(Outcome, fields.get("outcome"))
                    end = fields
        except records.Malformed:
            skipped += 1
    began = events[0].t if events else _made_at(folder)
    until = max((event.t for event in events), default=began)
    about = end if end is not None else {}
    attempt = Attempt(
        number=number,
        worker=worker,
        outcome=records.choice(Outcome, about.get("outcome"), Outcome.ERROR),
        started_at=began,
        duration_s=max(0.0, records.seconds(about.get("duration_s"), max(0.0, until - began)) - waited),
        reason=records.text(about.get("reason"), "") if end is not None else unended,
        error=records.text(about.get("error"), ""),
        tests=tuple(tests.values()),
        samples=tuple(samples),
        milestones=milestones,
        kernel_stamps=stamps,
        excerpt=records.text(about.get("excerpt"), ""),
        reproduce=records.text(about.get("reproduce"), ""),
        remedy=records.text(about.get("remedy"), ""),
        folder=folder,
        complete=end is not None,
        waited_s=waited,
        distributions=tuple(distributions),
        benchmark=benchmark,
        machine_events=tuple(machine_events),
        arrived=tuple(arrived),
    )
    return attempt, until, skipped


def _made_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
