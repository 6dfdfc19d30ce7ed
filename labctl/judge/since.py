"""Since when is a cell red: the run in which it began, the one in which it passed last, and what is otherwise than then. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labctl.model import Cell, Outcome
from labctl.store import inputs
from labctl.store.past import Conditions, PastRun

_BAD = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID)
_GOOD = (Outcome.PASS, Outcome.FLAKY)


_HOST = ("cpu", "cores", "memory", "kernel", "qemu", "python")
"""What a host's conditions are compared by."""


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


def changed(cell: Cell, then: Conditions, now: Conditions) -> tuple[str, ...]:
    """What of all that decides the cell's result is otherwise than it was, in words; of what is not known of both nothing is said."""
    found: list[str] = []
    builds = then.builds.get(cell.build, {}), now.builds.get(cell.build, {})
    if _differ("digest", *builds):
        found.append("the build" + _from_to("version", *builds))
    targets = then.targets.get(cell.target), now.targets.get(cell.target)
    if targets[0] and targets[1] and targets[0] != targets[1]:
        keys = [key for key in sorted(targets[0].keys() | targets[1].keys()) if targets[0].get(key) != targets[1].get(key)]
        found.append(f"the target ({', '.join(keys)})")
    labctl = {"version": then.version}, {"version": now.version}
    if _differ("version", *labctl):
        found.append("labctl" + _from_to("version", *labctl))
    found += (f"the host's {key}" + _from_to(key, then.host, now.host) for key in _HOST if _differ(key, then.host, now.host))
    told = ", ".join(found)
    return (*found, *(name for name in inputs.changed(cell, then.decided_by, now.decided_by) or () if not _is_told(name, told)))


def knows_all(cell: Cell, then: Conditions, now: Conditions) -> bool:
    """Whether each input of the cell is on record in both: then what `changed` does not name is as it was."""
    return inputs.changed(cell, then.decided_by, now.decided_by) is not None


def _is_told(name: str, told: str) -> bool:
    """Whether an input is part of what was told in more words."""
    return name in told or any(name.startswith(f"{whole}'s ") and whole in told for whole in ("the build", "the target"))


def _differ(key: str, then: Mapping[str, object], now: Mapping[str, object]) -> bool:
    return bool(then.get(key) and now.get(key)) and then[key] != now[key]


def _from_to(key: str, then: Mapping[str, object], now: Mapping[str, object]) -> str:
    return f" ({then[key]} → {now[key]})" if _differ(key, then, now) else ""
