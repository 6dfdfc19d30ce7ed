"""What a run is held against on its page and in a terminal: the runs before it, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labctl.judge.since import RedSince, changed, knows_all, red_since
from labctl.judge.stories import Proof, proofs
from labctl.report.order import BAD, moment
from labctl.report.printable import one_line
from labctl.result import RunResult
from labctl.store.inputs import listed
from labctl.store.past import PastRun, conditions, conditions_of, earlier_runs, present

_SAME = "nothing that decides it has changed"
_SAME_SO_FAR = "build, target, labctl and host are what they were then"


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

    def since(self, cell_id: str) -> str:
        """Since when the cell is red, and when it passed last; empty of one that is not."""
        found = self.red.get(cell_id)
        if found is None:
            return ""
        if found.runs > 1:
            return f"in {found.runs:,} runs, since {moment(found.started_at)} UTC"
        return "new in this run" if found.passed else "not run before, as far as the results here go"

    def otherwise(self, cell_id: str) -> str:
        """What has changed since it passed last; empty where nothing is known of it."""
        if (what := self.changed.get(cell_id)) is None:
            return ""
        if what:
            return one_line(f"otherwise than then: {listed(what, 10)}", 400)
        return _SAME if cell_id in self.unchanged else _SAME_SO_FAR

    def told(self, cell_id: str) -> str:
        """All of it in a line; empty where the results here know nothing earlier of it."""
        found = self.red.get(cell_id)
        if found is None or (found.runs == 1 and not found.passed):
            return ""
        passed = f"passed last in {one_line(found.passed, 60)}" if found.passed else ""
        return "; ".join(filter(None, (self.since(cell_id), passed, self.otherwise(cell_id))))

    def record(self, cell_id: str) -> dict[str, Any] | None:
        """The same for programs; None of a cell that is not red. ``changed`` is null where nothing is known of it."""
        if (found := self.red.get(cell_id)) is None:
            return None
        changed = self.changed.get(cell_id)
        return {
            "run": found.run,
            "runs": found.runs,
            "passed_in": found.passed or None,
            "changed": None if changed is None else list(changed),
        }
