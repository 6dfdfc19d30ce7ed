"""What is otherwise than in the run before: outcomes of cells and tests, and boot times beside each other. Pure.

No verdict: two boots tell nothing of better or worse on a busy host.
"""

from __future__ import annotations

from dataclasses import dataclass

from labctl.model import Milestone, Outcome
from labctl.result import CellResult, RunResult, TestResult


@dataclass(frozen=True)
class TestChange:
    """A test whose outcome is another one; None where it was not run."""

    __test__ = False  # not for pytest to collect

    name: str
    before: Outcome | None
    after: Outcome | None
    reason: str
    """Why it does not pass now."""


@dataclass(frozen=True)
class CellDifference:
    """A cell of the later run beside the same cell of the earlier one, which may not have had it."""

    id: str
    before: Outcome | None
    after: Outcome
    ready_before: float | None
    """Seconds from power-on to ``ready``, of the first boot; None where it was not reached."""
    ready_after: float | None
    tests: tuple[TestChange, ...]
    """Those that changed; all that did not pass if there is nothing to compare with."""

    @property
    def changed(self) -> bool:
        return self.before is not None and (self.before is not self.after or bool(self.tests))


def difference(before: RunResult | None, after: RunResult) -> tuple[CellDifference, ...]:
    """Each cell of ``after`` in its order."""
    earlier = {result.cell.id: result for result in before.cells} if before is not None else {}
    return tuple(_cell(earlier.get(result.cell.id), result) for result in after.cells)


def _cell(before: CellResult | None, after: CellResult) -> CellDifference:
    return CellDifference(
        after.cell.id,
        before.outcome if before is not None else None,
        after.outcome,
        ready(before) if before is not None else None,
        ready(after),
        _tests(before.tests if before is not None else None, after.tests),
    )


def _tests(before: tuple[TestResult, ...] | None, after: tuple[TestResult, ...]) -> tuple[TestChange, ...]:
    if before is None:
        return tuple(TestChange(t.name, None, t.outcome, t.reason) for t in after if t.outcome not in (Outcome.PASS, Outcome.SKIP))
    old = {test.name: test.outcome for test in before}
    new = {test.name for test in after}
    changed = [TestChange(t.name, old.get(t.name), t.outcome, t.reason) for t in after if old.get(t.name) is not t.outcome]
    return (*changed, *(TestChange(name, outcome, None, "") for name, outcome in old.items() if name not in new))


def ready(result: CellResult) -> float | None:
    """Seconds to ``ready`` in the first boot of the last attempt that came there."""
    times = (attempt.milestones.get(Milestone.READY) for attempt in reversed(result.attempts))
    return next((seconds for seconds in times if seconds is not None), None)
