"""Axes → cells: builds × targets × suites × channels, plus includes, minus excludes, narrowed by the command line. Pure.

A pattern is a name or a glob (`fnmatch`, case counts) over what the lab has; one that finds nothing is a mistake of its author,
told with the nearest name. Every mistake is told at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from types import MappingProxyType

from labctl.config import nearest
from labctl.errors import ConfigError, Problem
from labctl.model import Cell, Channel, MatrixConfig, MatrixRule
from labctl.result import LeftOut

MAX_CELLS = 1_000_000
"""More than this is a slip of the pen, not a night's work."""

_Point = tuple[str, str, str]
_AXES = ("build", "target", "suite")


@dataclass(frozen=True)
class Plan:
    """What a run will do. Order: builds, targets, suites as the matrix lists them, then channel and repeat."""

    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]
    """Points that the matrix names and that do not run, each once whatever the repeat."""


def expand(
    matrix: MatrixConfig,
    *,
    builds: Sequence[str],
    targets: Iterable[str],
    suites: Sequence[str],
    where: str = "matrix",
    arch_of_build: Mapping[str, str],
    arch_of_target: Mapping[str, str],
    only_builds: Sequence[str] = (),
    only_targets: Sequence[str] = (),
    only_suites: Sequence[str] = (),
    extra_builds: Sequence[str] = (),
    repeat: int | None = None,
    channels: Sequence[Channel] = (),
    channel_of_target: Mapping[str, Channel] = MappingProxyType({}),
    uncountable: Callable[[str, str], str] = lambda build, target: "",
) -> Plan:
    """The cells of ``matrix`` in a lab that has these builds, targets and suites (a mapping by name will do).

    ``only_*`` are the command line's ``--build``, ``--target``, ``--suite``: each narrows its axis to what the matrix names; one
    that finds nothing there selects from the whole lab. ``extra_builds`` are files given as ``--build PATH``, by the name they got:
    selected whether the lab has them or not. A name without an entry in ``arch_of_*`` fits every architecture. ``channels`` is the
    command line's ``--channel``; where neither it nor the matrix says any, a cell is on the channel of its target. ``uncountable`` says
    why a build cannot be counted on a target, or nothing.

    Raises ConfigError for patterns that find nothing, for a repeat or a matrix out of bounds, and if no cell is left, with what
    left them out.
    """
    lab = tuple(_Axis(kind, tuple(dict.fromkeys(names))) for kind, names in zip(_AXES, (builds, targets, suites), strict=True))
    lab = (_Axis("build", tuple(dict.fromkeys((*lab[0].names, *extra_builds)))), *lab[1:])
    problems: list[Problem] = []

    listed = tuple(
        axis.pick(patterns, where, f"{axis.kind}s", problems)
        for axis, patterns in zip(lab, (matrix.builds, matrix.targets, matrix.suites), strict=True)
    )
    includes = [_rule(lab, rule, where, f"include.{i}", problems, listed) for i, rule in enumerate(matrix.include)]
    excludes = [_rule(lab, rule, where, f"exclude.{i}", problems) for i, rule in enumerate(matrix.exclude)]
    named = tuple(dict.fromkeys((*names, *(name for rule in includes for name in rule.names[axis]))) for axis, names in enumerate(listed))
    selected = tuple(
        _select(axis, known, patterns, exact, problems)
        for axis, known, patterns, exact in zip(lab, named, (only_builds, only_targets, only_suites), (extra_builds, (), ()), strict=True)
    )
    repeats = matrix.repeat if repeat is None else repeat
    if not 1 <= repeats <= 10_000:
        problems.append(Problem("command line", "--repeat", f"found {repeats}", "a number from 1 to 10000"))
    if problems:
        raise ConfigError(problems)

    points = _points(listed, named, includes, selected, where)
    kept, out = _sift(points, excludes, arch_of_build, arch_of_target)
    asked = tuple(dict.fromkeys(channels or matrix.channels))

    def of(target: str) -> tuple[Channel, ...]:
        return asked or (channel_of_target.get(target, Channel.WALL),)

    left_out = [LeftOut(Cell(*point, channel), why) for point, why in out for channel in of(point[1])]
    why_not = {point: uncountable(*point[:2]) if Channel.ICOUNT in of(point[1]) else "" for point in kept}
    left_out += [LeftOut(Cell(*point, Channel.ICOUNT), why) for point, why in why_not.items() if why]
    on = [(point, channel) for point in kept for channel in of(point[1]) if channel is Channel.WALL or not why_not[point]]
    if not on:
        raise ConfigError([Problem(where, "", "no cell is left to run", _why_none(left_out))])
    _bound(len(on) * repeats, where)
    return Plan(tuple(Cell(*point, channel, r) for point, channel in on for r in range(1, repeats + 1)), tuple(left_out))


@dataclass(frozen=True, slots=True)
class _Axis:
    """All names that the lab has on one axis."""

    kind: str
    names: tuple[str, ...]

    def pick(self, patterns: Sequence[str], where: str, key: str, problems: list[Problem]) -> tuple[str, ...]:
        """Names that the patterns find, in the patterns' order; a pattern that finds none is added to ``problems``."""
        picked: dict[str, None] = {}
        for index, pattern in enumerate(patterns):
            found = _matching(pattern, self.names)
            if not found:
                problems.append(_unmatched(self, pattern, where, f"{key}.{index}"))
            picked.update(dict.fromkeys(found))
        return tuple(picked)


@dataclass(frozen=True, slots=True)
class _Rule:
    """An include or exclude with its globs resolved: the names on each axis."""

    names: tuple[tuple[str, ...], ...]
    sets: tuple[frozenset[str], ...]
    reason: str


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    return [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]


