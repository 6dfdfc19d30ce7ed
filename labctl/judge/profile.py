"""Where a boot's instructions went, by milestone and function, and which functions grew between two builds. Pure; counts are exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labctl.parsers.icount import Snapshot
from labctl.parsers.profile import Profile
from labctl.parsers.symbols import Symbols

_MIB = 1 << 20
_UNNAMED = 16 * _MIB
"""What has no symbol is told by the 16 MiB that it lies in."""


@dataclass(frozen=True, slots=True)
class Change:
    """One function in two profiles."""

    function: str
    before: int
    after: int

    @property
    def grew(self) -> int:
        """Instructions; negative if it became less."""
        return self.after - self.before


@dataclass(frozen=True)
class Difference:
    """Two profiles, function by function; what did not change is left out."""

    before: Profile
    after: Profile
    total: Change
    functions: tuple[Change, ...]
    """Over all milestones, the largest change first."""
    phases: Mapping[str, tuple[Change, ...]]
    """Milestone → the same within the phase that it ends; only those in which anything changed."""


def by_function(executed: Mapping[int, int], symbols: Symbols) -> dict[str, int]:
    """Instructions by function, the most first. The sum is that of ``executed``."""
    found: Counter[str] = Counter()
    for address, count in executed.items():
        found[symbols.at(address) or unnamed(address)] += count
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def unnamed(address: int) -> str:
    """What to call code without a symbol: a PC's firmware by its places, anything else by its address."""
    if address < _MIB or 0xFFF00000 <= address < 1 << 32:
        return "[firmware]"
    start = address // _UNNAMED * _UNNAMED
    return f"[no symbol, {start:#x} to {start + _UNNAMED - 1:#x}]"


def phases(milestones: Sequence[str], snapshots: Sequence[Snapshot], symbols: Symbols) -> dict[str, dict[str, int]]:
    """Milestone → function → instructions since the milestone before. ValueError unless there is a snapshot for each."""
    if len(milestones) != len(snapshots):
        raise ValueError(f"{len(snapshots)} snapshots of {len(milestones)} milestones")
    return {name: by_function(taken.executed, symbols) for name, taken in zip(milestones, snapshots, strict=True)}


def totals(profile: Profile) -> dict[str, int]:
    """Instructions by function over all milestones, the most first."""
    found: Counter[str] = Counter()
    for functions in profile.phases.values():
        found.update(functions)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def difference(before: Profile, after: Profile) -> Difference:
    """What changed from one profile to another."""
    names = [*before.phases, *(name for name in after.phases if name not in before.phases)]
    changed = {name: _changes(before.phases.get(name, {}), after.phases.get(name, {})) for name in names}
    return Difference(
        before,
        after,
        Change("total", _sum(before.phases.values()), _sum(after.phases.values())),
        _changes(totals(before), totals(after)),
        {name: found for name, found in changed.items() if found},
    )


def _sum(phases: Iterable[Mapping[str, int]]) -> int:
    return sum(sum(functions.values()) for functions in phases)


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[Change, ...]:
    found = (Change(name, before.get(name, 0), after.get(name, 0)) for name in before.keys() | after.keys())
    return tuple(sorted((change for change in found if change.grew), key=lambda c: (-abs(c.grew), c.function)))
