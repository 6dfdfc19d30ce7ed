"""A profile, and the difference of two, as text and as one self-contained page. Reads, never computes: counts come from `labctl.judge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from labctl.judge.profile import Change, Difference, totals
from labctl.parsers.profile import Profile
from labctl.report.html import asset, environment, policy
from labctl.report.output import replacing
from labctl.report.printable import one_line

MOST_LISTED = 40
"""Functions of a table; of more the rest is one row."""
NARROWEST = 0.15
"""Percent of the whole below which a function is not drawn by itself."""
_NAME = 70
_DIFFERS = "counted differently when it was profiled: these figures repeat to about 1 %, not to the digit"


@dataclass(frozen=True)
class Box:
    """One rectangle of the icicle; places and sizes in percent of its width."""

    row: int
    left: float
    width: float
    name: str
    count: int
    colour: int


def text(profile: Profile) -> str:
    """Milestones, then the functions of each, the most first."""
    whole = sum(totals(profile).values())
    last = list(profile.milestones)[-1:] or ["nowhere"]
    lines = [_title(profile), *_command_line(profile), f"{whole:,} instructions from power-on to {last[0]}"]
    if not profile.repeated:
        lines.append(_DIFFERS)
    for milestone, functions in profile.phases.items():
        part = sum(functions.values())
        lines += ["", f"to {milestone}: {part:,} ({_share(part, whole)})"]
        lines += [f"{count:>16,}  {_share(count, part):>6}  {one_line(name, _NAME)}" for name, count in _listed(functions)]
    return "\n".join(lines) + "\n"


def difference_text(found: Difference) -> str:
    """Which functions changed, by how many instructions."""
    lines = [line for one in (found.before, found.after) for line in (_title(one), *_command_line(one))]
    lines += ["", _total(found)]
    lines += [_DIFFERS] * (not (found.before.repeated and found.after.repeated))
    lines += _change_lines("all milestones", found.functions)
    for milestone, changes in found.phases.items():
        lines += _change_lines(f"to {milestone}", changes)
    return "\n".join(lines) + "\n"


def write_profile(profile: Profile, out: Path) -> Path:
    """The page, whole or not at all. StorageError."""
    whole = sum(totals(profile).values())
    phases = [
        {
            "name": name,
            "count": f"{(part := sum(functions.values())):,}",
            "share": _share(part, whole),
            "rows": [(one_line(f, 160), f"{count:,}", _share(count, part)) for f, count in _listed(functions)],
        }
        for name, functions in profile.phases.items()
    ]
    return _write(
        out,
        "profile.html",
        title=_title(profile),
        command_line=_command_line(profile),
        profile=profile,
        whole=f"{whole:,}",
        phases=phases,
        boxes=list(icicle(profile)),
        warning="" if profile.repeated else f"This boot {_DIFFERS}.",
    )


def write_difference(found: Difference, out: Path) -> Path:
    """The page, whole or not at all. StorageError."""
    tables = [("All milestones", found.functions), *((f"To {name}", changes) for name, changes in found.phases.items())]
    return _write(
        out,
        "profile_diff.html",
        title=f"{found.before.build} → {found.after.build}",
        before=[_title(found.before), *_command_line(found.before)],
        after=[_title(found.after), *_command_line(found.after)],
        total=_total(found),
        tables=[
            {
                "name": name,
                "rows": [(one_line(c.function, 160), f"{c.before:,}", f"{c.after:,}", f"{c.grew:+,}") for c in changes[:MOST_LISTED]],
                "more": max(0, len(changes) - MOST_LISTED),
            }
            for name, changes in tables
        ],
        warning="" if found.before.repeated and found.after.repeated else f"One of the boots {_DIFFERS}.",
    )


def icicle(profile: Profile) -> Iterator[Box]:
    """The whole, below it the milestones, below each its functions; what is too narrow to be seen is drawn together."""
    whole = sum(totals(profile).values())
    if not whole:
        return
    yield Box(0, 0.0, 100.0, "power-on to the last milestone", whole, 0)
    left = 0.0
    for milestone, functions in profile.phases.items():
        part = sum(functions.values())
        yield Box(1, left, 100 * part / whole, f"to {milestone}", part, 0)
        at, rest = left, part
        for name, count in functions.items():
            width = 100 * count / whole
            if width < NARROWEST:
                break
            yield Box(2, at, width, one_line(name, 160), count, sum(name.encode(errors="replace")) % 8 + 1)
            at, rest = at + width, rest - count
        if rest:
            yield Box(2, at, 100 * rest / whole, "the others", rest, 0)
        left += 100 * part / whole


def _listed(functions: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    found = list(functions.items())
    yield from found[:MOST_LISTED]
    if len(found) > MOST_LISTED:
        yield f"({len(found) - MOST_LISTED:,} others)", sum(count for _, count in found[MOST_LISTED:])


def _change_lines(name: str, changes: Sequence[Change]) -> list[str]:
    if not changes:
        return ["", f"{name}: no function changed"]
    lines = ["", f"{name}:"]
    lines += [f"{c.grew:>+16,}  {c.before:>15,} → {c.after:>15,}  {one_line(c.function, _NAME)}" for c in changes[:MOST_LISTED]]
    more = changes[MOST_LISTED:]
    return lines + ([f"{sum(c.grew for c in more):>+16,}  in {len(more):,} others"] if more else [])


def _title(profile: Profile) -> str:
    return one_line(" ".join(filter(None, (profile.build, profile.version, f"on {profile.target}", profile.digest[:19]))), 200)


def _command_line(profile: Profile) -> list[str]:
    return [f"command line: {one_line(profile.append, 2000)}"] if profile.append else []


def _total(found: Difference) -> str:
    return f"{found.total.before:,} → {found.total.after:,} instructions: {found.total.grew:+,}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "–"


def _write(out: Path, template: str, **content: object) -> Path:
    with replacing(out) as stream:
        page = (
            environment()
            .get_template(template)
            .generate(
                **content,
                policy=policy([]),
                style=Markup(asset("report.css")),  # noqa: S704 - ours
            )
        )
        stream.writelines(page)
    return out