def _unmatched(axis: _Axis, pattern: str, where: str, key: str) -> Problem:
    return Problem(where, key, f"no {axis.kind} matches {pattern!r}", nearest(pattern, axis.names))


def _rule(
    lab: tuple[_Axis, ...],
    rule: MatrixRule,
    where: str,
    key: str,
    problems: list[Problem],
    stands_for_all: tuple[tuple[str, ...], ...] = ((), (), ()),
) -> _Rule:
    """Resolve a rule. ``*`` is what the matrix lists on that axis if ``stands_for_all`` says it, else all of the lab."""
    names: list[tuple[str, ...]] = []
    for axis, patterns, everything in zip(lab, (rule.builds, rule.targets, rule.suites), stands_for_all, strict=True):
        place = f"{key}.{axis.kind}s"
        if not patterns:
            problems.append(Problem(where, place, "an empty list matches nothing", "names or globs; leave it out for all"))
        names.append(everything if patterns == ("*",) and everything else axis.pick(patterns, where, place, problems))
    reason = f"excluded: {rule.reason}" if rule.reason else f"excluded: {key} of {where}"
    return _Rule(tuple(names), tuple(map(frozenset, names)), reason)


def _select(
    axis: _Axis, named: Mapping[str, None], patterns: Sequence[str], exact: Sequence[str], problems: list[Problem]
) -> tuple[str, ...] | None:
    """Names that the command line wants on an axis, in the matrix's order, then others; None if it says nothing."""
    if not patterns and not exact:
        return None
    wanted: dict[str, None] = dict.fromkeys(exact)
    for pattern in patterns:
        found = _matching(pattern, named) or _matching(pattern, axis.names)
        if not found:
            problems.append(_unmatched(axis, pattern, "command line", f"--{axis.kind}"))
        wanted.update(dict.fromkeys(found))
    return tuple([n for n in named if n in wanted] + [n for n in wanted if n not in named])


def _points(
    listed: tuple[tuple[str, ...], ...],
    named: tuple[dict[str, None], ...],
    includes: Sequence[_Rule],
    selected: tuple[tuple[str, ...] | None, ...],
    where: str,
) -> list[_Point]:
    """All points, each once, in the axes' order."""
    order = [
        {name: place for place, name in enumerate(dict.fromkeys((*known, *(choice or ()))))}
        for known, choice in zip(named, selected, strict=True)
    ]
    grids: list[tuple[Sequence[str], ...]] = []
    wanted = [places.keys() if choice is None else frozenset(choice) for choice, places in zip(selected, order, strict=True)]
    for names in (_with_unlisted(listed, named, selected), *(rule.names for rule in includes)):
        grid = tuple(
            sorted((n for n in axis if n in only), key=places.__getitem__) for axis, only, places in zip(names, wanted, order, strict=True)
        )
        if all(grid):
            grids.append(grid)
    if not grids:
        # What was asked for stands nowhere together in the matrix: it is run all the same.
        grids = [tuple(axis if choice is None else choice for axis, choice in zip(listed, selected, strict=True))]
    _bound(sum(len(b) * len(t) * len(s) for b, t, s in grids), where)
    if len(grids) == 1:
        return [(b, t, s) for b, t, s in product(*grids[0])]
    points = {(b, t, s) for grid in grids for b, t, s in product(*grid)}
    return sorted(points, key=lambda p: (order[0][p[0]], order[1][p[1]], order[2][p[2]]))


def _with_unlisted(
    listed: tuple[tuple[str, ...], ...], named: tuple[dict[str, None], ...], selected: tuple[tuple[str, ...] | None, ...]
) -> tuple[tuple[str, ...], ...]:
    """The matrix's axes, longer by what the command line selects and the matrix names nowhere."""
    return tuple(
        (*names, *(n for n in choice or () if n not in known)) for names, known, choice in zip(listed, named, selected, strict=True)
    )


def _sift(
    points: Iterable[_Point],
    excludes: Sequence[_Rule],
    arch_of_build: Mapping[str, str],
    arch_of_target: Mapping[str, str],
) -> tuple[list[_Point], list[tuple[_Point, str]]]:
    kept: list[_Point] = []
    left_out: list[tuple[_Point, str]] = []
    pair: tuple[str, str] | None = None
    reason = ""
    rules: list[_Rule] = []
    for point in points:
        build, target, suite = point
        if pair != (build, target):
            # Points come sorted: what depends on build and target alone is found once for all suites.
            pair = (build, target)
            rules = [r for r in excludes if build in r.sets[0] and target in r.sets[1]]
            reason = _arch_reason(arch_of_build.get(build), arch_of_target.get(target))
        out = next((r.reason for r in rules if suite in r.sets[2]), reason) if rules else reason
        if out:
            left_out.append((point, out))
        else:
            kept.append(point)
    return kept, left_out


def _arch_reason(build: str | None, target: str | None) -> str:
    return f"build is {build}, target is {target}" if build and target and build != target else ""


def _why_none(left_out: Sequence[LeftOut], most: int = 5) -> str:
    if not left_out:
        return "an axis lists nothing and no include adds to it"
    counts = Counter(out.reason for out in left_out).most_common()
    shown = "; ".join(f"{count} × {reason}" for reason, count in counts[:most])
    return f"left out: {shown}" + (f"; … {len(counts) - most} more reasons" if len(counts) > most else "")


def _bound(count: int, where: str) -> None:
    if count > MAX_CELLS:
        raise ConfigError([Problem(where, "", f"{count} cells", f"at most {MAX_CELLS}")])
