"""The plan's stories × builds as they are told: the same words on the page and in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from labctl.judge.stories import Part, Proof, Since, State
from labctl.model import Outcome
from labctl.report.order import moment
from labctl.report.printable import one_line
from labctl.report.quantity import natural

MOST_STORIES = 200
MOST_BUILDS = 12
MOST_REASONS = 4
"""Told in one cell."""
MOST_PARTS = 40
"""Tests told of one story on one build."""
ICONS = {
    State.PROVEN: "pass",
    State.PARTLY: "flaky",
    State.FAILED: "fail",
    State.UNDECIDED: "error",
    State.SKIPPED: "skip",
    State.NOT_RUN: "skip",
}
"""Each state looks like an outcome that people know."""
_TROUBLE = (State.FAILED, State.UNDECIDED)


@dataclass(frozen=True)
class Point:
    """A story on a build, in words."""

    state: State
    icon: str
    since: str
    """When the series began and how long it is; empty where there is none."""
    run: str
    """The run that it began with."""
    href: str
    """Where that run's report is, if it is there."""
    parts: str
    """``2 of 3 tests``, where not all passed."""
    tests: Sequence[tuple[str, str, str]]
    """Each test that stands behind it: how it ended (``not run``), its name, why it was skipped."""
    reasons: Sequence[str]
    history: Sequence[State]


@dataclass(frozen=True)
class Row:
    story: str
    title: str
    points: Sequence[Point]
    """In the order of the builds."""


@dataclass(frozen=True)
class Stories:
    builds: Sequence[str]
    rows: Sequence[Row]
    """Those of which a run says something."""
    silent: Sequence[str]
    """The others, with their titles."""
    counts: Sequence[tuple[str, Mapping[State, int]]]
    """Of each build, how many stories are what, the worst first."""
    more: int
    """Stories beyond those."""
    builds_more: int


def told(found: Iterable[Proof], titles: Mapping[str, str], link: Callable[[str], str] = lambda run: "") -> Stories | None:
    """None where no test names a story. ``link``: where the report of a run is, by its id."""
    table: dict[str, dict[str, Proof]] = {}
    for proof in found:
        table.setdefault(proof.story, {})[proof.build] = proof
    if not table:
        return None
    names = sorted({build for of in table.values() for build in of}, key=natural)
    trouble = {build: sum(of[build].state in _TROUBLE for of in table.values()) for build in names}
    kept = sorted(sorted(names, key=lambda build: -trouble[build])[:MOST_BUILDS], key=natural)
    names_of = {story: f"{story} {one_line(titles.get(story, ''), 80)}".rstrip() for story in table}
    heard = {story: of for story, of in table.items() if any(one.state is not State.NOT_RUN for one in of.values())}
    rows = [
        Row(story, one_line(titles.get(story, ""), 80), [_point(of[build], link) for build in kept])
        for story, of in list(heard.items())[:MOST_STORIES]
    ]
    counts = [(build, _counted([of[build].state for of in table.values()])) for build in kept]
    silent = [name for story, name in names_of.items() if story not in heard][:MOST_STORIES]
    return Stories(kept, rows, silent, counts, max(0, len(heard) - MOST_STORIES), len(names) - len(kept))


def _counted(states: Sequence[State]) -> dict[State, int]:
    return {state: states.count(state) for state in State if state in states}


def _point(proof: Proof, link: Callable[[str], str]) -> Point:
    count = len(proof.parts)
    good = sum(part.outcome in (Outcome.PASS, Outcome.FLAKY) for part in proof.parts)
    parts = f"{good} of {count} tests" if count > 1 and good < count and proof.state is not State.SKIPPED else ""
    targets = {target for target, _ in proof.reasons}
    words = [(f"{target}: " if len(targets) > 1 else "") + (reason or "no reason given") for target, reason in proof.reasons]
    if proof.state is State.PARTLY:
        words = [*_lacking(proof.parts)]
    elif proof.state is State.PROVEN:
        words = []  # what was skipped on one target passed on another
    return Point(
        proof.state,
        ICONS[proof.state],
        _series(proof.since, proof.proven, proof.state),
        proof.since.run if proof.since else "",
        link(proof.since.run) if proof.since else "",
        parts,
        [
            (part.outcome.value if part.outcome else "not run", one_line(part.test, 160), one_line(part.why, 160))
            for part in proof.parts[:MOST_PARTS]
        ],
        [one_line(word, 160) for word in dict.fromkeys(words)][:MOST_REASONS],
        proof.history,
    )


def _lacking(parts: Iterable[Part]) -> Iterator[str]:
    """Of a story that is proven in part: what was skipped, by the reason, and what was not run."""
    skipped: dict[str, list[str]] = {}
    for part in parts:
        if part.outcome is Outcome.SKIP:
            skipped.setdefault(part.why or "no reason given", []).append(_brief(part.test))
    for why, tests in skipped.items():
        yield f"skipped {', '.join(tests)}: {why}"
    if missing := [_brief(part.test) for part in parts if part.outcome is None]:
        yield f"not run: {', '.join(missing)}"


def _brief(test: str) -> str:
    """``passthrough/test_groups`` of ``passthrough/test_passthrough.py::test_groups``."""
    suite, _, rest = test.partition("/")
    return f"{suite}/{rest.rpartition('::')[2]}" if "::" in rest else test


def _series(since: Since | None, proven: Since | None, state: State) -> str:
    if since is None:
        return ""
    told = f"since {moment(since.started_at)}" + (f", {since.runs:,} runs" if since.runs > 1 else ", first run")
    if state is State.FAILED:
        told += f"; proven last {moment(proven.started_at)}" if proven else "; never proven before"
    return told
