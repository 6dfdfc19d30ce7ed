"""Promises beside the figures that they are made of: found by the series that a figure is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labctl.judge.promise import Judged
from labctl.judge.summary import Group
from labctl.model import Channel
from labctl.promise import Promise
from labctl.report.promises import Told, ranked

MOST_BESIDE = 4
"""Promises beside one figure; all of them stand in the section of the promises."""

_Series = tuple[str, str, str, tuple[tuple[str, str], ...], str]


@dataclass(frozen=True)
class Held:
    """A promise in the few words that fit beside its figure."""

    told: Told
    asked: str
    """``p99 <= 1 ms``; of a promise that every observation is held to ``each <= 1 ms``."""
    part: float | None
    """The quantile that it is made of, None where it is of none."""
    together: str
    """What was judged, where that is more than the figure; empty where it is the same."""


class Beside:
    """What was judged, by series. ``groups`` are all that stand on the page: a promise is of all suites that recorded a series, and where
    those are several, a figure of one of them is not what was judged."""

    def __init__(self, judged: Iterable[Judged], groups: Iterable[Group]) -> None:
        self._judged: dict[_Series, list[Judged]] = {}
        for one in judged:
            if one.target:
                self._judged.setdefault((one.promise.metric, one.build, one.target, one.params, one.unit), []).append(one)
        suites: dict[_Series, set[str]] = {}
        for group in groups:
            suites.setdefault(_series(group), set()).add(group.suite)
        self._suites = {series: len(found) for series, found in suites.items()}

    def of(self, group: Group) -> list[Held]:
        """The promises that a series is held to, the worst first. Counted instructions are held to none."""
        return _held(self._of(group), self._suites.get(_series(group), 1))

    def of_metric(self, metric: str, build: str, target: str, unit: str) -> list[Held]:
        """The same of all suites together, where no parameter tells several series of the metric apart."""
        return _held(self._judged.get((metric, build, target, (), unit), ()))

    def promises(self, groups: Iterable[Group]) -> list[Promise]:
        """Those of several series, each once though several builds are held to it."""
        found: list[Promise] = []
        for group in groups:
            found += (one.promise for one in self._of(group) if one.promise.is_in(group.unit) and one.promise not in found)
        return found[:MOST_BESIDE]

    def _of(self, group: Group) -> Sequence[Judged]:
        if group.channel is not Channel.WALL:
            return ()
        return self._judged.get(_series(group), ())


def _series(group: Group) -> _Series:
    return group.metric, group.build, group.target, group.params, group.unit


def _held(judged: Sequence[Judged], suites: int = 1) -> list[Held]:
    def together(words: Told) -> str:
        return f"of {suites} suites together: {words.value}" if suites > 1 and words.value else ""

    return [Held(words, _asked(one.promise), one.promise.part, together(words)) for one, words in ranked(judged)][:MOST_BESIDE]


def _asked(promise: Promise) -> str:
    return f"{promise.statistic or 'each'} {promise.asked}"
