"""What the tests of a cell said of the plan's stories, counted: as end.json keeps it, so that a history need not open anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labctl.model import Outcome
from labctl.result import TestResult
from labctl.store import records

_GRAVEST_FIRST = (Outcome.FAIL, Outcome.ERROR, Outcome.INVALID, Outcome.SKIP)
_MOST_REASON = 300
"""Characters."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the tests of one cell said of one story."""

    outcomes: Mapping[Outcome, int]
    reason: str = ""
    """Of the gravest test that did not pass."""
    tests: Mapping[str, Outcome] = field(default_factory=dict)
    """By name; empty in what an earlier version of the lab has written."""
    skips: Mapping[str, str] = field(default_factory=dict)
    """Why a test was skipped, by its name."""


def told_of(tests: Iterable[TestResult]) -> dict[str, Told]:
    """By story."""
    outcomes: dict[str, Counter[Outcome]] = {}
    reasons: dict[str, dict[Outcome, str]] = {}
    named: dict[str, dict[str, TestResult]] = {}
    for test in tests:
        for story in test.stories:
            outcomes.setdefault(story, Counter())[test.outcome] += 1
            reasons.setdefault(story, {}).setdefault(test.outcome, test.reason)
            named.setdefault(story, {})[test.name] = test
    return {
        story: Told(
            dict(found),
            next((reasons[story][o] for o in _GRAVEST_FIRST if o in reasons[story]), ""),
            {name: test.outcome for name, test in named[story].items()},
            {name: test.reason[:_MOST_REASON] for name, test in named[story].items() if test.outcome is Outcome.SKIP},
        )
        for story, found in outcomes.items()
    }


def record(tests: Iterable[TestResult]) -> dict[str, Any]:
    """Story → how many tests ended how, ``reason``, ``tests`` by name, and ``skips``, why which of them was skipped."""
    return {
        story: {
            **{outcome.value: count for outcome, count in told.outcomes.items()},
            "reason": told.reason[:_MOST_REASON],
            "tests": {name: outcome.value for name, outcome in told.tests.items()},
            **({"skips": dict(told.skips)} if told.skips else {}),
        }
        for story, told in told_of(tests).items()
    }


def read(value: object) -> dict[str, Told]:
    """What `record` wrote; what is no story in it is left out."""
    found: dict[str, Told] = {}
    for story, about in records.mapping(value).items():
        table = records.mapping(about)
        counts = {outcome: records.integer(table.get(outcome.value), 0) for outcome in Outcome}
        if records.is_story(story) and any(count > 0 for count in counts.values()):
            told = {outcome: count for outcome, count in counts.items() if count > 0}
            tests = {name: how for name, how in records.texts(table.get("tests")).items() if how in [*Outcome]}
            named = {name: Outcome(how) for name, how in tests.items()}
            found[story] = Told(told, records.text(table.get("reason"), ""), named, records.texts(table.get("skips")))
    return found
