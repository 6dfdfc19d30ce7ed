"""What a run is held against on its page and in a terminal: the runs before it, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labctl.judge.since import RedSince, changed, knows_all, red_since
from labctl.judge.stories import Proof, proofs
from labctl.report.order import BAD
from labctl.result import RunResult
from labctl.store.past import PastRun, conditions, conditions_of, earlier_runs, present


@dataclass(frozen=True)
class Past:
    """Empty where nobody would ask: of a run that is all well and names no story."""

    proofs: tuple[Proof, ...]
    red: Mapping[str, RedSince]
    """Cell id → since when it does not pass."""
    changed: Mapping[str, tuple[str, ...]]
    """Of those that passed before: cell id → what is otherwise than in the run in which it passed last."""
    unchanged: frozenset[str]
    """Of those the cells of which all that decides them is on record, and is as it was."""

    @classmethod
    def of(cls, run: RunResult) -> Past:
        now = present(run)
        asks = any(cell.stories or cell.outcome in BAD for cell in now.cells.values())
        earlier: tuple[PastRun, ...] = tuple(earlier_runs(run)) if asks else ()
        red = red_since(now, earlier)
        then = {one.passed: conditions_of(run.folder.parent, one.passed) for one in red.values() if one.passed}
        pairs = {i: (now.cells[i].cell, known) for i, one in red.items() if (known := then.get(one.passed)) is not None}
        differ = {cell_id: changed(cell, known, conditions(run)) for cell_id, (cell, known) in pairs.items()}
        same = (i for i, (cell, known) in pairs.items() if not differ[i] and knows_all(cell, known, conditions(run)))
        return cls(proofs([now], earlier, run.stories), red, differ, frozenset(same))
