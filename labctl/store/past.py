"""Runs in the few words of their end.json, to be held against each other: nothing else of an earlier run is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl.model import Cell, Outcome
from labctl.result import RunResult
from labctl.store import inputs, layout, records
from labctl.store.reader import document, end_of, run_folders
from labctl.store.stories import Told, read, told_of

MOST_RUNS = 200
_MOST_BYTES = 64 << 20
"""Of end.json files that are read: those of runs of ten thousand cells are some megabytes each."""


@dataclass(frozen=True, slots=True)
class PastCell:
    cell: Cell
    outcome: Outcome
    reason: str
    stories: Mapping[str, Told] = field(default_factory=dict)
    reused: str = ""
    """Id of the run that the result is from; the stories are what was said there."""


@dataclass(frozen=True, slots=True)
class PastRun:
    id: str
    started_at: float
    cells: Mapping[str, PastCell]
    """By id."""
    story_tests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By story the tests that the lab had for it, run or not; empty where that is not on record."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what a run took place, as its run.json says."""

    version: str
    """Of labctl."""
    host: Mapping[str, str]
    builds: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Mapping[str, Any]]
    decided_by: inputs.Groups = field(default_factory=dict)
    """Each input of its cells; empty where that is not on record."""


def conditions(run: RunResult) -> Conditions:
    return Conditions(run.version, run.host, run.builds, run.targets, run.decided_by)


def conditions_of(results: Path, run: str) -> Conditions | None:
    """Those of an earlier run by its id; None if its run.json can't be read."""
    if not _is_plain(run):
        return None
    try:
        asked = document(results / run / layout.RUN)
    except (OSError, records.Malformed):
        return None
    return Conditions(
        records.text(asked.get("version"), ""),
        records.texts(asked.get("host")),
        records.tables(asked.get("builds")),
        records.tables(asked.get("targets")),
        inputs.read(asked.get("decided_by")),
    )


def present(run: RunResult) -> PastRun:
    """A run that was read whole, in the same words. A cell that was not run again says what it said where it was run."""
    ends = _Ends(run.folder.parent)
    cells: dict[str, PastCell] = {}
    for result in run.cells:
        earlier = result.reused.run if result.reused else ""
        told = ends.told(earlier, result.cell.id) if earlier else told_of(result.tests)
        cells[result.cell.id] = PastCell(result.cell, result.outcome, result.reason, told, earlier)
    return PastRun(run.id, run.started_at, cells, run.story_tests)


def earlier_runs(run: RunResult, most_runs: int = MOST_RUNS) -> Iterator[PastRun]:
    """The ended runs of the same results folder that began before this one, the newest first."""
    ends = _Ends(run.folder.parent)
    found = size = 0
    for folder in run_folders(run.folder.parent):
        if found >= most_runs or size > _MOST_BYTES:
            return
        if folder.name == run.id or (end := end_of(folder)) is None:
            continue
        started = records.seconds(end.get("started_at"), 0.0)
        if started <= run.started_at:
            found, size = found + 1, size + _size(folder / layout.END)
            yield PastRun(folder.name, started, dict(_cells(end, ends)), records.story_tests(end.get("story_tests")))


@dataclass(frozen=True)
class _Ends:
    """What cells said in the runs that others have them from, each run opened once."""

    results: Path
    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def told(self, run: str, cell_id: str) -> Mapping[str, Told]:
        """Nothing if that run is gone."""
        if run not in self.known:
            cells = records.items((end_of(self.results / run) or {}).get("cells")) if _is_plain(run) else ()
            self.known[run] = {str(found.get("id")): found.get("stories") for found in map(records.mapping, cells)}
        return read(self.known[run].get(cell_id))


def _cells(end: Mapping[str, Any], ends: _Ends) -> Iterator[tuple[str, PastCell]]:
    for found in records.items(end.get("cells")):
        try:
            cell, outcome = records.cell(found), records.choice(Outcome, found.get("outcome"))
            earlier = records.reused(records.mapping(found["reused"])).run if "reused" in found else ""
        except records.Malformed:
            continue
        told = ends.told(earlier, cell.id) if earlier else read(found.get("stories"))
        yield cell.id, PastCell(cell, outcome, records.text(found.get("reason"), ""), told, earlier)


def _is_plain(run: str) -> bool:
    """Whether an id that a file tells is the name of a folder beside it."""
    return run not in ("", ".", "..", layout.LATEST) and "/" not in run and "\0" not in run


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
