"""Since when is a cell red: the run in which it began, and the one in which it passed last. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labctl.model import Outcome
from labctl.store.past import PastRun

_BAD = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID)
_GOOD = (Outcome.PASS, Outcome.FLAKY)


@dataclass(frozen=True, slots=True)
class RedSince:
    """A cell that does not pass."""

    run: str
    """Id of the first run of an unbroken series in which it did not pass."""
    started_at: float
    runs: int
    """How many runs of that series had it."""
    passed: str
    """Id of the last run before in which it passed; empty where there is none."""
    passed_at: float


def red_since(now: PastRun, earlier: Sequence[PastRun]) -> Mapping[str, RedSince]:
    """By id of the cell. A run in which the cell was skipped or was not asked for neither ends a series nor makes one longer."""
    found: dict[str, RedSince] = {}
    for cell_id, cell in now.cells.items():
        if cell.outcome in _BAD:
            found[cell_id] = _since(cell_id, now, earlier)
    return found


def _since(cell_id: str, now: PastRun, earlier: Sequence[PastRun]) -> RedSince:
    first, runs = now, 1
    for run in earlier:
        outcome = run.cells[cell_id].outcome if cell_id in run.cells else None
        if outcome in _GOOD:
            return RedSince(first.id, first.started_at, runs, run.id, run.started_at)
        if outcome in _BAD:
            first, runs = run, runs + 1
    return RedSince(first.id, first.started_at, runs, "", 0.0)
