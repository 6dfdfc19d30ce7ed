"""The plan's stories in a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from labctl.judge.stories import Proof, Since, State
from labctl.report.stories import Point, Stories, told

_LOOKS = {
    State.PROVEN: ("✓", "green"),
    State.PARTLY: ("◐", "yellow"),
    State.FAILED: ("✗", "bold red"),
    State.UNDECIDED: ("!", "bold yellow"),
    State.SKIPPED: ("–", "dim"),
    State.NOT_RUN: ("·", "dim"),
}
MOST_BUILDS = 4
"""Columns; the page has more."""
_GAP = "  "
_TITLE = 36


def stories_table(found: Iterable[Proof], titles: Mapping[str, str]) -> list[RenderableType]:
    """Stories down, builds across, then why those are not proven that are not; nothing where no test names a story."""
    stories = told(found, titles)
    if stories is None:
        return []
    builds = stories.builds[:MOST_BUILDS]
    heads = ("STORY", *(build.upper() for build in builds))
    lines = [(f"{row.story} {row.title[:_TITLE]}".rstrip(), *(_cell(point) for point in row.points[: len(builds)])) for row in stories.rows]
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(len(heads))]
    parts: list[RenderableType] = [
        Text(""),
        _unbroken(Text(_GAP.join(f"{h:{w}}" for h, w in zip(heads, widths, strict=True)).rstrip(), "bold")),
    ]
    for row, line in zip(stories.rows, lines, strict=True):
        text = Text(f"{line[0]:{widths[0]}}")
        for point, word, width in zip(row.points, line[1:], widths[1:], strict=False):
            text += Text(_GAP) + Text(f"{word:{width}}", _LOOKS[point.state][1])
        text.rstrip()
        parts.append(_unbroken(text))
    if stories.silent:
        parts.append(Text(f"not run: {', '.join(name.partition(' ')[0] for name in stories.silent)}", "dim"))
    parts += _reasons(stories, builds)
    if hidden := len(stories.builds) + stories.builds_more - len(builds):
        parts.append(Text(f"… and {hidden:,} builds more: see the report", style="dim"))
    return parts


def _cell(point: Point) -> str:
    strip = "".join(_LOOKS[state][0] for state in reversed(point.history)) if len(point.history) > 1 else ""
    word = f"{_LOOKS[point.state][0]} {point.state}" if point.state is not State.NOT_RUN else "· not run"
    return _GAP.join(filter(None, (strip, f"{word} {point.since}".rstrip())))


def _reasons(stories: Stories, builds: Iterable[str]) -> Iterable[RenderableType]:
    for row in stories.rows:
        for build, point in zip(builds, row.points, strict=False):
            for reason in point.reasons:
                glyph, style = _LOOKS[point.state]
                part = f" ({point.parts})" if point.parts else ""
                yield _unbroken(Text.assemble((f"{glyph} ", style), f"{row.story} {build}{part}: {reason}"))


def stories_tests(found: Iterable[Proof], titles: Mapping[str, str]) -> list[RenderableType]:
    """Each story on each build with the tests that stand behind it, and how they ended."""
    parts: list[RenderableType] = []
    stories = told(found, titles)
    for row in stories.rows if stories else ():
        for build, point in zip(stories.builds if stories else (), row.points, strict=True):
            if not point.tests:
                continue
            glyph, style = _LOOKS[point.state]
            parts += [Text(""), _unbroken(Text.assemble(f"{row.story} {row.title}, {build}: ", (f"{glyph} {point.state}", style)))]
            parts += [_unbroken(Text(f"  {how:8}{test}" + (f": {why}" if why else ""))) for how, test, why in point.tests]
    return parts


def _unbroken(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ignore"
    return text


def stories_json(found: Iterable[Proof], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """For programs. ``history``: the newest first."""
    return [
        {
            "story": one.story,
            "title": titles.get(one.story, ""),
            "build": one.build,
            "state": one.state.value,
            "tests": {outcome.value: count for outcome, count in one.tests.items() if count},
            "parts": [{"test": p.test, "outcome": p.outcome.value if p.outcome else "not run", "reason": p.why} for p in one.parts],
            "reasons": [{"target": target, "reason": reason} for target, reason in one.reasons],
            "since": _since(one.since),
            "proven_last": _since(one.proven),
            "history": [state.value for state in one.history],
        }
        for one in found
    ]


def _since(since: Since | None) -> dict[str, Any] | None:
    return None if since is None else {"run": since.run, "at": since.started_at, "runs": since.runs}
