"""What a cell may be expected to take, from the runs before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from labctl.model import Cell
from labctl.store import records
from labctl.store.reader import end_of, run_folders


class History(dict[str, float]):
    """`Cell.key` → expected seconds."""

    @cached_property
    def by_target_and_suite(self) -> Mapping[tuple[str, str], float]:
        """(target, suite) → median over builds. A suite counts with its channel."""
        found: dict[tuple[str, str], list[float]] = {}
        for key, seconds in self.items():
            _, target, suite = _axes(key)
            found.setdefault((target, suite), []).append(seconds)
        return {axes: median(seconds) for axes, seconds in found.items()}

    @cached_property
    def by_suite(self) -> Mapping[str, float]:
        """Suite with its channel → median over targets."""
        found: dict[str, list[float]] = {}
        for (_, suite), seconds in self.by_target_and_suite.items():
            found.setdefault(suite, []).append(seconds)
        return {suite: median(seconds) for suite, seconds in found.items()}


def expected_durations(results: Path, most_runs: int = 20) -> dict[str, float]:
    """`Cell.key` → median seconds of the complete attempts in the newest ended runs.

    Attempts in which the lab failed, and skipped ones, tell nothing.
    """
    ended = (end for folder in run_folders(results) if (end := end_of(folder)) is not None)
    seen: dict[str, list[float]] = {}
    for end in islice(ended, most_runs):
        for found in records.items(end.get("cells")):
            try:
                cell = records.cell(found)
                durations = [records.seconds(value) for value in records.items(found.get("durations"))]
            except records.Malformed:
                continue
            if durations:
                seen.setdefault(cell.key, []).extend(durations)
    return History({key: median(durations) for key, durations in seen.items()})


def expected(history: Mapping[str, float], cell: Cell) -> float | None:
    """Seconds that a cell may take: as before, else as other builds on its target, else as its suite anywhere, else None."""
    if (known := history.get(cell.key)) is not None:
        return known
    history = history if isinstance(history, History) else History(history)
    _, target, suite = _axes(cell.key)
    near = history.by_target_and_suite.get((target, suite))
    return near if near is not None else history.by_suite.get(suite)


def expected_from(history: Mapping[str, float], cell: Cell) -> Literal["history", "similar"] | None:
    """Where `expected` has it from: runs of this very cell, or of others."""
    if cell.key in history:
        return "history"
    return None if expected(history, cell) is None else "similar"


def median(values: Sequence[float]) -> float:
    """Of at least one value. The standard library's `statistics` takes as long to import as all of this may take."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _axes(key: str) -> tuple[str, str, str]:
    build, _, rest = key.partition("/")
    target, _, suite = rest.partition("/")
    return build, target, suite
