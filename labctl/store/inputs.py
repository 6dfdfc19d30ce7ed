"""What decided the results of a run's cells, as its run.json tells it: groups of inputs, each input by a name that a person knows it by (a
file, a variable, the host's kernel) and a digest. By these alone it is found what of a cell is otherwise in another run. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence

from labctl.model import Cell, Channel
from labctl.store import records

Groups = Mapping[str, Mapping[str, str]]
"""Name of a group → name of an input → its digest."""

EVERY = "every"
"""The group of what decides every cell's result: labctl, the host, what all suites share."""
FILES, ADDED = "the build's files", "what the suite adds to the build"
"""Names of inputs. The second is by what boots, and so another whenever the first is."""
_DIGITS = 16
_MOST = 200
"""Inputs of one group that are told one by one."""
_REST = "a file beyond the first 200"


def of_build(name: str) -> str:
    """The group of a build, or of ``BUILD/SUITE`` where a suite boots more than the build."""
    return f"build {name}"


def of_target(name: str, channel: Channel) -> str:
    return f"target {name} {channel}"


def of_suite(name: str) -> str:
    return f"suite {name}"


def groups_of(cell: Cell, known: Groups) -> Iterator[str]:
    """Those whose inputs decide the cell's result, what is nearest to it first."""
    yield of_suite(cell.suite)
    suited = of_build(f"{cell.build}/{cell.suite}")
    yield suited if suited in known else of_build(cell.build)
    yield of_target(cell.target, cell.channel)
    yield EVERY


def record(groups: Groups) -> dict[str, dict[str, str]]:
    """As it is written: digests are cut, for they are only compared, and of a group of very many the rest is one."""
    return {name: {key: digest.removeprefix("sha256:")[:_DIGITS] for key, digest in _few(group)} for name, group in groups.items()}


def _few(group: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    inputs = sorted(group.items())
    yield from inputs[:_MOST]
    if rest := inputs[_MOST:]:
        yield _REST, hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read(value: object) -> Groups:
    """As a run.json tells it; what is of another form is left out."""
    return {name: records.texts(found) for name, found in records.tables(value).items()}


def changed(cell: Cell, then: Groups, now: Groups, unknown: Collection[str] = ()) -> tuple[str, ...] | None:
    """Names of the cell's inputs that have changed, come or gone since. None if that is not known of one of its groups, other than those
    that are ``unknown``."""
    found: dict[str, None] = {}
    for before, after in zip(groups_of(cell, then), groups_of(cell, now), strict=True):
        if after in unknown:
            continue
        if before not in then or after not in now:
            return None
        old, new = then[before], now[after]
        found.update(dict.fromkeys(name for name in sorted(old.keys() | new.keys(), key=_by_kind) if old.get(name) != new.get(name)))
    return tuple(name for name in found if name != ADDED or FILES not in found)


def _by_kind(name: str) -> tuple[bool, str]:
    """Variables before files: they are few, and nobody sees them in a file."""
    return not name.startswith("the "), name


def listed(names: Sequence[str], most: int = 6) -> str:
    """For a line: ``a, b, c and 3 more``."""
    rest = len(names) - most
    return f"{', '.join(names[:most])} and {rest} more" if rest > 0 else ", ".join(names)
