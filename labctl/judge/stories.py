"""Which stories of the plan are proven, on which builds, since when. Pure: what runs said goes in, a verdict a story and build comes out.

A story is *proven* where tests of it passed and none failed; *failed* where one did; *undecided* where none failed but the lab broke one, a
measurement was invalid, or the machine did not come up for them; *skipped* where all were. A run that says nothing of a story, and one in
which it was skipped or undecided, neither ends a series nor makes one longer.
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
    PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Since:
    """The first run of an unbroken series, and how many runs of it said so."""

    run: str
    started_at: float
    runs: int


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


@dataclass(frozen=True, slots=True)
class _Said:
    """What one run says of a story on a build."""

    state: State
    tests: Mapping[Outcome, int]
    reasons: tuple[tuple[str, str], ...]


_TELLING = (State.PROVEN, State.FAILED)
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
    return Proof(story, build, found.state, found.tests, found.reasons, since, proven, tuple(one.state for one in shown))


def _said(run: PastRun) -> dict[tuple[str, str], _Said]:
    cells: dict[tuple[str, str], list[PastCell]] = {}
    for cell in run.cells.values():
        for story in cell.stories:
            cells.setdefault((story, cell.cell.build), []).append(cell)
    return {(story, build): _together(story, of) for (story, build), of in cells.items()}


def _together(story: str, cells: Sequence[PastCell]) -> _Said:
    tests: Counter[Outcome] = Counter()
    reasons: list[tuple[int, str, str]] = []
    for cell in cells:
        told = cell.stories[story]
        tests.update(told.outcomes)
        worst = next((i for i, outcome in enumerate(_ORDER) if told.outcomes.get(outcome)), None)
        if worst is not None:
            reasons.append((worst, cell.cell.target, told.reason))
    not_tried = any(reason.startswith((LAB_FAILED, NO_BOOT)) for _, _, reason in reasons)
    if tests[Outcome.FAIL]:
        state = State.FAILED
    elif tests[Outcome.ERROR] or tests[Outcome.INVALID]:
        state = State.UNDECIDED
    elif tests[Outcome.PASS] or tests[Outcome.FLAKY]:
        state = State.PROVEN
    else:
        state = State.UNDECIDED if not_tried else State.SKIPPED
    return _Said(state, dict(tests), tuple((target, reason) for _, target, reason in dict.fromkeys(sorted(reasons))))
