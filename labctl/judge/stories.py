"""Which stories of the plan are proven, on which builds, since when. Pure: what runs said goes in, a verdict a story and build comes out.

A story is *proven* where each of the tests that the lab has for it passed on some target and none failed; *partly* where some passed, and
others were skipped everywhere or not run; *failed* where one failed; *undecided* where none failed but the lab broke one, a measurement
was invalid, or the machine did not come up for one; *skipped* where all were. A run that says nothing of a story, and one in which it was
proven in part, skipped or undecided, neither ends a series nor makes one longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from labctl.model import Outcome
from labctl.store.outcome import LAB_FAILED, NO_BOOT
from labctl.store.past import PastCell, PastRun


class State(StrEnum):
    """Of a story on a build, the worst first."""

    FAILED = "failed"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"
    SKIPPED = "skipped"
    PARTLY = "partly"
    PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Since:
    """The first run of an unbroken series, and how many runs of it said so."""

    run: str
    started_at: float
    runs: int


@dataclass(frozen=True, slots=True)
class Part:
    """A test that stands behind a story, on one build."""

    test: str
    """``SUITE/test_it.py::test_create``; of a run of an earlier version of the lab the suite alone, for it kept no names."""
    outcome: Outcome | None
    """The gravest over all targets, but a pass goes before a skip: what cannot be tried on one machine is on another. None: not run."""
    why: str = ""
    """Of one that was skipped."""


@dataclass(frozen=True)
class Proof:
    """A story on one build."""

    story: str
    build: str
    state: State
    tests: Mapping[Outcome, int]
    """How many tests ended how, over all targets."""
    reasons: tuple[tuple[str, str], ...]
    """Target and why, of each cell in which a test failed, was not decided, or was skipped; the gravest first."""
    since: Since | None
    """Of a proven or a failed story."""
    proven: Since | None
    """Of a failed one the newest run in which it was proven, and 1; None where it never was."""
    history: tuple[State, ...]
    """In each of the runs that were asked about, the newest first."""
    parts: tuple[Part, ...] = ()
    """Every test that stands behind it, those that were not run too."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What one run says of a story on a build."""

    state: State
    tests: Mapping[Outcome, int]
    reasons: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...] = ()


_TELLING = (State.PROVEN, State.FAILED)
_GOOD = (Outcome.PASS, Outcome.FLAKY)
_RANK = {
    outcome: rank
    for rank, outcome in enumerate((Outcome.FAIL, Outcome.ERROR, Outcome.INVALID, Outcome.FLAKY, Outcome.PASS, Outcome.SKIP, None))
}
_ORDER = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID, Outcome.SKIP)


def proofs(asked: Sequence[PastRun], earlier: Iterable[PastRun] = (), titles: Iterable[str] = ()) -> tuple[Proof, ...]:
    """Every story on every build of which the runs that are asked about say something; by the story's number, then build.

    ``asked`` and ``earlier``: the newest first, all of ``earlier`` before those. Of several runs the newest counts that tells whether a
    story holds. ``titles``: stories that stand here though no test of these runs names them, if any test names one.
    """
    said = [_said(run) for run in asked]
    keys = {key for one in said for key in one}
    builds = sorted({build for _, build in keys})
    stories = sorted({story for story, _ in keys} | (set(titles) if keys else set()), key=_number)
    runs = [*zip(asked, said, strict=True)]
    if keys:
        runs += ((run, _said(run)) for run in earlier)
    return tuple(_proof(story, build, runs, len(said)) for story in stories for build in builds)


def _number(story: str) -> tuple[int, str]:
    digits = story.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0, story


def _proof(story: str, build: str, runs: Sequence[tuple[PastRun, Mapping[tuple[str, str], _Said]]], asked: int) -> Proof:
    nothing = _Said(State.NOT_RUN, {}, ())
    told = [(run, said.get((story, build), nothing)) for run, said in runs]
    shown = [one for _, one in told[:asked]]
    found = next((one for one in shown if one.state in _TELLING), None) or next((one for one in shown if one is not nothing), nothing)
    since: Since | None = None
    proven: Since | None = None
    if found.state in _TELLING:
        for run, one in told:
            if one.state is found.state and proven is None:
                since = Since(run.id, run.started_at, 1 + (since.runs if since else 0))
            elif one.state in _TELLING:
                if found.state is State.FAILED and one.state is State.PROVEN:
                    proven = Since(run.id, run.started_at, 1)
                break
    return Proof(story, build, found.state, found.tests, found.reasons, since, proven, tuple(one.state for one in shown), found.parts)


def _said(run: PastRun) -> dict[tuple[str, str], _Said]:
    cells: dict[tuple[str, str], list[PastCell]] = {}
    for cell in run.cells.values():
        for story in cell.stories:
            cells.setdefault((story, cell.cell.build), []).append(cell)
    return {(story, build): _together(story, of, run.story_tests.get(story, ())) for (story, build), of in cells.items()}


def _together(story: str, cells: Sequence[PastCell], known: Sequence[str]) -> _Said:
    tests: Counter[Outcome] = Counter()
    reasons: list[tuple[int, str, str]] = []
    for cell in cells:
        told = cell.stories[story]
        tests.update(told.outcomes)
        worst = next((i for i, outcome in enumerate(_ORDER) if told.outcomes.get(outcome)), None)
        if worst is not None:
            reasons.append((worst, cell.cell.target, told.reason))
    parts = _parts(story, cells, known)
    not_tried = any(part.outcome is Outcome.SKIP and part.why.startswith((LAB_FAILED, NO_BOOT)) for part in parts)
    if tests[Outcome.FAIL]:
        state = State.FAILED
    elif tests[Outcome.ERROR] or tests[Outcome.INVALID] or not_tried:
        state = State.UNDECIDED
    elif tests[Outcome.PASS] or tests[Outcome.FLAKY]:
        state = State.PROVEN if all(part.outcome in _GOOD for part in parts) else State.PARTLY
    else:
        state = State.SKIPPED
    return _Said(state, dict(tests), tuple((target, reason) for _, target, reason in dict.fromkeys(sorted(reasons))), parts)


def _parts(story: str, cells: Sequence[PastCell], known: Sequence[str]) -> tuple[Part, ...]:
    """Those that ran, then those of ``known`` that did not: a name there stands for all that a test is parametrized by."""
    found: dict[str, Part] = {}
    nameless = set()
    for cell in cells:
        suite, told = cell.cell.suite, cell.stories[story]
        for name, outcome in told.tests.items():
            _add(found, Part(f"{suite}/{name}", outcome, told.skips.get(name, "")))
        if not told.tests:
            nameless.add(suite)
            for outcome in told.outcomes:
                _add(found, Part(f"{suite}: {outcome.value}", outcome, told.reason if outcome is Outcome.SKIP else ""))
    ran = {test.partition("[")[0] for test in found}
    missing = (test for test in known if test not in ran and test.partition("/")[0] not in nameless)
    return (*(found[test] for test in sorted(found)), *(Part(test, None) for test in missing))


def _add(found: dict[str, Part], part: Part) -> None:
    known = found.get(part.test)
    if known is None or _RANK[part.outcome] < _RANK[known.outcome]:
        found[part.test] = part
