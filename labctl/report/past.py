"""What a run is held against on its page and in a terminal: the runs before it, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labctl.judge.since import RedSince, red_since
from labctl.judge.stories import Proof, proofs
from labctl.model import RunResult
from labctl.report.order import BAD
from labctl.store.past import PastRun, earlier_runs, present


@dataclass(frozen=True)
class Past:
    """Empty where nobody would ask: of a run that is all well and names no story."""

    proofs: tuple[Proof, ...]
    red: Mapping[str, RedSince]
    """Cell id → since when it does not pass."""

    @classmethod
    def of(cls, run: RunResult) -> Past:
        now = present(run)
        asks = any(cell.stories or cell.outcome in BAD for cell in now.cells.values())
        earlier: tuple[PastRun, ...] = tuple(earlier_runs(run)) if asks else ()
        return cls(proofs([now], earlier, run.stories), red_since(now, earlier))
